"""The first pass: what each file is. Known files are not opened again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from usfmae.core.prepare.ledger import CorpusLedger
from usfmae.core.prepare.plan import Known
from usfmae.core.prepare.summary import PrepareSummary, Progress
from usfmae.core.read.discover import Candidate, is_archive, member_candidates, walk
from usfmae.core.sandbox.pool import Pool
from usfmae.core.sandbox.worker import Worker
from usfmae.core.types import Scan, Trail, secret_id

BATCH = 64  # identifications written at once
# (absolute path, member) of a file -> the public data set it is from, and what a split must not part it from.
Chosen = Mapping[tuple[Path, str], tuple[str, str]]


def identified(  # noqa: PLR0913
    sources: Sequence[Path],
    ledger: CorpusLedger,
    pool: Pool,
    secret: bytes,
    summary: PrepareSummary,
    progress: Progress | None = None,
    only: Chosen | None = None,
) -> dict[str, Known]:
    """Scan id -> the scan and where it lies, in the order found; everything else is counted into `summary`.

    Of equal files the first counts, the others are duplicates of it.
    """
    found: dict[str, Known] = {}
    fresh: list[dict[str, Any]] = []
    for candidate, place, answer, is_new in _answers(sources, ledger, pool, secret, only):
        if is_new and answer["outcome"] != "failed":
            fresh.append({"place": place, **answer})
        if len(fresh) >= BATCH:
            ledger.add_places(fresh)
            fresh = []
        _count(candidate, _named(candidate, answer, only, secret), found, summary)
        if progress:
            progress(summary)
    ledger.add_places(fresh)
    return found


def _named(candidate: Candidate, answer: dict[str, Any], only: Chosen | None, secret: bytes) -> dict[str, Any]:
    """The answer with the data set and the group that the caller knows better than the file's header."""
    if only is None:
        return answer
    dataset, group = only[candidate.path, candidate.member]
    return {**answer, "dataset": dataset, "group": secret_id(secret, "group", dataset, group)}


def _count(candidate: Candidate, answer: dict[str, Any], found: dict[str, Known], summary: PrepareSummary) -> None:
    outcome = answer["outcome"]
    if outcome == "none":
        summary.ignored += 1
        return
    summary.scans += 1
    if outcome != "scan":
        summary.add_scan(outcome, answer.get("reason", ""))
    elif answer["id"] in found:
        summary.add_scan("duplicate")
    else:
        scan = Scan(
            candidate.path,
            answer["kind"],
            Trail(answer["id"]),
            candidate.member,
            answer["group"],
            answer.get("dataset", ""),
        )
        found[answer["id"]] = Known(scan, answer["planned"], answer["study"])


def _answers(
    sources: Sequence[Path], ledger: CorpusLedger, pool: Pool, secret: bytes, only: Chosen | None = None
) -> Iterator[tuple[Candidate, str, dict[str, Any], bool]]:
    """(candidate, place, answer, whether it is new) of every file, in the order of the walk."""
    places = ledger.places()
    seen: set[str] = set()

    def candidates() -> Iterator[Candidate]:
        for candidate in _unpacked(walk(sources, skip=(ledger.corpus,)), pool):
            if only is not None and (candidate.path, candidate.member) not in only:
                continue
            place = candidate.place(secret)
            if place not in seen:  # sources may overlap
                seen.add(place)
                yield candidate

    def ask(worker: Worker, candidate: Candidate) -> tuple[dict[str, Any], bool]:
        known = places.get(candidate.place(secret))
        return (known, False) if known is not None else (_identify(worker, candidate), True)

    for candidate, (answer, is_new) in pool.map(ask, candidates()):
        yield candidate, candidate.place(secret), answer, is_new


def _identify(worker: Worker, candidate: Candidate) -> dict[str, Any]:
    if candidate.broken:
        outcome = "failed" if candidate.broken.startswith("os-") else "quarantined"
        return {"outcome": outcome, "reason": candidate.broken, "id": candidate.place(worker.secret)}
    return worker.identify(candidate)


def _unpacked(candidates: Iterator[Candidate], pool: Pool) -> Iterator[Candidate]:
    """Archives replaced by their members."""
    for candidate in candidates:
        if candidate.broken or not is_archive(candidate):
            yield candidate
            continue
        answer = pool.call(Worker.members, candidate).result()
        if answer.get("reason"):
            yield candidate.as_broken(answer["reason"])
        yield from member_candidates(candidate, answer["members"])
