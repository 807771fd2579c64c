"""`usfmae-server report`."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.core.cli.shell import NewFile, print_json


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=NewFile(), help="Default: DIRECTORY/campaign.html.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def report(directory: Path, out: Path | None, as_json: bool) -> None:
    """The campaign as one page to file.

    The campaign as one page to file: sites, rounds, losses by round and organ, what was not admitted and why.
    """
    from usfmae.core import audit
    from usfmae.core.errors import PolicyError
    from usfmae.core.report.campaign import write_campaign
    from usfmae.server.dashboard import view
    from usfmae.server.layout import Layout

    home = Layout(directory)
    federation = view.overview(home, view.History())
    try:
        chain = f"{audit.verify(home.audit)} entries, unbroken"
    except PolicyError as error:
        chain = str(error)
    values = {
        "campaign": federation.campaign,
        "sites": federation.sites,
        "rounds": federation.rounds[::-1],
        "not_admitted": federation.not_admitted,
        "declined": federation.declined,
        "chain": chain,
    }
    if as_json:
        print_json(values)
        return
    file = out or directory / "campaign.html"
    write_campaign(file, values)
    click.echo(file)
