"""What must be equal: one site and central training; k shards and the pooled step; quantised and exact rounds."""

import numpy as np
import torch
from safetensors.numpy import load_file

from usfmae.core.checkpoint import decoder_of, encoder_of
from usfmae.core.config import ModelSettings, TrainSettings
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.shard import Packed, write_shard
from usfmae.core.model import MaskedAutoencoder
from usfmae.core.train import train
from usfmae.server.simulate import Trained, masked_autoencoder

IMAGES = np.random.default_rng(3).integers(0, 255, (16, 16, 16), dtype=np.uint8)
RECIPE = {"train.batch_size": 4, "train.micro_batch": 4, "train.precision": "fp32", "train.lr": 1e-3}


def corpus(place):
    write_shard(place / "corpus", "all", [Packed(p, f"{i:064d}", f"g{i // 4}") for i, p in enumerate(IMAGES)])


def test_one_site_is_central_training_bit_for_bit(federation, tmp_path):
    made = federation(1, trainer=masked_autoencoder, **RECIPE, **{"rounds.steps": 3, "rounds.encoding": "fp32"})
    corpus(made.hospitals[0].place)
    settings: TrainSettings = made.home.settings().train
    model = MaskedAutoencoder(ModelSettings(**made.home.settings().model.model_dump()), settings.mask_ratio)
    start = {**load_file(made.home.decoder), **made.encoder(0)}
    model.load_state_dict({name: torch.from_numpy(values) for name, values in start.items()})
    data = Corpus([made.hospitals[0].place / "corpus"])
    mine, _ = data.split(settings.held_out, settings.seed)
    for number in range(3):
        train(
            model,
            data,
            settings.model_copy(update={"steps": 9, "origin": 0} if hasattr(settings, "origin") else {"steps": 9}),
            positions=mine,
            steps=3,
            start_step=3 * number,
            total_steps=9,
            state=tmp_path / "central",
        )
    made.run(3)
    for name, values in encoder_of(model.state_dict()).items():
        assert made.encoder(3)[name].tobytes() == values.numpy().tobytes(), name
    assert decoder_of(model.state_dict())


def quadratic(place, request, encoder, decoder):
    """One full-batch gradient step of least squares on this hospital's shard: exact, and linear in the data."""
    targets = np.load(place / "targets.npy")  # (images, values)
    flat = np.concatenate([encoder[n].ravel() for n in sorted(encoder)]).astype(np.float64)
    before = float(((flat - targets) ** 2).mean())
    for _ in range(request.steps):
        flat = flat - 0.2 * (flat - targets.mean(axis=0))
    parts, at = {}, 0
    for name in sorted(encoder):
        size = encoder[name].size
        parts[name], at = flat[at : at + size].reshape(encoder[name].shape).astype(np.float32), at + size
    return Trained(parts, len(targets), request.steps, before, float(((flat - targets) ** 2).mean()))


def with_targets(made, images_each):
    random = np.random.default_rng(5)
    size = sum(v.size for v in made.encoder(0).values())
    every = []
    for hospital, count in zip(made.hospitals, images_each, strict=True):
        targets = random.normal(size=(count, size))
        np.save(hospital.place / "targets.npy", targets)
        every.append(targets)
    return np.concatenate(every)


def flat_of(encoder):
    return np.concatenate([encoder[n].ravel() for n in sorted(encoder)]).astype(np.float64)


def test_k_equal_shards_and_one_full_batch_step_are_the_pooled_step(federation):
    made = federation(4, trainer=quadratic, **{"rounds.steps": 1, "rounds.encoding": "fp32", "gate.base_limit": 100})
    pooled = with_targets(made, [8, 8, 8, 8])
    start = flat_of(made.encoder(0))
    made.run(1)
    assert np.allclose(flat_of(made.encoder(1)), start - 0.2 * (start - pooled.mean(axis=0)), atol=1e-6)


def test_twenty_int8_rounds_with_error_feedback_reach_the_exact_loss_within_a_percent(federation):
    losses = {}
    for encoding in ("fp32", "int8"):
        options = {"rounds.steps": 2, "rounds.encoding": encoding, "gate.base_limit": 100, "gate.norm_limit": 100}
        made = federation(3, encoding, trainer=quadratic, **options)
        pooled = with_targets(made, [6, 9, 12])
        made.run(20)
        losses[encoding] = float(((flat_of(made.encoder(20)) - pooled) ** 2).mean())
        seed = float(((flat_of(made.encoder(0)) - pooled) ** 2).mean())
    assert losses["fp32"] < 0.999 * seed
    assert abs(losses["int8"] - losses["fp32"]) < 0.01 * losses["fp32"]
