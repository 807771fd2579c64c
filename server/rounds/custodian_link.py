"""The aggregator's calls to its custodian: over TLS to the certificate authority in custodian.json, one at a time."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from usfmae.core.config.coordinator import CustodianLinkSettings
from usfmae.core.errors import ConfigError, NetworkError, PolicyError
from usfmae.core.federated.sealed.envelope import Envelope
from usfmae.server.custodian.home import Card


class CustodianLink:
    """NetworkError where the custodian is away, PolicyError where it refuses."""

    def __init__(self, settings: CustodianLinkSettings) -> None:
        if settings.card is None or not settings.url.startswith("https://"):
            do = "set custodian.url (https://HOST:PORT) and custodian.card (its custodian.json)"
            raise ConfigError("custodian", "is not named, and rounds.sealed asks for one", do)
        self.card = Card.read(settings.card)
        self.url = settings.url
        context = ssl.create_default_context(cadata=self.card.ca)
        self.http = httpx.Client(base_url=settings.url, verify=context, timeout=settings.timeout, trust_env=False)

    def send(self, ask: Envelope) -> Envelope:
        with self._calling():
            answer = self.http.post("/message", json=ask)
            self._check(answer)
            values = answer.json()
        if not isinstance(values, dict):
            raise PolicyError(f"custodian {self.url}", "answers what is no message", "see whether this is its port")
        return values

    def share(self, ask: Envelope) -> Iterator[bytes]:
        """The sum that `ask` asked for, as it comes."""
        with self._calling(), self.http.stream("POST", "/share", json=ask) as answer:
            if answer.status_code != 200:
                answer.read()
                self._check(answer)
            yield from answer.iter_bytes(2**20)

    @contextmanager
    def _calling(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            why = f"does not answer: {error}"[:200]
            raise NetworkError(f"custodian {self.url}", why, "the round waits for it; see whether it runs") from None
        except ValueError:
            raise NetworkError(f"custodian {self.url}", "answers no JSON", "see whether this is its port") from None

    def _check(self, answer: httpx.Response) -> None:
        if answer.status_code == 200:
            return
        try:
            why = str(answer.json()["error"])[:600]
        except (ValueError, KeyError, TypeError):
            why = f"status {answer.status_code}"
        if answer.status_code == 409:
            raise PolicyError(f"custodian {self.url}", f"refuses: {why}", "see its log")
        raise NetworkError(f"custodian {self.url}", why, "the round waits for it; see its log")
