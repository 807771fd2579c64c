"""pretrain, export, inspect and verify as a person types them: what they print, and how they refuse."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from usfmae.core import audit, manifest
from usfmae.core.checkpoint import load, save
from usfmae.core.checkpoint_header import describe
from usfmae.core.cli import group, pretrain
from usfmae.core.config import ModelSettings, TrainSettings
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.errors import CheckpointError, ConfigError, CorpusError, PolicyError, ResourceError, UsageError
from usfmae.core.keys import public_pem
from usfmae.core.mae import train_log
from usfmae.core.mae.model import fresh

SMALL = {
    "image_size": 32,
    "patch_size": 8,
    "width": 32,
    "depth": 1,
    "heads": 2,
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
}
SETS = [f"--set=model.{key}={value}" for key, value in SMALL.items()]


def usfmae(*arguments: str | Path) -> None:
    group.main([str(a) for a in arguments], standalone_mode=False)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = ModelSettings(**SMALL)
    return save(tmp_path / "c.safetensors", fresh(model).state_dict(), describe(model, TrainSettings(), step=3)).path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    images = [PackedImage(random.integers(0, 256, (32, 32), np.uint8), f"id{i}", f"g{i}") for i in range(12)]
    write_shard(tmp_path / "corpus", "a", images)
    return tmp_path / "corpus"


def test_pretrain_prints_one_json_object(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usfmae("pretrain", "--corpus", corpus, "--out", tmp_path / "r", *SETS, "--steps", 2, "--device", "cpu", "--json")
    summary = json.loads(capsys.readouterr().out)
    assert summary["finished"] and summary["step"] == 2
    assert load(Path(summary["checkpoint"])).trail.id == summary["id"]


def test_pretrain_writes_tensorboard_events_where_asked(corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    usfmae(
        "pretrain", "--corpus", corpus, "--out", tmp_path / "r", *SETS, "--steps", 1, "--device", "cpu", "--tensorboard"
    )
    assert list((tmp_path / "r" / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_loggers_are_remembered_and_need_no_network(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    seen: list[tuple[str, int, object]] = []

    class Spy:
        def __init__(self, out: Path, run: str, step: int) -> None:
            seen.append(("open", step, run))

        def scalars(self, step: int, values: dict[str, float]) -> None:
            seen.append(("scalars", step, sorted(values)))

        def picture(self, step: int, path: Path) -> None:
            seen.append(("picture", step, path.exists()))

        def close(self) -> None:
            seen.append(("close", 0, None))

    monkeypatch.setitem(train_log.LOGGERS, name, Spy)
    monkeypatch.setattr(pretrain, "needs", lambda library, extra: None)
    run = ("--out", tmp_path / "r", "--device", "cpu")
    usfmae("pretrain", "--corpus", corpus, *run, *SETS, "--steps", 2, "--log", name)
    assert ("picture", 2, True) in seen and ("scalars", 2, ["held_out_loss", "held_out_share_of_variance"]) in seen
    seen.clear()
    usfmae("pretrain", *run, "--resume", "--steps", 3)
    assert seen[0] == ("open", 2, "r") and seen[-1][0] == "close"
    assert [s for kind, s, names in seen if kind == "scalars" and "loss" in str(names)][:1] == [3]


def test_a_logger_that_is_not_installed_is_said_before_a_folder_is_made(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match=r"usfmae\[wandb\]"):
        usfmae("pretrain", "--corpus", corpus, "--out", tmp_path / "r", *SETS, "--steps", 1, "--log", "wandb")
    assert not (tmp_path / "r").exists()


def test_without_a_terminal_progress_is_lines_and_resume_says_what_it_ignores(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("--out", tmp_path / "r", "--device", "cpu")
    usfmae("pretrain", "--corpus", corpus, *run, *SETS, "--steps", 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert lines[0].startswith("step 1 of 2  loss ") and lines[1].startswith("step 2 of 2")
    usfmae("pretrain", *run, "--resume", "--set", "train.batch_size=8")
    assert "ignored with --resume: --set" in capsys.readouterr().err
    with pytest.raises(UsageError, match="ends at 2"):
        usfmae("pretrain", *run, "--resume", "--steps", 1)


def test_the_size_of_the_encoder_can_be_named(corpus: Path, tmp_path: Path) -> None:
    small = [s for s in SETS if not s.startswith(("--set=model.width", "--set=model.depth", "--set=model.heads"))]
    usfmae(
        *("pretrain", "--corpus", corpus, "--out", tmp_path / "r", "--arch", "vit-tiny", *small, "--steps", 1),
        *("--device", "cpu"),
    )
    found = load(tmp_path / "r" / "checkpoint.safetensors").model
    assert (found.width, found.depth, found.heads) == (192, 12, 3)


def test_pretrain_takes_a_grid_as_the_paper_writes_it(corpus: Path, tmp_path: Path) -> None:
    grid = ("--cross-validate", 2, "--grid", "lr=3e-4,1e-3", "weight_decay=0.01,0.05")
    usfmae("pretrain", "--corpus", corpus, "--out", tmp_path / "r", *SETS, "--steps", 1, "--device", "cpu", *grid)
    assert len(json.loads((tmp_path / "r" / "selection.json").read_text())["means"]) == 4


def test_pretrain_refuses_what_cannot_be(corpus: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "r")
    with pytest.raises(UsageError, match="--corpus"):
        usfmae("pretrain", *out)
    with pytest.raises(CorpusError, match="no images"):
        usfmae("pretrain", "--corpus", tmp_path / "nothing", *out)
    with pytest.raises(UsageError, match="--init"):
        usfmae("pretrain", "--corpus", corpus, *out, "--preset", "official-notebook")
    with pytest.raises(ConfigError, match=r"train\.mask_ratio"):
        usfmae("pretrain", "--corpus", corpus, *out, "--set", "train.mask_ratio=25")
    with pytest.raises(UsageError, match="belong to --grid"):
        usfmae("pretrain", "--corpus", corpus, *out, "lr=1")
    (tmp_path / "evil.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(CheckpointError, match="refused"):
        usfmae("pretrain", "--corpus", corpus, *out, *SETS, "--init", tmp_path / "evil.pth")
    assert not (tmp_path / "r").exists()


def test_inspect_tells_heads_and_lineage_and_what_a_foreign_file_does_not_say(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usfmae("inspect", checkpoint, "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"]["decoder_heads"] == 2 and facts["train"]["mask_ratio"] == 0.25
    assert facts["content"] == load(checkpoint).trail.id and facts["step"] == "3"
    torch.save(load(checkpoint).tensors, tmp_path / "bare.pt")
    usfmae("inspect", tmp_path / "bare.pt", "--json")
    assert "heads" in json.loads(capsys.readouterr().out)["note"]


def test_export_prints_its_files(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usfmae("export", "--model", checkpoint, "--to", "mae", "--out", tmp_path / "m", "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["difference"] == 0 and all(Path(file).exists() for file in result["files"])


def test_verify_finds_one_flipped_byte_in_a_checkpoint(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usfmae("verify", checkpoint)
    assert "hash: holds" in capsys.readouterr().out
    flip(checkpoint)
    with pytest.raises(CheckpointError):
        usfmae("verify", checkpoint)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.fixture
def release(checkpoint: Path, tmp_path: Path) -> tuple[Path, Path]:
    folder, key = tmp_path / "release", Ed25519PrivateKey.generate()
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(checkpoint.read_bytes())
    (folder / "README.md").write_text("card")
    manifest.write(folder, key, {"campaign": "c"})
    (tmp_path / "key.pem").write_text(public_pem(key))
    return folder, tmp_path / "key.pem"


def test_verify_checks_a_release_offline(release: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder, key = release
    usfmae("verify", folder, "--key", key, "--json")
    assert json.loads(capsys.readouterr().out) == {
        "release": str(folder),
        "files": 2,
        "hashes": "hold",
        "signature": "holds",
    }
    usfmae("verify", folder)
    assert "not checked" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["flip", "add", "remove", "manifest", "key"])
def test_verify_finds_any_change_of_a_release(release: tuple[Path, Path], change: str) -> None:
    folder, key = release
    if change == "flip":
        flip(folder / "weights.safetensors")
    elif change == "add":
        (folder / "more.txt").write_text("x")
    elif change == "remove":
        (folder / "README.md").unlink()
    elif change == "manifest":
        text = (folder / "manifest.json").read_text()
        (folder / "manifest.json").write_text(text.replace('"campaign": "c"', '"campaign": "d"'))
    else:
        key.write_text(public_pem(Ed25519PrivateKey.generate()))
    with pytest.raises(PolicyError):
        usfmae("verify", folder, "--key", key)


def test_verify_follows_the_chain_of_an_audit_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "audit.jsonl"
    audit.append(log, "site", "one")
    audit.append(log, "site", "two")
    usfmae("verify", log)
    assert "entries: 2" in capsys.readouterr().out
    log.write_text(log.read_text().replace("one", "0ne"))
    with pytest.raises(PolicyError, match="line 1"):
        usfmae("verify", log)
