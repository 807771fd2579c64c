"""GIF: pixels that are transparent keep the colour that is written there.

FFmpeg shows white where nothing lies below a transparent pixel, so that a sector whose black surroundings were made
transparent comes out on white. Where something lies below, transparent means that it stays, which FFmpeg does.
"""

from __future__ import annotations

HEADER = 13  # bytes of the signature and the screen
EXTENSION, IMAGE, CONTROL = 0x21, 0x2C, 0xF9  # labels of blocks (GIF89a, 20 and 23)
IS_TRANSPARENT, DISPOSAL, CLEARS, RESTORES = 0x01, 0x1C, 0x08, 0x0C  # bits of a control block
END = b";"


def opaque(data: bytes) -> bytes:
    """The file with no transparency in the pictures that are drawn on an empty screen. As far as it is whole."""
    file = bytearray(data)
    screen = data[6:10]
    place = HEADER + _colours(data[10:11])
    control, is_empty = 0, True
    while place + 10 < len(data):
        if data[place] == EXTENSION:
            if data[place + 1] == CONTROL:
                control = place + 3
            place = _after_blocks(data, place + 2)
        elif data[place] == IMAGE:
            if control and is_empty:
                file[control] &= ~IS_TRANSPARENT
            disposal = data[control] & DISPOSAL if control else 0
            clears = disposal == CLEARS and data[place + 1 : place + 9] == bytes(4) + screen
            is_empty = clears or (is_empty and disposal == RESTORES)
            control = 0
            place = _after_blocks(data, place + 11 + _colours(data[place + 9 : place + 10]))
        else:
            break
    return bytes(file)


def _colours(packed: bytes) -> int:
    """Bytes of the table of colours that a packed field announces."""
    return 3 << (packed[0] & 7) + 1 if packed and packed[0] & 0x80 else 0


def _after_blocks(data: bytes, place: int) -> int:
    while place < len(data) and data[place]:
        place += 1 + data[place]
    return place + 1
