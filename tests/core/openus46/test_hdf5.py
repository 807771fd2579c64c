"""The one data set published as HDF5: every clip becomes a volume, pixel for pixel, and then a data set like any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from usfmae.core.cli import group
from usfmae.core.config import ReadSettings
from usfmae.core.errors import SourceError
from usfmae.core.openus46.layout import check, scans
from usfmae.core.openus46.registry import dataset
from usfmae.core.read import read

h5py = pytest.importorskip("h5py")
FRAMES = np.random.default_rng(0).integers(0, 255, (7, 20, 30)).astype(np.uint8)
CLIPS = [b"12_", b"7_", b"12_", b"7_", b"12_", b"7_", b"7_"]
NUMBERS = [2, 1, 1, 2, 3, 4, 3]  # of the frame in its clip: the file need not be in order


def published(folder: Path, **more: object) -> Path:
    """The archive as Stanford publishes it."""
    folder.mkdir()
    content = {"image": FRAMES, "annot_id": np.array(CLIPS), "frame_num": NUMBERS, "mask": FRAMES > 9, **more}
    with h5py.File(folder / "dataset.hdf5", "w") as file:
        for name, value in content.items():
            if value is not None:
                file[name] = value
    (folder / "metadata.csv").write_text("annot_id,age\n12_,50\n7_,60\n")
    return folder


def test_clips_are_written_once_in_order_and_then_found(tmp_path: Path) -> None:
    folder = published(tmp_path / "thyroidultrasoundcineclip")
    wanted = dataset("thyroid_cineclip")
    packed = check(wanted, tmp_path)
    assert packed.status == "packed" and "usfmae datasets unpack" in packed.detail
    CliRunner().invoke(group, ["datasets", "unpack", "--root", str(tmp_path)], catch_exceptions=False)
    found = check(wanted, tmp_path)
    assert (found.status, found.scans, found.expected) == ("partial", 2, 192) and "packed" not in found.detail
    by_name = {scan.path.name: scan for scan in scans(found, b"secret")}
    assert len({scan.group for scan in by_name.values()}) == 2
    for name, rows in (("12.mha", [2, 0, 4]), ("7.mha", [1, 3, 6, 5])):
        frames = list(read(by_name[name], ReadSettings()))
        assert (np.stack([f.pixels[..., 0] for f in frames]) == FRAMES[rows]).all()
    before = (folder / "clips" / "7.mha").stat().st_mtime_ns
    CliRunner().invoke(group, ["datasets", "unpack", "--root", str(tmp_path)], catch_exceptions=False)
    assert (folder / "clips" / "7.mha").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("fault", "named"), [("half", "cannot be read as HDF5"), ("no clip", "no annot_id"), ("shape", "shape")]
)
def test_another_file_is_named_with_exit_code_4(fault: str, named: str, tmp_path: Path) -> None:
    more = {"no clip": {"annot_id": None}, "shape": {"image": np.zeros((7, 4, 5, 6), np.uint8)}}.get(fault, {})
    file = published(tmp_path / "thyroid_cineclip", **more) / "dataset.hdf5"
    if fault == "half":
        file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(SourceError, match=named) as caught:
        CliRunner().invoke(
            group, ["datasets", "unpack", "--root", str(tmp_path)], catch_exceptions=False, standalone_mode=False
        )
    assert caught.value.exit_code == 4 and not list(tmp_path.rglob("*.mha"))
