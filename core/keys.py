"""Keys on disk: private ones are readable by their owner alone, or they are not used.

Two kinds: Ed25519 signs what a person may have to prove later (requests, replies, releases); ECDSA P-384 proves a
site's identity on each call of Flower's fleet API.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from usfmae.core.errors import ConfigError

Private = Ed25519PrivateKey | EllipticCurvePrivateKey
K = TypeVar("K", Ed25519PrivateKey, EllipticCurvePrivateKey)


def new_signing_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


def new_node_key() -> EllipticCurvePrivateKey:
    return generate_private_key(SECP384R1())


def public_pem(key: Private | Ed25519PublicKey) -> str:
    """SubjectPublicKeyInfo in PEM: what may be shown to anyone."""
    public = key if isinstance(key, Ed25519PublicKey) else key.public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def write_secret(path: Path, content: bytes) -> None:
    """A new file with mode 0600 from its first byte on; ConfigError where it exists, so that no key is ever lost."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"key {path}", "exists already", "keep it; remove it by hand only to enrol anew") from None
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_private(path: Path, key: Private) -> None:
    write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def new_secret() -> bytes:
    """32 random bytes: the site's HMAC secret under which scans get their names."""
    return secrets.token_bytes(32)


def read_secret(path: Path) -> bytes:
    """The bytes of a private file; ConfigError where it is absent or others could have read it."""
    try:
        mode = path.stat().st_mode
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"key {path}", error.strerror or str(error), "run init, or restore it from backup") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"key {path}", f"mode {stat.S_IMODE(mode):04o} lets others read it", f"chmod 600 {path}")
    return content


def read_private(path: Path, kind: Callable[..., K]) -> K:
    """A mode-checked private key of the wanted class. ConfigError where it is absent, open to others or another."""
    try:
        key = load_pem_private_key(read_secret(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"key {path}", "is not an unencrypted PEM private key", "restore it from backup") from None
    # The classes are abstract: mypy takes them as callables, not as types.
    if not isinstance(key, cast(type, kind)):
        raise ConfigError(f"key {path}", f"is no {kind.__name__}", "restore it from backup")
    return cast(K, key)


def read_signing_key(path: Path) -> Ed25519PrivateKey:
    return read_private(path, Ed25519PrivateKey)


def read_node_key(path: Path) -> EllipticCurvePrivateKey:
    return read_private(path, EllipticCurvePrivateKey)


def grouped(fingerprint: str) -> str:
    """A fingerprint in groups of four, to be read aloud."""
    return " ".join(fingerprint[i : i + 4] for i in range(0, len(fingerprint), 4))


def telephone(key: Ed25519PublicKey) -> str:
    """A key as thirty digits in groups of five, to be compared aloud: 99 bits, so no other key is made to fit."""
    number = int.from_bytes(hashlib.sha256(b"usfmae telephone" + key.public_bytes_raw()).digest()) % 10**30
    digits = f"{number:030d}"
    return " ".join(digits[i : i + 5] for i in range(0, 30, 5))


def normal_pem(pem: str) -> str:
    """The same public key as `public_pem` writes it: equal keys are equal text. ValueError where it is none."""
    return load_pem_public_key(pem.encode()).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def public_signing_key(pem: str, origin: str) -> Ed25519PublicKey:
    """An Ed25519 public key from PEM text; ConfigError naming its origin."""
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, AttributeError, UnsupportedAlgorithm):
        raise ConfigError(f"key {origin}", "is not a PEM public key", "ask for the file again") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"key {origin}", "is no Ed25519 key", "ask for the file again")
    return key
