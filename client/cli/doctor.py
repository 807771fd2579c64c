"""`usfmae-client doctor`: is this site fit to take part?"""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.client.cli.options import as_json, overriding, site_directory
from usfmae.core.cli.shell import print_json


@click.command()
@site_directory
@overriding
@as_json
def doctor(directory: Path, overrides: tuple[str, ...], as_json: bool) -> int:
    """Check network, clock, key, disk, GPU, Tesseract and sources.

    Check the way to the aggregator and this machine; each line says PASS or FAIL, the cause and the fix.

    Nothing is changed, and a running agent is not disturbed. Exit code 6 where the network or the key fails, 7 where
    the machine does.
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
