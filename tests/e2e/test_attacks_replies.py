"""Hostile replies of enrolled sites, over the real port: TLS, node authentication, fleet API.

All of the matrix come in one round, eleven enrolled liars for each honest site. Each must get its own verdict and an
audit entry, and the merged encoder must equal, bit for bit, the merge of the three honest ones alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.e2e.arena import Draft, Stage, row, trained
from usfmae.core import keys
from usfmae.core.federated import codec, messages
from usfmae.core.federated.messages import TrainReply

pytestmark = pytest.mark.attacks


def scales(draft: Draft, value: float) -> None:
    """Put a value where the first tensor's first scale stands."""
    name = sorted(draft.payload)[0]
    draft.payload[name] = np.float32(value).tobytes() + draft.payload[name][4:]


def repack(draft: Draft, factor: float) -> None:
    draft.payload = codec.pack(draft.base, trained(draft.base, 50, factor), draft.asked.encoding).payload


def set_images(count: int) -> Callable[[Draft], None]:
    return lambda draft: setattr(draft, "images", count)


def first(draft: Draft) -> str:
    return sorted(draft.payload)[0]


def reshape(draft: Draft) -> None:
    draft.shapes[first(draft)] = (1, 1, 1)


def missing(draft: Draft) -> None:
    draft.payload.pop(first(draft))


def extra(draft: Draft) -> None:
    draft.payload["backdoor"] = b"12345678"


def traversal(draft: Draft) -> None:
    draft.payload["../../../../etc/cron.d/owned"] = b"12345678"


def look_alike(draft: Draft) -> None:
    draft.payload[first(draft).replace("o", "\u043e")] = draft.payload.pop(first(draft))  # a Cyrillic o


def retype(draft: Draft) -> None:
    draft.dtypes[first(draft)] = "float64"


def cut(draft: Draft) -> None:
    draft.payload[first(draft)] = draft.payload[first(draft)][:-3]


def flip_bits(payload: dict[str, bytes]) -> None:
    name = sorted(payload)[0]
    payload[name] = payload[name][:-1] + bytes([payload[name][-1] ^ 1])


def someone_else(reply: TrainReply) -> TrainReply:
    return messages.sign(reply, keys.new_signing_key())


ATTACKS: dict[str, tuple[Callable[[Draft], None], str]] = {
    "NaN": (lambda d: scales(d, float("nan")), "not-finite"),
    "Inf": (lambda d: scales(d, float("inf")), "not-finite"),
    "finite until it is added": (lambda d: scales(d, 3e38), "not-finite"),
    "x1000": (lambda d: repack(d, 1000.0), "norm"),
    "x5": (lambda d: repack(d, 5.0), "norm"),
    "sign flip": (lambda d: repack(d, -1.0), "direction"),
    "example count 1e9": (set_images(10**9), "example-count"),
    "example count 0": (set_images(0), "example-count"),
    "example count negative": (set_images(-5), "example-count"),
    "wrong shape": (reshape, "wrong-shape"),
    "missing key": (missing, "missing-tensor"),
    "extra key": (extra, "extra-tensor"),
    "path traversal in a tensor name": (traversal, "extra-tensor"),
    "wrong dtype": (retype, "wrong-dtype"),
    "wrong length": (cut, "wrong-size"),
    "wrong base": (lambda d: d.fields.update(base="0" * 64), "wrong-base"),
    "another round": (lambda d: d.fields.update(round=7), "wrong-round"),
    "another campaign": (lambda d: d.fields.update(campaign="theirs"), "wrong-campaign"),
    "more steps than asked": (lambda d: d.fields.update(steps=10**6), "step-count"),
    "another encoding": (lambda d: d.fields.update(encoding="fp32"), "wrong-encoding"),
    "another site's signature": (lambda d: setattr(d, "forge", someone_else), "bad-signature"),
    "record changed after signing": (
        lambda d: setattr(d, "forge", lambda r: dataclasses.replace(r, images=999)),
        "bad-signature",
    ),
    "tampered bytes": (lambda d: setattr(d, "tamper", flip_bits), "tampered"),
    "unknown record key": (lambda d: d.extra.update(exec="rm -rf /"), "bad-record"),
    "text for a number": (lambda d: d.extra.update(images="many"), "bad-record"),
    "loss NaN": (lambda d: d.fields.update(loss_after=float("nan")), "bad-record"),
    "loss infinite": (lambda d: d.fields.update(loss_before=float("inf")), "bad-record"),
    "training time negative": (lambda d: d.fields.update(seconds=-1.0), "bad-record"),
    "another site's name": (lambda d: d.fields.update(site="0" * 16), "wrong-site"),
    "huge declared shape": (lambda d: d.shapes.update({first(d): (2**40, 2**20)}), "wrong-shape"),
    "negative declared shape": (lambda d: d.shapes.update({first(d): (-1, 0)}), "bad-message"),
    "name in look-alike letters": (look_alike, "missing-tensor"),
    "no tensors at all": (lambda d: d.payload.clear(), "missing-tensor"),
}


@pytest.fixture(scope="module")
def siege(tmp_path_factory) -> Iterator[tuple[Stage, str]]:
    """One round with every hostile hospital at once."""
    with Stage(tmp_path_factory.mktemp("siege"), hostile=len(ATTACKS)) as stage:
        for liar, (change, _) in zip(stage.liars, ATTACKS.values(), strict=True):
            liar.attack = change
        stage.hostile()
        yield stage, stage.done()


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_reply_is_refused_and_changes_nothing(attack, siege, honest_alone):
    stage, result = siege
    liar, wanted = stage.liars[list(ATTACKS).index(attack)], ATTACKS[attack][1]
    got = stage.verdict_on(liar)
    audited = stage.audited(actor="gate", site=liar.site, verdict=wanted, status="refused")
    row(attack, got, audited, result == honest_alone)
    assert (got, audited, result) == (wanted, True, honest_alone)
