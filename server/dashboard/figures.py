"""The aggregator's metrics, read from the ledger."""

from __future__ import annotations

import shutil
import time
from collections import Counter

from cryptography import x509

from usfmae.core.metrics import Values
from usfmae.server.dashboard.view import History, reading, rows, sites
from usfmae.server.layout import Layout

# What a panel's reading of an organ is called among the metrics.
PANEL = {
    "loss": "panel_loss",
    "seed_decoder_loss": "panel_seed_decoder_loss",
    "forgetting": "panel_forgetting_ratio",
    "knn": "panel_knn_ratio",
    "probe": "panel_probe_ratio",
    "cka": "panel_cka_ratio",
}


def figures(home: Layout, history: History) -> dict[str, Values]:
    """Every metric of `core.metrics.SERVER` this federation has a value for."""
    with reading(home) as db:
        every, sums, verdicts = history.read(db)
        site_rows = sites(db, sums)
        refused = rows(db, "SELECT verdict, COUNT(*) AS n FROM refusals GROUP BY verdict")
    metrics: dict[str, Values] = {
        "usfmae_server_rounds_total": dict(Counter(str(r["state"]) for r in every)),
        "usfmae_server_sites": _states(site_rows),
        "usfmae_server_site_last_contact_timestamp_seconds": {s["name"]: s["seen"] for s in site_rows if s["seen"]},
        "usfmae_server_verdicts_total": dict(Counter(verdicts) + Counter({r["verdict"]: r["n"] for r in refused})),
        "usfmae_server_bytes_received_total": float(sum(given.bytes for given in sums.values())),
        "usfmae_server_disk_free_bytes": float(shutil.disk_usage(home.root).free),
        "usfmae_server_round": 0.0,
    }
    ends = certificate_end(home)
    if ends:
        metrics["usfmae_server_certificate_expiry_timestamp_seconds"] = ends
        metrics["usfmae_server_certificate_days_left"] = (ends - time.time()) / 86400
    gated = Counter(str(r["summary"]["gate"]["outcome"]) for r in every if "gate" in r["summary"])
    if gated:
        metrics["usfmae_server_gate_total"] = dict(gated)
    last = next((r for r in every if r["state"] == "committed"), None)
    if last:
        metrics |= _last_round(last)
    return metrics


def _states(site_rows: list[dict[str, object]]) -> dict[str, float]:
    states = {"connected": 0.0, "away": 0.0, "revoked": 0.0}
    for site in site_rows:
        state = "revoked" if site["state"] == "revoked" else "connected" if site["connected"] else "away"
        states[state] += 1
    return states


def _last_round(last: dict[str, object]) -> dict[str, Values]:
    summary = last["summary"]
    assert isinstance(summary, dict)
    metrics: dict[str, Values] = {
        "usfmae_server_round": float(str(last["number"])),
        "usfmae_server_last_round_timestamp_seconds": float(str(last["committed"])),
        "usfmae_server_round_seconds": float(str(last["seconds"])),
    }
    for key in ("loss_before", "loss_after"):
        if summary.get(key) is not None:
            metrics[f"usfmae_server_{key}"] = float(summary[key])
    panel = last["panel"]
    assert isinstance(panel, dict)
    for key, name in PANEL.items():
        values = {organ: float(v[key]) for organ, v in panel.items() if v.get(key) is not None}
        if values:
            metrics[f"usfmae_server_{name}"] = values
    if "backward_transfer" in summary.get("panel", {}):
        metrics["usfmae_server_backward_transfer_ratio"] = float(summary["panel"]["backward_transfer"])
    if summary.get("cosines"):
        pairs = [float(cosine) for _, _, cosine in summary["cosines"]]
        metrics["usfmae_server_update_cosine"] = {"lowest": min(pairs), "mean": sum(pairs) / len(pairs)}
    return metrics


def certificate_end(home: Layout) -> float | None:
    """Unix time at which the server's certificate or its CA's ends, whichever comes first; None without one."""
    ends = []
    for file in (home.certificate, home.ca):
        try:
            ends.append(x509.load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc.timestamp())
        except (OSError, ValueError):
            continue
    return min(ends, default=None)
