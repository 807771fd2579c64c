"""Looking again at the whole of what is kept, and a vessel that a name touches."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from usfmae.core.clean import finding, text
from usfmae.core.clean.finding import Box, Crop, together
from usfmae.core.clean.ocr import text_probability
from usfmae.core.clean.text import apart_from_flow
from usfmae.core.clean.verify import left
from usfmae.core.config import CleanSettings
from usfmae.core.types import Mask, Pixels


def tissue(height: int = 360, width: int = 480) -> Pixels:
    rng = np.random.default_rng(0)
    gray = np.clip(cv2.GaussianBlur(rng.rayleigh(50, (height, width)), (0, 0), 1.6), 0, 255).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def filled_among(pixels: Pixels, candidates: list[Box], flow: Mask) -> Mask:
    crop = Crop(pixels, np.ones(flow.shape, bool), flow)
    boxes, _ = apart_from_flow(crop, candidates, np.zeros(flow.shape, np.float32), CleanSettings())
    return together(boxes, flow.shape)


def test_a_vessel_that_the_box_of_a_name_touches_stays() -> None:
    pixels = tissue()
    flow = np.zeros(pixels.shape[:2], bool)
    flow[100:150, 200:216] = True
    pixels[flow] = (220, 90, 0)
    cv2.putText(pixels, "GARCIA JOSE", (120, 172), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 2, cv2.LINE_AA)
    whole = np.s_[90:190, 100:300]
    name, vessel = np.zeros((100, 200), bool), np.zeros((100, 200), bool)
    name[62:88, 15:170] = True
    vessel[8:64, 95:120] = True  # overlaps the name's box
    kept = filled_among(pixels, [(whole, name), (whole, vessel)], flow)
    assert kept[155:172, 120:260].all()
    assert not kept[flow & (np.arange(360)[:, None] < 150)].any()


def test_a_vessel_that_runs_into_the_box_of_a_name_is_cut_out_of_the_box() -> None:
    pixels = tissue()
    flow = np.zeros(pixels.shape[:2], bool)
    flow[60:160, 200:216] = True
    letter = np.s_[158:166, 130:140]
    flow[letter] = True  # a coloured letter taken for flow lies within its box
    name = np.zeros((100, 200), bool)
    name[62:88, 15:170] = True  # of the picture's rows 152 to 178
    kept = filled_among(pixels, [(np.s_[90:190, 100:300], name)], flow)
    assert not kept[152:160, 200:216].any()
    assert kept[letter].all() and kept[165:175, 120:260].all()


def test_what_looks_like_text_in_a_filled_box_is_the_fill() -> None:
    pixels = tissue()
    cv2.putText(pixels, "GARCIA JOSE", (40, 60), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 2, cv2.LINE_AA)
    filled, settings = np.zeros(pixels.shape[:2], bool), CleanSettings()
    crop = Crop(pixels, ~filled, filled)
    probability = text_probability(pixels)
    assert left(crop, probability, filled, settings)[0]
    filled[36:70, 30:200] = True
    assert not left(crop, probability, filled, settings)[0]


def test_what_the_detector_is_sure_of_and_no_box_fits_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = tissue()
    probability = np.zeros(pixels.shape[:2], np.float32)
    probability[100:180, 100:260] = 0.99  # thicker than any line of text
    monkeypatch.setattr(finding, "overlay_probability", lambda gray: (probability, 0 * probability))
    everywhere = np.ones(pixels.shape[:2], bool)
    assert text.find(Crop(pixels, everywhere, ~everywhere), CleanSettings()).unread == 1
