"""Writes the overlay network of cleaning in eight bits, as it is used: half the time of single precision, and more.

    python benchmarks/quantise_overlay.py benchmarks/weights/overlay.xml core/clean/weights/overlay.xml [--data FOLDER]

The first file is what `train_overlay.py` wrote. The range of each layer is taken from pictures of the tuning half (POCUS and
BUS-BRA), every second with overlays drawn on it, at three sizes. Needs `pip install nncf`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import cv2
import nncf
import numpy as np
import overlays
import scans
from numpy.typing import NDArray

from usfmae.core.clean.morphology import brightest_of
from usfmae.core.clean.ocr import openvino
from usfmae.core.clean.overlay_net import features

PICTURES, SIZES, LARGEST, GRID = 90, (1, 0.75, 0.5), 400, 8
DATASETS = ("pocus_frames", "bus_bra")


def example(source: scans.Source, number: int) -> NDArray[np.float32]:
    """What the network sees of a picture, (1, 2, H, W)."""
    pixels = scans.still(source)
    if number % 2:
        pixels = overlays.paint(pixels, np.random.default_rng((9, number)), "tuning").pixels
    size = SIZES[number % len(SIZES)]
    gray = cv2.resize(brightest_of(pixels), None, fx=size, fy=size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    height, width = (min(LARGEST, side - side % GRID) for side in gray.shape)
    return features(np.ascontiguousarray(gray[:height, :width]))[None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("USFMAE_TEST_DATA", "../shared/data")))
    options = parser.parse_args()
    sources = [source for source in scans.sources(options.data, "tuning") if source.dataset in DATASETS]
    chosen = sources[:: max(1, len(sources) // PICTURES)][:PICTURES]
    examples = [example(source, number) for number, source in enumerate(chosen)]
    network = openvino().Core().read_model(options.network)
    small = nncf.quantize(
        network,
        nncf.Dataset(examples),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(examples),
    )
    openvino().save_model(small, options.out, compress_to_fp16=True)
    print(f"{options.out}: eight bits, ranges of {len(examples)} pictures")


if __name__ == "__main__":
    main()
