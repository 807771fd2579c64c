"""A signed list of files: `manifest.json` names each file of a folder with its SHA-256, `manifest.sig` signs it.

Whoever has the folder and the signer's public key can check all of it without a network.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from usfmae.core.errors import PolicyError, SourceError
from usfmae.core.files import write_atomic

FORMAT = "usfmae-manifest-1"
NAME, SIGNATURE = "manifest.json", "manifest.sig"


def write(folder: Path, key: Ed25519PrivateKey, more: Mapping[str, Any] | None = None) -> Path:
    """List and sign every file below `folder` as it is now; `more` is signed along with the list."""
    files = {str(path.relative_to(folder)): _sha256(path) for path in _files(folder)}
    text = json.dumps({**(more or {}), "format": FORMAT, "files": files}, indent=2, sort_keys=True).encode()
    write_atomic(folder / NAME, text)
    write_atomic(folder / SIGNATURE, base64.b64encode(key.sign(text)))
    return folder / NAME


def check(folder: Path, key: Ed25519PublicKey | None) -> dict[str, Any]:
    """The manifest, if every file is as listed, none is missing or added, and (with a key) the signature holds.

    Raises SourceError where there is no manifest, PolicyError naming what does not hold.
    """
    try:
        text = (folder / NAME).read_bytes()
        manifest: dict[str, Any] = json.loads(text)
        listed: dict[str, str] = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{folder / NAME}", f"unreadable: {error}", "give the folder of a release") from None
    if key is not None:
        _check_signature(folder, text, key)
    present = {str(path.relative_to(folder)): path for path in _files(folder)}
    for name in sorted(listed.keys() | present.keys()):
        if name not in present or name not in listed:
            raise PolicyError(
                f"file {name}", "is missing" if name not in present else "is not in the manifest", "refused"
            )
        if _sha256(present[name]) != listed[name]:
            raise PolicyError(f"file {name}", "differs from the manifest", "it was changed or damaged; fetch it again")
    return manifest


def _check_signature(folder: Path, text: bytes, key: Ed25519PublicKey) -> None:
    try:
        key.verify(base64.b64decode((folder / SIGNATURE).read_bytes(), validate=True), text)
    except (OSError, ValueError, InvalidSignature):
        raise PolicyError(f"{folder / SIGNATURE}", "is not this key's signature of the manifest", "refused") from None


def _files(folder: Path) -> list[Path]:
    own = {folder / NAME, folder / SIGNATURE}
    return sorted(path for path in folder.rglob("*") if path.is_file() and path not in own)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
