"""The leaderboard: one entry a cleaner and seed in leaderboard.json, and the table that is made of it, LEADERBOARD.md.

    python score.py part cleaned --enter "my cleaner 1.3" --command "mycleaner part cleaned"

An entry of the same name, seed and number of pictures is replaced. Entries of different seeds or numbers of pictures
stand in tables of their own: they were not scored on the same pictures. The best stand first: those that leave the
fewest strings, then those that keep back the fewest clean pictures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
CLIPS = ("moving", "appearing")
Rows = Mapping[str, Mapping[str, float]]  # kind -> counts, as score.py gives them


@dataclass(frozen=True)
class Entry:
    """The totals of one cleaner on one part."""

    name: str
    seed: int
    count: int  # pictures of each kind
    command: str
    strings: int  # on stills
    left: int
    clip_strings: int  # frames that show a name
    clip_left: int
    stills: int
    kept_back: int  # of the stills with ink
    clean_stills: int
    clean_kept_back: int
    tissue_changed: float  # percent, mean over the kinds without ink
    graphics_removed: float  # share
    seconds: float | None  # of the processor, median of a picture or frame


def _total(rows: Rows, kinds: Sequence[str], name: str) -> int:
    return int(sum(rows[kind].get(name, 0) for kind in kinds))


def entry_of(rows: Rows, name: str, part: Mapping[str, int], command: str = "", cleaned: Path | None = None) -> Entry:
    """Totals of the rows of `score.py`; `part` is its truth.json: seed and count."""
    clips = [kind for kind in rows if kind in CLIPS]
    clean = [kind for kind in rows if kind.startswith("clean")]
    inked = [kind for kind in rows if kind not in (*clips, *clean)]
    file = cleaned / "seconds.json" if cleaned else None
    seconds = json.loads(file.read_text()) if file and file.exists() else {}
    changed = [
        rows[kind]["tissue_changed_mean"] for kind in clean if rows[kind]["pictures"] > rows[kind].get("kept_back", 0)
    ]
    return Entry(
        name=name,
        seed=part["seed"],
        count=part["count"],
        command=command,
        strings=_total(rows, inked, "strings"),
        left=_total(rows, inked, "left"),
        clip_strings=_total(rows, clips, "strings"),
        clip_left=_total(rows, clips, "left"),
        stills=_total(rows, inked, "pictures"),
        kept_back=_total(rows, inked, "kept_back"),
        clean_stills=_total(rows, clean, "pictures"),
        clean_kept_back=_total(rows, clean, "kept_back"),
        tissue_changed=round(100 * sum(changed) / max(1, len(changed)), 2),
        graphics_removed=rows.get("graphics", {}).get("graphics_removed", 0.0),
        seconds=round(median(seconds.values()), 3) if seconds else None,
    )


def enter(entry: Entry, folder: Path = HERE) -> None:
    """Put an entry in place of an older one of its name, seed and count, and write the table anew."""
    file = folder / "leaderboard.json"
    entries = [Entry(**one) for one in json.loads(file.read_text())] if file.exists() else []
    others = [one for one in entries if (one.name, one.seed, one.count) != (entry.name, entry.seed, entry.count)]
    ranked = sorted(
        [*others, entry], key=lambda one: (-one.seed, -one.count, one.left + one.clip_left, one.clean_kept_back)
    )
    _put(file, json.dumps([asdict(one) for one in ranked], indent=1, ensure_ascii=False) + "\n")
    _put(folder / "LEADERBOARD.md", table(ranked))


def _put(file: Path, text: str) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(file)


def table(ranked: Sequence[Entry]) -> str:
    """LEADERBOARD.md."""
    lines = ["# Leaderboard", "", "Written by `score.py --enter`; the figures stand in `leaderboard.json`.", ""]
    for seed, count in dict.fromkeys((one.seed, one.count) for one in ranked):
        lines += [f"## Seed {seed}, {count} of each kind", ""]
        lines += ["| cleaner | strings on stills left | clip frames with the name left | stills kept back | clean stills kept back "
                  "| tissue changed where nothing is drawn | graphics removed | processor s a picture |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
        lines += [_line(one) for one in ranked if (one.seed, one.count) == (seed, count)]
        lines.append("")
    return "\n".join(lines)


def _line(one: Entry) -> str:
    seconds = "" if one.seconds is None else f"{one.seconds:.2f}"
    cells = (
        one.name,
        f"{one.left} of {one.strings}",
        f"{one.clip_left} of {one.clip_strings}",
        f"{one.kept_back} of {one.stills}",
        f"{one.clean_kept_back} of {one.clean_stills}",
        f"{one.tissue_changed:.2f} %",
        f"{100 * one.graphics_removed:.0f} %",
        seconds,
    )
    return "| " + " | ".join(cells) + " |"
