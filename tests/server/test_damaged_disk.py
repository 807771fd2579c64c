"""The aggregator believes nothing that its disk has changed: the base, the ledger; and keeps its files to itself."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from usfmae.core import audit
from usfmae.core.errors import CheckpointError, SourceError
from usfmae.core.tensors import TensorFile
from usfmae.server.bootstrap import NewFederation, create
from usfmae.server.checkpoints import CheckedFiles
from usfmae.server.dashboard import view
from usfmae.server.layout import Layout
from usfmae.server.ledger import Ledger
from usfmae.server.status import status

TINY = {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2}
TINY |= {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}


def overwrite(file: Path, where: int, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(where, os.SEEK_END if where < 0 else os.SEEK_SET)
        opened.write(data)


@pytest.mark.parametrize("rounds", [0, 1])
def test_a_base_with_one_changed_weight_is_never_merged(federation: Any, rounds: int) -> None:
    made = federation(2)
    if rounds:
        made.run(rounds)
    overwrite(made.home.checkpoint(rounds), -4, b"\0\0\xc8\x42")  # the last weight is 100.0
    made.again()
    with pytest.raises(CheckpointError, match=r"changed or damaged.*restore"):
        made.run(rounds + 1)
    last = made.ledger.last_round()
    assert (last.number if last else 0) == rounds and not made.home.checkpoint(rounds + 1).exists()


def test_a_base_changed_between_two_rounds_of_one_process_is_noticed(federation: Any) -> None:
    made = federation(2)
    loop = made.loop(committed=lambda number: overwrite(made.home.checkpoint(number), -4, b"\0\0\xc8\x42"))
    with pytest.raises(CheckpointError):
        loop.run(2)
    assert made.ledger.last_round().number == 1


def test_a_forged_result_in_the_ledger_is_noticed_at_the_next_round(federation: Any) -> None:
    made = federation(2)
    made.run(1)
    with made.ledger._write() as db:
        db.execute("UPDATE rounds SET result = ? WHERE number = 1", ("f" * 64,))
    with pytest.raises(CheckpointError, match="as the ledger says"):
        made.run(2)


def test_a_sound_file_is_read_once(federation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, files, read = federation(2), CheckedFiles(), []
    real = TensorFile.id
    monkeypatch.setattr(TensorFile, "id", lambda self: read.append(1) or real(self))
    for _ in range(3):
        files.check(made.home.checkpoint(0))
    assert len(read) == 1


def page_size_damage(file: Path) -> None:
    """Every page but the first is garbage."""
    size = file.stat().st_size
    overwrite(file, 4096, os.urandom(size - 4096))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: f.write_bytes(b""), "empty"),
        (page_size_damage, "is damaged"),
        (lambda f: f.write_bytes(b"x" * 9000), "ledger"),
    ],
    ids=["empty", "pages", "another file"],
)
def test_a_damaged_ledger_is_one_sentence_and_is_never_made_anew(tmp_path: Path, damage: Any, words: str) -> None:
    home = Layout(tmp_path / "coordinator")
    create(home.root, NewFederation("unit", port=0), [f"model.{key}={value}" for key, value in TINY.items()])
    ledger = Ledger(home.ledger)
    for number in range(300):  # more than one page of facts
        ledger.set_fact(f"fact-{number}", "x" * 100)
    ledger.close()
    damage(home.ledger)
    before = home.ledger.read_bytes()

    def opened_and_checked() -> None:
        Ledger(home.ledger).check()

    for call in (opened_and_checked, lambda: status(home), lambda: view.overview(home, view.History())):
        with pytest.raises(SourceError, match=words):
            call()
    assert home.ledger.read_bytes() == before
    command = [sys.executable, "-m", "usfmae.server", "status", str(home.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4 and done.stderr.startswith("error: ledger") and "Traceback" not in done.stderr


def test_init_closes_a_directory_that_was_open(tmp_path: Path) -> None:
    root = tmp_path / "coordinator"
    root.mkdir(mode=0o755)
    small = [f"--set=model.{key}={value}" for key, value in TINY.items()]
    command = [sys.executable, "-m", "usfmae.server", "init", str(root), "--name", "unit", "--port", "0", *small]
    subprocess.run(command, check=True, capture_output=True, umask=0o022)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [root, *root.rglob("*")]}
    assert all(mode & 0o077 == 0 for mode in modes.values()), modes
    assert audit.verify(root / "audit.jsonl") == 1
