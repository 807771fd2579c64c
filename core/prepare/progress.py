"""What became of the scans: the object `usfmae prepare --json` prints, and the progress bar on stderr."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from usfmae.core.sandbox.records import ScanResult

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_SECONDS = 30.0  # between two lines where stderr is no terminal
NO_OUTCOME = "no-outcome"  # reason of a scan that a whole run left without a result
SHOWN = (
    "scans", "frames", "kept", "quarantined", "refused", "failed", "duplicates", "reasons", "seconds",
    "images_per_second", "ignored",
)  # fmt: skip


@dataclass
class PrepareSummary:
    """Counts over the sources of one call, work of earlier calls included; rates are of this call alone.

    Every scan is one of: read, quarantined whole, refused, failed, a duplicate of another scan. Every frame is one of:
    kept, quarantined, a near-duplicate. `quarantined` and `duplicates` count scans and frames alike.
    """

    scans: int = 0
    frames: int = 0
    kept: int = 0
    quarantined: int = 0
    refused: int = 0
    failed: int = 0  # could not be opened; the next run tries again
    duplicates: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    images_per_second: float = 0.0
    ignored: int = 0  # files that are no scans: texts, tables
    done: int = 0  # scans that need no more work
    planned: int = 0  # frames that this call is likely to give
    settled: int = 0  # of these, the frames of scans that are done
    read_now: int = 0  # frames read in this call
    in_flight: Callable[[], int] = lambda: 0  # frames read so far of scans that are being worked on

    @classmethod
    def of(cls, books: Mapping[str, int], failed: Mapping[str, int], at_end: bool = False) -> PrepareSummary:
        """From the ledger's books and the files that could not be opened; at the end every scan has an outcome."""
        reasons = Counter(
            {name.removeprefix("because "): n for name, n in books.items() if name.startswith("because ")}
        )
        reasons += Counter(failed) + Counter({name: books.get(name, 0) for name in ("same-file", "near-duplicate")})
        left = books.get("waiting", 0)
        if at_end and left:
            reasons[NO_OUTCOME] += left
        failures = sum(failed.values())
        scans = books.get("scans", 0) + books.get("same-file", 0) + failures
        return cls(
            scans=scans,
            frames=books.get("frames", 0),
            kept=books.get("kept", 0),
            quarantined=books.get("quarantined", 0) + books.get("held", 0),
            refused=books.get("refused", 0),
            failed=books.get("failed", 0) + failures + (left if at_end else 0),
            duplicates=books.get("same-file", 0) + books.get("near-duplicate", 0),
            reasons=dict(reasons),
            ignored=books.get("ignored", 0),
            done=scans - left,
        )

    def as_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in SHOWN}
        values["reasons"] = dict(sorted(self.reasons.items()))
        values["seconds"], values["images_per_second"] = round(self.seconds, 2), round(self.images_per_second, 2)
        return values

    @property
    def frames_done(self) -> int:
        """Frames of `planned` that are done, those of a long clip or volume that is being read included."""
        return min(self.planned, self.settled + self.in_flight())

    def advance(self, results: Iterable[ScanResult], planned: int, seconds: float) -> None:
        """Count scans that are done, which were planned to give so many frames, `seconds` after the call began."""
        for result in results:
            self._add(result)
        self.settled += planned
        self.measure(self.read_now, seconds)

    def measure(self, frames: int, seconds: float) -> None:
        """Rates of this call: frames read in it over its time."""
        self.read_now, self.seconds = frames, seconds
        self.images_per_second = frames / seconds if seconds > 0 else 0.0

    def _add(self, result: ScanResult) -> None:
        held = {reason: len(frames) for reason, frames in result.quarantined.items()}
        self.done += 1
        if result.outcome in ("quarantined", "refused", "failed"):
            setattr(self, result.outcome, getattr(self, result.outcome) + 1)
            held[result.reason] = held.get(result.reason, 0) + 1
        self.frames += result.frames
        self.read_now += result.frames
        self.kept += result.kept
        self.duplicates += result.duplicates
        self.quarantined += sum(len(frames) for frames in result.quarantined.values())
        self.reasons = dict(Counter(self.reasons) + Counter(held) + Counter({"near-duplicate": result.duplicates}))


Progress = Callable[[PrepareSummary], None]


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """A function that takes each new state of the summary and shows it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_lines(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(compact=True),
    )
    with Bar(*columns, console=console, transient=True) as bar, _repeated() as repeat:
        task = bar.add_task("finding scans", total=None, figures="")

        def draw(summary: PrepareSummary) -> None:
            if summary.planned:
                figures = _figures(summary)
                done, total = summary.frames_done, summary.planned
                bar.update(task, description="cleaning", completed=done, total=total, figures=figures)
            else:
                bar.update(task, description="finding scans", completed=summary.scans, total=None)

        yield lambda summary: repeat(lambda: draw(summary))


@contextmanager
def _repeated() -> Iterator[Callable[[Callable[[], None]], None]]:
    """A function that does a thing at once and then twice a second, until it is given another: long scans move too."""
    over = threading.Event()
    last: list[Callable[[], None]] = []

    def repeat() -> None:
        while not over.wait(0.5):
            for action in last:
                action()

    def do(action: Callable[[], None]) -> None:
        last[:] = [action]
        action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield do
    finally:
        over.set()
        thread.join()


def _figures(summary: PrepareSummary) -> str:
    return f"{summary.images_per_second:.1f} images/s  kept {summary.kept}  quarantined {summary.quarantined}"


def _plain_lines(console: Console) -> Progress:
    last = time.monotonic()

    def show(summary: PrepareSummary) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            frames = f"{summary.frames_done} of {summary.planned} frames, {_left(summary)}" if summary.planned else ""
            console.print(f"{summary.done} of {summary.scans} scans  {frames}  {_figures(summary)}", highlight=False)

    return show


def _left(summary: PrepareSummary) -> str:
    """The time left, by frames: a clip is not one still."""
    if not summary.settled:
        return "time left not known yet"
    seconds = summary.seconds * (summary.planned - summary.frames_done) / summary.settled
    return f"about {seconds / 60:.0f} min left"
