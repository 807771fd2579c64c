"""A site leaves its federation: nothing more is trained or sent, and, where it is asked for, the data goes too.

What stays even then is what a hospital must be able to show later: the audit log, and the sheet of every update that
left. What was merged stays merged: an encoder cannot be taken back.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from usfmae.client import outbox, site_policy
from usfmae.client.site import Site, read_json, write_json
from usfmae.core import account
from usfmae.core.errors import PolicyError

MARK = "left.json"
STAYS = {"audit.jsonl", "audit.head", MARK, "outbox", "site.yaml", "coordinator.pem"}


def check_member(site: Site) -> None:
    """PolicyError where this site has left."""
    mark = read_json(site.root / MARK)
    if mark:
        day = time.strftime("%Y-%m-%d", time.gmtime(float(mark["time"])))
        raise PolicyError(f"site {site.settings.name}", f"left its federation on {day}", "make a new site with 'init'")


def leave(site: Site, delete: bool = False) -> dict[str, Any]:
    """Leave; the bytes that were deleted. UsageError while an agent serves the site, PolicyError where it left before."""
    check_member(site)
    with site.served_alone():
        kept_here = [entry["id"] for entry in outbox.entries(site) if entry["state"] == outbox.EntryState.WAITING]
        for name in kept_here:
            outbox.decide(site, name, False, "the site leaves")
        if not site_policy.paused(site):
            site_policy.pause(site)
        fingerprint, by = site.fingerprint, account.person()
        write_json(site.root / MARK, {"time": time.time(), "by": by, "fingerprint": fingerprint, "deleted": delete})
        site.note("left", by=by, fingerprint=fingerprint, updates_kept=len(kept_here), deleted=delete)
    deleted = _delete(site.root) if delete else 0
    return {"name": site.settings.name, "fingerprint": fingerprint, "deleted_bytes": deleted, "kept_back": kept_here}


def _delete(root: Path) -> int:
    """Everything but what STAYS, and the arrays of each update; the bytes that went."""
    gone = sum(path.stat().st_size for path in (root / "outbox").rglob(outbox.UPDATE))
    for path in (root / "outbox").rglob(outbox.UPDATE):
        path.unlink()
    for path in root.iterdir():
        if path.name not in STAYS:
            gone += sum(file.lstat().st_size for file in (path, *path.rglob("*")) if file.is_file())
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return gone
