"""One site's part of a round: start from the round's encoder, train on the site's images, encode the difference.

    learn     base, decoder, images -> trained encoder and decoder (`train_autoencoder`, or any other function)
    encode    trained - base + residual -> payload and the next residual, one tensor in memory at a time

Only the payload and the figures leave the site. Decoder, residual and optimizer state stay. Nothing here knows a
network, a process or a site's directory: an agent's worker and the simulation call the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from usfmae.core.checkpoint import decoder_of, encoder_of
from usfmae.core.config.train import Recipe
from usfmae.core.corpus.batch import Corpus, Positions
from usfmae.core.federated import codec
from usfmae.core.federated.codec import EncodedTensor
from usfmae.core.federated.encodings import Floats
from usfmae.core.federated.messages import TrainRequest
from usfmae.core.mae.evaluation import evaluate
from usfmae.core.mae.model import MaskedAutoencoder, load_tensors
from usfmae.core.mae.targets import plain, predicting
from usfmae.core.mae.train import StepRecord, TrainContext, TrainPlan, train

Tensors = Mapping[str, Floats]  # by name


@dataclass(frozen=True)
class TrainingData:
    """The images of one round at a site."""

    corpus: Corpus
    train: Positions  # what is trained on, replayed images included
    measured: Positions  # held-out images, for the losses before and after
    own: int  # images of the site itself among those trained on: what the reply says


@dataclass(frozen=True)
class Progress:
    """Where a training keeps its state, and who hears of it. The defaults keep nothing and tell nobody."""

    state: Path | None = None  # folder of the optimizer state, carried from round to round
    log: Path | None = None  # a line a step
    loss_before: float | None = None  # measured already, before an interruption
    on_loss_before: Callable[[float], None] = lambda loss: None
    on_step: Callable[[StepRecord], bool | None] = lambda record: None  # True stops after this step
    on_model: Callable[[MaskedAutoencoder], None] = lambda model: None  # sees the incoming model, and may refuse it
    on_trained: Callable[[MaskedAutoencoder], None] = lambda model: None  # sees the trained one


@dataclass(frozen=True)
class Trained:
    """What local training leaves."""

    encoder: Tensors
    images: int
    steps: int
    loss_before: float = 0.0  # held-out masked loss at this site of the base
    loss_after: float = 0.0  # the same after training
    decoder: Tensors = field(default_factory=dict)  # stays at the site


@dataclass(frozen=True)
class LocalRound:
    """What one site makes of one request."""

    trained: Trained
    payload: Iterator[EncodedTensor]  # in the order of names; encoded when it is taken


def local_round(
    base: Tensors, request: TrainRequest, residual: Tensors, learn: Callable[[], Trained | None]
) -> LocalRound | None:
    """Learn from `base` and encode what changed; None where the training was asked to stop before its end.

    `base` and `residual` may be read from disk as they are used; a name that `residual` lacks counts as zeros.
    PolicyError where a trained value is not finite.
    """
    trained = learn()
    if trained is None:
        return None
    return LocalRound(trained, codec.encode(base, trained.encoder, request.encoding, residual, request.bound))


@dataclass(frozen=True)
class StartWeights:
    """What a site's training begins with."""

    encoder: Tensors  # the round's
    decoder: Tensors  # the site's own
    teacher: Tensors | None = None  # the frozen encoder whose features are predicted, where the target is not pixels


def train_autoencoder(
    start: StartWeights,
    data: TrainingData,
    request: TrainRequest,
    recipe: Recipe,
    progress: Progress = Progress(),
    device: str | torch.device = "cpu",
) -> Trained | None:
    """Masked-autoencoder training from the round's encoder and this site's decoder; None where it was stopped.

    `recipe` is the request's with what the site decides; its `train.steps`, those of the campaign, place the learning rate.
    """
    # The shared encoder with the site's own decoder.
    settings = recipe.train
    model = _model(start, recipe)
    model.to(device)
    progress.on_model(model)

    # Held-out loss, local steps, held-out loss again.
    before = progress.loss_before
    if before is None:
        before = evaluate(model, data.corpus, data.measured, settings)
        progress.on_loss_before(before)
    result = train(
        model,
        data.corpus,
        settings,
        TrainPlan(data.train, request.steps, request.global_step, recipe.train.steps),
        TrainContext(progress.state, progress.log, progress.on_step),
    )
    if not result.finished:
        return None
    after = evaluate(model, data.corpus, data.measured, settings)
    progress.on_trained(model)

    # The parts go separate ways: the encoder is encoded and leaves, the decoder stays.
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    encoder, own_decoder = (
        {name: tensor.numpy() for name, tensor in part(tensors).items()} for part in (encoder_of, decoder_of)
    )
    return Trained(encoder, data.own, result.steps, before, after, own_decoder)


def _model(start: StartWeights, recipe: Recipe) -> MaskedAutoencoder:
    """The shared encoder with the site's own decoder, predicting what the recipe names.

    The seed's decoder has no head for a teacher's features: it starts fresh, and then stays at the site with the rest.
    """
    settings = recipe.train
    tensors = {
        name: torch.from_numpy(np.array(values)) for name, values in [*start.encoder.items(), *start.decoder.items()]
    }
    built = MaskedAutoencoder(recipe.model, settings.mask_ratio, settings.norm_pix)
    load_tensors(built, plain(tensors), "incoming model")
    if settings.target == "pixels":
        return built
    teacher = {name: torch.from_numpy(np.array(values)) for name, values in (start.teacher or {}).items()}
    model = predicting(built, settings, teacher or None)
    load_tensors(model, {**model.state_dict(), **tensors}, "incoming model")
    return model
