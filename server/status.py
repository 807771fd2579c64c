"""What the coordinator's files say of a federation: now (status) and round by round (history)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from usfmae.core.federated.messages import VerdictCode
from usfmae.server.dashboard.view import History, overview
from usfmae.server.layout import Layout
from usfmae.server.ledger import Ledger, Round, RoundState, Verdict
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


def history(ledger: Ledger) -> list[dict[str, Any]]:
    """Every committed round, oldest first: JSON values."""
    names = {site.site: site.name for site in ledger.sites().values()}
    return [_line(ledger, round_, names) for round_ in ledger.rounds() if round_.state == RoundState.COMMITTED]


def _line(ledger: Ledger, record: Round, names: Mapping[str, str]) -> dict[str, Any]:
    summary = record.summary or {}
    gate, panel = summary.get("gate", {}), summary.get("panel", {})
    verdicts = {names.get(site, site): v.verdict for site, v in ledger.verdicts(record.number).items()}
    return {
        "round": record.number,
        "merged": sum(verdict == VerdictCode.ADMITTED for verdict in verdicts.values()),
        "not_merged": {name: verdict for name, verdict in sorted(verdicts.items()) if verdict != VerdictCode.ADMITTED},
        "gate": gate.get("outcome"),
        "kept": gate.get("share"),
        "worst": gate.get("worst"),
        "excess": gate.get("excess"),
        "reason": gate.get("reason", ""),
        "change": {o: values["loss"] / panel["seed"][o] - 1 for o, values in panel.get("organs", {}).items()},
        "backward_transfer": panel.get("backward_transfer"),
        "result": record.result,
    }


def table(rounds: Sequence[Mapping[str, Any]]) -> str:
    """The same in Markdown; losses over the seed's, minus 1, of the encoder that the round ended with."""
    organs = sorted({organ for line in rounds for organ in line["change"]})
    head = ["round", "merged", "not merged", "gate", "kept", "whole round, worst organ", *organs, "encoder"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for line in rounds:
        cells = [
            str(line["round"]),
            str(line["merged"]),
            ", ".join(f"{name}: {verdict}" for name, verdict in line["not_merged"].items()) or "-",
            line["gate"] or "-",
            "-" if line["kept"] is None else f"{line['kept']:.0%}",
            "-" if line["worst"] is None else f"{line['worst']} {line['excess']:+.1%}",
            *(f"{line['change'][organ]:+.1%}" if organ in line["change"] else "-" for organ in organs),
            (line["result"] or "-")[:12],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
