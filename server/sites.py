"""Letting sites in and out."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from usfmae.core import audit, keys
from usfmae.core.account import person
from usfmae.core.errors import ConfigError, PolicyError, UsfmaeError
from usfmae.core.federated import enrolment
from usfmae.core.federated.enrolment import SiteState
from usfmae.core.federated.messages import fingerprint
from usfmae.server.layout import Layout
from usfmae.server.ledger import Ledger


def add(home: Layout, file: Path, by: str = "", capacity: int | None = None) -> dict[str, Any]:
    """Enrol the site of an enrol.json; a running aggregator lets it in at once. `by`: who did it, for the audit log.

    `capacity`: images that the coordinator vouches for. Without it the site's own claim bounds its replies, and its
    weight in a merge is at most the fair share.
    """
    try:
        site = enrolment.load(file)
        if capacity is not None:
            site = enrolment.checked(dataclasses.replace(site, capacity=capacity), "--capacity")
        Ledger(home.ledger).add_site(site, confirmed=capacity is not None)
    except UsfmaeError as error:
        audit.append(home.audit, "coordinator", "site-add", "refused", why=f"{error.what}: {error.why}"[:200])
        raise
    fields: dict[str, Any] = {"site": site.site, "name": site.name, "capacity": site.capacity}
    fields["confirmed"] = capacity is not None
    audit.append(home.audit, "coordinator", "site-add", **fields, by=by or person())
    return {**fields, "state": SiteState.ACTIVE}


def confirm(home: Layout, name: str, capacity: int, by: str = "") -> dict[str, Any]:
    """The coordinator vouches for the images of an enrolled site: it weighs by them from the next merge on."""
    if not 0 < capacity <= enrolment.LARGEST_CAPACITY:
        raise ConfigError(f"capacity {capacity}", f"is not within 1..{enrolment.LARGEST_CAPACITY}", "correct it")
    site = Ledger(home.ledger).confirm_capacity(name, capacity)
    fields: dict[str, Any] = {"site": site, "name": name, "capacity": capacity}
    audit.append(home.audit, "coordinator", "site-capacity", **fields, by=by or person())
    return {**fields, "confirmed": True}


def revoke(home: Layout, name: str, by: str = "") -> dict[str, Any]:
    """Revoke a site; a running aggregator cuts it off at once, and what it sent in the open round is not merged."""
    site = Ledger(home.ledger).revoke_site(name)
    audit.append(home.audit, "coordinator", "site-revoke", site=site, name=name, by=by or person())
    return {"site": site, "name": name, "state": SiteState.REVOKED}


def rotate(home: Layout, file: Path) -> dict[str, Any]:
    """Take a site's new keys, signed with its present one; the capacity stays what it was enrolled with."""
    rotation = enrolment.load_rotation(file)
    ledger = Ledger(home.ledger)
    site = ledger.sites().get(rotation.replaces)
    if site is None or site.state != SiteState.ACTIVE:
        raise PolicyError(f"rotation of {rotation.enrolment.name}", "its old key is not active here", "enrol it anew")
    enrolment.verify_rotation(rotation, site.signing_key)
    new = dataclasses.replace(rotation.enrolment, capacity=site.capacity)
    ledger.rotate_site(site.site, new)
    audit.append(home.audit, "coordinator", "site-rotate", old=site.site, new=new.site, name=new.name)
    return {"site": new.site, "name": new.name, "replaces": site.site, "state": SiteState.ACTIVE}


def listed(home: Layout) -> list[dict[str, Any]]:
    return [
        {
            "site": s.site,
            "name": s.name,
            "state": s.state,
            "capacity": s.capacity,
            "confirmed": s.confirmed,
            "seen": s.seen,
        }
        for s in Ledger(home.ledger).sites().values()
    ]


def coordinator_fingerprint(home: Layout) -> str:
    return fingerprint(keys.public_signing_key(home.public_key.read_text(), str(home.public_key)))


def free_bytes(home: Layout) -> int:
    return shutil.disk_usage(home.root).free
