"""Flower's own programs behind the documented fallback: a stock SuperLink, two stock SuperNodes, our installed app.

One hospital agreed to the app's hash, the other to another one: the first trains and is merged, the second refuses.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.e2e import tables
from tests.e2e.federation import ENVIRONMENT, Federation, Program
from tests.ports import free_port
from usfmae.core import audit

pytestmark = [pytest.mark.e2e, pytest.mark.attacks]

BIN = Path(sys.executable).parent
APP = Path(__file__).parents[2] / "deploy" / "flower-app"
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


class Stock:
    """A federation whose programs are Flower's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.federation = Federation(root / "federation", 2, **{"rounds.deadline": 20, "rounds.quorum": 1})
        self.home, self.port = self.federation.home, self.federation.port
        (root / "cli").mkdir()
        (root / "cli" / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\n'
            f'address = "127.0.0.1:{self.port}"\nroot-certificates = "{self.home.ca}"\n'
        )

    def start(self, name: str, *words: object, path: Path = BIN) -> Program:
        environment = {**QUIET, "FLWR_HOME": str(self.root / name), "PATH": f"{path}:{BIN}:{os.environ['PATH']}"}
        program = Program(name, [str(w) for w in words], self.root / f"{name}.log", environment)
        self.federation.running.append(program)
        return program

    def flwr(self, *words: object) -> str:
        """Flower's command line, as the coordinator uses it."""
        environment = {**ENVIRONMENT, **QUIET, "FLWR_HOME": str(self.root / "cli")}
        line = [str(w) for w in (BIN / "flwr", *words)]
        done = subprocess.run(line, env=environment, cwd=self.root, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def superlink(self) -> None:
        certificates = ["--ssl-certfile", self.home.certificate, "--ssl-keyfile", self.home.tls_key]
        certificates += ["--ssl-ca-certfile", self.home.ca]
        options = ["--enable-supernode-auth", "--disable-runtime-dependency-installation", "--port", self.port]
        self.start("superlink", BIN / "flower-superlink", *certificates, *options)
        log = self.root / "superlink.log"
        self.federation.wait("the SuperLink", lambda: "startup complete" in log.read_text(), 120)

    def supernode(self, name: str, agreed: str) -> None:
        """A hospital: keys in Flower's format, the app's hash in site.yaml, the shim before Flower's program."""
        site, shim = self.federation.sites[name], self.root / f"shim-{name}"
        public = site.node_key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        (self.root / f"{name}.pub").write_bytes(public)
        self.flwr("supernode", "register", self.root / f"{name}.pub", "here")
        private = site.root / "keys" / "node.ssh"
        private.write_bytes(site.node_key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        private.chmod(0o600)
        settings = site.root / "site.yaml"
        settings.write_text(settings.read_text().replace("fab: ''", f"fab: '{agreed}'"))
        assert agreed in settings.read_text()
        shim.mkdir()
        (shim / "flwr-clientapp").write_text(
            f'#!/bin/sh\nUSFMAE_SITE={site.root} exec {sys.executable} -m usfmae.client.flower.supernode_app "$@"\n'
        )
        (shim / "flwr-clientapp").chmod(0o755)
        words = ["--superlink", f"127.0.0.1:{self.port}", "--root-certificates", site.root / "ca.pem"]
        words += ["--auth-supernode-private-key", private, "--port", free_port()]
        self.start(name, BIN / "flower-supernode", *words, path=shim)


@pytest.fixture
def stock(tmp_path: Path) -> Iterator[Stock]:
    made = Stock(tmp_path)
    yield made
    made.federation.stop()


def events(stock: Stock, name: str) -> list[str]:
    return [entry["event"] for entry in audit.entries(stock.federation.sites[name].audit_log)]


def test_a_stock_supernode_joins_and_an_app_it_did_not_agree_to_is_refused(stock):
    stock.superlink()
    stock.flwr("build", "--app", APP)
    agreed = hashlib.sha256(next(stock.root.glob("*.fab")).read_bytes()).hexdigest()
    stock.supernode("hospital-1", agreed)
    stock.supernode("hospital-2", "0" * 64)
    stock.flwr("run", APP, "here", "--run-config", f'home="{stock.home.root}" rounds=1')
    stock.federation.wait("the refusal", lambda: "fab.refused" in events(stock, "hospital-2"), 120)
    stock.federation.wait_rounds(1, 200)
    merged = stock.federation.admitted(1)
    tables.add("attacks", "rogue FAB, stock SuperNode", "refused", "yes", "equal" if merged == ["hospital-1"] else "NO")
    assert merged == ["hospital-1"]
    assert stock.federation.trainings("hospital-1") == 1 and stock.federation.trainings("hospital-2") == 0
