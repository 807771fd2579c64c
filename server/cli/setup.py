"""`usfmae-server init|certificate|person`: a federation, its certificate, who may log in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from usfmae.core.cli.config import settings_group
from usfmae.core.cli.shared_commands import Note, notify_command, person_group
from usfmae.core.cli.shell import as_json, overriding, print_json
from usfmae.core.config.coordinator import CoordinatorSettings
from usfmae.core.config.sources import NotifySettings
from usfmae.server.cli import federation_directory

RANDOM_SEED = (
    "no --seed: the encoder begins with random weights. Sites hold its first updates back for a person, and no "
    "panel can tell when a release is good. Better: make a seed from public scans with "
    "'usfmae pretrain --corpus CORPUS --out seed', and repeat init in a new folder with --seed seed/checkpoint.safetensors"
)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--name", required=True, help="Name of the federation: letters, digits, '_', '-', '.'.")
@click.option("--seed", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Checkpoint to start from.")
@click.option("--host", default="", help="Host name or address the hospitals will use; goes into the certificate.")
@click.option(
    "--port", default=8443, show_default=True, help="Port of the fleet API; 0 takes a free one at each start."
)
@overriding
@as_json
def init(
    directory: Path, name: str, seed: Path | None, host: str, port: int, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Make a federation: keys, certificates, settings, seed.

    DIRECTORY gets a certificate authority, the server's certificate, the coordinator's key, coordinator.yaml, the
    ledger and round 0. Give every hospital ca.pem and coordinator.pub.pem.

    \b
    usfmae-server init federation --name north --host fed.example.org --seed seed.safetensors
    """
    from usfmae.core.keys import grouped, public_signing_key, telephone
    from usfmae.server.bootstrap import NewFederation, create

    made = create(directory, NewFederation(name, host, port, seed=seed), overrides)
    if as_json:
        print_json(made)
    else:
        click.echo(f"federation {name} in {directory}, fingerprint {grouped(made['fingerprint'])}")
        key = public_signing_key(Path(made["coordinator_key"]).read_text(), made["coordinator_key"])
        click.echo(f"to compare by telephone with what each hospital's init prints: {telephone(key)}")
        click.echo(f"give every hospital: {made['ca']} and {made['coordinator_key']}")
    if seed is None:
        click.echo(f"warning: {RANDOM_SEED}", err=True)


@click.command()
@federation_directory
@click.option("--renew", is_flag=True, help="Make a new certificate from the federation's own CA.")
@click.option("--certificate", type=click.Path(path_type=Path), help="Use this PEM certificate (with its chain).")
@click.option("--key", type=click.Path(path_type=Path), help="The PEM key of --certificate.")
@as_json
def certificate(directory: Path, renew: bool, certificate: Path | None, key: Path | None, as_json: bool) -> None:
    """When the certificate ends; renew or replace it.

    A new certificate holds from the next start on. Sites trust the CA (ca.pem), so a renewal asks nothing of them. A
    certificate of another CA does: give the sites that CA's file.

    \b
    usfmae-server certificate federation
    usfmae-server certificate federation --renew
    usfmae-server certificate federation --certificate chain.pem --key key.pem
    """
    from usfmae.core.errors import UsageError
    from usfmae.server import certificates
    from usfmae.server.layout import Layout

    home = Layout(directory)
    if bool(certificate) != bool(key) or (renew and certificate):
        raise UsageError("certificate", "--certificate and --key go together, --renew goes alone", "see --help")
    if certificate and key:
        summary = certificates.bring(home, certificate, key)
    else:
        summary = certificates.renew(home) if renew else certificates.summary(home)
    if as_json:
        print_json(summary)
        return
    if renew or certificate:
        click.echo("it holds from the aggregator's next start; a round that is open goes on then", err=True)
    click.echo(f"names   {', '.join(summary['names'])}")
    click.echo(f"ends    {summary['ends'][:10]}, in {summary['days_left']:.0f} days")
    click.echo(f"CA ends {summary['ca_ends'][:10]}, in {summary['ca_days_left']:.0f} days")


def _keys(directory: Path) -> tuple[Path, Note]:
    from usfmae.core import audit
    from usfmae.server.layout import Layout

    home = Layout(directory)
    home.settings()

    def note(event: str, status: str, **fields: Any) -> None:
        audit.append(home.audit, "coordinator", event, status, **fields)

    return home.keys, note


person = person_group(_keys)


def _notified(directory: Path) -> tuple[str, NotifySettings]:
    from usfmae.server.layout import Layout

    settings = Layout(directory).settings()
    return settings.name, settings.notify


config = settings_group(CoordinatorSettings, "coordinator.yaml")
notify = notify_command(_notified)
