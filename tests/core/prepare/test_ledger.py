"""The ledger: what a pass looks at, what it counts, where an image came from, and ledgers of version 0.1."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from usfmae.core.corpus.shard import FOLDER, read_index
from usfmae.core.prepare import PrepareSummary, identify, takeover
from usfmae.core.prepare.ledger import CorpusLedger
from usfmae.core.prepare.run import is_balanced, planned, unit_of
from usfmae.core.read.discover import Candidate, walk
from usfmae.core.sandbox.records import ScanResult
from usfmae.core.sandbox.worker import Worker
from usfmae.core.types import content_id

from .conftest import SECRET, clip, content, rows, still, tables

Run = Callable[..., PrepareSummary]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that a pass looked at one by one."""
    looked: list[Path] = []
    original = identify.place_key

    def counted(secret: bytes, candidate: Candidate) -> bytes:
        looked.append(candidate.path)
        return original(secret, candidate)

    monkeypatch.setattr(identify, "place_key", counted)
    return looked


def test_only_folders_that_changed_are_looked_at(tmp_path: Path, run: Run, hashed: list[Path]) -> None:
    for number in range(6):
        still(tmp_path / "scans" / f"day{number % 3}" / f"{number}.png", number)
    run(tmp_path / "scans", tmp_path / "corpus")
    hashed.clear()
    assert run(tmp_path / "scans", tmp_path / "corpus").kept == 6
    assert hashed == []
    new = still(tmp_path / "scans" / "day1" / "new.png", 9)
    assert run(tmp_path / "scans", tmp_path / "corpus").kept == 7
    assert {path.parent for path in hashed} == {new.parent}


def test_a_file_that_left_is_not_counted_and_one_that_came_back_is_not_cleaned_again(tmp_path: Path, run: Run) -> None:
    first, second = (still(tmp_path / "scans" / name / "a.png", seed) for seed, name in enumerate(("x", "y")))
    shutil.copy(first, tmp_path / "scans" / "x" / "copy.png")
    whole = run(tmp_path / "scans", tmp_path / "corpus")
    assert (whole.scans, whole.kept, whole.duplicates) == (3, 2, 1)
    shutil.move(second.parent, tmp_path / "away")
    first.unlink()
    less = run(tmp_path / "scans", tmp_path / "corpus")
    assert (less.scans, less.kept, less.duplicates) == (1, 1, 0)
    assert CorpusLedger(tmp_path / "corpus").counts()["kept"] == 2, "what came in once is forgotten"
    shutil.move(tmp_path / "away", second.parent)
    again = run(tmp_path / "scans", tmp_path / "corpus")
    assert (again.scans, again.kept, again.images_per_second) == (2, 2, 0)


def test_an_archive_that_has_not_changed_is_not_opened_again(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scans").mkdir()
    with zipfile.ZipFile(tmp_path / "scans" / "export.zip", "w") as archive:
        for number in range(3):
            archive.write(still(tmp_path / f"{number}.png", number), f"DICOM/{number}")
    assert run(tmp_path / "scans", tmp_path / "corpus").kept == 3
    still(tmp_path / "scans" / "beside.png", 7)
    monkeypatch.setattr(Worker, "members", lambda *_: pytest.fail("opened"))
    summary = run(tmp_path / "scans", tmp_path / "corpus")
    assert (summary.scans, summary.kept) == (4, 4)


def test_sources_that_overlap_or_change_count_each_file_once(tmp_path: Path, run: Run) -> None:
    from usfmae.core.config import Settings
    from usfmae.core.prepare import Sources, prepare

    still(tmp_path / "a" / "b" / "0.png", 0)
    still(tmp_path / "a" / "1.png", 1)
    settings = Settings.model_validate({"model": {"image_size": 32}})

    def go(*sources: str) -> PrepareSummary:
        return prepare(Sources([tmp_path / s for s in sources]), tmp_path / "corpus", settings, secret=SECRET)

    assert [go(*s).scans for s in (("a/b", "a"), ("a",), ("a/b",), ("a", "a/b"))] == [2, 2, 1, 2]


def test_an_images_origin_is_found_by_the_index(tmp_path: Path, run: Run) -> None:
    clip(tmp_path / "scans" / "clip.avi", 20)
    still(tmp_path / "scans" / "still.png", 5)
    run(tmp_path / "scans", tmp_path / "corpus", fps=5)
    ledger = CorpusLedger(tmp_path / "corpus")
    frames = []
    for file in (tmp_path / "corpus" / FOLDER).glob("*.json"):
        index = read_index(file)
        found = [ledger.origin(index.shard.path.name, row) for row in range(len(index.ids))]
        assert [content_id(one[0], str(one[1])) for one in found if one] == list(index.ids)
        assert ledger.origin(index.shard.path.name, len(index.ids)) is None
        frames += [one[1] for one in found if one]
    assert len(set(frames)) > 3, "no clip was packed"
    assert ledger.origin("other.npy", 0) is None


def test_a_scan_is_found_where_it_lies_without_looking_elsewhere(tmp_path: Path, run: Run) -> None:
    scan = still(tmp_path / "scans" / "a" / "b" / "c.png", 3)
    with zipfile.ZipFile(tmp_path / "scans" / "export.zip", "w") as archive:
        archive.write(still(tmp_path / "packed.png", 4), "DICOM/IM1")
    run(tmp_path / "scans", tmp_path / "corpus")
    ledger = CorpusLedger(tmp_path / "corpus")
    known = [found for (id_,) in tables(tmp_path / "corpus", "SELECT hex(id) FROM scans ORDER BY n")
             if (found := ledger.scan(str(id_).lower()))]  # fmt: skip
    files = identify.located(ledger, [tmp_path / "scans"], SECRET, known)
    assert sorted((c.path.name, c.member) for c in files.values()) == [("c.png", ""), ("export.zip", "DICOM/IM1")]
    assert unit_of(known, files).scans[1].path == scan
    os.utime(scan, (1, 1))
    assert len(identify.located(ledger, [tmp_path / "scans"], SECRET, known)) == 1, "a changed file is not that scan"


# Books --------------------------------------------------------------------------------------------------------------


def test_an_unforeseen_error_costs_its_unit_alone_and_is_tried_again(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "bug", "c"):
        still(tmp_path / "scans" / f"{name}.png", ord(name[0]))
    with monkeypatch.context() as patched:
        original = Worker.process_unit

        def broken(self: Worker, unit: Any) -> Any:
            if unit.scans[0].path.stem == "bug":
                raise KeyError("brightness")
            return original(self, unit)

        patched.setattr(Worker, "process_unit", broken)
        summary = run(tmp_path / "scans", tmp_path / "corpus")
    assert (summary.scans, summary.kept, summary.failed) == (3, 2, 1)
    assert summary.reasons == {"unforeseen-error": 1}
    assert run(tmp_path / "scans", tmp_path / "corpus").kept == 3


def test_a_scan_whose_frames_do_not_add_up_is_not_kept(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        still(tmp_path / "scans" / f"{number}.png", number)
    original = Worker.process_unit

    def forgetful(self: Worker, unit: Any) -> Any:
        results, images = original(self, unit)
        if unit.scans[0].path.stem == "1":
            results[0].frames += 1
        return results, images

    monkeypatch.setattr(Worker, "process_unit", forgetful)
    summary = run(tmp_path / "scans", tmp_path / "corpus")
    assert (summary.scans, summary.kept, summary.failed, summary.frames) == (2, 1, 1, 1)
    assert summary.reasons == {"not-balanced": 1}
    assert sum(read_index(p).shard.count for p in (tmp_path / "corpus" / FOLDER).glob("*.json")) == 1


def test_what_balances() -> None:
    result = ScanResult("x", frames=6, kept=3, duplicates=1, quarantined={"text-left": [4, 5]})
    assert is_balanced(result, 3) and not is_balanced(result, 2)
    result.duplicates = 0
    assert not is_balanced(result, 3)


def test_the_books_are_those_of_the_rows(tmp_path: Path, run: Run) -> None:
    """After runs that add, remove, fail and repeat, counting all rows anew gives the same books."""
    for number in range(4):
        still(tmp_path / "scans" / f"f{number % 2}" / f"{number}.png", number, 66 if number == 1 else 50)
    (tmp_path / "scans" / "f0" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    run(tmp_path / "scans", tmp_path / "corpus", shard_images=2)
    shutil.copy(tmp_path / "scans" / "f0" / "0.png", tmp_path / "scans" / "f1" / "copy.png")
    (tmp_path / "scans" / "f0" / "broken.png").unlink()
    next((tmp_path / "corpus" / FOLDER).glob("*.npy")).unlink()
    run(tmp_path / "scans", tmp_path / "corpus", shard_images=2)
    shutil.rmtree(tmp_path / "scans" / "f0")
    run(tmp_path / "scans", tmp_path / "corpus", shard_images=2)
    ledger = CorpusLedger(tmp_path / "corpus")
    with ledger.writing():
        books = +ledger.books
        anew: Any = type(books)()
        for (id_,) in ledger.db.execute("SELECT id FROM scans").fetchall():
            anew.update(ledger._counted(id_))
        from usfmae.core.prepare.ledger import of_place

        for folder, outcome, reason in ledger.db.execute(
            "SELECT folder, outcome, reason FROM places WHERE scan IS NULL"
        ):
            anew.update(of_place(folder > 0, outcome, reason))
        for (reason,) in ledger.db.execute("SELECT reason FROM held"):
            anew[False, f"entry {reason}"] += 1
    assert books == +anew
    assert any(present for present, _ in books) and not all(present for present, _ in books)


def test_stills_of_a_study_share_a_unit_and_units_fill_shards() -> None:
    scans = [(1, b"s", 1), (2, b"", 1), (3, b"s", 1), (4, b"s", 9), (5, b"t", 1), *((n, b"s", 1) for n in range(6, 40))]
    plan = list(planned(scans, 10))
    units: dict[int, list[int]] = {}
    for scan, _, unit in plan:
        units.setdefault(unit, []).append(scan)
    assert units[0] == [1, 3, *range(6, 36)] and units[1] == [2] and units[2] == [4]
    assert units[4] == [36, 37, 38, 39]
    assert {task: sum(1 for _, t, _ in plan if t == task) for _, task, _ in plan} == {0: 32, 1: 2, 2: 5}
    assert [task for _, task, _ in plan if task > 2] == []


# Version 0.1 --------------------------------------------------------------------------------------------------------


def as_version_01(sources: Path, corpus: Path) -> None:
    """The same corpus with the ledger that version 0.1 kept."""
    ledger, root = CorpusLedger(corpus), corpus / "ledger"
    with ledger.reading() as db:
        known = {key: row for key, *row in db.execute(
            "SELECT p.key, p.outcome, p.reason, hex(s.id), s.kind, s.planned, s.outcome, s.frames, s.kept, s.duplicates "
            "FROM places p LEFT JOIN scans s ON s.n = p.scan")}  # fmt: skip
        names = dict(db.execute("SELECT name, n FROM tasks"))
        (shard,) = (name for (name,) in db.execute("SELECT name FROM shards"))
    units = [[scan.id] for scan in ledger.scans_of(names["0001-000000"])]
    lines, scans = [], []
    for candidate in walk([sources]):
        outcome, reason, id_, kind, frames_planned, became, frames, kept, duplicates = known[
            identify.place_key(SECRET, candidate)
        ]
        entry = {"place": candidate.place(SECRET), "outcome": outcome}
        if outcome == "scan":
            entry |= {"id": id_.lower(), "kind": kind, "planned": frames_planned, "group": "a" * 64, "study": ""}
            scans.append({"id": id_.lower(), "outcome": became, "reason": "", "frames": frames, "kept": kept,
                          "duplicates": duplicates, "quarantined": {}, "notes": [], "figures": {}})  # fmt: skip
        else:
            entry |= {"reason": reason, "id": "b" * 64}
        lines.append(json.dumps(entry) + "\n")
    (root / "ledger.sqlite").unlink()
    (root / "places.jsonl").write_text("".join(lines) + '{"place": "torn')
    (root / "plans").mkdir()
    plan = {"tasks": [{"name": "0001-000000", "units": units}]}
    (root / "plans" / "plan-0001.json").write_text(json.dumps(plan))
    (root / "tasks" / "0001-000000.json").write_text(json.dumps({"scans": scans, "shards": [shard]}))


@pytest.fixture
def old(tmp_path: Path, run: Run) -> tuple[Path, Path, PrepareSummary]:
    """Sources, a corpus as version 0.1 left it, and what its run said."""
    for number in range(3):
        still(tmp_path / "scans" / f"{number}.png", number)
    (tmp_path / "scans" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    (tmp_path / "scans" / "notes.txt").write_text("text")
    summary = run(tmp_path / "scans", tmp_path / "corpus")
    as_version_01(tmp_path / "scans", tmp_path / "corpus")
    return tmp_path / "scans", tmp_path / "corpus", summary


def test_a_ledger_of_version_01_is_taken_over_once(
    old: tuple[Path, Path, PrepareSummary], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, corpus, before = old
    shards = content(corpus / FOLDER)
    assert CorpusLedger(corpus).counts()["kept"] == 3, "a page does not take it over"
    assert not (corpus / "ledger" / "places.jsonl").exists() and not list((corpus / "ledger" / "tasks").iterdir())
    monkeypatch.setattr(Worker, "identify", lambda *_: pytest.fail("a known file was opened again"))
    for _ in range(2):
        after = run(sources, corpus)
        assert (after.scans, after.kept, after.quarantined, after.ignored) == (
            4,
            3,
            1,
            1,
        ) and after.frames == before.frames
    assert content(corpus / FOLDER) == shards


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_takeover_that_was_cut_is_done_again(
    old: tuple[Path, Path, PrepareSummary], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Killed before its transaction ended, or between that and the removal of the old files."""
    _, corpus, _ = old
    shutil.copytree(corpus, corpus.with_name("whole"))
    CorpusLedger(corpus.with_name("whole")).counts()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(takeover, "plans" if moment == "before" else "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            CorpusLedger(corpus).counts()
    CorpusLedger(corpus).counts()
    database = Path("ledger") / "ledger.sqlite"
    assert rows(corpus / database) == rows(corpus.with_name("whole") / database)
    assert np.all([not (corpus / "ledger" / name).exists() for name in ("places.jsonl", "plans")])
