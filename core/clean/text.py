"""Text over tissue: the anchored detector, its boxes filled whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from usfmae.core.clean.colour import FAINT_CHROMA
from usfmae.core.clean.finding import Box, Crop, Finding, together
from usfmae.core.clean.graphics import CONTRAST, ridge
from usfmae.core.clean.morphology import bounds, brightest_of, channel_difference, components, dilated, labelled
from usfmae.core.clean.ocr import Probability, is_word, text_probability
from usfmae.core.config.clean import CleanSettings
from usfmae.core.types import Mask, Pixels

THICKEST = 48  # pixels, before growing; a line of text on a screen is thinner
_LINE = 2.0  # a line of text is so many times longer than high
_GOES_ON = 1.0  # heights by which a suspected text may go on at its ends
_SMALLEST, _SMALLEST_FAINT = 6, 60  # pixels of a text that is sure, and of a suspected one
_PAD = 40  # pixels around a component in which its box grows
_UNCLIP = 1.6  # the detector finds shrunken text; its authors grow it by this factor of area / perimeter
_MEAN, _SURE = 0.4, 0.5  # mean probability of a box, and of one that is text beyond the detector's doubt
_ZOOM, _NEAR_FLOW, _LARGE_FLOW = (
    2.0,
    16,
    0.4,
)  # flow is looked at so much larger; pixels around it; less where it is large
_SECOND = 0.75  # of the size at which verification looks
_SMALL, _SMALL_ZOOM = 320, 1.5  # pixels of the longer side of a small picture, whose print is looked at enlarged
SURE_DRAWN, _DOUBTED_DRAWN, _GOES_ON_DRAWN = 0.968, 0.9, 0.4  # the overlay network's probabilities of a line
SMALLEST_DRAWN, SMALLEST_LARGE = (
    24,
    768,
)  # pixels of which it is so sure, and where it saw them at a quarter of the size
_FILLED = 0.5  # share of a place within what was filled from which it is the fill's doing
_CORE = 0.05  # share of a line that the network is sure of; streaks of tissue that it merely suspects have less
_NUMBER, _DOUBTED_NUMBER, _THIN = 300, 0.7, 16  # pixels of one or two signs; probability; gray levels of their strokes
_GOES_ON_OTHER, _SAME_PLACE = 0.8, 0.3  # the same in smaller views and in colour; share of a place that was seen before
_PAGE = 0.1  # share of a crop above which text is doubted: five lines over tissue take 0.03, a page of speckle 0.2
_VESSEL = 0.15  # share of flow in a box; a name beside a vessel has less, a vessel taken for text more
_INK = 0.1  # share of thin bright detail in a box that is print; in a dotted line's it is a tenth, in a name's a third

_INK_OF_SURE, _BEYOND_DOUBT = 0.02, 0.98  # the same where the overlay network is sure: digits of a ruler

_ALIKE, _ONE_COLOUR = 20, 0.7  # levels by which one colour varies; share of such pixels in letters of one colour

_STROKE = 7  # pixels; a letter's strokes are thinner and stand out in the top-hat, tissue is not
_AROUND = 31  # pixels over which the strength of that detail is evened
_LEVEL, _GAIN = 40.0, 12.0  # gray levels that the mean detail is brought to, and by what factor at most


def sharpened(pixels: Pixels) -> Pixels:
    """The first look's view of (H, W, 3), or of one channel (H, W): the white top-hat, evened by its strength around.

    Coloured print keeps its contrast in one of the channels; faint print in a dark far field comes out as clearly as
    white print on bright tissue.
    """
    detail = cv2.morphologyEx(pixels, cv2.MORPH_TOPHAT, np.ones((_STROKE, _STROKE), np.uint8))
    strongest = detail if detail.ndim == 2 else brightest_of(detail.astype(np.uint8))
    mean = cv2.blur(strongest.astype(np.float32), (_AROUND, _AROUND))
    gain = np.clip(_LEVEL / np.maximum(mean, 1e-3), 1.0, _GAIN).astype(np.float32)
    gains = gain if detail.ndim == 2 else cv2.merge([gain] * 3)
    return cv2.multiply(detail, gains, dtype=cv2.CV_8U).astype(np.uint8)  # saturates at 255


def lifted(pixels: Pixels) -> Pixels:
    """The view of verification (H, W, 3): colours as they are, dark levels raised (a square root), dark print stays."""
    levels = (255 * np.sqrt(np.arange(256) / 255)).round().astype(np.uint8)
    return cv2.LUT(pixels, levels).astype(np.uint8)


def near_flow(crop: Crop, settings: CleanSettings) -> tuple[Probability, Mask]:
    """Text probability (H, W) on and beside colour flow, 0 elsewhere, and where that was looked at (H, W).

    Flow is full of coloured edges that look like strokes. The general detector looks at it enlarged in the sharpened
    view: there letters stay letters, and the edges of vessels are too smooth for any.
    """
    probability = np.zeros(crop.flow.shape, np.float32)
    near = dilated(crop.flow, _NEAR_FLOW) & crop.inside if crop.flow.any() else crop.flow
    if near.any():
        rows, columns = bounds(near)
        window = sharpened(crop.pixels[rows, columns])
        zoom = _ZOOM if window[:, :, 0].size < _LARGE_FLOW * near.size else _ZOOM * 0.75
        closer = _enlarged_probability(window, zoom, settings)
        probability[rows, columns] = np.where(near[rows, columns], closer, 0)
    return probability, near


def _enlarged_probability(view: Pixels, zoom: float, settings: CleanSettings) -> Probability:
    """Text probability (H, W) of a view that the detector sees `zoom` times as large."""
    if zoom == 1.0:
        return text_probability(view, settings.precision)
    smooth = cv2.INTER_CUBIC if zoom > 1 else cv2.INTER_AREA
    large = cv2.resize(view, None, fx=zoom, fy=zoom, interpolation=smooth).astype(np.uint8)
    small = cv2.resize(text_probability(large, settings.precision), view.shape[1::-1])
    return small.astype(np.float32, copy=False)


def mixed(pixels: Pixels) -> Pixels:
    """The view of verification (H, W, 3): the sharpened and the lifted view as channels of one picture, so that one pass
    sees white, dark and faint print."""
    bright = brightest_of(pixels)
    detail, levels = sharpened(bright), lifted(bright)
    return cv2.merge([detail, levels, detail]).astype(np.uint8)


def second_look(crop: Crop, settings: CleanSettings) -> Probability:
    """Text probability (H, W) of a crop in the mixed view.

    Now and then the detector takes fine speckle within black corners for a page of print, and now and then the same
    speckle within filled corners. What looks like a page is looked at in more ways, and only what is text in all of
    them is text.
    """
    small = max(crop.flow.shape) < _SMALL
    probability = _enlarged_probability(mixed(crop.pixels), _SMALL_ZOOM if small else _SECOND, settings)
    if not _is_page(probability, settings):
        return probability
    full = crop.pixels.copy()
    full[~crop.inside] = crop.pixels[crop.inside].mean(0).round().astype(np.uint8)
    for view in (lifted(full), full, sharpened(crop.pixels)):
        probability = np.minimum(probability, text_probability(view, settings.precision))
        if not _is_page(probability, settings):
            break
    return probability


def _is_page(probability: Probability, settings: CleanSettings) -> bool:
    doubted = probability > settings.doubt_threshold
    return bool(doubted.mean() > _PAGE) or any(is_blob(part) for _, part in components(doubted))


def drawn_lines(
    probability: Probability, sure: float = SURE_DRAWN, goes_on: float = _GOES_ON_DRAWN, smallest: int = SMALLEST_DRAWN
) -> tuple[list[Box], list[Box]]:
    """Lines of text that the overlay network sees in a probability (H, W), each as far as it suspects it to go on; and
    the places that are thicker than any line though it is sure of them."""
    lines: list[Box] = []
    thick: list[Box] = []
    for window, part in components(probability > goes_on, pad=_PAD):
        core = part & (probability[window] > sure)
        if core.sum() >= max(smallest, _CORE * part.sum()):
            (thick if is_blob(core) else lines).append((window, dilated(part, 2)))
    return lines, thick


def numbers(probability: Probability, pixels: Pixels) -> list[Box]:
    """Places no larger than a number of two figures that the overlay network suspects in a probability (H, W), and where
    thin bright detail stands in an RGB crop. The network is hardly ever sure of a single figure beside a caliper; so
    small a place may be filled on less."""
    detail = ridge(brightest_of(pixels)) > _THIN
    return [
        (window, dilated(part, 2))
        for window, part in components(probability > _GOES_ON_DRAWN, pad=4, smallest=_SMALLEST)
        if part.sum() <= _NUMBER
        and probability[window][part].max() > _DOUBTED_NUMBER
        and detail[window][part].mean() > _INK
    ]


def sees_text(probability: Probability, filled: Mask, smallest: int = SMALLEST_DRAWN) -> bool:
    """Whether the overlay network is sure of text anywhere in a probability (H, W) but in what was filled (H, W)."""
    if probability.max() <= SURE_DRAWN:
        return False
    lines, thick = drawn_lines(probability, smallest=smallest)
    return any(not is_fill(filled, box) for box in lines + thick)


def is_fill(filled: Mask, box: Box) -> bool:
    """Whether a place lies for the most part in what was filled (H, W): nothing of the original is left there, and what
    looks like text is the fill."""
    window, part = box
    return bool(filled[window][part].mean() > _FILLED)


def other_lines(views: Sequence[Probability], lines: list[Box]) -> tuple[list[Box], int]:
    """Lines that the overlay network sees in other views (H, W) than the first, outside of the lines seen there; and
    how many places it is as sure of there that are thicker than any line."""
    unread = 0
    for view in views:
        covered = together(lines, view.shape)
        more, thick = drawn_lines(view, goes_on=_GOES_ON_OTHER)
        lines = lines + [each for each in more if covered[each[0]][each[1]].mean() < _SAME_PLACE]
        unread += sum(covered[window][part].mean() < _SAME_PLACE for window, part in thick)
    return lines, unread


def doubted_lines(crop: Crop, probability: Probability, settings: CleanSettings) -> list[Box]:
    """Lines that the overlay network doubts and in which an engine reads something: tissue that a codec has cut into
    blocks looks like print now and then, and no engine reads it."""
    sure = together(drawn_lines(probability)[0], probability.shape)
    doubted = [
        (window, box) for window, box in drawn_lines(probability, _DOUBTED_DRAWN)[0] if not sure[window][box].any()
    ]
    return [(window, box) for window, box in doubted if is_word(crop.pixels[window][bounds(box)], settings)]


def grown(component: Mask, along: float = 0.0) -> Mask:
    """The rotated box around a component (H, W), grown to the full text, and longer by `along` heights at its ends."""
    points = cv2.findNonZero(component.astype(np.uint8))
    (x, y), (w, h), angle = cv2.minAreaRect(points)
    margin = _UNCLIP * (w * h) / max(1.0, 2 * (w + h)) + 1
    w, h = (w + 2 * along * h, h) if w > h else (w, h + 2 * along * w)
    box = cv2.boxPoints(((x, y), (w + 2 * margin, h + 2 * margin), angle))
    drawn = np.zeros(component.shape, np.uint8)
    cv2.fillConvexPoly(drawn, box.round().astype(np.int32), 1)
    return drawn > 0


def boxes(probability: Probability, threshold: float) -> Iterator[Box]:
    """Text boxes: components above `threshold` that are so on the whole and no thicker than a line of text."""
    for window, part in components(probability > threshold, pad=_PAD):
        if part.sum() >= _SMALLEST and probability[window][part].mean() >= _MEAN and not is_blob(part):
            yield window, grown(part)


def is_blob(component: Mask) -> bool:
    """Whether a component is thicker than any line of text: evened speckle, not print."""
    points = cv2.findNonZero(component.astype(np.uint8))
    return bool(min(cv2.minAreaRect(points)[1]) > THICKEST)


def _is_line(component: Mask) -> bool:
    """Whether a suspected component is large and long enough for a line of text."""
    height, length = sorted(cv2.minAreaRect(cv2.findNonZero(component.astype(np.uint8)))[1])
    return bool(component.sum() >= _SMALLEST_FAINT and length > _LINE * height)


def words(probability: Probability, settings: CleanSettings) -> tuple[list[Box], list[Box]]:
    """Text in a probability (H, W): what the detector is sure of; and how far it suspects that this goes on, and what
    it only suspects. With known words in view it suspects next to nothing in clean tissue, and a tenth of the
    low-contrast strings are only suspected."""
    sure_boxes, faint = list(boxes(probability, settings.text_threshold)), []
    sure = together(sure_boxes, probability.shape)
    for window, part in components(probability > settings.faint_threshold, pad=_PAD):
        if is_blob(part):
            continue
        if (sure[window] & part).any():
            faint.append((window, dilated(part, 2)))
        elif _is_line(part) and probability[window][part].max() > settings.doubt_threshold:
            faint.append((window, grown(part, _GOES_ON)))
    return sure_boxes, faint


def apart_from_flow(
    crop: Crop, candidates: Sequence[Box], probability: Probability, settings: CleanSettings
) -> tuple[list[Box], int]:
    """The boxes that are to be filled, and how many are text for sure though no engine reads them.

    A box with little colour flow is text; a vessel that only runs into it is cut out of it. One with much is text where
    an engine reads a word in it, however it is turned or mirrored. Where none does and the detector is sure all the
    same, a person decides: letters in a script that no engine knows look like this, and so may a vessel.
    """
    beyond = _beyond(crop.flow, candidates)
    to_fill, unread = [], 0
    for window, box in candidates:
        if (crop.flow[window] & box).sum() < _VESSEL * box.sum():
            to_fill.append((window, box & ~beyond[window]))
        elif is_word(crop.pixels[window][bounds(box)], settings, turned=True):
            to_fill.append((window, box))
        elif _mean_above(probability[window][box], settings.text_threshold) > _SURE:
            unread += 1
    return to_fill, unread


def _thick(probability: Probability, settings: CleanSettings) -> int:
    """How many places are thicker than any line of text though the detector is sure of them: large print, or letters
    among the edges of colour flow. No box could be drawn around them."""
    parts = components(probability > settings.text_threshold, smallest=_SMALLEST_FAINT)
    return sum(is_blob(part) and float(probability[window][part].mean()) > _SURE for window, part in parts)


def letters_like_flow(crop: Crop, near: Mask, lines: Sequence[Box]) -> int:
    """How many places on colour flow look like text in their colour, outside the lines found so far: large letters are
    as thick as vessels, but all of one colour laid over gray tissue, which no flow is."""
    probability = np.where(near, crop.coloured_text, np.float32(0))
    covered = together(lines, near.shape)
    red, green, blue = (plane.astype(np.int16) for plane in cv2.split(crop.pixels))
    places = 0
    for window, part in components(probability > SURE_DRAWN, smallest=SMALLEST_DRAWN):
        ink = part & (channel_difference(crop.pixels[window]) > FAINT_CHROMA)
        if not ink.any() or covered[window][part].mean() > _SAME_PLACE:
            continue
        apart = np.stack([(red - green)[window][ink], (green - blue)[window][ink]])
        near_middle = np.abs(apart - np.median(apart, axis=1, keepdims=True)).max(0) < _ALIKE
        places += bool(near_middle.mean() > _ONE_COLOUR)
    return places


def _mean_above(values: Probability, threshold: float) -> float:
    above = values[values > threshold]
    return float(above.mean()) if len(above) else 0.0


def _beyond(flow: Mask, candidates: Sequence[Box]) -> Mask:
    """Flow (H, W) in parts that lie outside of all boxes for the most part: a vessel does, a coloured letter not."""
    if not candidates or not flow.any():
        return np.zeros(flow.shape, bool)
    count, labels, stats, _ = labelled(flow)
    within = np.bincount(labels[together(candidates, flow.shape)], minlength=count)
    vessel = within < 0.5 * stats[:, cv2.CC_STAT_AREA]
    vessel[0] = False
    return vessel[labels]


def find(crop: Crop, settings: CleanSettings) -> Finding:
    """Text over the tissue of a crop. Certain is what stands out as print does; the rest is where an engine reads it."""
    beside_flow, near = near_flow(crop, settings)
    print_ = ridge(brightest_of(crop.pixels)) > CONTRAST
    drawn, large, coloured = (
        np.where(near, np.float32(0), seen) for seen in (crop.overlay[0], crop.large_text, crop.coloured_text)
    )
    lines, thick = drawn_lines(drawn)
    blocks = [(window, part) for window, part in thick if print_[window][part].mean() > _INK]  # lines close together
    lines, unread = other_lines((large, coloured), lines + blocks)
    unread += len(thick) - len(blocks)
    lines += doubted_lines(crop, drawn, settings) + numbers(drawn, crop.pixels)
    sure, faint = words(beside_flow, settings)
    for candidates in (sure, faint):
        apart, unread_here = apart_from_flow(crop, candidates, beside_flow, settings)
        lines, unread = lines + apart, unread + unread_here
    unread += _thick(beside_flow, settings) + letters_like_flow(crop, near, lines)
    plain = [
        (window, box)
        for window, box in lines
        if (share := (print_[window] & box).sum() / box.sum()) > _INK
        or (share > _INK_OF_SURE and crop.overlay[0][window][box].max() > _BEYOND_DOUBT)
    ]
    certain = together(plain, crop.flow.shape)
    doubtful = [each for each in lines if not certain[each[0]][each[1]].all()]
    return Finding(together(lines, crop.flow.shape), certain, doubtful, unread)
