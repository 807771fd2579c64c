"""A federation of which only the backups are left goes on where it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from tests.e2e.federation import Federation
from usfmae.client import backup as site_backup
from usfmae.client.site import Site
from usfmae.core import audit
from usfmae.server import backup as coordinator_backup

pytestmark = pytest.mark.e2e


def test_restored_into_empty_folders_a_round_is_trained(federate: Callable[..., Federation]) -> None:
    federation = federate(sites=2)
    federation.start_server(2)
    federation.start_sites()
    federation.wait_rounds(1)
    backups = federation.root / "backups"
    backups.mkdir()
    federation.wait_rounds(2)
    coordinator_backup.write(federation.home, backups / "coordinator.tar")  # all of it still runs
    for name, site in federation.sites.items():
        site_backup.write(site, backups / f"{name}.tar", corpus=True)
    federation.stop()
    second = federation.result(2)
    for root in (federation.home.root, *(site.root for site in federation.sites.values())):
        shutil.rmtree(root)

    coordinator_backup.restore(backups / "coordinator.tar", federation.home.root)
    for name, site in federation.sites.items():
        site_backup.restore(backups / f"{name}.tar", site.root)
        federation.sites[name] = Site.open(site.root)
    federation.start_server(3)
    federation.start_sites()
    federation.wait_rounds(3)
    assert federation.result(2) == second != federation.result(3)
    assert federation.admitted(3) == federation.names
    federation.verify_logs()
    assert "restored" in [entry["event"] for entry in audit.entries(federation.home.audit)]
