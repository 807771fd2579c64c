"""`usfmae-client init|doctor|rotate|person`: a site before it takes part, and its keys."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.client.cli import site_directory
from usfmae.core.cli.config import settings_group
from usfmae.core.cli.shared_commands import Note, notify_command, person_group
from usfmae.core.cli.shell import as_json, overriding, print_json
from usfmae.core.config.site import SiteSettings
from usfmae.core.config.sources import NotifySettings


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
@overriding
@as_json
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

    The private keys are made here and never leave. Send DIRECTORY/enrol.json to the coordinator: it holds public keys,
    the site's name and the number of images it may claim.

    \b
    usfmae-client init st-olav --server https://fed.example.org:8443 --ca ca.pem \\
        --coordinator-key coordinator.pub.pem --name st-olav --source /mnt/ultrasound
    """
    import yaml

    from usfmae.client.site import create
    from usfmae.core.config import validated
    from usfmae.core.config.load import from_overrides, put
    from usfmae.core.config.site import SiteSettings
    from usfmae.core.federated.messages import fingerprint
    from usfmae.core.keys import grouped, telephone

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
    click.echo(f"it obeys the coordinator with the fingerprint {grouped(theirs)}")
    click.echo("compare both by telephone, digit by digit:")
    click.echo(f"  this site    {telephone(site.signing_key.public_key())}")
    click.echo(f"  coordinator  {telephone(site.coordinator)}")
    click.echo(f"next: send {enrolment} to the coordinator, then 'usfmae-client doctor {directory}'", err=True)


@click.command()
@site_directory
@overriding
@as_json
def doctor(directory: Path, overrides: tuple[str, ...], as_json: bool) -> int:
    """Check network, clock, key, disk, GPU, Tesseract and sources.

    Each line says PASS or FAIL, the cause and the fix. Nothing is changed, and a running agent is not disturbed. Exit
    code 6 where the network or the key fails, 7 where the machine does.

    \b
    usfmae-client doctor st-olav
    """
    from usfmae.client.doctor import Doctor
    from usfmae.client.site import Site

    findings = []
    for finding in Doctor(Site.open(directory, overrides)).findings():
        findings.append(finding)
        if not as_json:
            colour = {"PASS": "green", "FAIL": "red", "SKIP": None}[finding.status]
            click.echo(f"{click.style(finding.status, fg=colour)}  {finding.check:11s} {finding.detail}")
            if finding.fix:
                click.echo(f"                  fix: {finding.fix}")
    failed = {finding.check for finding in findings if finding.status == "FAIL"}
    if as_json:
        print_json({"fit": not failed, "checks": [finding.as_dict() for finding in findings]})
    if failed & {"keys", "proxy", "dns", "tls", "clock", "registered"}:
        return 6
    return 7 if failed else 0


@click.command()
@site_directory
@click.option("--take", is_flag=True, help="Second step, once the coordinator has taken rotation.json.")
def rotate(directory: Path, take: bool) -> None:
    """New keys for this site, without enrolling anybody anew.

    First without --take: makes new keys and SITE/rotation.json, signed with the present key, for the coordinator
    ('usfmae-server site rotate DIR rotation.json'). Then stop the agent, call this again with --take, start it.

    \b
    usfmae-client rotate st-olav
    usfmae-client rotate st-olav --take
    """
    from usfmae.client import key_rotation
    from usfmae.client.site import Site
    from usfmae.core.keys import grouped

    site = Site.open(directory)
    if take:
        click.echo(f"new keys in place, fingerprint {grouped(key_rotation.take(site))}", err=True)
        return
    click.echo(
        f"send {key_rotation.ask(site)} to the coordinator; then: usfmae-client rotate {directory} --take", err=True
    )


def _keys(directory: Path) -> tuple[Path, Note]:
    from usfmae.client.site import Site

    site = Site.open(directory)
    return site.root / "keys", site.note


person = person_group(_keys)


def _notified(directory: Path) -> tuple[str, NotifySettings]:
    from usfmae.client.site import Site

    site = Site.open(directory)
    return site.settings.name, site.settings.notify


config = settings_group(SiteSettings, "site.yaml")
notify = notify_command(_notified)
