"""A site behind tinyproxy, as many hospitals have it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.floors import lowered
from tests.ports import free_port

pytestmark = pytest.mark.system

CONFIGURATION = """Port {port}
Listen 127.0.0.1
Timeout 60
LogFile "{folder}/proxy.log"
LogLevel Connect
MaxClients 20
Allow 127.0.0.1
ConnectPort {target}
"""


def usfmae(program: str, *arguments: object) -> None:
    subprocess.run([sys.executable, "-m", f"usfmae.{program}", *map(str, arguments)], check=True, capture_output=True)


@pytest.mark.skipif(not shutil.which("tinyproxy"), reason="tinyproxy is not installed")
def test_a_federation_of_one_site_through_tinyproxy(tmp_path: Path) -> None:
    import numpy as np

    from usfmae.core.corpus.shard import PackedImage, write_shard

    target, port, home, site = free_port(), free_port(), tmp_path / "server", tmp_path / "site"
    tiny = {"image_size": 32, "patch_size": 8, "width": 16, "depth": 1, "heads": 2}
    tiny |= {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    sets = [f"model.{key}={value}" for key, value in tiny.items()]
    sets += ["rounds.steps=2", "train.batch_size=4", "train.precision=fp32"]
    usfmae("server", "init", home, "--name", "p", "--port", target, *(x for s in sets for x in ("--set", s)))
    where = ["--server", f"https://127.0.0.1:{target}", "--ca", home / "ca.pem"]
    where += ["--coordinator-key", home / "coordinator.pub.pem", "--set", f"proxy=http://127.0.0.1:{port}"]
    usfmae("client", "init", site, "--name", "s", *where, "--set", "poll=0.5", *lowered())
    usfmae("server", "site", "add", home, site / "enrol.json")
    rng = np.random.default_rng(0)
    images = [PackedImage(rng.integers(0, 255, (32, 32), dtype=np.uint8), str(k), str(k)) for k in range(8)]
    write_shard(site / "corpus", "t", images)
    (tmp_path / "proxy.conf").write_text(CONFIGURATION.format(port=port, folder=tmp_path, target=target))
    proxy = subprocess.Popen(["tinyproxy", "-d", "-c", str(tmp_path / "proxy.conf")], stdout=subprocess.DEVNULL)
    server = subprocess.Popen(
        [sys.executable, "-m", "usfmae.server", "run", str(home), "--rounds", "1"], stderr=subprocess.DEVNULL
    )
    agent = subprocess.Popen(
        [sys.executable, "-m", "usfmae.client", "run", str(site)], stderr=(tmp_path / "site.log").open("wb")
    )
    try:
        assert server.wait(240) == 0
    finally:
        for process in (agent, server, proxy):
            process.terminate()
        agent.wait(60)
        time.sleep(0.2)
    assert f"CONNECT 127.0.0.1:{target}" in (tmp_path / "proxy.log").read_text()
