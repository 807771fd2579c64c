"""Setting up a federation and letting sites in and out."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from usfmae.core import audit, enrolment, keys
from usfmae.core.config import template
from usfmae.core.config.coordinator import CoordinatorSettings
from usfmae.core.config.load import load
from usfmae.core.errors import ConfigError
from usfmae.core.files import write_atomic
from usfmae.core.protocol import fingerprint
from usfmae.server import certificates
from usfmae.server.home import Home
from usfmae.server.ledger import Ledger

logger = logging.getLogger(__name__)


def create(root: Path, name: str, host: str, port: int, seed: Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Make a coordinator's directory: keys, certificates, settings, ledger, seed. ConfigError where one is there."""
    home = Home(root)
    if home.ledger.exists():
        raise ConfigError(f"directory {root}", "holds a federation already", "choose another directory")
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    names = tuple(dict.fromkeys(("localhost", "127.0.0.1", *(n for n in (host,) if n not in ("", "0.0.0.0", "::")))))
    listed = "[" + ", ".join(json.dumps(n) for n in names) + "]"
    wanted = [f"name={name}", f"network.port={port}", f"network.names={listed}", *overrides]
    settings, _ = load(CoordinatorSettings, None, wanted)
    settings = _write_seed(home, settings, seed)
    _write_settings(home, settings)
    _write_keys(home, settings)
    ledger = Ledger(home.ledger, create=True)
    campaign = f"{settings.name}-{secrets.token_hex(6)}"
    ledger.set_fact("campaign", campaign)
    ledger.close()
    audit.append(home.audit, "coordinator", "init", campaign=campaign, name=settings.name)
    return {"directory": str(root), "campaign": campaign, "ca": str(home.ca), "coordinator_key": str(home.public_key)}


def _write_settings(home: Home, settings: CoordinatorSettings) -> None:
    """The commented template with this federation's values in it."""
    import yaml

    chosen = settings.model_dump(mode="json", exclude_defaults=True)
    head = "# Settings of usfmae-server. Only what differs from the defaults stands here; every key with its\n"
    head += "# meaning and default follows below as a comment.\n"
    every = "\n".join(f"# {line}" for line in template(CoordinatorSettings).split("\n"))
    write_atomic(home.settings_file, (head + yaml.safe_dump(chosen, sort_keys=False) + "\n" + every + "\n").encode())


def _write_keys(home: Home, settings: CoordinatorSettings) -> None:
    signing, ca_key, tls_key = keys.new_signing_key(), keys.new_node_key(), keys.new_node_key()
    for path, key in ((home.signing_key, signing), (home.ca_key, ca_key), (home.tls_key, tls_key)):
        keys.write_private(path, key)
    ca = certificates.authority(settings.name, ca_key)
    write_atomic(home.ca, ca)
    write_atomic(home.certificate, certificates.server(settings.network.names, tls_key.public_key(), ca, ca_key))
    write_atomic(home.public_key, keys.public_pem(signing).encode())


def _write_seed(home: Home, settings: CoordinatorSettings, seed: Path | None) -> CoordinatorSettings:
    """Round 0: the seed's encoder and, beside it, its decoder. A checkpoint brings its architecture and recipe."""
    from usfmae.core import checkpoint
    from usfmae.core.model import MaskedAutoencoder

    if seed:
        loaded = checkpoint.load(seed)
        tensors = loaded.tensors
        settings = settings.model_copy(update={"model": loaded.model})
        parents = (loaded.metadata["content"],)
    else:
        import torch

        torch.manual_seed(settings.train.seed)
        model = MaskedAutoencoder(settings.model, settings.train.mask_ratio, settings.train.norm_pix)
        tensors, parents = dict(model.state_dict()), ()
    metadata = checkpoint.describe(settings.model, settings.train, parents=parents, round=0, step=0)
    encoder, decoder = checkpoint.encoder_of(tensors), checkpoint.decoder_of(tensors)
    if not decoder:
        raise ConfigError(f"seed {seed}", "holds no decoder", "use a pretraining checkpoint, not an exported encoder")
    checkpoint.save(home.decoder, decoder, metadata)
    checkpoint.save(home.checkpoint(0), encoder, metadata)
    return settings


def add(home: Home, file: Path) -> dict[str, Any]:
    """Enrol the site of an enrol.json; a running aggregator lets it in at once."""
    found = enrolment.load(file)
    Ledger(home.ledger).add_site(found)
    audit.append(home.audit, "coordinator", "site-add", site=found.site, name=found.name, capacity=found.capacity)
    return {"site": found.site, "name": found.name, "capacity": found.capacity, "state": "active"}


def revoke(home: Home, name: str) -> dict[str, Any]:
    """Revoke a site; a running aggregator cuts it off at once, and what it sent in the open round is not merged."""
    site = Ledger(home.ledger).revoke_site(name)
    audit.append(home.audit, "coordinator", "site-revoke", site=site, name=name)
    return {"site": site, "name": name, "state": "revoked"}


def listed(home: Home) -> list[dict[str, Any]]:
    return [
        {"site": s.site, "name": s.name, "state": s.state, "capacity": s.capacity, "seen": s.seen}
        for s in Ledger(home.ledger).sites().values()
    ]


def coordinator_fingerprint(home: Home) -> str:
    return fingerprint(keys.public_signing_key(home.public_key.read_text(), str(home.public_key)))


def free_bytes(home: Home) -> int:
    return shutil.disk_usage(home.root).free
