"""`usfmae-client report`: one month on one page."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.client.cli.options import as_json, site_directory
from usfmae.core.cli.shell import NewFile, print_json


@click.command()
@site_directory
@click.option("--month", metavar="YYYY-MM", help="The month (UTC); by default the present one.")
@click.option("--out", type=NewFile(), help="Default: SITE/report-MONTH.html.")
@as_json
def report(directory: Path, month: str | None, out: Path | None, as_json: bool) -> None:
    """One month as one page for the security officer.

    What came in, what left, approvals, anomalies: out of audit log and outbox. No picture, no identifier.
    """
    from usfmae.client import outbox
    from usfmae.client.site import Site
    from usfmae.core import audit
    from usfmae.core.errors import PolicyError
    from usfmae.core.report import site as page

    period = page.month_of(month)
    site = Site.open(directory)
    try:
        chain = f"{audit.verify(site.audit_log)} entries, unbroken"
    except PolicyError as error:
        chain = str(error)
    contents = page.month(audit.entries(site.audit_log), outbox.entries(site), period)
    if as_json:
        print_json({**contents, "chain": chain})
        return
    file = out or directory / f"report-{period}.html"
    page.write_month(file, site.settings.name, site.fingerprint, contents, chain)
    click.echo(file)
