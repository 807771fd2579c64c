"""Files that end early or are damaged within: what decoders fill up, or give up in silence, is not kept, and is counted."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit

from usfmae.core.config import ReadSettings
from usfmae.core.read import Unreadable, identify, read
from usfmae.core.read.discover import Candidate, Identified
from usfmae.core.types import Frame, Quarantined

from .conftest import SECRET, speckle

MakeDicom = Callable[..., Path]
STREAMS = Path(__file__).parent / "streams"
ALL = ReadSettings(fps=1000)
END = b"\xff\xd9"
GRAY = speckle(96, 128, seed=1)


def frames(path: Path, failed: dict[int, str] | None = None) -> list[Frame]:
    found = identify(Candidate.of(path), SECRET, ALL)
    assert isinstance(found, Identified), found
    return list(read(found.scan, ALL, None, failed))


def reason_of(path: Path) -> str:
    """Of a file that its header or its pixels give away."""
    found = identify(Candidate.of(path), SECRET, ALL)
    if isinstance(found, Quarantined):
        return found.reason
    assert isinstance(found, Identified), found
    with pytest.raises(Unreadable) as caught:
        list(read(found.scan, ALL))
    return caught.value.reason


# Clips --------------------------------------------------------------------------------------------------------


def written(path: Path, code: str, pictures: int = 40) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 10.0, (128, 96))
    for seed in range(pictures):
        writer.write(np.repeat(speckle(96, 128, seed=seed)[..., None], 3, 2))
    writer.release()
    return path


@pytest.mark.parametrize(("name", "code"), [("x.avi", "MJPG"), ("x.avi", "XVID"), ("x.avi", "HFYU"), ("x.mkv", "MJPG")])
def test_of_a_clip_cut_in_half_the_whole_frames_stay_and_the_rest_is_counted(
    tmp_path: Path, name: str, code: str
) -> None:
    path = written(tmp_path / name, code)
    whole = frames(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    failed: dict[int, str] = {}
    kept = frames(path, failed)
    assert 10 < len(kept) < 30 and len(kept) + len(failed) == len(whole) == 40
    assert set(failed.values()) == {"damaged", "missing-frame"}
    assert all(np.array_equal(frame.pixels, whole[frame.index].pixels) for frame in kept)


@pytest.mark.parametrize("name", ["h264.mp4", "h264.ts", "hevc.ts", "mpeg2.mpg", "mpeg2.ts"])
def test_what_a_decoder_complains_of_is_not_kept(tmp_path: Path, name: str) -> None:
    """FFmpeg fills up what is damaged out of other frames, and cv2 hands it out."""
    sound = frames(STREAMS / name)
    data = bytearray((STREAMS / name).read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 8] = bytes(len(data) // 8)
    (tmp_path / name).write_bytes(data)
    failed: dict[int, str] = {}
    kept = frames(tmp_path / name, failed)
    assert "damaged" in failed.values() and len(sound) // 4 < len(kept) < len(sound)
    assert all(any(np.array_equal(frame.pixels, one.pixels) for one in sound) for frame in kept)


def test_a_gif_that_was_cut_between_two_pictures_is_not_whole(tmp_path: Path) -> None:
    first, *others = (Image.fromarray(speckle(96, 128, seed=k)).convert("P") for k in range(6))
    first.save(tmp_path / "x.gif", save_all=True, append_images=others, duration=100)
    data = (tmp_path / "x.gif").read_bytes()
    failed: dict[int, str] = {}
    assert len(frames(tmp_path / "x.gif", failed)) == 6 and not failed
    (tmp_path / "x.gif").write_bytes(data[: data.index(b"\x21\xf9\x04", len(data) // 2)])
    assert len(frames(tmp_path / "x.gif", failed)) == 3 and failed == {3: "truncated"}


@pytest.mark.parametrize("disposal", [1, 2])
def test_what_is_transparent_in_a_gif_keeps_its_colour(tmp_path: Path, disposal: int) -> None:
    """Viewers make the black around a sector transparent; FFmpeg shows white there."""
    pictures = [speckle(96, 128, seed=k) // 2 + 100 for k in range(3)]
    for picture in pictures:
        picture[:, :40] = 0
    first, *others = (Image.fromarray(picture).convert("P") for picture in pictures)
    options = {"duration": 100, "disposal": disposal, "transparency": 0}
    first.save(tmp_path / "x.gif", save_all=True, append_images=others, **options)
    kept = frames(tmp_path / "x.gif")
    assert all(np.array_equal(frame.pixels[..., 1], pictures[frame.index]) for frame in kept) and len(kept) == 3


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg program")
def test_half_a_frame_at_the_end_of_a_dv_stream_is_not_kept(tmp_path: Path) -> None:
    made = ["-f", "lavfi", "-i", "testsrc=s=720x576:r=25:d=0.4", "-pix_fmt", "yuv420p", "-c:v", "dvvideo"]
    subprocess.run(["ffmpeg", "-v", "error", *made, str(tmp_path / "x.dv")], check=True)
    data = (tmp_path / "x.dv").read_bytes()
    assert len(frames(tmp_path / "x.dv")) == len(data) // 144_000 == 10
    (tmp_path / "x.dv").write_bytes(data[: 6 * 144_000 + 72_000])
    failed: dict[int, str] = {}
    assert [frame.index for frame in frames(tmp_path / "x.dv", failed)] == [*range(6)] and failed == {6: "truncated"}


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg program")
@pytest.mark.parametrize("name", ["x.dv", "x.avi", "x.mov"])
@pytest.mark.parametrize(("start", "end"), [(0, 1), (0.5, 1), (0, 0.1)])
def test_dv_with_zeroed_blocks_is_kept_up_to_them(tmp_path: Path, name: str, start: float, end: float) -> None:
    """Zeros decode to some picture without a complaint, and deinterlacing mixes it into the frame before."""
    made = ["-f", "lavfi", "-i", "testsrc=s=720x576:r=25:d=0.4", "-pix_fmt", "yuv420p", "-c:v", "dvvideo"]
    subprocess.run(["ffmpeg", "-v", "error", *made, str(tmp_path / name)], check=True)
    whole = frames(tmp_path / name)
    data = bytearray((tmp_path / name).read_bytes())
    sixth = data.index(b"\x1f\x07\x00") if name != "x.avi" else data.index(b"00dc") + 8
    sixth += 5 * (144_000 if name != "x.avi" else 144_008)
    zeroed = slice(sixth + int(start * 144_000), sixth + int(end * 144_000))
    data[zeroed] = bytes(len(data[zeroed]))
    (tmp_path / name).write_bytes(data)
    failed: dict[int, str] = {}
    kept = frames(tmp_path / name, failed)
    assert [frame.index for frame in kept] == [*range(len(kept))] and 3 <= len(kept) <= 4
    assert len(kept) + len(failed) == len(whole) == 10
    assert all(np.array_equal(frame.pixels, whole[frame.index].pixels) for frame in kept)


@pytest.mark.parametrize("name", ["h264.ts", "hevc.ts", "mpeg2.ts"])
@pytest.mark.parametrize("share", [0.35, 0.6, 0.85])
def test_a_transport_stream_that_was_cut_holds_whole_pictures_only(tmp_path: Path, name: str, share: float) -> None:
    """HEVC is filled up without a complaint where its last packets are absent."""
    whole = {round(frame.time or 0, 2): frame.pixels for frame in frames(STREAMS / name)}
    data = (STREAMS / name).read_bytes()
    packets = range(int(share * len(data)) // 188 * 188, len(data), 188)
    second = next(at for at in packets if data[at + 1 : at + 3] == b"\x01\x00")  # of a picture, in stream 256
    (tmp_path / name).write_bytes(data[:second])
    failed: dict[int, str] = {}
    kept = frames(tmp_path / name, failed)
    assert "truncated" in failed.values() and len(kept) > 10
    assert all(np.array_equal(frame.pixels, whole[round(frame.time or 0, 2)]) for frame in kept)


def test_pictures_that_were_cut_off_between_the_last_ones_are_counted(tmp_path: Path) -> None:
    """They follow the later ones that they are made of: what is left jumps in time."""
    whole = frames(STREAMS / "h264.ts")
    data = (STREAMS / "h264.ts").read_bytes()
    (tmp_path / "x.ts").write_bytes(data[: 36 * 188])  # between two pictures
    failed: dict[int, str] = {}
    kept = frames(tmp_path / "x.ts", failed)
    assert set(failed.values()) == {"missing-frame"}
    assert len(kept) + len(failed) == round((kept[-1].time or 0) / (whole[1].time or 1)) + 1


def test_a_sound_clip_misses_nothing(tmp_path: Path) -> None:
    for path in (*STREAMS.glob("*.mp4"), *STREAMS.glob("*.ts"), written(tmp_path / "x.avi", "MJPG")):
        if not path.name.startswith("interlaced"):
            failed: dict[int, str] = {}
            assert frames(path, failed) and not failed, path.name


# Stills -------------------------------------------------------------------------------------------------------


def jpeg(picture: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 2}, {"subsampling": 0}])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_half_a_jpeg_with_an_end_marker_is_truncated(tmp_path: Path, options: dict[str, object], share: float) -> None:
    picture = np.stack([speckle(96, 128, seed=k) for k in range(3)], -1)
    stream = jpeg(picture, **options)
    (tmp_path / "x.jpg").write_bytes(stream[: int(len(stream) * share)] + END)
    assert reason_of(tmp_path / "x.jpg") in ("truncated", "undecodable")


def test_a_jpeg_that_ends_in_the_gray_of_absent_blocks_is_whole(tmp_path: Path) -> None:
    picture = GRAY.copy()
    picture[60:] = 128
    (tmp_path / "x.jpg").write_bytes(jpeg(picture))
    (tmp_path / "y.jpg").write_bytes(jpeg(picture, progressive=True))
    assert len(frames(tmp_path / "x.jpg")) == len(frames(tmp_path / "y.jpg")) == 1


@pytest.mark.parametrize("colour", [False, True])
def test_half_a_jpeg_in_a_cine_costs_one_frame(make_dicom: MakeDicom, colour: bool) -> None:
    pictures = np.stack([speckle(96, 128, seed=k) for k in range(4)])
    if colour:
        pictures = np.stack([pictures, pictures[::-1], pictures], -1)
    streams = [jpeg(picture) for picture in pictures]
    streams[1] = streams[1][: len(streams[1]) // 2] + END
    label = {"PhotometricInterpretation": "YBR_FULL_422"} if colour else {}
    path = make_dicom(pictures, syntax=JPEGBaseline8Bit, PixelData=encapsulate(streams), FrameTime=40.0, **label)
    failed: dict[int, str] = {}
    assert [frame.index for frame in frames(path, failed)] == [0, 2, 3] and failed == {1: "truncated"}


def png(packed: bytes, depth: int = 8, interlaced: bool = False) -> bytes:
    """A gray PNG of 128 x 96 over these bytes of rows; its stream and all check sums are whole."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 128, 96, depth, 0, 0, 0, interlaced)
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(packed)), chunk(b"IEND", b""))
    )


@pytest.mark.parametrize("depth", [8, 16])
def test_a_png_whose_samples_end_early_is_truncated(tmp_path: Path, depth: int) -> None:
    samples = GRAY.astype(f">u{depth // 8}")
    samples[-1] = 0  # black as what is absent
    rows = [b"\0" + row.tobytes() for row in samples]
    (tmp_path / "whole.png").write_bytes(png(b"".join(rows), depth))
    (tmp_path / "half.png").write_bytes(png(b"".join(rows[:48]), depth))
    assert len(frames(tmp_path / "whole.png")) == 1
    assert reason_of(tmp_path / "half.png") == "truncated"


def test_a_png_without_its_last_pass_is_truncated(tmp_path: Path) -> None:
    """(rows, columns) of the passes (PNG 8.2); before each row stands its filter."""
    passes = [(12, 16), (12, 16), (12, 32), (24, 32), (24, 64), (48, 64), (48, 128)]
    sizes = [rows * (1 + columns) for rows, columns in passes]
    (tmp_path / "x.png").write_bytes(png(b"\0" * sum(sizes[:-1]), interlaced=True))
    assert sum(sizes) == 12468 and reason_of(tmp_path / "x.png") == "truncated"


def test_deep_colour_that_does_not_decode_is_kept_back(tmp_path: Path) -> None:
    """Pillow would keep the upper half of each sample, and black for what is absent."""
    deep = np.stack([GRAY.astype(np.uint16) * 16] * 3, -1)
    cv2.imwrite(str(tmp_path / "x.png"), deep)
    assert len(frames(tmp_path / "x.png")) == 1
    data = bytearray((tmp_path / "x.png").read_bytes())
    (tmp_path / "x.png").write_bytes(data[: len(data) // 2])
    assert reason_of(tmp_path / "x.png") == "undecodable"


# Named, not read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.png", "x.webp"])
def test_animations_are_named(tmp_path: Path, name: str) -> None:
    first, *others = (Image.fromarray(speckle(96, 128, seed=k)) for k in range(4))
    first.save(tmp_path / name, save_all=True, append_images=others, duration=100)
    assert reason_of(tmp_path / name) == "unsupported-animation"


def test_a_webp_is_a_still(tmp_path: Path) -> None:
    Image.fromarray(GRAY).convert("RGB").save(tmp_path / "x.webp", lossless=True)
    assert np.array_equal(frames(tmp_path / "x.webp")[0].pixels[..., 1], GRAY)


@pytest.mark.parametrize(("name", "reason"), [("x.jp2", "unsupported-jpeg-2000"), ("x.avif", "unsupported-avif")])
def test_pictures_that_are_not_decoded_are_named(tmp_path: Path, name: str, reason: str) -> None:
    Image.fromarray(GRAY).save(tmp_path / name)
    assert reason_of(tmp_path / name) == reason


@pytest.mark.parametrize(("bits", "kind", "photometric"), [(64, 3, 1), (16, 1, 3), (64, 1, 1), (16, 3, 1)])
def test_tiffs_of_other_samples_are_named_and_not_called_damage(
    tmp_path: Path, bits: int, kind: int, photometric: int
) -> None:
    data = bytes(96 * 128 * bits // 8)
    tags = ((256, 128), (257, 96), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 96),
            (279, len(data)), (339, kind))  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    (tmp_path / "x.tif").write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + bytes(4))
    assert reason_of(tmp_path / "x.tif") == "unsupported-tiff"
