"""The parts of a multipart/related body, as bytes that are passed on as they come (RFC 2387, PS3.18 section 8.6.1.2).

The same for what the PACS answers (WADO-RS) and for what a gateway pushes (STOW-RS). python-multipart reads the form.
"""

from __future__ import annotations

from collections.abc import Callable
from email.message import Message

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

LONGEST_BOUNDARY = 200


def boundary_of(content_type: str) -> bytes:
    """The boundary that a Content-Type names. ValueError where it names none."""
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not 0 < len(boundary) <= LONGEST_BOUNDARY or not boundary.isascii():
        raise ValueError("multipart without a boundary")
    return boundary.encode()


class Parts:
    """Feeds on a body; each part's content goes to `write`, its end to `ended`.

    ValueError where the body is none, in `feed` or, where it is cut off or has no part at all, in `end`.
    """

    def __init__(
        self, boundary: bytes, write: Callable[[bytes], None], ended: Callable[[], None] = lambda: None
    ) -> None:
        self.write, self.ended = write, ended
        self.parts, self.open, self.complete = 0, False, False
        callbacks = {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._all,
        }
        self.parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]

    def feed(self, content: bytes) -> None:
        try:
            self.parser.write(content)
        except FormParserError as error:
            raise ValueError(f"a damaged multipart body: {error}") from None

    def end(self) -> None:
        if self.open or not self.complete or not self.parts:
            raise ValueError("a multipart body that is cut off, or empty")

    def _begin(self) -> None:
        self.parts += 1
        self.open = True

    def _data(self, content: bytes, start: int, end: int) -> None:
        self.write(content[start:end])

    def _end(self) -> None:
        self.open = False
        self.ended()

    def _all(self) -> None:
        self.complete = True
