"""How the site is: the agent writes it down, every command and page reads it, from files alone."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from usfmae.client import outbox, site_policy
from usfmae.client.site import Site, read_json
from usfmae.core.files import is_locked
from usfmae.core.prepare.ledger import CorpusLedger


def summary(site: Site, shelf: outbox.Outbox | None = None) -> dict[str, Any]:
    """The agent's last status, the corpus, the outbox and the last round that left."""
    agent_status = read_json(site.root / "status.json") or {}
    running = agent_runs(site)
    staged = (shelf or outbox.Outbox(site)).entries()
    sent = [entry for entry in staged if entry["state"] == "sent"]
    progress = agent_status.get("progress", {}) if running else {}
    return {
        "name": site.settings.name,
        "fingerprint": site.fingerprint,
        "server": site.settings.server,
        "running": running,
        "state": agent_status.get("state", "stopped") if running else "stopped",
        "online": bool(running and agent_status.get("online")),
        "paused": site_policy.paused(site),
        "problem": agent_status.get("problem", "") if running else "",
        "campaign": agent_status.get("campaign", "") if running else "",
        "round": agent_status.get("round") if running else None,
        "progress": progress,
        "images": CorpusLedger(site.corpus).images(),
        "updates": {state: sum(e["state"] == state for e in staged) for state in ("waiting", "sent", "rejected")},
        "sent_bytes": sum(entry["bytes"] for entry in sent),
        "last_sent": {k: sent[-1][k] for k in ("id", "campaign", "round", "bytes", "norm")} if sent else {},
    }


def agent_runs(site: Site) -> bool:
    """Whether an agent serves this site now."""
    return is_locked(site.root / "agent.lock")


@contextlib.contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and Ctrl-C call `stop`, where the block runs in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: stop()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_status(site: Site, status: dict[str, Any]) -> None:
    """DIR/status.json: renamed, not flushed, since after a power cut it means nothing anyway."""
    part = site.root / ".status.part"
    with contextlib.suppress(OSError):
        part.write_text(json.dumps(status))
        part.replace(site.root / "status.json")
