"""Options of scans that come over the network: a DICOMweb pull, a C-STORE listener, and the metrics endpoint."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path

from pydantic import Field, field_validator

from usfmae.core.config.base import Options

_UID = re.compile(r"[0-2](\.(0|[1-9]\d*))+")  # PS3.5 section 9.1


def _uids(value: tuple[str, ...]) -> tuple[str, ...]:
    for uid in value:
        if len(uid) > 64 or not _UID.fullmatch(uid):
            raise ValueError(f"'{uid}' is no UID such as 1.3.46.670589.2.5.1.1")
    return value


class DicomwebSettings(Options):
    url: str = Field("", pattern=r"^(https?://.+)?$")
    """DICOMweb root of the PACS, such as https://pacs.hospital.example/dicom-web; empty switches the pull off."""
    user: str = ""
    """Name for HTTP basic authentication; empty for none."""
    password_file: Path | None = None
    """File that holds the password; a password never stands in the configuration."""
    token_file: Path | None = None
    """File that holds a bearer token, used instead of a password."""
    ca_file: Path | None = None
    """Certificate authority of the PACS where it is not a public one."""
    since: str = Field("", pattern=r"^(\d{8})?$")
    """First study date to pull, YYYYMMDD; empty pulls everything the PACS has."""
    lookback_days: int = Field(7, ge=0, le=3650)
    """Studies this many days before the newest one pulled are asked for again: instances may arrive late."""
    modality: str = Field("US", min_length=1, max_length=16)
    """Modality of the series to pull."""
    per_second: float = Field(5.0, gt=0, le=1000)
    """Requests a second at most: a PACS in clinical use comes first."""
    timeout: float = Field(60.0, gt=0, le=3600)
    """Seconds to wait for the PACS before the pull stops and goes on at the next interval."""
    interval_minutes: float = Field(60.0, gt=0)
    """Minutes between two pulls."""
    max_studies: int = Field(10_000, ge=1)
    """Studies with something new that one pull opens at most; the next pull goes on."""


class CstoreSettings(Options):
    port: int = Field(0, ge=0, le=65535)
    """Port to listen on for C-STORE; 0 switches the listener off. 11112 is the registered DICOM port."""
    host: str = "127.0.0.1"
    """Address to listen on; the default is reachable from this machine only."""
    ae_title: str = Field("USFMAE", min_length=1, max_length=16)
    """Our own application entity title; senders that call another one are rejected."""
    allow: tuple[str, ...] = ()
    """Calling AE titles that may send, such as [PACS1, ULTRASOUND2]; none may while this is empty."""
    sop_classes: tuple[str, ...] = ()
    """Storage SOP classes to accept besides ultrasound, by UID: private ones of a scanner, for example."""
    associations: int = Field(8, ge=1, le=256)
    """Associations at the same time; more are rejected with "try later"."""
    idle_seconds: float = Field(60.0, gt=0, le=3600)
    """An association in which no instance comes for this long is ended; to echo does not keep it."""
    certificate: Path | None = None
    """PEM certificate of the listener; with `key`, associations use TLS."""
    key: Path | None = None
    """PEM private key of the listener."""
    client_ca: Path | None = None
    """Certificate authority of the senders; where given, a sender without a certificate of it is refused."""

    _are_uids = field_validator("sop_classes")(_uids)


class StowSettings(Options):
    port: int = Field(0, ge=0, le=65535)
    """Port to listen on for STOW-RS, for gateways that push over HTTP; 0 switches it off."""
    host: str = "127.0.0.1"
    """Address to listen on; the default is reachable from this machine only. The token stands in SITE/keys/stow.token."""
    sop_classes: tuple[str, ...] = ()
    """Storage SOP classes to accept besides ultrasound, by UID."""
    idle_seconds: float = Field(60.0, gt=0, le=3600)
    """A request whose body does not go on for this long is ended."""
    certificate: Path | None = None
    """PEM certificate; with `key`, the service speaks HTTPS."""
    key: Path | None = None
    """PEM private key."""

    _are_uids = field_validator("sop_classes")(_uids)


class IntakeSettings(Options):
    every_minutes: float = Field(0.0, ge=0)
    """Minutes between two cleanings of what is new in the sources while the agent runs; 0 leaves it to `prepare`."""
    max_instance_gb: float = Field(4.0, gt=0, le=1000)
    """A larger instance is not taken in over the network, in gigabytes."""
    workers: int = Field(1, ge=1, le=256)
    """Decoding processes of such a cleaning; they run with the lowest priority."""
    keep_days: float = Field(0.0, ge=0, le=3650)
    """Days after which a scan that came over the network and was cleaned is deleted; 0 deletes it at once.

    Until then the page shows it as recorded. Where the disk floor is near, such scans go first.
    """


class MetricsSettings(Options):
    host: str = "127.0.0.1"
    """Address of the Prometheus endpoint; loopback unless you choose otherwise."""
    port: int = Field(0, ge=0, le=65535)
    """Port of the Prometheus endpoint; 0 switches it off."""


class NoticeKind(StrEnum):
    """What a person may be told about without looking."""

    APPROVAL = "approval"  # an update waits in the outbox
    CAMPAIGN = "campaign"  # the coordinator asks for something new
    QUARANTINE = "quarantine"  # frames were kept back
    FAILED = "failed"  # a training, a request or a round came to nothing
    REFUSED = "refused"  # at the coordinator: a reply was not admitted


class NotifySettings(Options):
    command: tuple[str, ...] = ()
    """Program with its arguments, run for each notice: a JSON object comes on its standard input. Empty for none."""
    webhook: str = Field("", pattern=r"^(https?://[^/\s]+.*)?$")
    """Address that gets the notice as JSON, as chat programs take it. Addresses outside the local network are refused."""
    mail: tuple[str, ...] = ()
    """Mail addresses; the mail goes to this machine's own mail program, never to another server by itself."""
    sendmail: Path = Path("/usr/sbin/sendmail")
    """That mail program."""
    kinds: tuple[NoticeKind, ...] = tuple(NoticeKind)
    """What is told: approval, campaign, quarantine, failed, refused."""
    every_minutes: float = Field(30.0, ge=0)
    """A notice of one kind goes out at most this often; what comes between is counted in the next one."""


class PageSettings(Options):
    host: str = "127.0.0.1"
    """Address of the web page; loopback unless you put a TLS proxy in front."""
    port: int = Field(0, ge=0, le=65535)
    """Port of the web page; 0 switches it off."""
    names: tuple[str, ...] = ()
    """Further host names the page may be reached under, as a proxy in front passes them on."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses of proxies that have logged a person in already (oauth2-proxy and the like); empty trusts none."""
    user_header: str = "X-Forwarded-User"
    """Header in which a trusted proxy names that person; it must remove one that came from outside."""
