"""A site, and an aggregator in memory: the fleet API behind httpx's mock transport, objects made by Flower itself."""

from __future__ import annotations

import base64
import datetime
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from tests.floors import LOWERED
from usfmae.client.agent import Agent
from usfmae.client.flower import fleet_client
from usfmae.client.site import Site, create
from usfmae.core import keys
from usfmae.core.checkpoint import decoder_of, encoder_of, tensors_id
from usfmae.core.checkpoint_header import recipe_text
from usfmae.core.config import ModelSettings, TrainRecipe, validated
from usfmae.core.config.site import SiteSettings
from usfmae.core.corpus.shard import PackedImage, write_shard
from usfmae.core.federated import messages
from usfmae.core.federated.messages import TrainRequest
from usfmae.core.mae.model import fresh

from .at_work import connected

if TYPE_CHECKING:
    from .network import Port

SERVER = "https://aggregator.test:8443"
MODEL = ModelSettings(
    image_size=32, patch_size=8, width=16, depth=1, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2
)
TRAIN = TrainRecipe(batch_size=4, micro_batch=4, steps=12, checkpoint_steps=100, precision="fp32", lr=1e-3)


@pytest.fixture
def coordinator() -> Ed25519PrivateKey:
    return keys.new_signing_key()


@pytest.fixture
def make_site(tmp_path: Path, coordinator: Ed25519PrivateKey) -> Callable[..., Site]:
    """`make_site(name="hospital-a", images=16, **settings)`: an initialised site with random images."""

    def make(name: str = "hospital-a", images: int = 16, **settings: object) -> Site:
        key = tmp_path / "coordinator.pub.pem"
        key.write_text(keys.public_pem(coordinator))
        values = {"name": name, "server": SERVER, "disk_floor_gb": 0.0, "poll": 0.1, "device": "cpu"}
        values |= {"privacy": LOWERED, **settings}
        site = create(tmp_path / name, validated(SiteSettings, values, "test"), None, key)
        if images:
            rng = np.random.default_rng(7)
            pixels = [rng.integers(0, 255, (32, 32), dtype=np.uint8) for _ in range(images)]
            write_shard(site.corpus, "t", [PackedImage(p, f"i{k}", f"g{k // 2}") for k, p in enumerate(pixels)])
        return site

    return make


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()


class Aggregator:
    """What a site meets on the network, with switches for what may go wrong."""

    def __init__(self, coordinator: Ed25519PrivateKey) -> None:
        from flwr.app import Message

        self.coordinator = coordinator
        self.nodes: dict[bytes, int] = {}  # enrolled key -> node id
        self.online: set[int] = set()
        self.objects: dict[str, bytes] = {}
        self.queue: list[Message] = []
        self.uploads: dict[str, tuple[bytes, dict[str, bytes], list[str]]] = {}  # reply id -> metadata, objects, order
        self.calls: list[str] = []
        self.sites: dict[bytes, str] = {}  # fingerprints, by node key
        self.clock_offset = 0.0
        self.before: Callable[[str], None] = lambda path: None  # may raise what the network does
        self.run = 1

    # what the coordinator does

    def enrol(self, site: Site) -> None:
        self.nodes[keys.public_pem(site.node_key).encode()] = len(self.nodes) + 100
        self.sites[keys.public_pem(site.node_key).encode()] = site.fingerprint

    def restart(self) -> None:
        """Everything in memory is lost; the sites are enrolled again under other ids."""
        self.objects.clear()
        self.queue.clear()
        self.online.clear()
        self.run += 1
        self.nodes = {key: id_ + 1000 for key, id_ in self.nodes.items()}

    def ask(
        self, number: int = 1, seed: int = 0, with_decoder: bool = True, step: int | None = None, **changes: object
    ) -> TrainRequest:
        """Put a request for one round into every node's queue; of three steps, after those of the rounds before."""
        import torch
        from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
        from flwr.app.message import make_message
        from flwr.app.metadata import Metadata

        tensors = fresh(MODEL, seed=seed).state_dict()
        public: dict[str, bytes] = changes.pop("replay", {})  # type: ignore[assignment]
        encoder: dict[str, torch.Tensor] = changes.pop("encoder", None) or encoder_of(tensors)  # type: ignore[assignment]
        start, packed = changes.pop("step_from", ("", b""))  # type: ignore[misc]
        chosen = changes.pop("global_step", 3 * (number - 1) if step is None else step)
        signer: Ed25519PrivateKey = changes.pop("signer", self.coordinator)  # type: ignore[assignment]
        request = TrainRequest(
            campaign="demo",
            round=number,
            base=tensors_id(encoder),
            decoder=tensors_id(decoder_of(tensors)),
            global_step=chosen,  # type: ignore[arg-type]
            steps=3,
            recipe=recipe_text(MODEL, TRAIN),
        )
        request = replace(request, delta_from=start, with_decoder=with_decoder, with_replay=bool(public))
        request = replace(request, expires=time.time() + 3600)
        content = RecordDict()
        if start:
            content[messages.STEP] = ArrayRecord({messages.STEP: Array("uint8", (len(packed),), messages.RAW, packed)})
        else:
            content[messages.ENCODER] = ArrayRecord({k: Array(v.numpy()) for k, v in encoder.items()})
        if with_decoder:
            content[messages.DECODER] = ArrayRecord({k: Array(v.numpy()) for k, v in decoder_of(tensors).items()})
        if public:
            files = {name: Array("uint8", (len(data),), messages.RAW, data) for name, data in public.items()}
            content[messages.REPLAY] = ArrayRecord(files)
        for key, id_ in self.nodes.items():
            request = replace(replace(request, recipient=self.sites[key]), **changes)  # type: ignore[arg-type]
            request = messages.sign(request, signer)
            content[messages.RECORD] = ConfigRecord(messages.to_record(request))
            metadata = Metadata(self.run, "", 1, id_, "", str(number), time.time(), 3600.0, "train")
            self._put(make_message(metadata, content))
        return request

    def _put(self, message: object) -> None:
        from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

        for id_, item in get_all_nested_objects(message).items():  # type: ignore[arg-type]
            self.objects[id_] = item.deflate()
        message.metadata.__dict__["_message_id"] = message.object_id  # type: ignore[attr-defined]
        self.queue.append(message)  # type: ignore[arg-type]

    def replies(self) -> list[object]:
        """Whole replies, inflated by Flower."""
        from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

        whole = [(id_, objects) for id_, (_, objects, order) in self.uploads.items() if set(order) <= set(objects)]
        return [inflate_object_from_contents(id_, dict(objects)) for id_, objects in whole]

    # the fleet API

    def __call__(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path.rsplit("/", 1)[-1]
        self.calls.append(name)
        self.before(name)
        stamp = time.time() + self.clock_offset
        date = datetime.datetime.fromtimestamp(stamp, datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        answer = self._answer(name, request, stamp)
        answer.headers["date"] = date
        return answer

    def _answer(self, name: str, request: httpx.Request, now: float) -> httpx.Response:
        pem = base64.b64decode(request.headers["flwr-public-key"])
        signed = request.headers["flwr-timestamp"]
        key = load_pem_public_key(pem)
        key.verify(base64.b64decode(request.headers["flwr-signature"]), signed.encode(), ECDSA(SHA256()))  # type: ignore[union-attr, call-arg, arg-type]
        age = now - datetime.datetime.fromisoformat(signed).timestamp()
        if pem not in self.nodes or not -5 < age < 305:
            return httpx.Response(401, json={"detail": "this key is not enrolled, or was revoked"})
        return getattr(self, "_" + name.replace("-", "_"))(request.content, self.nodes[pem])

    def _activate_node(self, body: bytes, id_: int) -> httpx.Response:
        if id_ in self.online:
            return httpx.Response(412, json={"code": 2004})
        self.online.add(id_)
        return _ok(fleet_client.fleet.ActivateNodeResponse(node_id=id_))

    def _deactivate_node(self, body: bytes, id_: int) -> httpx.Response:
        self.online.discard(id_)
        return _ok(fleet_client.fleet.DeactivateNodeResponse())

    def _send_node_heartbeat(self, body: bytes, id_: int) -> httpx.Response:
        if fleet_client.beat.SendNodeHeartbeatRequest.FromString(body).node.node_id != id_:
            return httpx.Response(401, json={"detail": "Invalid SuperNode authentication"})
        self.online.add(id_)
        return _ok(fleet_client.beat.SendNodeHeartbeatResponse(success=True))

    def _pull_messages(self, body: bytes, id_: int) -> httpx.Response:
        from flwr.app.message import remove_content_from_message
        from flwr.common.serde import message_to_proto
        from flwr.supercore.inflatable.inflatable_object import get_object_tree

        if fleet_client.fleet.PullMessagesRequest.FromString(body).node.node_id != id_:
            return httpx.Response(401, json={"detail": "Invalid SuperNode authentication"})
        mine = [m for m in self.queue if m.metadata.dst_node_id == id_][:1]
        self.queue = [m for m in self.queue if m not in mine]
        bare = [message_to_proto(remove_content_from_message(m)) for m in mine]
        trees = [get_object_tree(m) for m in mine]
        return _ok(fleet_client.fleet.PullMessagesResponse(messages_list=bare, message_object_trees=trees))

    def _pull_object(self, body: bytes, id_: int) -> httpx.Response:
        content = self.objects.get(fleet_client.wire.PullObjectRequest.FromString(body).object_id)
        is_there = content is not None
        return _ok(
            fleet_client.wire.PullObjectResponse(
                object_found=is_there, object_available=is_there, object_content=content or b""
            )
        )

    def _confirm_message_received(self, body: bytes, id_: int) -> httpx.Response:
        return _ok(fleet_client.wire.ConfirmMessageReceivedResponse())

    def _push_messages(self, body: bytes, id_: int) -> httpx.Response:
        from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

        request = fleet_client.fleet.PushMessagesRequest.FromString(body)
        order = [t.object_id for t in iterate_object_tree(request.message_object_trees[0])]
        root = request.messages_list[0].metadata.message_id
        metadata = request.messages_list[0].metadata.SerializeToString()
        upload = self.uploads.setdefault(root, (metadata, {}, order))[1]
        missing = [o for o in dict.fromkeys(order) if o not in upload]
        return _ok(fleet_client.fleet.PushMessagesResponse(session_id=root, objects_to_push=missing))

    def _push_object(self, body: bytes, id_: int) -> httpx.Response:
        request = fleet_client.wire.PushObjectRequest.FromString(body)
        self.uploads[request.session_id][1][request.object_id] = request.object_content
        return _ok(fleet_client.wire.PushObjectResponse(stored=True))


def _ok(message: object) -> httpx.Response:
    return httpx.Response(200, content=message.SerializeToString(), headers={"content-type": "application/protobuf"})  # type: ignore[attr-defined]


@pytest.fixture
def aggregator(coordinator: Ed25519PrivateKey) -> Aggregator:
    return Aggregator(coordinator)


@pytest.fixture
def port(aggregator: Aggregator, tmp_path: Path) -> Iterator[Port]:
    """The aggregator behind a real TLS port of loopback."""
    from .network import Port

    made = Port(aggregator, tmp_path)
    yield made
    made.close()


@pytest.fixture
def agent(site: Site, aggregator: Aggregator) -> Agent:
    aggregator.enrol(site)
    return connected(site, aggregator)
