"""Debian's Prometheus scrapes both sides, with the configuration and rules of deploy/."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.ports import free_port
from usfmae.core import metrics
from usfmae.core.web.server_thread import serve_metrics

from .conftest import answers, end, needs, wait_for

pytestmark = pytest.mark.system

DEPLOY = Path(__file__).parents[2] / "deploy" / "prometheus"


def values(side: tuple[metrics.Described, ...]) -> dict[str, metrics.Values]:
    return {m.name: ({"breast": 1.0} if m.label else 1.0) for m in side if m.label != "version"}


def test_promtool_accepts_rules_and_configuration() -> None:
    promtool = needs("promtool", "prometheus")
    for what, file in (("rules", "usfmae.rules.yml"), ("config", "prometheus.yml")):
        done = subprocess.run([promtool, "check", what, str(DEPLOY / file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_prometheus_scrapes_both_and_an_alert_fires(tmp_path: Path) -> None:
    program = needs("prometheus", "prometheus")
    soon = values(metrics.SERVER) | {"usfmae_server_certificate_days_left": 2.0}
    stop_server, server = serve_metrics(metrics.registry(lambda: soon, "server"), "127.0.0.1", 0)
    stop_site, site = serve_metrics(metrics.registry(lambda: values(metrics.SITE), "site"), "127.0.0.1", 0)
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / "usfmae.rules.yml")]
    for job, port in zip(config["scrape_configs"], (server, site), strict=True):
        job["static_configs"][0]["targets"] = [f"127.0.0.1:{port}"]
    (tmp_path / "p.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [program, f"--config.file={tmp_path / 'p.yml'}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
        try:
            wait_for(lambda: answers(port), process)
            up = _until(port, "up", lambda found: sum(v == 1 for v in found.values()) == 2)
            assert set(up) == {"usfmae-server", "usfmae-site"}
            names = _ask(port, "label/__name__/values")
            assert set(metrics.ALL) <= set(names)
            alerts = _until(port, "ALERTS{alertname='UsfmaeCertificateEndsNow'}", bool)
            assert alerts
        finally:
            end(process)
            stop_server()
            stop_site()


def _ask(port: int, path: str) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}", timeout=10) as answer:
        return list(json.loads(answer.read())["data"])


def _until(port: int, query: str, wanted: object) -> dict[str, float]:
    deadline = time.monotonic() + 60
    found: dict[str, float] = {}
    while time.monotonic() < deadline:
        url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": query})
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                result = json.loads(answer.read())["data"]["result"]
        except urllib.error.HTTPError:  # it answers 503 until its storage is ready
            time.sleep(0.2)
            continue
        found = {r["metric"].get("job", r["metric"].get("alertname", "")): float(r["value"][1]) for r in result}
        if wanted(found):  # type: ignore[operator]
            return found
        time.sleep(0.5)
    raise AssertionError(f"{query}: {found}")
