"""Fine-tuning learns what is there to learn, stops by the validation part, and never does a run twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from usfmae.core.bench import classifier, encoders
from usfmae.core.bench.encoders.base import Pooling
from usfmae.core.bench.features import squares
from usfmae.core.bench.finetune import finetune, grid
from usfmae.core.bench.fit import FitRun, head, parameter_groups, worth
from usfmae.core.bench.metrics import measures
from usfmae.core.bench.tasks import load
from usfmae.core.bench.tasks.base import only
from usfmae.core.checkpoint import read_metadata
from usfmae.core.config.bench import FinetuneSettings
from usfmae.core.corpus.augment import plain

SETTINGS = FinetuneSettings(
    recipe="paper",
    lrs=(1e-3, 3e-3),
    weight_decays=(0.01,),
    batch_sizes=(16,),
    seeds=(0, 1),
    epochs=6,
    patience=3,
    rotation=0,
    zoom_min=1,
    zoom_max=1,
    precision="fp32",
)


def test_the_papers_grid_has_eight_points() -> None:
    assert len(grid(FinetuneSettings(recipe="paper"))) == 8


def test_a_recipe_sets_what_the_person_does_not() -> None:
    paper = FinetuneSettings(recipe="paper", epochs=3)
    assert (paper.epochs, paper.rotation, paper.two_sided, paper.head_lr, paper.norm) == (3, 90.0, False, None, "none")
    assert FinetuneSettings().norm == "batch" and FinetuneSettings.model_validate(paper.model_dump()) == paper


def test_the_head_learns_at_its_own_rate_and_deep_blocks_the_slower(checkpoint: Path) -> None:
    encoder = encoders.load(str(checkpoint))
    settings = FinetuneSettings(head_lr=1e-2, layer_decay=0.5)
    model = nn.Sequential(encoder.module, head(encoder, 2, settings))
    groups = parameter_groups(model, settings, 1e-3)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    named = {name: rate[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    assert named["1.1.weight"] == 1e-2 and named["0.autoencoder.norm.weight"] == 1e-3
    assert named["0.autoencoder.blocks.0.norm1.weight"] == 5e-4  # the only block
    assert named["0.autoencoder.patch_embed.proj.weight"] == 2.5e-4
    assert len(parameter_groups(model, FinetuneSettings(recipe="paper"), 1e-3)) == 1


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_best_run_leaves_a_classifier_that_timm_and_onnx_run_alike(
    folder_task: Path, checkpoint: Path, tmp_path: Path, pooling: Pooling
) -> None:
    onnxruntime, timm = pytest.importorskip("onnxruntime"), pytest.importorskip("timm")
    task = only(load("folder", folder_task), ["fold-1"])
    settings = SETTINGS.model_copy(update={"seeds": (0,), "norm": "batch", "epochs": 2})
    build = lambda: encoders.load(str(checkpoint), pooling)  # noqa: E731
    said, runs = finetune(task, build, squares(task, 32), settings, tmp_path)
    facts = read_metadata(tmp_path / classifier.WEIGHTS)
    best = max(runs, key=lambda r: (r.validation, -r.validation_loss))
    assert float(facts["validation"]) == best.validation and json.loads(facts["classes"]) == ["normal", "other"]
    for target in ("timm", "onnx"):
        classifier.export(tmp_path / classifier.WEIGHTS, target, tmp_path / target)
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    pixels = plain(squares(task, 32)[task.splits[0].test], 32)
    images = build().prepare(torch.from_numpy(pixels))
    with torch.no_grad():
        logits = model(images)
    assert np.abs(logits.softmax(1).numpy() - said[0].probabilities).max() < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "classifier.onnx")
    (theirs,) = session.run(None, {"images": images.numpy()})
    assert np.abs(theirs - logits.numpy()).max() < 1e-4
    assert "chose these weights" in (tmp_path / "timm" / "README.md").read_text()


def test_a_visible_class_is_learned_and_a_second_call_trains_nothing(
    folder_task: Path, checkpoint: Path, tmp_path: Path
) -> None:
    task = only(load("folder", folder_task), ["fold-1"])
    told: list[tuple[FitRun, bool]] = []

    def run() -> list[float]:
        told.clear()
        said, _ = finetune(
            task,
            lambda: encoders.load(str(checkpoint)),
            squares(task, 32),
            SETTINGS,
            tmp_path,
            lambda *a: told.append(a),
        )
        return [float(measures(p)["auroc"]) for p in said]

    first = run()
    assert len(first) == 2 and min(first) > 0.9
    assert [kept for _, kept in told] == [False, False, False]  # two of the grid, one more seed
    assert all(r.epochs <= SETTINGS.epochs and r.epochs - r.best_epoch <= SETTINGS.patience for r, _ in told)
    assert run() == first and all(kept for _, kept in told)


def test_one_image_left_over_is_no_batch_of_its_own(folder_task: Path, checkpoint: Path, tmp_path: Path) -> None:
    task = only(load("folder", folder_task), ["fold-1"])
    batch = len(task.splits[0].train) - 1
    once = {"lrs": (1e-3,), "batch_sizes": (batch,), "seeds": (0,), "epochs": 1}
    settings = SETTINGS.model_copy(update={**once, "norm": "batch"})
    said, _ = finetune(
        task, lambda: encoders.load(str(checkpoint)), squares(task, 32), settings, tmp_path, lambda *a: None
    )
    assert len(said) == 1


def test_of_equal_accuracy_the_smaller_cross_entropy_counts(folder_task: Path) -> None:
    task = load("folder", folder_task)
    positions = np.arange(len(task.examples))
    sure, unsure = (np.where(np.eye(2)[task.labels] > 0, p, 1 - p) for p in (0.9, 0.6))
    majority = [np.tile([p, 1 - p], (len(positions), 1)) for p in (0.9, 0.6)]
    assert worth(task, positions, sure) > worth(task, positions, unsure) > worth(task, positions, majority[1])
    # A network that names one class only still gets better: training must not stop there.
    assert worth(task, positions, majority[1]) > worth(task, positions, majority[0])


def test_a_run_cut_in_the_middle_of_writing_is_trained_again(
    folder_task: Path, checkpoint: Path, tmp_path: Path
) -> None:
    task = only(load("folder", folder_task), ["fold-1"])
    short = SETTINGS.model_copy(update={"lrs": (1e-3,), "seeds": (0,), "epochs": 1})
    build = lambda: encoders.load(str(checkpoint))  # noqa: E731
    said, _ = finetune(task, build, squares(task, 32), short, tmp_path)
    (kept,) = (tmp_path / "runs").glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:50])
    again, _ = finetune(task, build, squares(task, 32), short, tmp_path)
    assert np.allclose(said[0].probabilities, again[0].probabilities, atol=1e-5)


def test_a_loss_that_runs_away_loses_the_grid(folder_task: Path, checkpoint: Path, tmp_path: Path) -> None:
    task = only(load("folder", folder_task), ["fold-1"])
    wild = SETTINGS.model_copy(update={"lrs": (1e30,), "seeds": (0,), "epochs": 2})
    said, runs = finetune(task, lambda: encoders.load(str(checkpoint)), squares(task, 32), wild, tmp_path)
    assert runs[0].validation <= 0.6 and np.isfinite(said[0].probabilities).all()


def test_images_of_another_size_are_trained_on_anew(folder_task: Path, checkpoint: Path, tmp_path: Path) -> None:
    task = only(load("folder", folder_task), ["fold-1"])
    short = SETTINGS.model_copy(update={"lrs": (1e-3,), "seeds": (0,), "epochs": 1})
    kept: list[bool] = []
    for size in (32, 48, 32):
        build = lambda: encoders.load(str(checkpoint))  # noqa: E731
        finetune(task, build, squares(task, size), short, tmp_path, lambda _, read: kept.append(read))
    assert kept == [False, False, True]


@pytest.mark.parametrize("key", ["lrs", "seeds", "batch_sizes"])
def test_an_empty_grid_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        FinetuneSettings(**{key: ()})
