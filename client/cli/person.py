"""`usfmae-client person add|list|remove`."""

from __future__ import annotations

from pathlib import Path

from usfmae.core.cli.persons import Note, person_group


def _keys(directory: Path) -> tuple[Path, Note]:
    from usfmae.client.site import Site

    site = Site.open(directory)
    return site.root / "keys", site.note


person = person_group(_keys)
