"""Weights to start from: our checkpoints, facebookresearch and official USF-MAE files, timm and Hugging Face folders.

What a file states (heads, architecture) is taken over; what it does not state must be said by the person, and the
decoder's heads are then checked by what no shape shows: the reconstruction loss.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from usfmae.core.checkpoint import FORMAT, decoder_of, load, read_metadata, read_tensors, tensors_id
from usfmae.core.config import ModelSettings, TrainSettings
from usfmae.core.errors import CheckpointError, UsageError
from usfmae.core.mae import foreign_weights
from usfmae.core.mae.model import MaskedAutoencoder, fresh, load_tensors

logger = logging.getLogger(__name__)

MARGIN = 1.05  # another head count must beat the stated one by this factor before it is believed


@dataclass(frozen=True)
class InitWeights:
    """Weights to begin with."""

    tensors: dict[str, Tensor]
    id: str  # content id of the file's tensors, for the lineage
    model: ModelSettings | None  # the architecture, where the file states it
    train: TrainSettings | None = None

    @property
    def has_decoder(self) -> bool:
        return bool(decoder_of(self.tensors))


def read(path: Path) -> InitWeights:
    """Read any of the formats; nothing but tensors is ever unpickled. Raises CheckpointError."""
    if path.is_dir() and (path / "config.json").exists():
        if '"vit_mae"' in (path / "config.json").read_text():
            tensors, model = foreign_weights.read_hf(path)
            return InitWeights(tensors, tensors_id(tensors), model)
        tensors, _ = read_tensors(path / foreign_weights.WEIGHTS)  # the encoder, under our names
        return InitWeights(tensors, tensors_id(tensors), foreign_weights.timm_settings(path / "config.json"))
    if path.suffix == ".safetensors":
        if read_metadata(path).get("format") == FORMAT:
            loaded = load(path)
            return InitWeights(loaded.tensors, loaded.trail.id, loaded.model, loaded.train)
        tensors, _ = read_tensors(path)
    else:
        tensors = foreign_weights.read_pth(path)
    return InitWeights(tensors, tensors_id(tensors), None)


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
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(("head.", "fc_norm."))}
    load_tensors(built, {**tensors}, "weights of --init")
    if start.has_decoder and start.model is None:
        _check_heads(built, model, train, loss_of, stated)
    return built


def _check_stated(start: InitWeights, model: ModelSettings, train: TrainSettings) -> None:
    """What the file states must be what is built: an encoder's heads show in its shapes as little as a decoder's."""
    stated = start.model or model
    names = [name for name in type(model).model_fields if start.has_decoder or not name.startswith("decoder_")]
    differ = [
        f"{n} {getattr(stated, n)} (asked: {getattr(model, n)})"
        for n in names
        if getattr(stated, n) != getattr(model, n)
    ]
    if differ:
        raise CheckpointError("weights of --init", f"have {', '.join(differ)}", "leave out model.*, or make them agree")
    for name in ("norm_pix", "mean", "std") if start.train else ():
        before, now = getattr(start.train, name), getattr(train, name)
        if before != now:
            logger.warning("weights of --init were trained with train.%s=%s, this run has %s", name, before, now)


def architecture(asked: ModelSettings, start: InitWeights | None) -> ModelSettings:
    """The file's own architecture where it states one and nothing else was asked for."""
    return start.model if start and start.model and asked == ModelSettings() else asked


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
    found = ", ".join(f"{loss:.4f} with {heads}" for heads, loss in losses.items())
    best, next_best = [*sorted(losses, key=losses.__getitem__), model.decoder_heads][:2]
    if not stated:
        clear = losses[best] * MARGIN < losses[next_best]
        raise UsageError(
            "weights of --init",
            f"do not say how many decoder heads they were trained with; reconstruction loss: {found}",
            f"name them: --decoder-heads {best}" if clear else "name them: --decoder-heads 8 (paper) or 16 (notebook)",
        )
    if losses[best] * MARGIN < losses[model.decoder_heads]:
        raise CheckpointError(
            f"decoder heads {model.decoder_heads}",
            f"these weights reconstruct better with others; loss: {found}",
            f"use --decoder-heads {best}",
        )
