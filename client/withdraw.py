"""A patient withdraws consent, or a person sees an image that should not be there: out of the corpus, for good.

Names what is asked for, takes it out (core/prepare/withdraw.py) and removes what else of it lies at this site. What was
merged stays in the encoders: an update that left cannot be taken back.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from usfmae.client import outbox
from usfmae.client.intake.inventory import empty_spool, preparation
from usfmae.client.intake.spool import SPOOL, cleaned
from usfmae.client.review import gallery
from usfmae.client.review.corpus_view import KeptImage, frame_of, index_of
from usfmae.client.review.quarantine import deciding
from usfmae.client.rounds.jobs import Job
from usfmae.client.site import Site
from usfmae.core import account
from usfmae.core.errors import SourceError, TryLaterError, UsageError
from usfmae.core.prepare.ledger import CorpusLedger
from usfmae.core.prepare.ledger_queries import entry_of
from usfmae.core.prepare.withdraw import REASON, Withdrawn, withdraw
from usfmae.core.read.discover import Candidate
from usfmae.core.sandbox.worker import Worker
from usfmae.core.types import secret_id


def image_named(site: Site, name: str) -> KeptImage:
    """The kept image SHARD/ROW, as its page is called. UsageError where there is none."""
    shard, _, row = name.strip("/").removeprefix("kept/").rpartition("/")
    try:
        image = KeptImage(shard, int(row))
        known = 0 <= image.row < index_of(site.corpus, shard).shard.count
    except (ValueError, OSError, SourceError):
        known = False
    if not known:
        raise UsageError(f"image {name!r:.60}", "is not in the corpus", "name it as its page does: SHARD/ROW")
    return image


def patient_of_image(site: Site, image: KeptImage) -> Withdrawn:
    """All of the patient whose image this is."""
    index = index_of(site.corpus, image.shard)
    group = index.groups[image.row]
    return Withdrawn(groups=frozenset([group])) if group else Withdrawn(images=frozenset([index.ids[image.row]]))


def patient_of_file(site: Site, file: Path) -> Withdrawn:
    """All of the patient that a scan is of; it is read in a process of its own. SourceError where it is no scan."""
    status = file.stat()
    worker = Worker(preparation(site), site.secret)
    try:
        answer = worker.identify(Candidate.of(file.absolute(), "", status.st_size, status.st_mtime_ns))
    finally:
        worker.close()
    if answer["outcome"] != "scan":
        raise SourceError("this file", "is no scan that can be read", "name a scan of the patient, or use --patient")
    known = CorpusLedger(site.corpus).scan(answer["id"])  # where no header names a patient its folder stands for one
    return Withdrawn(groups=frozenset([known.group if known else answer["group"]]))


def patient_of_id(site: Site, patient: str) -> Withdrawn:
    """All of the patient with this Patient ID in DICOM, or this name where scans have no ID."""
    return Withdrawn(groups=frozenset([secret_id(site.secret, "group", "patient", patient.strip().encode())]))


def take_out(site: Site, asked: Withdrawn, by: str = "", entry: str = "") -> int:
    """Take images out of the corpus; how many there were. TryLaterError while the site trains or cleans scans.

    `entry`: the name of a single image in the quarantine, where it counts as dropped: nobody releases it again.
    """
    by = by or account.person()
    _check_idle(site)
    count = withdraw(site.corpus, asked)
    if entry:
        with deciding(site, write=True) as db:
            row = (entry, "dropped", REASON, by, time.time())
            db.execute("INSERT OR REPLACE INTO decisions VALUES (?, ?, ?, ?, ?)", row)
    _remove_traces(site, asked)
    site.note("corpus.withdrawn", images=count, what="patient" if asked.groups else "image", by=by)
    return count


def take_out_image(site: Site, image: KeptImage, by: str = "") -> int:
    """Take one image out."""
    id_ = index_of(site.corpus, image.shard).ids[image.row]
    try:
        entry = image.released or entry_of(*frame_of(site, image))
    except SourceError:  # others put it into the corpus
        entry = ""
    return take_out(site, Withdrawn(images=frozenset([id_])), by, entry)


def _jobs(site: Site) -> list[Job]:
    return [Job(site, place) for place in sorted((site.root / "jobs").glob("*/"))]


def _check_idle(site: Site) -> None:
    if any(job.alive() for job in _jobs(site)):
        raise TryLaterError(f"site {site.root}", "trains on its corpus now", "'usfmae-client pause' it, then again")


def _remove_traces(site: Site, asked: Withdrawn) -> None:
    """What was trained and has not left is given up; pictures that may show a patient go, and received files."""
    _check_idle(site)
    for entry in outbox.entries(site):
        if entry["state"] == outbox.EntryState.WAITING:
            outbox.decide(site, entry["id"], False, "images of it were withdrawn")
    for job in _jobs(site):
        if not outbox.folder(site, job.place.name).exists():
            shutil.rmtree(job.place)  # the round is begun anew on what is left
    for _, _, name in gallery.panels(site):
        (site.root / "gallery" / name).unlink(missing_ok=True)
    for picture in (site.root / "outbox").glob(f"*/{outbox.PICTURE}"):
        picture.unlink(missing_ok=True)
    empty_spool(site)
    for scan in CorpusLedger(site.corpus).scans_in(asked.groups):
        cleaned(site.root / SPOOL, scan).unlink(missing_ok=True)
