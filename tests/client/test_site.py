"""A site's directory: made once, private, readable by the coordinator only where it should be."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from usfmae.client.site import Site, create
from usfmae.core import keys
from usfmae.core.config import validated
from usfmae.core.config.site import SiteSettings
from usfmae.core.errors import ConfigError
from usfmae.core.federated import enrolment
from usfmae.core.keys import new_node_key, public_pem


def test_private_files_are_closed_and_nothing_private_is_in_the_enrolment(site: Site) -> None:
    private = sorted((site.root / "keys").iterdir())
    assert [p.name for p in private] == ["node.pem", "secret", "signing.pem"]
    assert {stat.S_IMODE(p.stat().st_mode) for p in private} == {0o600}
    sent = (site.root / "enrol.json").read_text()
    assert "PRIVATE" not in sent and site.secret.hex() not in sent
    enrolled = enrolment.load(site.root / "enrol.json")
    assert enrolled.site == site.fingerprint and enrolled.capacity == site.settings.capacity


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_not_used(site: Site, mode: int) -> None:
    (site.root / "keys" / "signing.pem").chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        _ = Site.open(site.root).signing_key


def test_init_never_overwrites_a_site(site: Site, tmp_path: Path) -> None:
    before = (site.root / "keys" / "node.pem").read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        create(site.root, site.settings, None, tmp_path / "coordinator.pub.pem")
    (site.root / "site.yaml").unlink()
    with pytest.raises(ConfigError, match="exists already"):
        create(site.root, site.settings, None, tmp_path / "coordinator.pub.pem")
    assert (site.root / "keys" / "node.pem").read_bytes() == before


def test_what_was_chosen_at_init_is_read_back_and_every_other_key_is_shown(make_site: Callable[..., Site]) -> None:
    made = make_site(quiet=["07:00-19:00"], sources=["/scans"], read={"fps": 1.0})
    reopened = Site.open(made.root)
    assert reopened.settings == made.settings
    text = (made.root / "site.yaml").read_text()
    assert "release: auto" in text and "# auto: a finished update leaves at once" in text


def test_settings_can_be_overridden_for_one_call(site: Site) -> None:
    assert Site.open(site.root, ["release=approve"]).settings.release == "approve"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("server", "http://host:1"),
        ("server", "https://host"),
        ("server", "https://host:99999"),
        ("server", "https://user@host:1"),
        ("server", "https://host:8443/path"),
        ("name", "../up"),
        ("name", "a b"),
        ("quiet", ["7-19"]),
        ("quiet", ["25:00-26:00"]),
        ("device", "gpu"),
        ("heartbeat", 5),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(key: str, value: object) -> None:
    values = {"name": "a", "server": "https://host:1", key: value}
    with pytest.raises(ConfigError, match=key):
        validated(SiteSettings, values, "test")


@pytest.mark.parametrize("server", ["https://host.example:8443", "https://10.0.0.1:1", "https://[::1]:8443"])
def test_addresses_of_every_kind_are_taken(server: str, make_site: Callable[..., Site]) -> None:
    host, port = make_site(server=server).address
    assert host in ("host.example", "10.0.0.1", "::1") and port in (8443, 1)


def test_a_directory_that_is_no_site_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="init"):
        Site.open(tmp_path)


def test_a_coordinator_key_of_another_kind_is_refused_before_anything_is_made(
    tmp_path: Path, site: Site, coordinator: Ed25519PrivateKey
) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text(keys.public_pem(keys.new_node_key()))
    with pytest.raises(ConfigError, match="no Ed25519 key"):
        create(tmp_path / "other", site.settings, None, wrong)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"name": "a"}',
        '{"name": "../x", "node_key": "", "signing_key": "", "capacity": 1}',
        '{"name": 3, "node_key": 4, "signing_key": 5, "capacity": 1}',
        '{"name": "a", "node_key": "k", "signing_key": "k", "capacity": 1000000000000}',
        '{"name": "a", "node_key": "k", "signing_key": "k", "capacity": 1, "private": "x"}',
    ],
)
def test_a_damaged_or_hostile_enrolment_is_a_config_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "enrol.json").write_text(text)
    with pytest.raises(ConfigError):
        enrolment.load(tmp_path / "enrol.json")


def test_an_enrolment_proves_that_its_sender_holds_both_keys(site: Site, tmp_path: Path) -> None:
    values = json.loads((site.root / "enrol.json").read_text())
    other = json.loads(json.dumps(values))
    other |= {"node_key": public_pem(new_node_key())}  # somebody else's key, which anyone may know
    for changed in (other, {**values, "name": "twin"}, {**values, "capacity": 9}, {**values, "signing_proof": ""}):
        (tmp_path / "enrol.json").write_text(json.dumps(changed))
        with pytest.raises(ConfigError, match="not signed by both"):
            enrolment.load(tmp_path / "enrol.json")
    (tmp_path / "enrol.json").write_text(json.dumps({**values, "version": 1}))
    with pytest.raises(ConfigError, match="version 1"):
        enrolment.load(tmp_path / "enrol.json")


def test_an_enrolment_with_the_wrong_kind_of_key_is_refused(site: Site, tmp_path: Path) -> None:
    sound = enrolment.load(site.root / "enrol.json")
    for swapped in (
        enrolment.Enrolment(sound.name, sound.signing_key, sound.signing_key, 1),
        enrolment.Enrolment(sound.name, sound.node_key, sound.node_key, 1),
        enrolment.Enrolment(sound.name, sound.node_key, 7, 1),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError):
            enrolment.checked(swapped, "test")


def test_a_study_does_not_lie_inside_another(make_site: Callable[..., Site], tmp_path: Path) -> None:
    site = make_site()
    with pytest.raises(ConfigError, match="lies inside the site"):
        create(site.root / "second", site.settings, None, tmp_path / "coordinator.pub.pem")


def test_one_scan_has_another_name_in_each_study_and_pages_share_no_login(make_site: Callable[..., Site]) -> None:
    from starlette.testclient import TestClient

    from usfmae.client.page.app import application
    from usfmae.core.types import secret_id

    first, second = make_site("breast"), make_site("lung")
    assert secret_id(first.secret, "scan", "1.2.3") != secret_id(second.secret, "scan", "1.2.3")
    pages = {site: TestClient(application(site), base_url="http://127.0.0.1") for site in (first, second)}
    token = (first.root / "keys" / "page.token").read_text().strip()
    assert pages[first].post("/login", data={"token": token}, follow_redirects=False).status_code == 303
    (cookie,) = pages[first].cookies.jar
    pages[second].cookies.set(cookie.name, str(cookie.value))  # as a browser does: it knows no ports
    assert pages[second].get("/audit", follow_redirects=False).headers["location"].startswith("/login")
    assert pages[first].get("/audit", follow_redirects=False).status_code == 200


def test_a_key_is_read_aloud_as_thirty_digits() -> None:
    first, second = (keys.new_signing_key().public_key() for _ in range(2))
    assert keys.telephone(first) == keys.telephone(first) != keys.telephone(second)
    assert [len(group) for group in keys.telephone(first).split()] == [5] * 6
    assert keys.telephone(first).replace(" ", "").isdecimal()
