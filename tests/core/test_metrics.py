"""Metrics: what a scrape shows, and what it never shows."""

from __future__ import annotations

import urllib.request

import pytest

from usfmae.core import metrics
from usfmae.core.errors import ResourceError
from usfmae.core.web.server_thread import serve_metrics


def page(values: dict[str, metrics.Values], side: str = "site") -> str:
    return metrics.text(metrics.registry(lambda: values, side)).decode()


def test_every_name_follows_the_prometheus_rules() -> None:
    for name, metric in metrics.ALL.items():
        assert name.startswith(("usfmae_site_", "usfmae_server_"))
        assert name.endswith("_total") == (metric.kind == "counter"), name
        assert metric.text and not metric.text.endswith(".")
    assert len(metrics.ALL) == len(metrics.SITE) + len(metrics.SERVER)


def test_values_and_labels_reach_the_page() -> None:
    shown = page({"usfmae_site_images": 12, "usfmae_site_quarantined_total": {"text-left": 3.0}})
    assert "usfmae_site_images 12.0" in shown
    assert 'usfmae_site_quarantined_total{reason="text-left"} 3.0' in shown


@pytest.mark.parametrize("label", ["/data/scan.dcm", "1.2.840.113619.2.5", "DOE^JANE", "a" * 200, "", 'x"} 1\nevil 2'])
def test_an_identifier_never_becomes_a_label(label: str) -> None:
    shown = page({"usfmae_site_quarantined_total": {label: 2.0, "unreadable": 1.0}})
    assert 'reason="other"} 2.0' in shown and 'reason="unreadable"} 1.0' in shown
    assert not label or label not in shown


def test_an_unknown_name_is_a_bug() -> None:
    with pytest.raises(KeyError):
        page({"usfmae_site_nonsense": 1})


def test_a_burst_of_scrapes_reads_the_state_once() -> None:
    calls = []

    def read() -> dict[str, metrics.Values]:
        calls.append(1)
        return {"usfmae_site_images": 1}

    source = metrics.registry(read, "site")
    for _ in range(5):
        metrics.text(source)
    assert len(calls) == 1


def test_endpoint_answers_and_a_taken_port_is_one_clear_error() -> None:
    values: dict[str, metrics.Values] = {
        m.name: ({f"organ{i}": 1.0 for i in range(50)} if m.label else 1.0)
        for m in metrics.SERVER
        if m.label != "version"
    }
    stop, port = serve_metrics(metrics.registry(lambda: values, "server"), "127.0.0.1", 0)
    try:
        body = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60).read()
        assert b'usfmae_server_panel_loss{organ="organ7"} 1.0' in body
        with pytest.raises(ResourceError, match=r"metrics\.port"):
            serve_metrics(metrics.registry(lambda: values, "server"), "127.0.0.1", port)
    finally:
        stop()
