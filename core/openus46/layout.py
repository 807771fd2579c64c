"""From the published layout of a data set to its scans; what does not match is reported, never guessed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from usfmae.core.errors import SourceError
from usfmae.core.openus46.archive import HDF5, Entry, entries, is_packed, pattern, to_unpack
from usfmae.core.openus46.registry import Dataset, Layout
from usfmae.core.types import Scan, Trail, secret_id

Status = Literal["present", "partial", "more", "found", "unverified", "mismatch", "packed", "damaged", "missing"]
USABLE: tuple[Status, ...] = ("present", "partial", "more", "found")

RASTER = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
VIDEO = (".mp4", ".avi", ".mov", ".mpeg", ".mpg", ".gif", ".mkv", ".webm")
VOLUME = (".nii", ".nii.gz", ".mha", ".mhd")
PICTURES = (*RASTER, *VIDEO, *VOLUME)


@dataclass(frozen=True)
class Place:
    """One folder or zip that holds (part of) a data set, and the layout that its files match."""

    path: Path
    layout: Layout | None
    chosen: tuple[Entry, ...] = ()
    unexplained: tuple[str, ...] = ()  # pictures that are neither scans nor known masks or labels
    packed: tuple[str, ...] = ()  # archives that must be unpacked first
    seen: str = ""  # what was found, in a few words


@dataclass(frozen=True)
class Found:
    """What of a data set lies on disk."""

    dataset: Dataset
    status: Status
    places: tuple[Place, ...] = ()
    scans: int = 0
    expected: int | None = None
    detail: str = ""
    overlaps: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, object]:
        return {
            "id": self.dataset.id,
            "name": self.dataset.name,
            "status": self.status,
            "scans": self.scans,
            "expected": self.expected,
            "table1": self.dataset.images,
            "licence": self.dataset.licence,
            "licence_class": self.dataset.licence_class,
            "overlaps": list(self.overlaps),
            "folders": [str(place.path) for place in self.places],
            "layouts": [place.layout.name for place in self.places if place.layout],
            "unexplained": sum(len(place.unexplained) for place in self.places),
            "detail": self.detail,
        }


def locate(dataset: Dataset, root: Path) -> list[Path]:
    """Folders and zips below `root` that bear one of the data set's names; a folder wins over its zip."""
    if not root.is_dir():
        raise SourceError(f"root {root}", "is no folder", "give the folder that holds the data sets")
    names = {name.lower() for name in dataset.folders}
    places = {}
    for path in sorted(root.iterdir()):
        is_zip = path.is_file() and path.suffix.lower() == ".zip"
        stem = path.stem if is_zip else path.name
        if (path.is_dir() or is_zip) and stem.lower() in names and (path.is_dir() or stem.lower() not in places):
            places[stem.lower()] = path
    return list(places.values())


def place(dataset: Dataset, path: Path) -> Place:
    """Match the files at `path` with the data set's layouts in turn. Raises SourceError for a damaged archive."""
    listed = entries(path)
    packed = tuple(e.name for e in listed if is_packed(e.name))
    for layout in dataset.layouts:
        matched = _match(layout, listed)
        if matched:
            chosen, unexplained = matched
            return Place(path, layout, chosen, unexplained, packed, _summary(listed))
    return Place(path, None, (), (), packed, _summary(listed))


def _match(layout: Layout, listed: Sequence[Entry]) -> tuple[tuple[Entry, ...], tuple[str, ...]] | None:
    if not all(any(pattern((need,)).fullmatch(e.name) for e in listed) for need in layout.needs):
        return None
    include, exclude = pattern(layout.include), pattern(layout.exclude)
    entries = [entry for entry in listed if not exclude.fullmatch(entry.name)]
    chosen = tuple(entry for entry in entries if include.fullmatch(entry.name))
    others = (entry.name for entry in entries if not include.fullmatch(entry.name))
    unexplained = tuple(name for name in others if name.lower().endswith(PICTURES))
    return (chosen, unexplained) if chosen else None


def _summary(listed: Sequence[Entry]) -> str:
    """Folders and kinds of file, as a person would describe the tree."""
    if not listed:
        return "no files"
    folders = sorted({"/".join(entry.name.split("/")[1:-1][:3]) for entry in listed} - {""})
    suffixes = [Path(entry.name).suffix.lower() or "no suffix" for entry in listed]
    kinds = ", ".join(f"{suffixes.count(s)} {s}" for s in sorted(set(suffixes), key=lambda s: -suffixes.count(s))[:5])
    shown = ", ".join(folders[:5]) + (", ..." if len(folders) > 5 else "")
    return kinds + (f" in {shown}" if shown else "")


def check(dataset: Dataset, root: Path, accept: Iterable[str] = ()) -> Found:
    """What of one data set lies below `root`. `accept` names data sets whose unverified layout a person has seen."""
    paths = locate(dataset, root)
    if not paths:
        return Found(dataset, "missing", expected=dataset.files, detail=f"looked for {', '.join(dataset.folders)}")
    try:
        places = tuple(place(dataset, path) for path in paths)
    except SourceError as error:
        return Found(dataset, "damaged", expected=dataset.files, detail=str(error))
    count = sum(len(p.chosen) for p in places)
    status, detail = _judge(dataset, places, count)
    if status in USABLE and not dataset.verified and dataset.id not in accept:
        contents = "; ".join(p.seen for p in places)
        detail = f"no public loader confirms this layout; found {contents}; expected {dataset.layout}"
        status = "unverified"
    counts = [p.layout.files for p in places if p.layout and p.layout.files is not None]
    expected = counts[0] if len(counts) == len(places) else None
    return Found(dataset, status, places, count, expected, detail)


def _judge(dataset: Dataset, places: Sequence[Place], count: int) -> tuple[Status, str]:
    unmatched = [p for p in places if p.layout is None]
    packed = [name for p in places for name in p.packed]
    if unmatched:
        what = f"found {'; '.join(p.seen for p in unmatched)}; expected {dataset.layout}"
        return ("packed", to_unpack(packed)) if packed else ("mismatch", what)
    notes = [
        f"{p.path.name}: {len(p.chosen)}, {p.layout.name}" for p in places if p.layout and _worth_a_note(p, places)
    ]
    packed = [name for name in packed if not name.lower().endswith(HDF5)]  # it stays beside its clips
    notes += [f"still packed: {to_unpack(packed)}"] if packed else []
    unexplained = [name for p in places for name in p.unexplained]
    notes += (
        [f"{len(unexplained)} pictures not explained by the layout, such as {unexplained[0]}"] if unexplained else []
    )
    there, expected = _completeness(dataset, places)
    if expected is None:
        return "found", "; ".join([*notes, "how many files are complete is not known"])
    status: Status = "present" if there == expected else "partial" if there < expected else "more"
    if dataset.files is None and dataset.patients is not None:
        notes.append(f"{there} of {expected} patients")
    if status == "more":
        notes.append(f"{there - expected} more than the complete archive holds: are masks among them?")
    return status, "; ".join(notes)


def _worth_a_note(p: Place, places: Sequence[Place]) -> bool:
    return len(places) > 1 or (p.layout is not None and p.layout.name != "as published")


def _completeness(dataset: Dataset, places: Sequence[Place]) -> tuple[int, int | None]:
    """What counts here and what would be complete: files where the number is known, else patients."""
    countable = [p for p in places if p.layout and p.layout.files is not None]
    if countable:
        return sum(len(p.chosen) for p in countable), max(p.layout.files or 0 for p in countable if p.layout)
    return len({group_of(dataset, e.name) for p in places for e in p.chosen}), dataset.patients


def check_all(datasets: Iterable[Dataset], root: Path, accept: Iterable[str] = ()) -> list[Found]:
    """`check` for each, then overlaps among those that are there."""
    accepted = tuple(accept)
    checks = [check(dataset, root, accepted) for dataset in datasets]
    there = {f.dataset.id for f in checks if f.status != "missing"}
    return [
        Found(f.dataset, f.status, f.places, f.scans, f.expected, f.detail, tuple(set(f.dataset.overlaps) & there))
        if f.dataset.id in there
        else f
        for f in checks
    ]


def scans(check: Found, secret: bytes) -> Iterator[Scan]:
    """The scans of a data set that was checked. Raises SourceError where its layout was not recognised."""
    if check.status not in USABLE:
        raise SourceError(f"data set {check.dataset.id}", f"{check.status}: {check.detail}", "mend the folder")
    for p in check.places:
        for entry in p.chosen:
            yield Scan(
                entry.path,
                kind_of(entry.name),
                Trail(secret_id(secret, check.dataset.id, entry.name)),
                entry.member,
                secret_id(secret, check.dataset.id, group_of(check.dataset, entry.name)),
                check.dataset.id,
            )


def kind_of(name: str) -> str:
    """The reader for a file name: raster, video or volume."""
    lower = name.lower()
    if lower.endswith(VOLUME):
        return "volume"
    if lower.endswith(VIDEO):
        return "video"
    return "raster"


def group_of(dataset: Dataset, name: str) -> str:
    """The patient, clip or block that a file belongs to; the file itself where its name says nothing."""
    match = re.search(dataset.group, name, re.IGNORECASE) if dataset.group else None
    return match.group(1) if match else name
