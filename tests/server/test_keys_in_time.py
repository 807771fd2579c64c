"""Certificates watched and renewed, sites' keys rotated at the coordinator."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from usfmae.core import keys
from usfmae.core.config.coordinator import CoordinatorSettings
from usfmae.core.errors import ConfigError, PolicyError
from usfmae.core.federated import enrolment
from usfmae.core.federated.enrolment import Enrolment, proved
from usfmae.server import certificates, sites
from usfmae.server.layout import Layout
from usfmae.server.ledger import Ledger

NAMES = ("localhost", "127.0.0.1", "fl.example.org")


@pytest.fixture
def home(tmp_path: Path) -> Layout:
    home = Layout(tmp_path / "c")
    home.root.mkdir()
    home.settings_file.write_text(f"network:\n  names: [{', '.join(NAMES)}]\n")
    ca, tls = keys.new_node_key(), keys.new_node_key()
    keys.write_private(home.ca_key, ca)
    keys.write_private(home.tls_key, tls)
    home.ca.write_bytes(certificates.authority("trial", ca))
    home.certificate.write_bytes(certificates.server(NAMES, tls.public_key(), home.ca.read_bytes(), ca))
    Ledger(home.ledger, create=True).close()
    assert CoordinatorSettings().network.names
    return home


def expiring(home: Layout, monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    end = certificates.read(home.certificate).not_valid_after_utc
    monkeypatch.setattr("time.time", lambda: (end - timedelta(days=days)).timestamp())


def test_a_sound_certificate_says_nothing_one_that_ends_says_what_to_do(
    home: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert certificates.warning(home) == ""
    expiring(home, monkeypatch, 12)
    assert "ends in 12 days" in certificates.warning(home) and "--renew" in certificates.warning(home)
    expiring(home, monkeypatch, -1)
    assert "has ended" in certificates.warning(home)


def test_renewal_keeps_key_and_names_and_the_ca_vouches_for_it(home: Layout) -> None:
    before = certificates.read(home.certificate)
    summary = certificates.renew(home)
    after = certificates.read(home.certificate)
    assert after.serial_number != before.serial_number and after.public_key() == before.public_key()
    assert summary["names"] == list(NAMES) and summary["days_left"] > 700
    after.verify_directly_issued_by(certificates.read(home.ca))


def test_renewal_without_the_cas_key_says_where_to_do_it(home: Layout) -> None:
    home.ca_key.unlink()
    with pytest.raises(ConfigError, match="renew where it is kept"):
        certificates.renew(home)


def test_bringing_a_pair_along(home: Layout, tmp_path: Path) -> None:
    key, other = keys.new_node_key(), keys.new_node_key()
    keys.write_private(tmp_path / "k.pem", key)
    keys.write_private(tmp_path / "other.pem", other)
    ca = certificates.authority("own", key)
    (tmp_path / "c.pem").write_bytes(ca)
    with pytest.raises(ConfigError, match="does not belong to the key"):
        certificates.bring(home, tmp_path / "c.pem", tmp_path / "other.pem")
    certificates.bring(home, tmp_path / "c.pem", tmp_path / "k.pem")
    assert home.certificate.read_bytes() == ca and home.tls_key.stat().st_mode & 0o077 == 0
    (tmp_path / "c.pem").write_bytes(_ended(tmp_path, key))
    with pytest.raises(ConfigError, match="ended"):
        certificates.bring(home, tmp_path / "c.pem", tmp_path / "k.pem")


def _ended(folder: Path, key: keys.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import hashes

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "old")])
    start = datetime.now(UTC) - timedelta(days=10)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(start).not_valid_after(start + timedelta(days=5))
    return builder.sign(key, hashes.SHA384()).public_bytes(Encoding.PEM)


def enrolled(home: Layout, name: str, capacity: int = 50) -> tuple[Enrolment, keys.Ed25519PrivateKey]:
    signing = keys.new_signing_key()
    enrolment = Enrolment(name, keys.public_pem(keys.new_node_key()), keys.public_pem(signing), capacity)
    Ledger(home.ledger).add_site(enrolment)
    return enrolment, signing


def asked(home: Layout, tmp_path: Path, old: Enrolment, signing: keys.Ed25519PrivateKey, name: str = "kiel") -> Path:
    new = proved(name, 10**6, keys.new_node_key(), keys.new_signing_key())
    enrolment.save_rotation(
        enrolment.signed_rotation(enrolment.Rotation(old.site, new), signing), tmp_path / "rotation.json"
    )
    return tmp_path / "rotation.json"


def test_rotation_replaces_one_key_and_touches_nobody_else(home: Layout, tmp_path: Path) -> None:
    old, signing = enrolled(home, "kiel")
    other, _ = enrolled(home, "other")
    done = sites.rotate(home, asked(home, tmp_path, old, signing))
    after = Ledger(home.ledger).sites()
    assert after[old.site].state == "revoked" and after[done["site"]].state == "active"
    assert after[done["site"]].capacity == 50, "a rotation must not raise the capacity"
    assert after[other.site].state == "active"
    with pytest.raises(PolicyError, match="old key is not active"):
        sites.rotate(home, tmp_path / "rotation.json")


def test_rotation_by_another_site_or_under_another_name_is_refused(home: Layout, tmp_path: Path) -> None:
    old, signing = enrolled(home, "kiel")
    _, other = enrolled(home, "other")
    with pytest.raises(PolicyError, match="not signed"):
        sites.rotate(home, asked(home, tmp_path, old, other))
    with pytest.raises(PolicyError, match="no active site has this name and key"):
        sites.rotate(home, asked(home, tmp_path, old, signing, "other"))
    assert Ledger(home.ledger).sites()[old.site].state == "active"
