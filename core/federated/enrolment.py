"""What a hospital sends to the coordinator to be enrolled: public keys, a name and a capacity. Nothing secret.

usfmae-client init         ->  enrol.json     ->  usfmae-server site add DIR enrol.json
usfmae-client rotate SITE  ->  rotation.json  ->  usfmae-server site rotate DIR rotation.json: new keys for an enrolled site
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from usfmae.core.errors import ConfigError, PolicyError
from usfmae.core.federated.messages import fingerprint
from usfmae.core.files import write_atomic
from usfmae.core.keys import normal_pem, public_pem, public_signing_key

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
VERSION = 2  # of enrol.json; 1 carried no proofs
LARGEST_CAPACITY = 10**9  # images; more than any hospital holds


class SiteState(StrEnum):
    ACTIVE = "active"
    REVOKED = "revoked"


@dataclass(frozen=True)
class EnrolledSite:
    """An enrolled hospital."""

    site: str  # fingerprint of its signing key
    name: str
    node_key: str
    signing_key: str
    capacity: int
    state: SiteState
    has_decoder: bool  # it answered a request that carried the seed's decoder
    seen: float | None = None  # Unix time it was last connected
    confirmed: bool = False  # the coordinator vouches for the capacity; else it is the site's own claim


@dataclass(frozen=True)
class Enrolment:
    name: str  # letters, digits, '_', '-', '.'; chosen by the hospital
    node_key: str  # PEM, ECDSA P-384: identity on the fleet API
    signing_key: str  # PEM, Ed25519: signs every reply
    capacity: int  # images this site may claim at most in one reply
    node_proof: str = ""  # each key's signature over all of the above, base64: whoever sends this holds both
    signing_proof: str = ""
    version: int = VERSION

    def proved_bytes(self) -> bytes:
        return json.dumps(["Enrolment", self.name, self.node_key, self.signing_key, self.capacity]).encode()

    @property
    def site(self) -> str:
        """The fingerprint under which replies and the ledger name this site."""
        return fingerprint(public_signing_key(self.signing_key, f"of site {self.name}"))


def proved(name: str, capacity: int, node_key: EllipticCurvePrivateKey, signing_key: Ed25519PrivateKey) -> Enrolment:
    """An enrolment with both keys' proofs."""
    enrolment = Enrolment(name, public_pem(node_key), public_pem(signing_key), capacity)
    proofs = node_key.sign(enrolment.proved_bytes(), ECDSA(SHA256())), signing_key.sign(enrolment.proved_bytes())
    node_proof, signing_proof = (base64.b64encode(proof).decode() for proof in proofs)
    return dataclasses.replace(enrolment, node_proof=node_proof, signing_proof=signing_proof)


def check_proofs(enrolment: Enrolment, origin: str) -> None:
    """ConfigError unless both keys have signed a checked enrolment: a copied public key enrols nobody."""
    node_key = load_pem_public_key(enrolment.node_key.encode())
    assert isinstance(node_key, EllipticCurvePublicKey)
    signing_key = public_signing_key(enrolment.signing_key, origin)
    try:
        node_proof, signing_proof = (
            base64.b64decode(proof, validate=True) for proof in (enrolment.node_proof, enrolment.signing_proof)
        )
        node_key.verify(node_proof, enrolment.proved_bytes(), ECDSA(SHA256()))
        signing_key.verify(signing_proof, enrolment.proved_bytes())
    except (InvalidSignature, ValueError, TypeError):
        why = "is not signed by both of its keys: its sender may not hold them"
        raise ConfigError(f"enrolment {origin}", why, "ask the hospital for its own enrol.json") from None


def checked(enrolment: Enrolment, origin: str) -> Enrolment:
    """The same enrolment with its keys in normal form, or ConfigError saying which part cannot be used."""
    if not isinstance(enrolment.name, str) or not NAME.fullmatch(enrolment.name):
        raise ConfigError(
            f"{origin}: name {enrolment.name!r:.80}", "holds more than letters, digits, _ - .", "rename it"
        )
    size = enrolment.capacity
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= LARGEST_CAPACITY:
        raise ConfigError(f"{origin}: capacity {size!r:.40}", f"not within 1..{LARGEST_CAPACITY}", "correct it")
    try:
        node_key = load_pem_public_key(enrolment.node_key.encode())
    except (ValueError, AttributeError, UnsupportedAlgorithm):
        node_key = None
    if not isinstance(node_key, EllipticCurvePublicKey) or not isinstance(node_key.curve, SECP384R1):
        raise ConfigError(f"{origin}: node_key", "is not an ECDSA P-384 public key in PEM", "ask for the file again")
    _ = enrolment.site
    node, signing = normal_pem(enrolment.node_key), normal_pem(enrolment.signing_key)
    return dataclasses.replace(enrolment, node_key=node, signing_key=signing)


def save(enrolment: Enrolment, path: Path) -> None:
    path.write_text(json.dumps(dataclasses.asdict(checked(enrolment, str(path))), indent=2) + "\n")


def load(path: Path) -> Enrolment:
    """An enrolment from an untrusted file. ConfigError where it is unreadable, incomplete or holds anything else."""
    try:
        values = json.loads(path.read_bytes()[:100_000])
        enrolment = Enrolment(**values)
    except OSError as error:
        raise ConfigError(f"enrolment {path}", error.strerror or str(error), "give the site's enrol.json") from None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"enrolment {path}", f"not an enrol.json: {error}", "ask for the file again") from None
    if enrolment.version != VERSION:
        why = f"has version {enrolment.version!r:.20}, not {VERSION}"
        raise ConfigError(f"enrolment {path}", why, "update usfmae on both sides; the site makes a new one with init")
    loaded = checked(enrolment, str(path))
    check_proofs(loaded, str(path))
    return loaded


@dataclass(frozen=True)
class Rotation:
    """New keys for an enrolled site, signed with the key they replace. Nobody else has to do anything."""

    replaces: str  # fingerprint of the old signing key
    enrolment: Enrolment  # the same name, new keys
    signature: str = ""  # the old key's, base64

    def signed_bytes(self) -> bytes:
        return json.dumps(["Rotation", self.replaces, dataclasses.asdict(self.enrolment)], sort_keys=True).encode()


def signed_rotation(rotation: Rotation, old: Ed25519PrivateKey) -> Rotation:
    return dataclasses.replace(rotation, signature=base64.b64encode(old.sign(rotation.signed_bytes())).decode())


def verify_rotation(rotation: Rotation, old_pem: str) -> None:
    """PolicyError where the signature is not the old key's over exactly this rotation."""
    try:
        key = public_signing_key(old_pem, "of the enrolled site")
        key.verify(base64.b64decode(rotation.signature, validate=True), rotation.signed_bytes())
    except (InvalidSignature, ValueError):
        name = rotation.enrolment.name
        raise PolicyError(f"rotation of {name}", "is not signed with the site's present key", "ask the site") from None


def save_rotation(rotation: Rotation, path: Path) -> None:
    write_atomic(path, (json.dumps(dataclasses.asdict(rotation), indent=2) + "\n").encode())


def load_rotation(path: Path) -> Rotation:
    """A rotation from an untrusted file. ConfigError where it is unreadable, incomplete or holds anything else."""
    try:
        values = json.loads(path.read_bytes()[:100_000])
        rotation = Rotation(**{**values, "enrolment": Enrolment(**values["enrolment"])})
    except OSError as error:
        raise ConfigError(f"rotation {path}", error.strerror or str(error), "give the site's rotation.json") from None
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"rotation {path}", f"not a rotation.json: {error}", "ask for the file again") from None
    if not isinstance(rotation.replaces, str) or not isinstance(rotation.signature, str):
        raise ConfigError(f"rotation {path}", "not a rotation.json", "ask for the file again")
    check_proofs(checked(rotation.enrolment, str(path)), str(path))
    return rotation
