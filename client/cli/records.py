"""`usfmae-client evaluate|report|evidence|audit`: what was learned here, and what happened."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.client.cli import site_directory
from usfmae.core.cli.shared_commands import audit_command
from usfmae.core.cli.shell import NewFile, as_json, print_json


@click.command()
@site_directory
@click.option("--model", required=True, type=click.Path(path_type=Path), help="Checkpoint (.safetensors).")
@click.option("--panel", type=click.Path(path_type=Path), help="Write a PNG of reconstructions; it stays here.")
@as_json
def evaluate(directory: Path, model: Path, panel: Path | None, as_json: bool) -> None:
    """Masked loss of a checkpoint on this site's held-out scans.

    Held-out scans are of patients no training step has seen. The decoder is this site's own where it has one.

    \b
    usfmae-client evaluate st-olav --model release/weights.safetensors
    """
    from usfmae.client.evaluate import evaluated
    from usfmae.client.site import Site

    evaluation = evaluated(Site.open(directory), model, panel)
    if as_json:
        print_json(evaluation)
        return
    click.echo(
        f"held-out masked loss {evaluation['loss']:.4f} on {evaluation['held_out']} of {evaluation['images']} images"
    )


@click.command()
@site_directory
@click.option("--month", metavar="YYYY-MM", help="The month (UTC); by default the present one.")
@click.option("--out", type=NewFile(), help="Default: SITE/report-MONTH.html.")
@as_json
def report(directory: Path, month: str | None, out: Path | None, as_json: bool) -> None:
    """One month as one page for the security officer.

    What came in, what left, approvals, anomalies: out of audit log and outbox. No picture, no identifier.

    \b
    usfmae-client report st-olav --month 2026-03
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


@click.command()
@site_directory
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Default: SITE/evidence-DATE.")
@click.option("--check", "to_check", is_flag=True, help="Compare the figures of the folder --out with its files.")
@as_json
def evidence(directory: Path, out: Path | None, to_check: bool, as_json: bool) -> None:
    """A folder that answers a security review.

    Versions and SBOM, whether the audit log is sound, what left, the egress controls as they are set, and drafts for a DPIA
    and a data permit. Every figure is a link to the file it comes from. No picture, no name, no path of a scan.

    \b
    usfmae-client evidence st-olav
    usfmae-client evidence st-olav --out review --check
    """
    from datetime import UTC, datetime

    from usfmae.client import evidence as folder
    from usfmae.client.site import Site

    site = Site.open(directory)
    place = out or directory / f"evidence-{datetime.now(UTC):%Y-%m-%d}"
    result = {"folder": str(place), "figures": folder.check(place)} if to_check else folder.write(site, place)
    if as_json:
        print_json(result)
        return
    for name, value in result.items():
        click.echo(f"{name:14s} {value}")


def _log(directory: Path) -> Path:
    from usfmae.client.site import Site

    return Site.open(directory).audit_log


audit = audit_command(_log)
