"""The federation's own certificate authority and the server's certificate: made, watched, renewed or replaced.

No outside party is asked. Sites trust the CA, not the certificate, so renewing asks nothing of them.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from usfmae.core import audit, keys
from usfmae.core.errors import ConfigError
from usfmae.core.files import replacing, write_atomic
from usfmae.server.layout import Layout

CA_YEARS = 10
SERVER_YEARS = 2


def _builder(subject: str, issuer: str, key: EllipticCurvePublicKey, years: int) -> x509.CertificateBuilder:
    start = datetime.now(UTC) - timedelta(hours=1)  # sites' clocks may lag a little
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=365 * years))
    )


def _usage(sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign,
        crl_sign=sign,
        encipher_only=False,
        decipher_only=False,
    )


def authority(name: str, key: EllipticCurvePrivateKey) -> bytes:
    """A self-signed CA certificate in PEM."""
    title = f"usfmae {name} CA"
    certificate = (
        _builder(title, title, key.public_key(), CA_YEARS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    return certificate.public_bytes(Encoding.PEM)


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def server(
    names: Sequence[str], key: EllipticCurvePublicKey, authority_pem: bytes, authority_key: EllipticCurvePrivateKey
) -> bytes:
    """A server certificate for these host names and addresses, in PEM."""
    issuer = x509.load_pem_x509_certificate(authority_pem)
    title = issuer.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    certificate = (
        _builder(names[0], str(title), key, SERVER_YEARS)
        .add_extension(x509.SubjectAlternativeName([_alternative(n) for n in dict.fromkeys(names)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    return certificate.public_bytes(Encoding.PEM)


WARN_DAYS = 30.0


def read(file: Path) -> x509.Certificate:
    """The first certificate of a PEM file; ConfigError where there is none."""
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"certificate {file}", error.strerror or str(error), "give an existing file") from None
    except ValueError:
        raise ConfigError(f"certificate {file}", "is not PEM", "give the certificate in PEM") from None


def summary(home: Layout) -> dict[str, Any]:
    """What the certificate and the CA are, and the days left."""
    current, ca = read(home.certificate), read(home.ca)
    try:
        names = current.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        shown = [str(getattr(name, "value", name)) for name in names]
    except x509.ExtensionNotFound:
        shown = []
    return {
        "names": shown,
        "ends": current.not_valid_after_utc.isoformat(),
        "days_left": round(days_left(current), 1),
        "ca_ends": ca.not_valid_after_utc.isoformat(),
        "ca_days_left": round(days_left(ca), 1),
    }


def days_left(certificate: x509.Certificate) -> float:
    return (certificate.not_valid_after_utc.timestamp() - time.time()) / 86400


def warning(home: Layout) -> str:
    """What to tell a person about a certificate that ends soon; empty while there is time."""
    try:
        left = days_left(read(home.certificate))
    except ConfigError as error:
        return str(error)
    if left > WARN_DAYS:
        return ""
    when = f"ends in {left:.0f} days" if left > 0 else "has ended: no site can connect"
    return f"the server's certificate {when}; renew it: usfmae-server certificate {home.root} --renew"


def renew(home: Layout) -> dict[str, Any]:
    """A new certificate from the federation's CA, for the same key and the configured names."""
    settings = home.settings()
    if not home.ca_key.exists():
        raise ConfigError(f"key {home.ca_key}", "is not here", "renew where it is kept, or bring --certificate")
    authority_key = keys.read_private(home.ca_key, EllipticCurvePrivateKey)
    key = keys.read_private(home.tls_key, EllipticCurvePrivateKey)
    pem = server(settings.network.names, key.public_key(), home.ca.read_bytes(), authority_key)
    write_atomic(home.certificate, pem)
    audit.append(home.audit, "coordinator", "certificate-renewed", ends=summary(home)["ends"])
    return summary(home)


def bring(home: Layout, certificate: Path, key: Path) -> dict[str, Any]:
    """Use a certificate and key made elsewhere. ConfigError unless they fit each other and are valid now."""
    parsed = read(certificate)
    try:
        private = load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"key {key}", str(error), "give an unencrypted PEM key") from None
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*form) != parsed.public_key().public_bytes(*form):
        raise ConfigError(f"certificate {certificate}", "does not belong to the key", "give the two of one pair")
    if days_left(parsed) <= 0:
        ended = f"ended {parsed.not_valid_after_utc:%Y-%m-%d}"
        raise ConfigError(f"certificate {certificate}", ended, "bring a new one")
    with replacing(home.tls_key) as partial:
        partial.touch(mode=0o600)
        partial.write_bytes(key.read_bytes())
    write_atomic(home.certificate, certificate.read_bytes())
    audit.append(home.audit, "coordinator", "certificate-brought", ends=summary(home)["ends"])
    return summary(home)
