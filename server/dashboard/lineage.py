"""Where each encoder comes from, and which were released."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from usfmae.core.manifest import NAME, SIGNATURE
from usfmae.server.layout import Layout


@dataclass(frozen=True)
class Release:
    """A folder that `usfmae-server release` wrote below the coordinator's `releases/`."""

    name: str
    round: int
    content: str
    files: tuple[str, ...]


def releases(home: Layout) -> list[Release]:
    """Newest round first; a folder without a readable manifest is none."""
    listed = [_release(folder) for folder in sorted((home.root / "releases").glob("*/"))]
    return sorted((one for one in listed if one), key=lambda one: -one.round)


def _release(folder: Path) -> Release | None:
    try:
        manifest = json.loads((folder / NAME).read_bytes())
        facts = manifest["release"]
        files = (NAME, SIGNATURE, *sorted(name for name in manifest["files"] if "/" not in name))
        return Release(folder.name, int(facts["round"]), str(facts["content"]), files)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def ancestry(committed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Committed rounds, newest first as given, each with `parent`: the round whose encoder it changed, 0 for the seed.

    A campaign may begin at an older round's encoder, so the parent is looked for by hash, not by number.
    """
    made: dict[str, int] = {}
    parents = {}
    for one in reversed(committed):
        parents[one["number"]] = made.get(one["base"], 0)
        made[one["result"]] = one["number"]
    return [{**one, "parent": parents[one["number"]]} for one in committed]
