"""Runs: what they write, where they may start from, how hyper-parameters are chosen."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from usfmae.core.checkpoint import encoder_of, load
from usfmae.core.config import ModelSettings, Settings, TrainSettings
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.shard import FOLDER, PackedImage, write_shard
from usfmae.core.errors import CheckpointError, CorpusError, ResourceError, UsageError
from usfmae.core.export import export
from usfmae.core.mae import train_log
from usfmae.core.mae.cross_validation import CrossValidation, combinations
from usfmae.core.mae.evaluation import evaluate
from usfmae.core.mae.model import MaskedAutoencoder, fresh
from usfmae.core.mae.presets import preset
from usfmae.core.mae.pretrain import Hooks, InitFile, Measured, new_run, open_run, pretrain, resume
from usfmae.core.mae.weights.init_weights import build, read

MODEL = ModelSettings(
    image_size=32, patch_size=8, width=32, depth=1, heads=2, decoder_width=32, decoder_depth=1, decoder_heads=8
)
SETTINGS = Settings(model=MODEL, train=TrainSettings(batch_size=8, steps=4, checkpoint_steps=2, held_out=0.2))


def ramps(count: int = 30, start: int = 0) -> list[PackedImage]:
    """Images that a small model can learn: slopes of random direction."""
    random = np.random.default_rng(start)
    row, column = np.mgrid[0:32, 0:32]
    slopes = random.normal(size=(count, 2)) * 4
    images = [(128 + a * (row - 16) + b * (column - 16)).clip(0, 255).astype(np.uint8) for a, b in slopes]
    return [PackedImage(image, f"id{start + i}", f"g{(start + i) // 2}", "ramps") for i, image in enumerate(images)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_shard(tmp_path / "corpus", "a", ramps())
    return tmp_path / "corpus"


def test_a_run_leaves_log_checkpoints_panels_and_weights_with_lineage(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary = pretrain([corpus], out, SETTINGS)
    found = load(out / "checkpoint.safetensors")
    assert found.trail.id == summary.id and found.metadata["step"] == "4"
    assert json.loads(found.metadata["datasets"]) == {"ramps": summary.images}
    entries = train_log.read(out / "log.jsonl")
    assert [e["step"] for e in entries if "loss" in e] == [1, 2, 3, 4]
    assert set(entries[0]) == {
        *("step", "loss", "lr", "grad_norm", "images_per_second", "mfu", "data_wait", "seconds"),
    }
    assert [e["step"] for e in entries if "held_out_loss" in e] == [2, 4]
    assert (out / "panels" / "step-000000004.png").read_bytes().startswith(b"\x89PNG")
    child = pretrain([corpus], tmp_path / "child", SETTINGS, init=InitFile(out / "checkpoint.safetensors"))
    assert load(Path(child.checkpoint)).trail.parents == (summary.id,)


def test_a_run_that_predicts_a_teachers_features_goes_on_after_a_stop_and_leaves_a_plain_checkpoint(
    corpus: Path, tmp_path: Path
) -> None:
    teacher = Path(pretrain([corpus], tmp_path / "teacher", SETTINGS).checkpoint)
    latents = Settings(model=MODEL, train=SETTINGS.train.model_copy(update={"target": "latents"}))
    whole = new_run([corpus], tmp_path / "whole", latents, InitFile(teacher=teacher)).go()
    new_run([corpus], tmp_path / "cut", latents, InitFile(teacher=teacher)).go(
        hooks=Hooks(lambda record, n: record.step == 3)
    )
    assert resume(tmp_path / "cut").id == whole.id
    result = load(Path(whole.checkpoint))
    assert not [name for name in result.tensors if name.startswith("decoder_latent")]
    assert set(result.tensors) == set(load(teacher).tensors) and len(result.trail.parents) == 1
    with pytest.raises(UsageError, match="frozen teacher"):
        new_run([corpus], tmp_path / "none", latents)

    # Another file at the teacher's place would silently change what is learned.
    pretrain([corpus], tmp_path / "other", Settings(model=MODEL, train=SETTINGS.train.model_copy(update={"seed": 7})))
    teacher.write_bytes((tmp_path / "other" / "checkpoint.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="has changed"):
        resume(tmp_path / "cut")


def test_a_run_is_never_overwritten_by_mistake(corpus: Path, tmp_path: Path) -> None:
    pretrain([corpus], tmp_path / "run", SETTINGS)
    with pytest.raises(UsageError, match="--resume"):
        pretrain([corpus], tmp_path / "run", SETTINGS)
    with pytest.raises(UsageError, match="cannot be resumed"):
        resume(tmp_path / "nothing")


def test_a_resumed_run_ignores_shards_added_meanwhile_and_names_changed_ones(corpus: Path, tmp_path: Path) -> None:
    straight = pretrain([corpus], tmp_path / "straight", SETTINGS)
    stopped = pretrain([corpus], tmp_path / "run", SETTINGS, on_step=lambda record, _: record.step == 2)
    assert not stopped.finished
    write_shard(corpus, "0-added", ramps(6, start=100))
    assert resume(tmp_path / "run").id == straight.id
    (corpus / FOLDER / "a.gray.json").unlink()
    with pytest.raises(CorpusError, match="gone or changed"):
        resume(tmp_path / "run")


def test_a_run_whose_disk_fills_keeps_its_last_checkpoint_and_goes_on_once_there_is_room(
    corpus: Path, tmp_path: Path
) -> None:
    straight = pretrain([corpus], tmp_path / "straight", SETTINGS)
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    try:
        with pytest.raises(ResourceError, match="is full - free space"):
            pretrain([corpus], disk / "run", SETTINGS)
        assert [p.name for p in (disk / "run" / "state").iterdir() if "optimizer" in p.name] == [
            "step-000000002.optimizer.safetensors"
        ]
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert resume(disk / "run").id == straight.id
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_run_is_not_resumed_on_a_shard_whose_bytes_have_changed(corpus: Path, tmp_path: Path) -> None:
    pretrain([corpus], tmp_path / "run", SETTINGS, on_step=lambda record, _: record.step == 2)
    shard = corpus / FOLDER / "a.gray.npy"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorpusError, match="damaged: its checksum differs"):
        resume(tmp_path / "run")


def test_a_run_can_be_trained_on_beyond_its_end_and_never_made_shorter(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = pretrain([corpus], out, SETTINGS)
    with pytest.raises(UsageError, match="ends at 4"):
        open_run(out, steps=3)
    longer = open_run(out, steps=8).go()
    assert (longer.step, longer.steps, longer.finished) == (8, 8, True) and longer.id != first.id
    entries = [e for e in train_log.read(out / "log.jsonl") if "loss" in e]
    assert [e["step"] for e in entries] == list(range(1, 9))
    assert entries[4]["lr"] < entries[5]["lr"] or entries[4]["lr"] == 0  # it warms up again
    assert resume(out).id == longer.id  # later calls know the new end

    # Cut within the added steps and gone on with, the result is the same.
    other = tmp_path / "other"
    pretrain([corpus], other, SETTINGS)
    cut = open_run(other, steps=8).go(hooks=Hooks(lambda record, _: record.step == 6))
    assert not cut.finished and resume(other).id == longer.id


def test_a_caller_hears_of_measurements_and_can_end_a_run_within_one(corpus: Path, tmp_path: Path) -> None:
    heard: list[Measured] = []
    new_run([corpus], tmp_path / "run", SETTINGS).go(hooks=Hooks(on_checkpoint=heard.append))
    assert [m.step for m in heard] == [2, 4] and all(m.panel.exists() and m.held_out_loss > 0 for m in heard)
    # The wish comes when the last step is done: the run is trained, not measured, and --resume ends it.
    steps: list[int] = []
    late = Hooks(on_step=lambda r, _: steps.append(r.step), stop=lambda: len(steps) == 4)
    done = new_run([corpus], tmp_path / "late", SETTINGS).go(hooks=late)
    assert not done.finished and resume(tmp_path / "late").id == resume(tmp_path / "run").id


def test_images_smaller_than_the_model_and_positions_that_are_resampled_are_warned_of(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = pretrain([corpus], tmp_path / "first", SETTINGS)
    larger = SETTINGS.model_copy(update={"model": MODEL.model_copy(update={"image_size": 64})})
    pretrain([corpus], tmp_path / "larger", larger, init=InitFile(Path(first.checkpoint)))
    assert "are enlarged" in caplog.text and "resampled from 4 x 4 to 8 x 8" in caplog.text


def test_the_notebook_preset_does_not_start_from_random_weights(corpus: Path, tmp_path: Path) -> None:
    notebook = SETTINGS.model_copy(update={"train": SETTINGS.train.model_copy(update={"init_required": True})})
    assert preset("official-notebook")[1].init_required
    with pytest.raises(UsageError, match="--init"):
        pretrain([corpus], tmp_path / "run", notebook)
    assert not (tmp_path / "run").exists()


def teacher() -> MaskedAutoencoder:
    """8 decoder heads whose attention is sharp enough that the number of heads matters."""
    model = fresh(MODEL)
    for parameter in model.decoder_blocks.parameters():
        parameter.data *= 6
    return model


@torch.no_grad()
def error(candidate: MaskedAutoencoder) -> float:
    """A reconstruction loss that the teacher's own number of heads makes small."""
    random = torch.Generator().manual_seed(0)
    images, noise = torch.randn(4, 3, 32, 32, generator=random), torch.rand(4, 16, generator=random)
    return 0.1 + float((candidate(images, noise)[1] - teacher()(images, noise)[1]).square().mean())


def test_foreign_weights_need_their_heads_named_and_wrong_ones_are_found_by_loss(tmp_path: Path) -> None:
    torch.save(teacher().state_dict(), tmp_path / "official.pt")
    start = read(tmp_path / "official.pt")
    wrong = MODEL.model_copy(update={"decoder_heads": 16})
    with pytest.raises(UsageError, match=r"--decoder-heads 8$"):
        build(start, MODEL, SETTINGS.train, error, stated=False)
    with pytest.raises(UsageError, match=r"8 .paper. or 16"):  # nothing to choose by
        build(start, MODEL, SETTINGS.train, lambda _: 1.0, stated=False)
    with pytest.raises(CheckpointError, match="--decoder-heads 8"):
        build(start, wrong, SETTINGS.train, error, stated=True)
    built = build(start, MODEL, SETTINGS.train, error, stated=True)
    assert error(built) == pytest.approx(0.1)


def test_an_official_file_starts_a_run(corpus: Path, tmp_path: Path) -> None:
    torch.save({"model": teacher().state_dict()}, tmp_path / "official.pth")
    summary = pretrain(
        [corpus], tmp_path / "run", SETTINGS, init=InitFile(tmp_path / "official.pth", heads_stated=True)
    )
    assert len(load(Path(summary.checkpoint)).trail.parents) == 1


@pytest.mark.parametrize("target", ["timm", "hf", "hf-mae", "mae"])
def test_exports_can_be_started_from(corpus: Path, tmp_path: Path, target: str) -> None:
    if target.startswith("hf"):
        pytest.importorskip("transformers")
    first = pretrain([corpus], tmp_path / "first", SETTINGS)
    loaded = load(Path(first.checkpoint))
    export(loaded, target, tmp_path / target)
    start = read(tmp_path / target / "mae.pth" if target == "mae" else tmp_path / target)
    wanted = encoder_of(loaded.tensors)
    assert all(torch.equal(start.tensors[name], tensor) for name, tensor in wanted.items())
    assert start.has_decoder == (target in ("mae", "hf-mae"))
    if target in ("timm", "hf"):  # the encoder's heads stand in its config, not in its shapes
        with pytest.raises(CheckpointError, match=r"heads 2 .asked: 4"):
            build(start, MODEL.model_copy(update={"heads": 4}), SETTINGS.train, lambda _: 1.0)
    built = build(start, MODEL, SETTINGS.train, lambda _: 1.0, stated=True)
    assert torch.equal(built.norm.weight, wanted["norm.weight"])


def test_our_own_weights_of_another_architecture_are_refused_by_name(corpus: Path, tmp_path: Path) -> None:
    first = pretrain([corpus], tmp_path / "first", SETTINGS)
    start = read(Path(first.checkpoint))
    with pytest.raises(CheckpointError, match=r"decoder_heads 8 .asked: 16"):
        build(start, MODEL.model_copy(update={"decoder_heads": 16}), SETTINGS.train, lambda _: 1.0)


def test_selection_tries_every_combination_on_every_fold_and_takes_the_best(corpus: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"train": SETTINGS.train.model_copy(update={"steps": 12, "warmup": 0.0})})
    chosen = CrossValidation([corpus], settings, 3, ["lr=0,1e-2", "weight_decay=0.01,0.05"]).select(tmp_path)
    stored = json.loads((tmp_path / "selection.json").read_text())
    assert len(stored["losses"]) == 4 * 3 and len(stored["means"]) == 4
    assert chosen.train.lr == 1e-2  # a rate of 0 learns nothing
    assert chosen.train.held_out == 0  # "refit on everything" is on everything
    stamp = (tmp_path / "selection.json").stat().st_size
    again = CrossValidation([corpus], settings, 3, ["lr=0,1e-2", "weight_decay=0.01,0.05"]).select(tmp_path)
    assert again == chosen and (tmp_path / "selection.json").stat().st_size == stamp


def test_every_fold_starts_from_the_weights_given(corpus: Path, tmp_path: Path) -> None:
    first = pretrain([corpus], tmp_path / "first", SETTINGS)
    still = SETTINGS.model_copy(update={"train": SETTINGS.train.model_copy(update={"steps": 1, "init_required": True})})
    with pytest.raises(UsageError, match="--init"):
        CrossValidation([corpus], still, 2, ["lr=0"]).select(tmp_path / "none")
    CrossValidation([corpus], still, 2, ["lr=0"], InitFile(Path(first.checkpoint))).select(tmp_path / "some")
    losses = json.loads((tmp_path / "some" / "selection.json").read_text())["losses"].values()
    model = build(read(Path(first.checkpoint)), MODEL, SETTINGS.train, lambda _: 1.0)
    opened = Corpus([corpus])
    folds = opened.folds(2, SETTINGS.train.seed)
    assert list(losses) == pytest.approx([evaluate(model, opened, held, SETTINGS.train) for _, held in folds], rel=1e-5)


def test_a_grid_is_the_product_of_its_axes() -> None:
    assert combinations(["lr=1,2", "model.depth=3"]) == [
        {"train.lr": 1, "model.depth": 3},
        {"train.lr": 2, "model.depth": 3},
    ]
    for wrong in (["lr"], ["lr="], []):
        with pytest.raises(UsageError):
            combinations(wrong)
