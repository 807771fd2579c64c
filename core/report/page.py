"""One self-contained HTML page: Jinja2 template, inlined style and pictures, no script, nothing fetched."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from usfmae.core import __version__
from usfmae.core.errors import ResourceError
from usfmae.core.files import write_atomic
from usfmae.core.types import Mask, Pixels
from usfmae.core.web.templating import STATIC

_ENVIRONMENT = Environment(
    loader=ChoiceLoader([PackageLoader("usfmae.core.report"), FileSystemLoader(STATIC)]),
    autoescape=select_autoescape(("html",)),
    undefined=StrictUndefined,
    trim_blocks=True,
)


def picture(pixels: Pixels, height: int | None = None) -> Markup:
    """Pixels (H, W) or (H, W, 3) RGB as a data URI, at most `height` pixels high."""
    if height and pixels.shape[0] > height:
        width = max(1, round(pixels.shape[1] * height / pixels.shape[0]))
        pixels = np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    encoded, png = cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    if not encoded:
        raise ResourceError("picture", f"of shape {pixels.shape} could not be encoded", "report this")
    return Markup("data:image/png;base64," + base64.b64encode(png.tobytes()).decode())  # noqa: S704


def overlaid(pixels: Pixels, mask: Mask) -> Pixels:
    """The picture (H, W, 3) with masked pixels tinted red."""
    tinted = pixels.copy()
    tinted[mask] = (tinted[mask] * 0.35 + np.array([229, 72, 77]) * 0.65).astype(np.uint8)
    return tinted


def write_page(path: Path, template: str, **values: Any) -> None:
    """Render `templates/TEMPLATE` to a file, atomically."""
    write_atomic(path, render(template, picture=picture, **values).encode())


def render(template: str, **values: Any) -> str:
    """`templates/TEMPLATE` as text; HTML is escaped, Markdown is not."""
    return _ENVIRONMENT.get_template(template).render(version=__version__, **values)
