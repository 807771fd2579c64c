"""What every export target needs: the model of a checkpoint, images to compare with, and what a person may choose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from usfmae.core.checkpoint import Loaded, decoder_of
from usfmae.core.mae.model import MaskedAutoencoder, load_tensors


@dataclass(frozen=True)
class ExportOptions:
    """What a person may choose of an export; None leaves it to the library, or unsaid."""

    opset: int | None = None  # of ONNX
    ir_version: int | None = None  # of ONNX
    licence: str | None = None  # of the weights, as model hubs spell it: apache-2.0, cc-by-nc-4.0
    base_model: str | None = None  # the model it was made from, as a hub names it


def model_of(loaded: Loaded) -> MaskedAutoencoder:
    """The checkpoint's model, for evaluation; a checkpoint of an encoder alone gets a random decoder.

    Raises CheckpointError where other tensors are missing.
    """
    model = MaskedAutoencoder(loaded.model, loaded.train.mask_ratio, loaded.train.norm_pix)
    tensors = loaded.tensors if decoder_of(loaded.tensors) else {**decoder_of(model.state_dict()), **loaded.tensors}
    load_tensors(model, tensors)
    return model.eval()


def probe_images(loaded: Loaded, count: int = 2) -> Tensor:
    """Fixed random images (count, 3, S, S) on which two models are compared."""
    size = loaded.model.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
