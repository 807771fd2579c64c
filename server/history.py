"""The ledger of a campaign as a table: a line a round, with what the forgetting gate did and what each organ lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from usfmae.core.federated.messages import VerdictCode
from usfmae.server.ledger import Ledger, Round, RoundState


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
