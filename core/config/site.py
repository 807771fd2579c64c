"""Options of a site: what a hospital decides for itself, in its own site.yaml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from usfmae.core.config.base import Options
from usfmae.core.config.clean import CleanSettings
from usfmae.core.config.privacy import PrivacySettings
from usfmae.core.config.read import ReadSettings
from usfmae.core.config.sources import (
    CstoreSettings,
    DicomwebSettings,
    IntakeSettings,
    MetricsSettings,
    NotifySettings,
    PageSettings,
    StowSettings,
)

_WINDOW = re.compile(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d")
_SERVER = re.compile(r"https://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})/?")


class SiteReadSettings(ReadSettings):
    follow_links: bool = False
    """Follow links to folders outside of the sources, each folder once. Who may write into a source could make one."""


class SiteSettings(Options):
    PROGRAM: ClassVar[str] = "usfmae-client"

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
    """Name under which the coordinator lists this site; letters, digits, '_', '-', '.'."""
    server: str
    """Address of the aggregator, https://HOST:PORT. The one outbound connection of this site."""
    sources: tuple[Path, ...] = ()
    """Folders, files or archives with ultrasound; read, never written."""
    proxy: str | None = None
    """HTTP proxy for the connection, http://HOST:PORT; by default HTTPS_PROXY and NO_PROXY of the environment."""
    custodian: str = Field("", pattern=r"^([A-Za-z0-9+/]{43}=)?$")
    """Public key of the custodian, the `box_key` in its custodian.json. With one, this site takes part in sealed rounds
    alone: its updates leave under masks that only this custodian can take off, and only from a sum of three or more."""
    release: Literal["auto", "approve"] = "auto"
    """auto: a finished update leaves at once. approve: it waits for 'usfmae-client outbox approve'."""
    capacity: int = Field(1_000_000, ge=1, le=10**9)
    """Images this site may claim at most in one reply; the coordinator enrols this figure."""
    image_size: int = Field(224, ge=16, le=1024)
    """Side of the square images in this site's corpus, in pixels; at least the campaign's."""
    replay: Path | None = None
    """A copy of the coordinator's public replay corpus on this machine; without one it is fetched into DIR/replay."""
    replay_gb: float = Field(1.0, ge=0)
    """A replay corpus larger than this is not fetched, in gigabytes; 0 fetches none."""
    new_share: float = Field(0.0, ge=0, le=0.9)
    """Share of a round's draws that goes to images never trained on before; 0 treats new and old alike."""
    new_repeats: int = Field(4, ge=1)
    """A new image is drawn at most this many times as often as an old one, however few there are."""
    quiet: tuple[str, ...] = ()
    """Times of day (local, HH:MM-HH:MM) in which this site neither trains nor transfers; may pass midnight."""
    disk_floor_gb: float = Field(2.0, ge=0)
    """Nothing is downloaded or trained while less than this is free on the site's disk, in gigabytes."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+(,\d+)*)?)$")
    """Where to train: auto, cpu, cuda, cuda:1, or cuda:0,1 for several GPUs through torchrun."""
    micro_batch: int | None = Field(None, ge=1)
    """Images per pass on this site's device where the campaign's figure does not fit; the result stays the same."""
    threads: int = Field(0, ge=0)
    """CPU threads of the training process; 0 leaves the choice to PyTorch."""
    warm: float = Field(120.0, ge=0)
    """Seconds the training process stays ready after a round, its GPU memory with it; 0 ends it at once."""
    poll: float = Field(2.0, ge=0.1, le=300)
    """Seconds between two looks for work at the aggregator."""
    heartbeat: float = Field(60.0, ge=10, le=1800)
    """Seconds between two signs of life; after twice as long without one the aggregator sees this site offline."""
    stop_wait: float = Field(60.0, ge=1)
    """Seconds given to the training process to write its checkpoint when the agent ends."""
    max_model_gb: float = Field(4.0, gt=0)
    """A larger model than this is refused before it is downloaded, in gigabytes."""
    max_norm_ratio: float = Field(3.0, gt=1)
    """An incoming tensor whose norm differs from its signed parent's by more than this factor is refused."""
    fab: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    """For a stock SuperNode alone: SHA-256 of the app this site agreed to; any other is refused and audited."""
    keep_rounds: int = Field(3, ge=1)
    """Rounds whose base, update and training log stay on disk to answer a repeated request."""
    privacy: PrivacySettings = PrivacySettings()
    """What every request must keep to; no coordinator can change it."""
    read: SiteReadSettings = SiteReadSettings()
    """Reading scans."""
    clean: CleanSettings = CleanSettings()
    """Removing everything that is not tissue."""
    dicomweb: DicomwebSettings = DicomwebSettings()
    """Pulling new studies from the PACS."""
    cstore: CstoreSettings = CstoreSettings()
    """Receiving studies the PACS or a scanner sends."""
    stow: StowSettings = StowSettings()
    """Receiving what a gateway pushes over HTTP."""
    intake: IntakeSettings = IntakeSettings()
    """Cleaning new scans while the agent runs."""
    metrics: MetricsSettings = MetricsSettings()
    """Figures for Prometheus."""
    notify: NotifySettings = NotifySettings()
    """Telling persons that something waits for them."""
    page: PageSettings = PageSettings()
    """The site's own web page."""

    @field_validator("server")
    @classmethod
    def _is_https(cls, value: str) -> str:
        address = _SERVER.fullmatch(value)
        if not address or not 0 < int(address[2]) < 65536:
            raise ValueError("not of the form https://HOST:PORT")
        return value.rstrip("/")

    @field_validator("quiet")
    @classmethod
    def _are_windows(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for window in value:
            if not _WINDOW.fullmatch(window):
                raise ValueError(f"'{window}' is not of the form HH:MM-HH:MM")
        return value
