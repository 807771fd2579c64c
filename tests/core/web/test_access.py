"""Who gets in: tokens by person, sessions that end, proxies that are believed, guesses that cost time."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from uvicorn.protocols.http.h11_impl import H11Protocol

from usfmae.core.errors import ConfigError
from usfmae.core.web import access, server_thread
from usfmae.core.web.access import SHARED, Access, People
from usfmae.core.web.application import WebPage, assemble


class Pages:
    """A closed page, whoever looks at it, and what was audited."""

    def __init__(self, keys: Path, **options: Any) -> None:
        self.people, self.entries = People(keys), list[dict[str, Any]]()

        def note(event: str, status: str, **fields: Any) -> None:
            self.entries.append({"event": event, "status": status, **fields})

        page = WebPage("usfmae.client.page", Access(self.people, note, **options), Path("none"), name="st-olav")

        async def shown(request: Request) -> Response:
            session = page.access.session(request)
            assert session
            return PlainTextResponse(f"{request.user.display_name} {session.form_token}")

        async def changed(request: Request) -> Response:
            await page.access.own_form(request)
            return PlainTextResponse("changed")

        self.access = page.access
        self.app = assemble(page, [Route("/", shown), Route("/change", changed, methods=["POST"])])

    def client(self, address: str = "10.0.0.9") -> TestClient:
        return TestClient(self.app, "http://127.0.0.1", client=(address, 5000))


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pages:
    monkeypatch.setattr(access, "WRONG_TOKEN_SECONDS", 0.01)
    return Pages(tmp_path / "keys", trusted_proxies=("10.0.0.1",), user_header="X-User")


def logged_in(client: TestClient, token: str) -> str:
    """The form token of the new session."""
    return client.post("/login", data={"token": token}).text.split()[-1]


def test_a_cookie_is_worth_nothing_after_log_out(pages: Pages) -> None:
    client = pages.client()
    form_token = logged_in(client, pages.people.shared_token())
    name = pages.access.cookie
    cookie = client.cookies[name]
    assert client.post("/logout", data={"form_token": form_token}, follow_redirects=False).status_code == 303
    client.cookies.set(name, cookie)
    assert client.get("/", follow_redirects=False).status_code == 303
    assert client.post("/change", data={"form_token": form_token}).status_code == 403
    assert [(e["event"], e.get("by")) for e in pages.entries] == [("page.login", SHARED), ("page.logout", SHARED)]


def test_a_forged_form_cannot_log_a_person_out(pages: Pages) -> None:
    client = pages.client()
    logged_in(client, pages.people.shared_token())
    assert client.post("/logout", data={}).status_code == 403
    assert client.get("/").status_code == 200


@pytest.mark.parametrize("cookie", ["", "x", "eyJpZCI6ICJhIn0=.x.y", "\xff", "a" * 4000])
def test_a_forged_cookie_opens_nothing(pages: Pages, cookie: str) -> None:
    headers = {"cookie": f"{pages.access.cookie}={cookie}".encode("latin-1")}
    assert pages.client().get("/", headers=headers, follow_redirects=False).status_code == 303


def test_each_person_has_a_token_and_loses_access_with_it(pages: Pages) -> None:
    anna, ben = pages.people.add("anna@st-olav"), pages.people.add("ben")
    assert anna not in pages.people.file.read_text() and pages.people.file.stat().st_mode & 0o077 == 0
    client = pages.client()
    logged_in(client, anna)
    assert client.get("/").text.startswith("anna@st-olav ")
    pages.people.remove("anna@st-olav")
    assert client.get("/", follow_redirects=False).status_code == 303
    assert client.post("/login", data={"token": anna}).status_code == 403
    assert pages.client().post("/login", data={"token": ben}).text.startswith("ben ")
    for name in ("anna@st-olav", "../x"):
        with pytest.raises(ConfigError):
            pages.people.remove(name)
    with pytest.raises(ConfigError):
        pages.people.add("a b")


def test_a_proxys_word_counts_from_a_listed_address_alone(pages: Pages) -> None:
    named = {"X-User": "carla"}
    assert pages.client("10.0.0.1").get("/", headers=named).text.startswith("carla ")
    assert pages.client("10.0.0.9").get("/", headers=named, follow_redirects=False).status_code == 303
    assert pages.client("10.0.0.1").get("/", headers={"X-User": "a b"}, follow_redirects=False).status_code == 303


def test_guesses_are_slow_counted_and_disturb_nobody(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "WRONG_TOKEN_SECONDS", 0.1)
    monkeypatch.setattr(access, "AUDIT_FAILURES_EVERY", 0.25)
    with running(pages) as port, httpx.Client(timeout=20) as web:
        address, started = f"http://127.0.0.1:{port}/login", time.monotonic()
        with ThreadPoolExecutor(40) as threads:
            guesses = [threads.submit(web.post, address, data={"token": f"guess {i}"}) for i in range(40)]
            time.sleep(0.2)
            asked = time.monotonic()
            right = web.post(address, data={"token": pages.people.shared_token()})
            assert right.status_code == 303 and time.monotonic() - asked < 1.5
            statuses = [guess.result().status_code for guess in guesses]
        assert set(statuses) <= {403, 429} and time.monotonic() - started > 0.1 * statuses.count(403)
    refused = [entry["times"] for entry in pages.entries if entry["status"] == "refused"]
    assert 1 < len(refused) < 20 and sum(refused) <= 40


@contextlib.contextmanager
def running(pages: Pages) -> Iterator[int]:
    config = uvicorn.Config(pages.app, http=server_thread.page_protocol(H11Protocol), **server_thread.OPTIONS)
    with server_thread.serving(uvicorn.Server(config), "127.0.0.1", 0) as port:
        yield port


def test_silent_connections_keep_nobody_out(pages: Pages) -> None:
    with running(pages) as port, contextlib.ExitStack() as stack:
        for _ in range(server_thread.MOST_CONNECTIONS + 6):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        time.sleep(0.2)
        assert httpx.get(f"http://127.0.0.1:{port}/login", timeout=5).status_code == 200


def test_login_shows_the_form_and_no_more(pages: Pages) -> None:
    text = pages.client().get("/", follow_redirects=True).text
    assert re.search(r'name="token"', text) and 'name="form_token"' not in text
