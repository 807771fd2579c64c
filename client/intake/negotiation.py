"""Who may send what: the request for an association and its answer (PS3.8 sections 7.1 and 9.3, PS3.7 Annex D).

Read and made here as bytes: pynetdicom takes a twentieth of a second for a request with the usual 128 presentation
contexts, and some archives open an association for each instance.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION, AllStoragePresentationContexts

from usfmae.core.config.sources import CstoreSettings

LONGEST_PDU = 1 << 18  # bytes of content that a sender may put into one P-DATA-TF
DICOM, VERIFICATION = b"1.2.840.10008.3.1.1.1", b"1.2.840.10008.1.1"
FIXED = 74  # bytes of a request or its answer before the items
# kinds of items, PS3.8 sections 9.3.2 and 9.3.3, PS3.7 section D.3.3
APPLICATION, CONTEXT, ANSWERED_CONTEXT, ABSTRACT, TRANSFER = 0x10, 0x20, 0x21, 0x30, 0x40
USER, LONGEST, CLASS, VERSION = 0x50, 0x51, 0x52, 0x55
ACCEPTED, ABSTRACT_UNKNOWN, TRANSFER_UNKNOWN = 0, 3, 4

# As stored by scanners and archives; the listener takes any of them and converts none (PS3.5 section 10).
TRANSFER_SYNTAXES = {
    "1.2.840.10008.1.2.1",  # explicit little endian
    "1.2.840.10008.1.2",  # implicit little endian
    "1.2.840.10008.1.2.2",  # explicit big endian
    "1.2.840.10008.1.2.1.99",  # deflated
    "1.2.840.10008.1.2.5",  # RLE
    *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91, 100, 101, 102, 103, 104, 105, 106, 107)),
    *(f"1.2.840.10008.1.2.4.{n}" for n in (108, 201, 202, 203)),
}
STORED = frozenset(str(context.abstract_syntax).encode() for context in AllStoragePresentationContexts)

# (result, source, reason) of a rejection, PS3.8 table 9-21
NOT_SUPPORTED, CALLING_UNKNOWN, CALLED_UNKNOWN = (1, 1, 2), (1, 1, 3), (1, 1, 7)
OLD_PROTOCOL, FULL = (1, 2, 2), (2, 3, 2)
REASONS = {
    NOT_SUPPORTED: "no DICOM application",
    CALLING_UNKNOWN: "not in cstore.allow",
    CALLED_UNKNOWN: "calls another title than cstore.ae_title",
    OLD_PROTOCOL: "another version of the protocol",
    FULL: "as many associations as cstore.associations allows",
}


class Context(NamedTuple):
    """What a sender would send, and the ways it could write it, the one it likes best first."""

    number: int
    abstract: bytes
    transfer: list[bytes]


class Asked(NamedTuple):
    """What a sender asks for."""

    fixed: bytes  # the part of the request that its answer repeats
    calling: str
    called: str
    application: bytes
    protocol: int
    longest: int  # bytes of content that it takes in one PDU; 0 is no limit
    contexts: list[Context]


def asked(pdu: bytes) -> Asked:
    """Reads an A-ASSOCIATE-RQ. ValueError for what is none."""
    if len(pdu) < FIXED:
        raise ValueError("too short")
    protocol, called, calling = struct.unpack_from(">H2x16s16s", pdu, 6)
    application, longest, contexts = b"", 0, []
    for kind, content in _items(pdu[FIXED:]):
        if kind == APPLICATION:
            application = _uid(content)
        elif kind == CONTEXT and len(content) > 4:
            parts = list(_items(content[4:]))
            abstract = next((_uid(part) for kind, part in parts if kind == ABSTRACT), b"")
            contexts.append(Context(content[0], abstract, [_uid(part) for kind, part in parts if kind == TRANSFER]))
        elif kind == USER:
            longest = next((int.from_bytes(p, "big") for kind, p in _items(content) if kind == LONGEST), 0)
    return Asked(pdu[6:FIXED], _title(calling), _title(called), application, protocol, longest, contexts)


def rejection(request: Asked, settings: CstoreSettings) -> tuple[int, int, int] | None:
    """Why a sender may not send: result, source and reason; None where it may."""
    if not request.protocol & 1:
        return OLD_PROTOCOL
    if request.application != DICOM:
        return NOT_SUPPORTED
    if request.calling not in settings.allow:
        return CALLING_UNKNOWN
    return None if request.called == settings.ae_title.strip() else CALLED_UNKNOWN


def acceptance(request: Asked) -> tuple[bytes, dict[int, str]]:
    """The A-ASSOCIATE-AC, and the transfer syntax of each presentation context that was accepted."""
    accepted: dict[int, str] = {}
    body = [request.fixed, _item(APPLICATION, DICOM)]
    for context in request.contexts:
        known = context.abstract in STORED or context.abstract == VERIFICATION
        chosen = next((one for one in context.transfer if one.decode("ascii", "replace") in TRANSFER_SYNTAXES), b"")
        result = ABSTRACT_UNKNOWN if not known else ACCEPTED if chosen else TRANSFER_UNKNOWN
        if result == ACCEPTED:
            accepted[context.number] = chosen.decode()
        head = struct.pack(">BxBx", context.number, result)
        body.append(_item(ANSWERED_CONTEXT, head + _item(TRANSFER, chosen or b"1.2.840.10008.1.2")))
    longest = _item(LONGEST, struct.pack(">I", LONGEST_PDU))
    maker = _item(CLASS, PYNETDICOM_IMPLEMENTATION_UID.encode())
    version = _item(VERSION, PYNETDICOM_IMPLEMENTATION_VERSION.encode())
    content = b"".join([*body, _item(USER, longest + maker + version)])
    return struct.pack(">BxI", 2, len(content)) + content, accepted


def _items(content: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(content):
        if at + 4 > len(content):
            raise ValueError("half an item")
        kind, length = struct.unpack_from(">BxH", content, at)
        if at + 4 + length > len(content):
            raise ValueError("an item that is longer than its PDU")
        yield kind, content[at + 4 : at + 4 + length]
        at += 4 + length


def _item(kind: int, content: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(content)) + content


def _uid(content: bytes) -> bytes:
    return content.rstrip(b"\0 ")


def _title(content: bytes) -> str:
    return content.decode("ascii", "replace").strip(" \0")
