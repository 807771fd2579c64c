"""Still pictures: PNG, JPEG, BMP, TIFF, with 8 or 16 bits, through Pillow (cv2 where Pillow would lose bits)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from usfmae.core.config.read import ReadSettings
from usfmae.core.read.header import Facts, check_size
from usfmae.core.read.label_masks import refuse_labels
from usfmae.core.read.refusal_codes import guarded
from usfmae.core.read.source import opened
from usfmae.core.types import Frame, Pixels, Scan

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")

# Our own limit is checked on the header; Pillow's warning would come after it.
Image.MAX_IMAGE_PIXELS = None


def recognises(head: bytes) -> bool:
    return head.startswith(MAGIC) and (head[:2] != b"BM" or len(head) > 26)


def _open(file: BinaryIO) -> Image.Image:
    with guarded("unreadable"):  # Pillow raises OSError, SyntaxError, struct.error, ... on damaged headers
        return Image.open(file, formats=FORMATS)


def facts(scan: Scan, settings: ReadSettings) -> Facts:
    with opened(scan, settings) as file:
        image = _open(file)
        pages = int(getattr(image, "n_frames", 1)) if image.format == "TIFF" else 1
        check_size(image.width, image.height, pages, settings)
        return Facts(image.format or "raster", pages, pages)


def frames(
    scan: Scan, settings: ReadSettings, notes: set[str], failed: dict[int, str] | None = None
) -> Iterator[Frame]:
    """One Frame, or one per page of a TIFF. Raises Refused where it is a label mask."""
    with opened(scan, settings) as file:
        image = _open(file)
        pages = int(getattr(image, "n_frames", 1)) if image.format == "TIFF" else 1
        limits: tuple[float, float] | None = None
        for page in range(pages):
            image.seek(page)
            check_size(image.width, image.height, pages, settings)
            samples = _samples(image, file, page)
            if limits is None and samples.dtype != np.uint8:
                limits = extent(samples)  # of the first page: all share one scale
            pixels = as_rgb(samples, *(limits or (None, None)))
            refuse_labels(pixels)
            yield Frame(pixels, scan.trail, page)


def _samples(image: Image.Image, file: BinaryIO, page: int) -> NDArray[Any]:
    """The current page, (H, W) or (H, W, 3) RGB of any depth; transparency is dropped, EXIF is not looked at."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return np.asarray(image)
    if _deep_colour(image):
        deep = _decode_cv2(file, page)
        if deep is not None:
            return deep
    return np.asarray(image.convert("RGB"))


def _deep_colour(image: Image.Image) -> bool:
    """Colour with 16 bits a sample, of which Pillow keeps the upper half only."""
    if image.format == "PNG":
        return "16B" in str(getattr(image, "tile", ""))
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(258, ())  # BitsPerSample
        return len(bits) >= 3 and max(bits) > 8
    return False


def _decode_cv2(file: BinaryIO, page: int) -> NDArray[Any] | None:
    file.seek(0)
    data = np.frombuffer(file.read(), np.uint8)
    decoded, pages = cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED, range=(page, page + 1))
    if not decoded:
        return None
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


def encode_png(pixels: Pixels) -> bytes:
    """Pixels only: no text chunk, no EXIF, no time."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
