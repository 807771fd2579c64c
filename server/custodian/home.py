"""A custodian on disk: keys, settings, the sites it has enrolled itself, and what it was asked.

DIR/custodian.yaml      address and port                 DIR/sites/ID.json    enrolments, by fingerprint
DIR/custodian.json      public: for sites and coordinator    DIR/state/NAME.json  its memory, a file a round
DIR/coordinator.pem     whom it answers                  DIR/audit.jsonl      hash-chained log
DIR/keys/               private keys, mode 0600          DIR/address          host:port while it runs
"""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import Field

from usfmae.core import audit, keys
from usfmae.core.config import load
from usfmae.core.config.base import Options
from usfmae.core.errors import ConfigError
from usfmae.core.federated import enrolment
from usfmae.core.federated.enrolment import NAME
from usfmae.core.federated.messages import fingerprint
from usfmae.core.federated.sealed import masks
from usfmae.core.federated.sealed.custody import CustodianKeys
from usfmae.core.federated.sealed.sealed_round import FEWEST
from usfmae.core.files import write_atomic
from usfmae.server import certificates


class CustodianSettings(Options):
    name: str = Field("custodian", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
    """Name of the institution."""
    host: str = "0.0.0.0"  # noqa: S104
    """Address it listens on; the coordinator's aggregator alone has to reach it."""
    port: int = Field(8444, ge=0, le=65535)
    """Its port; 0 takes a free one."""
    names: tuple[str, ...] = ("localhost", "127.0.0.1")
    """Host names and addresses its certificate is made for."""
    fewest: int = Field(FEWEST, ge=FEWEST)
    """A sum is of this many sites or more. The mean of n sites is nearer to each of them than what everybody knows, by
    10 log10(n / (n - 1)) dB: 1.8 of three, 1 of five."""


@dataclass(frozen=True)
class Card:
    """What a custodian shows: custodian.json."""

    name: str
    signing_key: str  # PEM, Ed25519: signs its answers
    box_key: str  # X25519 in base64: sites seal their masks' seeds for it
    ca: str  # PEM: vouches for its certificate

    @classmethod
    def read(cls, path: Path) -> Card:
        """ConfigError where the file is none."""
        try:
            card = cls(**json.loads(path.read_bytes()[:100_000]))
            keys.public_signing_key(card.signing_key, str(path))
            masks.public_key(card.box_key, str(path))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"custodian {path}", f"is no custodian.json: {error}", "ask the custodian for it"
            ) from None
        return card


class DiskRecords(MutableMapping[str, dict[str, Any]]):
    """A memory of JSON objects, each on disk when it has been put."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, name: str) -> Path:
        return self._folder / f"{quote(name, safe='')}.json"

    def __getitem__(self, name: str) -> dict[str, Any]:
        path = self._path(name)
        if not path.exists():
            raise KeyError(name)
        value = json.loads(path.read_bytes())
        assert isinstance(value, dict)
        return value

    def __setitem__(self, name: str, value: dict[str, Any]) -> None:
        write_atomic(self._path(name), json.dumps(value, sort_keys=True).encode())

    def __delitem__(self, name: str) -> None:
        self._path(name).unlink()

    def __iter__(self) -> Iterator[str]:
        return iter([unquote(path.stem) for path in sorted(self._folder.glob("*.json"))])

    def __len__(self) -> int:
        return len(list(self._folder.glob("*.json")))


@dataclass(frozen=True)
class CustodianHome:
    root: Path

    @property
    def settings_file(self) -> Path:
        return self.root / "custodian.yaml"

    @property
    def card(self) -> Path:
        return self.root / "custodian.json"

    @property
    def audit(self) -> Path:
        return self.root / "audit.jsonl"

    @property
    def address(self) -> Path:
        return self.root / "address"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def certificate(self) -> Path:
        return self.root / "server.pem"

    @property
    def tls_key(self) -> Path:
        return self.root / "keys" / "server.key.pem"

    @property
    def sites_folder(self) -> Path:
        return self.root / "sites"

    def settings(self) -> CustodianSettings:
        if not self.settings_file.exists():
            why = "holds no custodian.yaml"
            raise ConfigError(f"directory {self.root}", why, "run 'usfmae-server custodian init' first")
        return load(CustodianSettings, self.settings_file, ())[0]

    def keys(self) -> CustodianKeys:
        box = X25519PrivateKey.from_private_bytes(keys.read_secret(self.root / "keys" / "box.key"))
        return CustodianKeys(keys.read_signing_key(self.root / "keys" / "signing.pem"), box)

    def coordinator(self) -> Ed25519PublicKey:
        file = self.root / "coordinator.pem"
        return keys.public_signing_key(file.read_text(), str(file))

    def records(self) -> DiskRecords:
        return DiskRecords(self.root / "state")

    def sites(self) -> dict[str, Ed25519PublicKey]:
        """Signing keys by fingerprint of the sites that are enrolled here."""
        return {
            file.stem: keys.public_signing_key(json.loads(file.read_bytes())["signing_key"], str(file))
            for file in sorted(self.sites_folder.glob("*.json"))
        }

    def add_site(self, file: Path) -> dict[str, Any]:
        """Enrol the hospital that made an enrol.json. ConfigError where the file is not signed by its own keys."""
        site = enrolment.load(file)
        enrolment.save(site, _made(self.sites_folder) / f"{site.site}.json")
        audit.append(self.audit, "custodian", "site-add", site=site.site, name=site.name)
        return {"name": site.name, "site": site.site}

    def remove_site(self, name: str) -> dict[str, Any]:
        """Forget a hospital: no sum of a later round holds its update. ConfigError where none has this name."""
        for file in self.sites_folder.glob("*.json"):
            if json.loads(file.read_bytes())["name"] == name:
                file.unlink()
                audit.append(self.audit, "custodian", "site-remove", site=file.stem, name=name)
                return {"name": name, "site": file.stem}
        raise ConfigError(f"site {name!r:.80}", "is not enrolled here", "see 'usfmae-server custodian list'")

    def listed(self) -> list[dict[str, str]]:
        files = sorted(self.sites_folder.glob("*.json"))
        return [{"name": json.loads(file.read_bytes())["name"], "site": file.stem} for file in files]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def create(root: Path, settings: CustodianSettings, coordinator_key: Path) -> dict[str, Any]:
    """Make a custodian's directory. ConfigError where one is there, or the coordinator's key is none."""
    home = CustodianHome(root)
    if home.settings_file.exists():
        raise ConfigError(f"directory {root}", "holds a custodian already", "choose another directory")
    if not NAME.fullmatch(settings.name):
        raise ConfigError(f"name {settings.name!r:.80}", "holds more than letters, digits, _ - .", "rename it")
    coordinator = coordinator_key.read_text()
    theirs = fingerprint(keys.public_signing_key(coordinator, str(coordinator_key)))
    root.mkdir(parents=True, exist_ok=True)
    root.chmod(0o700)
    signing, box = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
    ca_key, tls_key = keys.new_node_key(), keys.new_node_key()
    keys.write_private(root / "keys" / "signing.pem", signing)
    keys.write_secret(root / "keys" / "box.key", box.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()))
    keys.write_private(root / "keys" / "ca.key.pem", ca_key)
    keys.write_private(home.tls_key, tls_key)
    ca = certificates.authority(settings.name, ca_key)
    write_atomic(home.certificate, certificates.server(settings.names, tls_key.public_key(), ca, ca_key))
    write_atomic(root / "coordinator.pem", coordinator.encode())
    card = Card(settings.name, keys.public_pem(signing), masks.public_text(box), ca.decode())
    write_atomic(home.card, json.dumps(vars(card), indent=2).encode())
    chosen = settings.model_dump(mode="json")
    write_atomic(home.settings_file, yaml.safe_dump(chosen, sort_keys=False).encode())
    audit.append(home.audit, "custodian", "init", coordinator=theirs, name=settings.name)
    return {
        "directory": str(root),
        "card": str(home.card),
        "box_key": card.box_key,
        "fingerprint": fingerprint(signing.public_key()),
        "coordinator_fingerprint": theirs,
    }
