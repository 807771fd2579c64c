"""The command `usfmae`: the single-site tool. One file per command; nothing heavy is imported for `--help`."""

from __future__ import annotations

import click

from usfmae.core import __version__
from usfmae.core.cli.shell import LazyGroup, run

COMMANDS = {  # name -> "module:attribute"; its line of help is the first sentence of its docstring
    "demo": "usfmae.core.cli.demo:demo",
    "prepare": "usfmae.core.cli.prepare:prepare",
    "pretrain": "usfmae.core.cli.pretrain:pretrain",
    "probe": "usfmae.core.cli.probe:probe",
    "finetune": "usfmae.core.cli.finetune:finetune",
    "segment": "usfmae.core.cli.segment:segment",
    "reproduce": "usfmae.core.cli.reproduce:reproduce",
    "datasets": "usfmae.core.cli.datasets:datasets",
    "annotate": "usfmae.core.cli.annotate:annotate",
    "import": "usfmae.core.cli.checkpoints:import_",
    "export": "usfmae.core.cli.checkpoints:export",
    "inspect": "usfmae.core.cli.checkpoints:inspect",
    "verify": "usfmae.core.cli.checkpoints:verify",
    "config": "usfmae.core.cli.config:config",
}


@click.group(
    cls=LazyGroup,
    commands_at=COMMANDS,
    help="usfmae grows one ultrasound foundation model over many hospitals without moving a scan.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="usfmae")
def group() -> None:
    pass


def main() -> None:
    run(group, "usfmae")
