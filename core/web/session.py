"""A token in a private file opens a page; a signed cookie remembers it for a while. Nothing is kept on the server."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from usfmae.core.keys import read_secret, write_secret

COOKIE = "usfmae_session"
HOURS = 12.0


@dataclass(frozen=True)
class Sessions:
    """Sessions under one token; a new token ends all of them."""

    token: str

    @classmethod
    def of(cls, file: Path) -> Sessions:
        """The token in `file`, made (mode 0600) where there is none. ConfigError where others may read it."""
        if not file.exists():
            write_secret(file, secrets.token_urlsafe(24).encode() + b"\n")
        return cls(read_secret(file).decode().strip())

    def opens(self, token: str) -> bool:
        """Whether this is the token; takes the same time for every wrong one."""
        return hmac.compare_digest(token.strip().encode(), self.token.encode())

    def new(self) -> str:
        """A cookie's value."""
        until = str(int(time.time() + HOURS * 3600))
        return f"{until}.{self._sign('session', until)}"

    def holds(self, cookie: str) -> bool:
        until, _, mark = cookie.partition(".")
        fresh = until.isdecimal() and len(until) < 12 and int(until) > time.time()
        return fresh and hmac.compare_digest(mark.encode(), self._sign("session", until).encode())

    def form_mark(self, cookie: str) -> str:
        """What a form of this session carries, so that no other page can send it."""
        return self._sign("form", cookie)

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self.token.encode(), f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()
