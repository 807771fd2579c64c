"""The frozen encoder whose features a campaign predicts: the one it began with, the same at every site.

    DIR/campaigns/NAME/teacher-HASH.safetensors   the encoder that the recipe names, with a checksum beside it

The recipe names it by hash, and the coordinator signs the recipe. A site of the first round has it already: it is that
round's base. One that joins later, or whose file is damaged, answers `need-teacher` and is asked again in the same round
with the tensors beside the model; they are inspected as every incoming encoder is. Nothing else is ever frozen in its
place: sites that learned from different teachers would pull the common encoder apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from usfmae.client.rounds import update_files
from usfmae.client.rounds.apply_step import LostError
from usfmae.client.site import Site
from usfmae.core.config import TrainRecipe
from usfmae.core.errors import PolicyError
from usfmae.core.federated.encodings import Floats
from usfmae.core.federated.messages import DeclineReason, TrainRequest
from usfmae.core.files import put, replacing

Tensors = Mapping[str, Floats]


def place(site: Site, request: TrainRequest, recipe: TrainRecipe) -> Path:
    """Where this campaign's teacher lies at this site."""
    return site.root / "campaigns" / request.campaign / f"teacher-{recipe.teacher[:16]}.safetensors"


def check(recipe: TrainRecipe) -> None:
    """PolicyError where features are to be predicted and no teacher is named."""
    if recipe.target != "pixels" and not recipe.teacher:
        raise PolicyError(f"train.target {recipe.target}", "the request names no teacher", "update the coordinator")


def lacking(site: Site, request: TrainRequest, recipe: TrainRecipe) -> str:
    """What to answer where the teacher is wanted and neither here nor the round's own base; "" otherwise."""
    check(recipe)
    if recipe.target == "pixels" or request.base == recipe.teacher or _is_here(place(site, request, recipe)):
        return ""
    return DeclineReason.NEED_TEACHER


def settle(site: Site, request: TrainRequest, recipe: TrainRecipe, received: Path) -> None:
    """Put an inspected teacher to its place. ResourceError where the disk is full."""
    target = place(site, request, recipe)
    target.parent.mkdir(parents=True, exist_ok=True)
    put(received, target)
    update_files.seal(target)


def load(site: Site, request: TrainRequest, recipe: TrainRecipe, base: Tensors, is_first: bool) -> Tensors | None:
    """The teacher's tensors; None where pixels are predicted.

    In a campaign's first round the base itself is frozen, by the process that `is_first`. LostError where the file is
    missing or damaged: it is removed, and the coordinator asked for it.
    """
    check(recipe)
    if recipe.target == "pixels":
        return None
    path = place(site, request, recipe)
    if _is_here(path):
        return load_file(path)
    if request.base != recipe.teacher:
        if is_first:
            path.unlink(missing_ok=True)
        raise LostError("frozen teacher", "is lost or damaged", DeclineReason.NEED_TEACHER)
    frozen = {name: np.array(base[name]) for name in base}
    if is_first:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial_file:
            save_file(frozen, partial_file)
        update_files.seal(path)
    return frozen


def _is_here(path: Path) -> bool:
    """Whether the file is there, sealed and whole: one that nobody sealed may be half of a teacher."""
    return path.exists() and update_files.is_sealed(path) and update_files.is_whole(path)
