"""What runs beside the agent: received instances go into the corpus and then away, or stay for a person."""

from __future__ import annotations

import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from usfmae.client import inventory, review
from usfmae.client.beside import spool_of, watched
from usfmae.client.look import trusting
from usfmae.client.site import Site
from usfmae.core.config import CleanSettings
from usfmae.core.corpus.shard import FOLDER, read_index
from usfmae.core.errors import ConfigError, ResourceError
from usfmae.core.phantom import Tissue, write_still

needs_tesseract = pytest.mark.skipif(not shutil.which("tesseract"), reason="tesseract is not installed")


@needs_tesseract
def test_received_instances_are_packed_and_then_deleted(make_site: Callable[..., Site], tmp_path: Path) -> None:
    site = make_site(images=0, image_size=32)
    spool = spool_of(site)
    write_still(tmp_path / "still.dcm", Tissue(7, "linear"))
    spool.add((tmp_path / "still.dcm").read_bytes())
    spool.add(b"\x89PNG\r\n\x1a\n damaged")  # goes to quarantine: a person must still be able to see it
    summary = inventory.take_in(site)
    assert (summary.scans, summary.kept) == (2, 1)
    assert len(spool.files()) == 1 and spool.files()[0].read_bytes().endswith(b"damaged")
    assert sum(read_index(p).shard.count for p in (site.corpus / FOLDER).glob("*.json")) == 1
    (held,) = review.waiting(site, review.Intake().refresh(site.corpus))
    review.drop(site, held)
    assert inventory.take_in(site).kept == 0
    assert spool.files() == []


@needs_tesseract
def test_a_frame_the_machine_doubts_can_be_released(make_site: Callable[..., Site], tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    write_still(scans / "still.dcm", Tissue(9, "linear"))
    site = make_site(images=0, image_size=32, sources=(scans,), clean=CleanSettings(smallest_region=0.9))
    assert inventory.take_in(site).kept == 0
    (held,) = review.waiting(site, review.Intake().refresh(site.corpus))
    assert held.reason == "region-small"
    looked = review.picture(site, held)
    assert looked.before.startswith(b"\x89PNG") and looked.after.startswith(b"\x89PNG")
    review.release(site, held)
    (index,) = (site.corpus / FOLDER).glob("*.json")
    assert read_index(index).shard.count == 1 and review.waiting(site, review.Intake().refresh(site.corpus)) == []


def test_setting_doubts_aside_changes_nothing_else() -> None:
    settings = CleanSettings(inpaint_radius=5)
    changed = {k for k, v in trusting(settings).model_dump().items() if v != settings.model_dump()[k]}
    assert changed == {"doubt_threshold", "smallest_region", "repairs"}


def test_metrics_and_page_answer_while_the_block_runs(make_site: Callable[..., Site], free_port: int) -> None:
    site = make_site(metrics={"port": free_port})
    with watched(site) as ports:
        text = urllib.request.urlopen(f"http://127.0.0.1:{ports['metrics']}/metrics", timeout=5).read().decode()
    assert "usfmae_site_images 16.0" in text
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{ports['metrics']}/metrics", timeout=1)


def test_a_taken_port_and_a_missing_allow_list_stop_the_start(make_site: Callable[..., Site], free_port: int) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port))
        taken.listen()
        site = make_site("a", page={"port": free_port})
        with pytest.raises(ResourceError, match=r"page\.port"), watched(site):
            pass
    with pytest.raises(ConfigError, match=r"cstore\.allow"), watched(make_site("b", cstore={"port": free_port})):
        pass


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
