"""Tells a person that something waits for them: a log line always, and a command, a webhook or a mail where one is set.

What is worth a notice is read from the audit log, which holds everything that happened and no identifier; so a notice
holds none either. A webhook must be on the local network: nothing of a hospital but its updates goes further.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import logging
import socket
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from usfmae.core.config.sources import NoticeKind, NotifySettings
from usfmae.core.errors import ConfigError, UsfmaeError
from usfmae.core.files import write_atomic
from usfmae.core.log import note

logger = logging.getLogger(__name__)

SECONDS = 15.0  # for a command, a webhook or the mail program
WORDS = {
    NoticeKind.APPROVAL: "an update waits for approval",
    NoticeKind.CAMPAIGN: "the coordinator asks for something new, and waits for an answer",
    NoticeKind.QUARANTINE: "pictures were kept back and wait for a person",
    NoticeKind.FAILED: "something failed",
    NoticeKind.REFUSED: "a hospital's reply was not admitted",
}

Sorter = Callable[[Mapping[str, Any]], NoticeKind | None]  # an audit entry -> what it is to a person


@dataclass(frozen=True)
class Notice:
    """One message to a person; nothing in it names a patient or a scan."""

    kind: NoticeKind
    name: str  # of the site or the federation
    text: str
    times: int  # events of this kind since the last notice

    @property
    def title(self) -> str:
        return f"usfmae {self.name}: {WORDS[self.kind]}" + (f" ({self.times} times)" if self.times > 1 else "")


class Notifier:
    """Reads what is new in an audit log and sends the notices it is worth; where it has read to is kept in a file."""

    def __init__(self, log: Path, name: str, settings: NotifySettings, sorter: Sorter) -> None:
        self.log, self.name, self.settings, self.sorter = log, name, settings, sorter
        self.place = log.with_name("notified.json")
        self.due: dict[NoticeKind, float] = {}  # time.monotonic() before which a kind is not told again
        self.waiting: Counter[NoticeKind] = Counter()
        self.last: dict[NoticeKind, str] = {}

    def look(self) -> list[Notice]:
        """Everything that happened since the last call; the notices that went out.

        UsfmaeError or OSError where a channel failed: the others were tried, and the notice does not come again.
        """
        for entry in self._entries():
            kind = self.sorter(entry)
            if kind is not None and kind in self.settings.kinds:
                self.waiting[kind] += 1
                self.last[kind] = detail(entry)
        ready = [kind for kind in self.waiting if time.monotonic() >= self.due.get(kind, 0.0)]
        notices = [Notice(kind, self.name, self.last[kind], self.waiting.pop(kind)) for kind in ready]
        for notice in notices:
            self.due[notice.kind] = time.monotonic() + self.settings.every_minutes * 60
            note(logger, notice.title, level=logging.WARNING, detail=notice.text)
            send(self.settings, notice)
        return notices

    def _entries(self) -> Iterator[dict[str, Any]]:
        """Whole lines after the place read to; from the end of the log where there is none yet."""
        if not self.log.exists():
            return
        size = self.log.stat().st_size
        start = self._start(size)
        with self.log.open("rb") as file:
            file.seek(start)
            piece = file.read(size - start)
        end = piece.rfind(b"\n") + 1
        if start + end != self._start(-1):
            write_atomic(self.place, json.dumps({"read": start + end}).encode())
        for line in piece[:end].splitlines():
            with contextlib.suppress(ValueError):  # a damaged line; `audit verify` tells of it
                yield json.loads(line)

    def _start(self, otherwise: int) -> int:
        try:
            start = int(json.loads(self.place.read_bytes())["read"])
        except (OSError, ValueError, KeyError, TypeError):
            return otherwise
        return start if otherwise < 0 or start <= otherwise else otherwise


def detail(entry: Mapping[str, Any]) -> str:
    """The fields of an audit entry that say what to look at."""
    own = ("time", "actor", "status", "previous", "hash", "content", "base", "result")
    return ", ".join(f"{key} {value}" for key, value in entry.items() if key not in own)[:300]


def send(settings: NotifySettings, notice: Notice) -> None:
    """Through every channel that is set; the first failure is raised after all were tried."""
    failures: list[Exception] = []
    for channel in channels(settings):
        try:
            channel(settings, notice)
        except (UsfmaeError, OSError, subprocess.SubprocessError, http.client.HTTPException) as error:
            failures.append(error)
    if failures:
        raise ConfigError("notify", f"{type(failures[0]).__name__}: {failures[0]}"[:300], "try 'notify --test'")


def channels(settings: NotifySettings) -> Iterable[Callable[[NotifySettings, Notice], None]]:
    """The ones that are set."""
    chosen = {_run: settings.command, _post: settings.webhook, _mail: settings.mail}
    return [channel for channel, value in chosen.items() if value]


def _run(settings: NotifySettings, notice: Notice) -> None:
    subprocess.run(list(settings.command), input=_json(notice), check=True, timeout=SECONDS, stdout=subprocess.DEVNULL)


def _json(notice: Notice) -> bytes:
    return json.dumps({**asdict(notice), "title": notice.title}).encode()


def _mail(settings: NotifySettings, notice: Notice) -> None:
    mail = EmailMessage()
    mail["Subject"], mail["To"] = notice.title, ", ".join(settings.mail)
    mail.set_content(f"{notice.title}.\n\n{notice.text}\n")
    subprocess.run([settings.sendmail, "-t", "-i"], input=bytes(mail), check=True, timeout=SECONDS)


def _post(settings: NotifySettings, notice: Notice) -> None:
    """`text` is what Mattermost, Slack and their like show. No proxy, no redirect: the request stays where it is sent."""
    parts = urlsplit(settings.webhook)
    secure, host = parts.scheme == "https", parts.hostname or ""
    port = parts.port or (443 if secure else 80)
    body = json.dumps({"text": f"{notice.title}. {notice.text}", "kind": notice.kind, "name": notice.name})
    raw = socket.create_connection((local_address(host, port), port), SECONDS)
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=SECONDS)) as connection:
        connection.sock = ssl.create_default_context().wrap_socket(raw, server_hostname=host) if secure else raw
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        status = connection.getresponse().status
    if not 200 <= status < 300:
        raise ConfigError(f"webhook {host}", f"answered {status}", "correct notify.webhook")


def local_address(host: str, port: int) -> str:
    """An address of the host that is on this machine or the local network; ConfigError where it is elsewhere."""
    for resolved in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        address = str(resolved[4][0])
        if ipaddress.ip_address(address.partition("%")[0]).is_private:
            return address
    raise ConfigError(f"webhook {host}", "is not on the local network", "name one that is: nothing else may leave here")
