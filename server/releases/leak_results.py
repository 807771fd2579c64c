"""What a release gives away of the patients it was trained on: measured figures in its card, and a limit.

A site measures with 'usfmae-client leak --model', against patients it held out; a coordinator can only try images that it
has itself, such as those of the public corpus that is replayed against those of the panel.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from usfmae.core.bench import leak_audit
from usfmae.core.checkpoint import encoder_of, load, tensors_id
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.errors import PolicyError, SourceError
from usfmae.core.mae.model import MaskedAutoencoder, load_tensors

MOST_IMAGES = 512  # of each side
HEAD = ["attack", "side", "drawn", "held out", "AUC (95 %)", "by chance as often as"]


def lines(paths: Sequence[Path], encoder: Mapping[str, Tensor], limit: float) -> list[list[str]]:
    """A table's lines, the head first; empty without files.

    SourceError where a file is no report of 'leak', PolicyError where it is of other weights, or where an attack on
    patients has an interval that lies above `limit` as a whole.
    """
    table = []
    for path in paths:
        report = _read(path)
        if report["model_id"] != tensors_id(dict(encoder)):
            do = "run 'usfmae-client leak SITE --model weights.safetensors --json' on these weights"
            raise PolicyError(f"leak report {path}", "is of other weights than the released encoder", do)
        if report["worst"]["low"] > limit:
            why = f"tells patients apart with an AUC of {report['worst']['auc']:.3f}, surely more than {limit:g} (leak_limit)"
            raise PolicyError("release", why, "train on more patients, or for fewer rounds")
        table += [
            [attack, side, str(one["members"]), str(one["others"]), _interval(one), f"{one['chance']:.3f}"]
            for attack, sides in report["membership"].items()
            for side, one in sides.items()
        ]
    return [HEAD, *table] if table else []


def _interval(one: Mapping[str, float]) -> str:
    return f"{one['auc']:.3f} ({one['low']:.3f}-{one['high']:.3f})"


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text())
        _ = report["model_id"], float(report["worst"]["low"]), float(report["worst"]["auc"])
        for sides in report["membership"].values():
            for one in sides.values():
                _ = _interval(one), one["chance"], one["members"], one["others"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise SourceError(
            f"leak report {path}", "is no report of 'leak'", "give what 'usfmae-client leak --json' prints"
        ) from None
    return dict(report)


def audit(release: Path, members: Path, others: Path, before: Path | None = None) -> dict[str, Any]:
    """Membership of the images of one corpus against those of another in a release's weights, with its own decoder.

    `before`: an earlier release; the fall of the loss from it tells which corpus was learned in between (site inference).
    """
    after = load(release / "weights.safetensors")
    corpora = [Corpus([root]) for root in (members, others)]
    positions = [_some(np.arange(len(corpus))) for corpus in corpora]
    groups = [[c.groups[p] for p in side] for c, side in zip(corpora, positions, strict=True)]

    def losses(weights: Any) -> list[leak_audit.Scores]:
        network = MaskedAutoencoder(weights.model, weights.train.mask_ratio, weights.train.norm_pix)
        load_tensors(network, weights.tensors, str(release))
        pairs = zip(corpora, positions, strict=True)
        return [-leak_audit.image_losses(network, corpus, side, weights.train) for corpus, side in pairs]

    new = losses(after)
    scores = {"loss": (new[0], new[1])}
    if before:
        old = losses(load(before / "weights.safetensors"))
        scores["loss drop"] = (new[0] - old[0], new[1] - old[1])
    membership = leak_audit.report(scores, (groups[0], groups[1]))
    encoder = encoder_of(after.tensors)
    return {"model_id": tensors_id(encoder), "membership": membership, "worst": leak_audit.worst(membership)}


def _some(positions: Positions) -> Positions:
    return positions[:: max(1, -(-len(positions) // MOST_IMAGES))]
