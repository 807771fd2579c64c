"""The wire contract: an untrusted record becomes a message or is refused; signatures cover what matters."""

from __future__ import annotations

import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from usfmae.core.errors import PolicyError
from usfmae.core.federated import messages
from usfmae.core.federated.messages import TrainReply, TrainRequest

REPLY = TrainReply(campaign="c", round=2, base="b" * 64, content="d" * 64, images=10, loss_after=0.5)
REQUEST = TrainRequest(campaign="c", round=2, base="b" * 64, global_step=5, steps=7, recipe="{}")


@pytest.mark.parametrize("message", [REPLY, REQUEST], ids=["reply", "request"])
def test_a_message_survives_the_wire(message: TrainReply | TrainRequest) -> None:
    assert messages.from_record(type(message), messages.to_record(message)) == message


@pytest.mark.parametrize(
    "change",
    [{"images": "10"}, {"images": 1.5}, {"images": True}, {"extra": 1}, {"round": None}, {"version": 99}],
    ids=str,
)
def test_a_record_that_is_not_the_contract_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(PolicyError):
        messages.from_record(TrainReply, {**messages.to_record(REPLY), **change})


def test_a_missing_key_is_refused() -> None:
    record = messages.to_record(REPLY)
    del record["base"]
    with pytest.raises(PolicyError, match="base"):
        messages.from_record(TrainReply, record)


@pytest.mark.parametrize("field", messages.SIGNED_REPLY)
def test_no_signed_field_can_be_changed(field: str) -> None:
    key = Ed25519PrivateKey.generate()
    signed = messages.sign(REPLY, key)
    messages.verify(signed, key.public_key())
    value = getattr(signed, field)
    forged = dataclasses.replace(signed, **{field: value + 1 if isinstance(value, int) else value + "x"})
    with pytest.raises(PolicyError):
        messages.verify(forged, key.public_key())


def test_another_key_or_no_base64_is_refused() -> None:
    signed = messages.sign(REQUEST, Ed25519PrivateKey.generate())
    with pytest.raises(PolicyError):
        messages.verify(signed, Ed25519PrivateKey.generate().public_key())
    with pytest.raises(PolicyError):
        messages.verify(dataclasses.replace(signed, signature="?"), Ed25519PrivateKey.generate().public_key())
