"""What poisoning inside the gate costs the honest: their held-out loss with liars, over that without.

    python benchmarks/poison.py --json [--rounds 10]

Virtual hospitals with real local training of a tiny model on simulated tissue, and the real round loop with its default
gate and merging rule. A liar trains as the others to learn their direction, climbs the loss on its own images, and sends
what lies just inside the gate: a cosine of -0.09 to the honest direction, and as long as the attack says. Compared are the
encoder after all rounds with the honest sites' own decoders on their held-out images, and the same of the honest alone.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from usfmae.core.bench import leak_audit
from usfmae.core.checkpoint import encoder_of, load
from usfmae.core.checkpoint_header import recipe_of
from usfmae.core.corpus.augment import plain
from usfmae.core.corpus.batch import Corpus
from usfmae.core.federated.local_round import Trained
from usfmae.core.federated.messages import TrainRequest
from usfmae.core.mae.device_batches import normalise
from usfmae.core.mae.model import MaskedAutoencoder, load_tensors
from usfmae.server.bootstrap import NewFederation, create
from usfmae.server.layout import Federation, Layout
from usfmae.server.rounds.loop import Clock, Loop
from usfmae.server.simulate import TENSORS, Hospital, InProcess, masked_autoencoder, populate

COSINE = -0.09  # the gate notes what is below -0.1
MODEL = {"image_size": 32, "patch_size": 4, "width": 48, "depth": 2, "heads": 4}
MODEL |= {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 4}
CASES = [("one of three, 3.9 times as long", 3, 1, 3.9), ("two of five, 2.0 times as long", 5, 2, 2.0)]
IMAGES = 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    began, report = time.monotonic(), {}
    with tempfile.TemporaryDirectory(prefix="usfmae-poison-") as folder:
        for number, (title, sites, liars, length) in enumerate(CASES):
            alone = campaign(Path(folder) / f"alone-{number}", sites - liars, 0, 0.0, chosen.rounds)
            poisoned = campaign(Path(folder) / f"liars-{number}", sites, liars, length, chosen.rounds)
            cost = poisoned["loss"] / alone["loss"] - 1
            report[title] = {"honest_alone": alone, "with_liars": poisoned, "cost": round(cost, 4)}
            print(json.dumps({title: report[title]}) if not chosen.json else "", end="")
    report["seconds"] = round(time.monotonic() - began)
    if chosen.json:
        print(json.dumps(report, indent=2))


def campaign(root: Path, sites: int, liars: int, length: float, rounds: int) -> dict[str, Any]:
    """The honest sites' mean held-out loss after the rounds, and how often a liar was merged."""
    home = Layout(root / "coordinator")
    chosen = [f"model.{key}={value}" for key, value in MODEL.items()]
    chosen += ["rounds.steps=20", f"rounds.total_steps={20 * rounds}", "train.batch_size=16", "train.micro_batch=16"]
    chosen += [
        "train.precision=fp32",
        "train.lr=1e-3",
        "min_free_gib=0",
        f"rounds.quorum={sites - liars}",
        "train.held_out=0.25",
    ]
    create(home.root, NewFederation("poison", port=0), chosen)
    hospitals = populate(home, sites, IMAGES)
    for hospital in hospitals[sites - liars :]:
        hospital.trainer = partial(liar, length=length)
    federation = Federation.of(home)
    ledger = federation.ledger
    Loop(federation, InProcess(hospitals, home.decoder), Clock(wait=lambda _: None)).run(rounds)
    merged = [ledger.verdicts(n)[h.site].verdict for n in range(1, rounds + 1) for h in hospitals[sites - liars :]]
    losses = [held_out_loss(home, rounds, hospital) for hospital in hospitals[: 2 if sites < 4 else 3]]
    ledger.close()
    return {"loss": float(np.mean(losses)), "liars_admitted": merged.count("admitted"), "liars_sent": len(merged)}


def held_out_loss(home: Layout, number: int, hospital: Hospital) -> float:
    loaded = load(home.checkpoint(number))
    corpus = Corpus([hospital.place / "corpus"])
    held = corpus.split(loaded.train.held_out, loaded.train.seed)[1]
    model = MaskedAutoencoder(loaded.model, loaded.train.mask_ratio, loaded.train.norm_pix)
    decoder = {name: torch.from_numpy(v) for name, v in load_file(hospital.place / "decoder.safetensors").items()}
    load_tensors(model, {**encoder_of(loaded.tensors), **decoder}, "poison")
    return float(leak_audit.image_losses(model, corpus, held, loaded.train).mean())


def liar(place: Path, request: TrainRequest, encoder: TENSORS, decoder: Path, length: float) -> Trained:
    """Honest training, then a step that climbs, turned and cut to what the gate lets pass."""
    trained = masked_autoencoder(place, request, encoder, decoder)
    honest = {name: trained.encoder[name] - encoder[name] for name in encoder}
    climb = gradient(place, request, encoder, trained.decoder or load_file(decoder))
    size = norm(honest)
    along = sum(float((climb[n] * honest[n]).sum()) for n in honest) / size**2
    across = {n: climb[n] - along * honest[n] for n in honest}
    side = norm(across)
    sent = {
        n: encoder[n] + np.float32(length) * (COSINE * honest[n] + math.sqrt(1 - COSINE**2) * size / side * across[n])
        for n in honest
    }
    return replace(trained, encoder={n: v.astype(np.float32) for n, v in sent.items()})


def norm(values: TENSORS) -> float:
    return math.sqrt(sum(float(np.square(v, dtype=np.float64).sum()) for v in values.values()))


def gradient(place: Path, request: TrainRequest, encoder: TENSORS, decoder: Any) -> TENSORS:
    """Of the masked loss over the liar's images, with respect to the encoder."""
    model_settings, settings = recipe_of(request.recipe)
    model = MaskedAutoencoder(model_settings, settings.mask_ratio, settings.norm_pix)
    load_tensors(model, {n: torch.from_numpy(np.array(v)) for n, v in {**encoder, **decoder}.items()}, "liar")
    corpus = Corpus([place / "corpus"])
    pixels = plain(corpus.fetch(np.arange(len(corpus))).pixels, model_settings.image_size)
    torch.manual_seed(request.round)
    model(normalise(pixels, settings, torch.device("cpu")), full=False)[0].backward()
    parameters = dict(model.named_parameters())
    grads = {n: parameters[n].grad for n in encoder}
    return {n: np.zeros_like(encoder[n]) if g is None else g.numpy() for n, g in grads.items()}


if __name__ == "__main__":
    main()
