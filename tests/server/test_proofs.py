"""What must be equal: one site and central training; k shards and the pooled step; quantised and exact rounds.

All on the real masked autoencoder, tiny, through the real round loop, gate, ledger and merge.
"""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from usfmae.core.checkpoint import decoder_of, encoder_of
from usfmae.core.checkpoint_header import recipe_of
from usfmae.core.config import TrainSettings
from usfmae.core.corpus.batch import Corpus
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.federated.local_round import Trained
from usfmae.core.mae.device_batches import normalise
from usfmae.core.mae.evaluation import evaluate, fixed_noise
from usfmae.core.mae.model import MaskedAutoencoder
from usfmae.core.mae.train import TrainContext, TrainPlan, train
from usfmae.server.simulate import masked_autoencoder, tissue

IMAGES = np.random.default_rng(3).integers(0, 255, (32, 16, 16), dtype=np.uint8)
RECIPE = {"train.batch_size": 4, "train.micro_batch": 4, "train.precision": "fp32", "train.lr": 1e-3}


def corpus(place, images=range(16)):
    write_shard(place / "corpus", "all", [PackedImage(IMAGES[i], f"{i:064d}", f"g{i // 4}") for i in images])


def model_of(made, number):
    """The whole model after a round, with the seed's decoder."""
    settings = made.home.settings()
    model = MaskedAutoencoder(settings.model, settings.train.mask_ratio, settings.train.norm_pix)
    tensors = {**load_file(made.home.decoder), **made.encoder(number)}
    model.load_state_dict({name: torch.from_numpy(values) for name, values in tensors.items()})
    return model


def test_one_site_is_central_training_bit_for_bit(federation, tmp_path):
    made = federation(1, trainer=masked_autoencoder, **RECIPE, **{"rounds.steps": 3, "rounds.encoding": "fp32"})
    place = made.hospitals[0].place
    corpus(place)
    settings: TrainSettings = made.home.settings().train
    model, data = model_of(made, 0), Corpus([place / "corpus"])
    mine, _ = data.split(settings.held_out, settings.seed)
    central = settings.model_copy(update={"steps": 9})
    for start in (0, 3, 6):
        train(model, data, central, TrainPlan(mine, 3, start, 9), TrainContext(state=tmp_path / "central"))
    made.run(3)
    seed, final, decoder = made.encoder(0), made.encoder(3), load_file(place / "decoder.safetensors")
    assert any(not np.array_equal(seed[name], final[name]) for name in seed)
    for name, values in encoder_of(model.state_dict()).items():
        assert final[name].tobytes() == values.numpy().tobytes(), name
    for name, values in decoder_of(model.state_dict()).items():
        assert decoder[name].tobytes() == values.numpy().tobytes(), name


def gradient_step(model, data, settings, rate=0.5):
    """One step of plain gradient descent on all of a corpus; the mask depends on the image alone."""
    every = np.arange(len(data))
    noise = torch.from_numpy(fixed_noise(list(data.ids), model))
    loss = model(normalise(data.fetch(every).pixels, settings, torch.device("cpu")), noise)[0]
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= rate * parameter.grad
    return float(loss.detach())


def full_batch(place, request, encoder, decoder):
    model_settings, settings = recipe_of(request.recipe)
    model = MaskedAutoencoder(model_settings, settings.mask_ratio, settings.norm_pix)
    tensors = {**load_file(decoder), **encoder}
    model.load_state_dict({name: torch.from_numpy(np.array(values)) for name, values in tensors.items()})
    data = Corpus([place / "corpus"])
    loss = gradient_step(model, data, settings)
    return Trained({n: v.numpy() for n, v in encoder_of(model.state_dict()).items()}, len(data), 1, loss, loss)


@pytest.mark.parametrize("sites", [2, 4])
def test_k_equal_shards_and_one_full_batch_step_are_the_pooled_step(federation, tmp_path, sites):
    options = {"rounds.steps": 1, "rounds.encoding": "fp32", "merge.rule": "fedavg"}
    options |= {"gate.base_limit": 100, "gate.norm_limit": 100, "gate.clip_limit": 100, "gate.merged_limit": 100}
    made = federation(sites, trainer=full_batch, **options)
    for number, hospital in enumerate(made.hospitals):
        corpus(hospital.place, range(number, 32, sites))
    corpus(tmp_path, range(32))
    pooled = model_of(made, 0)
    gradient_step(pooled, Corpus([tmp_path / "corpus"]), made.home.settings().train)
    made.run(1)
    seed, merged = made.encoder(0), made.encoder(1)
    for name, values in encoder_of(pooled.state_dict()).items():
        moved = np.abs(values.numpy() - seed[name]).max()
        assert np.abs(merged[name] - values.numpy()).max() <= 1e-6 + 1e-5 * moved, name
    assert max(np.abs(merged[name] - seed[name]).max() for name in seed) > 1e-3


@pytest.mark.slow
def test_twenty_int8_rounds_with_error_feedback_reach_the_exact_loss_within_a_percent(federation, tmp_path):
    write_shard(tmp_path / "held-out", "all", list(tissue(99, 24, 16)))
    held_out, losses = Corpus([tmp_path / "held-out"]), {}
    for encoding in ("fp32", "int8"):
        options = {**RECIPE, "train.warmup": 0, "rounds.steps": 3, "rounds.encoding": encoding}
        made = federation(3, encoding, trainer=masked_autoencoder, **options)
        for number, hospital in enumerate(made.hospitals):
            write_shard(hospital.place / "corpus", "all", list(tissue(number, 12 + 4 * number, 16)))
        made.run(20)
        assert [r.summary["sites"] for r in made.ledger.rounds()] == [3] * 20
        decoded = model_of(made, 20)
        own = load_file(made.hospitals[0].place / "decoder.safetensors")
        decoded.load_state_dict({n: torch.from_numpy(v) for n, v in own.items()}, strict=False)
        every = np.arange(len(held_out))
        losses[encoding] = evaluate(decoded, held_out, every, made.home.settings().train)
        losses["seed"] = evaluate(model_of(made, 0), held_out, every, made.home.settings().train)
    assert losses["fp32"] < 0.95 * losses["seed"]
    assert abs(losses["int8"] - losses["fp32"]) < 0.01 * losses["fp32"], losses
