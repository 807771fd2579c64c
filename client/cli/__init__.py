"""The command `usfmae-client`: what a hospital runs. A command is one function and one row
of COMMANDS; `--help` loads neither Flower nor torch."""

from __future__ import annotations

import os
from pathlib import Path

import click

from usfmae.core import __version__
from usfmae.core.cli.shell import LazyGroup, run

COMMANDS = {  # name -> "module:attribute"; its line of help is the first sentence of its docstring
    "init": "usfmae.client.cli.setup:init",
    "doctor": "usfmae.client.cli.setup:doctor",
    "prepare": "usfmae.client.cli.agent:prepare",
    "run": "usfmae.client.cli.agent:run",
    "status": "usfmae.client.cli.agent:status",
    "pause": "usfmae.client.cli.agent:pause",
    "resume": "usfmae.client.cli.agent:resume",
    "campaign": "usfmae.client.cli.decisions:campaign",
    "outbox": "usfmae.client.cli.decisions:outbox",
    "withdraw": "usfmae.client.cli.decisions:withdraw",
    "evaluate": "usfmae.client.cli.records:evaluate",
    "leak": "usfmae.client.cli.leak:leak",
    "report": "usfmae.client.cli.records:report",
    "evidence": "usfmae.client.cli.records:evidence",
    "person": "usfmae.client.cli.setup:person",
    "notify": "usfmae.client.cli.setup:notify",
    "config": "usfmae.client.cli.setup:config",
    "backup": "usfmae.client.cli.backup:backup",
    "restore": "usfmae.client.cli.backup:restore",
    "leave": "usfmae.client.cli.backup:leave",
    "rotate": "usfmae.client.cli.setup:rotate",
    "audit": "usfmae.client.cli.records:audit",
}

site_directory = click.argument("directory", metavar="SITE", type=click.Path(path_type=Path, file_okay=False))


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
