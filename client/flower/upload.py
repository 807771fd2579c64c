"""What goes back to the aggregator for a request: the released update, or a signed no."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from usfmae.client import outbox
from usfmae.client.flower import messages
from usfmae.client.flower.connection import Connection
from usfmae.client.flower.request_queue import PendingRequest
from usfmae.client.rounds import participation
from usfmae.client.site import Site
from usfmae.core import flower_objects
from usfmae.core.federated import messages as protocol
from usfmae.core.federated.messages import TrainReply, TrainRequest
from usfmae.core.log import note
from usfmae.core.tensors import TensorFile

logger = logging.getLogger(__name__)


class Uploader:
    """Uploads replies; a request that has its answer is done with."""

    def __init__(self, site: Site, connection: Connection) -> None:
        self.site, self.connection = site, connection

    def update(self, pending: PendingRequest, request: TrainRequest) -> None:
        """The update that was made for this request, signed now."""
        place, reply = outbox.folder(self.site, outbox.key(request)), participation.released(self.site, request)
        with TensorFile(place / outbox.UPDATE) as file:
            outbox.check(file, reply.content)
            parts = outbox.parts(file, reply.encoding)
            signed, parts = participation.outgoing(self.site, request, reply, parts)
            arrays = {protocol.UPDATE: flower_objects.array_record(parts)}
            sent = self._send(pending, signed, arrays)
        if sent:
            outbox.mark_sent(self.site, place, sent)
            note(logger, "update sent", id=place.name, bytes=sent)

    def decline(self, pending: PendingRequest, why: str) -> None:
        """Tell the aggregator that there will be no update for this request."""
        self._send(pending, participation.declined(self.site, pending.record or {}, why), {})
        self.site.note("request.declined", "declined", message=pending.request.id[:12], why=why)
        note(logger, "declined", why=why)

    def _send(self, pending: PendingRequest, reply: TrainReply, arrays: Mapping[str, flower_objects.Arrays]) -> int:
        """Upload a reply; a repeated call goes on where an interrupted one stopped. Returns the bytes sent."""
        message = messages.reply(
            pending.reply_metadata(), {protocol.RECORD: protocol.to_record(reply)}, arrays, reply.seconds
        )
        sent = self.connection.patiently(lambda: self.connection.fleet.push(message))
        pending.drop()
        return sent
