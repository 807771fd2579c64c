"""The command `usfmae-client`: what a hospital runs. One file per command."""

from __future__ import annotations

import click

from usfmae.core import __version__
from usfmae.core.cli.shell import LazyGroup, run

COMMANDS: dict[str, tuple[str, str]] = {}  # name -> ("module:attribute", one-line help)


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
