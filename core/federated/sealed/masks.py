"""Masks of sealed rounds: an update leaves as codes plus a stream of random numbers, modulo 2^16.

The stream follows from a 32-byte seed (ChaCha20, RFC 8439, by the `cryptography` package). The aggregator gets the
masked codes, the custodian the seed: either alone holds uniformly random numbers. The seed travels through the
aggregator in a box that the custodian alone can open (X25519, HKDF-SHA256, ChaCha20-Poly1305), tied to the round, the
site and the codes it masks, so that it is of no use anywhere else.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from numpy.typing import NDArray

from usfmae.core.errors import ConfigError, PolicyError

SEED = 32  # bytes
WORD = 2  # bytes of a masked code
MOST_SITES = 2**15 // 128  # sums of so many codes of int8 stay within 16 bits
_BLOCK = 64  # bytes of a ChaCha20 block
Words = NDArray[np.uint16]


def keystream(seed: bytes, start: int, count: int) -> Words:
    """The words `start` to `start + count` of the stream of a seed."""
    block, skip = divmod(start * WORD, _BLOCK)
    stream = Cipher(ChaCha20(seed, block.to_bytes(4, "little") + bytes(12)), None).encryptor()
    data = stream.update(bytes(skip + count * WORD))
    return np.frombuffer(data, "<u2", count, offset=skip).astype(np.uint16, copy=False)


def masked(codes: bytes, seed: bytes, start: int) -> bytes:
    """Codes of int8 from position `start` of an update, masked: two bytes each."""
    words = np.frombuffer(codes, np.int8).astype(np.int16).view(np.uint16)
    return (words + keystream(seed, start, len(words))).astype("<u2").tobytes()


def mask_sum(seeds: Sequence[bytes], start: int, count: int) -> Words:
    """What the masks of several updates add up to, to be taken off the sum of the masked updates."""
    total = np.zeros(count, np.uint16)
    for seed in seeds:
        total += keystream(seed, start, count)
    return total


def unmasked(masked_codes: Sequence[bytes], masks: Words) -> NDArray[np.int16]:
    """The sum of the codes of several sites: exact, since it stays within 16 bits for MOST_SITES sites."""
    total = np.zeros(len(masks), np.uint16)
    for data in masked_codes:
        total += np.frombuffer(data, "<u2")
    return (total - masks).view(np.int16)


def new_seed(secret: bytes, about: Sequence[str]) -> bytes:
    """The seed for what `about` names, codes and round, from a site's secret: the same after a crash, else another."""
    return hmac.digest(secret, "\0".join(("usfmae mask", *about)).encode(), "sha256")


# --- the box ---------------------------------------------------------------------------------------------------------


def public_text(key: X25519PrivateKey) -> str:
    return base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def public_key(text: str, origin: str) -> X25519PublicKey:
    """An X25519 public key in base64. ConfigError naming its origin."""
    try:
        return X25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except ValueError:
        raise ConfigError(
            f"key {origin}", "is no X25519 public key in base64", "ask for custodian.json again"
        ) from None


def key_name(text: str) -> str:
    """A short public name of a custodian's key: 16 hex digits of the SHA-256 of its base64."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def boxed(seed: bytes, recipient: X25519PublicKey, about: Sequence[str]) -> str:
    """The seed for the holder of the recipient's key alone, tied to `about`; base64."""
    own = X25519PrivateKey.generate()
    public = own.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    cipher = ChaCha20Poly1305(_derived(own.exchange(recipient), public))
    return base64.b64encode(public + cipher.encrypt(bytes(12), seed, _associated(about))).decode()


def opened(box: str, key: X25519PrivateKey, about: Sequence[str]) -> bytes:
    """PolicyError where the box is for another key, or was made for something else."""
    try:
        data = base64.b64decode(box, validate=True)
        public = data[:SEED]
        cipher = ChaCha20Poly1305(_derived(key.exchange(X25519PublicKey.from_public_bytes(public)), public))
        seed = cipher.decrypt(bytes(12), data[SEED:], _associated(about))
    except (InvalidTag, ValueError):
        raise PolicyError(
            "mask", "its box does not open: made for another round, site or custodian", "refused"
        ) from None
    if len(seed) != SEED:
        raise PolicyError("mask", f"has {len(seed)} bytes, not {SEED}", "refused")
    return seed


def _derived(shared: bytes, public: bytes) -> bytes:
    return HKDF(SHA256(), 32, None, b"usfmae sealed round " + public).derive(shared)


def _associated(about: Sequence[str]) -> bytes:
    return "\0".join(("usfmae sealed round", *about)).encode()
