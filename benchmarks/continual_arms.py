"""The arms of the experiment, and the loop that runs one: sites in turn, in process, with the parts of the product.

Training, packing of updates and merging are those of the product; only the network is left out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from continual_data import JUDGED, NEW, OLD, Scans, scans, spread
from numpy.typing import NDArray
from torch import Tensor

from usfmae.core.bench import heads
from usfmae.core.bench.metrics import Predictions, auroc
from usfmae.core.checkpoint import decoder_of, encoder_of
from usfmae.core.config import ModelSettings, TrainRecipe
from usfmae.core.config.coordinator import MergeSettings
from usfmae.core.corpus.batch import Positions
from usfmae.core.federated import codec, forgetting, replay
from usfmae.core.federated.forgetting_panel import Organ, Reading, features
from usfmae.core.federated.merge import shares
from usfmae.core.federated.rules import rule_for
from usfmae.core.files import replacing
from usfmae.core.mae.evaluation import evaluate
from usfmae.core.mae.model import MaskedAutoencoder, fresh, load_tensors
from usfmae.core.mae.refit import Refit, refitted
from usfmae.core.mae.targets import predicting
from usfmae.core.mae.train import TrainContext, TrainPlan, train
from usfmae.core.types import recipe_id

Tensors = dict[str, Tensor]

# The encoder that benchmarks/objective.py chose the recipe with.
MODEL = ModelSettings(
    image_size=64, patch_size=8, width=128, depth=4, heads=4, decoder_width=64, decoder_depth=1, decoder_heads=4
)
BEST = {"mask_ratio": 0.75, "norm_pix": True, "optimizer": "muon"}
CAP = 0.4  # largest share of one site in a merge
PANEL = 128  # images the seed was trained on, for the forgetting gate; nothing else is measured on them


@dataclass(frozen=True)
class Size:
    """How much an experiment trains."""

    seed_steps: int = 200
    seed_batch: int = 32
    steps: int = 96  # optimizer steps of every site, and of the centralised arm with the sites' batches together
    unit: int = 12  # local steps of a round with E = 1
    batch: int = 16
    lr: float = 1e-3
    refit_steps: int = 120  # of the decoder that every encoder is read with


SMALL = Size(
    seed_steps=60, seed_batch=16, steps=24, batch=8, refit_steps=40
)  # of --quick: shows that it runs, says nothing of recipes


@dataclass(frozen=True)
class Arm:
    name: str
    kind: str = "federated"  # seed, alone, centralised, federated
    split: str = "organ"
    e: int = 1  # local steps a round, in units
    decoder: str = "local"  # local: from the seed's; shared: averaged too; random: local, not from the seed's
    optimizer: str = "kept"
    replay: float = 0.0
    alpha: float = 1.0  # interpolation with the seed at the end
    anchor: float = 0.0  # SFA: share of the seed, four times in the campaign
    pull: float = 0.0  # L2 to the seed, a round
    ema: float = 0.0
    proximal: float = 0.0
    target: str = "pixels"  # else what a site predicts of the frozen seed: latents or mixture
    main: bool = False  # one of those the targets are read for; the others run with --all
    budget: float = 0.0  # the forgetting gate's, on the old organ; 0: no gate
    longer: int = 1  # times the steps
    merge: dict[str, Any] = field(default_factory=dict)


MOMENTUM = {"rule": "fedavgm", "momentum": 0.9, "rate": 0.3}
ADAM = {"rule": "fedadam", "rate": 1e-3, "momentum": 0.9, "second_momentum": 0.99}

ARMS = (
    Arm("seed only", kind="seed", main=True),
    Arm("centralised", kind="centralised", main=True),
    # As many images as the sites of a federation have together; and as long as each of them trains in it.
    *(Arm(f"alone: {site}", kind=f"alone:{site}", longer=len(NEW), main=True) for site in NEW),
    *(Arm(f"alone, as long: {site}", kind=f"alone:{site}", main=True) for site in NEW),
    Arm("centralised, as many steps", kind="centralised", e=len(NEW), longer=len(NEW), main=True),
    Arm("federated", main=True),
    Arm("federated, frozen seed", target="mixture", main=True),
    Arm("federated, replay 25 %", replay=0.25, main=True),
    Arm("federated, IID", split="iid", main=True),
    Arm("federated, four times as long", longer=len(NEW), main=True),
    Arm("shared decoder", decoder="shared"),
    Arm("random local decoders", decoder="random"),
    Arm("AdamW reset", optimizer="reset"),
    Arm("federated, E = 4", e=4),
    Arm("replay 5 %", replay=0.05),
    Arm("seed interpolation 0.5", alpha=0.5),
    Arm("SFA", anchor=0.25),
    Arm("L2 to the seed", pull=0.03),
    Arm("EMA", ema=0.8),
    Arm("budget 10 %", budget=0.1),
    Arm("FedProx", proximal=0.01),
    Arm("FedAdam", merge=ADAM),
    Arm("FedAvgM", merge=MOMENTUM),
)


def settings(size: Size, seed: int, **changes: Any) -> TrainRecipe:
    common: dict[str, Any] = {
        "preset": "tiny", "schedule": "infinite", "warmup": 0.1, "anneal": 0.2, "lr": size.lr, "min_lr": 0.0,
        "batch_size": size.batch, "micro_batch": 64, "precision": "bf16", "seed": seed, "keep": 1,
        "checkpoint_steps": 10**9, "augment": {"rotation": 0, "zoom_min": 0.9, "zoom_max": 1.1}, **BEST,
    }  # fmt: skip
    return TrainRecipe(**{**common, **changes})


def seed_model(root: Path, size: Size, seed: int, cache: Path) -> Tensors:
    """The weights every arm of one repetition starts from: trained on the old organ alone; kept in the cache."""
    recipe = settings(size, seed, batch_size=size.seed_batch, schedule="cosine")
    number = recipe_id({"model": MODEL.model_dump(), "train": recipe.model_dump(), "steps": size.seed_steps})
    file = cache / f"seed-{seed}-{number[:12]}.pt"
    if file.exists():
        return torch.load(file)  # type: ignore[no-any-return]
    model, data = fresh(MODEL, recipe.mask_ratio, recipe.norm_pix, seed), scans(root, seed, "organ")
    train(model, data.corpus, recipe, TrainPlan(data.old, size.seed_steps))
    with replacing(file) as partial:
        torch.save(model.state_dict(), partial)
    return model.state_dict()


class Site:
    """One hospital: its images, decoder, optimizer state and what its last update could not express."""

    def __init__(self, positions: Positions, decoder: Tensors, folder: Path) -> None:
        self.positions, self.decoder, self.folder = positions, decoder, folder
        self.residual: dict[str, NDArray[np.float32]] = {}


class Run:
    """One arm in one repetition."""

    def __init__(self, arm: Arm, size: Size, seed: int, data: Scans, start: Tensors, folder: Path) -> None:
        self.arm, self.seed, self.data, self.start = arm, seed, data, start
        self.size = replace(size, steps=size.steps * arm.longer)
        self.seed_encoder = encoder_of(start)
        self.recipe = settings(size, seed, proximal=arm.proximal, target=arm.target)
        plain = fresh(MODEL, self.recipe.mask_ratio, self.recipe.norm_pix, seed)
        self.model = predicting(plain, self.recipe, self.seed_encoder)
        self.encoder = dict(self.seed_encoder)
        self.average = dict(self.seed_encoder)
        self.bytes = 0
        decoder = decoder_of(fresh(MODEL, seed=seed + 1000).state_dict() if arm.decoder == "random" else start)
        decoder = {**decoder_of(self.model.state_dict()), **decoder}  # a head for features starts fresh
        self.sites = {n: Site(p, dict(decoder), folder / n) for n, p in data.sites.items()}
        self.memory: dict[str, dict[str, NDArray[np.float64]]] = {}
        self.rule = rule_for(MergeSettings(**{"rule": "fedavg", **arm.merge}))

    def local(self, site: Site, number: int, steps: int) -> Tensors:
        """One site's part of a round: the whole model after training."""
        load_tensors(self.model, {**self.encoder, **site.decoder})
        mixed = replay.with_replay(site.positions, self.data.old, self.arm.replay, number, self.seed)
        train(
            self.model,
            self.data.corpus,
            self.recipe,
            TrainPlan(mixed, steps, number * steps, self.size.steps),
            TrainContext(site.folder if self.arm.optimizer == "kept" else None),
        )
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def round(self, number: int, steps: int) -> None:
        base = {name: tensor.numpy() for name, tensor in self.encoder.items()}
        trained, decoders = [], []
        for site in self.sites.values():
            tensors = self.local(site, number, steps)
            packed = codec.pack(base, {n: t.numpy() for n, t in encoder_of(tensors).items()}, "int8", site.residual)
            site.residual, site.decoder = packed.residual, decoder_of(tensors)
            decoders.append(site.decoder)
            trained.append(packed.payload)
            self.bytes += sum(map(len, packed.payload.values())) + sum(a.nbytes for a in base.values())
        weights = np.array(shares([len(s.positions) for s in self.sites.values()], CAP))
        weights /= weights.sum()
        self.encoder = self.merged(base, trained, weights)
        if self.arm.decoder == "shared":
            mean = {n: sum(float(w) * d[n] for w, d in zip(weights, decoders, strict=True)) for n in decoders[0]}
            self.bytes += sum(2 * t.numel() * 4 for t in mean.values()) * len(decoders)
            for site in self.sites.values():
                site.decoder = mean

    def merged(self, base: Mapping[str, Any], trained: list[dict[str, bytes]], weights: NDArray[np.float64]) -> Tensors:
        result = {}
        for name, values in base.items():
            rows = np.stack([codec.trained(payload[name], values, "int8") for payload in trained])
            memory = self.memory.setdefault(
                name, {key: np.full(values.size, self.rule.start(key)) for key in self.rule.memory}
            )
            flat = self.rule.merge(values.reshape(-1).astype(np.float64), rows, weights, memory)
            result[name] = torch.from_numpy(flat.astype(np.float32).reshape(values.shape))
        return result

    def federated(self) -> None:
        steps = self.size.unit * self.arm.e
        rounds = self.size.steps // steps
        for number in range(rounds):
            before = self.encoder
            self.round(number, steps)
            if self.arm.budget:
                self.encoder = self.within_budget(before)
            every = max(1, rounds // 4) if self.arm.anchor else 0
            self.encoder = forgetting.anchored(self.seed_encoder, self.encoder, number + 1, every, self.arm.anchor)
            self.encoder = forgetting.pulled(self.seed_encoder, self.encoder, self.arm.pull)
            if self.arm.ema:
                self.average = forgetting.ema(self.average, self.encoder, self.arm.ema)
        if self.arm.ema:
            self.encoder = self.average
        self.encoder = forgetting.interpolate(self.seed_encoder, self.encoder, self.arm.alpha)

    def within_budget(self, before: Tensors) -> Tensors:
        """The forgetting gate's rule, on images of the old organ that a server has."""
        public = spread(self.data.old, 2 * PANEL)
        refit = self.refit(public[::2])

        def reading(encoder: Tensors) -> dict[str, Reading]:
            return {OLD: Reading(evaluate(refitted(encoder, refit), self.data.corpus, public[1::2], refit.train))}

        def at(share: float) -> Tensors:
            return forgetting.interpolate(before, self.encoder, share)

        decision = forgetting.decide(
            reading(self.seed_encoder), reading(before), reading(self.encoder), forgetting.Budget(self.arm.budget),
            ((share, reading(at(share))) for share in (0.5, 0.25)),
        )  # fmt: skip
        return at(decision.share)

    def together(self, positions: Positions, batch: int) -> None:
        """Centralised, or one site alone."""
        load_tensors(self.model, {**self.model.state_dict(), **self.start})
        mixed = replay.with_replay(positions, self.data.old, self.arm.replay, 0, self.seed)
        recipe = self.recipe.model_copy(update={"batch_size": batch})
        train(self.model, self.data.corpus, recipe, TrainPlan(mixed, self.size.steps))
        tensors = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.encoder = encoder_of(tensors)
        for site in self.sites.values():
            site.decoder = decoder_of(tensors)

    def run(self) -> None:
        if self.arm.kind == "federated":
            self.federated()
        elif self.arm.kind == "centralised":
            # One batch of all sites' together, or `e` times as many steps of a smaller one: as many images.
            batch = self.size.batch * len(self.sites) // self.arm.e
            self.together(np.concatenate([s.positions for s in self.sites.values()]), batch)
        elif self.arm.kind.startswith("alone:"):
            self.together(self.sites[self.arm.kind.split(":")[1]].positions, self.size.batch)

    # measuring

    def refit(self, positions: Positions) -> Refit:
        """One decoder's start, images and steps, the same for every arm of a repetition."""
        recipe = settings(self.size, self.seed, schedule="cosine", optimizer="adamw")
        return Refit(MODEL, recipe, self.data.corpus, positions, self.size.refit_steps, decoder_of(self.start))

    def measured(self) -> dict[str, Any]:
        """Refitted losses of every organ, AUROC of those with classes, and the seed's decoder's losses beside them."""
        pool = np.concatenate([self.data.old, *self.data.sites.values()])
        refit = self.refit(pool)
        followed = refitted(self.encoder, refit)
        seeds = MaskedAutoencoder(MODEL, refit.train.mask_ratio, refit.train.norm_pix)
        load_tensors(seeds, {**self.encoder, **decoder_of(self.start)})
        corpus, panel = self.data.corpus, self.data.panel
        losses = {organ: evaluate(followed, corpus, panel[organ].measured, refit.train) for organ in (OLD, *NEW)}
        areas = {
            organ: auroc_of(followed, panel[organ], refit.train) for organ in panel if panel[organ].labels is not None
        }
        new_areas = [areas[organ] for organ in JUDGED]
        return {
            "old_loss": losses[OLD],
            "new_loss": float(np.mean([losses[organ] for organ in NEW])),
            "old_auroc": areas[OLD],
            "new_auroc": float(np.mean(new_areas)),
            "losses": losses,
            "aurocs": areas,
            "seed_decoder_losses": {
                organ: evaluate(seeds, corpus, panel[organ].measured, refit.train) for organ in (OLD, *NEW)
            },
            "bytes": self.bytes,
        }


def auroc_of(model: MaskedAutoencoder, organ: Organ, recipe: TrainRecipe) -> float:
    """AUROC on held-out patients of logistic regression on the frozen features of the others; macro where K > 2."""
    assert organ.labels is not None
    fit, test = (features(model, organ.corpus, positions, recipe) for positions in (organ.fitted, organ.measured))
    labels, truth = organ.labels[organ.fitted], organ.labels[organ.measured]
    classes = int(max(labels.max(), truth.max())) + 1
    answers = heads.logistic(fit[labels >= 0], labels[labels >= 0], test[truth >= 0], classes, 1.0)
    return float(auroc(Predictions(truth[truth >= 0], answers, (), (), ())))


def run(name: str, size: Size, seed: int, root: Path, cache: Path) -> dict[str, Any]:
    """One arm in one repetition: its figures."""
    torch.set_num_threads(1)
    arm = next(a for a in ARMS if a.name == name)
    start = seed_model(root, size, seed, cache)
    with TemporaryDirectory() as folder:
        one = Run(arm, size, seed, scans(root, seed, arm.split), start, Path(folder))
        began = time.process_time()
        one.run()
        seconds = time.process_time() - began
        return {"arm": name, "seed": seed, "seconds": seconds, **json.loads(json.dumps(one.measured()))}
