"""What the persons of a site hear of, and what the page shows of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.client.test_cli import call, staged
from usfmae.client import background_services
from usfmae.client.notices import notifier
from usfmae.client.site import Site
from usfmae.core.config.sources import NoticeKind
from usfmae.core.errors import SourceError


def test_an_update_that_waits_and_a_failure_are_told_and_nothing_else(make_site: Callable[..., Site]) -> None:
    site = make_site(release="approve")
    notices = notifier(site)
    notices.look()
    staged(site)
    site.note("connected")
    site.note("worker.crashed", "failed", code=-9)
    site.note("corpus.prepared", quarantined=4, new_quarantined=0)  # they were told when they came
    site.note("outbox.held", "refused", id="r1")  # the same update: its probe says so, and it is staged
    assert {notice.kind: notice.times for notice in notices.look()} == {NoticeKind.APPROVAL: 1, NoticeKind.FAILED: 1}


@pytest.mark.parametrize("service", ["dicomweb", "intake"])
def test_an_intake_that_fails_is_told(make_site: Callable[..., Site], service: str) -> None:
    """By the entry that the service itself writes."""
    site, stop = make_site(), threading.Event()
    notices = notifier(site)
    notices.look()

    def fail() -> None:
        stop.set()
        raise SourceError("the folder", "is gone", "")

    background_services._repeat(service, site, stop, 3600, fail)
    for thread in threading.enumerate():
        if thread.name == service:
            thread.join(20)
    assert [notice.kind for notice in notices.look()] == [NoticeKind.FAILED]


def test_an_update_that_leaves_by_itself_is_no_notice(make_site: Callable[..., Site]) -> None:
    site = make_site()
    notices = notifier(site)
    notices.look()
    staged(site)
    assert notices.look() == []


def test_an_update_that_its_probe_held_is_told_where_others_leave_by_themselves(make_site: Callable[..., Site]) -> None:
    site = make_site()
    notices = notifier(site)
    notices.look()
    staged(site, held="a drawn picture's patch is read 12 dB better")
    (notice,) = notices.look()
    assert notice.kind == NoticeKind.APPROVAL


def test_notify_shows_the_channels_and_sends_a_test(make_site: Callable[..., Site], tmp_path: Path) -> None:
    written = tmp_path / "kept"
    site = make_site(notify={"command": ["tee", str(written)]})
    assert "not set" in call("notify", site.root).stdout and not written.exists()
    assert call("notify", site.root, "--test").exception is None
    assert "this is a test" in written.read_text()
