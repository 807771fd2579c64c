"""`usfmae-server person add|list|remove`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from usfmae.core.cli.persons import Note, person_group


def _keys(directory: Path) -> tuple[Path, Note]:
    from usfmae.core import audit
    from usfmae.server.layout import Layout

    home = Layout(directory)
    home.settings()

    def note(event: str, status: str, **fields: Any) -> None:
        audit.append(home.audit, "coordinator", event, status, **fields)

    return home.keys, note


person = person_group(_keys)
