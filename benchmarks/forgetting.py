"""A ten-round campaign in which one site turns bad: what the forgetting gate does, what is released, what verify says.

    python benchmarks/forgetting.py [--sites 2] [--rounds 10] [--bad-from 6] [--json] [--keep DIR]

Virtual hospitals of simulated tissue train for real, through the product's round loop, admission gate, forgetting
gate, ledger and release. From round `--bad-from` on the last site trains on images that are noise, as a broken export
would give it, and sends what came out, well formed and signed. No data set and no network are needed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from usfmae.core.checkpoint import save
from usfmae.core.checkpoint_header import describe
from usfmae.core.cli.checkpoints import verified
from usfmae.core.config import load as load_settings
from usfmae.core.config.coordinator import CoordinatorSettings
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.errors import UsfmaeError
from usfmae.core.federated.local_round import Trained
from usfmae.core.mae.model import fresh
from usfmae.core.mae.train import TrainPlan, train
from usfmae.server import bootstrap
from usfmae.server.layout import Federation, Layout
from usfmae.server.ledger import Ledger
from usfmae.server.releases.release import release
from usfmae.server.rounds.loop import Clock, Loop
from usfmae.server.simulate import TENSORS, Hospital, InProcess, Trainer, masked_autoencoder, tissue
from usfmae.server.status import history, table

SIZE = 32
STEEPER = 5
SETTINGS = [
    f"model.image_size={SIZE}", "model.patch_size=8", "model.width=32", "model.depth=2", "model.heads=2",
    "model.decoder_width=32", "model.decoder_depth=1", "model.decoder_heads=2",
    "train.precision=fp32", "train.batch_size=16", "train.lr=4e-4", "train.schedule=infinite",
    "train.augment.rotation=0", "train.augment.zoom_min=1", "train.augment.zoom_max=1",
    "rounds.steps=20", "min_free_gib=0", "continual.panel_images=64", "continual.old=[\"linear\"]",
]  # fmt: skip


def main() -> None:
    given = _arguments()
    with TemporaryDirectory() as scratch:
        report = run(given.keep or Path(scratch), given.sites, given.rounds, given.bad_from)
    print(json.dumps(report, indent=2) if given.json else text(report))


def run(root: Path, sites: int, rounds: int, bad_from: int) -> dict[str, Any]:
    """The campaign, its release, and what `usfmae verify` says of the release before and after one flipped byte."""
    home = federation(root)
    ledger = Ledger(home.ledger)
    hospitals = [hospital(home, ledger, number, turning_bad(sites, bad_from)) for number in range(1, sites + 1)]
    transport = InProcess(hospitals, home.decoder)
    loop = Loop(Federation(home, ledger, home.settings()), transport, Clock(wait=lambda seconds: None))
    loop.run(rounds)
    done = release(home, home.settings(), root / "release")
    held = verified(root / "release", home.public_key)
    return {
        "sites": sites,
        "bad_from": bad_from,
        "budget": home.settings().continual.budget,
        "rounds": history(ledger),
        "release": {**done, "folder": "release"},
        "verify": {**held, "release": "release"},
        "flipped": flipped(root / "release", home.public_key),
    }


def federation(root: Path) -> Layout:
    """A coordinator whose seed knows tissue of linear probes, with a panel of that and of what the sites hold."""
    settings = load_settings(CoordinatorSettings, None, SETTINGS)[0]
    write_shard(root / "seed", "all", [image for site in range(200, 216, 2) for image in tissue(site, 32, SIZE)])
    corpus, model = Corpus([root / "seed"]), fresh(settings.model)
    recipe = settings.train.model_copy(update={"lr": 3e-3, "batch_size": 32})
    train(model, corpus, recipe, TrainPlan(np.arange(len(corpus)), 300))
    save(root / "seed.safetensors", model.state_dict(), describe(settings.model, settings.train))
    for organ, site in (("linear", 100), ("sector", 101)):
        write_shard(root / "panel" / organ, "all", list(tissue(site, 64, SIZE)))
    chosen = [*SETTINGS, f"continual.panel={root / 'panel'}"]
    bootstrap.create(
        root / "coordinator", bootstrap.NewFederation("ten-rounds", port=0, seed=root / "seed.safetensors"), chosen
    )
    return Layout(root / "coordinator")


def hospital(home: Layout, ledger: Ledger, number: int, trainer: Trainer) -> Hospital:
    """A virtual hospital, enrolled: half of its scans are of sector probes, which the seed has never seen."""
    made = Hospital.create(home.root / "hospitals" / f"site-{number}", home.fingerprint(), trainer)
    write_shard(made.place / "corpus", "sector", list(tissue(2 * number + 1, 32, SIZE)))
    write_shard(made.place / "corpus", "linear", list(tissue(2 * number, 32, SIZE)))
    ledger.add_site(made.enrolment())
    return made


def turning_bad(number: int, since: int) -> Trainer:
    """Real training at every site; from round `since` on, site `number` trains on noise, at a steeper rate."""

    def trainer(place: Path, request: Any, encoder: TENSORS, decoder: Path) -> Trained:
        if place.name != f"site-{number}" or request.round < since:
            return masked_autoencoder(place, request, encoder, decoder)
        broken, recipe = place / "broken", json.loads(request.recipe)
        recipe["train"]["lr"] *= STEEPER
        noise = np.random.default_rng(7).integers(0, 256, (64, SIZE, SIZE), dtype=np.uint8)
        write_shard(
            broken / "corpus", "all", [PackedImage(image, f"noise-{i}", f"{i}") for i, image in enumerate(noise)]
        )
        return masked_autoencoder(broken, dataclasses.replace(request, recipe=json.dumps(recipe)), encoder, decoder)

    return trainer


def flipped(folder: Path, key: Path) -> dict[str, str]:
    """What verify says when one bit of a file is turned, file by file; each is put back."""
    detected = {}
    for path in sorted(folder.iterdir()):
        sound = path.read_bytes()
        place = len(sound) // 2
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        try:
            verified(folder, key)
            detected[path.name] = "passed"
        except UsfmaeError as error:
            detected[path.name] = f"{error.what} {error.why}".replace(f"{folder}/", "")
        path.write_bytes(sound)
    return detected


def text(report: dict[str, Any]) -> str:
    """The ledger, the release, and verify, to read."""
    lines = [table(report["rounds"]), "", f"release: {report['release']['why']}", ""]
    lines += [f"verify: {_pairs(report['verify'])}", "", "one bit turned in:"]
    return "\n".join([*lines, *(f"  {name}: {said}" for name, said in report["flipped"].items())])


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=2, help="virtual hospitals; the last one turns bad")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--bad-from", type=int, default=6, help="first round in which it is bad")
    parser.add_argument("--keep", type=Path, help="new folder to leave coordinator, hospitals and release in")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
