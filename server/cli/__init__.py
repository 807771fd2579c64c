"""The command `usfmae-server`: what the coordinator runs. A command is one function and
one row of COMMANDS."""

from __future__ import annotations

import os
from pathlib import Path

import click

from usfmae.core import __version__
from usfmae.core.cli.shell import LazyGroup, run

COMMANDS = {  # name -> "module:attribute"; its line of help is the first sentence of its docstring
    "init": "usfmae.server.cli.setup:init",
    "site": "usfmae.server.cli.sites:site",
    "run": "usfmae.server.cli.rounds:run_",
    "page": "usfmae.server.cli.records:page",
    "custodian": "usfmae.server.cli.custodian:custodian",
    "simulate": "usfmae.server.cli.rounds:simulate",
    "campaign": "usfmae.server.cli.rounds:campaign",
    "round": "usfmae.server.cli.rounds:round_",
    "release": "usfmae.server.cli.records:release",
    "leak": "usfmae.server.cli.records:leak",
    "status": "usfmae.server.cli.records:status",
    "person": "usfmae.server.cli.setup:person",
    "notify": "usfmae.server.cli.setup:notify",
    "config": "usfmae.server.cli.setup:config",
    "backup": "usfmae.server.cli.backup:backup",
    "restore": "usfmae.server.cli.backup:restore",
    "certificate": "usfmae.server.cli.setup:certificate",
    "report": "usfmae.server.cli.records:report",
    "verify": "usfmae.server.cli.records:verify",
    "audit": "usfmae.server.cli.records:audit",
}

federation_directory = click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))


@click.group(
    cls=LazyGroup,
    commands_at=COMMANDS,
    help="usfmae-server admits, merges, signs and keeps encoders, and releases checkpoints.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="usfmae-server")
def group() -> None:
    pass


def main() -> None:
    os.umask(0o077)  # whatever a command writes is its owner's alone
    run(group, "usfmae-server")
