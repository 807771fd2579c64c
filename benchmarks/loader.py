"""Training images per second and core from a packed corpus, against the official notebook's transforms on 224 PNG.

    python benchmarks/loader.py --json

Both run on one thread and are measured in CPU time, in alternated rounds, so that a busy machine does not decide.
With 2 % of colour, and as a CPU whose GPU augments out of its own memory is left with it, beside.
`ratio_vs_official` is what the training loop consumes: uint8 batches (normalised on the device), fetched, rotated,
flipped and cropped. `data_wait` is the share of a real training step (the given preset, CPU) spent waiting.
Images are simulated speckle; decoding time depends on the picture, so `--images DIR` takes real ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision import transforms as T

from usfmae.core.corpus.augment import augment
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.loader import Loader
from usfmae.core.corpus.shard import square, write_shard
from usfmae.core.mae.device_batches import DeviceLoader, ResidentCorpus, normalise
from usfmae.core.mae.model import fresh
from usfmae.core.mae.presets import preset
from usfmae.core.mae.train import StepRecord, TrainContext, TrainPlan, train
from usfmae.core.types import CleanImage, Trail

COLOURED = 0.02  # share of images with colour
CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--images", type=Path, help="folder of PNG or JPEG images")
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--preset", default="tiny", help="preset of the training steps for data_wait")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measured(options, Path(folder))
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        for name, value in result.items():
            print(f"{name}: {value}")


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    corpus = pack(pictures(options), folder)
    files = sorted(folder.glob("*.png"))
    coloured = pack(tinted(pictures(options), COLOURED), folder / "coloured")
    programs = {"ours": packed(corpus, "paper"), "ours_exact": packed(corpus, "official-notebook")}
    programs |= {"coloured": packed(coloured, "paper"), "coloured_wide": widened(coloured), "for_device": drawn(corpus)}
    programs |= {"normalised": packed(corpus, "paper", True), "coloured_normalised": packed(coloured, "paper", True)}
    programs["official"] = official(files)
    rounds: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(options.rounds + 1):
        for name, program in programs.items():
            began = time.process_time()
            done = program(number)
            if number:  # the first round warms caches
                rounds[name].append(done / (time.process_time() - began))
    speed = {name: statistics.median(values) for name, values in rounds.items()}
    gray = float(np.mean([index.shard.channels == 1 for index in corpus.shards for _ in range(index.shard.count)]))
    return {
        "ratio_vs_official": speed["ours"] / speed["official"],
        "images_per_second_per_core": speed["ours"],
        "official_images_per_second_per_core": speed["official"],
        "two_per_cent_colour_images_per_second_per_core": speed["coloured"],
        "two_per_cent_colour_of_gray": speed["coloured"] / speed["ours"],
        "two_per_cent_colour_of_gray_normalised": speed["coloured_normalised"] / speed["normalised"],
        "two_per_cent_colour_all_widened_first": speed["coloured_wide"],
        "for_a_device_images_per_second_per_core": speed["for_device"],
        "torchvision_exact_images_per_second_per_core": speed["ours_exact"],
        "data_wait": data_wait(corpus, options.preset),
        "data_wait_preset": options.preset,
        "images": len(corpus),
        "gray_share": gray,
        "spread": {name: (max(v) - min(v)) / statistics.median(v) for name, v in rounds.items()},
    }


def pictures(options: argparse.Namespace) -> list[np.ndarray]:
    """RGB images at native size: the folder's, else simulated speckle."""
    if options.images:
        paths = sorted(p for p in options.images.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
        return [np.asarray(Image.open(p).convert("RGB")) for p in paths[: options.count]]
    random = np.random.default_rng(0)
    made = []
    for _ in range(options.count):
        field = cv2.GaussianBlur(random.normal(size=(480, 640, 2)).astype(np.float32), (0, 0), 1.5)
        envelope = np.linalg.norm(field, axis=2)
        gray = np.clip(envelope / envelope.max() * 400, 0, 255).astype(np.uint8)
        made.append(np.repeat(gray[..., None], 3, axis=2))
    return made


def tinted(images: list[np.ndarray], share: float) -> list[np.ndarray]:
    """The same pictures, of which `share` have colour, evenly spread."""
    every = round(1 / share)
    return [image * np.array([1, 0.8, 0.5]) if n % every == 0 else image for n, image in enumerate(images)]


def widened(corpus: Corpus) -> Callable[[int], int]:
    """As before 0.2: the whole batch has three channels as soon as one image has colour."""
    model, settings = preset("paper")
    loader = Loader(corpus, np.arange(len(corpus)), model, settings)

    def run(number: int) -> int:
        for step in range(number * 8, number * 8 + 8):
            plan = loader.drawn(step)
            augment(corpus.fetch(plan.positions).pixels, plan.draws, model.image_size, settings.augment)
        return 8 * settings.batch_size

    return run


def drawn(corpus: Corpus) -> Callable[[int], int]:
    """What is left to a CPU whose GPU holds the corpus: draws of order, masks and augmentation, and their matrices."""
    model, settings = preset("paper")
    batches = DeviceLoader(
        Loader(corpus, np.arange(len(corpus)), model, settings), torch.device("cpu"), ResidentCorpus(corpus, CPU)
    )

    def run(number: int) -> int:
        for _ in batches.batches(number * 8, number * 8 + 8):
            pass
        return 8 * settings.batch_size

    return run


def pack(images: list[np.ndarray], folder: Path) -> Corpus:
    """The same 224 x 224 images twice: as RGB PNG files, and as shards."""
    folder.mkdir(exist_ok=True)
    items = []
    for number, image in enumerate(images):
        clean = CleanImage(image.astype(np.uint8), np.zeros(image.shape[:2], bool), Trail(f"{number:06d}"))
        item = square(clean, 224, group=str(number))
        rgb = item.pixels if item.pixels.ndim == 3 else np.repeat(item.pixels[..., None], 3, axis=2)
        Image.fromarray(rgb).save(folder / f"{number:06d}.png")
        items.append(item)
    write_shard(folder, "bench", items)
    return Corpus([folder])


def packed(corpus: Corpus, name: str, normalised: bool = False) -> Callable[[int], int]:
    """This program's loader: batches of 64 as `train` gets them; `normalised`: as the model does, in micro-batches."""
    model, settings = preset(name)
    loader = Loader(corpus, np.arange(len(corpus)), model, settings)

    def run(number: int) -> int:
        steps = 8
        for step in range(number * steps, (number + 1) * steps):
            pixels = loader.prepare(step).pixels
            for start in range(0, len(pixels) if normalised else 0, 12):
                normalise(pixels[start : start + 12], settings, CPU)
        return steps * settings.batch_size

    return run


def official(files: list[Path]) -> Callable[[int], int]:
    """The notebook's transforms, as written there, on 224 x 224 PNG: open, RGB, resize, rotate, flip, crop, tensor."""
    transform = T.Compose(
        [
            T.Resize((224, 224), T.InterpolationMode.NEAREST),
            T.RandomRotation((0, 90)),
            T.RandomHorizontalFlip(),
            T.RandomVerticalFlip(),
            T.RandomResizedCrop(224, scale=(0.5, 2.0)),
            T.ToTensor(),
            T.Normalize(MEAN, STD),
        ]
    )

    def run(_: int) -> int:
        for path in files:
            transform(Image.open(path).convert("RGB"))
        return len(files)

    return run


def data_wait(corpus: Corpus, name: str) -> float:
    """Median share of a step that training waited for its batch, after the first."""
    model, settings = preset(name)
    torch.set_num_threads(2)
    records: list[StepRecord] = []
    network = fresh(model, settings.mask_ratio, settings.norm_pix, settings.seed)
    train(network, corpus, settings, TrainPlan(np.arange(len(corpus)), 8), TrainContext(on_step=records.append))
    return statistics.median(record.data_wait for record in records[1:])


if __name__ == "__main__":
    main()
