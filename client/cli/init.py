"""`usfmae-client init`: a site's directory, keys and enrolment file."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.core.cli.shell import print_json


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--server", required=True, metavar="URL", help="The aggregator, https://HOST:PORT.")
@click.option("--ca", type=click.Path(path_type=Path, dir_okay=False), help="The coordinator's ca.pem.")
@click.option(
    "--coordinator-key",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The coordinator's public signing key.",
)
@click.option("--name", required=True, help="Name of this site: letters, digits, '_', '-', '.'.")
@click.option(
    "--source", "sources", multiple=True, type=click.Path(path_type=Path), help="Scans to learn from; repeatable."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any other key of site.yaml; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def init(
    directory: Path,
    server: str,
    ca: Path | None,
    coordinator_key: Path,
    name: str,
    sources: tuple[Path, ...],
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make a site: keys, settings, and the file to send to the coordinator.

    Make DIRECTORY a site of a federation.

    Its private keys are made here and never leave. Send DIRECTORY/enrol.json to the coordinator: it holds public
    keys, the site's name and the number of images it may claim.
    """
    import yaml

    from usfmae.client.site import create
    from usfmae.core.config import validated
    from usfmae.core.config.load import from_overrides, put
    from usfmae.core.config.site import SiteSettings
    from usfmae.core.federated.messages import fingerprint
    from usfmae.core.keys import grouped

    values = {"name": name, "server": server, "sources": [str(path.resolve()) for path in sources]}
    for key, text in from_overrides(overrides).items():
        put(values, key, yaml.safe_load(text))
    site = create(directory, validated(SiteSettings, values, "the command line"), ca, coordinator_key)
    enrolment = directory / "enrol.json"
    theirs = fingerprint(site.coordinator)
    if as_json:
        shown = {"site": str(directory), "enrolment": str(enrolment), "fingerprint": site.fingerprint}
        print_json({**shown, "coordinator_fingerprint": theirs})
        return
    click.echo(f"site {name} made in {directory}, fingerprint {grouped(site.fingerprint)}")
    click.echo(f"it obeys the coordinator with the fingerprint {grouped(theirs)}: compare both by telephone")
    click.echo(f"next: send {enrolment} to the coordinator, then 'usfmae-client doctor {directory}'", err=True)
