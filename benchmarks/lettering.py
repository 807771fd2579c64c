"""Made-up names, numbers and labels, and how they look in many type faces."""

# ruff: noqa: SIM905
from __future__ import annotations

import functools
import subprocess

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Rng = np.random.Generator

# Faces of the halves differ, as the patients do.
FACES = {
    "tuning": ("DejaVuSans", "DejaVuSansMono-Bold", "LiberationSans-Regular", "FreeSerif", "Roboto-Medium", "FreeMono"),
    "scoring": (
        "LiberationSans-Bold", "LiberationMono-Regular", "Roboto-Regular", "OpenSans-Semibold", "Hack-Regular",
        "FreeSans", "DejaVuSansCondensed", "DejaVuSerif", "Carlito-Regular", "RobotoCondensed-Regular",
    ),
    "fresh": (
        "LiberationSerif-Regular", "OpenSans-Regular", "RobotoCondensed-Bold", "FreeSansBold", "Hack-Bold",
        "LiberationSansNarrow-Regular", "Carlito-Bold", "DejaVuSerifCondensed",
    ),
}  # fmt: skip
FAMILY = tuple(
    "Müller Nguyen Ångström Żółkiewski O'Brien Sørensen Çelik García Dvořák Smith Johansson Ferrão Kowalska "
    "Lefèvre Öztürk Hernández Papadopoulos Schröder Bianchi Yılmaz Novák Björk Núñez Martin".split()
)
GIVEN = tuple(
    "Anna José Zoë Łukasz Marie-Ève Jürgen Inês François Søren Aylin Peter Noémie Tomáš Sofía Karin Émile".split()
)
CLINIC = ("St. Mary Hospital", "Universitätsklinik", "CHU Orléans", "Hôpital Nord", "Klinikum Süd", "WESTWAY MEDICAL")
LABELS = ("LEFT KIDNEY", "RT LOBE", "LIVER SAG", "TRANSVERSE", "MAMA DIREITA", "Gallbladder", "LONG AXIS", "Ovary L")
PARAMETERS = ("MI 1.2", "TIS 0.4", "Gn 68", "DR 70dB", "FR 43 Hz", "D 12.0cm", "C5-1 Abd", "2D 61%", "Dist 2.31 cm")


@functools.lru_cache(maxsize=1)
def _font_files() -> dict[str, str]:
    listed = subprocess.run(["fc-list", ":", "file"], capture_output=True, text=True, check=True).stdout
    files = [line.split(":")[0] for line in listed.splitlines()]
    return {f.rsplit("/", 1)[-1].rsplit(".", 1)[0]: f for f in files}


@functools.lru_cache(maxsize=256)
def face(name: str, size: int) -> ImageFont.FreeTypeFont:
    files = _font_files()
    if name not in files:
        raise SystemExit(f"font {name} is absent: apt install fonts-liberation fonts-freefont-ttf fonts-roboto-unhinted"
                         " fonts-open-sans fonts-hack fonts-crosextra-carlito fonts-dejavu")  # fmt: skip
    return ImageFont.truetype(files[name], size)


def words(rng: Rng, identifier: bool) -> str:
    """A made-up name, date, number or clinic; or a label."""
    if not identifier:
        return str(rng.choice(LABELS + PARAMETERS))
    day, month, year = rng.integers(1, 29), rng.integers(1, 13), rng.integers(1930, 2025)
    name, given = str(rng.choice(FAMILY)), str(rng.choice(GIVEN))
    forms = (
        f"{name}, {given}", f"{name.upper()} {given.upper()}", f"{name}^{given}", f"{day:02}.{month:02}.{year}",
        f"{year}-{month:02}-{day:02}", f"ID {rng.integers(10**6, 10**8)}", f"DOB {month:02}/{day:02}/{year}",
        str(rng.choice(CLINIC)), f"MRN{rng.integers(10**5, 10**7)}",
    )  # fmt: skip
    return str(rng.choice(forms))


def glyphs(rng: Rng, text: str, half: str, low: int, high: int) -> NDArray[np.float32]:
    """Coverage (h, w) 0..1 of a rendered string, smooth or hard-edged."""
    font = face(str(rng.choice(FACES[half])), int(rng.integers(low, high + 1)))
    left, top, right, bottom = (int(v) for v in font.getbbox(text))
    canvas = Image.new("L", (right - left + 2, bottom - top + 2))
    draw = ImageDraw.Draw(canvas)
    draw.fontmode = "1" if rng.random() < 0.25 else "L"
    draw.text((1 - left, 1 - top), text, fill=255, font=font)
    return np.asarray(canvas, np.float32) / 255
