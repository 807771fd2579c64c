"""What a coordinator asks: where the campaign is, who is enrolled, who was admitted, which checkpoint is the last."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from usfmae.server.dashboard.view import History, overview
from usfmae.server.layout import Layout
from usfmae.server.ledger import Ledger, RoundState, Verdict
from usfmae.server.sites import free_bytes, listed

SHOWN = (
    "verdict",
    "detail",
    "images",
    "steps",
    "bytes",
    "norm",
    "scale",
    "weight",
    "loss_before",
    "loss_after",
    "seconds",
)


def status(home: Layout) -> dict[str, Any]:
    """One JSON object; reads the ledger and the settings, so it works beside a running aggregator and after it."""
    ledger = Ledger(home.ledger)
    rounds = ledger.rounds()
    committed = [r for r in rounds if r.state == RoundState.COMMITTED]
    opened = next((r for r in rounds if r.state == RoundState.OPEN), None)
    names = {site: entry.name for site, entry in ledger.sites().items()}
    last = committed[-1] if committed else None
    shown = overview(home, History())
    return {
        "campaign": ledger.fact("campaign"),
        "planned": shown.planned,
        "running": home.address.exists(),
        "address": home.address.read_text().strip() if home.address.exists() else None,
        "round": last.number if last else 0,
        "open_round": opened.number if opened else None,
        "open_since_seconds": round(time.time() - opened.opened, 1) if opened else None,
        "waiting_for": shown.closing.missing if shown.closing else [],
        "closes_at": shown.closing.deadline if shown.closing else None,
        "waits": shown.closing.text if shown.closing else shown.between,
        "not_waited_for": shown.closing.silent if shown.closing else [],
        "sites": listed(home),
        "checkpoint": str(home.checkpoint(last.number if last else 0)),
        "hash": last.result if last else None,
        "rounds": [
            {
                "round": r.number,
                "state": f"void: {r.summary['void']}" if r.summary and "void" in r.summary else r.state,
                "base": r.base,
                "result": r.result,
                "seconds": round(r.committed - r.opened, 3) if r.committed else None,
                "summary": r.summary,
                "verdicts": [_shown(v, names) for v in ledger.verdicts(r.number).values()],
            }
            for r in rounds
        ],
        "refusals": ledger.refusals()[-50:],
        "disk_free_bytes": free_bytes(home),
    }


def _shown(verdict: Verdict, names: dict[str, str]) -> dict[str, Any]:
    values = asdict(verdict)
    return {"site": verdict.site, "name": names.get(verdict.site, "?"), **{key: values[key] for key in SHOWN}}
