"""The audit log: any edit, loss, swap or cut is found."""

from __future__ import annotations

import errno
import json
import resource
import signal
from multiprocessing import get_context
from pathlib import Path

import pytest

from usfmae.core import audit
from usfmae.core.errors import PolicyError, ResourceError, SourceError


def _filled(folder: Path) -> tuple[Path, str]:
    log = folder / "audit.jsonl"
    heads = [audit.append(log, "site", "sent", bytes=n) for n in range(5)]
    return log, heads[-1]


def test_an_untouched_log_holds(tmp_path: Path) -> None:
    log, head = _filled(tmp_path)
    assert audit.verify(log, head) == 5
    assert [e["bytes"] for e in audit.entries(log)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("damage", ["edit", "drop", "swap", "insert"])
def test_damage_is_found_and_its_line_named(tmp_path: Path, damage: str) -> None:
    log, _ = _filled(tmp_path)
    lines = log.read_text().splitlines()
    if damage == "edit":
        lines[2] = lines[2].replace('"bytes": 2', '"bytes": 9')
    elif damage == "drop":
        del lines[2]
    elif damage == "swap":
        lines[2], lines[3] = lines[3], lines[2]
    else:
        lines.insert(2, json.dumps({"event": "nothing"}))
    log.write_text("\n".join(lines) + "\n")
    with pytest.raises(PolicyError, match="line 3"):
        audit.verify(log)


@pytest.mark.parametrize("left", [0, 1, 3, 4])
def test_a_cut_log_is_found_without_a_word_from_outside(tmp_path: Path, left: int) -> None:
    log, _ = _filled(tmp_path)
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:left]))
    with pytest.raises(PolicyError, match="cut"):
        audit.verify(log)


@pytest.mark.parametrize("left", [0, 3])
def test_a_cut_is_found_also_when_more_was_written_since(tmp_path: Path, left: int) -> None:
    log, _ = _filled(tmp_path)
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:left]))
    for _ in range(3):
        audit.append(log, "site", "sent")
    with pytest.raises(PolicyError, match=f"line {left + 1} - entry .* missing"):
        audit.verify(log)


def test_a_head_that_fell_behind_on_a_full_disk_is_no_cut(tmp_path: Path) -> None:
    log, _ = _filled(tmp_path)
    older = audit.head_file(log).read_text()
    for _ in range(4):
        audit.append(log, "site", "sent")
        audit.head_file(log).write_text(older)
    assert audit.verify(log) == 9


def test_a_log_whose_head_was_taken_away_too_is_found(tmp_path: Path) -> None:
    log, _ = _filled(tmp_path)
    audit.head_file(log).unlink()
    with pytest.raises(PolicyError, match=r"audit\.head is missing"):
        audit.verify(log)


def test_a_log_and_head_set_back_together_are_found_by_a_hash_noted_elsewhere(tmp_path: Path) -> None:
    log, head = _filled(tmp_path)
    lines = log.read_text().splitlines(keepends=True)[:3]
    log.write_text("".join(lines))
    audit.head_file(log).write_text(json.loads(lines[-1])["hash"])
    assert audit.verify(log) == 3
    with pytest.raises(PolicyError, match="cut"):
        audit.verify(log, head)


def test_a_crash_between_line_and_head_is_no_cut(tmp_path: Path) -> None:
    log, _ = _filled(tmp_path)
    older = audit.head_file(log).read_text()
    audit.append(log, "site", "sent")
    audit.head_file(log).write_text(older)
    assert audit.verify(log) == 6


def test_a_damaged_end_stops_writing_instead_of_hiding_it(tmp_path: Path) -> None:
    log, _ = _filled(tmp_path)
    with log.open("a") as file:
        file.write('{"half\n')
    with pytest.raises(SourceError, match="damaged"):
        audit.append(log, "site", "sent")


def _append_many(log: Path) -> None:
    for n in range(20):
        audit.append(log, "site", "sent", n=n)


def test_two_writers_share_one_chain(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    writers = [get_context("spawn").Process(target=_append_many, args=(log,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert audit.verify(log) == 40


def test_a_full_disk_takes_nothing_from_the_log_and_it_goes_on_afterwards(tmp_path: Path) -> None:
    log, head = _filled(tmp_path)
    size = log.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, before[1]))
    try:
        with pytest.raises(ResourceError):
            audit.append(log, "site", "sent", bytes=5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert log.stat().st_size == size
    audit.append(log, "site", "sent", bytes=6)
    assert audit.verify(log, head) == 6


def test_a_really_full_disk_is_said_as_elsewhere_and_takes_nothing_from_the_log(small_disk: Path) -> None:
    log, head = _filled(small_disk)
    filling = small_disk / "filling"
    with pytest.raises(OSError, match="No space left"):
        filling.write_bytes(bytes(1 << 20))
    size = log.stat().st_size
    with pytest.raises(ResourceError, match=rf"disk of {small_disk} - is full - free space"):
        audit.append(log, "site", "sent", text="x" * 4096)
    assert log.stat().st_size == size
    filling.unlink()
    audit.append(log, "site", "sent", bytes=6)
    assert audit.verify(log, head) == 6


def test_a_disk_without_room_for_a_new_log_is_said_likewise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(ResourceError, match=rf"disk of {tmp_path} - is full - free space"):
        audit.append(tmp_path / "audit.jsonl", "site", "sent")


def test_a_line_torn_by_a_crash_is_taken_back_and_said(tmp_path: Path) -> None:
    log, head = _filled(tmp_path)
    with log.open("a") as file:
        file.write('{"actor": "site", "event": "se')
    audit.append(log, "site", "sent", bytes=6)
    assert audit.verify(log, head) == 6
    assert list(audit.entries(log))[-1]["torn_bytes_before"] == 30
