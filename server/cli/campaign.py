"""`usfmae-server campaign start|end|list`."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.core.cli.shell import print_json


@click.group()
def campaign() -> None:
    """Begin, end and list spans of rounds with one recipe.

    Spans of rounds with one recipe. Settings may change between campaigns, never within one.
    """


directory_argument = click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
json_option = click.option("--json", "as_json", is_flag=True, help="Report as JSON.")


@campaign.command()
@directory_argument
@click.option("--rounds", default=0, show_default=True, help="Planned rounds; 0 for no planned end.")
@click.option("--from", "seed", type=int, metavar="ROUND", help="Start from this round's encoder, not the last one's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of coordinator.yaml.")
@json_option
def start(directory: Path, rounds: int, seed: int | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Begin a campaign with the settings as they are now; the learning rate warms up again. 'usfmae-server run' then
    runs it, and refuses settings that differ."""
    from dataclasses import asdict

    from usfmae.server import campaign as campaigns
    from usfmae.server.layout import Layout
    from usfmae.server.ledger import Ledger

    home = Layout(directory)
    begun = campaigns.start(home, Ledger(home.ledger), home.settings(overrides), rounds, seed)
    print_json(asdict(begun)) if as_json else click.echo(f"campaign {begun.id} begins with round {begun.first}")


@campaign.command()
@directory_argument
@json_option
def end(directory: Path, as_json: bool) -> None:
    """End the campaign. An aggregator that runs commits the open round first, then stops."""
    from dataclasses import asdict

    from usfmae.server import campaign as campaigns
    from usfmae.server.layout import Layout
    from usfmae.server.ledger import Ledger

    home = Layout(directory)
    ended = campaigns.end(home, Ledger(home.ledger))
    print_json(asdict(ended)) if as_json else click.echo(f"campaign {ended.id} has ended")


@campaign.command("list")
@directory_argument
@json_option
def list_(directory: Path, as_json: bool) -> None:
    """Every campaign: rounds, recipe, state."""
    from dataclasses import asdict

    from usfmae.server import campaign as campaigns
    from usfmae.server.layout import Layout
    from usfmae.server.ledger import Ledger

    listed = campaigns.campaigns(Ledger(Layout(directory).ledger))
    if as_json:
        print_json([asdict(one) for one in listed])
        return
    for one in listed:
        planned = f"to {one.last}" if one.last else "on"
        state = "ended" if one.ended else "running"
        click.echo(f"{one.id:40s} {state:8s} rounds {one.first} {planned}  recipe {one.recipe[:12]}")


@campaign.command()
@directory_argument
@json_option
def rounds(directory: Path, as_json: bool) -> None:
    """What each round gained or forgot: sites merged, what the forgetting gate did and why, each organ's panel loss."""
    from usfmae.server.history import history, table
    from usfmae.server.layout import Layout
    from usfmae.server.ledger import Ledger

    lines = history(Ledger(Layout(directory).ledger))
    print_json(lines) if as_json else click.echo(table(lines))
