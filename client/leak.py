"""What a model gives away of this site's patients, measured here: drawn images against held-out ones. Nothing leaves.

The last update is tried with what its reader would have (the base before, the base and the update after) and with this
site's own decoder, which nobody else has: a reader does no better. A checkpoint is tried by its loss alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from usfmae.client import outbox
from usfmae.client.rounds import update_probe
from usfmae.client.rounds.jobs import Job
from usfmae.client.rounds.trainer import TrainingJob
from usfmae.client.site import Site
from usfmae.core.bench import leak_audit
from usfmae.core.checkpoint import encoder_of, load, tensors_id
from usfmae.core.corpus.batch import Positions
from usfmae.core.errors import SourceError
from usfmae.core.federated import codec
from usfmae.core.mae.model import MaskedAutoencoder, load_tensors
from usfmae.core.tensors import TensorFile

MOST_IMAGES = 512  # of each side


def audit(site: Site, checkpoint: Path | None = None) -> dict[str, Any]:
    """Membership of images and patients, and for the last update what it spans; with intervals.

    SourceError where no round was trained here, or nobody was held out.
    """
    this = TrainingJob(site, _last(site))
    members = _some(np.intersect1d(this.draws, this.own))
    others = _some(this.held_out)
    if not len(others):
        raise SourceError("held-out images", "are none, so there is nothing to compare with", "set train.held_out")
    groups = [this.corpus.groups[p] for p in members], [this.corpus.groups[p] for p in others]
    result: dict[str, Any] = {"round": this.request.round, "campaign": this.request.campaign}
    if checkpoint:
        encoder = encoder_of(load(checkpoint).tensors)
        scores = {"loss": _losses(this, _network(this, encoder), members, others)}
    else:
        base, encoder = _encoders(this)
        before, after = _network(this, base), _network(this, encoder)
        old, new = (_losses(this, network, members, others) for network in (before, after))
        moved = [
            leak_audit.moved_features(before, after, this.corpus, side, this.settings) for side in (members, others)
        ]
        drop = new[0] - old[0], new[1] - old[1]
        scores = {"loss": new, "loss drop": drop, "moved features": (moved[0], moved[1])}
        change = encoder[update_probe.PROJECTION] - base[update_probe.PROJECTION]
        result["span"] = _span(this, update_probe.Change(change.double().numpy()))
    membership = leak_audit.report(scores, groups)
    return {**result, "model_id": tensors_id(encoder), "membership": membership, "worst": leak_audit.worst(membership)}


def _last(site: Site) -> Job:
    files = sorted((site.root / "jobs").glob("*/result.json"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise SourceError("leak", "no round was trained here, or none is kept", "wait for the first round")
    return Job(site, files[-1].parent)


def _some(positions: Positions) -> Positions:
    """At most so many, spread evenly."""
    return positions[:: max(1, -(-len(positions) // MOST_IMAGES))]


def _encoders(this: TrainingJob) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The base of the round, and the base and the update as it leaves."""
    base, after = {}, {}
    with TensorFile(this.work.base) as old, TensorFile(this.work.place / outbox.UPDATE) as update:
        for name, shape in old.shapes.items():
            values = old.tensor(name)
            base[name] = torch.from_numpy(np.array(values))
            trained = codec.trained(update.raw(name), values.reshape(-1), this.request.encoding)
            after[name] = torch.from_numpy(trained.astype(np.float32).reshape(shape))
    return base, after


def _network(this: TrainingJob, encoder: dict[str, Tensor]) -> MaskedAutoencoder:
    network = MaskedAutoencoder(this.model_settings, this.settings.mask_ratio, this.settings.norm_pix)
    decoder = {name: torch.from_numpy(values) for name, values in load_file(this.work.trained_decoder).items()}
    load_tensors(network, {**encoder, **decoder}, "this site's model")
    return network.eval()


def _losses(
    this: TrainingJob, network: MaskedAutoencoder, members: Positions, others: Positions
) -> tuple[leak_audit.Scores, leak_audit.Scores]:
    """How little each image is missed: a member's loss is thought to be lower."""
    mine, theirs = (-leak_audit.image_losses(network, this.corpus, side, this.settings) for side in (members, others))
    return mine, theirs


def _span(this: TrainingJob, change: update_probe.Change) -> dict[str, Any]:
    first = this.request.global_step
    steps = (first, first + this.request.steps)
    seen = update_probe.Round(this.corpus, this.positions, this.held_out, steps, this.model_settings, this.settings)
    return update_probe.probe(change, seen, this.work.place / outbox.PICTURE)
