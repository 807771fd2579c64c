"""What a site's backup holds: all that cannot be made again. No scan as it came; the corpus only where it is asked for.

Left out: jobs and optimizer states (the coordinator sends the encoder and the seed's decoder again), the replay corpus,
received scans that wait for their cleaning, the status.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from usfmae.client import outbox
from usfmae.client.intake.spool import SPOOL
from usfmae.client.review.corpus_view import RELEASED
from usfmae.client.site import Site
from usfmae.core import audit, backup
from usfmae.core.backup import BackupContent
from usfmae.core.corpus.shard import FOLDER
from usfmae.core.prepare import withdraw

SINGLE = (
    "site.yaml", "ca.pem", "coordinator.pem", "enrol.json", "rotation.json", "paused", "received.json", "prepared.json",
    "audit.jsonl", "audit.head", "decisions.sqlite", "decisions.jsonl", "uses.sqlite", "dp.sqlite", "dicomweb.sqlite",
)  # fmt: skip


def files(site: Site, corpus: bool) -> Iterator[Path]:
    """Every file that belongs into a backup of this site."""
    root = site.root
    yield from (root / name for name in SINGLE if (root / name).exists())
    yield from (path for path in (root / "keys").rglob("*") if path.is_file())
    yield from (root / "campaigns").glob("*/*.json")
    yield from _outbox(site)
    if corpus:
        yield from _corpus(site)
    else:  # a person let these in, and no second cleaning would
        yield from (site.corpus / FOLDER).glob(f"{RELEASED}*")
        yield from site.corpus.glob(withdraw.FILE)  # whoever withdrew stays out of a corpus that is made again


def _outbox(site: Site) -> Iterator[Path]:
    """Every sheet; the updates themselves of the rounds that may still be asked for."""
    entries = outbox.entries(site)
    for number, entry in enumerate(entries):
        place = outbox.folder(site, entry["id"])
        wanted = entry["state"] != outbox.EntryState.SENT or number >= len(entries) - site.settings.keep_rounds
        yield from (path for path in place.iterdir() if path.is_file() and (wanted or path.name != outbox.UPDATE))


def _corpus(site: Site) -> Iterator[Path]:
    for path in site.corpus.rglob("*"):
        if path.is_file() and not path.name.endswith((".partial", ".lock", "-wal", "-shm")) and SPOOL not in path.parts:
            yield path


def write(site: Site, out: Path, corpus: bool = False) -> dict[str, Any]:
    """Back the site up to the new file `out`."""
    made = backup.write(BackupContent("site", site.settings.name, site.root, lambda: files(site, corpus)), out)
    site.note("backup", files=made["files"], bytes=made["bytes"], corpus=corpus)
    return made


def restore(file: Path, root: Path) -> dict[str, Any]:
    """Make `root` the site that was backed up; PolicyError where its audit log does not hold."""
    done = backup.restore(file, "site", root)
    site = Site.open(root)
    _ = site.node_key, site.signing_key, site.secret, site.coordinator
    done["audit_entries"] = audit.verify(site.audit_log)
    site.note("restored", backup_time=done["time"], version=done["version"], fingerprint=site.fingerprint)
    return done
