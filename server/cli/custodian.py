"""`usfmae-server custodian init|add|remove|list|run|verify`: the second institution of sealed rounds."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.core.cli.shell import as_json, print_json
from usfmae.server.cli import federation_directory


@click.group()
def custodian() -> None:
    """The second institution of sealed rounds.

    It runs at another institution than the aggregator, holds the masks' seeds and gives out one sum a round. It sees
    no update. Its custodian.json goes to the coordinator, the box key in it to every site.

    \b
    usfmae-server custodian init keeper --name institute --host keeper.example.org --coordinator-key coordinator.pub.pem
    usfmae-server custodian add keeper enrol.json
    usfmae-server custodian run keeper
    """


@custodian.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--name", required=True, help="Name of the institution: letters, digits, '_', '-', '.'.")
@click.option(
    "--coordinator-key",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The coordinator's public signing key: nobody else is answered.",
)
@click.option("--host", default="", help="Host name or address the aggregator will use; goes into the certificate.")
@click.option("--port", default=8444, show_default=True, help="Its port; 0 takes a free one at each start.")
@as_json
def init(directory: Path, name: str, coordinator_key: Path, host: str, port: int, as_json: bool) -> None:
    """Make a custodian: keys, certificate, custodian.json.

    \b
    usfmae-server custodian init keeper --name institute --host keeper.example.org --coordinator-key coordinator.pub.pem
    """
    from usfmae.core.config import validated
    from usfmae.core.keys import grouped
    from usfmae.server.custodian.home import CustodianSettings, create

    names = list(dict.fromkeys(("localhost", "127.0.0.1", *([host] if host else []))))
    values = {"name": name, "port": port, "names": names}
    made = create(directory, validated(CustodianSettings, values, "the command line"), coordinator_key)
    if as_json:
        print_json(made)
        return
    click.echo(f"custodian {name} in {directory}, fingerprint {grouped(made['fingerprint'])}")
    click.echo(f"it answers the coordinator with the fingerprint {grouped(made['coordinator_fingerprint'])}")
    click.echo(f"give the coordinator {made['card']}, and every site: custodian: {made['box_key']}")


@custodian.command()
@federation_directory
@click.argument("file", type=click.Path(path_type=Path))
@as_json
def add(directory: Path, file: Path, as_json: bool) -> None:
    """Enrol the hospital that made the enrol.json FILE, which you have from the hospital itself.

    A file from the coordinator may be of a hospital that does not exist: sums with invented hospitals protect nobody.

    \b
    usfmae-server custodian add keeper enrol.json
    """
    from usfmae.server.custodian.home import CustodianHome

    done = CustodianHome(directory).add_site(file)
    print_json(done) if as_json else click.echo(f"enrolled {done['name']} ({done['site']})")


@custodian.command()
@federation_directory
@click.argument("name")
@as_json
def remove(directory: Path, name: str, as_json: bool) -> None:
    """Take the hospital NAME out: no sum of a later round holds its update.

    \b
    usfmae-server custodian remove keeper north-hospital
    """
    from usfmae.server.custodian.home import CustodianHome

    done = CustodianHome(directory).remove_site(name)
    print_json(done) if as_json else click.echo(f"removed {done['name']} ({done['site']})")


@custodian.command("list")
@federation_directory
@as_json
def list_(directory: Path, as_json: bool) -> None:
    """The hospitals that are enrolled here.

    \b
    usfmae-server custodian list keeper
    """
    from usfmae.server.custodian.home import CustodianHome

    rows = CustodianHome(directory).listed()
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.echo(f"{row['name']:24s} {row['site']}")


@custodian.command()
@federation_directory
def run(directory: Path) -> None:
    """Answer the coordinator, until stopped.

    The same command goes on where a crash left it.

    \b
    usfmae-server custodian run keeper
    """
    from usfmae.server.custodian.home import CustodianHome
    from usfmae.server.custodian.service import serve

    serve(CustodianHome(directory))


@custodian.command()
@federation_directory
@as_json
def verify(directory: Path, as_json: bool) -> None:
    """Check the custodian's audit log, and say which sums it has given out.

    \b
    usfmae-server custodian verify keeper
    """
    from usfmae.core import audit
    from usfmae.server.custodian.home import CustodianHome

    home = CustodianHome(directory)
    entries, sums = audit.verify(home.audit), home.records().get("sums", {})
    if as_json:
        print_json({"audit_entries": entries, "sums": {place: checked["sites"] for place, checked in sums.items()}})
        return
    click.echo(f"sound: {entries} audit entries, {len(sums)} sums")
    for place, checked in sums.items():
        click.echo(f"{place}  {len(checked['sites'])} sites: {', '.join(checked['sites'])}")
