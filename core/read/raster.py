"""Still pictures: PNG, JPEG, WebP, BMP, TIFF, with 8 or 16 bits, through Pillow (cv2 where Pillow would lose bits).

Pillow fills up pictures that end early. Whether a PNG or a JPEG holds all of its picture is therefore looked at here.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from usfmae.core.config.read import ReadSettings
from usfmae.core.errors import UsfmaeError
from usfmae.core.read import jpeg
from usfmae.core.read.facts import Facts, RefusedScan, Unreadable, check_size, guarded, refuse_icon
from usfmae.core.read.source import opened
from usfmae.core.types import Frame, Pixels, Scan

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".tif", ".tiff", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
PNG, WEBP, TIFF = b"\x89PNG\r\n\x1a\n", b"WEBP", (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
MAGIC = (PNG, b"\xff\xd8\xff", b"BM", *TIFF)
# Pictures that are known and not read, by the name of their first box (ISO 15444-1, ISO 18181-2, ISO 23008-12)
BOXES = {
    b"jP  ": "jpeg-2000", b"JXL ": "jpeg-xl", b"ftypavif": "avif", b"ftypavis": "avif", b"ftypheic": "heif",
    b"ftypheix": "heif", b"ftypmif1": "heif",
}  # fmt: skip
PICTURE = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS")  # chunks of a PNG that decide its pixels

# Our own limit is checked on the header; Pillow's warning would come after it.
Image.MAX_IMAGE_PIXELS = None


def recognises(head: bytes) -> bool:
    if head[8:12] == WEBP or _unread(head):
        return True
    return head.startswith(MAGIC) and (head[:2] != b"BM" or len(head) > 26)


def _unread(head: bytes) -> str:
    return BOXES.get(head[4:8]) or BOXES.get(head[4:12], "")


def _open(file: BinaryIO) -> Image.Image:
    if name := _unread(file.read(12)):
        raise Unreadable(f"unsupported-{name}", "pictures of this kind are not decoded")
    file.seek(0)
    with guarded("unreadable"):  # Pillow raises OSError, SyntaxError, struct.error, ... on damaged headers
        try:
            return Image.open(_picture_alone(file), formats=FORMATS)
        except UnidentifiedImageError:
            _refuse_tiff(file)
            raise


def _refuse_tiff(file: BinaryIO) -> None:
    """Unreadable, by its own name, for a TIFF whose header is sound and whose kind of sample Pillow does not know."""
    file.seek(0)
    if (head := file.read(8)).startswith(TIFF):
        head += file.read(8) if b"+" in head[:4] else b""  # BigTIFF
        tags = TiffImagePlugin.ImageFileDirectory_v2(head)
        file.seek(tags.next)
        tags.load(file)
        bits, kind = tags[BITS][0], SAMPLE_KINDS.get(tags.get(SAMPLE_FORMAT, (1,))[0], "unknown")
        raise Unreadable("unsupported-tiff", f"{kind} samples of {bits} bits, photometric {tags[PHOTOMETRIC]}")


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, end) of the chunks of a PNG; the last may end beyond the file."""
    place = len(PNG)
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        yield data[place + 4 : place + 8], place, end
        place = end


def _picture_alone(file: BinaryIO) -> BinaryIO:
    """A PNG without the chunks that are no picture: Pillow refuses sound files for long text or a large profile."""
    magic = file.read(len(PNG))
    file.seek(0)
    if magic != PNG:
        return file
    data = file.read()
    chunks = [PNG]
    for name, start, end in _chunks(data):
        if name == b"acTL" and int.from_bytes(data[start + 8 : start + 12], "big") > 1:
            raise Unreadable("unsupported-animation", "a PNG of several pictures")
        if name in PICTURE:
            chunks.append(data[start:end])
    return io.BytesIO(b"".join(chunks))


def facts(scan: Scan, settings: ReadSettings) -> Facts:
    with opened(scan, settings) as file:
        image = _open(file)
        pages = _pages(image)
        image.seek(pages[0])
        check_size(image.width, image.height, len(pages), settings)
        refuse_icon(image.width, image.height)
        return Facts(image.format or "raster", len(pages), len(pages))


def _pages(image: Image.Image) -> list[int]:
    """The pages that are pictures. A TIFF may hold small copies and masks of others beside them."""
    count = int(getattr(image, "n_frames", 1)) if image.format in ("TIFF", "WEBP") else 1
    if count > 1 and image.format == "WEBP":
        raise Unreadable("unsupported-animation", "a WebP of several pictures")
    if count == 1:
        return [0]
    return [page for page in range(count) if not _is_copy(image, page)] or [*range(count)]


def _is_copy(image: Image.Image, page: int) -> bool:
    try:
        image.seek(page)
    except Exception:  # met again when the page is read
        return False
    tags = getattr(image, "tag_v2", {})
    return bool(tags.get(KIND, 0) & COPY_OR_MASK) or tags.get(OLD_KIND) == OLD_COPY


def frames(
    scan: Scan, settings: ReadSettings, notes: set[str], failed: dict[int, str] | None = None
) -> Iterator[Frame]:
    """One Frame, or one per page of a TIFF; deep pages share one scale. Raises RefusedScan where it is a label mask."""
    with opened(scan, settings) as file:
        image = _open(file)
        pages = _pages(image)
        low, high = _range(image, file, pages, settings)
        for index, page in enumerate(pages):
            try:
                samples = _page(image, file, page, len(pages), settings)
            except (UsfmaeError, MemoryError):
                raise
            except Exception:
                if len(pages) == 1 or failed is None:
                    raise
                failed[index] = "undecodable"
                continue
            pixels = as_rgb(samples, low, high)
            refuse_labels(pixels)
            yield Frame(pixels, scan.trail, index)
        if failed and len(failed) == len(pages):
            failed.clear()
            raise Unreadable("undecodable", "not one page could be decoded")


def _page(image: Image.Image, file: BinaryIO, page: int, pages: int, settings: ReadSettings) -> NDArray[Any]:
    image.seek(page)
    check_size(image.width, image.height, pages, settings)
    samples = _samples(image, file, page)
    if not _is_whole(image, file, samples):
        raise Unreadable("truncated", "the file ends before its picture")
    return samples


def _range(
    image: Image.Image, file: BinaryIO, pages: Sequence[int], settings: ReadSettings
) -> tuple[float | None, float | None]:
    """Lowest and highest sample of all deep pages of a stack; none for a single picture, which has its own."""
    if len(pages) == 1:
        return None, None
    ends = []
    for page in pages:
        with suppress(Exception):  # met again when the page is read for good
            image.seek(page)
            if not (image.mode in ("I", "F") or image.mode.startswith("I;16") or _deep_colour(image)):
                continue
            ends.append(extent(_page(image, file, page, len(pages), settings)))
    return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else (None, None)


# Tags of TIFF 6.0 and the values that Pillow and cv2 pass over
KIND, COPY_OR_MASK = 254, 0b101  # NewSubfileType: a smaller copy of another page, or a mask of it
OLD_KIND, OLD_COPY = 255, 2
BITS = 258  # of each sample
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0
PLANES, SEPARATE = 284, 2
SAMPLE_FORMAT, SIGNED = 339, 2
SAMPLE_KINDS = {1: "unsigned", SIGNED: "signed", 3: "floating", 5: "complex", 6: "complex"}


def _samples(image: Image.Image, file: BinaryIO, page: int) -> NDArray[Any]:
    """The current page, (H, W) or (H, W, 3) RGB of any depth; transparency is dropped, EXIF is not looked at."""
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        samples = np.asarray(image)
        return turned_around(samples) if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else samples
    if image.mode == "L" and SIGNED in tags.get(SAMPLE_FORMAT, ()):
        return np.asarray(image) ^ np.uint8(128)  # -128 becomes 0
    if _deep_colour(image):
        if tags.get(PLANES) == SEPARATE:
            raise Unreadable("unsupported-pixels", "colour planes of 16 bits")
        return _decode_cv2(file, page)
    return np.asarray(image.convert("RGB"))


def _is_whole(image: Image.Image, file: BinaryIO, samples: NDArray[Any]) -> bool:
    """Whether a PNG or a JPEG holds the whole picture that was decoded from it; other formats end in an error."""
    if image.format not in ("PNG", "JPEG", "MPO"):
        return True
    if image.format == "PNG" and image.mode != "P" and samples[-1].any() and not image.info.get("interlace"):
        return True  # what is absent is black
    file.seek(0)
    data = file.read()
    return _is_whole_png(data) if image.format == "PNG" else jpeg.is_whole(data, samples)


SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # a pixel, by the colour type of a PNG
# (first column, first row, columns, rows between) of the passes of an interlaced PNG (Adam7)
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def _is_whole_png(data: bytes) -> bool:
    """Whether as many bytes are packed in a PNG as its header asks for: rows, each with a byte for its filter."""
    width, height = (int.from_bytes(data[place : place + 4], "big") for place in (16, 20))
    bits = data[24] * SAMPLES[data[25]]
    missing = 0
    for left, top, across, down in PASSES if data[28] else ((0, 0, 1, 1),):
        columns, rows = -(-max(0, width - left) // across), -(-max(0, height - top) // down)
        missing += rows * (1 + -(-columns * bits // 8)) if columns else 0
    unpack = zlib.decompressobj()
    for name, start, end in _chunks(data):
        if name == b"IDAT" and missing > 0:
            missing -= len(unpack.decompress(data[start + 8 : end - 4], missing))
    return missing <= 0


def turned_around(samples: NDArray[Any]) -> NDArray[Any]:
    """Gray of which 0 is white: the lowest sample becomes the highest of its type."""
    return np.invert(samples) if samples.dtype.kind in "iu" else -samples


def _deep_colour(image: Image.Image) -> bool:
    """Colour with 16 bits a sample, of which Pillow keeps the upper half only."""
    if image.format == "PNG":
        return "16B" in str(getattr(image, "tile", ""))
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(BITS, ())
        return len(bits) >= 3 and max(bits) > 8
    return False


def _decode_cv2(file: BinaryIO, page: int) -> NDArray[Any]:
    file.seek(0)
    data = np.frombuffer(file.read(), np.uint8)
    decoded, pages = cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED, range=(page, page + 1))
    if not decoded:
        raise Unreadable("undecodable", "colour of 16 bits")
    return pages[0][..., [2, 1, 0]] if pages[0].ndim == 3 else np.asarray(pages[0])


def extent(array: NDArray[Any]) -> tuple[float, float]:
    """The lowest and the highest finite value; (0, 0) where there is none."""
    if array.dtype.kind == "f":
        array = array[np.isfinite(array)]
    return (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)


def as_rgb(array: NDArray[np.generic], low: float | None = None, high: float | None = None) -> Pixels:
    """(H, W) or (H, W, 3) of any number type -> (H, W, 3) uint8. uint8 passes through; deeper is scaled low..high.

    Without limits the array's own minimum and maximum are used, so that 12 bits in a 16-bit file are not black.
    """
    if array.dtype != np.uint8:
        values = np.nan_to_num(array.astype(np.float32))
        if low is None or high is None:
            low, high = extent(array)
        scale = 255.0 / (high - low) if high > low else 0.0
        array = np.clip((values - low) * scale + 0.5, 0, 255).astype(np.uint8)
    if array.ndim == 2:
        return np.repeat(np.asarray(array, np.uint8)[..., None], 3, axis=2)
    return np.array(array[..., :3], np.uint8, order="C")  # its own memory: a decoder may use its buffer again


def encode_png(pixels: Pixels, level: int = 6) -> bytes:
    """Pixels only: no text chunk, no EXIF, no time. `level` 1 is four times as fast as 6, and a fifth larger."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


CONTRAST = 24  # gray levels from the background on which something is drawn
RIM = 9  # pixels: edges are left out, where resizing and JPEG smear the levels
INNER = 0.2  # share of what is drawn that lies within its rim; bright specks have less
NEAR = 8  # gray levels that JPEG moves a flat area
LEVELS = 3  # that cover what is drawn
FLAT = 0.9  # share of it
VALUES = 8  # distinct values of a label volume, at most


def refuse_labels(pixels: Pixels) -> None:
    """Refused as `label-mask` where (H, W, 3) RGB `pixels` show flat areas of few gray levels and nothing else.

    Of the drawn area without its rim, 99 % lies within NEAR of at most LEVELS gray levels and FLAT of it is even;
    speckle is never both. On 1,501 stills and 959 masks of six data sets: 956 masks, no still.
    """
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    background = np.full_like(gray, np.bincount(gray.ravel(), minlength=256).argmax())
    drawn = (cv2.absdiff(gray, background) > CONTRAST).astype(np.uint8)
    inner = cv2.erode(drawn, np.ones((RIM, RIM), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    if inner.mean() < 1e-3 or inner.sum() < INNER * drawn.sum():
        return
    counts = np.bincount(gray[inner], minlength=256)
    total = counts.sum()
    for _ in range(LEVELS):
        level = int(counts.argmax())
        counts[max(0, level - NEAR) : level + NEAR + 1] = 0
    if counts.sum() > 0.01 * total:
        return
    uneven = cv2.morphologyEx(gray, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    if (uneven[inner] <= NEAR).mean() >= FLAT:
        raise RefusedScan("label-mask", "a drawing of a few flat levels")


def refuse_label_volume(volume: NDArray[np.generic]) -> None:
    """Refused as `label-mask` where a volume of any shape holds two to VALUES distinct values."""
    sample = volume.ravel()[:: max(1, volume.size // 1_000_000)]
    if 1 < np.unique(sample).size <= VALUES:
        raise RefusedScan("label-mask", "a volume of a few values")
