"""The published pipeline, for reproduction: it removes banners, and it is known to harm colour flow."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest

from usfmae.core.clean import clean
from usfmae.core.clean.ocr import recognise
from usfmae.core.config import CleanSettings
from usfmae.core.types import CleanImage

pytestmark = pytest.mark.skipif(shutil.which("tesseract") is None, reason="the program tesseract is not installed")


def test_banner_text_goes_and_flow_does_too() -> None:
    pixels = np.zeros((240, 400, 3), np.uint8)
    cv2.putText(pixels, "MILLER ANNA 1961", (40, 40), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 255), 2, cv2.LINE_AA)
    pixels[100:220, 60:340] = np.random.default_rng(0).integers(30, 90, (120, 280, 1), dtype=np.uint8)
    pixels[140:180, 150:220] = (220, 60, 0)
    result = clean(pixels, CleanSettings(profile="paper"))
    assert isinstance(result, CleanImage)
    assert "MILLER" not in recognise(result.pixels[14:52, 30:330])[0]
    assert result.mask[145:175, 155:215].mean() > 0.5
