"""The way down: the committed encoder is its base plus the packed step, bit for bit, and nothing is lost in packing."""

import math

import numpy as np
import pytest
from safetensors.numpy import load_file

from usfmae.core.federated import codec
from usfmae.core.federated.encodings import int8
from usfmae.core.federated.local_round import Trained


def taken(made, number, encoding):
    """The encoder of a round as a site makes it: the one before, and the step's bytes."""
    data, at, tensors = made.home.step(number).read_bytes(), 0, {}
    for name, before in sorted(made.encoder(number - 1).items()):
        size = codec.packed_size(math.prod(before.shape), encoding)
        tensors[name] = codec.stepped(data[at : at + size], before, encoding).reshape(before.shape)
        at += size
    assert at == len(data)
    return tensors


WAYS = [(encoding, rule) for encoding in ("int8", "bf16") for rule in ("fedavg", "fedadam", "median")]


@pytest.mark.parametrize(("encoding", "rule"), [*WAYS, ("int4", "fedavg"), ("sparse", "fedavg"), ("sparse", "auto")])
def test_an_encoder_is_the_one_before_plus_the_step(federation, encoding, rule):
    made = federation(3, **{"rounds.encoding": encoding, "merge.rule": rule})
    for number in (1, 2, 3):
        made.run(number)
        for name, values in taken(made, number, encoding).items():
            assert np.array_equal(values.view("u4"), made.encoder(number)[name].view("u4")), name
    assert len(list(made.home.checkpoints.glob("step-*"))) == 2, "the last, and one to be written over"


def test_what_a_step_leaves_out_is_not_lost(federation):
    """One weight moves far and its neighbours a little: less than half a unit of their block in each round."""

    def trainer(place, request, encoder, decoder):
        moved = {name: values + np.float32(1e-4) for name, values in encoder.items()}
        for values in moved.values():
            values.reshape(-1)[0] += np.float32(0.5 + 1e-3 * request.round)  # no update is a replay of another
        return Trained(moved, images=10, steps=request.steps)

    made = federation(1, trainer=trainer, **{"rounds.steps": 1, "gate.base_limit": 100.0, "gate.norm_limit": 100.0})
    made.run(60)
    for name, start in made.encoder(0).items():
        if start.size >= int8.BLOCK:
            gone = (made.encoder(60)[name] - start).reshape(-1)[1 : int8.BLOCK]
            assert np.abs(gone - 60e-4).max() < 2 * 0.5 / 127, "within the residue of the site and that of the step"


@pytest.mark.parametrize("encoding", ["int8", "sparse"])
def test_a_virtual_site_carries_on_the_share_of_an_error_that_a_real_one_does(federation, encoding):
    def trainer(place, request, encoder, decoder):
        random = np.random.default_rng(0)
        moved = {name: v + random.normal(0, 1e-3, v.shape).astype("f4") for name, v in encoder.items()}
        return Trained(moved, images=10, steps=request.steps)

    made = federation(1, trainer=trainer, **{"rounds.encoding": encoding})
    made.run(1)
    hospital, base = made.hospitals[0], made.encoder(0)
    payload = load_file(next(hospital.place.glob("answers/*/update.safetensors")))
    kept = load_file(hospital.place / "residual.safetensors")
    moved = trainer(None, made.ledger.rounds()[0], base, None).encoder
    for name, before in base.items():
        sent = codec.unpack(payload[name].tobytes(), before.reshape(-1), encoding).reshape(before.shape)
        error = moved[name] - before - sent
        assert np.allclose(kept[name], codec.decay(encoding) * error, atol=1e-7)


def test_lossless_updates_are_merged_as_they_are(federation):
    made = federation(2, **{"rounds.encoding": "fp32"})
    made.run(2)
    assert not list(made.home.checkpoints.glob("step-*")) and not list(made.home.checkpoints.glob("memory-left-*"))


def test_the_step_goes_to_who_answered_the_round_before_and_the_whole_to_the_others(federation):
    made = federation(3, **{"rounds.quorum": 2, "rounds.deadline": 0.001})
    tasks, slow, real = [], made.hospitals[2].site, made.wire.ask
    made.wire.ask = lambda task: (
        tasks.append((task.request.round, task.site == slow, task.step, task.request.delta_from)) or real(task)
    )
    made.wire.order = lambda messages: [m for m in messages if made.wire.waiting[m].site != slow]
    made.run(1)
    made.wire.order = list
    made.run(2)
    assert {(number, step, name) for number, _, step, name in tasks if number == 1} == {(1, None, "")}
    before = made.ledger.rounds()[0].base
    assert {entry for entry in tasks if entry[0] == 2} == {
        (2, False, made.home.step(1), before),
        (2, True, None, ""),
    }


def test_a_site_without_the_start_gets_the_whole_encoder(federation):
    made = federation(1)
    made.run(1)
    requests = made.declining("need-base", lambda request: bool(request.delta_from))
    made.run(2)
    assert requests == [True, False]
    assert made.verdicts(2) == ["admitted"]


def test_an_encoder_put_in_place_of_the_merge_has_no_step(federation):
    """As after a start from an earlier round, or a merge that the forgetting budget took back."""

    made = federation(1)
    made.run(1)
    made.home.forget_step(1)
    tasks, real = [], made.wire.ask
    made.wire.ask = lambda task: tasks.append(task.request.delta_from) or real(task)
    made.run(2)
    assert tasks == [""]
