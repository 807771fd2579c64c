"""Transport over the gateway: a request is offered from the files it is made of, a reply is read from transit.

Neither is ever in memory whole: sites fetch the encoder chunk by chunk from the checkpoint, and a reply is judged
and spooled tensor by tensor.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from usfmae.core import flower_objects
from usfmae.core.federated import replay as replays
from usfmae.core.federated.admission import Arrived
from usfmae.core.federated.enrolment import EnrolledSite, SiteState
from usfmae.core.federated.messages import DECODER, ENCODER, RAW, RECORD, REPLAY, STEP, TEACHER, UPDATE, to_record
from usfmae.core.tensors import TensorFile
from usfmae.server.flower.link_state import LinkState, Reply, config_record, normal_pem
from usfmae.server.rounds.transport import Answer, RoundTask


class GatewayTransport:
    def __init__(self, link: LinkState, sites: Callable[[], Mapping[str, EnrolledSite]]) -> None:
        self.link, self.sites = link, sites
        self.nodes: dict[str, int] = {}  # site -> node id, as of the last look
        self.arrays: dict[Path, flower_objects.Arrays] = {}  # what the open round sends: hashed once, for all sites

    def connected(self) -> set[str]:
        sites = self.sites().values()
        self.link.enrol(sites)
        online = self.link.online()
        keys = {site.site: normal_pem(site.node_key) for site in sites if site.state == SiteState.ACTIVE}
        self.nodes = {site: online[key] for site, key in keys.items() if key in online}
        return set(self.nodes)

    def ask(self, task: RoundTask) -> str:
        node = self.nodes.get(task.site)
        if node is None:
            return ""
        arrays = {STEP: self._file(task.step)} if task.step else {ENCODER: self._offered(task.encoder)}
        if task.decoder:
            arrays[DECODER] = self._offered(task.decoder)
        if task.teacher:
            arrays[TEACHER] = self._offered(task.teacher)
        if task.replay:
            arrays[REPLAY] = self._files(task.replay)
        return self.link.send(node, {RECORD: to_record(task.request)}, arrays, task.ttl)

    def answers(self, messages: Iterable[str]) -> Iterator[Answer]:
        for reply in self.link.replies(list(messages)):
            yield self._answer(reply)

    def withdraw(self, messages: Iterable[str]) -> None:
        for message in messages:
            self.link.forget(message)

    def release(self) -> None:
        self.arrays.clear()

    def _offered(self, file: Path) -> flower_objects.Arrays:
        if file not in self.arrays:
            tensors = TensorFile(file)  # stays open as long as a site may ask for a piece of it
            self.arrays[file] = flower_objects.array_record({name: _part(tensors, name) for name in tensors.shapes})
        return self.arrays[file]

    def _file(self, file: Path) -> flower_objects.Arrays:
        if file not in self.arrays:
            self.arrays[file] = flower_objects.array_record({STEP: _bytes(file)})
        return self.arrays[file]

    def _files(self, folder: Path) -> flower_objects.Arrays:
        if folder not in self.arrays:
            parts = {name: _bytes(path) for name, path in replays.files(folder).items()}
            self.arrays[folder] = flower_objects.array_record(parts)
        return self.arrays[folder]

    def _answer(self, reply: Reply) -> Answer:
        if reply.error:
            return Answer(reply.message, error=reply.error, hostile=reply.hostile)
        if not set(reply.records) <= {RECORD, UPDATE} or RECORD not in reply.records:
            why = f"records {sorted(reply.records)!r:.100} instead of {RECORD}, {UPDATE}"
            return Answer(reply.message, error=why, hostile=True)
        try:
            record = config_record(reply.fetch(reply.records[RECORD]))
            update = reply.records.get(UPDATE)
            arrays = flower_objects.references(reply.fetch(update), "ArrayRecord") if update else {}
            tensors = {name: arrived(id_, reply.fetch) for name, id_ in arrays.items()}
            return Answer(reply.message, record, tensors)
        except Exception as error:  # whatever a hostile reply may raise: it must never end the round loop
            return Answer(reply.message, error=f"not a reply: {error}"[:200], hostile=True)


def arrived(id_: str, fetch: flower_objects.Fetch) -> Arrived:
    """A tensor of a reply; PolicyError where it is none, also when it is read."""
    array = flower_objects.tensor(fetch(id_))

    def read(most: int) -> bytes:
        """The tensor's bytes; of one that is longer than `most`, only so much that it shows."""
        data = bytearray()
        for chunk in array.chunks:
            data += flower_objects.expect(fetch(chunk), "ArrayChunk").body
            if len(data) > most:
                break
        return bytes(data)

    return Arrived(array.dtype, array.shape, array.encoding, read)


def _part(tensors: TensorFile, name: str) -> flower_objects.Part:
    """A float32 tensor on disk as Flower writes arrays: npy header, then the values."""
    shape, stream = tensors.shapes[name], io.BytesIO()
    npy.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    head = stream.getvalue()
    size = len(head) + 4 * int(np.prod(shape, dtype=np.int64))

    def read(start: int, stop: int) -> bytes:
        values = tensors.raw(name, max(start - len(head), 0), max(stop - len(head), 0))
        return head[start:stop] + values

    return flower_objects.Part("float32", shape, "numpy.ndarray", size, read)


def _bytes(file: Path) -> flower_objects.Part:
    """A file as an array of its bytes."""
    size = file.stat().st_size

    def read(start: int, stop: int) -> bytes:
        with file.open("rb") as stream:
            stream.seek(start)
            return stream.read(stop - start)

    return flower_objects.Part("uint8", (size,), RAW, size, read)
