"""Commands that both programs have, each made for a directory of its own kind: `person`, `notify`, `audit`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click

from usfmae.core.cli.shell import NewFile, print_json
from usfmae.core.config.sources import NotifySettings

Note = Callable[..., object]
Chosen = Callable[[Path], tuple[str, NotifySettings]]  # a directory -> its name and settings
LogOf = Callable[[Path], Path]  # a directory -> its audit log
CHAIN = ("line", "time", "actor", "event", "status", "previous", "hash")


def person_group(keys_of: Callable[[Path], tuple[Path, Note]]) -> click.Group:
    """The commands; `keys_of` gives a directory's folder of keys and its way to the audit log."""
    directory = click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))

    @click.group("person")
    def person() -> None:
        """Tokens of named persons for the page, so that the audit log says who.

        \b
        usfmae-client person add SITE "Dr. Berg"        usfmae-server person add DIRECTORY "Dr. Berg"
        usfmae-client person list SITE                  usfmae-server person list DIRECTORY
        usfmae-client person remove SITE "Dr. Berg"     usfmae-server person remove DIRECTORY "Dr. Berg"
        """

    @person.command()
    @directory
    @click.argument("name")
    def add(directory: Path, name: str) -> None:
        """Make a token for NAME and print it, once; an older one of the same name ends."""
        from usfmae.core.web.access import People

        keys, note = keys_of(directory)
        token = People(keys).add(name)
        note("person.added", "ok", name=name)
        click.echo(token)

    @person.command()
    @directory
    @click.argument("name")
    def remove(directory: Path, name: str) -> None:
        """End the access of NAME, open sessions too."""
        from usfmae.core.web.access import People

        keys, note = keys_of(directory)
        People(keys).remove(name)
        note("person.removed", "ok", name=name)
        click.echo(f"{name} has no access any more", err=True)

    @person.command("list")
    @directory
    @click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
    def list_(directory: Path, as_json: bool) -> None:
        """The names that have a token."""
        from usfmae.core.web.access import People

        names = sorted(People(keys_of(directory)[0]).hashes())
        print_json(names) if as_json else click.echo(
            "\n".join(names) or "nobody by name; the token is in keys/page.token"
        )

    return person


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
        usfmae-client notify SITE --test
        usfmae-server notify DIRECTORY --test
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


def audit_command(log_of: LogOf) -> click.Command:
    """The command; `log_of` opens a directory."""

    @click.command("audit")
    @click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
    @click.argument("action", required=False, type=click.Choice(["show", "verify"]), default="show")
    @click.option(
        "--text", default="", help="Only entries in which this occurs: the id of an update or job, a hash, a name."
    )
    @click.option(
        "--event",
        default="",
        help="Only this event, or those that begin so: 'outbox' for outbox.sent, 'site' for site-add.",
    )
    @click.option("--status", default="", help="Only this status: ok, refused, failed.")
    @click.option("--by", default="", help="Only what this person decided, or this part of the program wrote.")
    @click.option(
        "--since", default="", metavar="DATE", help="From this UTC date on: 2026-03, 2026-03-14, 2026-03-14T09:30."
    )
    @click.option("--until", default="", metavar="DATE", help="Up to and with this UTC date.")
    @click.option("--day", default="", metavar="DATE", help="On this UTC day, or in this month: 2026-03-14, 2026-03.")
    @click.option("--last", type=click.IntRange(min=1), help="The newest N of those that fit.")
    @click.option("--csv", "form", flag_value="csv", help="Print as a table for a spreadsheet.")
    @click.option("--json", "form", flag_value="json", help="Print as JSON; each entry whole, with its hash.")
    @click.option("--out", type=NewFile(), help="Write to this file: .csv or .json.")
    @click.option("--head", metavar="HASH", help="verify: a hash noted earlier that must occur; finds a log cut short.")
    def audit(
        directory: Path,
        action: str,
        form: Literal["csv", "json"] | None,
        last: int | None,
        out: Path | None,
        head: str | None,
        **chosen: str,
    ) -> None:
        """The hash-chained log: search it, export it, verify it.

        `verify` checks that no entry was edited, removed or swapped (exit code 8 where one was). Conditions add up.

        \b
        usfmae-client audit SITE --event outbox --since 2026-03
        usfmae-client audit SITE --text r00003-9cba2b6ed7a3 --day 2026-03-14
        usfmae-client audit SITE --status refused --out refused.csv
        usfmae-client audit SITE verify
        usfmae-server audit DIRECTORY --by anna.berg --last 20
        """
        from usfmae.core.errors import SourceError
        from usfmae.core.report.audit_search import AuditFilter, exported, search, unknown_event

        wanted = AuditFilter(**chosen)
        log = log_of(directory)
        if not log.exists():
            raise SourceError(f"audit log {log}", "does not exist", "restore it from backup")
        if action == "verify":
            _verified(log, head, form == "json")
            return
        entries = search(log, wanted, last)
        if out:
            out.write_text(exported(entries, "json" if out.suffix == ".json" else "csv"))
            click.echo(f"{len(entries)} entries in {out}", err=True)
        elif form:
            click.echo(exported(entries, form), nl=False)
        else:
            _show(entries, unknown_event(log, wanted))

    return audit


def _verified(log: Path, head: str | None, as_json: bool) -> None:
    from usfmae.core import audit

    count = audit.verify(log, head)
    last = list(audit.entries(log))[-1]["hash"] if count else ""
    if as_json:
        print_json({"entries": count, "head": last, "sound": True})
    else:
        click.echo(f"{count} entries, chain sound, head {last}")


def _show(entries: list[dict[str, Any]], unknown: str) -> None:
    for entry in entries:
        rest = " ".join(f"{name}={value}" for name, value in entry.items() if name not in CHAIN)
        click.echo(f"{entry.get('time', '')}  {entry.get('event', ''):18s} {entry.get('status', ''):8s} {rest}")
    if not entries:
        click.echo(f"no entry fits{': ' if unknown else ''}{unknown}", err=True)
