"""The command `usfmae-client`: what a hospital runs. One file per command; `--help` loads neither Flower nor torch."""

from __future__ import annotations

import os

import click

from usfmae.core import __version__
from usfmae.core.cli.shell import LazyGroup, run

COMMANDS = {  # name -> "module:attribute"; its line of help is the first sentence of its docstring
    "init": "usfmae.client.cli.init:init",
    "doctor": "usfmae.client.cli.doctor:doctor",
    "prepare": "usfmae.client.cli.prepare:prepare",
    "run": "usfmae.client.cli.run:run",
    "status": "usfmae.client.cli.status:status",
    "pause": "usfmae.client.cli.pause:pause",
    "resume": "usfmae.client.cli.pause:resume",
    "campaign": "usfmae.client.cli.campaign:campaign",
    "outbox": "usfmae.client.cli.outbox:outbox",
    "evaluate": "usfmae.client.cli.evaluate:evaluate",
    "report": "usfmae.client.cli.report:report",
    "evidence": "usfmae.client.cli.evidence:evidence",
    "person": "usfmae.client.cli.person:person",
    "rotate": "usfmae.client.cli.rotate:rotate",
    "audit": "usfmae.client.cli.audit:audit",
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
    os.umask(0o077)  # whatever a command writes holds pictures, keys or figures of this hospital
    run(group, "usfmae-client")
