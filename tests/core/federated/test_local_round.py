"""A site's part of a round, with a learner that only adds."""

from __future__ import annotations

import numpy as np

from usfmae.core.federated import codec
from usfmae.core.federated.local_round import Trained, local_round
from usfmae.core.federated.messages import TrainRequest

REQUEST = TrainRequest("unit", 1, "base", 0, 4, "{}")
BASE = {"a": np.zeros(300, np.float32), "b": np.ones((2, 2), np.float32)}


def learner(step: float = 0.1) -> Trained:
    noise = np.random.default_rng(1)
    moved = {name: (v + step * noise.normal(size=v.shape)).astype(np.float32) for name, v in BASE.items()}
    return Trained(moved, images=7, steps=4)


def test_a_round_encodes_what_was_learned_and_the_residual_of_the_round_before() -> None:
    first = local_round(BASE, REQUEST, {}, learner)
    assert first is not None and first.trained.images == 7
    tensors = {tensor.name: tensor for tensor in first.payload}
    assert sorted(tensors) == ["a", "b"]
    read = codec.stepped(tensors["a"].data, BASE["a"], "int8")
    assert np.abs(read - learner().encoder["a"]).max() < 0.01
    residual = {name: tensor.error for name, tensor in tensors.items() if tensor.error is not None}
    second = local_round(BASE, REQUEST, residual, lambda: Trained(BASE, 7, 4))
    assert second is not None
    sent = codec.stepped(next(iter(second.payload)).data, BASE["a"], "int8")
    assert np.allclose(sent, residual["a"], atol=1e-5), "nothing was learned: what was left out before is sent now"


def test_a_training_that_was_stopped_sends_nothing() -> None:
    assert local_round(BASE, REQUEST, {}, lambda: None) is None
