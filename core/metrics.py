"""Every metric once: its name, kind, labels and meaning, and the page that Prometheus reads.

Values are read from the state on disk (ledger, inventory, training log) at the moment of a scrape, so that counters
survive a restart and no process has to tell another. A label carries a short code from a closed list or the name a
site was enrolled under; anything that is not such a code (a path, a UID, a person's name) becomes "other".
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from usfmae.core import __version__

logger = logging.getLogger(__name__)

_CODE = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")  # a UID has no letter, a path a slash

# One value, or one value per label value: {"text-left": 3, "unreadable": 1}.
Values = float | Mapping[str, float]


@dataclass(frozen=True)
class Described:
    """One metric: `usfmae_` prefix, base units, `_total` on counters (prometheus.io/docs/practices/naming)."""

    name: str
    kind: str  # "gauge" or "counter"
    text: str
    label: str = ""  # at most one label each


def _gauge(name: str, text: str, label: str = "") -> Described:
    return Described(name, "gauge", text, label)


def _counter(name: str, text: str, label: str = "") -> Described:
    return Described(name, "counter", text, label)


SITE = (
    _gauge("usfmae_site_info", "1, with the version that runs", "version"),
    _counter("usfmae_site_scans_total", "Scans read from the sources"),
    _counter("usfmae_site_frames_kept_total", "Frames cleaned and packed into the corpus"),
    _counter("usfmae_site_quarantined_total", "Scans and frames kept back for a person, by reason", "reason"),
    _gauge("usfmae_site_quarantine_waiting", "Entries in quarantine nobody has decided on"),
    _counter(
        "usfmae_site_received_total",
        "Instances taken in over the network, by source, and what was not taken (cstore.rejected and others)",
        "source",
    ),
    _gauge("usfmae_site_spool_files", "Instances received and not yet cleaned"),
    _gauge("usfmae_site_images", "Images in the corpus, ready for training"),
    _gauge("usfmae_site_clean_images_per_second", "Cleaning rate of the last preparation"),
    _gauge("usfmae_site_round", "Round of the last request, 0 before the first"),
    _gauge("usfmae_site_training_step", "Step the last local training has reached"),
    _gauge("usfmae_site_step_seconds", "Seconds an optimizer step takes, last log line"),
    _gauge("usfmae_site_loss", "Masked reconstruction loss, last log line"),
    _gauge("usfmae_site_data_wait_ratio", "Share of a step spent waiting for data, last log line"),
    _gauge("usfmae_site_gpu_memory_bytes", "Memory in use on each GPU, by whatever process", "gpu"),
    _gauge("usfmae_site_gpu_utilization_ratio", "Share of time each GPU was busy", "gpu"),
    _gauge("usfmae_site_disk_free_bytes", "Free space where the site's directory lies"),
    _counter("usfmae_site_updates_sent_total", "Encoder updates that left"),
    _counter("usfmae_site_bytes_sent_total", "Bytes of encoder updates that left"),
    _gauge("usfmae_site_outbox_waiting", "Updates staged that wait for approval or sending"),
    _gauge("usfmae_site_last_contact_timestamp_seconds", "Unix time the aggregator last answered"),
    _gauge("usfmae_site_paused", "1 while paused"),
)

SERVER = (
    _gauge("usfmae_server_info", "1, with the version that runs", "version"),
    _gauge("usfmae_server_round", "Last committed round"),
    _counter("usfmae_server_rounds_total", "Rounds that ended, by outcome", "outcome"),
    _gauge("usfmae_server_last_round_timestamp_seconds", "Unix time of the last committed round"),
    _gauge("usfmae_server_round_seconds", "Duration of the last committed round"),
    _gauge("usfmae_server_sites", "Enrolled sites, by state", "state"),
    _gauge("usfmae_server_site_last_contact_timestamp_seconds", "Unix time a site last spoke", "site"),
    _counter("usfmae_server_verdicts_total", "Replies by verdict of the admission gate", "verdict"),
    _counter("usfmae_server_bytes_received_total", "Bytes of admitted and refused replies"),
    _gauge("usfmae_server_loss_before", "Held-out loss at the sites before the last round, by images"),
    _gauge("usfmae_server_loss_after", "Held-out loss at the sites after their training, by images"),
    _gauge(
        "usfmae_server_panel_loss", "Masked loss on the public panel, with a decoder refitted on the encoder", "organ"
    ),
    _gauge("usfmae_server_panel_seed_decoder_loss", "The same with the seed's decoder, which does not follow", "organ"),
    _gauge("usfmae_server_panel_forgetting_ratio", "Panel loss over the seed's, minus 1; above 0 is worse", "organ"),
    _gauge("usfmae_server_panel_knn_ratio", "Balanced accuracy of kNN on the panel's features", "organ"),
    _gauge("usfmae_server_panel_probe_ratio", "Balanced accuracy of the linear probe on the panel's features", "organ"),
    _gauge("usfmae_server_panel_cka_ratio", "Similarity (linear CKA) of the panel's features to the seed's", "organ"),
    _gauge("usfmae_server_backward_transfer_ratio", "Mean change of the old organs' panel loss since the seed"),
    _gauge("usfmae_server_update_cosine", "Cosine of two sites' updates in the last round, over all pairs", "pairs"),
    _counter("usfmae_server_gate_total", "Rounds by what the forgetting gate did with them", "outcome"),
    _gauge("usfmae_server_certificate_expiry_timestamp_seconds", "Unix time the server certificate ends"),
    _gauge("usfmae_server_certificate_days_left", "Days until the server certificate ends"),
    _gauge("usfmae_server_disk_free_bytes", "Free space where the campaign's directory lies"),
)

ALL = {metric.name: metric for metric in SITE + SERVER}


def label_code(value: str) -> str:
    """The value if it is a short code, else "other": the last net against identifiers in labels."""
    return value if _CODE.fullmatch(value) else "other"


class _Snapshot(Collector):
    """Turns what `read` returns into metric families; a name that is not in the table above is a bug."""

    def __init__(self, read: Callable[[], Mapping[str, Values]], info: str, fresh_seconds: float) -> None:
        self.read, self.info, self.fresh_seconds = read, info, fresh_seconds
        self.taken = 0.0
        self.values: Mapping[str, Values] = {}

    def collect(self) -> Iterator[Metric]:
        if time.monotonic() - self.taken >= self.fresh_seconds or not self.taken:
            self.values, self.taken = self.read(), time.monotonic()
        version = GaugeMetricFamily(self.info, ALL[self.info].text, labels=["version"])
        version.add_metric([__version__], 1.0)
        yield version
        for name, values in self.values.items():
            yield _family(ALL[name], values)


def _family(metric: Described, values: Values) -> Metric:
    kind: Any = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    if not metric.label:
        single: Metric = kind(metric.name, metric.text, value=float(values))  # type: ignore[arg-type]
        return single
    family: CounterMetricFamily | GaugeMetricFamily = kind(metric.name, metric.text, labels=[metric.label])
    summed: dict[str, float] = {}
    for label, value in values.items():  # type: ignore[union-attr]
        code = label_code(label)
        summed[code] = summed.get(code, 0.0) + value
    for code, value in sorted(summed.items()):
        family.add_metric([code], value)
    return family


def registry(read: Callable[[], Mapping[str, Values]], side: str, fresh_seconds: float = 1.0) -> CollectorRegistry:
    """A registry for one side ("site" or "server"); `read` gives the values at the moment of a scrape."""
    collectors = CollectorRegistry(auto_describe=False)
    collectors.register(_Snapshot(read, f"usfmae_{side}_info", fresh_seconds))
    return collectors


def text(source: CollectorRegistry) -> bytes:
    """The Prometheus text page."""
    return generate_latest(source)
