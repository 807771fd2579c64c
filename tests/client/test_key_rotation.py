"""New keys for a site: asked for with the old key, taken by the coordinator, nobody else touched."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from usfmae.client import key_rotation as mine
from usfmae.client.site import Site
from usfmae.core import keys
from usfmae.core.errors import ConfigError, PolicyError
from usfmae.core.federated import enrolment


def test_two_steps_and_the_old_keys_are_kept(make_site: Callable[..., Site]) -> None:
    site = make_site(images=0)
    old = site.fingerprint
    rotation = enrolment.load_rotation(mine.ask(site))
    again = enrolment.load_rotation(mine.ask(site)).enrolment  # asking twice is the same question
    assert (again.node_key, again.signing_key) == (rotation.enrolment.node_key, rotation.enrolment.signing_key)
    enrolment.verify_rotation(rotation, keys.public_pem(site.signing_key))
    assert Site.open(site.root).fingerprint == old
    assert mine.take(site) == rotation.enrolment.site != old
    fresh = Site.open(site.root)
    assert fresh.fingerprint == rotation.enrolment.site == enrolment.load(site.root / "enrol.json").site
    assert len(list((site.root / "keys").glob("old-*/signing.pem"))) == 1
    assert fresh.secret == site.secret  # scans keep their names
    with pytest.raises(ConfigError, match="hold no new keys"):
        mine.take(fresh)


@pytest.mark.parametrize("change", ["name", "node_key", "signature", "other-signer"])
def test_a_rotation_that_was_touched_is_refused(make_site: Callable[..., Site], change: str) -> None:
    site = make_site(images=0)
    rotation = enrolment.load_rotation(mine.ask(site))
    if change == "name":
        rotation = dataclasses.replace(rotation, enrolment=dataclasses.replace(rotation.enrolment, name="other"))
    elif change == "node_key":
        new = dataclasses.replace(rotation.enrolment, node_key=keys.public_pem(keys.new_node_key()))
        rotation = dataclasses.replace(rotation, enrolment=new)
    elif change == "signature":
        rotation = dataclasses.replace(rotation, signature="AAAA")
    else:
        rotation = enrolment.signed_rotation(rotation, keys.new_signing_key())
    with pytest.raises(PolicyError, match="not signed"):
        enrolment.verify_rotation(rotation, keys.public_pem(site.signing_key))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"replaces": 1, "enrolment": {}}'])
def test_rubbish_is_one_clear_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "rotation.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"rotation\.json"):
        enrolment.load_rotation(file)


def test_the_file_holds_nothing_secret(make_site: Callable[..., Site]) -> None:
    site = make_site(images=0)
    text = mine.ask(site).read_text()
    assert "PRIVATE" not in text and set(json.loads(text)) == {"replaces", "enrolment", "signature"}
