"""What runs in threads of the agent's process: the page, the metrics, the network sources, the cleaning of new scans.

None of it may stop the agent: a PACS that is away or a full disk is logged, audited once, and tried again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

from usfmae.client import site_policy
from usfmae.client.intake.spool import SPOOL, Spool
from usfmae.client.notices import notifier
from usfmae.client.site import Site, read_json, write_json
from usfmae.core import metrics
from usfmae.core.errors import UsfmaeError
from usfmae.core.log import note
from usfmae.core.web.server_thread import serve_metrics

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0  # between two looks for something that waits for a person
COUNT_SECONDS = 5.0  # between two writes of the counts of received instances


@contextlib.contextmanager
def watched(site: Site) -> Iterator[dict[str, int]]:
    """Everything the settings switch on, while the block runs; the ports by name.

    ConfigError or ResourceError at once where a port is taken or a setting cannot work.
    """
    ports: dict[str, int] = {}
    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        stack.callback(stop.set)
        _repeat("notify", site, stop, LOOK_SECONDS, notifier(site).look)
        if site.settings.metrics.port:
            ports["metrics"] = stack.enter_context(_metrics(site))
        if site.settings.page.port:
            ports["page"] = stack.enter_context(_page(site))
        if site.settings.cstore.port:
            ports["cstore"] = stack.enter_context(_listener(site, stop))
        if site.settings.stow.port:
            ports["stow"] = stack.enter_context(_stow(site))
        if site.settings.dicomweb.url:
            _repeat("dicomweb", site, stop, site.settings.dicomweb.interval_minutes * 60, lambda: _pull(site))
        if site.settings.intake.every_minutes:
            _repeat("intake", site, stop, site.settings.intake.every_minutes * 60, lambda: _take_in(site, stop))
        yield ports


@contextlib.contextmanager
def _metrics(site: Site) -> Iterator[int]:
    from usfmae.client.outbox import Outbox
    from usfmae.client.page.view import figures
    from usfmae.client.review.quarantine import Intake

    intake, shelf, settings = Intake(), Outbox(site), site.settings.metrics
    source = metrics.registry(lambda: figures(site, intake, shelf), "site")
    stop, port = serve_metrics(source, settings.host, settings.port)
    try:
        yield port
    finally:
        stop()


@contextlib.contextmanager
def _page(site: Site) -> Iterator[int]:
    from usfmae.client.page.app import application, serving

    settings = site.settings.page
    with serving(application(site), settings.host, settings.port) as port:
        address = f"http://{settings.host}:{port}"
        note(logger, "page", address=address, token=str(site.root / "keys" / "page.token"))
        yield port


def spool_of(site: Site) -> Spool:
    largest = int(site.settings.intake.max_instance_gb * 1e9)
    return Spool(site.root / SPOOL, site.secret, floor_bytes=site.floor_bytes, largest_bytes=largest)


@contextlib.contextmanager
def _listener(site: Site, stop: threading.Event) -> Iterator[int]:
    from usfmae.client.intake.cstore import listen

    spool = spool_of(site)
    spool.sweep()
    listener = listen(site.settings.cstore, spool)
    written: Counter[str] = Counter()
    named: set[tuple[str, str]] = set()

    def count() -> None:
        counts = Counter(listener.counts)
        for what in counts - written:
            _received(site, "cstore" if what == "stored" else f"cstore.{what}", counts[what] - written[what])
            written[what] = counts[what]
        for caller, sop_class in listener.named() - named:
            named.add((caller, sop_class))
            site.note("cstore.unsupported", "refused", caller=caller, sop_class=sop_class)

    _repeat("counts", site, stop, COUNT_SECONDS, count)
    try:
        yield listener.port
    finally:
        listener.stop()
        count()


@contextlib.contextmanager
def _stow(site: Site) -> Iterator[int]:
    from usfmae.client.intake import stow

    def count(what: str) -> None:
        _received(site, "stow" if what == "stored" else f"stow.{what}", 1)

    service = stow.StowService(spool_of(site), stow.token(site.root / "keys"), site.settings.stow, count)
    with stow.serving(service) as port:
        note(logger, "listening for STOW-RS", port=port, token=str(site.root / "keys" / "stow.token"))
        yield port


_counting = threading.Lock()


def _received(site: Site, source: str, instances: int) -> None:
    """Add to the counts of `received.json`, which the metrics show."""
    with _counting:
        counts = read_json(site.root / "received.json") or {}
        counts[source] = int(counts.get(source, 0)) + instances
        write_json(site.root / "received.json", counts)


def _pull(site: Site) -> None:
    from usfmae.client.intake.dicomweb import pull

    done = pull(site.settings.dicomweb, spool_of(site), site.root / "dicomweb.sqlite")
    _received(site, "dicomweb", done.instances)
    if done.instances or done.failed:
        site.note("pacs.pulled", instances=done.instances, failed=done.failed, bytes=done.bytes)


def _take_in(site: Site, stop: threading.Event) -> None:
    """`usfmae-client prepare` in a process of its own, at the lowest priority; ended with the agent."""
    site_policy.check(site)
    command = [sys.executable, "-m", "usfmae.client", "prepare", str(site.root), "--json"]
    command += ["--workers", str(site.settings.intake.workers)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with contextlib.suppress(OSError):  # it has ended already; never by code in a fork of this process of many threads
        os.setpriority(os.PRIO_PROCESS, process.pid, 19)
    while process.poll() is None and not stop.wait(0.5):
        pass
    if process.poll() is None:
        process.terminate()  # what is finished stays finished; the next call goes on
        process.wait(30)
    elif process.returncode:
        note(logger, "cleaning of new scans ended early", logging.WARNING, code=process.returncode)


def _repeat(name: str, site: Site, stop: threading.Event, seconds: float, act: Callable[[], object]) -> None:
    """`act` now and then every so many seconds, in a thread, whatever it raises; a new error is logged once."""

    def loop() -> None:
        problem = ""
        while not stop.is_set():
            started = time.monotonic()
            try:
                act()
                problem = ""
            except Exception as error:  # also one of our own making: the next time may go well
                text = str(error) if isinstance(error, UsfmaeError | OSError) else f"{type(error).__name__}: {error}"
                if text != problem:
                    problem = text
                    logger.warning("%s: %s", name, problem)
                    with contextlib.suppress(UsfmaeError, OSError):
                        site.note(f"{name}.failed", "failed", why=problem[:300])
            stop.wait(max(1.0, seconds - (time.monotonic() - started)))

    threading.Thread(target=loop, name=name, daemon=True).start()
