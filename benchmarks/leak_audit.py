"""What a site's own attacks find, on updates made to leak, on honest ones, and on a model that knows its images by heart.

    python benchmarks/leak_audit.py --data FOLDER [--json] [--rounds 100] [--out FILE]

FOLDER holds pictures (PNG); the first number in a name is the patient. A tiny model, 64 x 64 pixels. Four parts, the report
is written after each:

    probe        updates of one step on 1 to 8 images with 1 to 4 visible patches, and honest rounds of 20 steps of 32
                 images. Share of each that the probe of an outbox holds
    membership   patients drawn against patients held out: after a campaign as the floor allows it, and of a model that is
                 overfitted on purpose on 24 patients without augmentation, which must alarm
    canaries     images of noise, each trained on where a coin says so; the coins are guessed by the loss, which bounds
                 epsilon from below (95 %), in both trainings
    sites        which of two groups of patients a round learned from, told by the fall of the loss between two encoders
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from usfmae.client.rounds import update_probe
from usfmae.core.bench import leak_audit
from usfmae.core.config import AugmentSettings, ModelSettings, TrainRecipe, TrainSettings
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.mae.lr_schedule import learning_rate
from usfmae.core.mae.model import MaskedAutoencoder, fresh
from usfmae.core.mae.train import TrainPlan, train

SIDE = 64
MODEL = ModelSettings(
    image_size=SIDE, patch_size=8, width=96, depth=2, heads=4, decoder_width=48, decoder_depth=1, decoder_heads=4
)
HONEST = TrainSettings(batch_size=32, micro_batch=32, lr=1e-3, warmup=0.0, precision="fp32", mask_ratio=0.5)
QUIET = AugmentSettings(rotation=0, flips=False, zoom_min=1, zoom_max=1)
CANARIES = 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=100, help="honest rounds, and attacks of the probe's part")
    parser.add_argument(
        "--parts", nargs="+", choices=sorted(PARTS), default=list(PARTS), help="some of the parts alone"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="usfmae-leak-audit-") as folder:
        corpus = packed(Path(folder) / "corpus", pictures(chosen.data))
        for name in chosen.parts:
            began = time.process_time()
            report[name] = PARTS[name](corpus, chosen.rounds, Path(folder))
            report[name]["cpu_seconds"] = round(time.process_time() - began, 1)
            if chosen.out:
                chosen.out.write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2) if chosen.json else "\n".join(f"{k:12s} {v}" for k, v in report.items()))


def pictures(folder: Path) -> list[PackedImage]:
    """Every picture below the folder, 64 x 64 gray; masks and flat ones left out."""
    images = []
    for file in sorted(folder.rglob("*.png")):
        gray = None if "mask" in file.name.lower() else cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        if gray is not None and gray.std() > 8:
            small = cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.uint8)
            number = re.search(r"\d+", file.name)
            images.append(PackedImage(small, f"{len(images):064d}", number.group() if number else file.stem))
    return images


def packed(root: Path, images: list[PackedImage]) -> Corpus:
    write_shard(root, "all", images)
    return Corpus([root], verify=False)


def trained(
    corpus: Corpus, positions: Positions, settings: TrainSettings, steps: int, base: MaskedAutoencoder | None = None
) -> MaskedAutoencoder:
    """A model after so many steps on these positions, from `base` or from fresh weights."""
    model = fresh(MODEL, settings.mask_ratio, False, settings.seed)
    if base is not None:
        model.load_state_dict(base.state_dict())
    train(model, corpus, settings, TrainPlan(positions, steps))
    return model


def split(corpus: Corpus, share: float = 0.5) -> tuple[Positions, Positions]:
    return corpus.split(share, 1)


def tested(corpus: Corpus, sides: tuple[Positions, Positions], model: MaskedAutoencoder) -> dict[str, Any]:
    """Separation by loss over images and over patients."""
    scores = [-leak_audit.image_losses(model, corpus, side, HONEST) for side in sides]
    groups = [[corpus.groups[p] for p in side] for side in sides]
    return dict(leak_audit.report({"loss": (scores[0], scores[1])}, (groups[0], groups[1]))["loss"])


def membership(corpus: Corpus, rounds: int, folder: Path) -> dict[str, Any]:
    drawn, held = split(corpus)
    campaign = trained(corpus, drawn, HONEST, 400)
    few = [p for p in drawn if corpus.groups[p] in set(sorted({corpus.groups[q] for q in drawn})[:24])]
    heart = HONEST.model_copy(update={"augment": QUIET, "batch_size": 16, "micro_batch": 16, "lr": 2e-3})
    overfitted = trained(corpus, np.array(few), heart, 1500)
    return {
        "campaign, 400 steps": tested(corpus, (drawn, held), campaign),
        "overfitted control": tested(corpus, (np.array(few), held), overfitted),
    }


def probe(corpus: Corpus, rounds: int, folder: Path) -> dict[str, Any]:
    drawn, held = corpus.split(0.3, 2)
    attacks: dict[str, list[dict[str, Any]]] = {}
    for number in range(rounds):
        batch, visible = 1 + number % 8, 1 + (number // 8) % 4
        greedy = HONEST.model_copy(
            update={"batch_size": batch, "micro_batch": batch, "lr": 1e4, "clip": 1e-9, "weight_decay": 0.0}
            | {"mask_ratio": 1 - (visible + 0.5) / 64, "augment": QUIET, "seed": number}
        )
        attacks.setdefault("held", []).append(probed(corpus, (drawn, held), greedy, 1))
    honest, base = [], None
    for number in range(rounds):
        settings = HONEST.model_copy(update={"seed": 1000 + number})
        honest.append(probed(corpus, (drawn, held), settings, 20, base))
        if number % 10 == 9:  # later rounds start from an encoder that knows something
            base = trained(corpus, drawn, settings, 20, base)
    made = attacks["held"]
    return {
        "attacks": len(made),
        "attacks_held": sum(bool(one["held"]) for one in made),
        "attacks_least_advantage_db": min(one["advantage_db"] for one in made),
        "honest": len(honest),
        "honest_held": sum(bool(one["held"]) for one in honest),
        "honest_most_advantage_db": max(one["advantage_db"] for one in honest),
        "honest_most_rank_one": max(one["rank_one"] for one in honest),
        "honest_least_beyond_few": min(one["beyond_few"] for one in honest),
        "attacks_most_beyond_few": max(one["beyond_few"] for one in made),
    }


def probed(
    corpus: Corpus,
    sides: tuple[Positions, Positions],
    settings: TrainSettings,
    steps: int,
    base: MaskedAutoencoder | None = None,
) -> dict[str, Any]:
    """One round under the probe."""
    start = base or fresh(MODEL, settings.mask_ratio, False, settings.seed)
    after = trained(corpus, sides[0], settings, steps, start)
    old, new = (model.state_dict()[update_probe.PROJECTION].numpy() for model in (start, after))
    recipe = TrainRecipe.of(settings)
    rates = np.array([learning_rate(step, steps, recipe) for step in range(steps)])
    change = update_probe.gradients(old, new, rates * settings.weight_decay)
    seen = update_probe.Round(corpus, sides[0], sides[1], (0, steps), MODEL, settings)
    with tempfile.TemporaryDirectory() as place:
        return update_probe.probe(change, seen, Path(place) / "probe.png")


def canaries(corpus: Corpus, rounds: int, folder: Path) -> dict[str, Any]:
    """Images of noise in a corpus of real ones; those that a coin took are told by their loss."""
    random = np.random.default_rng(7)
    pixels = corpus.fetch(np.arange(min(len(corpus), 300))).pixels[..., 0]
    images = [PackedImage(p, f"{i:064d}", f"real-{i}") for i, p in enumerate(pixels)]
    for number in range(CANARIES):
        noise = cv2.resize(random.integers(0, 256, (16, 16)).astype(np.uint8), (SIDE, SIDE))
        images.append(PackedImage(noise.astype(np.uint8), f"{10**6 + number:064d}", f"canary-{number}"))
    planted = packed(folder / "canaries", images)
    names = np.array([int(id_) for id_ in planted.ids])
    real, canary = np.flatnonzero(names < 10**6), np.flatnonzero(names >= 10**6)
    coins = random.random(len(canary)) < 0.5
    rows = np.concatenate([real, canary[coins]])
    quiet = HONEST.model_copy(update={"augment": QUIET})
    result = {}
    for title, settings, steps, used in (
        ("campaign, 400 steps", HONEST, 400, rows),
        ("overfitted control", quiet, 1500, np.concatenate([real[:16], canary[coins]])),
    ):
        losses = leak_audit.image_losses(trained(planted, used, settings, steps), planted, canary, HONEST)
        thought = losses < np.median(losses)
        right = int((thought == coins).sum())
        result[title] = {
            "guessed": right,
            "of": len(canary),
            "epsilon_at_least": round(leak_audit.epsilon_bound(right, len(canary)), 3),
        }
    return result


def sites(corpus: Corpus, rounds: int, folder: Path) -> dict[str, Any]:
    """One site of two trains; the fall of the loss between the encoders on held-out patients of each tells which."""
    names = sorted({corpus.groups[p] for p in range(len(corpus))})
    first, second = (
        np.array([p for p in range(len(corpus)) if corpus.groups[p] in set(part)]) for part in (names[::2], names[1::2])
    )
    before = trained(corpus, np.concatenate([first[::2], second[::2]]), HONEST, 100)
    after = trained(corpus, first[::2], HONEST, 20, before)
    falls = []
    for side in (first[1::2], second[1::2]):
        old, new = (leak_audit.image_losses(model, corpus, side, HONEST) for model in (before, after))
        falls.append(old - new)
    groups = [[corpus.groups[p] for p in side] for side in (first[1::2], second[1::2])]
    return dict(leak_audit.report({"loss drop": (falls[0], falls[1])}, (groups[0], groups[1]))["loss drop"])


PARTS = {"membership": membership, "probe": probe, "canaries": canaries, "sites": sites}

if __name__ == "__main__":
    sys.exit(main())
