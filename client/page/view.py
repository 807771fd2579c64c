"""What the site's page and its metrics show, from the site's files alone."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

from usfmae.client import outbox, site_policy, status
from usfmae.client.intake.spool import SPOOL
from usfmae.client.review import quarantine
from usfmae.client.rounds import campaigns
from usfmae.client.rounds.campaigns import CampaignState
from usfmae.client.site import Site, read_json
from usfmae.core.metrics import Values

# A training log's key -> the metric it feeds.
TRAINING = {
    "step": "training_step",
    "seconds": "step_seconds",
    "loss": "loss",
    "data_wait": "data_wait_ratio",
}


def overview(site: Site, intake: quarantine.Intake, shelf: outbox.Outbox | None = None) -> dict[str, Any]:
    """Everything on the first page; `intake` and `shelf` keep what cannot change between two calls."""
    intake.refresh(site.corpus)
    agent_status = read_json(site.root / "status.json") or {}
    return {
        **status.summary(site, shelf),
        "said": float(agent_status.get("time", 0.0)),
        "counts": intake.counts,
        "reasons": intake.reasons.most_common(),
        "waiting": quarantine.waiting_by_reason(site, intake).total(),
        "campaigns_waiting": sum(one.state is CampaignState.WAITING for one in campaigns.agreements(site)),
        "spool": spool_files(site),
        "sources": len(site.settings.sources),
        "free": shutil.disk_usage(site.root).free,
        "floor": site.floor_bytes,
        "release": site.settings.release,
        "quiet": site_policy.quiet_until(site.settings.quiet, datetime.now()),
    }


QUESTIONS = {
    "text-left": "Can you read a name, a number or a date in the cleaned picture? Then drop it.",
    "text-unread": "Red is text that no engine reads. Is it a name or a number of a patient, and does any of it stay? Drop it.",
    "much-suspected": "Red is what would go. Is it writing or drawing? Then release. Is it tissue? Then drop.",
    "much-filled": "Red was filled. Is enough tissue left to learn from? Then release.",
    "face-or-photo": "Is this a face or a photograph? Then drop.",
    "not-speckle": "Is this an ultrasound picture of tissue, and nothing else? Then release.",
    "region-small": "Does the cleaned picture hold the scan, and no name or banner around it? Then release.",
    "region-disagrees": "Does the cleaned picture hold the scan, and no name or banner around it? Then release.",
}


def question(reason: str) -> str:
    """What a person is asked about a frame that was kept back for this reason."""
    return QUESTIONS.get(
        reason, "Is it a scan, and can no name, number or date be read in it? Then release, else drop."
    )


def spool_files(site: Site) -> int:
    return sum(1 for _ in (site.root / SPOOL).glob("*/*.dcm"))


def tail(log: Path, count: int) -> list[dict[str, Any]]:
    """The last entries; a damaged line is left out, the chain tells of it."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - count * 2000))
        lines = file.read().splitlines()[-count:]
    entries = []
    for line in lines:
        with contextlib.suppress(ValueError):
            entries.append(json.loads(line))
    return entries


def figures(site: Site, intake: quarantine.Intake, shelf: outbox.Outbox | None = None) -> dict[str, Values]:
    """Every metric of `core.metrics.SITE` this site has a value for."""
    totals = overview(site, intake, shelf)
    agent_status = read_json(site.root / "status.json") or {}
    received = read_json(site.root / "received.json") or {}
    values: dict[str, Values] = {
        "usfmae_site_scans_total": totals["counts"]["scans"],
        "usfmae_site_frames_kept_total": totals["counts"]["kept"],
        "usfmae_site_quarantined_total": dict(intake.held),
        "usfmae_site_quarantine_waiting": totals["waiting"],
        "usfmae_site_received_total": {k: float(v) for k, v in received.items() if isinstance(v, int | float)},
        "usfmae_site_spool_files": totals["spool"],
        "usfmae_site_images": totals["images"],
        "usfmae_site_clean_images_per_second": last_rate(site),
        "usfmae_site_round": totals["round"] or totals["last_sent"].get("round", 0),
        "usfmae_site_disk_free_bytes": totals["free"],
        "usfmae_site_updates_sent_total": totals["updates"]["sent"],
        "usfmae_site_bytes_sent_total": totals["sent_bytes"],
        "usfmae_site_outbox_waiting": totals["updates"]["waiting"],
        "usfmae_site_paused": totals["paused"],
    }
    if agent_status.get("contact"):  # also while offline: how long it has been is what an alert asks
        values["usfmae_site_last_contact_timestamp_seconds"] = float(agent_status["contact"])
    return values | _training(site) | _gpus()


def last_rate(site: Site) -> float:
    """Images per second of the last preparation, 0 before the first."""
    return float((read_json(site.root / "prepared.json") or {}).get("images_per_second", 0.0))


def _training(site: Site) -> dict[str, Values]:
    """Figures of the last line of the newest training log."""
    logs = sorted((site.root / "jobs").glob("*/log.jsonl"), key=lambda file: file.stat().st_mtime)
    if not logs:
        return {}
    with logs[-1].open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - 4096))
        lines = [line for line in file.read().split(b"\n") if line.startswith(b"{") and line.endswith(b"}")]
    last = json.loads(lines[-1]) if lines else {}
    values = {name: last.get(key) for key, name in TRAINING.items()}
    return {f"usfmae_site_{name}": float(value) for name, value in values.items() if value is not None}


def _gpus() -> dict[str, Values]:
    """Memory and utilisation of each GPU as NVIDIA's own tool tells them; nothing where it is absent."""
    program = shutil.which("nvidia-smi")
    if not program:
        return {}
    query = [program, "--query-gpu=index,memory.used,utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout
        rows = [[float(part) for part in line.split(",")] for line in output.splitlines() if line]
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}
    return {
        "usfmae_site_gpu_memory_bytes": {f"gpu{row[0]:.0f}": row[1] * 2**20 for row in rows},
        "usfmae_site_gpu_utilization_ratio": {f"gpu{row[0]:.0f}": row[2] / 100 for row in rows},
    }
