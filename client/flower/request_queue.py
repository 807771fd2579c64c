"""Requests that have no answer yet, on disk: the aggregator delivers each of them once."""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from usfmae.client.flower.messages import RequestMessage, reply_metadata
from usfmae.client.site import Site, read_json, write_json
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
        """Every waiting request, oldest first."""
        found = []
        for path in sorted((site.root / "pending").glob("*.json")):
            about = read_json(path)
            if about:
                request = RequestMessage(base64.b64decode(about["metadata"]), about["id"])
                found.append(cls(path, request, about["record"], about["ids"], base64.b64decode(about["reply"])))
        return found

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

    def _write(self) -> None:
        about = {
            "metadata": base64.b64encode(self.request.metadata).decode(),
            "id": self.request.id,
            "record": self.record,
            "ids": self.ids,
            "reply": base64.b64encode(self.reply).decode(),
        }
        write_json(self.path, about)
