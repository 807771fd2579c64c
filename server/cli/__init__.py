"""The command `usfmae-server`: what the coordinator runs. One file per command."""

from __future__ import annotations

import click

from usfmae.core import __version__
from usfmae.core.cli.shell import LazyGroup, run

COMMANDS: dict[str, tuple[str, str]] = {  # name -> ("module:attribute", one-line help)
    "init": ("usfmae.server.cli.init:init", "Make a federation: keys, certificates, settings, seed."),
    "site": ("usfmae.server.cli.site:site", "Enrol, list, revoke hospitals; take their new keys."),
    "run": ("usfmae.server.cli.run:run_", "Serve the sites and run rounds; survives crashes."),
    "simulate": ("usfmae.server.cli.simulate:simulate", "A federation of virtual hospitals in this process."),
    "campaign": ("usfmae.server.cli.campaign:campaign", "Begin, end and list spans of rounds with one recipe."),
    "release": (
        "usfmae.server.cli.release:release",
        "The best encoder under the budget, signed, with a card.",
    ),
    "status": ("usfmae.server.cli.status:status", "Round, sites, verdicts, last checkpoint and its hash."),
    "certificate": ("usfmae.server.cli.certificate:certificate", "When the certificate ends; renew or replace it."),
    "report": ("usfmae.server.cli.report:report", "The campaign as one page to file."),
    "verify": ("usfmae.server.cli.verify:verify", "Check the audit log and the chain of checkpoints."),
    "serve": ("usfmae.server.cli.serve:serve", "The aggregator's process alone, without its supervisor."),
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
    run(group, "usfmae-server")
