"""New keys for an enrolled site: a new enrolment, signed with the key it replaces. Nobody else has to do anything.

usfmae-client rotate SITE  ->  rotation.json  ->  usfmae-server site rotate DIR rotation.json
"""

from __future__ import annotations

import base64
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from usfmae.core.errors import ConfigError, PolicyError
from usfmae.core.federated.enrolment import Enrolment, check_proofs, checked
from usfmae.core.files import write_atomic
from usfmae.core.keys import public_signing_key


@dataclass(frozen=True)
class Rotation:
    replaces: str  # fingerprint of the old signing key
    enrolment: Enrolment  # the same name, new keys
    signature: str = ""  # the old key's, base64

    def signed_bytes(self) -> bytes:
        return json.dumps(["Rotation", self.replaces, dataclasses.asdict(self.enrolment)], sort_keys=True).encode()


def signed(rotation: Rotation, old: Ed25519PrivateKey) -> Rotation:
    return dataclasses.replace(rotation, signature=base64.b64encode(old.sign(rotation.signed_bytes())).decode())


def verify(rotation: Rotation, old_pem: str) -> None:
    """PolicyError where the signature is not the old key's over exactly this rotation."""
    try:
        key = public_signing_key(old_pem, "of the enrolled site")
        key.verify(base64.b64decode(rotation.signature, validate=True), rotation.signed_bytes())
    except (InvalidSignature, ValueError):
        name = rotation.enrolment.name
        raise PolicyError(f"rotation of {name}", "is not signed with the site's present key", "ask the site") from None


def save(rotation: Rotation, path: Path) -> None:
    write_atomic(path, (json.dumps(dataclasses.asdict(rotation), indent=2) + "\n").encode())


def load(path: Path) -> Rotation:
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
