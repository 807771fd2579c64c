"""Which proxy the agent takes: the setting, the environment, and whom NO_PROXY names."""

from __future__ import annotations

import pytest

from usfmae.client.flower.proxy import proxy_for
from usfmae.core.errors import ConfigError

SERVER = "https://fed.hospital.example:8443"
PROXY = "http://proxy:3128"


@pytest.mark.parametrize(
    "entries",
    ["*", "fed.hospital.example", "hospital.example", ".hospital.example", "x, .example", "FED.hospital.example:8443"],
)
def test_whom_no_proxy_names_goes_directly(entries: str) -> None:
    choice = proxy_for(SERVER, None, {"https_proxy": PROXY, "NO_PROXY": entries})
    assert choice.url == "" and "NO_PROXY" in choice.source


@pytest.mark.parametrize(
    "entries", ["", ",", "other.example", "ital.example", "fed.hospital.example:443", "10.0.0.0/8"]
)
def test_whom_it_does_not_name_takes_the_proxy(entries: str) -> None:
    assert proxy_for(SERVER, None, {"HTTPS_PROXY": PROXY, "no_proxy": entries}).url == PROXY


def test_networks_hold_addresses() -> None:
    environment = {"ALL_PROXY": PROXY, "no_proxy": "10.0.0.0/8,::1"}
    assert proxy_for("https://10.1.2.3:8443", None, environment).url == ""
    assert proxy_for("https://[::1]:8443", None, environment).url == ""
    assert proxy_for("https://11.1.2.3:8443", None, environment).url == PROXY


def test_the_setting_comes_first_and_its_password_is_not_shown() -> None:
    choice = proxy_for(SERVER, "http://site:p@ss@proxy:3128", {"HTTPS_PROXY": "http://other:1", "NO_PROXY": "*"})
    assert choice.shown == PROXY and "site.yaml" in choice.source


@pytest.mark.parametrize("url", ["http://", "ftp://proxy:1", "http://proxy:99999", "http://site:s3cret@"])
def test_what_is_no_address_is_said_with_its_source(url: str) -> None:
    with pytest.raises(ConfigError, match="HTTPS_PROXY") as raised:
        proxy_for(SERVER, None, {"HTTPS_PROXY": url})
    assert "s3cret" not in str(raised.value)
