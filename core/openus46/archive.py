"""The files of a data set on disk: extracted folders and zip archives seen as one list of names."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from usfmae.core.errors import SourceError
from usfmae.core.read.source import archive_opened

# Archives that are not read in place, and downloads that never finished.
PACKED = (".rar", ".7z", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".z01", ".change2zip", ".zip")
UNFINISHED = (".part", ".crdownload", ".download", ".tmp")
HDF5 = (".hdf5", ".h5")


@dataclass(frozen=True)
class Entry:
    """One file: on disk where `member` is empty, else inside the zip at `path`."""

    name: str  # with forward slashes, begins with the folder's or archive's own name
    path: Path
    member: str = ""
    size: int = 0  # bytes, unpacked

    def read(self) -> bytes:
        """The bytes; SourceError where the file is gone or the archive is damaged."""
        try:
            if not self.member:
                return self.path.read_bytes()
            return archive_opened(self.path).read(self.member)
        except (OSError, KeyError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise SourceError(f"{self.name}", f"cannot be read: {error}", "fetch the data set again") from None


def is_packed(name: str) -> bool:
    lower = name.lower()
    return lower.endswith((*PACKED, *UNFINISHED, *HDF5)) and not lower.endswith(".nii.gz")


def to_unpack(names: Sequence[str]) -> str:
    """What a person must do with archives that are not read in place, from the first one's kind."""
    first = names[0].lower()
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if first.endswith(UNFINISHED):
        return f"finish the download of {shown}"
    if first.endswith(HDF5):
        return f"{shown}: run 'usfmae datasets unpack' with the same --root"
    return f"unpack {shown} first, each into a folder of its own name: 'unar -d FILE' (Debian package unar)"


def entries(place: Path) -> list[Entry]:
    """Every file of a folder (zip archives inside it included) or of one zip, sorted by name.

    A zip with its extracted folder beside it is left out. SourceError where a zip is damaged.
    """
    if not place.exists():
        raise SourceError(f"{place}", "does not exist", "give the folder or the zip of the data set")
    listed: list[Entry] = []
    if place.is_file():
        listed += _members(place, place.stem)
    else:
        for path in place.rglob("*"):
            if not path.is_file() or "__MACOSX" in path.parts or path.name.startswith("."):
                continue
            name = f"{place.name}/{path.relative_to(place).as_posix()}"
            if path.suffix.lower() != ".zip":
                listed.append(Entry(name, path, size=path.stat().st_size))
            elif not path.with_suffix("").is_dir():
                listed += _members(path, name[: -len(".zip")])
    return sorted(listed, key=lambda entry: entry.name)


def _members(path: Path, prefix: str) -> Iterable[Entry]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [(info.filename, info.file_size) for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise SourceError(f"{path}", f"not a whole zip archive: {error}", "fetch it again") from None
    return [Entry(f"{prefix}/{name}", path, name, size) for name, size in members if not name.startswith("__MACOSX")]


@cache
def pattern(globs: Sequence[str]) -> re.Pattern[str]:
    """One expression for several globs (`*`, `?`, `**`, `[0-9]`, `{a,b}`), anchored at any folder, case-blind."""
    if not globs:
        return re.compile(r"(?!)")
    return re.compile("(?:.*/)?(?:" + "|".join(_translated(glob) for glob in globs) + ")", re.IGNORECASE)


def _translated(glob: str) -> str:
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]", "{": "(?:", "}": ")", ",": "|"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\{|\}|,|\[[^\]]+\])", glob)
    return "".join(tokens.get(part, part if part.startswith("[") else re.escape(part)) for part in parts)
