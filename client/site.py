"""A site on disk: where everything lies, and how it is made.

DIR/site.yaml          settings                       DIR/campaigns/NAME/   decoder, optimizer, rounding residue
DIR/ca.pem             the coordinator's CA           DIR/jobs/KEY/         one round's base, checkpoint, result
DIR/coordinator.pem    its signing key (public)       DIR/outbox/ID/        what leaves, with its sheet
DIR/keys/              private keys, mode 0600        DIR/pending/          requests that have no answer yet
DIR/enrol.json         what goes to the coordinator   DIR/audit.jsonl       hash-chained log
DIR/corpus/            cleaned images                 DIR/status.json       the agent's last report
"""

from __future__ import annotations

import contextlib
import json
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from usfmae.core import audit, keys
from usfmae.core.config import load, template
from usfmae.core.config.site import SiteSettings
from usfmae.core.errors import ConfigError, UsageError
from usfmae.core.federated import enrolment
from usfmae.core.federated.messages import fingerprint
from usfmae.core.files import locked, write_atomic


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True).encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file, or None where there is none or it is damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


@dataclass(frozen=True)
class Site:
    """A site's directory with its settings and keys; keys are read, and their mode checked, when first used."""

    root: Path
    settings: SiteSettings

    @classmethod
    def open(cls, root: Path, overrides: Iterable[str] = ()) -> Site:
        """An initialised site. ConfigError where `root` is none or its settings are wrong."""
        file = root / "site.yaml"
        if not file.exists():
            raise ConfigError(f"site {root}", "holds no site.yaml", f"run 'usfmae-client init {root} ...' first")
        return cls(root, load(SiteSettings, file, overrides)[0])

    @property
    def audit_log(self) -> Path:
        return self.root / "audit.jsonl"

    @property
    def corpus(self) -> Path:
        return self.root / "corpus"

    @property
    def floor_bytes(self) -> int:
        """Intake and training stop while less than this is free."""
        return int(self.settings.disk_floor_gb * 1e9)

    @property
    def pause_mark(self) -> Path:
        return self.root / "paused"

    @property
    def ca_file(self) -> Path | None:
        """The coordinator's own CA, or None where the system's authorities vouch for the server."""
        file = self.root / "ca.pem"
        return file if file.exists() else None

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.settings.server)
        return parts.hostname or "", parts.port or 443

    @cached_property
    def node_key(self) -> EllipticCurvePrivateKey:
        return keys.read_node_key(self.root / "keys" / "node.pem")

    @cached_property
    def signing_key(self) -> Ed25519PrivateKey:
        return keys.read_signing_key(self.root / "keys" / "signing.pem")

    @cached_property
    def secret(self) -> bytes:
        return keys.read_secret(self.root / "keys" / "secret")

    @cached_property
    def coordinator(self) -> Ed25519PublicKey:
        file = self.root / "coordinator.pem"
        return keys.public_signing_key(_text(file, "coordinator key"), str(file))

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.signing_key.public_key())

    def close_to_others(self) -> None:
        """Mode 0700 for the site's directory, which holds pictures and keys, however it was made."""
        if stat.S_IMODE(self.root.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
            self.root.chmod(0o700)
            self.note("mode.closed", directory=str(self.root.name))

    @contextlib.contextmanager
    def served_alone(self) -> Iterator[None]:
        """UsageError where another agent already serves this site."""
        with locked(self.root / "agent.lock") as free:
            if not free:
                raise UsageError(f"site {self.root}", "is served by another agent already", "see 'status'")
            yield

    def note(self, event: str, status: str = "ok", **fields: Any) -> None:
        """One entry in the site's audit log."""
        audit.append(self.audit_log, f"site:{self.settings.name}", event, status, **fields)


def create(root: Path, settings: SiteSettings, ca: Path | None, coordinator_key: Path) -> Site:
    """Make a new site's directory, keys and enrol.json. ConfigError where it exists or a given file is unusable."""
    if (root / "site.yaml").exists():
        raise ConfigError(f"site {root}", "exists already", "use another directory, or edit its site.yaml")
    around = next((folder for folder in root.absolute().parents if (folder / "site.yaml").exists()), None)
    if around:
        raise ConfigError(f"site {root}", f"lies inside the site {around}", "give every study a folder of its own")
    coordinator = _text(coordinator_key, "coordinator key")
    keys.public_signing_key(coordinator, str(coordinator_key))
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    root.chmod(0o700)  # also where it was there before
    if ca is not None:
        write_atomic(root / "ca.pem", _text(ca, "CA certificate").encode())
    write_atomic(root / "coordinator.pem", coordinator.encode())
    node, signing = keys.new_node_key(), keys.new_signing_key()
    keys.write_private(root / "keys" / "node.pem", node)
    keys.write_private(root / "keys" / "signing.pem", signing)
    keys.write_secret(root / "keys" / "secret", keys.new_secret())
    enrolment.save(enrolment.proved(settings.name, settings.capacity, node, signing), root / "enrol.json")
    write_atomic(root / "site.yaml", _yaml(settings).encode())
    site = Site(root, settings)
    site.note("init", server=settings.server, fingerprint=site.fingerprint)
    return site


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"{what} {path}", why, "give the file that the coordinator sent, or restore a backup"
        ) from None


def _yaml(settings: SiteSettings) -> str:
    """The commented template of every key, with this site's values in their places."""
    import yaml

    chosen = settings.model_dump(mode="json", exclude_defaults=True)
    lines: list[str] = []
    sections: list[str] = []
    for line in template(SiteSettings).split("\n"):
        match = re.match(r"( *)(\w+):", line)
        if match:
            indent, name = match.groups()
            sections = [*sections[: len(indent) // 2], name]
            value: Any = chosen
            for section in sections:
                value = value.get(section) if isinstance(value, dict) else None
            if value is not None and not isinstance(value, dict):
                line = indent + yaml.safe_dump({name: value}, default_flow_style=True, width=9999).strip()[1:-1]
        lines.append(line)
    return "\n".join(lines) + "\n"
