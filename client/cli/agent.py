"""`usfmae-client prepare|run|status|pause|resume`: the agent, and the corpus that it trains on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

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
    from usfmae.client.leave import check_member
    from usfmae.client.site import Site

    site = Site.open(directory, overrides)
    check_member(site)
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
    from usfmae.client.site import Site
    from usfmae.client.status import summary

    reported = summary(Site.open(directory))
    if as_json:
        print_json(reported)
        return
    for name, text in in_words(reported, directory).items():
        if text:
            click.echo(f"{name:12s} {text}")


def in_words(reported: dict[str, Any], directory: Path) -> dict[str, str]:
    """The lines of `status` for people; an empty one is left out."""
    from usfmae.core.keys import grouped
    from usfmae.core.web.templating import size

    updates, last = reported["updates"], reported["last_sent"]
    state = str(reported["state"])
    if reported["paused"]:
        state = f"paused: it declines to train until 'usfmae-client resume {directory}'"
    elif not reported["running"]:
        state = f"the agent does not run; 'usfmae-client run {directory}' starts it"
    waiting = updates["waiting"]
    return {
        "site": f"{reported['name']}  {grouped(reported['fingerprint'])}",
        "aggregator": f"{reported['server']}, {'connected' if reported['online'] else 'not connected'}",
        "state": state,
        "problem": "" if reported["paused"] else reported["problem"],
        "training": _training(reported),
        "images": f"{reported['images']:,} ready to train on",
        "updates": f"{updates['sent']} sent ({size(reported['sent_bytes'])}), {updates['rejected']} kept here",
        "waiting": f"{waiting} for your approval: usfmae-client outbox {directory}" if waiting else "",
        "last sent": f"round {last['round']} of {last['campaign']}, {size(last['bytes'])}" if last else "",
    }


def _training(reported: dict[str, Any]) -> str:
    """`round 4, step 15 of 20, loss 1.788 (2.428 before the round), 11.4 images a second`."""
    progress = reported["progress"]
    if not progress:
        return ""
    parts = [f"round {reported['round']}", f"step {progress.get('step', 0)} of {progress.get('steps', '?')}"]
    if "loss" in progress:
        before = f" ({progress['loss_before']:.3f} before the round)" if progress.get("loss_before") else ""
        parts.append(f"loss {progress['loss']:.3f}{before}")
    if "rate" in progress:
        parts.append(f"{progress['rate']:.1f} images a second")
    return ("stopped at " if reported["paused"] else "") + ", ".join(parts)


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
