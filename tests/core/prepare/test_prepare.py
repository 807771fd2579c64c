"""`prepare`: counts, resumption, hostile files, full disks; and nothing that names a patient is left behind."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from usfmae.core.config import Settings
from usfmae.core.errors import ResourceError, SourceError, TryLaterError, UsageError
from usfmae.core.prepare import Parallel, PrepareSummary, Sources, prepare

from .conftest import SECRET, clip, content, pixels, read_only, still, tables

Run = Callable[..., PrepareSummary]


def test_counts_add_up_and_a_second_run_changes_nothing(tmp_path: Path, run: Run) -> None:
    source = tmp_path / "source"
    for number in range(3):
        still(source / f"{number}.png", number)
    shutil.copy(source / "0.png", source / "again.png")
    clip(source / "clip.avi", 20)
    (source / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    (source / "notes.txt").write_text("text")
    before = content(source)
    first = run(source, tmp_path / "corpus")
    assert (first.scans, first.frames, first.kept, first.quarantined) == (6, 9, 9, 1)
    assert (first.duplicates, first.ignored, first.failed) == (1, 1, 0)
    assert first.reasons == {"same-file": 1, "unreadable": 1}
    once = content(tmp_path / "corpus")
    second = run(source, tmp_path / "corpus")
    assert {**second.as_dict(), "seconds": 0, "images_per_second": 0} == {
        **first.as_dict(),
        "seconds": 0,
        "images_per_second": 0,
    }
    assert content(tmp_path / "corpus") == once
    assert content(source) == before


@pytest.mark.slow
def test_workers_and_place_do_not_change_a_byte_of_the_shards(tmp_path: Path, run: Run) -> None:
    for number in range(8):
        still(tmp_path / "a" / f"z{number}.png", number)
    still(tmp_path / "a" / "slow.png", 8)  # first in the plan, last to be done
    clip(tmp_path / "a" / "clip.avi", 20)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    run(tmp_path / "a", tmp_path / "one", shard_images=4)
    run(tmp_path / "b", tmp_path / "two", workers=3, shard_images=4)
    assert content(tmp_path / "one" / "shards") == content(tmp_path / "two" / "shards")
    assert len(content(tmp_path / "one" / "shards")) >= 4


def test_a_source_can_be_named_for_the_model_card(tmp_path: Path, quick_process: None) -> None:
    from usfmae.core.corpus.batch import Corpus

    for number, name in enumerate(("lung", "liver", "lung")):
        still(tmp_path / name / f"{number}.png", number)
    names = {tmp_path / "lung": "St Olav, lung"}
    settings = Settings.model_validate({"model": {"image_size": 32}})
    prepare(Sources([tmp_path / "lung", tmp_path / "liver"], names=names), tmp_path / "corpus", settings, SECRET)
    assert sorted(Corpus([tmp_path / "corpus"]).datasets) == ["", "St Olav, lung", "St Olav, lung"]


def test_new_scans_are_added_without_touching_the_old(tmp_path: Path, run: Run) -> None:
    still(tmp_path / "source" / "0.png", 0)
    run(tmp_path / "source", tmp_path / "corpus")
    old = content(tmp_path / "corpus" / "shards")
    still(tmp_path / "source" / "1.png", 1)
    summary = run(tmp_path / "source", tmp_path / "corpus")
    assert (summary.scans, summary.kept) == (2, 2)
    new = content(tmp_path / "corpus" / "shards")
    assert {name: new[name] for name in old} == old
    assert len(pixels(tmp_path / "corpus")) == 2


@pytest.mark.slow
def test_a_lost_ledger_entry_after_a_written_shard_is_made_up_for(tmp_path: Path, run: Run) -> None:
    still(tmp_path / "source" / "0.png", 0)
    run(tmp_path / "source", tmp_path / "corpus")
    before = content(tmp_path / "corpus")
    shutil.rmtree(tmp_path / "corpus" / "ledger")
    assert run(tmp_path / "source", tmp_path / "corpus").kept == 1
    assert content(tmp_path / "corpus") == before


@pytest.mark.slow
def test_near_duplicates_are_dropped_and_can_be_kept(tmp_path: Path, run: Run) -> None:
    source = tmp_path / "source"
    clip(source / "clip.avi", 20)
    import cv2

    writer = cv2.VideoWriter(str(source / "frozen.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for _ in range(20):
        writer.write(picture)
    writer.release()
    summary = run(source, tmp_path / "corpus")
    assert (summary.frames, summary.kept, summary.duplicates) == (12, 7, 5)
    assert summary.reasons == {"near-duplicate": 5}
    assert run(source, tmp_path / "all", duplicate_bits=0).kept == 12


def test_a_full_disk_is_told_before_it_happens(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    still(tmp_path / "source" / "0.png", 0)
    with monkeypatch.context() as patched:
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        patched.setattr("usfmae.core.prepare.run.shutil.disk_usage", lambda _: usage)
        with pytest.raises(ResourceError, match="MB are needed"):
            run(tmp_path / "source", tmp_path / "corpus")
    assert run(tmp_path / "source", tmp_path / "corpus").kept == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.faults
def test_a_disk_that_fills_stops_cleanly_and_resumes(tmp_path: Path, run: Run) -> None:
    import subprocess

    corpus = tmp_path / "small"
    corpus.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(corpus)], check=False).returncode:
        pytest.skip("this machine does not let us mount")
    try:
        for number in range(30):
            still(tmp_path / "source" / f"{number:02d}.png", number)
        with pytest.raises(ResourceError, match=r"(is full|MB are needed).*run the same"):
            run(tmp_path / "source", corpus, shard_images=4)
        subprocess.run(["mount", "-o", "remount,size=8m", str(corpus)], check=True)
        assert run(tmp_path / "source", corpus, shard_images=4).kept == 30
        run(tmp_path / "source", tmp_path / "roomy", shard_images=4)
        assert content(corpus) == content(tmp_path / "roomy")
    finally:
        subprocess.run(["umount", str(corpus)], check=False)


def test_a_source_that_cannot_be_written_is_enough(tmp_path: Path, run: Run) -> None:
    """On a read-only mount where that is possible; in any case no byte and no time of it changes."""
    source = tmp_path / "source"
    for number in range(3):
        still(source / "a" / f"{number}.png", number)
    clip(source / "clip.avi", 20)
    with zipfile.ZipFile(source / "export.zip", "w") as archive:
        archive.write(source / "a" / "0.png", "IM1")
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in source.rglob("*")}
    held = content(source)
    with read_only(source) as mounted:
        if mounted:
            with pytest.raises(OSError, match="Read-only"):
                (source / "new").touch()
        summary = run(source, tmp_path / "corpus")
    assert (summary.scans, summary.kept, summary.duplicates) == (5, 9, 1)
    assert content(source) == held
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in source.rglob("*")} == before


def test_a_clip_without_a_rate_is_noted_in_the_ledger(tmp_path: Path, run: Run) -> None:
    ds = pydicom.dcmread(str(get_testdata_file("examples_ybr_color.dcm", download=False)))
    for name in ("FrameTime", "FrameTimeVector", "CineRate", "RecommendedDisplayFrameRate", "FrameIncrementPointer"):
        if name in ds:
            delattr(ds, name)
    (tmp_path / "source").mkdir()
    ds.save_as(tmp_path / "source" / "clip.dcm")
    run(tmp_path / "source", tmp_path / "corpus")
    assert tables(tmp_path / "corpus", "SELECT notes FROM scans") == [("default-rate",)]


def test_label_masks_are_refused_not_quarantined(tmp_path: Path, run: Run) -> None:
    still(tmp_path / "source" / "scan.png", 0)
    mask = np.zeros((200, 200), np.uint8)
    mask[40:160, 60:150] = 255
    Image.fromarray(mask).save(tmp_path / "source" / "mask.png")
    summary = run(tmp_path / "source", tmp_path / "corpus")
    assert (summary.scans, summary.kept, summary.refused, summary.quarantined) == (2, 1, 1, 0)
    assert summary.reasons == {"label-mask": 1}


def test_no_identifier_and_no_path_lies_in_the_corpus(tmp_path: Path, run: Run) -> None:
    still(tmp_path / "source" / "Doe^Jane" / "20240131.png", 0)
    run(tmp_path / "source", tmp_path / "corpus")
    everything = b"".join(path.read_bytes() for path in (tmp_path / "corpus").rglob("*") if path.is_file())
    for word in (b"Doe", b"Jane", b"20240131", b"source", str(tmp_path).encode()):
        assert word not in everything


def test_another_recipe_or_secret_does_not_mix(tmp_path: Path, run: Run) -> None:
    still(tmp_path / "source" / "0.png", 0)
    run(tmp_path / "source", tmp_path / "corpus")
    with pytest.raises(UsageError, match="other settings or another secret"):
        run(tmp_path / "source", tmp_path / "corpus", fps=5)
    with pytest.raises(UsageError):
        prepare(Sources([tmp_path / "source"]), tmp_path / "corpus", Settings(), secret=b"other" * 8)
    run(tmp_path / "source", tmp_path / "corpus", decode_seconds=29)  # a limit of the machine is no recipe


def test_an_absent_source_is_said(tmp_path: Path, run: Run) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        run(tmp_path / "nowhere", tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists(), "an error left a folder"


def test_the_corpus_may_lie_below_the_source(tmp_path: Path, run: Run) -> None:
    still(tmp_path / "0.png", 0)
    for _ in range(2):
        assert run(tmp_path, tmp_path / "corpus").scans == 1


def test_what_the_ledger_says_of_a_scan(tmp_path: Path, run: Run) -> None:
    still(tmp_path / "source" / "0.png", 0)
    run(tmp_path / "source", tmp_path / "corpus")
    assert tables(tmp_path / "corpus", "SELECT outcome, frames, kept, held FROM scans") == [("read", 1, 1, "{}")]
    assert len(SECRET) == 32


@pytest.mark.slow
def test_parts_together_do_the_whole(tmp_path: Path, quick_process: None) -> None:
    for number in range(9):
        still(tmp_path / "source" / f"{number}.png", number)
    settings = Settings.model_validate({"read": {"shard_images": 2}, "model": {"image_size": 32}})
    for index in (2, 0, 1):
        prepare(
            Sources([tmp_path / "source"]),
            tmp_path / "parts",
            settings,
            secret=SECRET,
            parallel=Parallel(part=(index, 3)),
        )
    last = prepare(Sources([tmp_path / "source"]), tmp_path / "parts", settings, secret=SECRET)
    assert last.kept == 9
    prepare(Sources([tmp_path / "source"]), tmp_path / "whole", settings, secret=SECRET)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_two_runs_into_one_corpus_do_not_meet(tmp_path: Path, run: Run) -> None:
    from usfmae.core.prepare.ledger import CorpusLedger

    still(tmp_path / "source" / "0.png", 0)
    with CorpusLedger(tmp_path / "corpus").working(), pytest.raises(TryLaterError, match="another run"):
        run(tmp_path / "source", tmp_path / "corpus")
    assert run(tmp_path / "source", tmp_path / "corpus").kept == 1


def test_a_shard_that_was_removed_is_made_again(tmp_path: Path, run: Run) -> None:
    still(tmp_path / "source" / "0.png", 0)
    first = run(tmp_path / "source", tmp_path / "corpus")
    before = content(tmp_path / "corpus")
    for path in (tmp_path / "corpus" / "shards").glob("*.npy"):
        path.unlink()
    again = run(tmp_path / "source", tmp_path / "corpus")
    assert (again.scans, again.kept) == (first.scans, first.kept)
    assert content(tmp_path / "corpus") == before


def test_the_official_notebooks_resize_can_be_asked_for(tmp_path: Path, quick_process: None) -> None:
    """Its NEAREST takes pixels as they are; a 2 x 2 checkerboard becomes gray only where it is filtered."""
    picture = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    (tmp_path / "source").mkdir()
    Image.fromarray(picture).save(tmp_path / "source" / "board.png")
    for resize, filtered in (("nearest", False), ("bilinear", True)):
        settings = {"model": {"image_size": 32}, "train": {"augment": {"resize": resize}}}
        prepare(Sources([tmp_path / "source"]), tmp_path / resize, Settings.model_validate(settings), secret=SECRET)
        got = pixels(tmp_path / resize)
        assert ((got > 20) & (got < 235)).any() == filtered


def test_a_wide_scan_is_padded_where_its_aspect_is_kept_which_is_another_recipe(
    tmp_path: Path, quick_process: None
) -> None:
    (tmp_path / "source").mkdir()
    picture = np.zeros((60, 120), np.uint8)
    picture[20:50, 10:110] = np.random.default_rng(0).integers(100, 200, (30, 100))  # black all around, as a screen is
    Image.fromarray(picture).save(tmp_path / "source" / "wide.png")
    settings = {
        aspect: Settings.model_validate({"model": {"image_size": 48}, "train": {"augment": {"aspect": aspect}}})
        for aspect in ("squash", "keep")
    }
    for aspect, chosen in settings.items():
        prepare(Sources([tmp_path / "source"]), tmp_path / aspect, chosen, secret=SECRET)
    squashed, kept = pixels(tmp_path / "squash")[0], pixels(tmp_path / "keep")[0]
    assert squashed[[0, -1]].mean() > 90  # cut to the scan, then stretched
    assert (kept[:15] == 0).all() and (kept[-15:] == 0).all() and kept[20:28].mean() > 90  # 100 x 30 in a square
    with pytest.raises(UsageError, match="other settings"):
        prepare(Sources([tmp_path / "source"]), tmp_path / "squash", settings["keep"], secret=SECRET)
