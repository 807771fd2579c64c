"""Setting up a federation: keys, certificates, settings, ledger, round 0."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from usfmae.core import audit, checkpoint, keys
from usfmae.core.checkpoint import Loaded
from usfmae.core.checkpoint_header import describe
from usfmae.core.config import filled, load, template
from usfmae.core.config.coordinator import CoordinatorSettings
from usfmae.core.errors import ConfigError
from usfmae.core.federated.messages import fingerprint
from usfmae.core.federated.rules import check_rule
from usfmae.core.files import write_atomic
from usfmae.core.mae.model import MaskedAutoencoder
from usfmae.core.mae.presets import values_of
from usfmae.core.mae.weights.init_weights import load_any
from usfmae.server import certificates
from usfmae.server.layout import Layout
from usfmae.server.ledger import Ledger
from usfmae.server.rounds import sealing


@dataclass(frozen=True)
class NewFederation:
    """What a coordinator decides when a federation begins."""

    name: str
    host: str = ""  # name or address the hospitals will use; goes into the certificate
    port: int = 8443  # 0 takes a free one at each start
    seed: Path | None = None  # checkpoint to start from; random weights where there is none


def create(root: Path, new: NewFederation, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Make a coordinator's directory: keys, certificates, settings, ledger, seed. ConfigError where one is there."""
    home = Layout(root)
    if home.ledger.exists():
        raise ConfigError(f"directory {root}", "holds a federation already", "choose another directory")
    names = ["localhost", "127.0.0.1"]
    if new.host not in (*names, "", "0.0.0.0", "::"):  # noqa: S104 - an address to listen on is no name
        names.append(new.host)
    listed = "[" + ", ".join(json.dumps(n) for n in names) + "]"
    wanted = [f"name={json.dumps(new.name)}", f"network.port={new.port}", f"network.names={listed}", *overrides]
    settings, seed = _with_seed(wanted, new.seed)
    check_rule(settings)  # refused now, not when the first round opens
    if settings.rounds.sealed:
        sealing.checked(settings)
    root.mkdir(parents=True, exist_ok=True)
    root.chmod(0o700)  # also where it was there before
    _write_seed(home, settings, seed)
    _write_settings(home, settings)
    _write_keys(home, settings)
    ledger = Ledger(home.ledger, create=True)
    campaign = f"{settings.name}-{secrets.token_hex(6)}"
    ledger.set_fact("campaign", campaign)
    ledger.close()
    audit.append(home.audit, "coordinator", "init", campaign=campaign, name=settings.name)
    return {
        "directory": str(root),
        "campaign": campaign,
        "ca": str(home.ca),
        "coordinator_key": str(home.public_key),
        "fingerprint": fingerprint(keys.public_signing_key(home.public_key.read_text(), str(home.public_key))),
    }


def _write_settings(home: Layout, settings: CoordinatorSettings) -> None:
    """The commented template with this federation's values in it."""
    chosen = settings.model_dump(mode="json", exclude_defaults=True)
    head = "# Settings of usfmae-server. Only what differs from the defaults is set here; every key with its\n"
    head += "# meaning and default follows below as a comment.\n"
    every = "\n".join(f"# {line}" for line in template(CoordinatorSettings).split("\n"))
    write_atomic(home.settings_file, (head + yaml.safe_dump(chosen, sort_keys=False) + "\n" + every + "\n").encode())


def _write_keys(home: Layout, settings: CoordinatorSettings) -> None:
    signing, ca_key, tls_key = keys.new_signing_key(), keys.new_node_key(), keys.new_node_key()
    for path, key in ((home.signing_key, signing), (home.ca_key, ca_key), (home.tls_key, tls_key)):
        keys.write_private(path, key)
    ca = certificates.authority(settings.name, ca_key)
    write_atomic(home.ca, ca)
    write_atomic(home.certificate, certificates.server(settings.network.names, tls_key.public_key(), ca, ca_key))
    write_atomic(home.public_key, keys.public_pem(signing).encode())


def _with_seed(wanted: Sequence[str], seed: Path | None) -> tuple[CoordinatorSettings, Loaded | None]:
    """Settings: what `wanted` sets; beneath it the preset that it names; beneath that a seed's architecture and recipe."""
    settings, origins = load(CoordinatorSettings, None, wanted)
    chosen = values_of(settings.train.preset) if "train.preset" in origins else {}
    if seed is None:
        return filled(settings, origins, chosen), None
    loaded = load_any(seed)
    if not checkpoint.decoder_of(loaded.tensors):
        raise ConfigError(
            "seed",
            "holds no decoder, or one whose heads nothing states",
            "use a pretraining checkpoint, or 'usfmae import FILE --decoder-heads N --out CHECKPOINT' first",
        )
    recipe = loaded.train.settings().model_copy(update={"steps": None})
    brought = {"model": loaded.model.model_dump(), "train": recipe.model_dump()}
    return filled(settings, origins, brought, {"train": chosen.get("train", {})}), loaded


def _write_seed(home: Layout, settings: CoordinatorSettings, loaded: Loaded | None) -> None:
    """Round 0: the seed's encoder and, beside it, its decoder."""
    if loaded:
        tensors, parents = loaded.tensors, [loaded.metadata["content"]]
    else:
        torch.manual_seed(settings.train.seed)
        model = MaskedAutoencoder(settings.model, settings.train.mask_ratio, settings.train.norm_pix)
        tensors, parents = dict(model.state_dict()), []
    metadata = describe(settings.model, settings.train, parents=tuple(parents), round=0, step=0)
    encoder, decoder = checkpoint.encoder_of(tensors), checkpoint.decoder_of(tensors)
    checkpoint.save(home.decoder, decoder, metadata)
    checkpoint.save(home.checkpoint(0), encoder, metadata)
