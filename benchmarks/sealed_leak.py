"""What a coordinator reads of one hospital in a sealed round with the floor off: the attack of one image and one patch.

    python benchmarks/sealed_leak.py --json [--sites 3] [--trials 20] [--noise 0]

Every site makes one optimizer step on one image of which one patch is visible, without a floor: its update is the plain
gradient, and the patch projection's part of it is the outer product of that patch (leak.py, "plain"). The updates are sealed
as a site seals them. "A" has all that an aggregator holds on disk and in memory: the masked codes of each site, the sum of
codes, the products of the sketches. It guesses the first site's patch from

    masked     the closed form on the site's masked codes
    sum        the closed form on the sum
    ranks      each right singular vector of the sum's patch projection, both signs, scaled to the gray levels of the corpus

and keeps what is nearest to the truth, which a real attacker would not know. Two rows must show that the measurement can
fail: "clear", the closed form on the codes as they were before the mask; and "sketches", what the sum tells beside sketches
of each site, which no aggregator gets: the products alone are told. PSNR in dB of a patch of 32 x 32 pixels, mean of trials;
"mean" is what the mean patch of the corpus is worth. `--noise K` puts Gaussian noise K times as long as the sum on it, which no
program does: what would it cost to hide by noise what the sum itself tells?
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from leak import MEAN, PATCH, SIDE, SMALL, STD, as_gray, pictures
from numpy.typing import NDArray

from usfmae.core.federated.encodings.shared import MOST, Shared
from usfmae.core.federated.sealed import count_sketch, masks
from usfmae.core.mae.model import MaskedAutoencoder

GRID = SIDE // PATCH
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Update:
    """One site's update: codes of all tensors in one row, where the patch projection lies in it, and the patch it shows."""

    codes: bytes
    weight: slice
    bias: slice
    patch: Values  # (PATCH, PATCH) gray levels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--noise", type=float, default=0.0, help="length of noise on the sum, in lengths of the sum")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    report = measure(chosen.sites, chosen.trials, chosen.noise)
    print(json.dumps(report, indent=2) if chosen.json else "\n".join(f"{k:24s} {v}" for k, v in report.items()))


def measure(sites: int, trials: int, noise: float = 0.0) -> dict[str, Any]:
    corpus = np.stack([image.pixels.astype(np.float64) for image in pictures(clips=12)])
    patches = cut(corpus)
    mean, deviation = patches.mean(0), float(patches.std())
    rows: dict[str, list[float]] = {name: [] for name in ("mean", "clear", "masked", "sum", "ranks", "sketches")}
    for trial in range(trials):
        random = np.random.default_rng(trial)
        torch.manual_seed(trial)
        model = MaskedAutoencoder(SMALL, 1 - 1.5 / GRID**2)
        updates = [update_of(model, corpus[random.integers(len(corpus))], random) for _ in range(sites)]
        true = updates[0].patch
        for name, guesses in attacks(updates, (mean, deviation), noise).items():
            rows[name].append(max(psnr(guess, true) for guess in guesses))
        rows["mean"].append(psnr(mean, true))
    report: dict[str, Any] = {name: round(float(np.mean(values)), 2) for name, values in rows.items()}
    best = max(report[name] for name in ("masked", "sum", "ranks"))
    return {
        **report,
        "sites": sites,
        "trials": trials,
        "noise": noise,
        "best_over_mean_db": round(best - report["mean"], 2),
    }


def update_of(model: MaskedAutoencoder, image: Values, random: np.random.Generator) -> Update:
    """One plain step on one visible patch that has something on it."""
    grid = image.reshape(GRID, PATCH, GRID, PATCH).swapaxes(1, 2).reshape(-1, PATCH, PATCH)
    textured = np.flatnonzero(grid.std((1, 2)) > 4)
    place = int(random.choice(textured))
    pixels = torch.from_numpy(((image / 255 - MEAN) / STD).astype(np.float32)).expand(1, 3, SIDE, SIDE)
    noise = torch.full((1, GRID**2), 1.0)
    noise[0, place] = 0.0
    model.zero_grad()
    model(pixels, noise)[0].backward()
    names = [name for name, _ in model.named_parameters() if not name.startswith(("decoder", "mask_token"))]
    gradients = {name: model.get_parameter(name).grad for name in sorted(names)}
    flat = {name: g.reshape(-1).numpy() for name, g in gradients.items() if g is not None}
    # The coordinator names the unit: as fine as the patch projection allows.
    starts = dict(zip(flat, np.cumsum([0, *map(len, flat.values())]).tolist(), strict=False))
    weight, bias = "patch_embed.proj.weight", "patch_embed.proj.bias"
    unit = float(max(np.abs(flat[weight]).max(), np.abs(flat[bias]).max())) / MOST
    codes = Shared(unit).pack(np.concatenate(list(flat.values())).astype(np.float32))[0]
    where = [slice(starts[name], starts[name] + len(flat[name])) for name in (weight, bias)]
    return Update(codes, where[0], where[1], grid[place])


def attacks(updates: list[Update], known: tuple[Values, float], noise: float) -> dict[str, list[Values]]:
    """Guesses at the first site's patch, by attack; the sum lies under noise of so many times its length."""
    one = updates[0]
    count = len(one.codes)
    codes = [np.frombuffer(update.codes, np.int8).astype(np.float64) for update in updates]
    seeds = [masks.new_seed(bytes([k]) * 32, ["round"]) for k in range(len(updates))]
    sent = [masks.masked(update.codes, seed, 0) for update, seed in zip(updates, seeds, strict=True)]
    total = masks.unmasked(sent, masks.mask_sum(seeds, 0, count)).astype(np.float64)
    hiding = np.random.default_rng(int(abs(total).sum())).normal(size=count)
    total += hiding * noise * np.linalg.norm(total) / np.linalg.norm(hiding)
    held = np.frombuffer(sent[0], "<u2").view(np.int16).astype(np.float64)
    return {
        "clear": [closed_form(codes[0], one)],
        "masked": [closed_form(held, one)],
        "sum": [closed_form(total, one)],
        "ranks": by_ranks(total, one, len(updates), known),
        "sketches": by_sketches(total, updates, known),
    }


def closed_form(values: Values, at: Update) -> Values:
    """The patch whose outer product with the bias' change a weight's change is, were it of one site alone."""
    weight, bias = values[at.weight], values[at.bias]
    rows = gray_rows(weight, len(bias))
    return as_gray(bias @ rows / max(float(bias @ bias), 1e-300), PATCH)


def gray_rows(weight: Values, units: int) -> Values:
    """(units, PATCH^2): every channel says the same."""
    return np.asarray(weight.reshape(units, 3, PATCH**2).mean(1))


def by_ranks(total: Values, at: Update, sites: int, known: tuple[Values, float]) -> list[Values]:
    rows = gray_rows(total[at.weight], at.bias.stop - at.bias.start)
    right = np.linalg.svd(rows, full_matrices=False)[2][:sites]
    return [scaled(sign * row, known) for row in right for sign in (1, -1)]


def by_sketches(total: Values, updates: list[Update], known: tuple[Values, float]) -> list[Values]:
    """The first site's part of the sum: the nine numbers (of three sites) that fit its sketch, in the sum's own ranks."""
    at, seed = updates[0], bytes(32)
    rows = gray_rows(total[at.weight], at.bias.stop - at.bias.start)
    left, _, right = np.linalg.svd(rows, full_matrices=False)
    left, right = left[:, : len(updates)], right[: len(updates)]
    sketcher = count_sketch.Sketcher(seed, 1)
    words = np.frombuffer(at.codes, np.int8).astype(np.int16).view(np.uint16)
    sketcher.add(0, [words])
    target = sketcher.sketches()[0].view(np.int16).astype(np.float64)
    # What each pair of ranks would add to the sketch, in all three channels.
    stream = masks.keystream(seed, 0, len(words))[at.weight] & (2 * count_sketch.WIDTH - 1)
    sign, bucket = np.where(stream >= count_sketch.WIDTH, -1.0, 1.0), stream % count_sketch.WIDTH
    columns = []
    for u in left.T:
        for v in right:
            weight = np.repeat(np.outer(u, v)[:, None, :], 3, 1).reshape(-1)
            columns.append(np.bincount(bucket, weight * sign, count_sketch.WIDTH))
    fit = np.linalg.lstsq(np.stack(columns, 1), target, rcond=None)[0].reshape(len(left.T), len(right))
    row = np.linalg.svd(left @ fit @ right, full_matrices=False)[2][0]
    return [scaled(sign_ * row, known) for sign_ in (1, -1)]


def scaled(row: Values, known: tuple[Values, float]) -> Values:
    """A direction as a patch with the mean and the contrast that patches of the corpus have."""
    mean, deviation = known
    centred = row - row.mean()
    gray = mean.mean() + centred / max(float(centred.std()), 1e-12) * deviation
    return np.clip(gray.reshape(PATCH, PATCH), 0, 255)


def cut(images: Values) -> Values:
    """Every patch with something on it: (N, PATCH, PATCH)."""
    patches = images.reshape(-1, GRID, PATCH, GRID, PATCH).swapaxes(2, 3).reshape(-1, PATCH, PATCH)
    return np.asarray(patches[patches.std((1, 2)) > 4])


def psnr(guess: Values, true: Values) -> float:
    return min(99.0, 10 * math.log10(255**2 / max(float(np.square(guess - true).mean()), 1e-9)))


if __name__ == "__main__":
    main()
