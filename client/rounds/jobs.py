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

import functools
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from usfmae.client import outbox
from usfmae.client.site import Site, read_json, write_json
from usfmae.core.config import TrainRecipe
from usfmae.core.federated.messages import TrainRequest, to_record
from usfmae.core.files import is_locked

ENDED_AFTER = 30 * 86400.0  # seconds after which another campaign's work is not gone on with


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
    def teacher(self) -> Path:
        """The campaign's frozen teacher, where it came with the request and is not inspected yet."""
        return self.place / "teacher.safetensors"

    @property
    def trained_decoder(self) -> Path:
        """This site's own decoder as the round left it."""
        return self.place / "decoder.safetensors"

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
        record = (read_json(self.place / "request.json") or {}).get("request", {})
        return record if isinstance(record, dict) else {}

    @property
    def ready(self) -> bool:
        """The request and its base are on disk."""
        return (self.place / "request.json").exists()

    def alive(self) -> bool:
        """A worker holds the lock, this agent's or an earlier one's."""
        return is_locked(self.place / "lock")


def job(site: Site, request: TrainRequest) -> Job:
    return Job(site, site.root / "jobs" / outbox.key(request))


def prepare(work: Job, request: TrainRequest, seed: int, norms: Mapping[str, float], shapes: Mapping[str, Any]) -> None:
    """Write down what the worker needs; from now on the round can be trained without the network.

    `seed`: the recipe's. The worker draws by a seed of this site's own that follows from it and from the site's secret.
    """
    from usfmae.core.corpus.sampling import order_seed

    before = previous(work.site, request)
    prepared = {
        "request": to_record(request),
        "order": order_seed(work.site.secret, request.campaign, seed),
        "norms": norms,
        "shapes": shapes,
        "shards": sorted(shard_sums(work.site)),
        "previous": before.place.name if before else "",
        "created": time.time(),
    }
    write_json(work.place / "request.json", prepared)


def extend(work: Job, expires: float) -> None:
    """The request came again with a later end: the training may go on until then."""
    prepared = read_json(work.place / "request.json")
    if prepared and expires > float(prepared["request"].get("expires", 0.0)):
        prepared["request"]["expires"] = expires
        write_json(work.place / "request.json", prepared)


def shard_sums(site: Site) -> Iterator[str]:
    """Checksums of the corpus' shards as they are now, so that a resumed round trains on the same images."""
    from usfmae.core.corpus.shard import FOLDER, read_index

    for path in sorted((site.corpus / FOLDER).glob("*.json")):
        yield read_index(path).sha256


@dataclass(frozen=True)
class CorpusSize:
    """What there is to draw on."""

    images: int
    patients: int  # groups; an image without one is a group of its own


def corpus_size(site: Site) -> CorpusSize:
    """Images and patients in the site's corpus."""
    from usfmae.core.corpus.shard import FOLDER

    shards = [_count(path, path.stat().st_mtime_ns) for path in (site.corpus / FOLDER).glob("*.json")]
    return CorpusSize(sum(count for count, _ in shards), len(frozenset().union(*(groups for _, groups in shards))))


@functools.lru_cache(maxsize=65536)
def _count(index: Path, changed: int) -> tuple[int, frozenset[str]]:
    """Images and groups of one shard; read once, since they are wanted again while a request waits."""
    from usfmae.core.corpus.shard import read_index

    shard_index = read_index(index)
    return shard_index.shard.count, frozenset(
        group or id_ for group, id_ in zip(shard_index.groups, shard_index.ids, strict=True)
    )


def new_images(site: Site, recipe: TrainRecipe) -> int:
    """Images this site may train on and never has."""
    from usfmae.client.rounds.sample_counts import SampleCounts
    from usfmae.core.corpus.batch import Corpus

    corpus = Corpus([site.corpus], verify=False)
    train = corpus.split(recipe.held_out, recipe.seed)[0]
    uses = SampleCounts(site.root / "uses.sqlite").of(corpus.ids[p] for p in train)
    return int((uses == 0).sum())


def finished(site: Site, campaign: str) -> list[tuple[int, Job]]:
    """Rounds of a campaign that were trained here, oldest first."""
    rounds = []
    for place in (site.root / "jobs").glob("*/result.json"):
        prepared = read_json(place.parent / "request.json") or {}
        request = prepared.get("request", {})
        if request.get("campaign") == campaign:
            rounds.append((int(request["round"]), float(prepared.get("created", 0.0)), Job(site, place.parent)))
    return [(number, work) for number, _, work in sorted(rounds, key=lambda entry: entry[:2])]


def spent(site: Site, campaign: str, name: str, latest: Path) -> Path | None:
    """The file of this name in the oldest round of a campaign that was trained here, where it is not `latest`.

    Two rounds later an encoder or a residual is not read again: a repeated request is answered from the outbox.
    """
    files = [work.place / name for _, work in finished(site, campaign) if (work.place / name).exists()]
    return files[0] if files and files[0] != latest else None


def unfinished(site: Site) -> Job | None:
    """The job that an earlier agent left unfinished; it is continued even where the server has lost the request."""
    places = [p.parent for p in (site.root / "jobs").glob("*/request.json")]
    works = [Job(site, place) for place in sorted(places, key=lambda p: p.stat().st_mtime)]
    open_ = [work for work in works if not work.ended]
    return open_[-1] if open_ else None


def previous(site: Site, request: TrainRequest) -> Job | None:
    """The latest earlier round: its decoder, optimizer state and rounding residue go on from there."""
    earlier = [work for number, work in finished(site, request.campaign) if number < request.round]
    return earlier[-1] if earlier else None


def has_decoder(site: Site, request: TrainRequest) -> bool:
    """Whether this site holds a decoder to train with: its own of the round before, or the seed's."""
    before = previous(site, request)
    return bool(before and before.trained_decoder.exists()) or job(site, request).decoder.exists()


def prune(site: Site, request: TrainRequest) -> None:
    """Remove rounds that are too old to be asked for again, of this campaign and of those that ended long ago.

    Of what was sent, the sheet and the record stay, and the packed update goes.
    """
    old = {
        work.place
        for number, work in finished(site, request.campaign)
        if number <= request.round - site.settings.keep_rounds
    }
    for place in (site.root / "jobs").glob("*/"):
        campaign = Job(site, place).request.get("campaign")
        if campaign != request.campaign and time.time() - place.stat().st_mtime > ENDED_AFTER:
            old.add(place)
    for place in old:
        if not Job(site, place).alive():
            shutil.rmtree(place, ignore_errors=True)
            if (outbox.folder(site, place.name) / "sent.json").exists():
                (outbox.folder(site, place.name) / outbox.UPDATE).unlink(missing_ok=True)
