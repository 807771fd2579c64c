"""`usfmae-client campaign`: what the coordinator wants computed here, and whether this site agrees."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.client.cli.options import as_json, site_directory
from usfmae.core.cli.shell import print_json

ACTIONS = ["list", "show", "approve", "reject", "restart"]


@click.command()
@site_directory
@click.argument("action", required=False, type=click.Choice(ACTIONS), default="list")
@click.argument("name", required=False)
@click.option("--reason", default="", help="Why, for the audit log.")
@as_json
def campaign(directory: Path, action: str, name: str | None, reason: str, as_json: bool) -> None:
    """What a campaign asks of this site; agree to it or refuse.

    List every campaign that asked; show one in words; decide. Without NAME it is the one that waits.

    Nothing is downloaded or trained for a campaign before this site agreed to it. `restart` expects the coordinator to
    go on from an earlier round or from another encoder, as after a backup was restored: the next request is taken.

    \b
    usfmae-client campaign SITE
    usfmae-client campaign SITE show NAME
    usfmae-client campaign SITE approve NAME
    usfmae-client campaign SITE reject NAME --reason TEXT
    usfmae-client campaign SITE restart NAME
    """
    from dataclasses import asdict

    from usfmae.client.rounds import campaigns
    from usfmae.client.site import Site
    from usfmae.core.errors import UsageError

    site = Site.open(directory)
    if action == "list":
        agreements = campaigns.agreements(site)
        if as_json:
            print_json([asdict(one) for one in agreements])
        else:
            for one in agreements:
                click.echo(f"{one.campaign}  {one.state}  {one.encoding}, {one.steps} steps a round")
        return
    waiting = [one.campaign for one in campaigns.agreements(site) if one.state is campaigns.CampaignState.WAITING]
    name = name or (waiting[0] if len(waiting) == 1 else None)
    if not name:
        raise UsageError(f"campaign {action}", "needs a NAME", f"see 'usfmae-client campaign {directory}'")
    if action == "show":
        one = campaigns.agreement_named(site, name)
        print_json(asdict(one)) if as_json else click.echo(campaigns.in_words(one), nl=False)
    elif action == "restart":
        campaigns.restart(site, name, reason)
        click.echo(f"{name}: the next request is taken, whatever round it is of", err=True)
    else:
        campaigns.decide(site, name, action == "approve", reason)
        click.echo(f"{name} {'agreed' if action == 'approve' else 'refused'}", err=True)
