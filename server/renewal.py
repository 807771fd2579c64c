"""The server's certificate in time: when it ends, a new one from the federation's own CA, or one brought along.

Sites trust the CA, not the certificate, so renewing asks nothing of them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from usfmae.core import audit, keys
from usfmae.core.errors import ConfigError
from usfmae.core.files import replacing, write_atomic
from usfmae.server import certificates
from usfmae.server.layout import Layout

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
    server, authority = read(home.certificate), read(home.ca)
    try:
        names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        shown = [str(getattr(name, "value", name)) for name in names]
    except x509.ExtensionNotFound:
        shown = []
    return {
        "names": shown,
        "ends": server.not_valid_after_utc.isoformat(),
        "days_left": round(days_left(server), 1),
        "ca_ends": authority.not_valid_after_utc.isoformat(),
        "ca_days_left": round(days_left(authority), 1),
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
    pem = certificates.server(settings.network.names, key.public_key(), home.ca.read_bytes(), authority_key)
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
