"""Three honest hospitals among hostile enrolled ones, over the real port: TLS, node authentication, fleet API.

All hostile replies of the matrix come in one round, eight enrolled liars for each honest site. Each must get its own
verdict and an audit entry, and the merged encoder must equal, bit for bit, the merge of the three honest ones alone.
"""

from __future__ import annotations

import dataclasses
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from usfmae.client import node, objects
from usfmae.core import audit, keys, protocol, update
from usfmae.core.config.coordinator import CoordinatorSettings
from usfmae.core.enrolment import Enrolment
from usfmae.core.errors import ConfigError
from usfmae.core.protocol import RAW, TrainReply, TrainRequest
from usfmae.server.aggregator import Refusals
from usfmae.server.app import FlowerWire
from usfmae.server.create import create
from usfmae.server.gateway import Gateway, Link
from usfmae.server.home import Home
from usfmae.server.ledger import Ledger
from usfmae.server.rounds import Loop

pytestmark = pytest.mark.attacks

TINY = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 1, "heads": 2}
TINY |= {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
HONEST = 3
ROWS: list[tuple[str, str, str, str]] = []  # attack, verdict, audit, merge: printed at the end

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

    def __init__(self, home: Home, name: str, seed: int, scratch: Path) -> None:
        self.name, self.seed, self.scratch = name, seed, scratch / name
        # The same signing key in every run: the merge goes in the order of fingerprints.
        self.node_key, self.key = keys.new_node_key(), keys.Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        enrolment = Enrolment(name, keys.public_pem(self.node_key), keys.public_pem(self.key), 1000)
        self.site = enrolment.site
        Ledger(home.ledger).add_site(enrolment)
        self.attack: Callable[[Draft], None] = lambda draft: None
        self.sent = 0

    def connect(self, home: Home, port: int) -> node.Fleet:
        return node.Fleet(f"https://127.0.0.1:{port}", home.ca, self.node_key, timeout=20)

    def serve(self, home: Home, port: int, stop: threading.Event) -> None:
        fleet = self.connect(home, port)
        fleet.activate(60)
        while not stop.is_set():
            request = fleet.pull()
            if request is None:
                stop.wait(0.2)
                continue
            self.answer(fleet, request)

    def answer(self, fleet: node.Fleet, request: node.Request) -> None:
        fetch = lambda id_: fleet.fetch(request.run, id_)  # noqa: E731
        ids = node.record_ids(request.id, fetch)
        asked = protocol.from_record(TrainRequest, node.config_record(fetch(ids[protocol.RECORD])))
        file = self.scratch / f"{asked.round}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        objects.receive(ids[protocol.ENCODER], fetch, file, 1e9)
        fleet.confirm(request)
        self.push(fleet, request, self.draft(asked, load_file(file)))

    def draft(self, asked: TrainRequest, base: Tensors) -> Draft:
        payload = update.pack(base, trained(base, self.seed), asked.encoding).payload
        shapes = {name: values.shape for name, values in base.items()}
        draft = Draft(asked, base, payload, shapes, dict.fromkeys(base, asked.encoding))
        self.attack(draft)
        return draft

    def push(self, fleet: node.Fleet, request: node.Request, draft: Draft) -> None:
        asked = draft.asked
        fields = {"campaign": asked.campaign, "round": asked.round, "base": asked.base, "images": draft.images}
        fields |= {"steps": asked.steps, "encoding": asked.encoding, "site": self.site, "loss_before": 1.0}
        fields |= {"content": update.payload_id(draft.payload), **draft.fields}
        reply = draft.forge(protocol.sign(TrainReply(**fields), self.key))
        draft.tamper(draft.payload)
        parts = {name: self._part(draft, name) for name in draft.payload}
        record = {**protocol.to_record(reply), **draft.extra}
        metadata = node.reply_metadata(request, time.time())
        self.sent = fleet.push(node.reply(metadata, {protocol.RECORD: record}, {protocol.UPDATE: parts}, 1.0))

    def _part(self, draft: Draft, name: str) -> objects.Part:
        data = draft.payload[name]
        shape, dtype = draft.shapes.get(name, (len(data),)), draft.dtypes.get(name, draft.asked.encoding)
        return objects.Part(dtype, shape, RAW, len(data), lambda a, b: data[a:b])


def trained(base: Tensors, seed: int, factor: float = 1.0) -> Tensors:
    common, own = np.random.default_rng(7), np.random.default_rng(100 + seed)
    return {
        name: (base[name] + factor * 0.01 * (common.normal(size=v.shape) + own.normal(size=v.shape))).astype(np.float32)
        for name, v in sorted(base.items())
    }


class Stage:
    """An aggregator in this process, honest hospitals in threads, and a hostile one."""

    def __init__(self, root: Path, hostile: int = 0, rounds: int = 1) -> None:
        self.home = Home(root / "coordinator")
        chosen = [f"model.{key}={value}" for key, value in TINY.items()]
        chosen += ["network.host=127.0.0.1", f"rounds.quorum={HONEST}", "min_free_gib=0", "rounds.steps=2"]
        chosen += ["network.body_seconds=1.5"]
        create(self.home.root, "arena", "", 0, None, chosen)
        self.settings: CoordinatorSettings = self.home.settings()
        self.honest = [Hospital(self.home, f"honest-{i}", i, root) for i in range(HONEST)]
        self.liars = [Hospital(self.home, f"liar-{i}", 50 + i, root) for i in range(hostile)]
        self.mallory = self.liars[0] if hostile else None
        self.rounds = rounds
        self.ledger = Ledger(self.home.ledger)

    def __enter__(self) -> Stage:
        seed = self.home.checkpoint(0).stat().st_size
        self.link = Link(self.home.transit, int(seed * 1.05) + 2**20)
        self.link.enrol(self.ledger.sites().values())
        self.refusals = Refusals(self.home.audit)
        files = (self.home.certificate, self.home.tls_key)
        self.gateway = Gateway(self.link, self.settings.network, *files, self.refusals.count).__enter__()
        self.port = self.gateway.port
        self.stop = threading.Event()
        self.threads = [self._thread(h.serve, self.home, self.port, self.stop) for h in self.honest]
        key = keys.read_private(self.home.signing_key, keys.Ed25519PrivateKey)
        wire = FlowerWire(self.link, self.ledger.sites, self.link.enrol, self.link.withdraw)
        self.loop = Loop(self.home, self.ledger, self.settings, wire, key, wait=self._wait)
        self.brain = self._thread(self.loop.run, self.rounds)
        return self

    def _wait(self, seconds: float) -> None:
        if self.stop.is_set():
            raise SystemExit
        time.sleep(min(seconds, 0.05))

    def _thread(self, target: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
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
        return self.ledger.verdicts(round_)[self.mallory.site].verdict

    def audited(self, **wanted: object) -> bool:
        self.refusals.write()
        return any(all(e.get(k) == v for k, v in wanted.items()) for e in audit.entries(self.home.audit))

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        for thread in [*self.threads, self.brain]:
            thread.join(10)
        self.gateway.__exit__()
        audit.verify(self.home.audit)


@pytest.fixture(scope="module")
def honest_alone(tmp_path_factory) -> str:
    """What the three honest hospitals make of round 1 without anybody else."""
    with Stage(tmp_path_factory.mktemp("honest")) as stage:
        return stage.done()


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    yield
    print(f"\n\n{'attack':34s} {'verdict':16s} {'audited':8s} honest merge")
    for row in ROWS:
        print(f"{row[0]:34s} {row[1]:16s} {row[2]:8s} {row[3]}")


def scales(draft: Draft, value: float) -> None:
    """Put a value where the first tensor's first scale stands."""
    name = sorted(draft.payload)[0]
    draft.payload[name] = np.float32(value).tobytes() + draft.payload[name][4:]


def repack(draft: Draft, factor: float) -> None:
    draft.payload = update.pack(draft.base, trained(draft.base, 50, factor), draft.asked.encoding).payload


def set_images(count: int) -> Callable[[Draft], None]:
    return lambda draft: setattr(draft, "images", count)


def first(draft: Draft) -> str:
    return sorted(draft.payload)[0]


def reshape(draft: Draft) -> None:
    draft.shapes[first(draft)] = (1, 1, 1)


def missing(draft: Draft) -> None:
    draft.payload.pop(first(draft))


def extra(draft: Draft) -> None:
    draft.payload["backdoor"] = b"12345678"


def traversal(draft: Draft) -> None:
    draft.payload["../../../../etc/cron.d/owned"] = b"12345678"


def retype(draft: Draft) -> None:
    draft.dtypes[first(draft)] = "float64"


def cut(draft: Draft) -> None:
    draft.payload[first(draft)] = draft.payload[first(draft)][:-3]


def flip_bits(payload: dict[str, bytes]) -> None:
    name = sorted(payload)[0]
    payload[name] = payload[name][:-1] + bytes([payload[name][-1] ^ 1])


def someone_else(reply: TrainReply) -> TrainReply:
    return protocol.sign(reply, keys.new_signing_key())


ATTACKS: dict[str, tuple[Callable[[Draft], None], str]] = {
    "NaN": (lambda d: scales(d, float("nan")), "not-finite"),
    "Inf": (lambda d: scales(d, float("inf")), "not-finite"),
    "finite until it is added": (lambda d: scales(d, 3e38), "not-finite"),
    "x1000": (lambda d: repack(d, 1000.0), "norm"),
    "x5": (lambda d: repack(d, 5.0), "norm"),
    "sign flip": (lambda d: repack(d, -1.0), "direction"),
    "example count 1e9": (set_images(10**9), "example-count"),
    "example count 0": (set_images(0), "example-count"),
    "example count negative": (set_images(-5), "example-count"),
    "wrong shape": (reshape, "wrong-shape"),
    "missing key": (missing, "missing-tensor"),
    "extra key": (extra, "extra-tensor"),
    "path traversal in a tensor name": (traversal, "extra-tensor"),
    "wrong dtype": (retype, "wrong-dtype"),
    "wrong length": (cut, "wrong-size"),
    "wrong base": (lambda d: d.fields.update(base="0" * 64), "wrong-base"),
    "another round": (lambda d: d.fields.update(round=7), "wrong-round"),
    "another campaign": (lambda d: d.fields.update(campaign="theirs"), "wrong-campaign"),
    "more steps than asked": (lambda d: d.fields.update(steps=10**6), "step-count"),
    "another encoding": (lambda d: d.fields.update(encoding="fp32"), "wrong-encoding"),
    "another site's signature": (lambda d: setattr(d, "forge", someone_else), "bad-signature"),
    "record changed after signing": (
        lambda d: setattr(d, "forge", lambda r: dataclasses.replace(r, images=999)),
        "bad-signature",
    ),
    "tampered bytes": (lambda d: setattr(d, "tamper", flip_bits), "tampered"),
    "unknown record key": (lambda d: d.extra.update(exec="rm -rf /"), "bad-record"),
}


@pytest.fixture(scope="module")
def siege(tmp_path_factory) -> Iterator[tuple[Stage, str]]:
    """One round with every hostile hospital at once."""
    with Stage(tmp_path_factory.mktemp("siege"), hostile=len(ATTACKS)) as stage:
        for liar, (change, _) in zip(stage.liars, ATTACKS.values(), strict=True):
            liar.attack = change
        stage.hostile()
        yield stage, stage.done()


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_reply_is_refused_and_changes_nothing(attack, siege, honest_alone):
    stage, result = siege
    liar, wanted = stage.liars[list(ATTACKS).index(attack)], ATTACKS[attack][1]
    got = stage.ledger.verdicts(1)[liar.site].verdict
    audited = stage.audited(actor="gate", site=liar.site, verdict=wanted, status="refused")
    ROWS.append((attack, got, "yes" if audited else "NO", "equal" if result == honest_alone else "DIFFERS"))
    assert (got, audited, result) == (wanted, True, honest_alone)


def test_a_replayed_round_is_refused(tmp_path):
    """Mallory is honest in round 1 and sends the same signed reply, then the same update newly signed, again."""
    with Stage(tmp_path, hostile=1, rounds=3) as stage:
        kept: list[Draft] = []

        def replay(draft: Draft) -> None:
            if draft.asked.round == 2:  # the old reply, word for word
                old = kept[0]
                draft.payload = old.payload
                draft.fields.update(round=1, base=old.asked.base)
            elif draft.asked.round == 3:  # the old update under a new signature
                draft.payload = kept[0].payload
            kept.append(draft)

        stage.mallory.attack = replay
        stage.hostile()
        stage.done()
        verdicts = [stage.verdict(n) for n in (1, 2, 3)]
        ROWS.append(("replayed round (word for word)", verdicts[1], "yes", "-"))
        ROWS.append(("replayed update, signed anew", verdicts[2], "yes", "-"))
        assert verdicts == ["admitted", "wrong-round", "replayed"]


def test_a_message_of_10_gb_is_stopped_at_the_size_of_an_update(tmp_path, honest_alone):
    with Stage(tmp_path, hostile=1) as stage:

        def enormous(draft: Draft) -> None:
            draft.payload["flood"] = b"\0"

        def flood(draft: Draft, name: str) -> objects.Part:
            if name != "flood":
                return Hospital._part(stage.mallory, draft, name)
            blocks = [np.random.default_rng(i).bytes(2**20) for i in range(5)]
            size = 5 * 2**20 * 3  # as many chunks as it likes: the limit is passed with the first
            return objects.Part("int8", (size,), RAW, size, lambda a, b: (blocks[a // objects.CHUNK] * 5)[: b - a])

        stage.mallory.attack, stage.mallory._part = enormous, flood
        fleet = stage.mallory.connect(stage.home, stage.port)
        fleet.activate(60)
        request = None
        while request is None:
            request = fleet.pull()
        with pytest.raises(Exception):  # noqa: B017 - the client gives up in one way or another
            stage.mallory.answer(fleet, request)
        result = stage.done()
        spent = sum(f.stat().st_size for f in stage.home.transit.glob("*"))
        got = stage.verdict()
        ROWS.append(("message beyond the size limit", got, "yes", "equal" if result == honest_alone else "DIFFERS"))
        assert got == "bad-message" and result == honest_alone
        assert spent < 8 * 2**20
        assert stage.audited(actor="gate", verdict="bad-message")


# The port itself


def call(
    stage: Stage, path: str, method: str = "POST", body: bytes = b"", headers: dict[str, str] | None = None
) -> int:
    context = ssl.create_default_context(cafile=str(stage.home.ca))
    connection = http.client.HTTPSConnection("127.0.0.1", stage.port, context=context, timeout=10)
    connection.putrequest(method, path, skip_host=False)
    for name, value in {"content-length": str(len(body)), **(headers or {})}.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    return connection.getresponse().status


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("port"), hostile=1, rounds=0) as stage:
        yield stage


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-runs",
        "/v1/control/start-run",
        "/v1/control/list-nodes",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/get-fab",
        "/docs",
        "/openapi.json",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet%2fpull-messages",
        "//v1/fleet/pull-messages",
    ],
)
def test_the_public_port_answers_the_fleet_api_and_nothing_else(stage, path):
    assert call(stage, path) == 404
    ROWS.append((f"POST {path}"[:34], "404", "yes" if stage.audited(actor="porch", code=404) else "NO", "-"))
    assert stage.audited(actor="porch", code=404, status="refused")


def test_an_unregistered_key_is_turned_away(stage):
    stranger = node.Fleet(f"https://127.0.0.1:{stage.port}", stage.home.ca, keys.new_node_key())
    with pytest.raises(node.UnknownKeyError):
        stranger.activate(60)
    ROWS.append(("unregistered key", "401", "yes", "-"))
    assert stage.audited(actor="porch", code=401, why="this key is not enrolled, or was revoked")


def test_a_clock_ten_minutes_off_is_told_so(stage, monkeypatch):
    fleet = stage.honest[0].connect(stage.home, stage.port)
    from datetime import UTC, datetime, timedelta

    class Slow(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(UTC) - timedelta(minutes=10)

    monkeypatch.setattr(node, "datetime", Slow)
    with pytest.raises(node.NetworkError, match="clock"):
        fleet.activate(60)
    ROWS.append(("clock 10 minutes off", "401", "yes", "-"))
    assert stage.audited(actor="porch", code=401)


def test_a_revoked_key_is_cut_off_within_a_second(stage):
    fleet = stage.mallory.connect(stage.home, stage.port)
    fleet.activate(60)
    stage.ledger.revoke_site("liar-0")
    time.sleep(1)
    with pytest.raises(node.UnknownKeyError):
        fleet.pull()
    ROWS.append(("revoked key", "401", "yes", "-"))
    assert stage.audited(actor="porch", code=401, why="this key is not enrolled, or was revoked")


def signed_headers(stage: Stage) -> dict[str, str]:
    """Headers of an enrolled hospital's call."""
    import base64
    from datetime import UTC, datetime

    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.hashes import SHA256

    site, stamp = stage.honest[0], datetime.now(UTC).isoformat()
    return {
        "flwr-public-key": base64.b64encode(keys.public_pem(site.node_key).encode()).decode(),
        "flwr-signature": base64.b64encode(site.node_key.sign(stamp.encode(), ECDSA(SHA256()))).decode(),
        "flwr-timestamp": stamp,
    }


def test_a_body_beyond_the_limit_is_refused_unread(stage):
    headers = {**signed_headers(stage), "content-length": str(10 * 2**30)}
    assert call(stage, "/v1/fleet/push-object", headers=headers) == 413
    ROWS.append(("10 GB in one request", "413", "yes", "-"))
    assert stage.audited(actor="porch", code=413)


def test_a_body_that_drips_is_dropped(stage):
    """Slow loris: headers of an enrolled site, then a byte now and then."""
    context = ssl.create_default_context(cafile=str(stage.home.ca))
    lines = "".join(f"{k}: {v}\r\n" for k, v in signed_headers(stage).items())
    head = f"POST /v1/fleet/push-object HTTP/1.1\r\nhost: x\r\ncontent-length: 999\r\n{lines}\r\n"
    plain = socket.create_connection(("127.0.0.1", stage.port))
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as line:
        line.sendall(head.encode())
        began = time.monotonic()
        line.settimeout(10)
        line.sendall(b"x")
        answer = line.recv(1000)
    assert b"408" in answer.split(b"\r\n")[0] and time.monotonic() - began < 5
    ROWS.append(("slow-loris upload", "408", "yes", "-"))
    assert stage.audited(actor="porch", code=408)


def test_names_that_walk_the_file_system_are_not_enrolled(stage):
    from usfmae.core.enrolment import checked

    pem = keys.public_pem(keys.new_node_key()), keys.public_pem(keys.new_signing_key())
    for name in ("../../etc", "a/b", "", "..\\x", "x" * 100, "\0"):
        with pytest.raises(ConfigError):
            checked(Enrolment(name, *pem, 10), "enrol.json")
    ROWS.append(("path traversal in a site's name", "exit 3", "-", "-"))
