"""The spool: a name for what is complete, one file for the same bytes, closed at the disk floor."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from usfmae.client.intake.spool import PARTIAL, Spool
from usfmae.core.errors import ResourceError

SECRET = b"s" * 32


def test_the_same_bytes_are_one_file_and_its_name_says_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", SECRET)
    assert spool.add(b"1.2.840.113619 DOE^JANE") and not spool.add(b"1.2.840.113619 DOE^JANE")
    (file,) = spool.files()
    assert file.read_bytes() == b"1.2.840.113619 DOE^JANE"
    assert len(file.stem) == 32 and file.stat().st_mode & 0o077 == 0
    assert Spool(tmp_path / "other", b"t" * 32).add(b"1.2.840.113619 DOE^JANE")
    assert file.stem != Spool(tmp_path / "other", b"t" * 32).files()[0].stem


def test_many_threads_lose_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", SECRET)

    def send(thread: int) -> None:
        for i in range(25):
            spool.add(f"{thread} {i}".encode())

    threads = [threading.Thread(target=send, args=(t,)) for t in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {f.read_text() for f in spool.files()} == {f"{t} {i}" for t in range(8) for i in range(25)}


def test_below_the_floor_nothing_is_taken(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", SECRET, floor_bytes=1 << 60)
    with pytest.raises(ResourceError, match="the floor is"):
        spool.add(b"x")
    assert spool.files() == []


def test_a_write_that_fails_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    spool = Spool(tmp_path / "spool", SECRET)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(ResourceError, match="No space left"):
            spool.add(b"x")
    assert spool.files() == [] and list((tmp_path / PARTIAL).iterdir()) == []
    assert Spool(tmp_path / "spool", SECRET).add(b"x")


def test_received_in_pieces_is_the_same_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", SECRET)
    file = spool.incoming()
    for piece in (b"wh", memoryview(b"ol"), b"", b"e"):
        file.write(piece)
    assert spool.files() == [], "has a name before it is complete"
    assert file.keep() and not spool.add(b"whole")
    assert [file.read_bytes() for file in spool.files()] == [b"whole"]
    spool.incoming().discard()
    assert list((tmp_path / PARTIAL).iterdir()) == []


def test_a_name_with_other_bytes_is_no_stored_instance(tmp_path: Path) -> None:
    """As a power cut may leave it: the name is on disk, the bytes are not, and nobody was told "stored"."""
    spool = Spool(tmp_path / "spool", SECRET)
    spool.add(b"whole")
    (file,) = spool.files()
    file.write_bytes(b"\0" * 5)
    assert spool.add(b"whole"), "taken for a repetition"
    assert file.read_bytes() == b"whole"


def test_a_disk_that_fails_is_said_when_it_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Path) -> None:
        raise OSError(5, "Input/output error")

    spool = Spool(tmp_path / "spool", SECRET)
    monkeypatch.setattr("usfmae.client.intake.spool.flush_disk", broken)
    with pytest.raises(ResourceError, match="Input/output error"):
        spool.add(b"x")
    assert len(spool.files()) == 1


def test_folders_that_somebody_tidied_away_are_made_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", SECRET)
    for _ in range(2):
        assert spool.add(b"x")
        shutil.rmtree(tmp_path / "spool")
        (tmp_path / "spool").mkdir()


def test_leftovers_of_a_killed_process_go(tmp_path: Path) -> None:
    Spool(tmp_path / "spool", SECRET)
    (tmp_path / PARTIAL / "123-0").write_bytes(b"half")
    spool = Spool(tmp_path / "spool", SECRET)
    spool.sweep()
    assert spool.files() == [] and not list((tmp_path / PARTIAL).iterdir())


def test_drop_deletes_its_own_files_only(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", SECRET)
    spool.add(b"x")
    elsewhere = tmp_path / "source" / "scan.dcm"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(b"the hospital's own")
    assert spool.drop([*spool.files(), elsewhere]) == 1
    assert spool.files() == [] and elsewhere.exists()
