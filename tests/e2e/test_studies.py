"""Two studies in one hospital, side by side on one machine: no byte of one is found in the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.federation import Federation, blobs
from usfmae.client.site import Site
from usfmae.core import audit, keys
from usfmae.core.federated.messages import fingerprint

pytestmark = pytest.mark.e2e


def marks(study: Federation, site: Site, number: int) -> Iterator[bytes]:
    """What would show that something of a study went elsewhere."""
    yield site.secret
    yield site.fingerprint.encode()
    yield fingerprint(site.coordinator).encode()
    yield keys.public_pem(site.node_key).splitlines()[2].encode()
    yield str(study.status()["campaign"]).encode()
    yield from (str(r["result"]).encode() for r in study.status()["rounds"])
    yield from (str(entry["hash"]).encode() for entry in audit.entries(site.audit_log))
    yield from (image.reshape(-1)[500:564].tobytes() for image in blobs(number, 24)[:8] if np.ptp(image) > 50)


def files(root: Path) -> Iterator[bytes]:
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path.read_bytes()


def test_nothing_of_a_study_is_in_the_other(federate: Callable[..., Federation]) -> None:
    first, second = federate(sites=1, name="breast"), federate(sites=2, name="lung")
    # The same hospital in both: hospital-1 of the first, hospital-2 of the second, whose images differ.
    mine = {"breast": (first, first.sites["hospital-1"], 1), "lung": (second, second.sites["hospital-2"], 2)}
    for study in (first, second):
        study.start_server(1)
        study.start_sites()
    first.wait_rounds(1)
    second.wait_rounds(1)
    first.stop()
    second.stop()
    for name, (study, site, number) in mine.items():
        own = list(marks(study, site, number))
        other, other_site, _ = mine["lung" if name == "breast" else "breast"]
        for root in (other.home.root, other_site.root):
            for content in files(root):
                assert not [mark for mark in own if mark in content]
        assert any(own[1] in content for content in files(study.home.root))  # the search does find what is there
        assert any(own[-1] in content for content in files(site.root))
