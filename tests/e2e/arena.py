"""An aggregator in this process with its real port, honest hospitals in threads, and hostile enrolled ones.

TLS, node authentication and Flower's fleet API are the real ones; only the training is a few additions.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import http.client
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.hashes import SHA256
from safetensors.numpy import load_file

from tests.e2e import tables
from usfmae.client.flower import download, fleet_client, messages, transport_errors
from usfmae.client.rounds import apply_step
from usfmae.core import audit, flower_objects, keys
from usfmae.core.config.coordinator import CoordinatorSettings
from usfmae.core.federated import codec
from usfmae.core.federated import messages as protocol
from usfmae.core.federated.enrolment import Enrolment
from usfmae.core.federated.messages import RAW, TrainReply, TrainRequest
from usfmae.core.tensors import TensorFile
from usfmae.server.aggregator import Refusals
from usfmae.server.bootstrap import NewFederation, create
from usfmae.server.flower.gateway import Gateway
from usfmae.server.flower.gateway_transport import GatewayTransport
from usfmae.server.flower.link_state import LinkState
from usfmae.server.layout import Federation, Layout
from usfmae.server.ledger import Ledger
from usfmae.server.rounds import loop
from usfmae.server.rounds.loop import Clock, Loop

TINY = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 1, "heads": 2}
TINY |= {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
HONEST = 3

Tensors = dict[str, np.ndarray]


@dataclasses.dataclass
class Draft:
    """A reply before it leaves: attacks change it before or after it is signed."""

    asked: TrainRequest
    base: Tensors
    payload: dict[str, bytes]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    images: int = 100
    fields: dict[str, object] = dataclasses.field(default_factory=dict)  # of the record, before signing
    forge: Callable[[TrainReply], TrainReply] = lambda reply: reply  # after signing
    tamper: Callable[[dict[str, bytes]], None] = lambda payload: None  # after signing
    extra: dict[str, object] = dataclasses.field(default_factory=dict)  # keys the protocol does not know


class Hospital:
    """A site that trains by adding a fixed direction and its own noise, and may lie."""

    def __init__(self, home: Layout, name: str, seed: int, scratch: Path) -> None:
        self.name, self.seed, self.scratch = name, seed, scratch / name
        # The same signing key in every run: the merge goes in the order of fingerprints.
        self.node_key, self.key = keys.new_node_key(), keys.Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        enrolment = Enrolment(name, keys.public_pem(self.node_key), keys.public_pem(self.key), 1000)
        self.site, self.coordinator = enrolment.site, home.fingerprint()
        Ledger(home.ledger).add_site(enrolment)
        self.attack: Callable[[Draft], None] = lambda draft: None
        self.sent = 0

    def connect(self, home: Layout, port: int) -> fleet_client.FleetClient:
        return fleet_client.FleetClient(
            fleet_client.AggregatorAddress(f"https://127.0.0.1:{port}", home.ca), self.node_key, timeout=20
        )

    def serve(self, home: Layout, port: int, stop: threading.Event) -> None:
        fleet, online = self.connect(home, port), False
        while not online and not stop.is_set():
            try:
                online = bool(fleet.activate(60))
            except transport_errors.UnreachableError:  # an agent tries again as well
                stop.wait(0.2)
        while not stop.is_set():
            request = fleet.pull()
            if request is None:
                stop.wait(0.2)
                continue
            self.answer(fleet, request)

    def answer(self, fleet: fleet_client.FleetClient, request: messages.RequestMessage) -> None:
        self.push(fleet, request, self.take(fleet, request))

    def take(self, fleet: fleet_client.FleetClient, request: messages.RequestMessage) -> Draft:
        """Download the base and train."""
        fetch = lambda id_: fleet.fetch(request.run, id_)  # noqa: E731
        ids = flower_objects.records(request.id, fetch)
        asked = protocol.from_record(TrainRequest, messages.config_record(fetch(ids[protocol.RECORD])))
        file = self.scratch / f"{asked.round}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        if asked.delta_from:
            self._step(asked, ids[protocol.STEP], fetch, file)
        else:
            download.receive(ids[protocol.ENCODER], fetch, file, 1e9)
        fleet.confirm(request)
        return self.draft(asked, load_file(file))

    def _step(self, asked: TrainRequest, record: str, fetch: flower_objects.Fetch, file: Path) -> None:
        """The base from that of the round before and the step that leads on."""
        packed = file.with_suffix(".step")
        about = flower_objects.tensor(fetch(flower_objects.references(fetch(record), "ArrayRecord")[protocol.STEP]))
        download.receive_bytes(packed, about, fetch)
        before = file.with_name(f"{asked.round - 1}.safetensors")
        with TensorFile(before) as old, packed.open("rb") as step, file.open("wb") as out:
            assert apply_step.write(old, step, asked.encoding, out).id() == asked.base

    def draft(self, asked: TrainRequest, base: Tensors) -> Draft:
        payload = codec.pack(base, trained(base, self.seed), asked.encoding).payload
        shapes = {name: values.shape for name, values in base.items()}
        draft = Draft(asked, base, payload, shapes, dict.fromkeys(base, asked.encoding))
        self.attack(draft)
        return draft

    def signed(self, draft: Draft) -> dict[str, object]:
        """The reply's record."""
        asked = draft.asked
        fields = {"campaign": asked.campaign, "round": asked.round, "base": asked.base, "images": draft.images}
        fields |= {"steps": asked.steps, "encoding": asked.encoding, "site": self.site, "loss_before": 1.0}
        fields |= {"recipient": self.coordinator, "expires": asked.expires}
        fields |= {"content": codec.payload_id(draft.payload), **draft.fields}
        reply = draft.forge(protocol.sign(TrainReply(**fields), self.key))
        return {**protocol.to_record(reply), **draft.extra}

    def push(self, fleet: fleet_client.FleetClient, request: messages.RequestMessage, draft: Draft) -> None:
        record = self.signed(draft)
        draft.tamper(draft.payload)
        arrays = flower_objects.array_record({name: self._part(draft, name) for name in draft.payload})
        metadata = messages.reply_metadata(request, time.time())
        self.sent = fleet.push(messages.reply(metadata, {protocol.RECORD: record}, {protocol.UPDATE: arrays}, 1.0))

    def _part(self, draft: Draft, name: str) -> flower_objects.Part:
        data = draft.payload[name]
        shape, dtype = draft.shapes.get(name, (len(data),)), draft.dtypes.get(name, draft.asked.encoding)
        return flower_objects.Part(dtype, shape, RAW, len(data), lambda a, b: data[a:b])


def trained(base: Tensors, seed: int, factor: float = 1.0) -> Tensors:
    common, own = np.random.default_rng(7), np.random.default_rng(100 + seed)
    return {
        name: (base[name] + factor * 0.01 * (common.normal(size=v.shape) + own.normal(size=v.shape))).astype(np.float32)
        for name, v in sorted(base.items())
    }


class Stage:
    """An aggregator in this process, honest hospitals in threads, and a hostile one."""

    def __init__(self, root: Path, hostile: int = 0, rounds: int = 1, *more: str) -> None:
        self.home = Layout(root / "coordinator")
        chosen = [f"model.{key}={value}" for key, value in TINY.items()]
        chosen += ["network.host=127.0.0.1", f"rounds.quorum={HONEST}", "min_free_gib=0", "rounds.steps=2"]
        chosen += ["network.body_seconds=1.5"]
        create(self.home.root, NewFederation("arena", port=0), [*chosen, *more])
        self.settings: CoordinatorSettings = self.home.settings()
        self.honest = [Hospital(self.home, f"honest-{i}", i, root) for i in range(HONEST)]
        self.liars = [Hospital(self.home, f"liar-{i}", 50 + i, root) for i in range(hostile)]
        self.mallory = self.liars[0] if hostile else None
        self.rounds = rounds
        self.ledger = Ledger(self.home.ledger)

    def __enter__(self) -> Stage:
        seed = self.home.checkpoint(0).stat().st_size
        self.link = LinkState(self.home.transit, int(seed * 1.05) + 2**20)
        self.link.enrol(self.ledger.sites().values())
        self.refusals = Refusals(self.home.audit)
        files = (self.home.certificate, self.home.tls_key)
        self.gateway = Gateway(self.link, self.settings.network, *files, self.refusals.count).__enter__()
        self.port = self.gateway.port
        self.stop = threading.Event()
        self.threads = [self._thread(h.serve, self.home, self.port, self.stop) for h in self.honest]
        wire = GatewayTransport(self.link, self.ledger.sites)
        loop.ASK_AGAIN = 0.2  # of this process: a site whose reply was lost or dropped
        self.loop = Loop(Federation(self.home, self.ledger, self.settings), wire, Clock(wait=self._wait))
        self.brain = self._thread(self.loop.run, self.rounds)
        return self

    def _wait(self, seconds: float) -> None:
        if self.stop.is_set():
            raise SystemExit
        time.sleep(min(seconds, 0.05))

    def _thread(self, target: Callable[..., None], *arguments: object) -> threading.Thread:
        def work() -> None:
            with contextlib.suppress(SystemExit):  # the stage is over
                target(*arguments)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def hostile(self) -> None:
        """The hostile hospitals serve too."""
        self.threads += [self._thread(liar.serve, self.home, self.port, self.stop) for liar in self.liars]

    def done(self) -> str:
        """The merged encoder's hash once all rounds are committed."""
        self.brain.join(300)
        assert not self.brain.is_alive(), "the round never closed"
        return self.ledger.last_round().result

    def verdict(self, round_: int = 1) -> str:
        return self.verdict_on(self.mallory, round_)

    def verdict_on(self, hospital: Hospital, round_: int = 1) -> str:
        """What was decided on its reply; of one that it had not signed, why it was dropped."""
        if hospital.site in self.ledger.verdicts(round_):
            return self.ledger.verdicts(round_)[hospital.site].verdict
        dropped = [one for one in self.ledger.refusals() if (one["site"], one["round"]) == (hospital.site, round_)]
        return dropped[-1]["verdict"]

    def audited(self, **wanted: object) -> bool:
        self.refusals.write()
        return any(all(e.get(k) == v for k, v in wanted.items()) for e in audit.entries(self.home.audit))

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        for thread in [*self.threads, self.brain]:
            thread.join(10)
        self.gateway.__exit__()
        audit.verify(self.home.audit)


def request_of(fleet: fleet_client.FleetClient) -> messages.RequestMessage:
    fleet.activate(60)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if request := fleet.pull():
            return request
    raise AssertionError("no request came: the round loop has ended")


def call(stage: Stage, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> int:
    """The status of one POST to the public port."""
    context = ssl.create_default_context(cafile=str(stage.home.ca))
    connection = http.client.HTTPSConnection("127.0.0.1", stage.port, context=context, timeout=10)
    connection.putrequest("POST", path, skip_host=False)
    for name, value in {"content-length": str(len(body)), **(headers or {})}.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    return connection.getresponse().status


def signed_headers(hospital: Hospital) -> dict[str, str]:
    """Headers of an enrolled hospital's call."""
    stamp = datetime.now(UTC).isoformat()
    return {
        "flwr-public-key": base64.b64encode(keys.public_pem(hospital.node_key).encode()).decode(),
        "flwr-signature": base64.b64encode(hospital.node_key.sign(stamp.encode(), ECDSA(SHA256()))).decode(),
        "flwr-timestamp": stamp,
    }


def row(attack: str, verdict: object, audited: bool | None = None, equal: bool | None = None) -> None:
    """A line of the verdict table; None where there is nothing to say."""
    words = {None: "-", True: "yes", False: "NO"}
    tables.add("attacks", attack, verdict, words[audited], {None: "-", True: "equal", False: "DIFFERS"}[equal])
