"""One round's work at a site: a directory.

    DIR/jobs/KEY/request.json         the request, its shards, where decoder and optimizer come from
    DIR/jobs/KEY/base.safetensors     the encoder that came
    DIR/jobs/KEY/state/               checkpoint inside the round
    DIR/jobs/KEY/progress.json        step, loss, rate
    DIR/jobs/KEY/result.json          written last: the work is done
    DIR/jobs/KEY/error.json           why it cannot be done
    DIR/jobs/KEY/lock                 held by the living worker, whoever started it

workers.py has the process that trains in it.
"""

from __future__ import annotations

import fcntl
import functools
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from usfmae.client import outbox
from usfmae.client.site import Site, read_json, write_json
from usfmae.core.config import TrainSettings
from usfmae.core.federated.messages import TrainRequest, to_record


@dataclass(frozen=True)
class Job:
    site: Site
    place: Path

    @property
    def base(self) -> Path:
        return self.place / "base.safetensors"

    @property
    def decoder(self) -> Path:
        """The seed's decoder, where it came with the request."""
        return self.place / "seed-decoder.safetensors"

    @property
    def result(self) -> dict[str, Any] | None:
        return read_json(self.place / "result.json")

    @property
    def error(self) -> dict[str, Any] | None:
        return read_json(self.place / "error.json")

    @property
    def ended(self) -> bool:
        """Its result, or why there is none, is written."""
        return any((self.place / name).exists() for name in ("result.json", "error.json"))

    @property
    def progress(self) -> dict[str, Any]:
        return read_json(self.place / "progress.json") or {}

    @property
    def request(self) -> dict[str, Any]:
        """The request's record; empty until the job is ready."""
        found: dict[str, Any] = (read_json(self.place / "request.json") or {}).get("request", {})
        return found

    @property
    def ready(self) -> bool:
        """The request and its base are on disk."""
        return (self.place / "request.json").exists()

    def alive(self) -> bool:
        """A worker holds the lock, this agent's or an earlier one's."""
        try:
            with (self.place / "lock").open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


def job(site: Site, request: TrainRequest) -> Job:
    return Job(site, site.root / "jobs" / outbox.key(request))


def prepare(work: Job, request: TrainRequest, norms: dict[str, float]) -> None:
    """Write down what the worker needs; from now on the round can be trained without the network."""
    shards = sorted(str(found) for found in shard_sums(work.site))
    before = previous(work.site, request)
    about = {
        "request": to_record(request),
        "norms": norms,
        "shards": shards,
        "previous": before.place.name if before else "",
        "created": time.time(),
    }
    write_json(work.place / "request.json", about)


def shard_sums(site: Site) -> Iterator[str]:
    """Checksums of the corpus' shards as they are now, so that a resumed round trains on the same images."""
    from usfmae.core.corpus.shard import FOLDER, read_index

    for path in sorted((site.corpus / FOLDER).glob("*.json")):
        yield read_index(path).sha256


def images(site: Site) -> int:
    """Images in the site's corpus."""
    from usfmae.core.corpus.shard import FOLDER

    return sum(_count(path, path.stat().st_mtime_ns) for path in (site.corpus / FOLDER).glob("*.json"))


@functools.lru_cache(maxsize=65536)
def _count(index: Path, changed: int) -> int:
    """Images of one shard; asked at every look while a request waits."""
    from usfmae.core.corpus.shard import read_index

    return read_index(index).shard.count


def new_images(site: Site, recipe: TrainSettings) -> int:
    """Images this site may train on and never has."""
    from usfmae.client.rounds.sample_counts import SampleCounts
    from usfmae.core.corpus.batch import Corpus

    corpus = Corpus([site.corpus], verify=False)
    train = corpus.split(recipe.held_out, recipe.seed)[0]
    uses = SampleCounts(site.root / "uses.sqlite").of(corpus.ids[p] for p in train)
    return int((uses == 0).sum())


def finished(site: Site, campaign: str) -> list[tuple[int, Job]]:
    """Rounds of a campaign that were trained here, oldest first."""
    found = []
    for place in (site.root / "jobs").glob("*/result.json"):
        about = read_json(place.parent / "request.json") or {}
        request = about.get("request", {})
        if request.get("campaign") == campaign:
            found.append((int(request["round"]), float(about.get("created", 0.0)), Job(site, place.parent)))
    return [(number, work) for number, _, work in sorted(found, key=lambda entry: entry[:2])]


def spent(site: Site, campaign: str, name: str, kept: Path) -> Path | None:
    """The file of this name in the oldest round of a campaign that was trained here, where it is not `kept`.

    Two rounds on nobody reads an encoder or a residual again: a repeated request is answered from the outbox.
    """
    found = [work.place / name for _, work in finished(site, campaign) if (work.place / name).exists()]
    return found[0] if found and found[0] != kept else None


def unfinished(site: Site) -> Job | None:
    """The job a former agent left: it goes on although its request may have died with the server."""
    places = [p.parent for p in (site.root / "jobs").glob("*/request.json")]
    works = [Job(site, place) for place in sorted(places, key=lambda p: p.stat().st_mtime)]
    open_ = [work for work in works if not work.ended]
    return open_[-1] if open_ else None


def previous(site: Site, request: TrainRequest) -> Job | None:
    """The latest earlier round: its decoder, optimizer state and rounding residue go on from there."""
    earlier = [work for number, work in finished(site, request.campaign) if number < request.round]
    return earlier[-1] if earlier else None


def parent_norms(site: Site, request: TrainRequest) -> dict[str, float] | None:
    """Norms of the last encoder this site accepted in the campaign."""
    before = previous(site, request)
    return (read_json(before.place / "request.json") or {}).get("norms") if before else None


def prune(site: Site, request: TrainRequest) -> None:
    """Remove rounds that are too old to be asked for again."""
    for number, work in finished(site, request.campaign):
        if number <= request.round - site.settings.keep_rounds and not work.alive():
            shutil.rmtree(work.place, ignore_errors=True)
