"""Writes usfmae.json: the dashboard, from a short list of panels. python deploy/grafana/make.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SOURCE = {"type": "prometheus", "uid": "${source}"}

# title, unit, (expression, legend)..., a row starts with a plain string
PANELS: list[Any] = [
    "Aggregator",
    ("Committed rounds", "none", ("usfmae_server_round", "round")),
    ("Sites", "none", ("usfmae_server_sites", "{{state}}")),
    ("Since the last commit", "s", ("time() - usfmae_server_last_round_timestamp_seconds", "age")),
    ("Certificate ends in", "d", ("usfmae_server_certificate_days_left", "days")),
    ("Certificate ends on", "dateTimeAsIso", ("usfmae_server_certificate_expiry_timestamp_seconds * 1000", "end")),
    (
        "Held-out loss at the sites",
        "none",
        ("usfmae_server_loss_before", "before"),
        ("usfmae_server_loss_after", "after"),
    ),
    ("Panel loss by organ", "none", ("usfmae_server_panel_loss", "{{organ}}")),
    ("Panel loss by the seed's decoder, by organ", "none", ("usfmae_server_panel_seed_decoder_loss", "{{organ}}")),
    ("Forgetting by organ", "percentunit", ("usfmae_server_panel_forgetting_ratio", "{{organ}}")),
    ("kNN on the panel, by organ", "percentunit", ("usfmae_server_panel_knn_ratio", "{{organ}}")),
    ("Probe on the panel, by organ", "percentunit", ("usfmae_server_panel_probe_ratio", "{{organ}}")),
    ("Features like the seed's (CKA), by organ", "percentunit", ("usfmae_server_panel_cka_ratio", "{{organ}}")),
    ("Backward transfer", "percentunit", ("usfmae_server_backward_transfer_ratio", "old organs")),
    ("Likeness of updates (cosine)", "none", ("usfmae_server_update_cosine", "{{pairs}}")),
    ("Forgetting gate", "none", ("usfmae_server_gate_total", "{{outcome}}")),
    ("Verdicts an hour", "none", ("increase(usfmae_server_verdicts_total[1h])", "{{verdict}}")),
    ("Round duration", "s", ("usfmae_server_round_seconds", "last round")),
    ("Rounds by outcome", "none", ("usfmae_server_rounds_total", "{{outcome}}")),
    ("Received", "decbytes", ("increase(usfmae_server_bytes_received_total[1d])", "a day")),
    ("Since each site spoke", "s", ("time() - usfmae_server_site_last_contact_timestamp_seconds", "{{site}}")),
    ("Aggregator's disk free", "decbytes", ("usfmae_server_disk_free_bytes", "free")),
    ("Versions", "none", ("usfmae_server_info", "server {{version}}"), ("usfmae_site_info", "site {{version}}")),
    "Site",
    ("Scans and frames", "none", ("usfmae_site_scans_total", "scans"), ("usfmae_site_frames_kept_total", "kept")),
    ("Quarantined", "none", ("usfmae_site_quarantined_total", "{{reason}}")),
    (
        "Waiting for a person",
        "none",
        ("usfmae_site_quarantine_waiting", "frames"),
        ("usfmae_site_outbox_waiting", "updates"),
    ),
    (
        "Received over the network",
        "none",
        ("usfmae_site_received_total", "{{source}}"),
        ("usfmae_site_spool_files", "in spool"),
    ),
    ("Images in the corpus", "none", ("usfmae_site_images", "images")),
    ("Cleaning", "none", ("usfmae_site_clean_images_per_second", "images/s")),
    ("Training", "none", ("usfmae_site_loss", "loss")),
    ("Round and step", "none", ("usfmae_site_round", "round"), ("usfmae_site_training_step", "step")),
    ("Step time", "s", ("usfmae_site_step_seconds", "step")),
    ("Waiting for data", "percentunit", ("usfmae_site_data_wait_ratio", "share of a step")),
    ("GPU busy", "percentunit", ("usfmae_site_gpu_utilization_ratio", "{{gpu}}")),
    ("GPU memory", "decbytes", ("usfmae_site_gpu_memory_bytes", "{{gpu}}")),
    ("Sent", "decbytes", ("usfmae_site_bytes_sent_total", "bytes")),
    ("Updates sent", "none", ("usfmae_site_updates_sent_total", "updates")),
    ("Since the aggregator answered", "s", ("time() - usfmae_site_last_contact_timestamp_seconds", "age")),
    ("Paused", "none", ("usfmae_site_paused", "paused")),
    ("Site's disk free", "decbytes", ("usfmae_site_disk_free_bytes", "free")),
]


def panel(number: int, x: int, y: int, title: str, unit: str, lines: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "datasource": SOURCE,
        "gridPos": {"h": 7, "w": 6, "x": x, "y": y},
        "fieldConfig": {"defaults": {"unit": unit, "custom": {"fillOpacity": 8, "lineWidth": 2}}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(65 + i), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for i, (expression, legend) in enumerate(lines)
        ],
    }


def dashboard() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    x = y = 0
    for number, entry in enumerate(PANELS, 1):
        if isinstance(entry, str):
            y += 7 if x else 0
            panels.append(
                {"id": number, "type": "row", "title": entry, "collapsed": False, "panels": []}
                | {"gridPos": {"h": 1, "w": 24, "x": 0, "y": y}}
            )
            x, y = 0, y + 1
            continue
        title, unit, *lines = entry
        panels.append(panel(number, x, y, title, unit, lines))
        x, y = ((x + 6) % 24, y + (7 if x == 18 else 0))
    source = {"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    return {
        "uid": "usfmae",
        "title": "usfmae",
        "tags": ["usfmae"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "1m",
        "time": {"from": "now-7d", "to": "now"},
        "templating": {"list": [source]},
        "panels": panels,
    }


if __name__ == "__main__":
    target = Path(__file__).with_name("usfmae.json")
    target.write_text(json.dumps(dashboard(), indent=1) + "\n")
