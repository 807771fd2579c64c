"""The progress bar of `prepare`, on stderr: share done, images per second, kept, quarantined, time left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from usfmae.core.prepare import PrepareSummary
from usfmae.core.prepare import Progress as Report

PLAIN_SECONDS = 30.0  # between two lines where stderr is no terminal


@contextmanager
def shown_progress() -> Iterator[Report]:
    """A function that takes each new state of the summary and shows it."""
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
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("finding scans", total=None, figures="")

        def show(summary: PrepareSummary) -> None:
            reading = summary.seconds > 0
            bar.update(
                task,
                description="cleaning" if reading else "finding scans",
                completed=summary.done if reading else summary.scans,
                total=summary.scans if reading else None,
                figures=_figures(summary) if reading else "",
            )

        yield show


def _figures(summary: PrepareSummary) -> str:
    return f"{summary.images_per_second:.1f} images/s  kept {summary.kept}  quarantined {summary.quarantined}"


def _plain_lines(console: Console) -> Report:
    last = time.monotonic()

    def show(summary: PrepareSummary) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            console.print(f"{summary.done} of {summary.scans} scans  {_figures(summary)}", highlight=False)

    return show
