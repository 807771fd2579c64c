"""What differential privacy for each patient costs, on real pictures: epsilon against held-out loss and a probe.

    python benchmarks/dp.py --data FOLDER [--json] [--steps 200] [--out FILE]

FOLDER holds the developer data (bus_bra, mmotu_2d, pocus_frames, hc18, stu_hospital). A small encoder, 64 x 64 pixels, is
pretrained on all but BUS-BRA, which anybody may have: the seed. A site with BUS-BRA goes on from it, one image of each
patient a step, 64 patients expected in a step. All arms but the first two train the last block alone; the clip is the median
length of a gradient on the seed's own images, which costs no privacy. Held-out loss is that of patients nobody trained on,
the probe is logistic regression on frozen features (benign or malignant, five folds by patient).

Then the audit: images of noise, each a patient of its own, trained on where a coin says so; the coins are guessed by the
fall of the loss. The bound of epsilon from these guesses (95 %, from below) must stay under the accountant's; the control
without privacy must show that the audit can see something.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import cv2
import numpy as np
import torch
from leak_audit import HONEST, MODEL, QUIET, SIDE, packed, pictures

from usfmae.client.dp_budget import Spending, epsilon
from usfmae.core.bench import leak_audit
from usfmae.core.bench.encoders.base import Encoder
from usfmae.core.bench.features import compute, squares
from usfmae.core.bench.metrics import auroc
from usfmae.core.bench.probe import probe
from usfmae.core.bench.tasks import load as load_task
from usfmae.core.config import DpSettings, TrainRecipe
from usfmae.core.config.bench import BenchSettings
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.corpus.patients import PatientSampler
from usfmae.core.corpus.shard import PackedImage
from usfmae.core.mae.model import MaskedAutoencoder, fresh
from usfmae.core.mae.optimizer_step import PatientStepper, rows_of
from usfmae.core.mae.train import TrainPlan, batches_of, train

SEED_FOLDERS = ("mmotu_2d", "pocus_frames", "hc18", "stu_hospital")
PATIENTS = 64  # expected in a step
DELTA = 1e-4
NOISES = (0.5, 1.0, 2.0, 4.0)
NONE = 1e-9  # noise that protects nobody: the same code without privacy
RATES = (5e-4,)
CANARIES = 200
ARCHITECTURE = MODEL.model_copy(update={"depth": 3})
PRIVATE = HONEST.model_copy(update={"batch_size": PATIENTS, "micro_batch": PATIENTS})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, help="write what is measured so far after each arm")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    with tempfile.TemporaryDirectory(prefix="usfmae-dp-") as folder:
        report = Measurement(chosen.data, Path(folder), chosen.steps, chosen.out).run()
    report["cpu_seconds"] = round(time.process_time() - began)
    print(json.dumps(report, indent=2) if chosen.json else "\n".join(f"{k:24s} {v}" for k, v in report.items()))


class Measurement:
    """The seed, the site's corpus, and what is measured of an encoder."""

    def __init__(self, data: Path, folder: Path, steps: int, out: Path | None) -> None:
        self.steps, self.out, self.folder = steps, out, folder
        self.public = packed(folder / "public", seed_pictures(data))
        self.corpus = packed(folder / "site", pictures(data / "bus_bra" / "Images"))
        self.drawn, self.held = self.corpus.split(0.2, 1)
        self.task = load_task("bus-bra", data / "bus_bra")
        self.pixels = squares(self.task, SIDE)
        self.seed = fresh(ARCHITECTURE, HONEST.mask_ratio, False, 1)
        train(self.seed, self.public, HONEST, TrainPlan(np.arange(len(self.public)), 3 * steps))
        self.report: dict[str, Any] = {"steps": steps, "patients": self.patients, "delta": DELTA, "arms": []}

    @property
    def patients(self) -> int:
        return len({self.corpus.groups[p] for p in self.drawn})

    def run(self) -> dict[str, Any]:
        clip = self.report["clip"] = self.median_gradient()
        self.note("seed, not trained on", self.seed, {})
        every = copy(self.seed)
        train(every, self.corpus, PRIVATE, TrainPlan(self.drawn, self.steps))
        self.note("all weights, no privacy", every, {"lr": PRIVATE.lr})
        for noise in (NONE, *NOISES):
            for rate in RATES:
                settings = PRIVATE.model_copy(update={"dp": DpSettings(noise=noise, clip=clip), "lr": rate})
                model = copy(self.seed)
                train(model, self.corpus, settings, TrainPlan(self.drawn, self.steps))
                told: dict[str, Any] = {"noise": 0, "lr": rate}
                if noise != NONE:
                    told = {"noise": noise, "epsilon": self.epsilon(self.corpus, self.drawn, noise), "lr": rate}
                self.note("last block", model, told)
        self.report["audit"] = []
        for noise in (NONE, 0.5, 1.0):
            self.report["audit"].append(self.audited(noise, clip))
            self.write()
        return self.report

    def epsilon(self, corpus: Corpus, positions: Positions, noise: float) -> float:
        share = PatientSampler(positions, corpus.groups, PATIENTS, 1).share
        return round(epsilon([Spending("", noise, share, self.steps)], DELTA), 2)

    def median_gradient(self) -> float:
        """Of one image of the seed's own, in the weights that are trained."""
        recipe = TrainRecipe.of(PRIVATE, dp=DpSettings(noise=NONE, clip=1e9))
        stepper, lengths = PatientStepper(copy(self.seed), recipe), []
        plan = TrainPlan(np.arange(len(self.public)), 1)
        batch, _ = next(iter(batches_of(self.seed, self.public, recipe, plan, 0)))
        for row in range(len(batch)):
            images, noise = rows_of(batch, slice(row, row + 1), recipe, torch.device("cpu"))
            gradients = torch.autograd.grad(stepper.model(images, noise, full=False)[0], stepper.trained)
            lengths.append(float(torch.sqrt(torch.stack([g.square().sum() for g in gradients]).sum())))
        return round(float(np.median(lengths)), 4)

    def note(self, arm: str, model: MaskedAutoencoder, more: dict[str, Any]) -> None:
        loss = float(leak_audit.image_losses(model, self.corpus, self.held, HONEST).mean())
        self.report["arms"].append(
            {"arm": arm, **more, "held_out_loss": round(loss, 4), "probe_auroc": self.probe(model)}
        )
        self.write()

    def probe(self, model: MaskedAutoencoder) -> float:
        encoder = Encoder("dp", "", Pooled(model), ARCHITECTURE.width, SIDE, HONEST.mean, HONEST.std)
        values = compute(encoder, self.pixels)
        return round(float(auroc(probe(self.task, values, BenchSettings(), curve=False).predictions["logistic"])), 4)

    def audited(self, noise: float, clip: float) -> dict[str, Any]:
        """Canaries beside half of the site's patients."""
        random = np.random.default_rng(7)
        real = self.corpus.fetch(self.drawn[::2]).pixels[..., 0]
        images = [
            PackedImage(p, f"{i:064d}", f"real-{self.corpus.groups[self.drawn[2 * i]]}") for i, p in enumerate(real)
        ]
        for number in range(CANARIES):
            coarse = cv2.resize(random.integers(0, 256, (16, 16)).astype(np.uint8), (SIDE, SIDE))
            images.append(PackedImage(coarse.astype(np.uint8), f"{10**6 + number:064d}", f"canary-{number}"))
        corpus = packed(self.folder / f"canaries-{noise}", images)
        names = np.array([int(id_) for id_ in corpus.ids])
        canary, coins = np.flatnonzero(names >= 10**6), random.random(CANARIES) < 0.5
        used = np.concatenate([np.flatnonzero(names < 10**6), canary[coins]])
        settings = PRIVATE.model_copy(update={"dp": DpSettings(noise=noise, clip=clip), "augment": QUIET})
        model = copy(self.seed)
        train(model, corpus, settings, TrainPlan(used, self.steps))
        before, after = (leak_audit.image_losses(one, corpus, canary, HONEST) for one in (self.seed, model))
        right = int(((before - after > np.median(before - after)) == coins).sum())
        bound = round(leak_audit.epsilon_bound(right, CANARIES), 3)
        accountant = self.epsilon(corpus, used, noise) if noise != NONE else None
        return {"noise": 0 if noise == NONE else noise, "guessed": right, "of": CANARIES} | {
            "epsilon_at_least": bound,
            "accountant": accountant,
        }

    def write(self) -> None:
        if self.out:
            self.out.write_text(json.dumps(self.report, indent=2))


class Pooled(torch.nn.Module):
    """(B, 3, S, S) -> (B, D): the mean feature of all patches."""

    def __init__(self, model: MaskedAutoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.features(images)[:, 1:].mean(1)


def seed_pictures(data: Path) -> list[PackedImage]:
    """Pictures of the other data sets, 64 x 64 gray."""
    with (data / "index.csv").open(newline="") as stream:
        rows = [
            row
            for row in csv.DictReader(stream)
            if row["dataset"] in SEED_FOLDERS and row["path"].endswith((".png", ".jpg"))
        ]
    images = []
    for row in rows:
        gray = cv2.imread(str(data / row["path"]), cv2.IMREAD_GRAYSCALE)
        if gray is not None and gray.std() > 8:
            small = cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.uint8)
            images.append(PackedImage(small, f"{len(images):064d}", f"seed-{row['group']}"))
    return images


def copy(model: MaskedAutoencoder) -> MaskedAutoencoder:
    made = fresh(ARCHITECTURE, HONEST.mask_ratio, False, 1)
    made.load_state_dict(model.state_dict())
    return made


if __name__ == "__main__":
    sys.exit(main())
