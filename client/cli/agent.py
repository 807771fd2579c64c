"""`usfmae-client prepare|run|status|pause|resume`: the agent, and the corpus that it trains on."""

from __future__ import annotations

import os
from pathlib import Path

import click

from usfmae.client.cli import site_directory
from usfmae.core.cli.shell import as_json, overriding, print_json


@click.command()
@site_directory
@overriding
@click.option("--workers", type=click.IntRange(1), default=None, help="Decoding processes (default: one per core).")
@as_json
def prepare(directory: Path, overrides: tuple[str, ...], workers: int | None, as_json: bool) -> None:
    """Clean the site's scans into its corpus; again: only new ones.

    Reads every scan of the site's sources, removes all that is not tissue, and packs the rest into SITE/corpus. Sources
    are only read, never changed. Run it again when scans were added; it may run while the agent trains.

    \b
    usfmae-client prepare st-olav
    usfmae-client prepare st-olav --workers 4
    """
    from usfmae.client.intake.inventory import take_in
    from usfmae.client.site import Site
    from usfmae.core.cli.prepare import complain_if_empty, print_summary
    from usfmae.core.prepare.progress import shown_progress

    site = Site.open(directory, overrides)
    with shown_progress() as progress:
        summary = take_in(site, workers or os.cpu_count() or 1, progress)
    if as_json:
        print_json(summary.as_dict())
    else:
        print_summary(summary)
    complain_if_empty(summary.scans, [str(source) for source in site.settings.sources])


@click.command()
@site_directory
@overriding
@click.option("--until-idle", type=click.FloatRange(min=1), metavar="SECONDS", help="End after this long without work.")
def run(directory: Path, overrides: tuple[str, ...], until_idle: float | None) -> None:
    """Serve the federation until stopped.

    Connects to the aggregator, trains when asked, and sends what the site's policy allows. The same process runs what
    site.yaml switches on: the site's page, the Prometheus endpoint, the C-STORE listener, the DICOMweb pull and the
    cleaning of new scans.

    Ctrl-C or SIGTERM ends it cleanly: a running training writes its checkpoint and goes on at the next start. A
    server that is away is waited for, for hours if need be. Exit code 6 means that the server refuses this site's key.

    \b
    usfmae-client run st-olav
    usfmae-client run st-olav --set page.port=8080
    """
    from usfmae.client.agent import Agent
    from usfmae.client.background_services import watched
    from usfmae.client.site import Site

    site = Site.open(directory, overrides)
    with site.served_alone():  # another agent is said to be there before one of its ports is said to be taken
        pass
    with watched(site):
        Agent(site, until_idle).run()


@click.command()
@site_directory
@as_json
def status(directory: Path, as_json: bool) -> None:
    """What the site is doing, and since when.

    The agent's last report, the corpus, and what left. Works whether or not the agent runs.

    \b
    usfmae-client status st-olav
    usfmae-client status st-olav --json
    """
    from usfmae.client.report import summary
    from usfmae.client.site import Site

    fields = summary(Site.open(directory))
    if as_json:
        print_json(fields)
        return
    for key, value in fields.items():
        if value not in ("", None, {}):
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            click.echo(f"{key:12s} {shown}")


@click.command()
@site_directory
def pause(directory: Path) -> None:
    """Stop training here, now; the site stays enrolled.

    A running training writes its checkpoint and ends within seconds; requests are declined until `resume`.

    \b
    usfmae-client pause st-olav
    """
    from usfmae.client import site_policy
    from usfmae.client.site import Site

    site_policy.pause(Site.open(directory))
    click.echo("paused", err=True)


@click.command()
@site_directory
def resume(directory: Path) -> None:
    """Go on after a pause.

    The site trains again when asked; a training that the pause cut short goes on at its checkpoint.

    \b
    usfmae-client resume st-olav
    """
    from usfmae.client import site_policy
    from usfmae.client.site import Site

    site_policy.resume(Site.open(directory))
    click.echo("resumed", err=True)
