"""The command `usfmae-server`: what the coordinator runs. One file per command."""

from __future__ import annotations

import os

import click

from usfmae.core import __version__
from usfmae.core.cli.shell import LazyGroup, run

COMMANDS = {  # name -> "module:attribute"; its line of help is the first sentence of its docstring
    "init": "usfmae.server.cli.init:init",
    "site": "usfmae.server.cli.site:site",
    "run": "usfmae.server.cli.run:run_",
    "page": "usfmae.server.cli.page:page",
    "simulate": "usfmae.server.cli.simulate:simulate",
    "campaign": "usfmae.server.cli.campaign:campaign",
    "round": "usfmae.server.cli.round:round_",
    "release": "usfmae.server.cli.release:release",
    "status": "usfmae.server.cli.status:status",
    "person": "usfmae.server.cli.person:person",
    "certificate": "usfmae.server.cli.certificate:certificate",
    "report": "usfmae.server.cli.report:report",
    "verify": "usfmae.server.cli.verify:verify",
}


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
