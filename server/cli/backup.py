"""`usfmae-server backup` and `restore`: an aggregator in one file, and back."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.core.cli.shell import NewFile, print_json


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=NewFile(), help="New file; default: NAME-DATE.tar in the working folder.")
@click.option("--rounds", default=0, show_default=True, help="Encoders of the newest N rounds alone; 0 takes all.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def backup(directory: Path, out: Path | None, rounds: int, as_json: bool) -> None:
    """Settings, keys, ledger, audit log and encoders, in one file.

    Also while the aggregator runs: the ledger and its encoders are of the same moment. The file holds the coordinator's
    private keys: it is readable by you alone, encrypt it before it goes elsewhere.

    \b
    usfmae-server backup fed --out /backup/fed-2026-03-01.tar
    usfmae-server backup fed --rounds 5
    """
    from datetime import UTC, datetime

    from usfmae.core.web.templating import size
    from usfmae.server import backup as coordinator_backup
    from usfmae.server.layout import Layout

    home = Layout(directory)
    name = f"{home.settings().name}-{datetime.now(UTC):%Y-%m-%d-%H%M}.tar"
    done = coordinator_backup.write(home, out or Path(name), rounds)
    print_json(done) if as_json else click.echo(f"{done['file']}  {done['files']} files, {size(done['bytes'])}")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def restore(file: Path, directory: Path, as_json: bool) -> None:
    """Make an aggregator from its backup, in a new or empty folder.

    Every file is checked before the folder comes to be. Where rounds were committed after the backup, hospitals refuse
    to go back by themselves: each one allows it with 'usfmae-client campaign SITE restart NAME'.

    \b
    usfmae-server restore /backup/fed-2026-03-01.tar fed
    usfmae-server verify fed
    """
    from usfmae.server import backup as coordinator_backup

    done = coordinator_backup.restore(file, directory)
    if as_json:
        print_json(done)
        return
    click.echo(f"federation {done['name']} restored in {directory} at round {done['round']}, {done['files']} files")
