"""New keys for this site, in two steps: make them and ask; then, when the coordinator has said yes, take them."""

from __future__ import annotations

import os
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from usfmae.client.site import Site
from usfmae.core import keys
from usfmae.core.errors import ConfigError
from usfmae.core.federated import enrolment

NAMES = ("node.pem", "signing.pem")


def ask(site: Site) -> Path:
    """Make the next keys and `rotation.json`, signed with the present key. Asking again gives the same keys."""
    following = site.root / "keys" / "next"
    if not (following / NAMES[1]).exists():
        (following / NAMES[0]).unlink(missing_ok=True)  # from a call that was cut short
        keys.write_private(following / NAMES[0], keys.new_node_key())
        keys.write_private(following / NAMES[1], keys.new_signing_key())
    node = keys.read_private(following / NAMES[0], EllipticCurvePrivateKey)
    signing = keys.read_private(following / NAMES[1], Ed25519PrivateKey)
    new = enrolment.proved(site.settings.name, site.settings.capacity, node, signing)
    file = site.root / "rotation.json"
    enrolment.save_rotation(
        enrolment.signed_rotation(enrolment.Rotation(site.fingerprint, new), site.signing_key), file
    )
    site.note("keys.rotation-asked", new=new.site)
    return file


def take(site: Site) -> str:
    """Put the next keys in place and return their fingerprint; the old ones stay in a folder next to them.

    ConfigError where none were made; UsageError while the agent runs.
    """
    folder = site.root / "keys"
    if not all((folder / "next" / name).exists() for name in NAMES):
        first = f"run 'usfmae-client rotate {site.root}' first"
        raise ConfigError(f"keys {folder / 'next'}", "hold no new keys", first)
    with site.served_alone():
        old = folder / f"old-{time.strftime('%Y%m%dT%H%M%S')}"
        old.mkdir(mode=0o700)
        for name in NAMES:
            os.link(folder / name, old / name)  # never a moment without a key on disk
            (folder / "next" / name).replace(folder / name)
        (folder / "next").rmdir()
        (site.root / "rotation.json").unlink(missing_ok=True)
        (site.root / "node.json").unlink(missing_ok=True)  # the aggregator's number for the old key
    fresh = Site.open(site.root)
    now = enrolment.proved(site.settings.name, site.settings.capacity, fresh.node_key, fresh.signing_key)
    enrolment.save(now, site.root / "enrol.json")
    fresh.note("keys.rotated", fingerprint=fresh.fingerprint)
    return fresh.fingerprint
