"""The site as real processes against an aggregator over TLS: signals, kill -9, outages, proxies, wrong certificates."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.client import conftest
from tests.client.conftest import Aggregator
from tests.client.network import Port, Proxy
from usfmae.client import outbox
from usfmae.client.rounds.jobs import Job
from usfmae.client.site import Site, read_json
from usfmae.core import audit, keys
from usfmae.core.config import TrainRecipe
from usfmae.core.federated.messages import RECORD

pytestmark = pytest.mark.e2e
PATIENCE = 120.0  # seconds; the machine may be busy


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round of some seconds, with a checkpoint every few steps."""
    slower = TrainRecipe(batch_size=16, micro_batch=1, steps=400, checkpoint_steps=5, precision="fp32", lr=1e-4)
    monkeypatch.setattr(conftest, "TRAIN", slower)


@pytest.fixture
def hospital(make_site: Callable[..., Site], port: Port, aggregator: Aggregator) -> Site:
    return at(make_site, port, aggregator, "hospital-a")


def at(make_site: Callable[..., Site], port: Port, aggregator: Aggregator, name: str, **settings: object) -> Site:
    site = make_site(name=name, server=f"https://127.0.0.1:{port.number}", heartbeat=10, threads=1, **settings)
    (site.root / "ca.pem").write_bytes(port.ca.read_bytes())
    aggregator.enrol(site)
    return site


class Running:
    """`usfmae-client run` as a process."""

    def __init__(self, site: Site, *arguments: str, **environment: str) -> None:
        self.site = site
        self.log = (site.root.parent / f"{site.settings.name}.log").open("ab")
        command = [sys.executable, "-m", "usfmae.client", "run", str(site.root), *arguments]
        self.process = subprocess.Popen(command, stderr=self.log, env={**os.environ, **environment})

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def said(self) -> str:
        return Path(self.log.name).read_text()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end()
        self.log.close()


def until(what: Callable[[], object], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def job(site: Site) -> Job:
    (place,) = (site.root / "jobs").glob("*")
    return Job(site, place)


def training(site: Site, step: int = 1) -> bool:
    return bool(list((site.root / "jobs").glob("*"))) and int(job(site).progress.get("step", 0)) >= step


def worker_pid(site: Site) -> int:
    return int((read_json(job(site).place / "worker.json") or {}).get("pid", 0))


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def steps_trained(site: Site) -> list[int]:
    return [json.loads(line)["step"] for line in (job(site).place / "log.jsonl").read_text().splitlines()]


def content(site: Site) -> str:
    return str(outbox.entries(site)[0]["record"]["content"])


def test_sigterm_leaves_a_checkpoint_and_no_process_and_the_next_start_goes_on(
    hospital: Site, aggregator: Aggregator, slow: None
) -> None:
    aggregator.ask(steps=200)
    with Running(hospital) as first:
        until(lambda: training(hospital, 10))
        pid = worker_pid(hospital)
        assert first.end() == 0
    assert not lives(pid)
    reached = steps_trained(hospital)[-1]
    assert reached < 200, "the round must be long enough to be cut"
    with Running(hospital):
        until(aggregator.replies)
    trained = steps_trained(hospital)
    assert trained == list(range(1, 201)), "no step is lost, none is done twice"
    events = [entry["event"] for entry in audit.entries(hospital.audit_log)]
    assert events.count("agent.start") == 2 and events.count("agent.stop") == 2
    assert audit.verify(hospital.audit_log) == len(events)


def test_kill_9_of_agent_and_of_worker_ends_with_the_bits_of_the_undisturbed_round(
    make_site: Callable[..., Site], port: Port, aggregator: Aggregator, slow: None
) -> None:
    quiet, rough = (at(make_site, port, aggregator, name) for name in ("undisturbed", "killed"))
    # What a site draws follows from its secret: the two are one hospital here.
    (rough.root / "keys" / "secret").write_bytes((quiet.root / "keys" / "secret").read_bytes())
    aggregator.ask(steps=120)
    with Running(quiet):
        with Running(rough) as agent:
            until(lambda: training(rough, 20))
            worker = worker_pid(rough)
            agent.kill()
            assert lives(worker), "the worker outlives the agent"
        with Running(rough):
            until(lambda: training(rough, 40))
            assert worker_pid(rough) == worker, "the next agent joins the living worker"
            os.kill(worker, signal.SIGKILL)
            until(lambda: len(aggregator.replies()) == 2)
        until(lambda: all(outbox.entries(s)[0]["state"] == "sent" for s in (quiet, rough)))
    assert worker_pid(rough) != worker
    assert content(quiet) == content(rough)
    assert outbox.entries(rough)[0]["record"]["loss_before"] == outbox.entries(quiet)[0]["record"]["loss_before"]


def test_a_server_that_is_away_is_waited_for_and_training_does_not_stop(
    hospital: Site, aggregator: Aggregator, port: Port, slow: None
) -> None:
    aggregator.ask(steps=60)
    with Running(hospital) as agent:
        until(lambda: training(hospital))
        port.close()
        until(lambda: job(hospital).result)
        until(lambda: (read_json(hospital.root / "status.json") or {})["state"] == "offline")
        aggregator.restart()
        port.open()
        aggregator.ask(steps=60)
        until(aggregator.replies)
        assert agent.process.poll() is None
        assert agent.said().count("retrying") < 10, "a trouble is logged once, not at every look"
    assert steps_trained(hospital) == list(range(1, 61))


def test_pause_stops_the_worker_with_a_checkpoint_and_resume_goes_on(
    hospital: Site, aggregator: Aggregator, slow: None
) -> None:
    aggregator.ask(steps=150)
    with Running(hospital):
        until(lambda: training(hospital, 10))
        pid = worker_pid(hospital)
        subprocess.run([sys.executable, "-m", "usfmae.client", "pause", str(hospital.root)], check=True)
        until(lambda: not lives(pid))
        until(aggregator.replies)
        assert aggregator.replies()[0].content[RECORD]["declined"] == "paused"  # type: ignore[attr-defined]
        subprocess.run([sys.executable, "-m", "usfmae.client", "resume", str(hospital.root)], check=True)
        until(lambda: job(hospital).result)
    assert steps_trained(hospital) == list(range(1, 151))


def test_a_key_that_is_not_enrolled_ends_with_exit_code_6_and_one_line(hospital: Site, aggregator: Aggregator) -> None:
    aggregator.nodes.clear()
    with Running(hospital) as agent:
        assert agent.process.wait(PATIENCE) == 6
        errors = [line for line in agent.said().splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "enrol.json" in errors[0]


def test_a_certificate_of_another_authority_is_named_and_retried(
    hospital: Site, tmp_path: Path, aggregator: Aggregator
) -> None:
    from usfmae.server import certificates

    right = (hospital.root / "ca.pem").read_bytes()
    (hospital.root / "ca.pem").write_bytes(certificates.authority("other", keys.new_node_key()))
    with Running(hospital) as agent:
        until(lambda: "certificate" in agent.said() and "ca.pem" in agent.said())
        assert agent.process.poll() is None
    (hospital.root / "ca.pem").write_bytes(right)
    assert "activate-node" not in aggregator.calls


def test_a_second_agent_on_the_same_site_is_refused(hospital: Site) -> None:
    with Running(hospital):
        until(lambda: (read_json(hospital.root / "status.json") or {}).get("online"))
        with Running(hospital) as second:
            assert second.process.wait(PATIENCE) == 2


@pytest.mark.parametrize("how", ["setting", "environment"])
def test_a_round_through_an_http_proxy(
    make_site: Callable[..., Site], port: Port, aggregator: Aggregator, how: str
) -> None:
    proxy = Proxy()
    settings = {"proxy": proxy.url} if how == "setting" else {}
    site = at(make_site, port, aggregator, "hospital-a", **settings)
    aggregator.ask()
    environment = {"HTTPS_PROXY": proxy.url, "NO_PROXY": ""} if how == "environment" else {}
    with Running(site, **environment):
        until(aggregator.replies)
    assert set(proxy.targets) == {f"127.0.0.1:{port.number}"}


def test_several_processes_under_torchrun_make_one_update(
    hospital: Site, aggregator: Aggregator, tmp_path: Path
) -> None:
    from usfmae.client.agent import Agent

    aggregator.ask(steps=4)
    agent = Agent(hospital)
    agent.workers.warm_up = lambda: None  # type: ignore[method-assign]
    agent._see_to_requests()
    agent.connection.fleet.close()
    work = job(hospital)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "usfmae.client.rounds.trainer", str(hospital.root), work.place.name]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE * 2, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert work.result is not None and work.result["steps"] == 4
