"""Fine-tuning learns what is there to learn, stops by the validation part, and never does a run twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from usfmae.core.bench import encoders
from usfmae.core.bench.features import squares
from usfmae.core.bench.finetune import finetune, grid
from usfmae.core.bench.fit import FitRun, worth
from usfmae.core.bench.metrics import measures
from usfmae.core.bench.tasks import load
from usfmae.core.bench.tasks.base import only
from usfmae.core.config.bench import FinetuneSettings

SETTINGS = FinetuneSettings(
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
    assert len(grid(FinetuneSettings())) == 8


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
