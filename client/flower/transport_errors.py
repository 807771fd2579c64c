"""What may go wrong between a site and its aggregator, as a person can act on it."""

from __future__ import annotations

import json

import httpx

from usfmae.core.errors import NetworkError
from usfmae.core.flower_objects import NODE_UNKNOWN, FleetCall
from usfmae.core.log import printable, without_password

EARLIEST, LATEST = -4.0, 300.0  # seconds the server's clock may be before or after ours; its window is -5..305


class UnreachableError(NetworkError):
    """No answer: DNS, refused, timeout, proxy, server restarting. Passes with time."""


class UntrustedError(NetworkError):
    """The server's certificate does not stand up against the CA this site was given."""


class UnknownKeyError(NetworkError):
    """The server does not know this site's key, or knows it under another node id."""


class StaleNodeError(UnknownKeyError):
    """The key is known, the node id is of an earlier life of the server: coming online again mends it."""


class ClockError(NetworkError):
    """This machine's clock is too far from the server's for its signatures to count."""


class GoneError(NetworkError):
    """The run that asked is over, or the message is not there any more."""


def span(seconds: float) -> str:
    """A length of time as people say it: "3 s", "12 min", "5 h", "2 days"."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def refused(call: FleetCall, status: int, body: bytes, server: str, clock_offset: float) -> NetworkError:
    """The error that an HTTP status other than 200 means."""
    if status == 401 and not EARLIEST < clock_offset < LATEST:
        return ClockError(
            f"clock is {span(abs(clock_offset))} {'behind' if clock_offset > 0 else 'ahead of'} the server's",
            "signatures count for a few minutes only",
            "set the clock (NTP) of this machine",
        )
    if status == 401 and _detail(body) == NODE_UNKNOWN:
        return StaleNodeError(f"server {server}", "has restarted and gives this site a new node id", "coming online")
    if status == 401:
        return unknown(server, f"refused this site's key ({_detail(body) or 'HTTP 401'})")
    if call is FleetCall.ACTIVATE:
        return UnreachableError(
            f"server {server}",
            "does not let this site come online yet: an earlier session has not lapsed, or the key is not enrolled",
            "retrying",
        )
    if status in (403, 404, 409, 410):
        return GoneError(f"server {server}", f"{call}: HTTP {status}", "the round is over for this request")
    return UnreachableError(f"server {server}", f"{call}: HTTP {status} {body[:120]!r}", "retrying")


def unknown(server: str, why: str) -> UnknownKeyError:
    do = "ask the coordinator to enrol enrol.json ('usfmae-server site add')"
    return UnknownKeyError(f"server {server}", why, do)


def _detail(body: bytes) -> str:
    """The reason the server gives, short and printable."""
    try:
        return printable(str(json.loads(body)["detail"]), 120)
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def untrusted(reason: str) -> str:
    """What to do about a certificate that was not taken, from the words of OpenSSL."""
    if "not yet valid" in reason or "expired" in reason:
        return "set the clock (NTP) of this machine; if it is right, the coordinator must renew the certificate"
    return "compare ca.pem with the coordinator's; if a firewall opens TLS, exempt this host"


def explained(error: httpx.HTTPError, server: str, proxy_source: str = "'proxy' in site.yaml") -> NetworkError:
    """A transport error as a person can act on it."""
    text = without_password(str(error)) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        reason = text.rsplit("certificate verify failed:", 1)[-1].split("(_ssl")[0].strip()
        return UntrustedError(f"certificate of {server}", reason or text, untrusted(reason))
    if isinstance(error, httpx.ProxyError):
        return UnreachableError(f"proxy on the way to {server}", text, f"check {proxy_source}")
    if isinstance(error, httpx.TimeoutException):
        return UnreachableError(f"server {server}", f"no answer in time ({type(error).__name__})", "retrying")
    return UnreachableError(f"server {server}", text, "retrying; see 'usfmae-client doctor'")
