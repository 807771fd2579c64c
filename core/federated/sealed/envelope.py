"""What aggregator and custodian say to each other: a JSON text and a signature over exactly that text.

The text travels as it was signed, so that neither side has to write it again to check it, and a transcript of envelopes
proves itself to anyone who has the two public keys.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from usfmae.core.errors import PolicyError

Envelope = dict[str, str]  # kind, text, signature


class Kind(StrEnum):
    """The four steps of a sealed round; the custodian's answer to each is of the kind after the slash."""

    OPEN = "open"  # A: who is in the round, and a commitment to its half of the sketch's seed
    OPENED = "open/answer"  # B: its commitment
    REVEAL = "reveal"  # A: its half
    REVEALED = "reveal/answer"
    SKETCH = "sketch"  # A: sketches of the masked updates
    SKETCHED = "sketch/answer"  # B: sketches of the masks
    SUM = "sum"  # A: whose updates are added up
    SUMMED = "sum/answer"  # B: the hash of what the masks of these add up to

    @property
    def answer(self) -> Kind:
        return Kind(f"{self}/answer")


STEPS = (Kind.OPEN, Kind.REVEAL, Kind.SKETCH, Kind.SUM)


def signed(kind: Kind, values: Mapping[str, Any], key: Ed25519PrivateKey) -> Envelope:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    signature = base64.b64encode(key.sign(_signed_bytes(kind, text))).decode()
    return {"kind": kind, "text": text, "signature": signature}


def read(envelope: object, kind: Kind, key: Ed25519PublicKey) -> dict[str, Any]:
    """The values in an envelope of this kind. PolicyError where this key did not sign it."""
    try:
        assert isinstance(envelope, dict)
        text = str(envelope["text"])
        key.verify(base64.b64decode(str(envelope["signature"]), validate=True), _signed_bytes(kind, text))
        values = json.loads(text)
        assert envelope["kind"] == kind and isinstance(values, dict)
    except (AssertionError, InvalidSignature, KeyError, ValueError, RecursionError):
        raise PolicyError(f"message {kind}", "is not signed by the key it should be", "compare the keys") from None
    return values


def name(envelope: Envelope) -> str:
    """The hash that later messages name this one by."""
    return hashlib.sha256(envelope["text"].encode()).hexdigest()


def _signed_bytes(kind: Kind, text: str) -> bytes:
    return f"usfmae custody 1\0{kind}\0{text}".encode()
