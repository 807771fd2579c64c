"""The round loop as a ServerApp of Flower, for a coordinator who must run a stock SuperLink.

Requests become messages of Flower's Grid, replies become answers; docs/federation.md says when and how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from usfmae.core.federated import replay as replays
from usfmae.core.federated.admission import Arrived
from usfmae.core.federated.enrolment import EnrolledSite, SiteState
from usfmae.core.federated.messages import DECODER, ENCODER, RAW, RECORD, REPLAY, STEP, TEACHER, UPDATE, to_record
from usfmae.core.tensors import TensorFile
from usfmae.server.flower.link_state import PASSING
from usfmae.server.rounds.transport import Answer, RoundTask


class FlowerWire:
    """Transport over any Grid of Flower."""

    def __init__(self, grid: Grid, sites: Callable[[], Mapping[str, EnrolledSite]]) -> None:
        self.grid, self.sites = grid, sites
        self.nodes: dict[str, int] = {}  # site -> node id, as of the last look
        self.arrays: dict[Path, ArrayRecord] = {}  # what the open round sends, built once

    def connected(self) -> set[str]:
        sites = self.sites().values()
        by_key = {_key_text(site.node_key): site.site for site in sites if site.state == SiteState.ACTIVE}
        node_ids = {
            by_key.get(_key_text(bytes(node.public_key).decode())): node.node_id for node in self.grid.get_nodes()
        }
        self.nodes = {site: node for site, node in node_ids.items() if site}
        return set(self.nodes)

    def ask(self, task: RoundTask) -> str:
        node = self.nodes.get(task.site)
        if node is None:
            return ""
        record = ConfigRecord({**to_record(task.request)})
        content = RecordDict({RECORD: record})
        if task.step:
            content[STEP] = self._file(task.step)
        else:
            content[ENCODER] = self._record(task.encoder)
        if task.decoder:
            content[DECODER] = self._record(task.decoder)
        if task.teacher:
            content[TEACHER] = self._record(task.teacher)
        if task.replay:
            content[REPLAY] = self._files(task.replay)
        self._drop_others((task.encoder, task.step, task.teacher))
        message = Message(content, node, MessageType.TRAIN, ttl=task.ttl, group_id=str(task.request.round))
        return next(iter(self.grid.push_messages([message])), "") or ""

    def answers(self, messages: Iterable[str]) -> Iterable[Answer]:
        wanted = list(messages)
        if wanted:
            for reply in self.grid.pull_messages(wanted):
                yield _answer(reply)

    def withdraw(self, messages: Iterable[str]) -> None:
        """A stock SuperLink keeps them until they expire."""

    def release(self) -> None:
        """Forget the arrays of the round; before a merge, to keep memory low."""
        self.arrays.clear()

    def _record(self, file: Path) -> ArrayRecord:
        if file not in self.arrays:
            with TensorFile(file) as tensors:
                self.arrays[file] = ArrayRecord(
                    {name: Array(np.array(tensors.tensor(name))) for name in tensors.shapes}
                )
        return self.arrays[file]

    def _file(self, file: Path) -> ArrayRecord:
        if file not in self.arrays:
            data = file.read_bytes()
            self.arrays[file] = ArrayRecord({STEP: Array("uint8", (len(data),), RAW, data)})
        return self.arrays[file]

    def _files(self, folder: Path) -> ArrayRecord:
        if folder not in self.arrays:
            contents = {name: path.read_bytes() for name, path in replays.files(folder).items()}
            self.arrays[folder] = ArrayRecord({n: Array("uint8", (len(d),), RAW, d) for n, d in contents.items()})
        return self.arrays[folder]

    def _drop_others(self, needed: tuple[Path | None, ...]) -> None:
        rounds = [path for path in self.arrays if path.name.startswith(("round-", "step-"))]
        for file in [path for path in rounds if path not in needed]:
            del self.arrays[file]


def _key_text(pem: str) -> str:
    """A PEM without its line breaks, so that equal keys compare equal whoever wrote them."""
    return "".join(pem.split())


def _answer(reply: Message) -> Answer:
    message = reply.metadata.reply_to_message_id
    if reply.has_error():
        return Answer(message, error=str(reply.error.reason), hostile=reply.error.code not in PASSING)
    content = reply.content
    names = set(content)
    if not names <= {RECORD, UPDATE} or RECORD not in content.config_records:
        return Answer(message, error=f"records {sorted(names)!r:.100} instead of {RECORD}, {UPDATE}", hostile=True)
    arrays: Mapping[str, Array] = content.array_records.get(UPDATE, ArrayRecord())
    arrived = {name: Arrived.whole(a.dtype, tuple(a.shape), a.stype, a.data) for name, a in arrays.items()}
    return Answer(message, dict(content.config_records[RECORD]), arrived)


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """The same loop as a stock ServerApp; run config: `home` (directory of usfmae-server init), `rounds`."""
    from usfmae.server.layout import Federation, Layout
    from usfmae.server.rounds.loop import Loop

    federation = Federation.of(Layout(Path(str(context.run_config["home"]))))
    Loop(federation, FlowerWire(grid, federation.ledger.sites)).run(int(context.run_config.get("rounds", 0)))
