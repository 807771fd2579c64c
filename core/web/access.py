"""Who may see a page: a token opens it for a named person, a session remembers them, every login is audited.

Starlette signs the cookie (SessionMiddleware, itsdangerous); it holds the number of a session and nothing else. The
sessions stand in memory, so that logging out ends one at once, and a restart ends all of them.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, SimpleUser
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse, Response

from usfmae.core.errors import ConfigError, UsfmaeError
from usfmae.core.files import replacing
from usfmae.core.keys import read_secret, write_secret

COOKIE = "usfmae_session"  # and a mark of the page: browsers hand cookies to every port of a machine
SESSION_HOURS = 12.0
MOST_SESSIONS = 1000
WRONG_TOKEN_SECONDS = 1.0  # wrong tokens are answered one after the other, each after this long
MOST_GUESSES = 20  # wrong tokens that wait for their answer
AUDIT_FAILURES_EVERY = 60.0  # seconds; failed logins between two audit entries are counted together
SHARED = "page token"  # what the audit log calls whoever uses the one token of `page.token`
PERSON = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,62}")

Note = Callable[..., object]  # (event, status, **fields): one audit entry


class People:
    """Tokens by person: `page.token` for whoever runs the machine, `people.json` for named persons (hashes only)."""

    def __init__(self, keys: Path) -> None:
        self.token_file, self.file = keys / "page.token", keys / "people.json"

    def shared_token(self) -> str:
        """The token in `page.token`, made (mode 0600) where there is none. ConfigError where others may read it."""
        if not self.token_file.exists():
            write_secret(self.token_file, secrets.token_urlsafe(24).encode() + b"\n")
        return read_secret(self.token_file).decode().strip()

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each named person's token. ConfigError where the file is damaged or others may read it."""
        if not self.file.exists():
            return {}
        try:
            people = json.loads(read_secret(self.file))
            return {str(name): str(digest) for name, digest in people.items()}
        except (ValueError, AttributeError):
            raise ConfigError(f"file {self.file}", "is damaged", "remove it and add the persons again") from None

    def add(self, name: str) -> str:
        """A new token for a person, in place of an older one; only its hash stays here."""
        if not PERSON.fullmatch(name):
            raise ConfigError(f"name {name!r:.80}", "holds more than letters, digits, _ - . @", "choose another name")
        token = secrets.token_urlsafe(24)
        self._store({**self.hashes(), name: _digest(token)})
        return token

    def remove(self, name: str) -> None:
        """End a person's access; ConfigError where nobody has this name."""
        people = self.hashes()
        if people.pop(name, None) is None:
            raise ConfigError(f"person {name!r:.80}", "has no token here", "see the list of names")
        self._store(people)

    def _store(self, people: dict[str, str]) -> None:
        with replacing(self.file) as partial:
            partial.touch(mode=0o600)
            partial.write_text(json.dumps(people, indent=2, sort_keys=True) + "\n")

    def owner(self, token: str) -> str:
        """The person this token belongs to, or "". Takes the same time for every wrong one."""
        digest, owner = _digest(token.strip()), ""
        for name, hash_ in {SHARED: _digest(self.shared_token()), **self.hashes()}.items():
            if hmac.compare_digest(digest, hash_):
                owner = name
        return owner


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass
class Session:
    person: str
    until: float  # Unix time
    form_token: str = field(default_factory=lambda: secrets.token_urlsafe(24))  # our own forms carry it


class Access(AuthenticationBackend):
    """Decides who asks: by session, or by what a proxy of `trusted_proxies` says in `user_header`."""

    def __init__(self, people: People, note: Note, trusted_proxies: Sequence[str] = (), user_header: str = "") -> None:
        people.shared_token()  # made at the start, so that a person finds it
        self.people, self.note = people, note
        self.cookie = f"{COOKIE}_{_digest(people.shared_token() + 'cookie')[:12]}"
        self.trusted_proxies, self.user_header = frozenset(trusted_proxies), user_header
        self.sessions: dict[str, Session] = {}
        self.guessing = asyncio.Lock()
        self.guesses = 0  # wrong tokens that wait for their answer
        self.failures, self.failures_noted = 0, -AUDIT_FAILURES_EVERY

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        """The person behind a request, for Starlette's AuthenticationMiddleware; None for a stranger."""
        try:
            session = self.session(conn)
            name = self._named_by_proxy(conn)
            if name and (session is None or session.person != name):
                session = self._open(conn, name)
        except UsfmaeError as error:
            raise AuthenticationError(str(error)) from None
        return (AuthCredentials(["authenticated"]), SimpleUser(session.person)) if session else None

    def session(self, conn: HTTPConnection) -> Session | None:
        """The living session of a request. One of a person whose token was removed is dead."""
        number = str(conn.session.get("id", ""))
        session = self.sessions.get(number)
        if session is None:
            return None
        named = session.person == SHARED or session.person in self.people.hashes() or self._named_by_proxy(conn)
        if not named or session.until < time.time():
            del self.sessions[number]
            return None
        return session

    def _named_by_proxy(self, conn: HTTPConnection) -> str:
        if not self.user_header or conn.client is None or conn.client.host not in self.trusted_proxies:
            return ""
        name = conn.headers.get(self.user_header, "")
        return name if PERSON.fullmatch(name) else ""

    def _open(self, conn: HTTPConnection, person: str) -> Session:
        now = time.time()
        living = {number: session for number, session in self.sessions.items() if session.until > now}
        if len(living) >= MOST_SESSIONS:
            del living[min(living, key=lambda number: living[number].until)]
        number, session = secrets.token_urlsafe(24), Session(person, now + SESSION_HOURS * 3600)
        self.sessions = {**living, number: session}
        conn.session["id"] = number
        self.note("page.login", "ok", by=person)
        return session

    # the three addresses of a page that are about access

    async def log_in(self, request: Request) -> bool:
        """Open a session where the form's token is somebody's. HTTPException 429 where too many guess at once."""
        form = await request.form()
        person = self.people.owner(str(form.get("token", "")))
        if person:
            self._open(request, person)
            return True
        if self.guesses >= MOST_GUESSES:
            self._failed()
            raise HTTPException(429, "too many wrong tokens at once: wait a minute")
        self.guesses += 1
        try:
            async with self.guessing:
                await asyncio.sleep(WRONG_TOKEN_SECONDS)
        finally:
            self.guesses -= 1
        self._failed()
        return False

    def _failed(self) -> None:
        self.failures += 1
        if time.monotonic() - self.failures_noted > AUDIT_FAILURES_EVERY:
            self.note("page.login", "refused", times=self.failures)
            self.failures, self.failures_noted = 0, time.monotonic()

    async def log_out(self, request: Request) -> Response:
        """End the session here, not only in the browser."""
        await self.own_form(request)
        session = self.sessions.pop(str(request.session.get("id", "")), None)
        request.session.clear()
        if session:
            self.note("page.logout", "ok", by=session.person)
        return RedirectResponse("/", 303)

    async def own_form(self, request: Request) -> dict[str, object]:
        """The fields of a form that our own page sent in this session; HTTPException 403 for any other."""
        form = await request.form()
        session = self.session(request)
        given = str(form.get("form_token", "")).encode()
        if session is None or not hmac.compare_digest(given, session.form_token.encode()):
            raise HTTPException(403, "this form is not from this page, or too old: log in and load the page again")
        return dict(form)


def local_path(target: str) -> str:
    """The path of an address on this page, whatever other site it names; "/" for anything odd."""
    try:
        path = urlsplit(target).path
    except ValueError:
        return "/"
    return path if re.fullmatch(r"/([A-Za-z0-9._-][A-Za-z0-9/._-]*)?", path) else "/"
