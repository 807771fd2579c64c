"""What a sealed round adds at a site: it is for this site's custodian, and the update leaves under a mask.

The update lies in the outbox as it was made, so that a person can read its sheet and its bytes. The mask is put on as it
is sent. Its seed follows from the site's secret, the round and the codes: an upload that is begun again after a crash
has the same mask, and other codes never do.
"""

from __future__ import annotations

import dataclasses

from usfmae.client.site import Site
from usfmae.core import flower_objects
from usfmae.core.errors import PolicyError
from usfmae.core.federated.codec import PayloadHash
from usfmae.core.federated.encodings import shared
from usfmae.core.federated.messages import TrainReply, TrainRequest, task_id
from usfmae.core.federated.sealed import masks
from usfmae.core.federated.sealed.custody import box_subject

Parts = dict[str, flower_objects.Part]


def check(site: Site, request: TrainRequest) -> None:
    """PolicyError unless a request is sealed as this site wants it: for the custodian in its site.yaml, or for none."""
    own = site.settings.custodian
    named = masks.key_name(own) if own else ""
    if request.custodian != named:
        why = f"names the custodian {request.custodian or 'none'}, this site's is {named or 'none'}"
        raise PolicyError("request", why, "compare 'custodian' in site.yaml with the coordinator")
    is_shared = request.encoding.startswith(f"{shared.NAME}:")
    if bool(named) != is_shared or (named and not request.bound > 0):
        raise PolicyError("request", "is sealed by half: custodian, encoding and bound go together", "refused")


def sealed(site: Site, request: TrainRequest, reply: TrainReply, parts: Parts) -> tuple[TrainReply, Parts]:
    """A reply and its tensors as they leave: masked, with the seed in a box. Unsigned; unchanged where nothing is sealed."""
    if not request.custodian:
        return reply, parts
    round_ = (request.campaign, str(request.round), request.base)
    seed = masks.new_seed(site.secret, (*round_, reply.content, request.custodian))
    outgoing, position, content = {}, 0, PayloadHash()
    for name in sorted(parts):
        outgoing[name] = _masked(parts[name], seed, position)
        position += parts[name].size
        content.add(name, outgoing[name].read(0, outgoing[name].size))
    reply = dataclasses.replace(reply, content=content.id(), task=task_id(request))
    key = masks.public_key(site.settings.custodian, "'custodian' in site.yaml")
    return dataclasses.replace(reply, mask=masks.boxed(seed, key, box_subject(reply))), outgoing


def _masked(part: flower_objects.Part, seed: bytes, position: int) -> flower_objects.Part:
    """A tensor of codes, one byte each, as two masked bytes each; `position` of its first code in the update."""
    word = masks.WORD

    def read(start: int, stop: int) -> bytes:
        first, last = start // word, min(-(-stop // word), part.size)
        data = masks.masked(part.read(first, last), seed, position + first)
        return data[start - first * word : stop - first * word]

    return dataclasses.replace(part, size=word * part.size, read=read)
