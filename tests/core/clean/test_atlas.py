"""The second look: windows on one sheet, and a vessel that a name touches."""

from __future__ import annotations

import cv2
import numpy as np

from usfmae.core.clean.atlas import packed, probability_within, windows_around
from usfmae.core.clean.ocr import text_probability
from usfmae.core.clean.text import brightest, together
from usfmae.core.clean.verify import apart_from_vessels, left
from usfmae.core.config import CleanSettings
from usfmae.core.types import Pixels


def tissue(height: int = 360, width: int = 480) -> Pixels:
    rng = np.random.default_rng(0)
    gray = np.clip(cv2.GaussianBlur(rng.rayleigh(50, (height, width)), (0, 0), 1.6), 0, 255).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def test_pictures_keep_their_size_and_do_not_overlap_on_the_sheet() -> None:
    sizes = [(int(h), int(w)) for h, w in np.random.default_rng(1).integers(10, 150, (12, 2))]
    places, (height, width) = packed(sizes)
    taken = np.zeros((height, width), int)
    for size, (rows, columns) in zip(sizes, places, strict=True):
        assert (rows.stop - rows.start, columns.stop - columns.start) == size
        assert rows.stop <= height and columns.stop <= width
        taken[rows, columns] += 1
    assert taken.max() == 1


def test_a_name_is_found_at_its_place_from_the_sheet() -> None:
    pixels = tissue()
    cv2.putText(pixels, "GARCIA JOSE", (40, 60), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 2, cv2.LINE_AA)
    cv2.putText(pixels, "1961-04-10", (260, 300), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 1, cv2.LINE_AA)
    look = np.zeros(pixels.shape[:2], bool)
    look[44:64, 40:170] = look[286:304, 260:370] = True
    probability = probability_within(pixels, windows_around(look), brightest, "auto")
    assert (probability[48:60, 45:165] > 0.3).any(0).mean() > 0.8
    assert (probability[288:300, 265:365] > 0.3).any(0).mean() > 0.8
    assert not probability[100:250].any()  # not looked at


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
    kept = together(apart_from_vessels(pixels, [(whole, name), (whole, vessel)], flow, CleanSettings()), flow.shape)
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
    kept = together(apart_from_vessels(pixels, [(np.s_[90:190, 100:300], name)], flow, CleanSettings()), flow.shape)
    assert not kept[152:160, 200:216].any()
    assert kept[letter].all() and kept[165:175, 120:260].all()


def test_what_looks_like_text_in_a_filled_box_is_the_fill() -> None:
    pixels = tissue()
    cv2.putText(pixels, "GARCIA JOSE", (40, 60), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 2, cv2.LINE_AA)
    filled, settings = np.zeros(pixels.shape[:2], bool), CleanSettings()
    probability = text_probability(pixels)
    assert list(left(pixels, probability, filled, settings))
    filled[36:70, 30:200] = True
    assert not list(left(pixels, probability, filled, settings))
