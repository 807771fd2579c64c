"""The wire contract: an untrusted record becomes a message or is refused; signatures cover what matters."""

from __future__ import annotations

import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from usfmae.core import keys
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


@pytest.mark.parametrize(
    ("message", "field"),
    [(m, f.name) for m in (REPLY, REQUEST) for f in dataclasses.fields(m) if f.name != "signature"],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_no_field_can_be_changed_under_a_signature(message: TrainReply | TrainRequest, field: str) -> None:
    key = Ed25519PrivateKey.generate()
    signed = messages.sign(message, key)
    messages.verify(signed, key.public_key())
    value = getattr(signed, field)
    changed = value + "x" if isinstance(value, str) else not value if isinstance(value, bool) else value + 1
    with pytest.raises(PolicyError):
        messages.verify(dataclasses.replace(signed, **{field: changed}), key.public_key())


def test_a_signature_holds_after_the_wire_made_whole_numbers_of_floats() -> None:
    key = Ed25519PrivateKey.generate()
    record = messages.to_record(messages.sign(REPLY, key))
    messages.verify(messages.from_record(TrainReply, {**record, "seconds": 0}), key.public_key())


def test_a_message_is_for_one_recipient_and_for_a_time() -> None:
    mine = dataclasses.replace(REQUEST, recipient="me", expires=10_000.0)
    messages.check_addressed(mine, "me", 10_000.0 + messages.CLOCKS_APART)
    with pytest.raises(PolicyError, match="not for you"):
        messages.check_addressed(mine, "you", 0.0)
    with pytest.raises(PolicyError, match="for nobody"):
        messages.check_addressed(dataclasses.replace(mine, recipient=""), "me", 0.0)
    for end in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(PolicyError, match="has no end"):
            messages.check_addressed(dataclasses.replace(mine, expires=end), "me", 0.0)
    with pytest.raises(PolicyError, match="expired"):
        messages.check_addressed(mine, "me", 10_001.0 + messages.CLOCKS_APART)


def test_an_older_program_is_refused_by_its_version_whatever_its_record_holds() -> None:
    with pytest.raises(PolicyError, match="version 2"):
        messages.from_record(TrainRequest, {"version": 2, "step": ""})


def test_a_number_beyond_all_floats_is_refused() -> None:
    with pytest.raises(PolicyError, match="larger than any float"):
        messages.from_record(TrainReply, {**messages.to_record(REPLY), "seconds": 10**400})


def test_another_key_or_no_base64_is_refused() -> None:
    signed = messages.sign(REQUEST, Ed25519PrivateKey.generate())
    with pytest.raises(PolicyError):
        messages.verify(signed, Ed25519PrivateKey.generate().public_key())
    with pytest.raises(PolicyError):
        messages.verify(dataclasses.replace(signed, signature="?"), Ed25519PrivateKey.generate().public_key())


def test_the_versions_before_3_are_refused_for_their_signatures() -> None:
    with pytest.raises(PolicyError, match=r"version 2.*did not cover the whole message.*update usfmae on the older"):
        messages.from_record(TrainRequest, {"version": 2})


def test_a_field_of_a_later_version_is_neither_carried_nor_signed_by_an_earlier_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = keys.new_signing_key()
    old = messages.sign(TrainReply("c", 1, "b" * 64, version=3), key)
    monkeypatch.setattr(messages, "SPOKEN", (4, 3))
    monkeypatch.setattr(messages, "SINCE", {"seconds": 4})
    record = messages.to_record(messages.sign(TrainReply("c", 1, "b" * 64, version=3), key))
    assert "seconds" not in record
    read = messages.from_record(TrainReply, record)
    messages.verify(read, key.public_key())
    with pytest.raises(PolicyError, match="signature"):  # it covers what its own version has
        messages.verify(old, key.public_key())
    with pytest.raises(PolicyError, match="not part of the protocol"):
        messages.from_record(TrainReply, {**record, "seconds": 1.0})
