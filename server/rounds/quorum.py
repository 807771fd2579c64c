"""What a round's verdicts mean: who hears of them, and whether the round may end."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from usfmae.core import audit
from usfmae.core.config.coordinator import RoundSettings
from usfmae.core.federated.messages import VerdictCode
from usfmae.core.log import note
from usfmae.server.layout import Layout
from usfmae.server.ledger import Verdict

logger = logging.getLogger(__name__)


def announce(home: Layout, verdict: Verdict, name: str) -> None:
    """In the audit log and in the program's; `name` of the site."""
    status = "ok" if verdict.verdict in (VerdictCode.ADMITTED, VerdictCode.DECLINED) else "refused"
    said: dict[str, Any] = {"round": verdict.round, "verdict": verdict.verdict, "detail": verdict.detail}
    more: dict[str, Any] = {"name": name, "content": verdict.content, "images": verdict.images}
    audit.append(home.audit, "gate", "reply", status, site=verdict.site, **said, **more)
    note(logger, "verdict", site=name, **said)


def may_close(
    verdicts: Mapping[str, Verdict], active: Collection[str], here: Collection[str], age: float, rules: RoundSettings
) -> bool:
    """Everyone has answered; or the quorum has, and the others are out of time.

    `active`: sites that are enrolled, `here`: those that are connected, `age`: seconds since the round was opened.
    """
    admitted = [site for site in active if site in verdicts and verdicts[site].verdict == VerdictCode.ADMITTED]
    if len(admitted) < max(rules.quorum, 1):
        return False
    missing = set(active) - set(verdicts)
    return not missing or age > rules.deadline or (not missing & set(here) and age > rules.patience)


def hopeless(verdicts: Mapping[str, Verdict], active: Collection[str], age: float, rules: RoundSettings) -> bool:
    """The deadline has passed, and the gate refused so many that those who may still answer are no quorum."""
    refused = [
        s for s in active if s in verdicts and verdicts[s].verdict not in (VerdictCode.ADMITTED, VerdictCode.DECLINED)
    ]
    return age > rules.deadline and bool(refused) and len(active) - len(refused) < rules.quorum
