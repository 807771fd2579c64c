"""`usfmae-client backup`, `restore` and `leave`: a site in one file and back, and its end."""

from __future__ import annotations

from pathlib import Path

import click

from usfmae.client.cli import site_directory
from usfmae.core.cli.shell import NewFile, as_json, print_json


@click.command()
@site_directory
@click.option("--out", type=NewFile(), help="New file; default: NAME-DATE.tar in the working folder.")
@click.option("--corpus", is_flag=True, help="The cleaned images too; without them 'prepare' makes them again.")
@as_json
def backup(directory: Path, out: Path | None, corpus: bool, as_json: bool) -> None:
    """Everything that cannot be made again, in one file.

    Settings, private keys, audit log, decisions, agreements and the outbox, also while the agent runs. No scan as it
    came. The file holds private keys: it is readable by you alone, encrypt it before it goes elsewhere.

    \b
    usfmae-client backup st-olav --out /backup/st-olav-2026-03-01.tar
    """
    from datetime import UTC, datetime

    from usfmae.client import backup as site_backup
    from usfmae.client.site import Site
    from usfmae.core.web.templating import size

    site = Site.open(directory)
    done = site_backup.write(site, out or Path(f"{site.settings.name}-{datetime.now(UTC):%Y-%m-%d-%H%M}.tar"), corpus)
    print_json(done) if as_json else click.echo(f"{done['file']}  {done['files']} files, {size(done['bytes'])}")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@site_directory
@as_json
def restore(file: Path, directory: Path, as_json: bool) -> None:
    """Make a site from its backup, in a new or empty folder.

    Every file is checked before the folder comes to be. Never run the restored site and the old one at the same time:
    both have the same keys.

    \b
    usfmae-client restore /backup/st-olav-2026-03-01.tar st-olav
    usfmae-client doctor st-olav
    """
    from usfmae.client import backup as site_backup

    done = site_backup.restore(file, directory)
    if as_json:
        print_json(done)
        return
    click.echo(f"site {done['name']} restored in {directory}: {done['files']} files, audit log sound")
    click.echo(f"next: 'usfmae-client doctor {directory}'; images that are missing: 'usfmae-client prepare'", err=True)


@click.command()
@site_directory
@click.option("--delete", is_flag=True, help="Delete keys, corpus, decisions and trainings too; logs and sheets stay.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
def leave(directory: Path, delete: bool, yes: bool, as_json: bool) -> None:
    """Leave the federation, and delete this site's data where that is wanted.

    From now on nothing is trained and nothing leaves; an update that waits is kept here. The coordinator then revokes
    the site's key. What was merged before stays in the encoders. The audit log and the sheets of what left stay here.

    \b
    usfmae-client leave st-olav
    usfmae-client leave st-olav --delete
    """
    from usfmae.client import leave as leaving
    from usfmae.client.site import Site
    from usfmae.core.keys import grouped
    from usfmae.core.web.templating import size

    site = Site.open(directory)
    leaving.check_member(site)
    if not yes:
        click.confirm(
            f"leave{' and delete its data' if delete else ''}: {directory}? This cannot be taken back", abort=True
        )
    done = leaving.leave(site, delete)
    if as_json:
        print_json(done)
        return
    click.echo(f"{done['name']} has left; {size(done['deleted_bytes'])} deleted")
    click.echo(f"tell the coordinator to revoke {done['name']}, fingerprint {grouped(done['fingerprint'])}", err=True)
