"""What goes between `prepare` and its decoding processes: one record a noun, and one codec for all of them.

Records are frozen dataclasses. `encode` writes one as JSON, `decode` validates what comes back: a process that decodes
hostile files may say anything, and what it says goes into the ledger. Codes and names hold no free text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from usfmae.core.read.discover import Examined
from usfmae.core.types import Scan

LARGEST_NUMBER = 1 << 40

Code = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,47}$")]  # "text-left", "os-13", "default-rate"
OptionalCode = Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9-]{0,47})?$")]
Number = Annotated[int, Field(ge=0, le=LARGEST_NUMBER)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=1000)]


class Outcome(StrEnum):
    """What became of a scan as a whole."""

    READ = "read"
    QUARANTINED = "quarantined"
    REFUSED = "refused"
    FAILED = "failed"  # could not be opened: tried again by the next run


# The nouns ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """What is cleaned together: one clip, one still, or the stills of one study."""

    scans: tuple[Scan, ...]
    clip: bool = False  # several frames of one scan


@dataclass
class ScanResult:
    """What became of one scan. No identifiers: it goes into the ledger."""

    id: str
    outcome: str = Outcome.READ
    reason: str = ""
    frames: int = 0  # met in the file: decoded, near-duplicates included, and those that could not be decoded
    duplicates: int = 0
    kept: int = 0
    quarantined: dict[str, list[int]] = field(default_factory=dict)  # reason -> indices of frames kept back
    notes: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)  # means over the kept frames, see clean_unit.py

    @property
    def balanced(self) -> bool:
        """frames = kept + quarantined + duplicates, no frame twice."""
        held = [index for indices in self.quarantined.values() for index in indices]
        return self.frames == self.kept + len(held) + self.duplicates and len(held) == len(set(held))


# Requests to the decoding process -----------------------------------------------------------------------------
# A scan's path there is only a name: `N/name`, where N says which scan of the request it is. See `handed_over`.


@dataclass(frozen=True)
class Hello:
    settings: dict[str, Any]
    writable: tuple[str, ...] = ()  # folders that programs of the cleaning need for their own files
    do: Literal["hello"] = "hello"


@dataclass(frozen=True)
class Identify:
    scan: Scan
    do: Literal["identify"] = "identify"


@dataclass(frozen=True)
class ListMembers:
    scan: Scan
    do: Literal["members"] = "members"


@dataclass(frozen=True)
class CleanUnit:
    unit: Unit
    do: Literal["unit"] = "unit"


@dataclass(frozen=True)
class ShowFrame:
    """Frame `index` of scan `wanted`, cleaned with its unit; -1: the first that is kept. For the report's gallery."""

    unit: Unit
    wanted: str
    index: int
    do: Literal["show"] = "show"


@dataclass(frozen=True)
class PreviewFrame:
    """Frame `index` of one scan, as far as cleaning goes, for a person who decides."""

    scan: Scan
    index: int
    do: Literal["preview"] = "preview"


@dataclass(frozen=True)
class Opened:
    """The answer to `Open`: a descriptor comes with it, or the operating system's error."""

    errno: int = 0
    do: Literal["opened"] = "opened"


Request = Hello | Identify | ListMembers | CleanUnit | ShowFrame | PreviewFrame | Opened


# Answers of the decoding process ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ready:
    landlock: Number  # version in force, 0 where the kernel has none
    event: Literal["ready"] = "ready"


@dataclass(frozen=True)
class Open:
    """It asks for scan number `scan` of the request, or for the file of a plain name, `data_file`, in its folder."""

    scan: Number
    data_file: Annotated[str, Field(max_length=255)] = ""
    event: Literal["open"] = "open"


@dataclass(frozen=True)
class Alive:
    """A sign of life: the process is decoding, or cleaning, scan number `scan`."""

    doing: Literal["decoding", "cleaning"]
    scan: Number
    event: Literal["alive"] = "alive"


@dataclass(frozen=True)
class Kept:
    """One image; its pixels come with it."""

    scan: Number
    index: Number
    shape: tuple[Number, ...]
    brightness: Annotated[float, Field(ge=0, le=255, allow_inf_nan=False)]
    region: Share
    changed: Share
    event: Literal["kept"] = "kept"


@dataclass(frozen=True)
class KeptBack:
    """One frame that cleaning, or decoding, gave up."""

    scan: Number
    index: Number
    reason: Code
    event: Literal["kept-back"] = "kept-back"


@dataclass(frozen=True)
class ScanEnded:
    scan: Number
    outcome: Outcome
    reason: OptionalCode
    frames: Number
    duplicates: Number
    notes: tuple[Code, ...]
    event: Literal["scan-ended"] = "scan-ended"


@dataclass(frozen=True)
class Identity:
    examined: Examined
    event: Literal["identity"] = "identity"


@dataclass(frozen=True)
class Members:
    members: tuple[tuple[str, Number], ...]
    reason: OptionalCode = ""
    event: Literal["members"] = "members"


@dataclass(frozen=True)
class Picture:
    """A PNG, or the pixels of what would be packed."""

    name: Literal["before", "mask", "after", "packed"]
    shape: tuple[Number, ...] = ()
    event: Literal["picture"] = "picture"


@dataclass(frozen=True)
class NoPicture:
    reason: Code
    event: Literal["no-picture"] = "no-picture"


@dataclass(frozen=True)
class Fault:
    """The machine lacks something; no scan is to blame."""

    what: Text
    why: Text
    do: Text
    event: Literal["fault"] = "fault"


@dataclass(frozen=True)
class Unforeseen:
    """An error that no rule names, by its kind and where in this package it arose: its text may quote the scan."""

    kind: Annotated[str, Field(pattern=r"^\w{1,64}$")]
    at: Annotated[str, Field(pattern=r"^[\w/]{1,100}\.py:\d{1,6}$")]
    event: Literal["unforeseen"] = "unforeseen"


@dataclass(frozen=True)
class Done:
    event: Literal["done"] = "done"


Answer = (
    Ready
    | Open
    | Alive
    | Kept
    | KeptBack
    | ScanEnded
    | Identity
    | Members
    | Picture
    | NoPicture
    | Fault
    | Unforeseen
    | Done
)


# The codec ----------------------------------------------------------------------------------------------------

REQUESTS: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="do")])
ANSWERS: TypeAdapter[Answer] = TypeAdapter(Annotated[Answer, Field(discriminator="event")])

T = TypeVar("T")


def encode(adapter: TypeAdapter[T], record: T) -> bytes:
    return adapter.dump_json(record)


def decode(adapter: TypeAdapter[T], text: bytes) -> T:
    """ValueError where `text` is no such record."""
    try:
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        raise ValueError(f"{error.error_count()} faults in a record") from None


def handed_over(scan: Scan, number: int) -> Scan:
    """The scan as the decoding process is told it: a number and a name instead of its place on the disk."""
    name = scan.path.name.encode(errors="replace").decode()
    return Scan(Path(str(number)) / name, scan.kind, scan.trail, scan.member)


def number_of(scan: Scan) -> int:
    """Which scan of the request it is."""
    return int(scan.path.parts[0])
