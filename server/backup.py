"""What an aggregator's backup holds: settings, keys, ledger, audit log, checkpoints, releases. It restores as one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from usfmae.core import audit, backup
from usfmae.core.backup import BackupContent
from usfmae.server.layout import Layout
from usfmae.server.ledger import Ledger, RoundState


def files(home: Layout, rounds: int) -> Iterator[Path]:
    """Every file that belongs into a backup; of the checkpoints the newest `rounds`, all where that is 0."""
    single = (home.settings_file, home.ca, home.certificate, home.public_key, home.ledger, home.audit)
    yield from (path for path in (*single, audit.head_file(home.audit)) if path.exists())
    for folder in (home.keys, home.root / "releases"):
        yield from (path for path in folder.rglob("*") if path.is_file())
    old = _older(home, rounds)
    for path in home.checkpoints.iterdir():
        if path.is_file() and not path.name.startswith(".") and path not in old:
            yield path


def _older(home: Layout, rounds: int) -> set[Path]:
    ledger = Ledger(home.ledger)
    committed = [r.number for r in ledger.rounds() if r.state == RoundState.COMMITTED]
    ledger.close()
    return {home.checkpoint(number) for number in committed[:-rounds]} if rounds else set()


def write(home: Layout, out: Path, rounds: int = 0) -> dict[str, Any]:
    """Back the aggregator up to the new file `out`, also while it runs."""
    name = home.settings().name
    made = backup.write(BackupContent("coordinator", name, home.root, lambda: files(home, rounds)), out)
    audit.append(home.audit, "coordinator", "backup", files=made["files"], bytes=made["bytes"])
    return made


def restore(file: Path, root: Path) -> dict[str, Any]:
    """Make `root` the aggregator that was backed up. PolicyError where its audit log or a checkpoint does not hold."""
    done = backup.restore(file, "coordinator", root)
    home = Layout(root)
    home.settings()
    ledger = Ledger(home.ledger)
    ledger.check()
    committed = [r.number for r in ledger.rounds() if r.state == RoundState.COMMITTED]
    ledger.close()
    done |= {"audit_entries": audit.verify(home.audit), "round": committed[-1] if committed else 0}
    audit.append(home.audit, "coordinator", "restored", backup_time=done["time"], round=done["round"])
    return done
