"""Text engines: the PP-OCR detector and recogniser through OpenVINO, Tesseract through its library or its program.

The two networks are files of the `rapidocr` wheel (Apache-2.0); its Python code is not imported. Nothing here looks
at the network: OpenVINO's usage statistics are switched off before it is imported.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from usfmae.core.clean.detector_graph import of_pixels, openvino, streamlined
from usfmae.core.clean.morphology import gray_of
from usfmae.core.config.clean import CleanSettings
from usfmae.core.errors import ResourceError
from usfmae.core.types import Mask, Pixels

Probability = NDArray[np.float32]

_GRID = 32  # the detector takes multiples of this
_STRIP, _STRIP_OF_SMALL = 24, 40  # rows of known words beside a crop, and beside one narrower than _NARROW
_NARROW = 256  # pixels of width
ANCHORS = 2 * _STRIP  # rows that the known words add to a crop
DETECTOR, _RECOGNISER = "PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx"
_DEBIAN_TESSDATA = Path("/usr/share/tesseract-ocr/5/tessdata")


def model_path(name: str) -> Path:
    spec = find_spec("rapidocr")
    path = Path(spec.origin).parent / "models" / name if spec and spec.origin else Path(name)
    if not path.is_file():
        raise ResourceError(
            f"text model {name}", "the rapidocr package does not hold it", "pip install 'rapidocr>=3.8,<4'"
        )
    return path


@lru_cache(maxsize=1)
def _core() -> Any:
    return openvino().Core()


@lru_cache(maxsize=1)
def _fastest() -> str:
    """bf16 pays where the processor multiplies whole tiles of it (AMX); with AVX-512 alone all networks take a quarter to
    two fifths more time in it than in f32."""
    return "bf16" if _has("amx_bf16") else "f32"


@lru_cache(maxsize=4)
def _has(feature: str) -> bool:
    """Whether the processor names this feature."""
    try:
        return feature in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


@lru_cache(maxsize=4)
def _compiled(name: str, precision: str) -> Any:
    model = _core().read_model(str(model_path(name)))
    if name == DETECTOR:
        model = streamlined(model)
    return _request(of_pixels(model), _fastest() if precision == "auto" else precision)


def compiled(path: Path) -> Any:
    """An infer request for the network in a file of OpenVINO's own form, in the arithmetic that is fastest here."""
    return _request(_core().read_model(str(path)), _fastest())


def _request(model: Any, precision: str) -> Any:
    hints = {
        "INFERENCE_NUM_THREADS": 1,  # preparation runs one process per core ...
        "ENABLE_CPU_PINNING": False,  # ... and OpenVINO would pin the calling thread of each of them to the same core
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
    }
    return _core().compile_model(model, "CPU", hints).create_infer_request()


def _run(name: str, precision: str, pixels: Pixels) -> NDArray[np.float32]:
    """A network's answer to RGB pixels (H, W, 3)."""
    request = _compiled(name, precision)
    request.infer([pixels[None]])
    return np.array(request.get_output_tensor(0).data)


@lru_cache(maxsize=16)
def _anchor(width: int, height: int) -> Pixels:
    """Known words (height, width, 3), nearer to the upper edge."""
    strip = np.zeros((height, width, 3), np.uint8)
    for x, word in zip(
        range(8, max(9, width - 4 * height), 6 * height), cycle(("ANCHOR 12345", "SAMPLE 67890")), strict=False
    ):
        cv2.putText(
            strip,
            word,
            (x, 3 * height // 5),
            cv2.FONT_HERSHEY_SIMPLEX,
            height / 45,
            (255, 255, 255),
            height // 20,
            cv2.LINE_AA,
        )
    return strip


def text_probability(pixels: Pixels, precision: str = "auto") -> Probability:
    """Probability of text at each pixel of an RGB crop, (H, W) float32.

    Known words are drawn on strips above and below the crop: with no real text in view the detector fires on speckle
    (59 of 60 clean crops at threshold 0.3), with one strip on 1 of 60, with two on none. Strips of 24 rows do
    as well as strips of 40 (no box on 80 crops, the same text found) at a seventh less time, except on the coarse
    grain of small pictures; strips of 16 do not.
    """
    height, width = pixels.shape[:2]
    strip = _STRIP if width >= _NARROW else _STRIP_OF_SMALL
    padded_width = max(_NARROW, -(-width // _GRID) * _GRID)
    padded_height = -(-(height + 2 * strip) // _GRID) * _GRID
    canvas = np.zeros((padded_height, padded_width, 3), np.uint8)
    words = _anchor(padded_width, strip)
    canvas[:strip], canvas[-strip:] = words, np.roll(words, strip // 4, axis=0)  # both away from the crop
    inside = np.s_[strip : strip + height, :width]
    canvas[inside] = pixels
    logits = _run(DETECTOR, precision, canvas)[0, 0][inside]
    return np.asarray(1 / (1 + np.exp(-logits)), np.float32)


@lru_cache(maxsize=1)
def _alphabet() -> tuple[str, ...]:
    model = _core().read_model(str(model_path(_RECOGNISER)))
    characters = model.get_rt_info(["framework", "character"]).astype(str)
    return ("", *characters.split("\n"), " ")


def recognise(crop: Pixels, precision: str = "auto") -> tuple[str, float]:
    """The line of text the PP-OCR recogniser reads in an RGB crop, and its mean confidence."""
    height, width = crop.shape[:2]
    scaled = max(48, min(960, round(width * 48 / max(1, height))))
    canvas = np.zeros((48, -(-scaled // 80) * 80, 3), np.uint8)
    canvas[:, :scaled] = cv2.resize(crop, (scaled, 48), interpolation=cv2.INTER_LINEAR)
    scores = _run(_RECOGNISER, precision, canvas)[0]  # (T, characters)
    best = scores.argmax(1)
    confidence = scores[np.arange(len(best)), best]
    alphabet = _alphabet()
    # Greedy CTC: drop repeats, then blanks (index 0).
    keep = (best != 0) & np.concatenate([[True], best[1:] != best[:-1]])
    text = "".join(alphabet[i] for i in best[keep] if i < len(alphabet))
    return text.strip(), float(confidence[keep].mean()) if keep.any() else 0.0


@lru_cache(maxsize=1)
def _tesseract_library() -> Any:
    try:
        import tesserocr
    except ImportError:
        raise ResourceError(
            "text engine tesserocr",
            "the package is not installed",
            "pip install tesserocr, or set clean.ocr=pytesseract",
        ) from None
    folder = Path(os.environ.get("TESSDATA_PREFIX", _DEBIAN_TESSDATA))
    if not (folder / "eng.traineddata").is_file():
        raise ResourceError(
            f"Tesseract language data in {folder}", "eng.traineddata is absent", "apt install tesseract-ocr-eng"
        )
    return tesserocr.PyTessBaseAPI(path=str(folder), lang="eng", psm=tesserocr.PSM.SINGLE_LINE)


def _with_library(gray: Pixels) -> tuple[str, float]:
    from PIL import Image

    library = _tesseract_library()
    library.SetImage(Image.fromarray(gray))
    library.SetSourceResolution(96)
    return library.GetUTF8Text().strip(), library.MeanTextConf() / 100


def check_ocr(engine: str) -> None:
    """ResourceError before the first scan, rather than at the first doubt, where Tesseract is not usable."""
    if engine == "tesserocr":
        _tesseract_library()
    if shutil.which("tesseract") is None:
        raise ResourceError("program tesseract", "not installed", "apt install tesseract-ocr")


def tesseract_data(gray: Pixels, config: str) -> dict[str, list[Any]]:
    """Words, boxes and confidences from the Tesseract program, as pytesseract's dictionary."""
    import pytesseract

    # More threads than one cost more than they bring on a page this small.
    os.environ.setdefault("OMP_THREAD_LIMIT", "1")
    try:
        words: dict[str, list[Any]] = pytesseract.image_to_data(
            gray, config=config, output_type=pytesseract.Output.DICT
        )
        return words
    except pytesseract.TesseractNotFoundError:
        raise ResourceError("program tesseract", "not installed", "apt install tesseract-ocr") from None


def _with_program(gray: Pixels) -> tuple[str, float]:
    data = tesseract_data(gray, "--psm 7")
    words = [(t.strip(), float(c)) for t, c in zip(data["text"], data["conf"], strict=True) if t.strip()]
    return " ".join(t for t, _ in words), float(np.mean([c for _, c in words])) / 100 if words else 0.0


def tesseract_line(crop: Pixels, engine: str) -> tuple[str, float]:
    """The line Tesseract reads in an RGB crop (dark on light, enlarged to 40 px), and its confidence 0..1."""
    gray = gray_of(crop)
    scale = 40 / max(1, gray.shape[0])
    enlarged = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    page = cast(Pixels, cv2.copyMakeBorder(255 - enlarged, 8, 8, 8, 8, cv2.BORDER_REPLICATE))
    return _with_library(page) if engine == "tesserocr" else _with_program(page)


def letters(text: str) -> str:
    """Letters and digits only, for counting and comparing what was read."""
    return re.sub(r"[\W_]+", "", text)


_SURE = 0.7  # confidence of a reading that needs no other sign
_LIKE = 0.6  # share of letters in common from which a reading is taken for a word of the header
_UPRIGHT = 1.5  # a box so many times longer than high is not read across


def is_text(crop: Pixels, settings: CleanSettings, words: Sequence[str] = ()) -> bool:
    """True where the second engine reads two letters with confidence, or something like one of the header's words."""
    text, confidence = tesseract_line(crop, settings.ocr)
    return (len(letters(text)) >= 2 and confidence > 0.5) or resembles(text, words)


def resembles(text: str, words: Sequence[str]) -> bool:
    """Whether a reading, however doubtful, is like a name, id or date that the header states."""
    read = letters(text).lower()
    if len(read) < 3:
        return False
    return any(SequenceMatcher(None, read, letters(w).lower(), autojunk=False).ratio() >= _LIKE for w in words)


def is_word(crop: Pixels, settings: CleanSettings, turned: bool = False) -> bool:
    """Whether either engine reads a word of two letters with great confidence; in a vessel Tesseract now and then reads
    two with a little. Where `turned`, also in the crop turned by quarters and mirrored."""
    line, confidence = tesseract_line(crop, settings.ocr)  # five times quicker than the recogniser
    if len(letters(line)) >= 2 and confidence >= _SURE:
        return True
    readings = (recognise(view, settings.precision) for view in (orientations(crop) if turned else (crop,)))
    return any(len(letters(line)) >= 2 and confidence >= _SURE for line, confidence in readings)


def orientations(crop: Pixels) -> Iterator[Pixels]:
    """The crop (H, W, 3) as a line of text may stand in it: of the eight ways to turn and mirror it those that lie
    along its longer side."""
    height, width = crop.shape[:2]
    quarters = [q for q in range(4) if (height, width)[q % 2] < _UPRIGHT * (width, height)[q % 2]]
    for quarter in quarters:
        view = np.rot90(crop, quarter)
        yield np.ascontiguousarray(view)
        yield np.ascontiguousarray(view[:, ::-1])


def sparse_words(crop: Pixels, thickest: float) -> Mask:
    """Boxes (H, W) of scattered words that the second engine reads with confidence in a larger area."""
    mask = np.zeros(crop.shape[:2], bool)
    data = tesseract_data((255 - gray_of(crop)).astype(np.uint8), "--psm 11")
    fields = ("text", "conf", "left", "top", "width", "height")
    for word, confidence, x, y, width, height in zip(*(data[name] for name in fields), strict=True):
        if len(letters(word)) >= 2 and float(confidence) > 50 and min(width, height) <= thickest:
            mask[max(0, y - 2) : y + height + 2, max(0, x - 2) : x + width + 2] = True
    return mask
