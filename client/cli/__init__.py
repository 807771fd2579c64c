"""The command `usfmae-client`: what a hospital runs. One file per command; `--help` loads neither Flower nor torch."""

from __future__ import annotations

import click

from usfmae.core import __version__
from usfmae.core.cli.shell import LazyGroup, run

COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("usfmae.client.cli.init:init", "Make a site: keys, settings, and the file to send to the coordinator."),
    "doctor": ("usfmae.client.cli.doctor:doctor", "Check network, clock, key, disk, GPU, Tesseract and sources."),
    "prepare": ("usfmae.client.cli.prepare:prepare", "Clean the site's scans into its corpus; again: only new ones."),
    "run": ("usfmae.client.cli.run:run", "Serve the federation until stopped."),
    "status": ("usfmae.client.cli.status:status", "What the site is doing, and since when."),
    "pause": ("usfmae.client.cli.pause:pause", "Stop training here, now; the site stays enrolled."),
    "resume": ("usfmae.client.cli.pause:resume", "Go on after a pause."),
    "outbox": ("usfmae.client.cli.outbox:outbox", "What left, what waits to leave; approve or reject it."),
    "evaluate": ("usfmae.client.cli.evaluate:evaluate", "Masked loss of a checkpoint on this site's held-out scans."),
    "report": ("usfmae.client.cli.report:report", "One month as one page for the security officer."),
    "rotate": ("usfmae.client.cli.rotate:rotate", "New keys for this site, without enrolling anybody anew."),
    "audit": ("usfmae.client.cli.audit:audit", "The hash-chained log: show it, verify it."),
}


@click.group(
    cls=LazyGroup,
    commands_at=COMMANDS,
    help="usfmae-client pretrains on a hospital's own scans and sends out encoder updates, nothing else.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="usfmae-client")
def group() -> None:
    pass


def main() -> None:
    run(group, "usfmae-client")
