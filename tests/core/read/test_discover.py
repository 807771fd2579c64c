"""Finding scans: by content, in archives, in a stable order; files that are no scans are left alone."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from usfmae.core.config import ReadSettings
from usfmae.core.errors import SourceError
from usfmae.core.read import discover, read
from usfmae.core.read.discover import walk
from usfmae.core.types import Quarantined, Scan

from .conftest import SECRET, speckle

SETTINGS = ReadSettings()


def still(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(speckle(seed=seed)).save(path, "PNG")
    return path


def found(*sources: Path, settings: ReadSettings = SETTINGS) -> list[Scan | Quarantined]:
    return list(discover(sources, SECRET, settings))


def test_formats_are_told_by_content_and_texts_are_no_scans(tmp_path: Path) -> None:
    still(tmp_path / "b" / "scan")
    still(tmp_path / "a" / "photo.mp4")
    (tmp_path / "notes.txt").write_text("not a scan")
    (tmp_path / "table.csv").write_bytes(b"a;b\n")
    (tmp_path / "LICENSE").write_text("text without an extension")
    (tmp_path / ".DS_Store").write_bytes(b"\0\1\2")
    scans = found(tmp_path)
    assert [s.kind for s in scans if isinstance(s, Scan)] == ["raster", "raster"]
    assert len(scans) == 2


def test_what_should_be_a_scan_but_is_not_goes_to_quarantine(tmp_path: Path) -> None:
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "noise.png").write_bytes(bytes(range(256)) * 9)
    (tmp_path / "noise").write_bytes(bytes(reversed(range(256))) * 9)
    reasons = [q.reason for q in found(tmp_path) if isinstance(q, Quarantined)]
    assert sorted(reasons) == ["empty", "unknown-format", "unknown-format"]


def test_members_of_archives_are_scans_and_nested_archives_are_not_opened(tmp_path: Path) -> None:
    path = still(tmp_path / "x" / "a.png")
    inner = tmp_path / "x" / "inner.zip"
    with zipfile.ZipFile(inner, "w") as archive:
        archive.write(path, "a.png")
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        archive.write(path, "DATA/IM0001")
        archive.write(inner, "DATA/inner.zip")
    scans = found(tmp_path / "export.zip")
    assert [getattr(s, "reason", "") for s in scans] == ["", "nested-archive"]
    assert isinstance(scans[0], Scan)
    assert np.array_equal(next(read(scans[0], SETTINGS)).pixels[..., 0], speckle())


def test_a_zip_bomb_stops_at_the_limit(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(30_000_000))
    (only,) = found(tmp_path / "bomb.zip", settings=ReadSettings(max_member_mb=10))
    assert isinstance(only, Quarantined)
    assert only.reason == "too-large"


def test_a_name_depends_on_content_and_secret_alone(tmp_path: Path) -> None:
    first, second = still(tmp_path / "a.png"), still(tmp_path / "elsewhere" / "b.png")
    ids = {s.trail.id for s in found(first) + found(second)}
    assert len(ids) == 1
    assert "a.png" not in repr(ids)
    assert [s.trail.id for s in discover([first], b"z" * 32, SETTINGS)] != list(ids)


def test_files_of_one_folder_are_one_group_and_loose_files_are_their_own(tmp_path: Path) -> None:
    for number in range(2):
        still(tmp_path / "patient" / f"{number}.png", number)
        still(tmp_path / f"loose{number}.png", 10 + number)
    groups = [s.group for s in found(tmp_path) if isinstance(s, Scan)]
    assert len(set(groups)) == 3


def test_dicomdir_stands_for_its_folder(tmp_path: Path) -> None:
    still(tmp_path / "IMAGES" / "IM1")
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    assert [s.kind for s in found(tmp_path / "DICOMDIR") if isinstance(s, Scan)] == ["raster"]
    assert len(found(tmp_path)) == 1


def test_names_in_any_encoding_and_pipes_in_the_way(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"M\xfcller")
    still(folder / os.fsdecode(b"\xe9cho.png"))
    os.mkfifo(tmp_path / "pipe.dcm")
    (only,) = found(tmp_path)
    assert isinstance(only, Scan)


def test_a_dangling_link_is_said(tmp_path: Path) -> None:
    (tmp_path / "gone.dcm").symlink_to(tmp_path / "nowhere")
    (only,) = found(tmp_path)
    assert isinstance(only, Quarantined)
    assert only.reason == "os-2"


def names(*sources: Path, follow: bool = True) -> list[str]:
    return [f"{c.path.name} {c.broken}".strip() for c in walk(sources, follow=follow)]


def test_folders_that_are_linked_in_are_walked_once_and_loops_end(tmp_path: Path) -> None:
    still(tmp_path / "share" / "deep" / "shared.png")
    still(tmp_path / "data" / "a" / "own.png")
    for name, target in (("again", "a"), ("loop", "."), ("up", ".."), ("share", "../share"), ("twice", "../share")):
        (tmp_path / "data" / name).symlink_to(target)
    (tmp_path / "share" / "deep" / "back").symlink_to(tmp_path / "data")
    assert names(tmp_path / "data") == ["own.png", "shared.png", "up link-loop"]
    outside = ["share link-outside", "twice link-outside", "up link-outside"]
    assert names(tmp_path / "data", follow=False) == ["own.png", *outside]
    both = tmp_path / "data", tmp_path / "share"
    assert names(*both, follow=False) == ["own.png", "shared.png", "up link-outside"]


def test_a_link_to_a_file_is_followed_within_the_sources_alone(tmp_path: Path) -> None:
    still(tmp_path / "elsewhere" / "x.png")
    still(tmp_path / "data" / "own.png")
    (tmp_path / "data" / "inside.png").symlink_to("own.png")
    (tmp_path / "data" / "outside.png").symlink_to("../elsewhere/x.png")
    (tmp_path / "data" / "self.png").symlink_to("self.png")
    (tmp_path / "data" / "gone.png").symlink_to("gone")
    said = ["inside.png", "own.png", "gone.png os-2", "outside.png link-outside", "self.png link-loop"]
    assert names(tmp_path / "data") == said
    assert "outside.png" in names(tmp_path / "data", tmp_path / "elsewhere")


def test_a_source_that_is_a_link_is_walked(tmp_path: Path) -> None:
    still(tmp_path / "share" / "x.png")
    (tmp_path / "scans").symlink_to("share")
    (tmp_path / "share" / "y.png").symlink_to("x.png")
    assert names(tmp_path / "scans", follow=False) == ["x.png", "y.png"]
    assert names(tmp_path / "scans" / "x.png") == ["x.png"]


def test_a_pipe_as_a_source_is_said_before_the_work(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(SourceError, match="neither a file nor a folder"):
        list(walk([tmp_path / "pipe.png"]))
