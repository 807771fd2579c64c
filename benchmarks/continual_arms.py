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
from continual_data import NEW, OLD, Scans, scans, spread
from numpy.typing import NDArray
from torch import Tensor

from usfmae.core.checkpoint import decoder_of, encoder_of
from usfmae.core.config import ModelSettings, TrainRecipe
from usfmae.core.config.coordinator import MergeSettings
from usfmae.core.corpus.batch import Positions
from usfmae.core.federated import codec, forgetting, forgetting_panel, replay
from usfmae.core.federated.merge import shares
from usfmae.core.federated.rules import rule_for
from usfmae.core.files import replacing
from usfmae.core.mae.evaluation import evaluate
from usfmae.core.mae.model import MaskedAutoencoder, fresh, load_tensors
from usfmae.core.mae.train import TrainContext, TrainPlan, train

Tensors = dict[str, Tensor]

MODEL = ModelSettings(image_size=112, width=96, depth=3, heads=2, decoder_width=64, decoder_depth=1, decoder_heads=2)
CAP = 0.4  # largest share of one site in a merge
PANEL = 128  # images the seed was trained on, for the forgetting gate; nothing else is measured on them


@dataclass(frozen=True)
class Size:
    """How much an experiment trains."""

    seed_steps: int = 300
    seed_batch: int = 32
    steps: int = 96  # optimizer steps of every site, and of the centralised arm with the sites' batches together
    unit: int = 6  # local steps of a round with E = 1
    batch: int = 8
    lr: float = 1e-3


SMALL = Size(seed_steps=60, seed_batch=16, steps=24)  # of --quick: shows that it runs, says nothing of recipes


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
    budget: float = 0.0  # the forgetting gate's, on the old organ; 0: no gate
    longer: int = 1  # times the steps
    merge: dict[str, Any] = field(default_factory=dict)


MOMENTUM = {"rule": "fedavgm", "momentum": 0.9, "rate": 0.3}
ADAM = {"rule": "fedadam", "rate": 1e-3, "momentum": 0.9, "second_momentum": 0.99}

ARMS = (
    Arm("seed only", kind="seed"),
    Arm("centralised", kind="centralised"),
    *(Arm(f"alone: {site}", kind=f"alone:{site}") for site in NEW),
    Arm("federated"),
    Arm("federated, IID", split="iid"),
    Arm("shared decoder, IID", split="iid", decoder="shared"),
    Arm("FedAdam, IID", split="iid", merge=ADAM),
    Arm("federated, E = 4", e=4),
    Arm("federated, E = 16", e=16),
    Arm("shared decoder", decoder="shared"),
    Arm("random local decoders", decoder="random"),
    Arm("AdamW reset", optimizer="reset"),
    Arm("replay 5 %", replay=0.05),
    Arm("replay 25 %", replay=0.25),
    Arm("seed interpolation 0.5", alpha=0.5),
    Arm("SFA", anchor=0.25),
    Arm("L2 to the seed", pull=0.03),
    Arm("EMA", ema=0.8),
    Arm("budget 10 %", budget=0.1),
    Arm("FedProx", proximal=0.01),
    Arm("FedAdam", merge=ADAM),
    Arm("FedAvgM", merge=MOMENTUM),
    Arm("centralised, twice the steps", kind="centralised", longer=2),
    *(Arm(f"alone: {site}, twice the steps", kind=f"alone:{site}", longer=2) for site in NEW),
    Arm("federated, twice the steps", longer=2),
)


def settings(size: Size, seed: int, **changes: Any) -> TrainRecipe:
    common: dict[str, Any] = {
        "preset": "tiny", "schedule": "infinite", "warmup": 0.1, "anneal": 0.2, "lr": size.lr, "min_lr": 0.0,
        "batch_size": size.batch, "micro_batch": 64, "precision": "bf16", "seed": seed, "keep": 1,
        "checkpoint_steps": 10**9, "augment": {"rotation": 0, "zoom_min": 0.9, "zoom_max": 1.1},
    }  # fmt: skip
    return TrainRecipe(**{**common, **changes})


def seed_model(root: Path, size: Size, seed: int, cache: Path) -> Tensors:
    """The weights every arm of one repetition starts from: trained on the old organ alone; kept in the cache."""
    file = cache / f"seed-{seed}-{size.seed_steps}x{size.seed_batch}-{MODEL.width}x{MODEL.depth}.pt"
    if file.exists():
        return torch.load(file)  # type: ignore[no-any-return]
    model, data = fresh(MODEL, seed=seed), scans(root, seed, "organ")
    recipe = settings(size, seed, lr=2e-3, batch_size=size.seed_batch, schedule="cosine")
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
        self.model = MaskedAutoencoder(MODEL)
        self.recipe = settings(size, seed, proximal=arm.proximal)
        self.seed_encoder = encoder_of(start)
        self.encoder = dict(self.seed_encoder)
        self.average = dict(self.seed_encoder)
        self.bytes = 0
        decoder = decoder_of(fresh(MODEL, seed=seed + 1000).state_dict() if arm.decoder == "random" else start)
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
        panel = spread(self.data.old, PANEL)

        def loss(encoder: Tensors) -> dict[str, float]:
            load_tensors(self.model, {**encoder, **decoder_of(self.start)})
            return {OLD: evaluate(self.model, self.data.corpus, panel, self.recipe)}

        def at(share: float) -> Tensors:
            return forgetting.interpolate(before, self.encoder, share)

        now = loss(self.encoder)
        decision = forgetting.decide(
            loss(self.seed_encoder), loss(before), now, self.arm.budget, (0.5, 0.25), lambda share: loss(at(share))
        )
        return at(decision.share)

    def together(self, positions: Positions, batch: int) -> None:
        """Centralised, or one site alone."""
        load_tensors(self.model, self.start)
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
            self.together(np.concatenate([s.positions for s in self.sites.values()]), self.size.batch * len(self.sites))
        elif self.arm.kind.startswith("alone:"):
            self.together(self.sites[self.arm.kind.split(":")[1]].positions, self.size.batch)

    # measuring

    def loss(self, organ: str, decoder: Tensors) -> float:
        load_tensors(self.model, {**self.encoder, **decoder})
        return evaluate(self.model, self.data.corpus, self.data.panel[organ].measured, self.recipe)

    def own_decoders(self, organ: str) -> list[Tensors]:
        """The decoders of the sites that hold an organ; for the old organ the one a server has: the seed's."""
        if organ in self.sites:
            return [self.sites[organ].decoder]
        joint = self.arm.kind != "federated" or self.arm.decoder == "shared"
        if organ == OLD and not joint:
            return [decoder_of(self.start)]
        return [site.decoder for site in self.sites.values()][: 1 if joint else None]

    def own_loss(self, organ: str) -> float:
        return float(np.mean([self.loss(organ, decoder) for decoder in self.own_decoders(organ)]))

    def measured(self) -> dict[str, Any]:
        losses = {organ: self.own_loss(organ) for organ in (OLD, *NEW)}
        load_tensors(self.model, {**self.encoder, **decoder_of(self.start)})
        readings = {
            organ: forgetting_panel.read(self.model, self.data.panel[organ], self.recipe)[0] for organ in (OLD, *NEW)
        }
        probes = {organ: reading.probe for organ, reading in readings.items() if reading.probe is not None}
        return {
            "old_loss": losses[OLD],
            "new_loss": float(np.mean([losses[organ] for organ in NEW])),
            "old_probe": probes[OLD],
            "new_probe": float(np.mean([probes[organ] for organ in NEW if organ in probes])),
            "old_knn": readings[OLD].knn,
            "losses": losses,
            "seed_decoder_losses": {organ: reading.loss for organ, reading in readings.items()},
            "probes": probes,
            "bytes": self.bytes,
        }


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
