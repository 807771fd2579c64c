"""Which scans are cleaned together, and which share a shard: the same scans give the same plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from usfmae.core.sandbox.worker import Unit
from usfmae.core.types import Scan

STILLS_TOGETHER = 32  # stills of one study that share a search for static overlay


@dataclass(frozen=True)
class Known:
    """A scan and what planning needs of its header."""

    scan: Scan
    planned: int  # frames that are likely to be kept
    study: str = ""


def units(scans: Iterable[Known]) -> list[list[Known]]:
    """Clips alone, stills of one study together, in the order in which each unit's first scan was found."""
    made: list[list[Known]] = []
    open_studies: dict[str, list[Known]] = {}
    for known in scans:
        unit = open_studies.get(known.study) if known.study and known.planned == 1 else None
        if unit is not None and len(unit) < STILLS_TOGETHER:
            unit.append(known)
            continue
        made.append([known])
        if known.study and known.planned == 1:
            open_studies[known.study] = made[-1]
    return made


def tasks(scans: Iterable[Known], images: int) -> Iterator[list[list[str]]]:
    """Units filled into shards of about `images` images, as lists of scan ids."""
    task: list[list[str]] = []
    count = 0
    for unit in units(scans):
        task.append([known.scan.trail.id for known in unit])
        count += sum(known.planned for known in unit)
        if count >= images:
            yield task
            task, count = [], 0
    if task:
        yield task


def unit_of(ids: Iterable[str], known: dict[str, Known]) -> Unit:
    """The unit of these ids as far as their files are still there."""
    present = [known[id_] for id_ in ids if id_ in known]
    return Unit(tuple(k.scan for k in present), any(k.planned > 1 for k in present))
