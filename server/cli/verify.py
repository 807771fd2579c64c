"""`usfmae-server verify`."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.core.cli.shell import print_json


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def verify(directory: Path, as_json: bool) -> None:
    """Check the audit log and the chain of checkpoints.

    Check the audit log's hash chain, and that each round's checkpoint has the hash the ledger committed.
    """
    from usfmae.core import audit
    from usfmae.core.errors import CheckpointError, PolicyError
    from usfmae.server.checkpoints import check
    from usfmae.server.layout import Layout
    from usfmae.server.ledger import Ledger, RoundState

    home = Layout(directory)
    entries, checked, parent = audit.verify(home.audit), 0, ""
    ledger = Ledger(home.ledger)
    ledger.check()
    for record in ledger.rounds():
        if parent and record.base != parent:
            raise PolicyError(f"round {record.number}", "does not start from the round before", "restore from a backup")
        parent = record.result or ""
        file = home.checkpoint(record.number)
        if record.state == RoundState.COMMITTED and file.exists():
            try:
                check(file, record.result or "")
            except CheckpointError as error:
                raise PolicyError(error.what, error.why, error.do) from None
            checked += 1
    report = {"audit_entries": entries, "checkpoints": checked}
    print_json(report) if as_json else click.echo(f"sound: {entries} audit entries, {checked} checkpoints")
