"""The bytes of C-STORE and C-ECHO (PS3.7 sections 6.3 and 9.3, PS3.8 Annex E).

A command set has few elements of fixed kinds: it is read and made here in microseconds. As a pydicom data set it takes
longer than all else that a small instance needs.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from typing import NamedTuple

from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION

P_DATA, HEADER = 4, 6  # type of a PDU that holds fragments; bytes before a PDU's content
COMMAND, LAST = 1, 2  # bits of a fragment's control header
C_STORE, C_ECHO, ANSWER = 0x0001, 0x0030, 0x8000  # command fields; a response is its request with the highest bit set
NO_DATA_SET = 0x0101
SOP_CLASS, FIELD, MESSAGE, ANSWERED, DATA_SET, STATUS, SOP_INSTANCE = 0x2, 0x100, 0x110, 0x120, 0x800, 0x900, 0x1000
LONGEST_UID = 64


class StoreRequest(NamedTuple):
    """A C-STORE or C-ECHO request without its data set."""

    context: int
    field: int
    message: int
    sop_class: bytes
    sop_instance: bytes
    has_data: bool


def fragments(content: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Presentation context, control header and bytes of each fragment in a P-DATA-TF PDU. ValueError where damaged."""
    at = 0
    while at < len(content):
        if at + 6 > len(content):
            raise ValueError("half a fragment")
        length, context, control = struct.unpack_from(">IBB", content, at)
        end = at + 4 + length
        if length < 2 or end > len(content):
            raise ValueError("a fragment that is longer than its PDU")
        yield context, control, content[at + 6 : end]
        at = end


def request(context: int, command_set: bytes) -> StoreRequest:
    """The request a command set makes. ValueError where it makes none, or one of another service."""
    found = elements(command_set)
    field, message, data_set = (_number(found.get(tag, b"")) for tag in (FIELD, MESSAGE, DATA_SET))
    sop_class, sop_instance = (found.get(tag, b"").rstrip(b"\0 ") for tag in (SOP_CLASS, SOP_INSTANCE))
    made = StoreRequest(context, field, message, sop_class, sop_instance, data_set != NO_DATA_SET)
    named = all(0 < len(name) <= LONGEST_UID for name in (sop_class, sop_instance))
    if not (field == C_ECHO or (field == C_STORE and made.has_data and named)):
        raise ValueError(f"neither C-STORE nor C-ECHO (command field {field:#06x})")
    return made


def elements(command_set: bytes) -> dict[int, bytes]:
    """Element number -> value (PS3.7 section 6.3.1). ValueError for what is no command set."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(command_set):
        if at + 8 > len(command_set):
            raise ValueError("half an element")
        group, element, length = struct.unpack_from("<HHI", command_set, at)
        if group or at + 8 + length > len(command_set):
            raise ValueError("an element that belongs to no command set")
        found[element] = command_set[at + 8 : at + 8 + length]
        at += 8 + length
    return found


def _number(value: bytes) -> int:
    if len(value) != 2:
        raise ValueError("a command set without a field, a message id or a data set type")
    return int.from_bytes(value, "little")


def response(to: StoreRequest, status: int, longest: int = 0) -> bytes:
    """The PDUs of the answer to a request, none longer than `longest` bytes where the sender set a limit (not 0)."""
    values = {
        SOP_CLASS: _even(to.sop_class),
        FIELD: struct.pack("<H", to.field | ANSWER),
        ANSWERED: struct.pack("<H", to.message),
        DATA_SET: struct.pack("<H", NO_DATA_SET),
        STATUS: struct.pack("<H", status),
        SOP_INSTANCE: _even(to.sop_instance),
    }
    body = b"".join(struct.pack("<HHI", 0, tag, len(value)) + value for tag, value in values.items() if value)
    return _cut(to.context, struct.pack("<HHII", 0, 0, 4, len(body)) + body, longest)


def _cut(context: int, command_set: bytes, longest: int) -> bytes:
    room = max(longest - 6, 1) if longest else len(command_set)
    pdus = []
    for at in range(0, len(command_set), room):
        part = command_set[at : at + room]
        control = COMMAND | (LAST if at + room >= len(command_set) else 0)
        pdus.append(struct.pack(">BxIIBB", P_DATA, len(part) + 6, len(part) + 2, context, control) + part)
    return b"".join(pdus)


def file_head(of: StoreRequest, syntax: str) -> bytes:
    """Preamble, prefix and file meta information (PS3.10 section 7.1) of the data set that follows."""
    before, after = _kind_of_file(of.sop_class, syntax)
    body = before + _element(3, b"UI", _even(of.sop_instance)) + after
    return b"\0" * 128 + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(body)) + body


@functools.lru_cache(maxsize=64)
def _kind_of_file(sop_class: bytes, syntax: str) -> tuple[bytes, bytes]:
    """File meta information before and after the instance's own name."""
    version = struct.pack("<HH2sHI", 2, 1, b"OB", 0, 2) + b"\0\1"
    made_by = _element(0x12, b"UI", _even(PYNETDICOM_IMPLEMENTATION_UID.encode()))
    made_by += _element(0x13, b"SH", _even(PYNETDICOM_IMPLEMENTATION_VERSION.encode(), b" "))
    return version + _element(2, b"UI", _even(sop_class)), _element(0x10, b"UI", _even(syntax.encode())) + made_by


def _element(tag: int, kind: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", 2, tag, kind, len(value)) + value


def _even(value: bytes, padding: bytes = b"\0") -> bytes:
    return value + padding * (len(value) % 2)
