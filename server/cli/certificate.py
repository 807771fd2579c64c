"""`usfmae-server certificate`."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.core.cli.shell import print_json


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--renew", is_flag=True, help="Make a new certificate from the federation's own CA.")
@click.option("--certificate", type=click.Path(path_type=Path), help="Use this PEM certificate (with its chain).")
@click.option("--key", type=click.Path(path_type=Path), help="The PEM key of --certificate.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def certificate(directory: Path, renew: bool, certificate: Path | None, key: Path | None, as_json: bool) -> None:
    """When the certificate ends; renew or replace it.

    When the server's certificate ends; renew it, or bring one along. A new one holds from the next start on.

    Sites trust the CA (ca.pem), so a renewal asks nothing of them. A certificate of another CA does: give the sites
    that CA's file.
    """
    from usfmae.core.errors import UsageError
    from usfmae.server import renewal
    from usfmae.server.layout import Layout

    home = Layout(directory)
    if bool(certificate) != bool(key) or (renew and certificate):
        raise UsageError("certificate", "--certificate and --key go together, --renew goes alone", "see --help")
    if certificate and key:
        summary = renewal.bring(home, certificate, key)
    else:
        summary = renewal.renew(home) if renew else renewal.summary(home)
    if as_json:
        print_json(summary)
        return
    if renew or certificate:
        click.echo("it holds from the aggregator's next start; a round that is open goes on then", err=True)
    click.echo(f"names   {', '.join(summary['names'])}")
    click.echo(f"ends    {summary['ends'][:10]}, in {summary['days_left']:.0f} days")
    click.echo(f"CA ends {summary['ca_ends'][:10]}, in {summary['ca_days_left']:.0f} days")
