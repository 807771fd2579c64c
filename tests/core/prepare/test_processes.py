"""Decoding processes that crash, hang, grow or miss something: whose fault it is, and that no other scan is harmed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from usfmae.core.errors import ResourceError
from usfmae.core.prepare import PrepareSummary
from usfmae.core.read import source
from usfmae.core.sandbox import worker
from usfmae.core.sandbox.records import Unit

from .conftest import clip, content, pixels, still

Run = Callable[..., PrepareSummary]


def test_a_process_that_has_grown_starts_anew_and_changes_no_byte(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        still(tmp_path / "source" / f"{number}.png", number)
    run(tmp_path / "source", tmp_path / "one")
    starts = []
    start = worker.Worker._start
    monkeypatch.setattr(worker.Worker, "_start", lambda self: (starts.append(1), start(self)))
    monkeypatch.setattr(worker, "RENEW_MIB", 1)
    run(tmp_path / "source", tmp_path / "two")
    assert len(starts) == 3
    assert content(tmp_path / "one" / "shards") == content(tmp_path / "two" / "shards")


@pytest.mark.slow
def test_a_file_that_hangs_crashes_or_hogs_memory_harms_no_other(tmp_path: Path, run: Run) -> None:
    source = tmp_path / "source"
    for number, name in enumerate(("a", "crash", "good", "hang", "hog", "z")):
        still(source / f"{name}.png", number)
    summary = run(source, tmp_path / "corpus", decode_seconds=3, memory_mb=1024)
    assert summary.reasons == {"crashed": 1, "timeout": 1, "too-much-memory": 1}
    assert (summary.scans, summary.kept, summary.quarantined, summary.failed) == (6, 3, 3, 0)


@pytest.mark.slow
def test_a_clip_may_take_long_but_not_be_silent_for_long(tmp_path: Path, run: Run) -> None:
    clip(tmp_path / "source" / "long.avi", 8, width=96)  # cleaned in 6 s with a sign of life in between
    clip(tmp_path / "source" / "silent.avi", 8, width=88)
    summary = run(tmp_path / "source", tmp_path / "corpus", clean_seconds=4)
    assert (summary.scans, summary.quarantined, summary.reasons) == (2, 1, {"timeout": 1})
    assert summary.kept > 0


def test_what_cannot_be_opened_fails_and_is_tried_again(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    still(tmp_path / "source" / "shy.png", 0)
    still(tmp_path / "source" / "good.png", 1)
    original = source.open_file

    def denied(path: Path, beside: str = "") -> int:
        if path.name == "shy.png":
            raise PermissionError(13, "denied")
        return original(path, beside)

    with monkeypatch.context() as patch:
        patch.setattr(source, "open_file", denied)
        first = run(tmp_path / "source", tmp_path / "corpus")
    assert (first.kept, first.failed, first.reasons) == (1, 1, {"os-13": 1})
    second = run(tmp_path / "source", tmp_path / "corpus")
    assert (second.kept, second.failed) == (2, 0)
    assert len(pixels(tmp_path / "corpus")) == 2


def test_a_file_that_is_replaced_after_it_was_identified_is_not_packed_under_its_old_name(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    still(tmp_path / "source" / "export.png", 0)
    process = worker.Worker.process_unit

    def replaced_first(self: worker.Worker, unit: Unit) -> worker.UnitResult:
        still(tmp_path / "source" / "export.png", 1)
        return process(self, unit)

    with monkeypatch.context() as patch:
        patch.setattr(worker.Worker, "process_unit", replaced_first)
        summary = run(tmp_path / "source", tmp_path / "corpus")
    assert (summary.kept, summary.failed) == (0, 1)
    assert run(tmp_path / "source", tmp_path / "corpus").kept == 1


def test_a_bug_in_cleaning_keeps_the_frame_back_and_no_other(tmp_path: Path, run: Run) -> None:
    for number, width in enumerate((50, 66, 51)):
        still(tmp_path / "source" / f"{number}.png", number, width)
    summary = run(tmp_path / "source", tmp_path / "corpus")
    assert (summary.kept, summary.reasons) == (2, {"cleaning-failed": 1})


def test_a_missing_program_is_the_machines_fault_not_the_scans(tmp_path: Path, run: Run) -> None:
    still(tmp_path / "source" / "0.png", 0, width=77)
    with pytest.raises(ResourceError, match=r"tesseract.*not installed.*apt-get"):
        run(tmp_path / "source", tmp_path / "corpus")


def test_progress_counts_frames_also_of_a_clip_that_is_being_worked_on(
    tmp_path: Path, quick_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from usfmae.core.config import Settings
    from usfmae.core.prepare import Sources, prepare

    from .conftest import SECRET

    clip(tmp_path / "source" / "clip.avi", 40)
    still(tmp_path / "source" / "still.png", 0)
    seen: list[tuple[int, int]] = []
    inside: list[int] = []
    original = worker.Worker.process_unit

    def watched(self: worker.Worker, unit: worker.Unit) -> worker.UnitResult:
        done = original(self, unit)
        inside.append(self.frames_read)
        return done

    attempt = worker.Worker._attempt
    monkeypatch.setattr(worker.Worker, "process_unit", watched)
    monkeypatch.setattr(
        worker.Worker, "_attempt", lambda self, unit: (attempt(self, unit), inside.append(self.frames_read))[0]
    )
    settings = Settings.model_validate({"read": {"fps": 5}, "model": {"image_size": 32}})
    prepare(Sources([tmp_path / "source"]), tmp_path / "corpus", settings, secret=SECRET,
            progress=lambda summary: seen.append((summary.frames_done, summary.planned)))  # fmt: skip
    assert max(inside) > 10 and inside[1::2] == [0, 0], "what is in flight is not counted, or not forgotten"
    assert seen[-1] == (21, 21) and seen == sorted(seen)
