"""Requests that have no answer yet, on disk: the aggregator delivers each of them once."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from usfmae.client.flower.messages import RequestMessage, reply_metadata
from usfmae.client.site import Site, write_json
from usfmae.core.types import content_id


@dataclass
class PendingRequest:
    path: Path
    request: RequestMessage
    record: dict[str, Any] | None = None  # scalars of the TrainRequest, once fetched
    ids: dict[str, str] = field(default_factory=dict)  # record name -> object id
    reply: bytes = b""  # metadata of the answer, once one was begun

    @classmethod
    def save(cls, site: Site, request: RequestMessage) -> PendingRequest:
        # The id comes from the network; a file's name never does.
        pending = cls(site.root / "pending" / f"{time.time_ns()}-{content_id(request.id)[:12]}.json", request)
        pending._write()
        return pending

    @classmethod
    def all(cls, site: Site) -> list[PendingRequest]:
        """Every waiting request, oldest first. A damaged file is set aside, with an audit entry."""
        requests = []
        for path in sorted((site.root / "pending").glob("*.json")):
            try:
                requests.append(cls._read(path))
            except (KeyError, ValueError, TypeError, DecodeError) as error:
                path.replace(path.with_suffix(".damaged"))
                site.note("request.damaged", "dropped", file=path.name, why=f"{type(error).__name__}: {error}"[:200])
        return requests

    @classmethod
    def _read(cls, path: Path) -> PendingRequest:
        fields = json.loads(path.read_bytes())
        request = RequestMessage(base64.b64decode(fields["metadata"]), str(fields["id"]))
        _ = request.run, request.expires  # what cannot be read is found here, not in the middle of an answer
        record, ids = fields["record"], fields["ids"]
        if not isinstance(ids, dict) or not (record is None or isinstance(record, dict)):
            raise TypeError("record or ids are no object")
        return cls(path, request, record, ids, base64.b64decode(fields["reply"]))

    # How often the agent began with this request and did not come to the end of the step: a file of one byte a time,
    # not flushed, since it counts ends of the process, not of the machine.

    @property
    def _begun(self) -> Path:
        return self.path.with_suffix(".begun")

    def begin(self) -> int:
        """Note that a step with it begins; the number of beginnings without an end, this one included."""
        try:
            with self._begun.open("ab") as file:
                file.write(b".")
                return file.tell()
        except OSError:  # a full disk, which the step itself will meet and say
            return 0

    def end(self) -> None:
        """The step is over, however it went."""
        self._begun.unlink(missing_ok=True)

    def remember(self, record: dict[str, Any], ids: dict[str, str]) -> None:
        self.record, self.ids = record, ids
        self._write()

    def reply_metadata(self) -> bytes:
        """The same at every call, so that an interrupted upload goes on under the same id."""
        if not self.reply:
            self.reply = reply_metadata(self.request, time.time())
            self._write()
        return self.reply

    def older_than(self, others: list[PendingRequest]) -> bool:
        """The same campaign has asked for a later round meanwhile: this one is closed."""
        if self.record is None:
            return False
        mine = self.record.get("campaign"), self.record.get("round")
        for other in others:
            theirs = (other.record or {}).get("campaign"), (other.record or {}).get("round")
            if mine[0] == theirs[0] and isinstance(theirs[1], int) and isinstance(mine[1], int) and theirs[1] > mine[1]:
                return True
        return False

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self.end()

    def _write(self) -> None:
        fields = {
            "metadata": base64.b64encode(self.request.metadata).decode(),
            "id": self.request.id,
            "record": self.record,
            "ids": self.ids,
            "reply": base64.b64encode(self.reply).decode(),
        }
        write_json(self.path, fields)
