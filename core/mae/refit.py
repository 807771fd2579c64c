"""A decoder that follows an encoder: trained on the frozen encoder, the same steps from the same start for every one.

A masked loss belongs to an encoder *and* a decoder. Read with a decoder that was trained beside another encoder, it
rises as soon as the encoder moves, also where the features became better. So encoders are compared with a decoder
that was refitted alike for each: same first weights, same images, same steps, same masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from usfmae.core.checkpoint import DECODER, decoder_of, encoder_of
from usfmae.core.config import ModelSettings, TrainSettings
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.mae.model import MaskedAutoencoder, fresh, load_tensors
from usfmae.core.mae.train import TrainPlan, train

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Refit:
    """How a decoder is refitted; the same for every encoder that is compared."""

    model: ModelSettings
    train: TrainSettings  # mask ratio and target of the loss that is read afterwards
    corpus: Corpus
    positions: Positions  # images it is fitted on; those that are measured should be others
    steps: int
    decoder: Tensors | None = None  # first weights; None: random ones that depend on `train.seed` alone


def refitted(encoder: Tensors, refit: Refit) -> MaskedAutoencoder:
    """The encoder, untouched, with a decoder that was trained on it. Raises CheckpointError where shapes differ."""
    settings = refit.train
    model = fresh(refit.model, settings.mask_ratio, settings.norm_pix, settings.seed)
    decoder = decoder_of(model.state_dict()) if refit.decoder is None else refit.decoder
    load_tensors(model, {**encoder_of(dict(encoder)), **decoder}, "encoder to be measured")
    learns = {name: p.requires_grad for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad = learns[name] and name.startswith(DECODER)
    train(model, refit.corpus, settings, TrainPlan(refit.positions, refit.steps))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = learns[name]
    return model.eval()
