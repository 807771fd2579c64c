"""The commands as a person types them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import save_file

from usfmae.client import cli, outbox
from usfmae.client.cli.agent import _training
from usfmae.client.site import Site
from usfmae.core import audit, keys
from usfmae.core.cli.shell import explained
from usfmae.core.errors import ConfigError, PolicyError, UsageError
from usfmae.core.federated.messages import TrainReply, TrainRequest


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.group, [str(a) for a in arguments], standalone_mode=False)


def init(folder: Path) -> tuple[object, ...]:
    where = ("--server", "https://h:1", "--coordinator-key", folder / "c.pem")
    return ("init", folder / "s", *where, "--name", "h")


def staged(site: Site, held: str = "") -> str:
    """An update in the outbox, without any training; `held`: what its probe saw."""
    request = TrainRequest("demo", 4, "b" * 64, 0, 1, "{}")
    reply = TrainReply("demo", 4, "b" * 64, content="c" * 64, images=12, steps=1, site=site.fingerprint)
    file = site.root / "made.safetensors"
    save_file({"w": np.frombuffer(b"abc", np.uint8)}, file, {"shapes": '{"w": [3]}'})
    summary = {"tensors": 1, "bytes": 3, "norm": 0.5, **({"probe": {"held": held}} if held else {})}
    return outbox.stage(site, request, reply, file, summary).name


@pytest.mark.parametrize("command", ["--help", *(f"{name} --help" for name in cli.COMMANDS)])
def test_help_loads_neither_flower_nor_torch(command: str) -> None:
    words = command.split()
    program = (
        f"import sys; sys.argv = ['usfmae-client', *{words!r}]\n"
        "from usfmae.client.cli import group\n"
        "try: group.main(standalone_mode=False)\n"
        "finally: assert not {'flwr', 'torch', 'cv2'} & set(sys.modules), 'loads too much'"
    )
    if words[0] == "--help" or words[0] in ("run", "status"):  # a process each: the others share the same shell
        subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
    else:
        assert call(*words).exit_code == 0


def test_init_makes_a_site_that_status_can_read(tmp_path: Path, coordinator: Ed25519PrivateKey) -> None:
    (tmp_path / "c.pem").write_text(keys.public_pem(coordinator))
    made = call(*init(tmp_path), "--source", tmp_path, "--set", "release=approve", "--set", "read.fps=1", "--json")
    assert made.exception is None
    assert Path(json.loads(made.stdout)["enrolment"]).exists()
    status = json.loads(call("status", tmp_path / "s", "--json").stdout)
    assert (status["state"], status["running"], status["images"]) == ("stopped", False, 0)
    settings = Site.open(tmp_path / "s").settings
    assert (settings.release, settings.read.fps, settings.sources) == ("approve", 1.0, (tmp_path.resolve(),))


def test_config_template_is_a_site_yaml_and_errors_point_there(make_site: Callable[..., Site]) -> None:
    site = make_site()
    assert "quiet: []" in call("config", "template").stdout
    file = site.root / "site.yaml"
    file.write_text(file.read_text() + "\nrelase: approve\n")
    wrong = call("status", site.root)
    assert "'usfmae-client config template'" in str(wrong.exception)


def test_status_is_in_words(make_site: Callable[..., Site]) -> None:
    site = make_site(release="approve")
    staged(site)
    text = call("status", site.root).stdout
    assert "1 for your approval" in text and "the agent does not run" in text
    said = {
        "paused": False,
        "round": 4,
        "progress": {"step": 15, "steps": 20, "loss": 1.7881200313568115, "rate": 11.37},
    }
    assert _training(said) == "round 4, step 15 of 20, loss 1.788, 11.4 images a second"


def test_an_unforeseen_error_is_one_line() -> None:
    text, code = explained(ValueError("odd\nthing"))
    assert (text.count("\n"), code) == (0, 1) and "a bug" in text and "USFMAE_DEBUG" in text
    assert explained(OSError(28, "No space left", "/x"))[1] == 7


def test_init_with_a_wrong_key_says_which(tmp_path: Path, coordinator: Ed25519PrivateKey) -> None:
    (tmp_path / "c.pem").write_text(keys.public_pem(coordinator))
    wrong = call(*init(tmp_path), "--set", "relase=approve")
    assert isinstance(wrong.exception, ConfigError) and "release" in str(wrong.exception)


def test_the_outbox_lists_shows_approves_and_refuses_twice(make_site: Callable[..., Site]) -> None:
    site = make_site(release="approve")
    id_ = staged(site)
    (listed,) = json.loads(call("outbox", site.root, "--json").stdout)
    assert (listed["id"], listed["state"], listed["bytes"]) == (id_, "waiting", 3)
    assert "No image" in call("outbox", site.root, "show", id_).stdout
    assert call("outbox", site.root, "approve", id_, "--reason", "board of March").exception is None
    assert json.loads(call("outbox", site.root, "--json").stdout)[0]["state"] == "released"
    assert isinstance(call("outbox", site.root, "reject", id_).exception, UsageError)
    assert isinstance(call("outbox", site.root, "approve", "../../etc").exception, UsageError)
    assert isinstance(call("outbox", site.root, "approve").exception, UsageError)
    approved = [e for e in audit.entries(site.audit_log) if e["event"] == "outbox.approved"]
    assert approved[0]["reason"] == "board of March" and approved[0]["by"]


def test_pause_and_resume_take_effect_and_are_noted(site: Site) -> None:
    call("pause", site.root)
    assert json.loads(call("status", site.root, "--json").stdout)["paused"] is True
    call("resume", site.root)
    assert json.loads(call("status", site.root, "--json").stdout)["paused"] is False
    assert [e["event"] for e in audit.entries(site.audit_log)] == ["init", "pause", "resume"]


def test_audit_is_searched_and_written_to_a_file(site: Site, tmp_path: Path) -> None:
    site.note("outbox.sent", entry="r1-abc", by="anna")
    assert "r1-abc" in call("audit", site.root, "--by", "anna", "--event", "outbox").stdout
    assert [e["event"] for e in json.loads(call("audit", site.root, "--last", 1, "--json").stdout)] == ["outbox.sent"]
    call("audit", site.root, "--event", "outbox", "--out", tmp_path / "sent.csv")
    assert len((tmp_path / "sent.csv").read_text().splitlines()) == 2
    assert isinstance(call("audit", site.root, "--since", "yesterday").exception, UsageError)


def test_audit_verify_finds_an_edit(site: Site) -> None:
    call("pause", site.root)
    sound = json.loads(call("audit", site.root, "verify", "--json").stdout)
    assert sound["entries"] == 2
    assert call("audit", site.root, "verify", "--head", sound["head"]).exception is None
    site.audit_log.write_text(site.audit_log.read_text().replace('"pause"', '"resume"'))
    assert isinstance(call("audit", site.root, "verify").exception, PolicyError)
