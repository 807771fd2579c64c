"""Which proxy this site's calls to its aggregator go through; the agent and `doctor` ask the same function."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from usfmae.core.errors import ConfigError
from usfmae.core.log import without_password

VARIABLES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")  # the first that is set counts
EXCEPT = ("no_proxy", "NO_PROXY")


@dataclass(frozen=True)
class ProxyChoice:
    """A proxy, "" for none, and what says so."""

    url: str
    source: str

    @property
    def shown(self) -> str:
        """The address for people, without name and password."""
        return without_password(self.url)


def proxy_for(server: str, setting: str | None, environment: Mapping[str, str] = os.environ) -> ProxyChoice:
    """The setting, else HTTPS_PROXY or ALL_PROXY unless NO_PROXY names the server. ConfigError where it is no address."""
    if setting:
        return _checked(setting, "'proxy' in site.yaml")
    variable = next((name for name in VARIABLES if environment.get(name)), "")
    if not variable:
        return ProxyChoice("", "no proxy is set")
    host, port = urlsplit(server).hostname or "", urlsplit(server).port or 443
    for name in EXCEPT:
        if any(_names(entry.strip(), host, port) for entry in environment.get(name, "").split(",")):
            return ProxyChoice("", f"{name} names {host}")
    return _checked(environment[variable], f"{variable} of the environment")


def _checked(url: str, source: str) -> ProxyChoice:
    url = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(url)
        httpx.Proxy(url)
        sound = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except Exception:
        sound = False
    if not sound:
        raise ConfigError(source, f"{without_password(url)!r:.100} is no proxy's address", "write http://HOST:PORT")
    return ProxyChoice(url, source)


def _names(entry: str, host: str, port: int) -> bool:
    """Whether an entry of NO_PROXY names a host: `*`, a name with all below it, an address, a network, a port."""
    if not entry:
        return False
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        pass
    name, colon, number = entry.rpartition(":")
    if colon and number.isdigit():
        if int(number) != port:
            return False
        entry = name
    entry = entry.lower().removeprefix("*").lstrip(".")
    return not entry or host.lower() == entry or host.lower().endswith(f".{entry}")
