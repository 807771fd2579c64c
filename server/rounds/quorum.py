"""What a round's verdicts mean: how they are announced, and whether the round may end."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from usfmae.core import audit
from usfmae.core.config.coordinator import RoundSettings
from usfmae.core.errors import PolicyError
from usfmae.core.federated.messages import VerdictCode
from usfmae.core.log import note
from usfmae.server.layout import Layout
from usfmae.server.ledger import CLOSE, Ledger, RoundState, Verdict

logger = logging.getLogger(__name__)


def announce(home: Layout, verdict: Verdict, name: str) -> None:
    """In the audit log and in the program's; `name` of the site."""
    status = "ok" if verdict.verdict in (VerdictCode.ADMITTED, VerdictCode.DECLINED) else "refused"
    fields: dict[str, Any] = {"round": verdict.round, "verdict": verdict.verdict, "detail": verdict.detail}
    more: dict[str, Any] = {"name": name, "content": verdict.content, "images": verdict.images}
    audit.append(home.audit, "gate", "reply", status, site=verdict.site, **fields, **more)
    note(logger, "verdict", site=name, **fields)


@dataclass(frozen=True)
class RoundEnd:
    """When a round ends, and whom it waits for until then."""

    closes: float | None  # Unix time; None while its quorum is missing
    admitted: int
    waits_for: tuple[str, ...]  # sites that have not answered
    not_waited_for: tuple[str, ...]  # sites that have not answered, nor in the rounds before

    def due(self, now: float) -> bool:
        return self.closes is not None and (not self.waits_for or now >= self.closes)


@dataclass(frozen=True)
class Attendance:
    """Which sites a round may expect."""

    active: Collection[str]  # enrolled
    connected: Collection[str]
    silent: Collection[str] = ()  # have answered in none of the last rounds


def closing(verdicts: Mapping[str, Verdict], sites: Attendance, opened: float, rules: RoundSettings) -> RoundEnd:
    """At once when everyone has answered; with a quorum, when the others have had their time; else not yet.

    Their time is the longer of `grace` and `grace_factor` times the median answer of this round, but
    `deadline` at most, and `patience` where none of them is connected.
    """
    active, silent = sites.active, set(sites.silent)
    admitted = [verdicts[s] for s in active if s in verdicts and verdicts[s].verdict == VerdictCode.ADMITTED]
    missing = set(active) - set(verdicts)
    waited = tuple(sorted(missing - silent))
    passed_over = tuple(sorted(missing & silent))
    if len(admitted) < max(rules.quorum, 1):
        return RoundEnd(None, len(admitted), waited, passed_over)
    usual = statistics.median(max(0.0, verdict.received - opened) for verdict in admitted)
    limit = min(rules.deadline, max(rules.grace, rules.grace_factor * usual))
    if not set(waited) & set(sites.connected):
        limit = min(limit, rules.patience)
    return RoundEnd(opened + (limit if waited else 0.0), len(admitted), waited, passed_over)


def hopeless(verdicts: Mapping[str, Verdict], active: Collection[str], age: float, rules: RoundSettings) -> bool:
    """The deadline has passed, and the gate refused so many that those who may still answer are no quorum."""
    refused = [
        s for s in active if s in verdicts and verdicts[s].verdict not in (VerdictCode.ADMITTED, VerdictCode.DECLINED)
    ]
    return age > rules.deadline and bool(refused) and len(active) - len(refused) < rules.quorum


def close_now(home: Layout) -> dict[str, Any]:
    """Have the open round closed with what is admitted. PolicyError where none is open, or its quorum is missing."""
    ledger = Ledger(home.ledger)
    opened = ledger.last_round(RoundState.OPEN)
    if opened is None:
        raise PolicyError("round", "none is open", "see 'usfmae-server status'")
    admitted = sum(v.verdict == VerdictCode.ADMITTED for v in ledger.verdicts(opened.number).values())
    quorum = max(home.settings().rounds.quorum, 1)
    if admitted < quorum:
        why = f"has {admitted} admitted updates; its quorum is {quorum}"
        raise PolicyError(f"round {opened.number}", why, "wait for more, or lower rounds.quorum and start again")
    ledger.set_fact(CLOSE, str(opened.number))
    audit.append(home.audit, "coordinator", "round-close", round=opened.number, admitted=admitted)
    return {"round": opened.number, "admitted": admitted}
