"""Where an aggregator keeps its things: one directory, one file a purpose."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from usfmae.core.config import load
from usfmae.core.config.coordinator import CoordinatorSettings
from usfmae.core.errors import ConfigError, ResourceError
from usfmae.core.federated.downlink import StepFiles
from usfmae.core.federated.encodings import part
from usfmae.core.federated.messages import fingerprint
from usfmae.core.keys import public_signing_key, read_private
from usfmae.server.ledger import Ledger


@dataclass(frozen=True)
class Layout:
    root: Path

    @property
    def settings_file(self) -> Path:
        return self.root / "coordinator.yaml"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def signing_key(self) -> Path:
        return self.keys / "coordinator.pem"

    @property
    def ca_key(self) -> Path:
        return self.keys / "ca.key.pem"

    @property
    def tls_key(self) -> Path:
        return self.keys / "server.key.pem"

    @property
    def ca(self) -> Path:
        """The private CA's certificate: what every site needs."""
        return self.root / "ca.pem"

    @property
    def certificate(self) -> Path:
        return self.root / "server.pem"

    @property
    def public_key(self) -> Path:
        """The coordinator's public signing key: what every site needs."""
        return self.root / "coordinator.pub.pem"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.sqlite"

    @property
    def audit(self) -> Path:
        return self.root / "audit.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def spool(self) -> Path:
        """Replies of the open round, as admitted; the last round's stay until they are written over."""
        return self.root / "spool"

    def transcript(self, number: int) -> Path:
        """What aggregator and custodian said to each other in a sealed round."""
        return self.root / "transcripts" / f"round-{number:05d}.json"

    @property
    def transit(self) -> Path:
        """Pieces of messages on their way in or out; worthless after a restart."""
        return self.root / "transit"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def address(self) -> Path:
        """host:port of the running aggregator, for people and tests."""
        return self.root / "address"

    @property
    def decoder(self) -> Path:
        """The seed's decoder, sent to each site once."""
        return self.checkpoints / "decoder.safetensors"

    def checkpoint(self, number: int) -> Path:
        """The encoder after this round; round 0 is the seed's."""
        return self.checkpoints / f"round-{number:05d}.safetensors"

    def step(self, number: int) -> Path:
        """The packed step that led to this round's encoder from the one before."""
        return self.checkpoints / f"step-{number:05d}.bin"

    def left(self, number: int) -> Path:
        """What this round's step left out, packed as well."""
        return self.checkpoints / f"memory-left-{number:05d}.bin"

    def memory(self, name: str, number: int) -> Path:
        """What the merging rule remembers under this name after a round."""
        return self.checkpoints / f"memory-{name}-{number:05d}.safetensors"

    def step_files(self, settings: CoordinatorSettings, number: int) -> StepFiles | None:
        """Where a round's step belongs; None where its encoder is no base plus a step: lossless, or averaged after."""
        if settings.rounds.encoding == "fp32" or settings.continual.pull or settings.continual.anchor_every:
            return None
        before = self.left(number - 1)
        spent = self.step(number - 2), self.left(number - 2)
        left = before if before.exists() else None
        encoding: str = settings.rounds.encoding
        if settings.rounds.sealed:  # of one part in turn, or of all values
            encoding = part.name("int8", number) if encoding == "sparse" else "int8"
        return StepFiles(self.step(number), self.left(number), left, spent, encoding)

    def forget_step(self, number: int) -> None:
        """The encoder of this round is another than its step leads to."""
        self.step(number).unlink(missing_ok=True)
        self.left(number).unlink(missing_ok=True)

    def fingerprint(self) -> str:
        """Name of the coordinator's signing key: whom replies are for."""
        return fingerprint(public_signing_key(self.public_key.read_text(), str(self.public_key)))

    def settings(self, overrides: Iterable[str] = ()) -> CoordinatorSettings:
        if not self.settings_file.exists():
            raise ConfigError(f"directory {self.root}", "holds no coordinator.yaml", "run 'usfmae-server init' first")
        return load(CoordinatorSettings, self.settings_file, overrides)[0]


@dataclass(frozen=True)
class Federation:
    """What every act of the coordinator works on: its files, its ledger, its settings as they are now."""

    home: Layout
    ledger: Ledger
    settings: CoordinatorSettings

    @classmethod
    def of(cls, home: Layout, overrides: Iterable[str] = ()) -> Federation:
        return cls(home, Ledger(home.ledger), home.settings(overrides))

    def signing_key(self) -> Ed25519PrivateKey:
        return read_private(self.home.signing_key, Ed25519PrivateKey)


def check_disk(home: Layout, floor_gib: float) -> None:
    """A round needs room for its replies and its checkpoint. ResourceError where there is less above the floor."""
    needed = 4 * home.checkpoint(0).stat().st_size + floor_gib * 2**30
    free = shutil.disk_usage(home.root).free
    if free < needed:
        why = f"{free / 2**30:.1f} GiB free, {needed / 2**30:.1f} needed"
        raise ResourceError(f"disk of {home.root}", why, "free space")
