"""Workers that crash, run out of room, or are asked for the next round."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from usfmae.client import outbox
from usfmae.client.rounds import jobs
from usfmae.client.rounds.workers import MOST_CRASHES, Workers
from usfmae.client.site import Site, write_json
from usfmae.core.errors import ResourceError
from usfmae.core.federated.messages import TrainRequest


@pytest.fixture
def work(site: Site) -> jobs.Job:
    place = site.root / "jobs" / "r00001-x"
    place.mkdir(parents=True)
    write_json(place / "request.json", {"request": {"campaign": "demo", "round": 1}, "created": 1.0})
    (place / "base.safetensors").write_bytes(bytes(1000))
    return jobs.Job(site, place)


def workers(site: Site, monkeypatch: pytest.MonkeyPatch, program: str) -> Workers:
    """Workers whose process runs `program` in place of the trainer; ROOT and JOB are its arguments."""

    class Other:
        executable = str(site.root / "worker.sh")

    script = Path(Other.executable)
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -c "$PROGRAM" "$@"\n')
    script.chmod(0o700)
    monkeypatch.setenv("PROGRAM", "import sys, time; ROOT, JOB = sys.argv[3:5]\n" + program)
    monkeypatch.setattr("usfmae.client.rounds.workers.sys", Other)
    return Workers(site)


def test_what_was_sent_and_is_old_leaves_the_disk(site: Site) -> None:
    """The packed update of an old round goes with its job; the sheet of what left the hospital stays."""
    for number in (1, 2, 9):
        place = site.root / "jobs" / f"r{number}"
        entry = site.root / "outbox" / f"r{number}"
        for folder in (place, entry):
            folder.mkdir(parents=True)
        write_json(place / "request.json", {"request": {"campaign": "demo", "round": number}, "created": float(number)})
        write_json(place / "result.json", {})
        for file in (outbox.UPDATE, "sheet.txt", *(["sent.json"] if number != 2 else [])):
            (entry / file).write_text("{}")
    other = site.root / "jobs" / "other"
    other.mkdir()
    write_json(other / "request.json", {"request": {"campaign": "ended", "round": 3}})
    os.utime(other, (0, 0))
    jobs.prune(site, TrainRequest("demo", 9, "b", 0, 1, "{}"))
    assert sorted(path.name for path in (site.root / "jobs").iterdir()) == ["r9"]
    left = sorted(str(p.relative_to(site.root / "outbox")) for p in (site.root / "outbox").glob("*/update.safetensors"))
    assert left == ["r2/update.safetensors", "r9/update.safetensors"], "one that never left may still have to"
    assert (site.root / "outbox" / "r1" / "sheet.txt").exists()


def look(pool: Workers, work: jobs.Job) -> None:
    """One look, once the process has ended, and without waiting for the back-off."""
    if pool.process is not None:
        pool.process.wait(30)
    pool.not_before = 0.0
    pool.tend(work)


def test_a_worker_that_keeps_crashing_at_the_same_step_is_given_up(
    site: Site, work: jobs.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = workers(site, monkeypatch, "open(ROOT + '/starts', 'a').write('x'); sys.exit(139)")
    for _ in range(4 * MOST_CRASHES):  # a look finds the end, the next one starts again
        look(pool, work)
    assert work.error is not None and "139" in work.error["what"]
    assert len((site.root / "starts").read_text()) == MOST_CRASHES


def test_crashes_with_progress_between_them_are_not_counted_together(
    site: Site, work: jobs.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = workers(site, monkeypatch, "sys.exit(1)")
    for step in range(3 * MOST_CRASHES):
        write_json(work.place / "progress.json", {"step": step})
        look(pool, work)
    assert work.error is None


def test_after_a_crash_the_next_start_waits(site: Site, work: jobs.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = workers(site, monkeypatch, "sys.exit(1)")
    pool.tend(work)
    assert pool.process is not None
    pool.process.wait(30)
    pool.tend(work)
    assert pool.process is None and pool.not_before > time.time()


def test_a_full_disk_is_said_in_the_workers_words_and_never_given_up(
    site: Site, work: jobs.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = workers(site, monkeypatch, "print('error: disk of /d - is full', file=sys.stderr); sys.exit(7)")
    look(pool, work)
    for _ in range(MOST_CRASHES + 1):
        with pytest.raises(ResourceError, match="disk of /d - is full"):
            look(pool, work)
        look(pool, work)
    assert work.error is None


def test_a_crash_on_a_full_disk_is_no_crash_of_the_training(
    site: Site, work: jobs.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the code: on a full disk a worker cannot even say why it ends."""
    pool = workers(site, monkeypatch, "sys.exit(120)")
    floor = site.settings.model_copy(update={"disk_floor_gb": 1e9})
    pool.site = Site(site.root, floor)
    look(pool, work)
    for _ in range(MOST_CRASHES + 1):
        with pytest.raises(ResourceError, match="GB free"):
            look(pool, work)
        look(pool, work)
    assert work.error is None and pool.crashes == 0


def test_a_warm_worker_gets_the_next_round_on_its_standard_input(
    site: Site, work: jobs.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "open(ROOT + '/given', 'w').write(JOB + '|' + sys.stdin.readline())"
    pool = workers(site, monkeypatch, program)
    pool.warm_up()
    pool.tend(work)
    assert pool.process is not None
    pool.process.wait(30)
    assert (site.root / "given").read_text() == "|r00001-x\n"


def test_stop_forces_a_worker_that_does_not_listen(site: Site, work: jobs.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); open(ROOT + '/up', 'w'); time.sleep(60)"
    pool = workers(site, monkeypatch, deaf)
    pool.tend(work)
    process = pool.process
    while not (site.root / "up").exists():
        time.sleep(0.02)
    pool.stop(work, 0.3)
    assert process is not None and process.wait(5) == -9


def test_a_worker_runs_on_the_allocator_that_training_is_fast_with(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from usfmae.client.rounds import workers

    started: list[dict[str, str]] = []
    monkeypatch.setattr(workers.allocator, "environment", lambda: {"LD_PRELOAD": "libjemalloc.so.2"})
    monkeypatch.setattr(workers.subprocess, "Popen", lambda command, env, **_: started.append(env))
    workers.Workers(site).warm_up()
    assert [environment["LD_PRELOAD"] for environment in started] == ["libjemalloc.so.2"]
