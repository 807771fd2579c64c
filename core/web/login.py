"""An ASGI layer behind the guard: /login and /logout, and for every other request who is asking.

The page behind it finds a `Visit` under `scope["visit"]`. A closed page is shown to nobody without a session.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from usfmae.core.web.headers import App, Receive, Scope, Send, reply
from usfmae.core.web.session import COOKIE, HOURS, Sessions

WRONG_TOKEN_SECONDS = 1.0
LoginPage = Callable[..., str]  # (visit, next=..., wrong=...) -> HTML


@dataclass(frozen=True)
class Visit:
    """Who is asking: `known` with a session, and the mark that this session's forms carry."""

    known: bool = False
    mark: str = ""

    def owns(self, mark: object) -> bool:
        """Whether a form with this mark came from our own page, in this session."""
        return self.known and hmac.compare_digest(str(mark).encode(), self.mark.encode())


class Login:
    def __init__(self, app: App, sessions: Sessions, login_page: LoginPage, closed: bool) -> None:
        self.app, self.sessions, self.login_page, self.closed = app, sessions, login_page, closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        visit = self._visit(headers.get(b"cookie", ""))
        path, method = scope["path"], scope["method"]
        if path == "/login" and method in ("GET", "HEAD"):
            wanted = parse_qs(scope["query_string"].decode("latin-1")).get("next", ["/"])[0]
            await self._ask(send, visit, wanted)
        elif path == "/login" and method == "POST":
            await self._let_in(visit, await _form(receive), headers, send)
        elif path == "/logout" and method == "POST":
            gone = f'{COOKIE}=""; HttpOnly; Max-Age=0; Path=/; SameSite=strict'
            await _see(send, "/login" if self.closed else "/", gone)
        elif self.closed and not visit.known and not path.startswith("/static/"):
            if method in ("GET", "HEAD"):
                await _see(send, f"/login?next={path}" if _local(path) == path else "/login")
            else:
                await reply(send, 403, "log in first: this needs the site's token")
        else:
            scope["visit"] = visit
            await self.app(scope, receive, send)

    def _visit(self, header: str) -> Visit:
        try:
            morsel = SimpleCookie(header).get(COOKIE)
        except CookieError:
            return Visit()
        cookie = morsel.value if morsel else ""
        return Visit(True, self.sessions.form_mark(cookie)) if self.sessions.holds(cookie) else Visit()

    async def _let_in(self, visit: Visit, form: dict[str, str], headers: dict[bytes, str], send: Send) -> None:
        wanted = form.get("next", "/")
        if not self.sessions.opens(form.get("token", "")):
            await asyncio.sleep(WRONG_TOKEN_SECONDS)
            await self._ask(send, visit, wanted, wrong=True)
            return
        secure = "; Secure" if headers.get(b"x-forwarded-proto") == "https" else ""
        keep = f"HttpOnly; Max-Age={HOURS * 3600:.0f}; Path=/; SameSite=strict{secure}"
        await _see(send, _local(wanted), f"{COOKIE}={self.sessions.new()}; {keep}")

    async def _ask(self, send: Send, visit: Visit, wanted: str, wrong: bool = False) -> None:
        page = self.login_page(visit, next=_local(wanted), wrong=wrong)
        await reply(send, 403 if wrong else 200, page, "text/html")


async def _form(receive: Receive) -> dict[str, str]:
    """The fields of a URL-encoded form; the guard has seen to it that the body is small."""
    body, more = b"", True
    while more:
        message: Any = await receive()
        body += message.get("body", b"")
        more = message["type"] == "http.request" and message.get("more_body", False)
    return {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}


async def _see(send: Send, target: str, cookie: str = "") -> None:
    more = [(b"location", target.encode())] + ([(b"set-cookie", cookie.encode())] if cookie else [])
    await reply(send, 303, "", headers=more)


def _local(target: str) -> str:
    """A path on this page, never another site."""
    return target if re.fullmatch(r"/[a-z0-9/-]*", target) and not target.startswith("//") else "/"
