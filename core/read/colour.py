"""DICOM samples to RGB: as declared, unless the samples say otherwise (PS3.3 C.7.6.3.1.2)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, convert_color_space

from usfmae.core.read.raster import as_rgb
from usfmae.core.read.refusal_codes import Unreadable
from usfmae.core.types import Pixels

# Nearly all of an ultrasound picture is gray: in YCbCr both chroma samples then stand at 128, in RGB all are equal.
GRAY_SHARE = 0.6
NEAR = 6


class Converter:
    """Turns decoded frames of one object into (H, W, 3) uint8 RGB."""

    def __init__(self, ds: Dataset, notes: set[str]) -> None:
        self.ds, self.notes = ds, notes
        self.declared = str(ds.get("PhotometricInterpretation") or "")
        self.limits: tuple[float, float] | None = None

    def __call__(self, array: NDArray[Any]) -> Pixels:
        if self.declared == "PALETTE COLOR":
            return self._palette(array)
        if array.ndim == 2:
            return self._gray(array)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype.kind != "u":
            raise Unreadable("unsupported-pixels", "colour with other than three unsigned samples")
        return self._colour(self._eight_bits(array))

    def _palette(self, array: NDArray[Any]) -> Pixels:
        try:
            looked_up = apply_color_lut(array, self.ds)[..., :3]
        except Exception as error:
            raise Unreadable("bad-palette", type(error).__name__) from None
        return as_rgb((looked_up >> self._palette_shift()).astype(np.uint8))

    def _palette_shift(self) -> int:
        """8 where the tables hold 16 bits. Some devices state 16 and fill the lower 8 alone."""
        red = bytes(self.ds.get("RedPaletteColorLookupTableData") or b"")
        stated = int(self.ds.RedPaletteColorLookupTableDescriptor[2])
        upper = red[1::2] if self.ds.original_encoding[1] is not False else red[::2]
        return 8 if stated > 8 and (not upper or max(upper) > 0) else 0

    def _gray(self, array: NDArray[Any]) -> Pixels:
        if self.limits is None and array.dtype != np.uint8:
            self.limits = self._window(array)  # of the first frame, so that a clip does not flicker
        rgb = as_rgb(array, *(self.limits or (None, None)))
        return 255 - rgb if self.declared == "MONOCHROME1" else rgb

    def _window(self, array: NDArray[Any]) -> tuple[float, float]:
        """The header's window (PS3.3 C.11.2.1.2), else the frame's own range."""
        try:
            centre, width = (float(np.atleast_1d(self.ds[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
            if width >= 1:
                return centre - width / 2, centre + width / 2
        except Exception:  # noqa: S110
            pass
        return float(array.min()), float(array.max())

    def _eight_bits(self, array: NDArray[Any]) -> Pixels:
        """The upper 8 of BitsStored bits."""
        if array.dtype == np.uint8:
            return array
        stored = int(self.ds.get("BitsStored") or array.dtype.itemsize * 8)
        return (array >> max(0, stored - 8)).astype(np.uint8)

    def _colour(self, array: NDArray[Any]) -> Pixels:
        # Decoders of JPEG 2000 undo RCT and ICT themselves; those arrays are RGB here.
        declared_ybr = self.declared in ("YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420")
        ybr = is_ybr(array, declared_ybr)
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
