"""Weights to start from, and weights to use: our checkpoints and every foreign form that `foreign_weights` reads.

What a file states (heads, architecture) is taken over; what it does not state must be said by the person, and the
decoder's heads are then checked by what no shape shows: the reconstruction loss.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from usfmae.core import checkpoint
from usfmae.core.checkpoint import Loaded, decoder_of, load, read_metadata, tensors_id
from usfmae.core.checkpoint_header import FORMAT, describe, trail_of
from usfmae.core.config import ModelSettings, TrainRecipe, TrainSettings, validated
from usfmae.core.errors import CheckpointError, UsageError
from usfmae.core.mae.model import MaskedAutoencoder, fresh, load_tensors
from usfmae.core.mae.weights.foreign_weights import read_foreign

logger = logging.getLogger(__name__)

MARGIN = 1.05  # another head count must beat the stated one by this factor before it is believed
POSITIONS = ("pos_embed", "decoder_pos_embed")


@dataclass(frozen=True)
class InitWeights:
    """Weights to begin with."""

    tensors: dict[str, Tensor]
    id: str  # content id of the file's tensors, for the lineage
    model: ModelSettings  # the architecture that the file states or its shapes show
    unstated: frozenset[str] = frozenset()  # parts of it that neither says: "heads", "decoder_heads"
    train: TrainRecipe | None = None  # of our checkpoints
    stated: dict[str, Any] = field(default_factory=dict)  # of mask_ratio, norm_pix, mean, std, of foreign files

    @property
    def has_decoder(self) -> bool:
        return bool(decoder_of(self.tensors))


def read(path: Path) -> InitWeights:
    """Read any of the formats; nothing but tensors is ever unpickled. Raises CheckpointError."""
    if path.suffix == ".safetensors" and read_metadata(path).get("format") == FORMAT:
        loaded = load(path)
        return InitWeights(loaded.tensors, loaded.trail.id, loaded.model, train=loaded.train)
    foreign = read_foreign(path)
    return InitWeights(
        foreign.tensors, tensors_id(foreign.tensors), foreign.model, foreign.unstated, stated=foreign.train
    )


def load_any(path: Path, heads: int | None = None, decoder_heads: int | None = None) -> Loaded:
    """Our checkpoint, or a foreign file as one: what it does not state has the usual values of its kind.

    `heads`, `decoder_heads`: said by a person. A decoder whose heads nobody states is left out, and a warning says so:
    with wrong heads it would predict something else. Raises CheckpointError, also where the encoder's are unknown.
    """
    if path.suffix == ".safetensors" and read_metadata(path).get("format") == FORMAT:
        return load(path)
    start = read(path)
    given = {name: n for name, n in (("heads", heads), ("decoder_heads", decoder_heads)) if n is not None}
    unknown = start.unstated - set(given)
    if "heads" in unknown:
        raise CheckpointError(
            f"weights {path}",
            f"do not say how many attention heads they have, and no published ViT is {start.model.width} wide",
            "name them: 'usfmae import FILE --heads N --out CHECKPOINT'",
        )
    tensors = start.tensors
    if "decoder_heads" in unknown:
        logger.warning(
            "weights %s do not say how many heads their decoder has: only the encoder is used; 'usfmae import' takes "
            "both with --decoder-heads 8 (paper) or 16 (notebook, facebookresearch)",
            path,
        )
        tensors = checkpoint.encoder_of(tensors)
    model = validated(ModelSettings, {**start.model.model_dump(), **given}, "heads")
    _check_whole(tensors, model, path)
    train = TrainRecipe.model_validate(start.stated)
    content = tensors_id(tensors)
    metadata = describe(model, train, parents=(start.id,), imported=path.name, content=content)
    trail = replace(trail_of(metadata), id=content)
    return Loaded(tensors, model, train, metadata, trail)


def _check_whole(tensors: Mapping[str, Tensor], model: ModelSettings, path: Path) -> None:
    """CheckpointError that names the first tensor that lacks, has another shape, or holds what is no number."""
    with torch.device("meta"):  # shapes alone, no memory
        own = dict(MaskedAutoencoder(model).state_dict())
    wanted = own if "decoder_embed.weight" in tensors else checkpoint.encoder_of(own)
    for name in sorted(wanted):
        if name not in tensors:
            why = "is missing"
        elif tensors[name].shape != wanted[name].shape:
            why = f"has shape {tuple(tensors[name].shape)}, the others need {tuple(wanted[name].shape)}"
        elif not torch.isfinite(tensors[name]).all():
            why = "holds values that are no numbers"
        else:
            continue
        raise CheckpointError(f"weights {path}: tensor {name}", why, "fetch or export them again")


def build(
    start: InitWeights | None,
    model: ModelSettings,
    train: TrainSettings,
    loss_of: Callable[[MaskedAutoencoder], float],
    stated: bool = False,
) -> MaskedAutoencoder:
    """The model to train. `stated`: the person named the decoder's heads. `loss_of` measures a reconstruction loss.

    Raises UsageError where weights are required or heads unstated, CheckpointError where the weights do not fit.
    """
    built = fresh(model, train.mask_ratio, train.norm_pix, train.seed)
    if train.init_required and (start is None or not start.has_decoder):
        raise UsageError(
            f"preset {train.preset}",
            "starts from ImageNet MAE weights with their decoder, as the authors' notebook does",
            "give --init mae_pretrain_vit_base_full.pth, or use --preset paper for random weights",
        )
    if start is None:
        return built
    _check_stated(start, model, train)
    own = built.state_dict()
    # A timm export drops the decoder; facebookresearch's encoder file too.
    tensors = {**(decoder_of(own) if not start.has_decoder else {}), **start.tensors}
    load_tensors(built, resized(tensors, start.model, model), "weights of --init")
    if start.has_decoder and "decoder_heads" in start.unstated:
        _check_heads(built, model, train, loss_of, stated)
    return built


def _check_stated(start: InitWeights, model: ModelSettings, train: TrainSettings) -> None:
    """What the file states must be what is built: an encoder's heads show in its shapes as little as a decoder's."""
    free = {"image_size", *start.unstated}  # positions are resampled; what nothing states a person says
    names = [name for name in type(model).model_fields if start.has_decoder or not name.startswith("decoder_")]
    differ = [
        f"{n} {getattr(start.model, n)} (asked: {getattr(model, n)})"
        for n in names
        if n not in free and getattr(start.model, n) != getattr(model, n)
    ]
    if differ:
        raise CheckpointError("weights of --init", f"have {', '.join(differ)}", "leave out model.*, or make them agree")
    for name in ("norm_pix", "mean", "std") if start.train else ():
        before, now = getattr(start.train, name), getattr(train, name)
        if before != now:
            logger.warning("weights of --init were trained with train.%s=%s, this run has %s", name, before, now)


def architecture(model: ModelSettings, start: InitWeights | None) -> ModelSettings:
    """The file's own architecture, but for the keys that differ from the defaults: a person asked for those."""
    if start is None:
        return model
    default = ModelSettings()
    own = start.model.model_dump(exclude=set(start.unstated))
    if not start.has_decoder:
        own = {name: value for name, value in own.items() if not name.startswith("decoder_")}
    changed = {n: v for n, v in model.model_dump().items() if v != getattr(default, n) or n not in own}
    return ModelSettings.model_validate({**own, **changed})


def resized(tensors: dict[str, Tensor], before: ModelSettings, now: ModelSettings) -> dict[str, Tensor]:
    """The tensors with position embeddings resampled (bicubic) where the grid of patches is another; warned of."""
    old, new = before.image_size // before.patch_size, now.image_size // now.patch_size
    if old == new or before.patch_size != now.patch_size:
        return tensors
    logger.warning(
        "weights were trained on images of %d pixels, this model sees %d: positions are resampled from %d x %d to "
        "%d x %d patches; train or fine-tune them before use",
        *(before.image_size, now.image_size, old, old, new, new),
    )
    return {n: resampled(t, new) if n in POSITIONS and t.shape[1] == 1 + old * old else t for n, t in tensors.items()}


def resampled(positions: Tensor, grid: int) -> Tensor:
    """Position embedding (1, 1 + L, D) -> (1, 1 + grid * grid, D); the class token's stays."""
    cls, patches = positions[:, :1], positions[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    table = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)  # (1, D, side, side)
    table = F.interpolate(table, (grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([cls, table.flatten(2).transpose(1, 2)], dim=1)


def _check_heads(
    built: MaskedAutoencoder,
    model: ModelSettings,
    train: TrainSettings,
    loss_of: Callable[[MaskedAutoencoder], float],
    stated: bool,
) -> None:
    """8 or 16 heads load without error and predict differently, so the choice is explicit and then measured."""
    losses = {}
    for heads in sorted({8, 16, model.decoder_heads}):
        if model.decoder_width % heads == 0:
            other = MaskedAutoencoder(
                model.model_copy(update={"decoder_heads": heads}), train.mask_ratio, train.norm_pix
            )
            load_tensors(other, built.state_dict())
            losses[heads] = loss_of(other)
    by_heads = ", ".join(f"{loss:.4f} with {heads}" for heads, loss in losses.items())
    best, next_best = [*sorted(losses, key=losses.__getitem__), model.decoder_heads][:2]
    if not stated:
        clear = losses[best] * MARGIN < losses[next_best]
        raise UsageError(
            "weights of --init",
            f"do not say how many decoder heads they were trained with; reconstruction loss: {by_heads}",
            f"name them: --decoder-heads {best}" if clear else "name them: --decoder-heads 8 (paper) or 16 (notebook)",
        )
    if losses[best] * MARGIN < losses[model.decoder_heads]:
        raise CheckpointError(
            f"decoder heads {model.decoder_heads}",
            f"these weights reconstruct better with others; loss: {by_heads}",
            f"use --decoder-heads {best}",
        )
