"""What a hostile site may do with Flower's messages on their way, and what it does not achieve."""

from __future__ import annotations

import contextvars
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict
from flwr.app.message.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.proto.error_pb2 import Error as ProtoError
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.supercore.object_store import NoObjectInStoreError

from usfmae.core import flower_objects, keys
from usfmae.core.federated.enrolment import EnrolledSite, Enrolment
from usfmae.server.flower import gateway_transport
from usfmae.server.flower.link_state import LinkState
from usfmae.server.flower.node_auth import CALLER
from usfmae.server.flower.object_store import DiskObjectStore

LIMIT = 2**20
CHUNK = 60_000  # bytes


def obj(kind: str, children: list[str], body: bytes) -> tuple[str, bytes]:
    content = f"{kind} {','.join(children)} {len(body)}\0".encode() + body
    return get_object_id(content), content


class Desk:
    """A link with one enrolled site online, its request, and the site's hands."""

    def __init__(self, place: Path) -> None:
        self.link = LinkState(place / "transit", LIMIT)
        self.nodes = [self.join(n) for n in range(2)]
        part = flower_objects.Part("float32", (3,), "x", CHUNK, lambda start, stop: bytes(stop - start))
        self.arrays = flower_objects.array_record({"w": part})
        self.request = self.ask(self.nodes[0])

    def join(self, number: int) -> int:
        enrolment = Enrolment(
            f"s{number}", keys.public_pem(keys.new_node_key()), keys.public_pem(keys.new_signing_key()), 9
        )
        site = EnrolledSite(
            enrolment.site, enrolment.name, enrolment.node_key, enrolment.signing_key, 9, "active", False
        )
        before = set(self.link.state.nodes)
        self.link.enrol([site])
        node = next(iter(set(self.link.state.nodes) - before))
        self.link.state.activate_node(node, 60)
        return node

    def ask(self, node: int) -> str:
        return self.link.send(node, {}, {"encoder": self.arrays}, 600)

    def announce(self, tree: ObjectTree, name: str = "", node: int = 0) -> tuple[bool, list[str], str]:
        """A site's `push-messages`; returns what Flower's route would work with."""
        state = self.link.state
        sent = state.message_ins_store[self.request]
        reply = Message(RecordDict(), reply_to=sent)
        reply.metadata.__dict__["_message_id"] = name or tree.object_id
        session = state.start_session(self.link.run_id)
        return (*state.store_message_and_object_tree(remove_content_from_message(reply), tree, session), session)

    def send(self, session: str, contents: dict[str, bytes]) -> list[bool]:
        state = self.link.state
        return [state.store_object(self.link.run_id, session, name, data) for name, data in contents.items()]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_tree_that_doubles_at_each_level_is_looked_at_once(desk):
    """Sixty objects, each naming the next one twice: 2^60 ways through them."""
    contents, name, tree = {}, "", None
    for level in range(60):
        name, content = obj("ArrayChunk", [name, name] if name else [], str(level).encode())
        contents[name] = content
        tree = ObjectTree(object_id=name, children=[tree, ObjectTree(object_id=tree.object_id)] if tree else [])
    taken, missing, session = desk.announce(tree)
    assert taken and set(missing) == set(contents)
    assert all(desk.send(session, contents))
    began = time.monotonic()
    [answer] = desk.link.replies([desk.request])
    assert answer.error and answer.hostile and time.monotonic() - began < 60


@pytest.mark.parametrize(("times", "error"), [(1000, ""), (100_000, "malformed")])
def test_an_array_that_names_one_chunk_many_times_is_not_unfolded(desk, times, error):
    """60 MB, 6 GB: of the first no more is read than an update holds, the second is not even looked through."""
    chunk, chunk_content = obj("ArrayChunk", [], b"\1" * CHUNK)
    description = {"dtype": "int8", "shape": [1], "stype": "usfmae.raw", "arraychunk_ids": [0] * times}
    array, array_content = obj("Array", [chunk], json.dumps(description).encode())
    record, record_content = obj("ArrayRecord", [array], json.dumps({"w": array}).encode())
    config, config_content = obj("ConfigRecord", [], b"")
    content, content_content = obj(
        "RecordDict", [record, config], json.dumps({"update": record, "usfmae": config}).encode()
    )
    root, root_content = obj("Message", [content], b"")
    record_tree = ObjectTree(object_id=chunk)
    for name in (array, record):
        record_tree = ObjectTree(object_id=name, children=[record_tree])
    both = ObjectTree(object_id=content, children=[record_tree, ObjectTree(object_id=config)])
    _, missing, session = desk.announce(ObjectTree(object_id=root, children=[both]))
    assert set(missing) == {chunk, array, record, config, content, root}
    sent = {chunk: chunk_content, array: array_content, record: record_content, config: config_content}
    assert all(desk.send(session, sent | {content: content_content, root: root_content}))
    for answer in gateway_transport.GatewayTransport(desk.link, dict).answers([desk.request]):
        assert bool(error) == answer.hostile and error in answer.error
        assert error or len(answer.arrays["w"].read(100)) == CHUNK


@pytest.mark.parametrize("kind", ["ConfigRecord", "ArrayRecord"])
def test_a_record_that_is_garbage_is_refused_and_nothing_else_happens(desk, kind):
    record, record_content = obj(kind, [], b"\xff\xfe garbage")
    content, content_content = obj("RecordDict", [record], json.dumps({"usfmae": record}).encode())
    root, root_content = obj("Message", [content], b"")
    tree = ObjectTree(object_id=record)
    for name in (content, root):
        tree = ObjectTree(object_id=name, children=[tree])
    _, _, session = desk.announce(tree)
    assert all(desk.send(session, {record: record_content, content: content_content, root: root_content}))
    [answer] = gateway_transport.GatewayTransport(desk.link, dict).answers([desk.request])
    assert answer.hostile and "not a reply" in answer.error


def test_a_reply_cannot_grow_by_being_announced_again(desk):
    root, _ = obj("Message", [], b"mine")
    assert desk.announce(ObjectTree(object_id=root))[:2] == (True, [root])
    many = [ObjectTree(object_id=f"{n:064x}") for n in range(500)]
    taken, missing, _ = desk.announce(ObjectTree(object_id=root, children=many))
    assert (taken, missing) == (True, [root])
    assert len(desk.link.store.store) == 1


def test_a_reply_under_another_name_than_its_hash_is_not_taken(desk):
    tree = ObjectTree(object_id=obj("Message", [], b"mine")[0])
    assert desk.announce(tree, name="f" * 64)[:2] == (False, [])


def test_a_reply_under_the_name_of_its_request_is_not_taken(desk):
    """The request's own objects have no limits; a reply must not pass for one."""
    tree = ObjectTree(object_id=desk.request, children=[ObjectTree(object_id=f"{n:064x}") for n in range(500)])
    assert desk.announce(tree)[:2] == (False, [])
    assert not desk.link.store.store


def test_objects_of_a_request_announced_with_false_children_do_no_harm(desk):
    """A site knows the seed's decoder; the next site that is asked must still get all of it."""
    never = ObjectTree(object_id="e" * 64)
    false = [ObjectTree(object_id=name, children=[never]) for name in desk.arrays.make]
    root, _ = obj("Message", [], b"poison")
    assert desk.announce(ObjectTree(object_id=root, children=false))[0]
    request = desk.ask(desk.nodes[1])
    wanted = set(_names(desk.link.store.get_object_tree(request)))
    assert wanted >= set(desk.arrays.make)
    assert all(get_object_id(desk.link.store.get(name)) == name for name in wanted)


def test_what_two_messages_share_stays_until_both_are_done(desk):
    """A reply that holds an object of our request as well: each has its own."""
    store = desk.link.store
    [(shared, content)] = [(n, m()) for n, m in desk.arrays.make.items() if m().startswith(b"ArrayChunk")]
    root, root_content = obj("Message", [], b"reply")
    _, missing, session = desk.announce(ObjectTree(object_id=root, children=[ObjectTree(object_id=shared)]))
    assert set(missing) == {root, shared}
    assert all(desk.send(session, {root: root_content, shared: content}))
    store.delete(desk.request)
    assert store.get(shared) is None and store.fetcher(root)(shared) == content
    store.delete(root)
    assert not store.store and not store.held and not list(store.directory.iterdir())


def test_what_one_site_sends_no_other_site_can_fetch(desk):
    root, content = obj("Message", [], b"mine")
    _, _, session = desk.announce(ObjectTree(object_id=root))
    assert desk.send(session, {root: content}) == [True]
    assert desk.link.store.complete(root) and desk.link.state.get_object(desk.link.run_id, root) is None


def test_a_site_that_announces_what_another_sends_does_not_pay_or_spoil_it(tmp_path):
    """A tensor that training never moves is the same bytes everywhere: everyone knows the name of its object."""
    store = DiskObjectStore(tmp_path / "transit", 2 * CHUNK)
    shared, content = obj("ArrayChunk", [], bytes(CHUNK))
    own, own_content = obj("ArrayChunk", [], b"\1" * 2 * CHUNK)
    roots = [obj("Message", [shared], who)[0] for who in (b"honest", b"mallory")]

    def by(key: bytes, work: Callable[[], object]) -> None:
        context = contextvars.copy_context()
        context.run(CALLER.set, key)
        context.run(work)

    def announce(root: str, *names: str) -> Callable[[], object]:
        children = [ObjectTree(object_id=name) for name in names]
        return lambda: store.preregister(1, ObjectTree(object_id=root, children=children))

    by(b"honest", announce(roots[0], shared))
    by(b"mallory", announce(roots[1], shared, own))
    with pytest.raises(ValueError, match="larger than"):
        by(b"mallory", lambda: store.put(own, own_content))
    with pytest.raises(NoObjectInStoreError):
        by(b"third", lambda: store.put(shared, content))
    by(b"honest", lambda: store.put(shared, content))
    assert roots[0] not in store.refused and store.store[shared].is_available
    for root in roots:
        store.delete(root)
    assert not store.roots and not store.store


def test_replies_that_are_not_taken_leave_nothing_behind(desk):
    """Flower opens a session for each call, and would keep those in which nothing is ever sent."""
    root, _ = obj("Message", [], b"mine")
    for _ in range(50):
        assert desk.announce(ObjectTree(object_id=root), name="f" * 64)[:2] == (False, [])
    assert not desk.link.state._object_push_sessions
    desk.announce(ObjectTree(object_id=root))
    desk.link.forget(desk.request)
    assert not desk.link.state._object_push_sessions and not desk.link.store.store


def test_half_an_upload_is_gone_when_its_request_has_expired(desk):
    chunk, content = obj("ArrayChunk", [], bytes(CHUNK))
    root, _ = obj("Message", [chunk], b"half")
    _, _, session = desk.announce(ObjectTree(object_id=root, children=[ObjectTree(object_id=chunk)]))
    assert desk.send(session, {chunk: content}) == [True]
    desk.link.state.message_ins_store[desk.request].metadata.__dict__["_created_at"] -= 1e6
    desk.link.state._check_stored_messages({desk.request})
    [answer] = desk.link.replies([desk.request])
    assert answer.error and not answer.hostile
    assert not desk.link.store.store and not list(desk.link.store.directory.iterdir())


def test_why_a_site_failed_is_short_and_cannot_forge_lines(desk):
    message = ProtoMessage(error=ProtoError(code=ErrorCode.NODE_UNAVAILABLE, reason="\x1b[2J\nforged " + "x" * 10**6))
    root, content = obj("Message", [], message.SerializeToString())
    _, _, session = desk.announce(ObjectTree(object_id=root))
    assert desk.send(session, {root: content}) == [True]
    [answer] = desk.link.replies([desk.request])
    assert answer.error.isprintable() and len(answer.error) == 200


def test_a_full_disk_does_not_count_against_the_site(tmp_path, monkeypatch):
    store = DiskObjectStore(tmp_path / "transit", 3 * CHUNK)
    root, content = obj("ArrayChunk", [], bytes(CHUNK))
    store.preregister(1, ObjectTree(object_id=root))

    def full(self: DiskObjectStore, file: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(DiskObjectStore, "_write", full)
        for _ in range(10):
            with pytest.raises(OSError, match="No space"):
                store.put(root, content)
    store.put(root, content)
    assert store.complete(root) and not store.refused


def test_a_delivered_file_is_written_over_by_the_next_and_holds_that_alone(tmp_path):
    store = DiskObjectStore(tmp_path / "transit", 2**24)
    for size in (2**21, 2**20 + 5, 3 * 2**20, 10):
        root, content = obj("ArrayChunk", [], bytes([size % 251]) * size)
        store.preregister(1, ObjectTree(object_id=root))
        store.put(root, content)
        assert store.fetcher(root)(root) == content
        store.delete(root)
    assert len(list(store.directory.iterdir())) == 1


def _names(tree: ObjectTree) -> list[str]:
    return [tree.object_id, *(name for child in tree.children for name in _names(child))]
