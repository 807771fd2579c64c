"""`doctor` names the cause and the fix of what stands between a site and its aggregator."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.ports import free_port
from usfmae.client.cli.setup import doctor
from usfmae.client.doctor import Doctor, Finding
from usfmae.client.flower.transport_errors import span
from usfmae.client.site import Site
from usfmae.core import keys
from usfmae.core.config.privacy import PrivacySettings

from .conftest import Aggregator
from .network import Port, Proxy


@pytest.fixture
def near(make_site: Callable[..., Site], port: Port, aggregator: Aggregator, tmp_path: Path) -> Site:
    """A site whose aggregator answers on loopback."""
    site = make_site(server=f"https://127.0.0.1:{port.number}", sources=[str(tmp_path)])
    shutil.copyfile(port.ca, site.root / "ca.pem")
    aggregator.enrol(site)
    return site


def found(site: Site, **changes: object) -> dict[str, Finding]:
    changed = Site(site.root, site.settings.model_copy(update=changes))
    return {finding.check: finding for finding in Doctor(changed, timeout=3).findings()}


def test_a_sound_site_passes_everything_it_has(near: Site) -> None:
    checks = found(near)
    assert {c.status for c in checks.values()} <= {"PASS", "SKIP"}, checks
    assert {n for n, c in checks.items() if c.status == "PASS"} >= {"keys", "dns", "tls", "clock", "registered", "disk"}
    assert "16 images" in checks["corpus"].detail


def test_a_key_that_is_not_enrolled(near: Site, aggregator: Aggregator) -> None:
    aggregator.nodes.clear()
    check = found(near)["registered"]
    assert (check.status, "enrol.json" in check.fix) == ("FAIL", True)


@pytest.mark.parametrize(("offset", "word"), [(600.0, "behind"), (-600.0, "ahead of")])
def test_a_clock_that_is_off(near: Site, aggregator: Aggregator, offset: float, word: str) -> None:
    aggregator.clock_offset = offset
    checks = found(near)
    assert checks["clock"].status == "FAIL" and word in checks["clock"].detail and "NTP" in checks["clock"].fix
    assert checks["registered"].status == "SKIP" and "clock" in checks["registered"].detail


def test_another_certificate_authority(near: Site) -> None:
    from usfmae.server import certificates

    (near.root / "ca.pem").write_bytes(certificates.authority("other", keys.new_node_key()))
    check = found(near)["tls"]
    assert check.status == "FAIL" and "certificate" in check.detail and "ca.pem" in check.fix


@pytest.mark.parametrize(("starts", "reason"), [(timedelta(hours=2), "not yet valid"), (timedelta(-9000), "expired")])
def test_a_certificate_out_of_its_time_points_to_the_clock(
    near: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, aggregator: Aggregator, starts: timedelta, reason: str
) -> None:
    """A clock hours behind meets this first: TLS fails before the server tells the time."""
    from usfmae.server import certificates

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + starts

    monkeypatch.setattr(certificates, "datetime", Shifted)
    (tmp_path / "late").mkdir()
    late = Port(aggregator, tmp_path / "late")
    (near.root / "ca.pem").write_bytes(late.ca.read_bytes())
    check = found(near, server=f"https://127.0.0.1:{late.number}")["tls"]
    assert check.status == "FAIL" and reason in check.detail and "clock (NTP)" in check.fix


def test_a_key_that_others_can_read(near: Site) -> None:
    (near.root / "keys" / "signing.pem").chmod(0o644)
    checks = found(near)
    assert checks["keys"].status == "FAIL" and "chmod 600" in checks["keys"].fix
    assert checks["registered"].status == "SKIP"


def test_a_folder_deep_in_a_source_that_cannot_be_read(near: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so what access() says stands in for the file system."""
    deep = near.settings.sources[0] / "ward" / "closed"
    deep.mkdir(parents=True)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != deep and real(path, mode))
    check = found(near)["sources"]
    assert check.status == "FAIL" and str(deep) in check.detail


def test_a_port_that_is_closed_and_a_name_that_does_not_exist(near: Site) -> None:
    closed = found(near, server=f"https://127.0.0.1:{free_port()}")
    assert closed["tls"].status == "FAIL" and "firewall" in closed["tls"].fix
    nowhere = found(near, server="https://no-such-host.invalid:1")
    assert nowhere["dns"].status == "FAIL" and nowhere["tls"].status == "SKIP"


def test_a_port_that_speaks_no_tls(near: Site) -> None:
    with Proxy().listener as plain:
        check = found(near, server=f"https://127.0.0.1:{plain.getsockname()[1]}")["tls"]
    assert check.status == "FAIL"


def test_a_proxy_is_used_and_one_that_refuses_is_named(near: Site) -> None:
    proxy = Proxy()
    checks = found(near, proxy=proxy.url)
    assert checks["proxy"].status == checks["tls"].status == checks["registered"].status == "PASS"
    assert checks["dns"].status == "SKIP" and proxy.targets
    proxy.allows = False
    refused = found(near, proxy=proxy.url)["proxy"]
    assert refused.status == "FAIL" and "403" in refused.detail


def test_the_machine(near: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    checks = found(
        near,
        disk_floor_gb=1e9,
        sources=(Path("/no/such/folder"),),
        device="cuda:7",
        privacy=PrivacySettings(min_images=1000),
    )
    failed = {name for name, check in checks.items() if check.status == "FAIL"}
    assert failed == {"disk", "gpu", "tesseract", "sources", "corpus"}
    assert all(checks[name].fix for name in failed)


def test_the_command_prints_json_and_ends_with_what_failed(near: Site, aggregator: Aggregator) -> None:
    sound = CliRunner().invoke(doctor, [str(near.root), "--json"], standalone_mode=False)
    assert sound.return_value == 0 and json.loads(sound.stdout)["fit"] is True
    aggregator.nodes.clear()
    broken = CliRunner().invoke(doctor, [str(near.root)], standalone_mode=False)
    assert broken.return_value == 6 and "FAIL  registered" in broken.stdout and "fix: " in broken.stdout


@pytest.fixture
def guarded_proxy() -> Proxy:
    """Asks for the name "site" and the password "s3cret"."""
    proxy = Proxy()
    proxy.needs = "site:s3cret"
    return proxy


def with_password(proxy: Proxy, password: str = "s3cret") -> str:
    return proxy.url.replace("://", f"://site:{password}@")


def test_a_proxy_with_a_password_is_passed_and_never_shown(near: Site, guarded_proxy: Proxy) -> None:
    checks = found(near, proxy=with_password(guarded_proxy))
    assert {checks[name].status for name in ("proxy", "tls", "clock", "registered")} == {"PASS"}
    assert "'proxy' in site.yaml" in checks["proxy"].detail
    wrong = found(near, proxy=with_password(guarded_proxy, "wr0ng"))
    assert wrong["proxy"].status == "FAIL" and "407" in wrong["proxy"].detail and "password" in wrong["proxy"].fix
    closed = found(near, proxy=f"http://site:s3cret@127.0.0.1:{free_port()}")["proxy"]
    assert closed.status == "FAIL" and "does not answer" in closed.detail
    everything = [str(c.as_dict()) for c in (*checks.values(), *wrong.values(), closed)]
    assert not any("s3cret" in text or "wr0ng" in text for text in everything)


def test_a_proxy_of_the_environment_is_named_with_its_variable(
    near: Site, guarded_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", with_password(guarded_proxy))
    assert "HTTPS_PROXY of the environment" in found(near)["proxy"].detail
    monkeypatch.setenv("NO_PROXY", "example.org, 127.0.0.0/8")
    direct = found(near)
    assert direct["proxy"].status == "SKIP" and "NO_PROXY names 127.0.0.1" in direct["proxy"].detail
    assert direct["registered"].status == "PASS"


def test_a_check_that_fails_itself_does_not_end_the_others(near: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Doctor, "disk", lambda self: 1 / 0)
    checks = found(near)
    assert checks["disk"].status == "FAIL" and "ZeroDivisionError" in checks["disk"].detail
    assert checks["corpus"].status == "PASS"


@pytest.mark.parametrize(("seconds", "text"), [(3, "3 s"), (600, "10 min"), (7200, "2 h"), (86400 * 400, "400 days")])
def test_lengths_of_time_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert span(seconds) == text
