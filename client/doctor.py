"""Is this site fit to take part? Each check says PASS or FAIL, why, and what to do; none of them changes anything."""

from __future__ import annotations

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
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from usfmae.client import site_policy
from usfmae.client.flower.transport_errors import explained, untrusted
from usfmae.client.site import Site
from usfmae.core.errors import UsfmaeError

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


class Doctor:
    """The checks in the order in which a connection comes about; what rests on a failed check is skipped."""

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
                raise Skip(f"rests on {', '.join(sorted(broken))}")
            return Finding(name, "PASS", check())
        except Skip as skip:
            return Finding(name, "SKIP", str(skip))
        except Fail as fail:
            self.failed.add(name)
            return Finding(name, "FAIL", fail.detail, fail.fix)
        except UsfmaeError as error:
            self.failed.add(name)
            return Finding(name, "FAIL", " - ".join(part for part in (error.what, error.why) if part), error.do)

    # --- the way out

    def keys(self) -> str:
        """Private keys are there and closed to others; the coordinator's key is readable."""
        _ = self.site.node_key, self.site.secret, self.site.coordinator
        return f"private keys closed to others; this site is {self.site.fingerprint}"

    def _proxy(self) -> str | None:
        """The proxy the agent will use, as httpx finds it."""
        if self.site.settings.proxy:
            return self.site.settings.proxy
        found = getproxies()
        return None if proxy_bypass(self.host) else found.get("https") or found.get("all")

    def proxy(self) -> str:
        """A CONNECT through the proxy, where one is set."""
        proxy = self._proxy()
        if not proxy:
            raise Skip("none set: direct connection")
        self._connected().close()
        return f"{proxy} connects to {self.host}:{self.port}"

    def dns(self) -> str:
        """The server's name has an address; behind a proxy the proxy asks."""
        if self._proxy():
            raise Skip("the proxy resolves names")
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise Fail(
                f"{self.host} has no address: {error}", "check the name in site.yaml and this machine's DNS"
            ) from None
        return f"{self.host} is {found[0][4][0]}"

    def _connected(self) -> socket.socket:
        """A TCP connection to the server, through the proxy where one is set. Raises Fail."""
        proxy = self._proxy()
        target = urlsplit(proxy) if proxy else None
        host, port = (target.hostname or "", target.port or 80) if target else (self.host, self.port)
        who = "proxy" if proxy else "server"
        try:
            wire = socket.create_connection((host, port), self.timeout)
        except OSError as error:
            fix = "check 'proxy' in site.yaml"
            if not proxy:
                fix = "open this host and port in the outbound firewall; where they are, the aggregator is down"
            raise Fail(f"{who} {host}:{port} does not answer: {error}", fix) from None
        if proxy:
            self._through(wire, proxy)
        return wire

    def _through(self, wire: socket.socket, proxy: str) -> None:
        wire.sendall(f"CONNECT {self.host}:{self.port} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n\r\n".encode())
        answer = b""
        while b"\r\n\r\n" not in answer and len(answer) < 65536:
            piece = wire.recv(4096)
            if not piece:
                break
            answer += piece
        first = answer.split(b"\r\n")[0].decode("latin-1")
        if " 200" not in first:
            wire.close()
            raise Fail(
                f"proxy {proxy} refuses {self.host}:{self.port}: {first[:80] or 'no answer'}",
                f"have the proxy allow CONNECT to {self.host}:{self.port} (many allow port 443 alone)",
            )

    def tls(self) -> str:
        """The server's certificate stands up against this site's CA."""
        from usfmae.client.flower.fleet_client import tls_context

        context = tls_context(self.site.ca_file)
        try:
            with context.wrap_socket(self._connected(), server_hostname=self.host) as wire:
                version, certificate = wire.version(), wire.getpeercert() or {}
        except ssl.SSLCertVerificationError as error:
            raise Fail(
                f"certificate of {self.host}:{self.port}: {error.verify_message}", untrusted(error.verify_message)
            ) from None
        except (ssl.SSLError, OSError) as error:
            raise Fail(f"no TLS with {self.host}:{self.port}: {error}", "is this the aggregator's port?") from None
        until = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
        days = int((until - time.time()) // 86400)
        return f"{version}, certificate good for {days} days"

    def clock(self) -> str:
        """This clock against the server's Date."""
        offset = self._clock_offset()
        if not -SLACK < offset < 300:
            word = "behind" if offset > 0 else "ahead of"
            raise Fail(f"this clock is {abs(offset):.0f} s {word} the server's", "set this machine's clock (NTP)")
        return f"within {abs(offset):.0f} s of the server's"

    def _clock_offset(self) -> float:
        import httpx

        from usfmae.client.flower.fleet_client import tls_context

        try:
            with httpx.Client(
                verify=tls_context(self.site.ca_file), proxy=self.site.settings.proxy, timeout=self.timeout
            ) as http:
                date = http.get(self.site.settings.server + "/healthz").headers.get("date")
        except httpx.HTTPError as error:
            raise explained(error, self.site.settings.server) from None
        if not date:
            raise Skip("the server tells no time")
        return parsedate_to_datetime(date).timestamp() - time.time()

    def registered(self) -> str:
        """The server knows this site's key. Asks as an unknown node would, so a running agent is not disturbed."""
        from usfmae.client.flower import fleet_client, transport_errors

        settings = self.site.settings
        fleet = fleet_client.FleetClient(
            settings.server, self.site.ca_file, self.site.node_key, settings.proxy, self.timeout
        )
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
        found = f"{size.images} images of {size.patients} patients are ready"
        if size.images < floor.min_images or size.patients < floor.min_patients:
            raise Fail(
                f"{found}, this site's floor is {floor.min_images} of {floor.min_patients}",
                f"run 'usfmae-client prepare {self.site.root}', or add sources",
            )
        return found
