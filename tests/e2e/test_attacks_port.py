"""The public port against callers who should not get in, or who call to wear it out."""

from __future__ import annotations

import dataclasses
import json
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from tests.e2e.arena import Stage, call, row, signed_headers
from usfmae.client.flower import fleet_client, transport_errors
from usfmae.core import audit, keys
from usfmae.core.errors import ConfigError, PolicyError
from usfmae.core.federated.enrolment import Enrolment, checked, proved
from usfmae.server import sites
from usfmae.server.flower import connection_limits, gateway, node_auth
from usfmae.server.ledger import Ledger

pytestmark = pytest.mark.attacks

NOT_KNOWN = "this key is not enrolled, or was revoked"


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("port"), hostile=2, rounds=0) as stage:
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
    status = call(stage, path, headers=signed_headers(stage.honest[0]))
    audited = stage.audited(actor="fleet-api", code=404, status="refused")
    row(f"POST {path}", status, audited)
    assert (status, audited) == (404, True)


def test_an_unregistered_key_is_turned_away(stage):
    stranger = fleet_client.FleetClient(
        fleet_client.AggregatorAddress(f"https://127.0.0.1:{stage.port}", stage.home.ca), keys.new_node_key()
    )
    with pytest.raises(transport_errors.UnknownKeyError):
        stranger.activate(60)
    audited = stage.audited(actor="fleet-api", code=401, why=NOT_KNOWN)
    row("unregistered key", 401, audited)
    assert audited


@pytest.mark.parametrize(("minutes", "word"), [(-10, "behind"), (10, "ahead of")])
def test_a_clock_ten_minutes_off_is_told_so(stage, monkeypatch, minutes, word):
    fleet = stage.honest[0].connect(stage.home, stage.port)
    off = timedelta(minutes=minutes)

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(UTC) + off

    now = time.time
    monkeypatch.setattr(fleet_client, "datetime", Clock)
    monkeypatch.setattr(fleet_client.time, "time", lambda: now() + off.total_seconds())
    with pytest.raises(transport_errors.ClockError, match=rf"clock is 10 min {word} the server's"):
        fleet.activate(60)
    monkeypatch.undo()
    stage.refusals.write()
    audited = any(e.get("why", "").startswith("clocks differ by") for e in audit.entries(stage.home.audit))
    row(f"clock {abs(minutes)} minutes {word}", 401, audited)
    assert audited


def test_a_signature_by_another_key_is_turned_away(stage):
    headers = signed_headers(stage.honest[0])
    headers["flwr-signature"] = signed_headers(stage.honest[1])["flwr-signature"]
    status = call(stage, "/v1/fleet/pull-messages", headers=headers)
    audited = stage.audited(actor="fleet-api", code=401, why="the signature does not match the key")
    row("another site's public key", status, audited)
    assert (status, audited) == (401, True)


def test_a_revoked_key_is_cut_off_within_a_second(stage):
    fleet = stage.mallory.connect(stage.home, stage.port)
    fleet.activate(60)
    stage.ledger.revoke_site("liar-0")
    with pytest.raises(transport_errors.UnknownKeyError):
        for _ in range(600):  # a second, on a machine with nothing else to do
            fleet.pull()
            time.sleep(0.1)
    entries = stage.audited(actor="fleet-api", code=401, why=NOT_KNOWN)
    row("revoked key", 401, entries)
    assert entries


def test_a_body_beyond_the_limit_is_refused_unread(stage):
    headers = {**signed_headers(stage.honest[0]), "content-length": str(10 * 2**30)}
    status = call(stage, "/v1/fleet/push-object", headers=headers)
    audited = stage.audited(actor="fleet-api", code=413)
    row("10 GB in one request", status, audited)
    assert (status, audited) == (413, True)


def committed(stage: Stage) -> int:
    ledger = Ledger(stage.home.ledger)  # the stage's own is in another thread's hands
    last = ledger.last_round()
    ledger.close()
    return last.number if last else 0


def line_to(stage: Stage) -> ssl.SSLSocket:
    return line_over(stage, socket.create_connection(("127.0.0.1", stage.port), 10))


def line_over(stage: Stage, plain: socket.socket) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(stage.home.ca))
    return context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_a_body_that_drips_is_dropped(stage):
    """Slow loris: headers of an enrolled site, then a byte now and then."""
    lines = "".join(f"{k}: {v}\r\n" for k, v in signed_headers(stage.honest[0]).items())
    head = f"POST /v1/fleet/push-object HTTP/1.1\r\nhost: x\r\ncontent-length: 999\r\n{lines}\r\n"
    with line_to(stage) as line:
        line.sendall(head.encode())
        began = time.monotonic()
        line.sendall(b"x")
        status = int(line.recv(1000).split(b" ")[1])
    audited = stage.audited(actor="fleet-api", code=408)
    row("slow-loris upload", status, audited)
    assert (status, audited) == (408, True) and time.monotonic() - began < 60


@pytest.mark.parametrize("first", [b"", b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"])
def test_headers_that_drip_end_the_connection(stage, monkeypatch, first):
    """Also those of a second request on a connection that was let in: nobody holds a place for ever."""
    monkeypatch.setattr(gateway._Protocol, "header_seconds", 1.0)
    began = time.monotonic()
    with line_to(stage) as line:
        if first:
            line.sendall(first)
            assert b"200" in line.recv(1000)
        try:
            while time.monotonic() - began < 60:
                line.sendall(b"x")
                time.sleep(0.2)
            dropped = False
        except OSError:
            dropped = True
    audited = stage.audited(actor="fleet-api", code=408, why="headers took longer than 1 s")
    row("headers that drip" + (", second request" if first else ""), "closed" if dropped else "HELD", audited)
    assert (dropped, audited) == (True, True)


def test_bytes_that_are_no_http_are_answered_once(stage):
    with line_to(stage) as line:
        line.sendall(np.random.default_rng(1).bytes(5000) + b"\r\n\r\n")
        status = int(line.recv(1000).split(b" ")[1])
    audited = stage.audited(actor="fleet-api", code=400, why="not HTTP")
    row("random bytes to the parser", status, audited)
    assert (status, audited) == (400, True)


@pytest.mark.parametrize("after_tls", [False, True])
def test_silent_connections_do_not_keep_a_hospital_out(tmp_path, after_tls):
    """Three hundred from the hospitals' own address, before TLS or after it; rounds go on meanwhile."""
    silent: list[socket.socket] = []
    with Stage(tmp_path, rounds=0) as stage:
        place = stage.gateway.server.limits
        place.most_from_one = 32
        try:
            for _ in range(300):
                plain = socket.create_connection(("127.0.0.1", stage.port), 10)
                silent.append(line_over(stage, plain) if after_tls else plain)
            strangers, goal, end = len(place.strangers), committed(stage) + 2, time.monotonic() + 200
            while committed(stage) < goal and time.monotonic() < end:
                time.sleep(0.1)
            went_on = committed(stage) >= goal
            newcomer = stage.honest[0].connect(stage.home, stage.port)
            newcomer.node_id = stage.link.online()[keys.public_pem(stage.honest[0].node_key).encode()]
            newcomer.heartbeat(60)
        finally:
            for line in silent:
                line.close()
        audited = stage.audited(actor="fleet-api", code=429, why=connection_limits.FULL)
    row(f"300 silent connections {'after' if after_tls else 'before'} TLS", "closed" if went_on else "HELD", audited)
    assert (went_on, audited) == (True, True) and strangers <= 32


def test_a_hospital_cannot_take_the_places_of_the_others(stage):
    """An enrolled liar opens connections, proves its key on each and holds them."""
    lines = "".join(f"{k}: {v}\r\n" for k, v in signed_headers(stage.liars[1]).items())
    head = f"POST /v1/fleet/send-node-heartbeat HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n{lines}\r\n".encode()
    place, key = stage.gateway.server.limits, keys.public_pem(stage.liars[1].node_key).encode()
    before, taken = sum(proved == key for proved, _ in place.proved.values()), []
    try:
        for _ in range(3 * connection_limits.MOST_OF_ONE_KEY):
            taken.append(line_to(stage))
            taken[-1].sendall(head)
            assert taken[-1].recv(1000).startswith(b"HTTP/1.1 4")  # an empty message is none; the key was good
        held = sum(proved == key for proved, _ in place.proved.values())
        newcomer = stage.honest[1].connect(stage.home, stage.port)
        newcomer.node_id = stage.link.online()[keys.public_pem(stage.honest[1].node_key).encode()]
        newcomer.heartbeat(60)
    finally:
        for line in taken:
            line.close()
    audited = stage.audited(actor="fleet-api", code=429, why=connection_limits.FULL_OF_ONE)
    row(
        f"{len(taken)} connections with one key",
        "closed" if held <= connection_limits.MOST_OF_ONE_KEY else "HELD",
        audited,
    )
    assert before <= held <= connection_limits.MOST_OF_ONE_KEY and audited


def test_calls_that_are_not_flower_s_language_do_no_harm(stage):
    """An enrolled site sends random bytes, and well-formed calls with a piece changed, to every path."""
    random = np.random.default_rng(0)
    statuses = set()
    for path in sorted(node_auth.CALLS):
        for size in (0, 1, 40, 5000):
            body = random.bytes(size)
            headers = signed_headers(stage.honest[0]) | {
                "content-type": fleet_client.MEDIA_TYPE,
                "accept": fleet_client.MEDIA_TYPE,
            }
            statuses.add(call(stage, path, body, headers))
    assert statuses <= {200, 400, 401, 403, 404, 409, 415, 422, 500}
    stage.liars[1].connect(stage.home, stage.port).activate(60)  # and it goes on serving
    audited = stage.audited(actor="fleet-api", code=400, why="not a message of this call")
    row("random bytes on every path", "/".join(map(str, sorted(statuses))), audited)
    assert audited


def test_names_that_walk_the_file_system_are_not_enrolled(stage, tmp_path):
    pem = keys.public_pem(keys.new_node_key()), keys.public_pem(keys.new_signing_key())
    for name in ("../../etc", "a/b", "", "..\\x", "x" * 100, "\0", "a\u202eb", "."):
        with pytest.raises(ConfigError):
            checked(Enrolment(name, *pem, 10), "enrol.json")
        file = tmp_path / "enrol.json"
        file.write_text(json.dumps({"name": name, "node_key": pem[0], "signing_key": pem[1], "capacity": 10}))
        with pytest.raises(ConfigError):
            sites.add(stage.home, file)
    audited = stage.audited(actor="coordinator", event="site-add", status="refused")
    row("path traversal in a site's name", "exit 3", audited)
    assert audited


def test_one_key_is_enrolled_once_however_it_is_spelt(stage, tmp_path):
    """A twin with the hospital's public key, which it never held: revoking it would cut the hospital off."""
    victim = Ledger(stage.home.ledger).sites()[stage.honest[0].site]
    values = dataclasses.asdict(proved("twin", 10, keys.new_node_key(), keys.new_signing_key()))
    file = tmp_path / "enrol.json"
    for pem in (victim.node_key, victim.node_key.replace("\n", "\r\n")):
        file.write_text(json.dumps({**values, "node_key": pem}))
        with pytest.raises(ConfigError, match="not signed by both"):
            sites.add(stage.home, file)
        with pytest.raises(PolicyError, match="enrolled already"):
            Ledger(stage.home.ledger).add_site(Enrolment("twin", pem, values["signing_key"], 10))
    audited = stage.audited(actor="coordinator", event="site-add", status="refused")
    row("one node key in two spellings", "exit 3", audited)
    assert audited
