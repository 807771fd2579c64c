"""A federation with a custodian, all of them real processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.federation import Federation, Program
from tests.ports import free_port


class SealedFederation(Federation):
    """As Federation, with sealed rounds."""

    def __init__(self, root: Path, sites: int = 3, **settings: Any) -> None:
        from usfmae.server.custodian.home import CustodianHome, CustodianSettings, create

        super().__init__(root, sites, **{"rounds.quorum": max(sites, 3), **settings})
        self.custodian_port = free_port()
        self.custodian = CustodianHome(root / "custodian")
        made = CustodianSettings(name="institute", host="127.0.0.1", port=self.custodian_port)
        create(self.custodian.root, made, self.home.public_key)
        for name in self.names:
            self.custodian.add_site(root / name / "enrol.json")
        link = {"url": f"https://127.0.0.1:{self.custodian_port}", "card": str(self.custodian.card)}
        change(self.home.settings_file, custodian=link)
        change(self.home.settings_file, "rounds", sealed=True)
        for name in self.names:
            change(root / name / "site.yaml", custodian=json.loads(self.custodian.card.read_text())["box_key"])
        self._reopen()

    def _reopen(self) -> None:
        from usfmae.client.site import Site

        self.sites = {name: Site.open(self.root / name) for name in self.names}

    def copy(self, to: Path, host: str = "127.0.0.1") -> SealedFederation:
        from usfmae.server.custodian.home import CustodianHome

        other = super().copy(to, host)
        assert isinstance(other, SealedFederation)
        other.custodian, other.custodian_port = CustodianHome(to / "custodian"), free_port()
        link = {"url": f"https://127.0.0.1:{other.custodian_port}", "card": str(other.custodian.card)}
        change(other.home.settings_file, custodian=link)
        change(other.custodian.settings_file, port=other.custodian_port)
        return other

    def start_custodian(self) -> Program:
        return self._start("custodian", "usfmae.server.cli", ["custodian", "run", str(self.custodian.root)])

    def start_server(self, rounds: int, *more: str, prefix: tuple[str, ...] = ()) -> Program:
        if not any(program.name == "custodian" for program in self.running):
            self.start_custodian()
        return super().start_server(rounds, *more, prefix=prefix)


def change(file: Path, section: str = "", **values: Any) -> None:
    """Set keys of a settings file, of one section or of the whole."""
    settings = yaml.safe_load(file.read_text())
    (settings.setdefault(section, {}) if section else settings).update(values)
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
