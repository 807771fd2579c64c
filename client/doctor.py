"""Is this site fit to take part? Each check says PASS or FAIL, why, and what to do; none of them changes anything."""

from __future__ import annotations

import functools
import os
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any, Literal

import httpx

from usfmae.client import site_policy
from usfmae.client.flower.proxy import proxy_for
from usfmae.client.flower.transport_errors import span, untrusted
from usfmae.client.site import Site
from usfmae.core.errors import UsfmaeError
from usfmae.core.keys import new_node_key
from usfmae.core.log import without_password

FIRST_FILES = 2000  # files of a source that are looked at
SLACK = 4.0  # seconds this clock may be ahead of the server's; behind, it may be minutes


@dataclass(frozen=True)
class Finding:
    check: str
    status: Literal["PASS", "FAIL", "SKIP"]
    detail: str
    fix: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Fail(Exception):  # noqa: N818 - a verdict, not an error
    def __init__(self, detail: str, fix: str) -> None:
        super().__init__(detail)
        self.detail, self.fix = detail, fix


class Skip(Exception):  # noqa: N818 - a verdict, not an error
    pass


@dataclass(frozen=True)
class Greeting:
    """What one call of the server showed, or why there was no answer."""

    error: httpx.HTTPError | None
    version: str = ""  # of TLS
    days: int = 0  # for which the certificate is good
    clock_offset: float | None = None  # the server's clock minus this one, in seconds


def _words(error: Exception) -> str:
    return without_password(str(error)) or type(error).__name__


def _is_tls(error: Exception) -> bool:
    return "SSL" in str(error) or "CERTIFICATE_VERIFY_FAILED" in str(error)


class Doctor:
    """The checks in the order in which a connection comes about; what needs a failed check is skipped."""

    def __init__(self, site: Site, timeout: float = 10.0) -> None:
        self.site, self.timeout = site, timeout
        self.host, self.port = site.address
        self.failed: set[str] = set()

    def findings(self) -> Iterator[Finding]:
        checks: dict[str, tuple[Callable[[], str], tuple[str, ...]]] = {
            "keys": (self.keys, ()),
            "proxy": (self.proxy, ()),
            "dns": (self.dns, ()),
            "tls": (self.tls, ("proxy", "dns")),
            "clock": (self.clock, ("proxy", "dns", "tls")),
            "registered": (self.registered, ("keys", "proxy", "dns", "tls", "clock")),
            "disk": (self.disk, ()),
            "gpu": (self.gpu, ()),
            "tesseract": (self.tesseract, ()),
            "confinement": (self.confinement, ()),
            "sources": (self.sources, ()),
            "corpus": (self.corpus, ()),
        }
        for name, (check, needs) in checks.items():
            yield self._one(name, check, self.failed.intersection(needs))

    def _one(self, name: str, check: Callable[[], str], broken: set[str]) -> Finding:
        try:
            if broken:
                raise Skip(f"not tried: first mend {', '.join(sorted(broken))}")
            return Finding(name, "PASS", check())
        except Skip as skip:
            return Finding(name, "SKIP", str(skip))
        except Fail as fail:
            self.failed.add(name)
            return Finding(name, "FAIL", fail.detail, fail.fix)
        except UsfmaeError as error:
            self.failed.add(name)
            return Finding(name, "FAIL", " - ".join(part for part in (error.what, error.why) if part), error.do)
        except Exception as error:  # whatever it is, the other checks still help
            self.failed.add(name)
            return Finding(
                name, "FAIL", f"{type(error).__name__}: {_words(error)}", "report this: a check failed itself"
            )

    # --- the way out

    def keys(self) -> str:
        """Private keys are there and closed to others; the coordinator's key is readable."""
        _ = self.site.node_key, self.site.secret, self.site.coordinator
        return f"private keys closed to others; this site is {self.site.fingerprint}"

    def proxy(self) -> str:
        """The proxy that the agent would use, and whether it lets this site through."""
        choice = proxy_for(self.site.settings.server, self.site.settings.proxy)
        if not choice.url:
            raise Skip(f"direct connection: {choice.source}")
        error = self.greeting.error
        where = f"proxy {choice.shown} ({choice.source})"
        if isinstance(error, httpx.ProxyError):
            raise Fail(f"{where} refuses {self.host}:{self.port}: {error}", self._proxy_fix(str(error)))
        if isinstance(error, httpx.TransportError) and not _is_tls(error):
            raise Fail(f"{where} does not answer: {_words(error)}", f"check {choice.source}")
        return f"{where} connects to {self.host}:{self.port}"

    def _proxy_fix(self, answer: str) -> str:
        if "407" in answer:
            return "it asks for a name and a password: write http://NAME:PASSWORD@HOST:PORT, both percent-encoded"
        return f"have the proxy allow CONNECT to {self.host}:{self.port} (many allow port 443 alone)"

    def dns(self) -> str:
        """The server's name has an address; behind a proxy the proxy asks."""
        if proxy_for(self.site.settings.server, self.site.settings.proxy).url:
            raise Skip("the proxy resolves names")
        try:
            addresses = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise Fail(
                f"{self.host} has no address: {error}", "check the name in site.yaml and this machine's DNS"
            ) from None
        return f"{self.host} is {addresses[0][4][0]}"

    def tls(self) -> str:
        """The server's certificate is signed by this site's CA."""
        error, where = self.greeting.error, f"{self.host}:{self.port}"
        if error is None:
            return f"{self.greeting.version}, certificate good for {self.greeting.days} days"
        reason = _words(error)
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            reason = reason.rsplit("certificate verify failed:", 1)[-1].split("(_ssl")[0].strip()
            raise Fail(f"certificate of {where}: {reason}", untrusted(reason))
        if _is_tls(error) or isinstance(error, httpx.ProtocolError):
            raise Fail(f"no TLS with {where}: {reason}", "is this the aggregator's port?")
        fix = "open this host and port in the outbound firewall; if it is open, the aggregator is down"
        raise Fail(f"server {where} does not answer: {reason}", fix)

    def clock(self) -> str:
        """This clock against the server's Date."""
        if self.greeting.clock_offset is None:
            raise Skip("the server tells no time")
        offset = self.greeting.clock_offset
        if not -SLACK < offset < 300:
            word = "behind" if offset > 0 else "ahead of"
            raise Fail(f"this clock is {span(abs(offset))} {word} the server's", "set this machine's clock (NTP)")
        return f"within {span(abs(offset))} of the server's"

    @functools.cached_property
    def greeting(self) -> Greeting:
        """One answer of the server over the agent's own client: its proxy, its CA, its time limits."""
        from usfmae.client.flower.fleet_client import FleetClient, address_of

        fleet = FleetClient(address_of(self.site), new_node_key(), self.timeout)
        try:
            with fleet.http.stream("GET", "/healthz", timeout=self.timeout) as answer:
                tls = answer.extensions["network_stream"].get_extra_info("ssl_object")
                until = ssl.cert_time_to_seconds(str((tls.getpeercert() or {})["notAfter"]))
                date = answer.headers.get("date")
                offset = parsedate_to_datetime(date).timestamp() - time.time() if date else None
                return Greeting(None, str(tls.version()), int((until - time.time()) // 86400), offset)
        except httpx.HTTPError as error:
            return Greeting(error)
        except (ValueError, KeyError, TypeError, OSError) as error:  # an answer that makes no sense
            return Greeting(httpx.RemoteProtocolError(f"{type(error).__name__}: {error}"))
        finally:
            fleet.close()

    def registered(self) -> str:
        """The server knows this site's key. Asks as an unknown node would, so a running agent is not disturbed."""
        from usfmae.client.flower import transport_errors
        from usfmae.client.flower.fleet_client import FleetClient, address_of

        settings = self.site.settings
        fleet = FleetClient(address_of(self.site), self.site.node_key, self.timeout)
        try:
            fleet.heartbeat(settings.heartbeat)
        except transport_errors.UnknownKeyError as error:
            if "enrolled" in error.why or "revoked" in error.why:
                raise Fail("the server does not know this site's key", "send enrol.json to the coordinator") from None
        finally:
            fleet.close()
        return f"the server knows the key of {settings.name}"

    # --- the machine

    def disk(self) -> str:
        """Free space above the floor, and the site's directory writable."""
        site_policy.check_disk(self.site)
        if not os.access(self.site.root, os.W_OK):
            raise Fail(f"{self.site.root} cannot be written", "give this user the directory")
        return f"{shutil.disk_usage(self.site.root).free / 1e9:.1f} GB free"

    def gpu(self) -> str:
        """The device that training will use."""
        names = site_policy.gpus()
        chosen = site_policy.chosen_gpus(self.site.settings.device, len(names))
        if not chosen:
            raise Skip("no GPU: training runs on the CPU")
        return ", ".join(names[n] for n in chosen)

    def tesseract(self) -> str:
        """The second reader of the text check; without it, or its language data, nothing passes cleaning."""
        from usfmae.core.clean.ocr import check_ocr

        check_ocr(self.site.settings.clean.ocr)
        return str(shutil.which("tesseract"))

    def confinement(self) -> str:
        """Whether this kernel keeps the processes that decode scans from every other file."""
        from usfmae.core.sandbox.confinement import landlock_version

        version = landlock_version()
        if not version:
            raise Skip("no Landlock (Linux 5.13): a decoder that is taken over could read this user's other files")
        return f"Landlock {version}: decoding processes can open no file"

    def sources(self) -> str:
        """Every source is there and can be read."""
        if not self.site.settings.sources:
            raise Fail("no sources are configured", "name them under 'sources' in site.yaml")
        for source in self.site.settings.sources:
            if not source.exists():
                raise Fail(f"{source} does not exist", "mount it, or correct site.yaml")
            below = islice(source.rglob("*"), FIRST_FILES) if source.is_dir() else ()
            closed = next((path for path in (source, *below) if not os.access(path, os.R_OK)), None)
            if closed:
                raise Fail(f"{closed} cannot be read", "give this user read access to all of the source")
        return f"{len(self.site.settings.sources)} readable"

    def corpus(self) -> str:
        """Images ready to train on."""
        from usfmae.client.rounds.jobs import corpus_size

        size, floor = corpus_size(self.site), self.site.settings.privacy
        summary = f"{size.images} images of {size.patients} patients are ready"
        if size.images < floor.min_images or size.patients < floor.min_patients:
            raise Fail(
                f"{summary}, this site's floor is {floor.min_images} of {floor.min_patients}",
                f"run 'usfmae-client prepare {self.site.root}', or add sources",
            )
        return summary
