"""What updates that travel in fewer bytes cost in learning: int8, int4, sparse, and a part of the values in turn.

    python benchmarks/encoding_cost.py --json [--data DIR] [--cache DIR] [--seeds 5] [--first 0]

The experiment of benchmarks/continual.py (a seed that knows breast, four sites with other organs, the same endpoints, fixed
beforehand), with rounds as the product has them: packed updates, what they leave out kept at the site, a merge, and a
packed step down whose rest is kept at the aggregator. Every way does the same optimizer steps; ways differ in encoding
and in the number of rounds the steps are cut into. Finished runs are kept in the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import continual_arms as arms
import continual_data
import numpy as np
import torch
from continual_table import interval
from numpy.typing import NDArray

from usfmae.core.checkpoint import decoder_of, encoder_of
from usfmae.core.federated import codec, downlink
from usfmae.core.federated.encodings import part
from usfmae.core.files import replacing
from usfmae.core.types import recipe_id

ROOT = Path(__file__).parents[1]
MEASURES = ("old_loss", "new_loss", "old_auroc", "new_auroc")
REFERENCE = "int8, 8 rounds"


@dataclass(frozen=True)
class Way:
    """How the same steps travel."""

    encoding: str
    rounds: int
    whole_down: bool = False  # the merged encoder goes down as it is
    in_turn: bool = False  # a sixteenth of the values in each round, as sparse sealed rounds send it

    @property
    def name(self) -> str:
        more = ", whole encoder down" if self.whole_down else ", a sixteenth in turn" if self.in_turn else ""
        return f"{self.encoding}, {self.rounds} rounds{more}"

    def packing(self, number: int) -> str:
        """The encoding of round `number`."""
        return part.name(self.encoding, number) if self.in_turn else self.encoding


WAYS = (
    Way("int8", 8), Way("int4", 8), Way("sparse", 8),
    Way("int8", 1), Way("int4", 2), Way("sparse", 24),
    Way("sparse", 8, whole_down=True), Way("int8", 24, in_turn=True), Way("int8", 96, in_turn=True),
)  # fmt: skip


class PackedRun(arms.Run):
    """A federated run whose updates and steps are packed as the product packs them."""

    def __init__(self, way: Way, seed: int, data: continual_data.Scans, start: arms.Tensors, folder: Path) -> None:
        super().__init__(arms.Arm(way.name), arms.Size(), seed, data, start, folder)
        self.way, self.left = way, dict[str, bytes]()

    def federated(self) -> None:
        for number in range(self.way.rounds):
            self.round(number, self.size.steps // self.way.rounds)

    def round(self, number: int, steps: int) -> None:
        encoding = self.way.packing(number)
        base = {name: tensor.numpy() for name, tensor in self.encoder.items()}
        payloads = []
        for site in self.sites.values():
            tensors = self.local(site, number, steps)
            after = {name: tensor.numpy() for name, tensor in encoder_of(tensors).items()}
            update = codec.pack(base, after, encoding, site.residual)
            site.residual, site.decoder = residual_on_disk(update, encoding), decoder_of(tensors)
            payloads.append(update.payload)
            self.bytes += sum(map(len, update.payload.values()))
        weights = np.array(arms.shares([len(s.positions) for s in self.sites.values()], arms.CAP))
        weights /= weights.sum()
        self.encoder = {
            name: self.stepped(name, base[name], [payload[name] for payload in payloads], weights, encoding)
            for name in base
        }

    def stepped(
        self, name: str, base: NDArray[np.float32], packed: list[bytes], weights: NDArray[np.float64], encoding: str
    ) -> torch.Tensor:
        """One tensor of the next encoder."""
        flat = base.reshape(-1)
        rows = np.stack([codec.trained(data, flat, encoding) for data in packed])
        target = self.rule.merge(flat.astype(np.float64), rows, weights, {})
        if self.way.whole_down:
            return torch.from_numpy(target.astype(np.float32).reshape(base.shape))
        made = downlink.stepped(target, flat, self.left.get(name, b""), encoding)
        self.left[name] = made.left
        return torch.from_numpy(made.values.reshape(base.shape))


def residual_on_disk(update: codec.EncodedUpdate, encoding: str) -> dict[str, NDArray[np.float32]]:
    """What an update left out as the next round reads it: packed, and decayed where the encoding says so."""
    residual = {}
    for name, error in update.residual.items():
        data = codec.pack_residual(error.reshape(-1).copy(), update.payload[name], encoding)
        residual[name] = codec.add_residual(data, np.zeros(error.size, np.float32), encoding).reshape(error.shape)
    return residual


def run(way: Way, seed: int, root: Path, cache: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    began, start = time.process_time(), arms.seed_model(root, arms.Size(), seed, cache)
    with TemporaryDirectory() as folder:
        one = PackedRun(way, seed, continual_data.scans(root, seed, "organ"), start, Path(folder))
        one.run()
        figures = one.measured()
    chosen = {name: figures[name] for name in (*MEASURES, "bytes")}
    return {"way": way.name, "seed": seed, "seconds": time.process_time() - began, **chosen}


def report(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Per way each measure with its t interval over seeds, and the paired differences to the reference."""
    by_way: Mapping[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for result in results:
        by_way[result["way"]][result["seed"]] = result
    reference, rows = by_way[REFERENCE], {}
    for name, runs in by_way.items():
        seeds = sorted(set(runs) & set(reference))
        rows[name] = {
            "seeds": seeds,
            "bytes_up": runs[seeds[0]]["bytes"],
            **{m: interval([runs[s][m] for s in seeds]) for m in MEASURES},
            "difference": {m: interval([runs[s][m] - reference[s][m] for s in seeds]) for m in MEASURES},
            "loss_ratio": {
                m: interval([runs[s][m] / reference[s][m] for s in seeds]) for m in ("old_loss", "new_loss")
            },
        }
    return {"size": asdict(arms.Size()), "reference": REFERENCE, "ways": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("USFMAE_TEST_DATA", ROOT.parent / "shared" / "data"))
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "usfmae" / "continual"
    parser.add_argument("--data", type=Path, default=data, help="folder of real ultrasound with its index.csv")
    parser.add_argument("--cache", type=Path, default=cache, help="corpora, seeds and finished runs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="number of the first seed")
    parser.add_argument("--report", action="store_true", help="run nothing: report the finished runs in the cache")
    parser.add_argument("--json", action="store_true", help="print JSON (the only form there is)")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    root = continual_data.prepare(options.data, options.cache)
    results = []
    for seed in range(options.first, options.first + options.seeds):
        for way in WAYS:
            recipe = {"way": asdict(way), "size": asdict(arms.Size()), "model": arms.MODEL.model_dump()}
            place = options.cache / f"encoding-cost-{seed}-{recipe_id(recipe)[:10]}.json"
            if not place.exists() and not options.report:
                with replacing(place) as partial:
                    partial.write_text(json.dumps(run(way, seed, root, options.cache)))
            if place.exists():
                results.append(json.loads(place.read_text()))
                print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    print(json.dumps(report(results), indent=1))


if __name__ == "__main__":
    main()
