"""The fallback for a stock SuperNode: it runs the installed app and nothing that came over the wire."""

from __future__ import annotations

import hashlib
import inspect
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supernode.runtime import run_clientapp

from tests.client.conftest import Aggregator
from usfmae.client.flower import supernode_app as fallback
from usfmae.client.rounds import trainer
from usfmae.client.rounds.workers import Workers
from usfmae.client.site import Site
from usfmae.core import audit
from usfmae.core.errors import PolicyError
from usfmae.core.federated import codec, messages
from usfmae.core.federated.messages import TrainReply, from_record


def rogue_fab(mark: Path) -> bytes:
    """An app that leaves a file as soon as it is imported."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("rogue/client_app.py", f"open({str(mark)!r}, 'w').close()")
    return stream.getvalue()


def test_a_rogue_app_is_refused_audited_and_never_unpacked(make_site: Callable[..., Site], tmp_path: Path) -> None:
    agreed = b"the coordinator's app"
    site = make_site(fab=hashlib.sha256(agreed).hexdigest())
    install, loader = fallback.guarded(site)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(PolicyError, match="not the one named"):
        install(rogue_fab(tmp_path / "owned"), skip_prompt=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert [e["event"] for e in audit.entries(site.audit_log)][-1] == "fab.refused"
    install(agreed, skip_prompt=True)
    assert loader(default_app_ref="", app_path=None, multi_app=True)("id", "1", "hash") is fallback.app


def test_without_an_agreed_app_none_is_taken(site: Site) -> None:
    with pytest.raises(PolicyError):
        fallback.judge(site, b"")


def test_the_two_replaced_steps_are_where_the_pinned_flower_has_them() -> None:
    source = inspect.getsource(run_clientapp.run_clientapp)
    assert "install_from_fab(fab.content, skip_prompt=True)" in source
    assert "load_client_app_fn = get_load_client_app_fn(" in source
    assert source.index("install_from_fab(") < source.index("get_load_client_app_fn(")
    for name in ("install_from_fab", "get_load_client_app_fn"):
        assert callable(getattr(run_clientapp, name))


def test_a_request_is_answered_like_the_agent_does(
    site: Site, aggregator: Aggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(fallback.SITE, str(site.root))
    monkeypatch.setattr(Workers, "tend", lambda self, work: trainer.run(work, lambda: False))
    aggregator.enrol(site)
    aggregator.ask()
    (queued,) = aggregator.queue
    message = inflate_object_from_contents(queued.object_id, dict(aggregator.objects))
    assert isinstance(message, Message)
    reply = fallback.app(message, Context(1, 2, {}, RecordDict(), {}))
    record = from_record(TrainReply, dict(reply.content[messages.RECORD]))  # type: ignore[arg-type]
    messages.verify(record, site.signing_key.public_key())
    payload = {name: array.data for name, array in reply.content[messages.UPDATE].items()}  # type: ignore[union-attr]
    assert record.declined == "" and codec.payload_id(payload) == record.content
