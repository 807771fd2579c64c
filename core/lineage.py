"""The line of descent of released weights: each encoder names the one it was made from, back to the seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from usfmae.core.checkpoint import encoder_of, load, tensors_id
from usfmae.core.errors import PolicyError, SourceError

NAME, WEIGHTS = "lineage.json", "weights.safetensors"


def chain(links: Sequence[Mapping[str, Any]], seed: str, alpha: float, of: str, encoder: str) -> dict[str, Any]:
    """`links`: a round's base and result each, oldest first. `encoder` is what is released: `alpha` parts of the last
    round's encoder (`of` "round") or of the running average of all (`of` "average"), the rest the seed."""
    return {"seed": seed, "rounds": list(links), "alpha": alpha, "of": of, "encoder": encoder}


def check(folder: Path) -> int:
    """Rounds in the lineage of a release, if it leads without a gap from the seed to the encoder in the weights.

    Raises SourceError where it is unreadable, PolicyError naming the first gap.
    """
    try:
        values = json.loads((folder / NAME).read_bytes())
        before, links = values["seed"], values["rounds"]
        pairs = [(link["round"], link["base"], link["result"]) for link in links]
        whole, encoder = float(values["alpha"]) == 1 and values["of"] == "round", values["encoder"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{folder / NAME}", f"unreadable: {error}", "fetch the release again") from None
    for number, base, result in pairs:
        if base != before:
            raise PolicyError(f"lineage, round {number}", "does not begin where the round before ended", "refused")
        before = result
    if tensors_id(encoder_of(load(folder / WEIGHTS).tensors)) != encoder:
        raise PolicyError(f"{folder / WEIGHTS}", "is not the encoder the lineage ends with", "refused")
    if whole and encoder != before:
        raise PolicyError("lineage", "ends with another encoder than the weights hold", "refused")
    return len(pairs)
