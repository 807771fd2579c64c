"""Stills, clips and volumes: bits, times, slices; what is damaged or too large ends with a reason."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from usfmae.core.config import ReadSettings
from usfmae.core.read import RefusedScan, Unreadable, identify, read
from usfmae.core.read.discover import Candidate, Identified
from usfmae.core.types import Frame, Quarantined

from .conftest import SECRET, speckle

SETTINGS = ReadSettings()
STREAMS = Path(__file__).parent / "streams"


def frames(path: Path, settings: ReadSettings = SETTINGS, notes: set[str] | None = None) -> list[Frame]:
    found = identify(Candidate.of(path), SECRET, settings)
    assert isinstance(found, Identified), found
    return list(read(found.scan, settings, notes))


@pytest.mark.parametrize("name", ["a.jpg", "gray.jpg"])
def test_jpeg_comes_near(tmp_path: Path, name: str) -> None:
    picture = speckle() if name.startswith("gray") else np.stack([speckle(seed=i) for i in range(3)], 2)
    Image.fromarray(picture).save(tmp_path / name, quality=97, subsampling=0)
    expected = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, 2)
    assert np.abs(frames(tmp_path / name)[0].pixels.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_stills_come_back_bit_for_bit_whatever_their_name(tmp_path: Path, suffix: str) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(colour).save(path)
    bare = path.rename(tmp_path / "no-extension")
    assert np.array_equal(frames(bare)[0].pixels, colour)


def test_sixteen_bits_keep_their_contrast(tmp_path: Path) -> None:
    deep = (speckle().astype(np.uint16) + 700) * 4
    for name in ("gray.png", "gray.tif"):
        cv2.imwrite(str(tmp_path / name), deep)
        pixels = frames(tmp_path / name)[0].pixels[..., 0].astype(float)
        assert pixels.min() == 0
        assert pixels.max() == 255
        assert np.abs(pixels - (deep - deep.min()) / np.ptp(deep) * 255).max() <= 1
    blue_first = np.stack([deep // 4, deep // 2, deep], 2)
    for name in ("colour.png", "colour.tif"):
        cv2.imwrite(str(tmp_path / name), blue_first)
        pixels = frames(tmp_path / name)[0].pixels.astype(float)
        expected = (blue_first[..., ::-1] - blue_first.min()) / np.ptp(blue_first) * 255
        assert np.abs(pixels - expected).max() <= 1


def test_pages_of_a_deep_tiff_share_one_scale(tmp_path: Path) -> None:
    """Else a dim page would be shown as bright as the others."""
    deep = np.stack([speckle(seed=0).astype(np.uint16) * 200, speckle(seed=1).astype(np.uint16) * 20])
    cv2.imwritemulti(str(tmp_path / "a.tif"), list(deep))
    first, second = (frame.pixels.astype(float).mean() for frame in frames(tmp_path / "a.tif"))
    assert second < first / 5


def drawing(levels: tuple[int, ...]) -> np.ndarray:
    """(H, W) flat discs of the given gray levels on black: a label mask."""
    mask = np.zeros((240, 480), np.uint8)
    for number, level in enumerate(levels):
        cv2.circle(mask, (80 + 160 * number, 120), 60, level, -1)
    return mask


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("levels", [(255,), (90, 180, 255)])
def test_label_masks_are_told_apart_from_scans(tmp_path: Path, name: str, levels: tuple[int, ...]) -> None:
    Image.fromarray(drawing(levels)).save(tmp_path / name)
    with pytest.raises(RefusedScan) as caught:
        frames(tmp_path / name)
    assert caught.value.reason == "label-mask"


def test_a_dark_scan_with_a_bright_plate_is_no_label_mask(tmp_path: Path) -> None:
    scan = drawing((255,))
    scan[180:] = speckle(240, 480)[180:] // 2
    Image.fromarray(scan).save(tmp_path / "a.png")
    assert len(frames(tmp_path / "a.png")) == 1


def test_a_volume_of_labels_is_refused(tmp_path: Path) -> None:
    import SimpleITK

    volume = np.stack([np.zeros((240, 480), np.uint8), drawing((1, 2))])
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(volume), str(tmp_path / "labels.nii.gz"))
    with pytest.raises(RefusedScan) as caught:
        frames(tmp_path / "labels.nii.gz")
    assert caught.value.reason == "label-mask"


def test_every_page_of_a_tiff_is_a_frame(tmp_path: Path) -> None:
    pages = [Image.fromarray(speckle(seed=i)) for i in range(3)]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    assert [f.index for f in frames(tmp_path / "a.tiff")] == [0, 1, 2]


def test_small_copies_and_masks_in_a_tiff_are_no_frames(tmp_path: Path) -> None:
    kinds = {0: speckle(), 1: speckle(24, 32), 2: speckle(seed=1), 4: speckle(seed=2)}  # NewSubfileType
    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "a.tif"), new=True) as file:
        for kind in (1, 0, 2, 4):  # an icon first, as some cameras write
            Image.fromarray(kinds[kind]).save(file, "TIFF", tiffinfo={254: kind})
            file.newFrame()
    kept = frames(tmp_path / "a.tif")
    assert [f.index for f in kept] == [0, 1]
    assert np.array_equal(kept[0].pixels[..., 0], kinds[0]) and np.array_equal(kept[1].pixels[..., 0], kinds[2])


def test_a_png_bomb_is_stopped_by_its_header(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9000, 9000), np.uint8)).save(tmp_path / "bomb.png")
    found = identify(Candidate.of(tmp_path / "bomb.png"), SECRET, SETTINGS)
    assert isinstance(found, Quarantined)
    assert found.reason == "too-large"


def film(path: Path, code: str, rate: float, count: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), rate, (128, 96))
    assert writer.isOpened()
    for i in range(count):
        writer.write(np.full((96, 128, 3), i * 4, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize(
    ("name", "code"), [("a.mp4", "mp4v"), ("a.mov", "mp4v"), ("a.avi", "MJPG"), ("a.mpg", "PIM1"), ("a.mkv", "mp4v")]
)
def test_clips_are_sampled_by_time(tmp_path: Path, name: str, code: str) -> None:
    got = frames(film(tmp_path / name, code, 25, 50))
    assert [f.index for f in got[:6]] == [0, 9, 17, 25, 34, 42]
    assert [f.time for f in got[:6]] == pytest.approx([0, 0.36, 0.68, 1.0, 1.36, 1.68], abs=0.01)
    assert len(got) == (7 if name == "a.mpg" else 6)  # a program stream states no time for its last frame
    assert abs(int(got[3].pixels.mean()) - 100) < 6  # frame 25 is really frame 25


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mov", "hevc.mp4", "mpeg2.mpg"])
def test_clips_in_the_codecs_of_machines(name: str) -> None:
    got = frames(STREAMS / name)
    assert len(got) in (6, 7)  # FFmpeg finds no time for the last frame of a program stream
    for frame in got:
        picture = speckle(96, 128, seed=frame.index // 10)
        assert np.corrcoef(frame.pixels[..., 0].ravel(), picture.ravel())[0, 1] > 0.95


def test_uneven_presentation_times_are_followed() -> None:
    """20 frames at 25 a second, then one every 0.4 s: the later ones are all kept."""
    got = frames(STREAMS / "uneven.mp4")
    assert [f.index for f in got][:6] == [0, 9, 17, 21, 22, 23]
    assert len(got) == 3 + 29
    assert got[-1].time == pytest.approx(12.4, abs=0.01)


def test_a_gif_is_a_clip_with_times(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((64, 64), i * 20, np.uint8)) for i in range(10)]
    pages[0].save(tmp_path / "a.gif", save_all=True, append_images=pages[1:], duration=100)
    assert [f.index for f in frames(tmp_path / "a.gif")] == [0, 4, 7]


@pytest.mark.parametrize("name", ["v.mha", "v.nrrd", "v.nii", "v.nii.gz", "v.mhd"])
def test_volumes_give_their_slices(tmp_path: Path, name: str) -> None:
    import SimpleITK

    slices = np.stack([speckle(seed=i) for i in range(4)])
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(slices), str(tmp_path / name), useCompression=name == "v.nrrd")
    assert np.array_equal(np.stack([f.pixels[..., 0] for f in frames(tmp_path / name)]), slices)


def test_slices_of_a_deep_volume_share_one_scale(tmp_path: Path) -> None:
    import SimpleITK

    slices = np.stack([speckle(seed=i).astype(np.int16) * 10 ** (i % 2) - 500 for i in range(4)])
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(slices), str(tmp_path / "v.nii.gz"))
    got = np.stack([f.pixels[..., 0] for f in frames(tmp_path / "v.nii.gz")]).astype(float)
    assert np.abs(got - (slices.astype(float) - slices.min()) / np.ptp(slices) * 255).max() <= 1


@pytest.mark.parametrize(("most", "kept"), [(0, range(9)), (1, [4]), (3, [1, 4, 7]), (20, range(9))])
@pytest.mark.parametrize("packed", [False, True])
def test_a_limit_of_slices_is_spread_over_the_volume(tmp_path: Path, most: int, kept: list[int], packed: bool) -> None:
    import SimpleITK

    slices = np.stack([speckle(seed=i) for i in range(9)])
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(slices), str(tmp_path / "v.mha"), useCompression=packed)
    settings = SETTINGS.model_copy(update={"slices": most})
    found = identify(Candidate.of(tmp_path / "v.mha"), SECRET, settings)
    assert isinstance(found, Identified) and found.facts.planned == len(kept)
    got = list(read(found.scan, settings))
    assert [f.index for f in got] == list(kept) and np.array_equal(
        np.stack([f.pixels[..., 0] for f in got]), slices[kept]
    )


def test_a_playlist_called_mp4_never_reaches_the_demuxer(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
    found = identify(Candidate.of(tmp_path / "a.mp4"), SECRET, SETTINGS)
    assert isinstance(found, Quarantined)
    assert found.reason == "unknown-format"


def test_all_real_clips_and_volumes_are_read(shared_data: Path) -> None:
    clips = [p for d in ("covid_blues", "pocus_videos") for p in sorted((shared_data / d).rglob("*")) if p.is_file()]
    found = [identify(Candidate.of(p), SECRET, SETTINGS) for p in clips]
    scans = [f.scan for f in found if isinstance(f, Identified)]
    assert len(scans) == 151
    assert not [f for f in found if isinstance(f, Quarantined)]
    for scan in scans[::10]:
        assert len(list(read(scan, SETTINGS))) > 0
    volumes = sorted((shared_data / "volumes_us").rglob("*.mha"))
    assert sum(len(frames(path)) for path in volumes) == 146


def tiff(path: Path, samples: np.ndarray, **tags: int) -> Path:
    """An uncompressed little endian TIFF (TIFF 6.0) of (H, W) gray or (3, H, W) planes in one strip each."""
    planes = samples if samples.ndim == 3 else samples[None]
    count, (height, width), size = len(planes), planes.shape[1:], planes[0].nbytes
    bits = samples.dtype.itemsize * 8
    fields = {256: (width,), 257: (height,), 258: (bits,) * count, 259: (1,), 262: (tags.get("photometric", 1),)}
    fields |= {273: tuple(8 + n * size for n in range(count)), 277: (count,), 278: (height,), 279: (size,) * count}
    fields |= {284: (1 if count == 1 else 2,), 339: (tags.get("sample_format", 1),) * count}
    entries, beyond, end = b"", b"", 8 + count * size + 2 + 12 * len(fields) + 4
    for tag, values in fields.items():
        raw = struct.pack(f"<{len(values)}I", *values)
        entries += struct.pack("<HHI", tag, 4, len(values))
        entries += raw if len(values) == 1 else struct.pack("<I", end + len(beyond))
        beyond += raw if len(values) > 1 else b""
    head = b"II*\0" + struct.pack("<I", 8 + count * size) + planes.tobytes()
    path.write_bytes(head + struct.pack("<H", len(fields)) + entries + bytes(4) + beyond)
    return path


def test_tiffs_whose_zero_is_white_or_that_are_signed_are_the_right_way_round(tmp_path: Path) -> None:
    gray = speckle()
    gray[0, :2] = 0, 255
    white = tiff(tmp_path / "white.tif", (255 - gray).astype(np.uint16) * 257, photometric=0)
    signed = tiff(tmp_path / "signed.tif", (gray ^ 128).view(np.int8), sample_format=2)
    for path in (white, signed):
        np.testing.assert_array_equal(frames(path)[0].pixels[..., 0], gray)


def test_deep_colour_in_planes_is_kept_back_by_its_name(tmp_path: Path) -> None:
    planes = np.stack([speckle(seed=i) for i in range(3)]).astype(np.uint16) * 257
    with pytest.raises(Unreadable) as refused:
        frames(tiff(tmp_path / "planes.tif", planes, photometric=2))
    assert refused.value.reason == "unsupported-pixels"


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_a_truncated_still_is_unreadable_not_a_failure_of_the_disk(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = identify(Candidate.of(path), SECRET, SETTINGS)
    if isinstance(found, Identified):
        with pytest.raises(Unreadable):
            list(read(found.scan, SETTINGS))
    else:
        assert isinstance(found, Quarantined)


def test_what_cannot_be_opened_is_no_quarantine(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        identify(Candidate.of(tmp_path / "gone.png"), SECRET, SETTINGS)
