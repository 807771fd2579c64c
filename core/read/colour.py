"""DICOM samples to RGB: as declared, unless the samples say otherwise (PS3.3 C.7.6.3.1.2)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, convert_color_space

from usfmae.core.read import jpeg
from usfmae.core.read.facts import Unreadable
from usfmae.core.read.raster import as_rgb
from usfmae.core.types import Pixels

# Nearly all of an ultrasound picture is gray: in YCbCr both chroma samples then stand at 128, in RGB all are equal.
YBR = ("YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420")
KNOWN = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_RCT", "YBR_ICT", *YBR)  # PS3.3 C.7.6.3.1.2
GRAY_SHARE = 0.6
NEAR = 6


class Converter:
    """Turns decoded frames of one object into (H, W, 3) uint8 RGB."""

    def __init__(self, ds: Dataset, notes: set[str]) -> None:
        self.ds, self.notes = ds, notes
        self.declared = str(ds.get("PhotometricInterpretation") or "")
        self.slope, self.intercept = self._rescale()
        self.limits = self._window()
        self.tables: tuple[NDArray[np.uint8], int] | None = None

    @property
    def needs_range(self) -> bool:
        """Whether no window says how to scale deep or signed frames: `limits` of the whole object are needed."""
        deep = int(self.ds.get("BitsAllocated") or 8) > 8 or self.ds.get("PixelRepresentation") == 1
        return deep and self.limits is None and self.declared.startswith("MONOCHROME")

    def __call__(self, array: NDArray[Any], stream: bytes = b"") -> Pixels:
        """`stream` is the frame's code stream, where it was one: its markers decide the colour space."""
        if self.declared not in KNOWN:
            raise Unreadable("unsupported-pixels", "HSV, CMYK, ARGB or another retired colour space")
        if self.declared == "PALETTE COLOR" and array.ndim == 2:
            return self._palette(array)
        if array.ndim == 2:
            return self._gray(array)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype.kind != "u":
            raise Unreadable("unsupported-pixels", "colour with other than three unsigned samples")
        return self._colour(self._eight_bits(array), stream)

    # Palettes -------------------------------------------------------------------------------------------------

    def _palette(self, array: NDArray[Any]) -> Pixels:
        """PS3.3 C.7.6.3.1.5: a sample is the number of an entry, counted from the first that is mapped."""
        if self.tables is None:
            try:
                self.tables = self._entries()
            except Exception as error:
                raise Unreadable("bad-palette", type(error).__name__) from None
        table, first = self.tables
        return as_rgb(table[np.clip(array.astype(np.int64) - first, 0, len(table) - 1)])

    def _entries(self) -> tuple[NDArray[np.uint8], int]:
        """((entries, 3) uint8, the sample of the first entry)."""
        count, first, bits = (int(n) for n in self.ds.RedPaletteColorLookupTableDescriptor)
        count = count or 1 << 16
        if "SegmentedRedPaletteColorLookupTableData" in self.ds:
            ramp = np.arange(count, dtype=np.uint16).reshape(1, -1) + first
            columns = list(np.moveaxis(apply_color_lut(ramp.astype(np.uint16), self.ds)[0, :, :3], 1, 0))
        else:
            columns = [
                self._column(bytes(self.ds[f"{name}PaletteColorLookupTableData"].value), count)
                for name in ("Red", "Green", "Blue")
            ]
        deep = columns[0].dtype.itemsize > 1
        # Some devices state 16 bits and fill the lower 8 alone.
        shift = 8 if deep and bits > 8 and any((column >> 8).any() for column in columns) else 0
        return np.stack([(column >> shift).astype(np.uint8) for column in columns], axis=-1), first

    def _column(self, data: bytes, count: int) -> NDArray[Any]:
        """One table: words in the file's byte order, or bytes, two of which are packed into a word."""
        order = "<" if self.ds.original_encoding[1] is not False else ">"
        if len(data) >= 2 * count:
            return np.frombuffer(data, f"{order}u2", count)
        if len(data) - count not in (0, 1):
            raise ValueError("the table is shorter than it states")
        packed = np.frombuffer(data, np.uint8)
        if order == ">":
            packed = packed[: packed.size // 2 * 2].reshape(-1, 2)[:, ::-1].reshape(-1)
        return packed[:count]

    # Gray -----------------------------------------------------------------------------------------------------

    def _gray(self, array: NDArray[Any]) -> Pixels:
        limits = (None, None) if array.dtype == np.uint8 else self.limits or (None, None)
        rgb = as_rgb(array, *limits)
        return 255 - rgb if (self.declared == "MONOCHROME1") != (self.slope < 0) else rgb

    def _rescale(self) -> tuple[float, float]:
        """Slope and intercept that turn stored samples into values (C.11.1); below zero, a slope turns gray around."""
        try:
            slope, intercept = float(self.ds.get("RescaleSlope") or 1), float(self.ds.get("RescaleIntercept") or 0)
        except Exception:
            return 1.0, 0.0
        return (slope, intercept) if np.isfinite([slope, intercept]).all() else (1.0, 0.0)

    def _window(self) -> tuple[float, float] | None:
        """The header's window (PS3.3 C.11.2.1.2), turned back into stored samples (C.11.1); None without one."""
        try:
            centre, width = (float(np.atleast_1d(self.ds[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
        except Exception:
            return None
        if width < 1:
            return None
        ends = sorted((centre + half - self.intercept) / self.slope for half in (-width / 2, width / 2))
        return ends[0], ends[1]

    # Colour ---------------------------------------------------------------------------------------------------

    def _eight_bits(self, array: NDArray[Any]) -> Pixels:
        """The upper 8 of BitsStored bits."""
        if array.dtype == np.uint8:
            return array
        stored = int(self.ds.get("BitsStored") or array.dtype.itemsize * 8)
        return (array >> max(0, stored - 8)).astype(np.uint8)

    def _colour(self, array: NDArray[Any], stream: bytes) -> Pixels:
        # Decoders of JPEG 2000 undo RCT and ICT themselves; those arrays are RGB here.
        declared_ybr = self.declared in YBR
        by_stream = jpeg.is_ybr(stream)
        ybr = is_ybr(array, declared_ybr) if by_stream is None else by_stream
        if ybr != declared_ybr:
            self.notes.add("colour-space-corrected")
        return convert_color_space(array, "YBR_FULL", "RGB") if ybr else as_rgb(array)


def is_ybr(array: NDArray[np.uint8], declared: bool) -> bool:
    """Whether (H, W, 3) samples are YCbCr: as declared, unless the gray of the picture proves the opposite."""
    first, second, third = (array[::2, ::2, c].astype(np.int16) for c in range(3))
    gray_in_ybr = float(((abs(second - 128) <= NEAR) & (abs(third - 128) <= NEAR)).mean())
    gray_in_rgb = float(((abs(first - second) <= NEAR) & (abs(first - third) <= NEAR)).mean())
    if declared:
        return not (gray_in_rgb > GRAY_SHARE and gray_in_ybr < 1 - GRAY_SHARE)
    return gray_in_ybr > GRAY_SHARE and gray_in_rgb < 1 - GRAY_SHARE
