"""`notify` of both programs: does a notice arrive?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from usfmae.core.config.sources import NotifySettings

Chosen = Callable[[Path], tuple[str, NotifySettings]]  # a directory -> its name and settings


def notify_command(chosen: Chosen) -> click.Command:
    """The command; `chosen` opens a directory."""

    @click.command("notify")
    @click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
    @click.option("--test", is_flag=True, help="Send a notice now, through every channel that is set.")
    def notify(directory: Path, test: bool) -> None:
        """Who is told when something waits for a person; send a test.

        The channels of the section 'notify' in the settings: a command, a webhook on the local network, mail through
        this machine's mail program. Notices hold names of sites and counts, nothing of a patient.

        \b
        usfmae-client notify SITE --test        usfmae-server notify DIRECTORY --test
        """
        from usfmae.core.config.sources import NoticeKind
        from usfmae.core.web.notify import Notice, send

        name, settings = chosen(directory)
        for channel, value in settings.model_dump(mode="json", include={"command", "webhook", "mail"}).items():
            click.echo(f"{channel:9s} {value or 'not set'}")
        if test:
            send(settings, Notice(NoticeKind.FAILED, name, "this is a test, nothing failed", 1))
            click.echo("sent", err=True)

    return notify
