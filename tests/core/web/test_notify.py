"""Notices: what a person hears of, how often, and that none leaves the local network."""

from __future__ import annotations

import json
import stat
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from usfmae.core import audit
from usfmae.core.config.sources import NoticeKind, NotifySettings
from usfmae.core.errors import ConfigError
from usfmae.core.web.notify import Notice, Notifier, local_address, send

NOTICE = Notice(NoticeKind.APPROVAL, "st-olav", "id r00004", 2)


def program(folder: Path, text: str) -> Path:
    file = folder / "program"
    file.write_text(f"#!{sys.executable}\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


def test_what_happened_twice_is_told_once_and_counted(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    audit.append(log, "a", "old")
    notifier = Notifier(log, "st-olav", NotifySettings(), lambda e: NoticeKind.FAILED if e["event"] == "x" else None)
    assert notifier.look() == []  # what happened before is old news
    for number in range(3):
        audit.append(log, "a", "x", why=f"no {number}")
        audit.append(log, "a", "y")
    (notice,) = notifier.look()
    assert (notice.kind, notice.times, notice.text) == (NoticeKind.FAILED, 3, "event x, why no 2")
    assert "st-olav: something failed (3 times)" in notice.title
    audit.append(log, "a", "x")
    assert notifier.look() == []  # within half an hour
    again = Notifier(log, "st-olav", NotifySettings(), lambda e: NoticeKind.FAILED)
    assert again.look() == []  # a restart does not tell it again
    audit.append(log, "a", "x")
    assert [n.times for n in again.look()] == [1]


def test_a_command_and_the_mail_program_get_the_notice(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    run = program(tmp_path, f"import sys; open({str(kept)!r}, 'ab').write(sys.stdin.buffer.read() + b'|')")
    send(NotifySettings(command=(str(run),), mail=("it@hospital.example",), sendmail=run), NOTICE)
    told, mail, _ = kept.read_bytes().split(b"|")
    assert json.loads(told)["times"] == 2 and b"To: it@hospital.example" in mail and b"waits for approval" in mail


def test_a_channel_that_fails_keeps_nobody_from_the_next(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    run = program(tmp_path, f"open({str(kept)!r}, 'w').write('mail')")
    with pytest.raises(ConfigError, match="notify"):
        send(NotifySettings(command=("/nonexistent",), mail=("a@b",), sendmail=run), NOTICE)
    assert kept.read_text() == "mail"


@pytest.fixture
def chat() -> Iterator[tuple[str, list[bytes]]]:
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(500 if "bad" in self.path else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    server.server_close()


def test_a_webhook_gets_what_chat_programs_show(chat: tuple[str, list[bytes]]) -> None:
    address, received = chat
    send(NotifySettings(webhook=f"{address}/hooks/x"), NOTICE)
    assert "2 times" in json.loads(received[0])["text"]
    with pytest.raises(ConfigError, match="500"):
        send(NotifySettings(webhook=f"{address}/bad"), NOTICE)


@pytest.mark.parametrize("host", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"])
def test_no_notice_leaves_the_local_network(host: str) -> None:
    with pytest.raises(ConfigError, match="local network"):
        local_address(host, 443)
    assert local_address("10.1.2.3", 443) == "10.1.2.3"
