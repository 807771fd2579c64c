"""One frame as it came and as it would go into the corpus, for a person who decides.

The file may be hostile: it is decoded in a process of its own (`core/sandbox`). A frame that still shows text, or little
of a scan, is shown as far as cleaning went.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from usfmae.core.config import CleanSettings, Settings
from usfmae.core.errors import ResourceError, SourceError
from usfmae.core.report.reasons import meaning
from usfmae.core.sandbox.records import NoPicture, Picture
from usfmae.core.sandbox.worker import ProcessEndedError, Worker
from usfmae.core.types import Pixels, Scan, content_id

IDLE_SECONDS = 60.0

Answers = Sequence[tuple[Picture | NoPicture, bytes]]


@dataclass(frozen=True)
class FramePreview:
    """PNG pictures, and the pixels that would be packed; where cleaning gives none, `why_not` says why, for people."""

    before: bytes
    after: bytes = b""
    changed: bytes = b""  # as recorded, with the pixels that cleaning changed in red
    packed: bytes = b""
    shape: tuple[int, ...] = ()
    why_not: str = ""


def preview_frame(scan: Scan, index: int, settings: Settings) -> FramePreview:
    """Decode, clean and pack one frame as `prepare` would. SourceError where the file gives no picture."""
    try:
        return assembled(_PROCESS.preview(scan, index, settings))
    except (ProcessEndedError, ResourceError) as error:
        raise SourceError("this scan", meaning(getattr(error, "reason", "")) or str(error), "drop it") from None


class PreviewProcess:
    """A decoding process that waits for the next frame: its start takes seconds, a picture tenths of one.

    It ends after IDLE_SECONDS without a request, and with a request that ends it.
    """

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.lock = threading.Lock()
        self.idle: threading.Timer | None = None

    def preview(self, scan: Scan, index: int, settings: Settings) -> Answers:
        """As `Worker.preview`, without cleaning's doubt; one at a time."""
        wanted = settings.model_copy(update={"clean": trusting(settings.clean)})
        with self.lock:
            if self.idle:
                self.idle.cancel()
            if self.worker is None or self.worker.settings != wanted:
                self._end()
                self.worker = Worker(wanted, b"")
            try:
                return self.worker.preview(scan, index)
            except BaseException:
                self._end()
                raise
            finally:
                self.idle = threading.Timer(IDLE_SECONDS, self.close)
                self.idle.daemon = True
                self.idle.start()

    def close(self) -> None:
        """End the process, if there is one."""
        with self.lock:
            self._end()

    def _end(self) -> None:
        worker, self.worker = self.worker, None
        if worker is not None:
            worker.close()


_PROCESS = PreviewProcess()
atexit.register(_PROCESS.close)


def assembled(answers: Answers) -> FramePreview:
    """What the decoding process answered, as one. SourceError where it gave no picture."""
    pictures = {answer.name: (answer, blob) for answer, blob in answers if not isinstance(answer, NoPicture)}
    why = next((meaning(answer.reason) or answer.reason for answer, _ in answers if isinstance(answer, NoPicture)), "")
    if "before" not in pictures:
        raise SourceError("this scan", why or "gives no picture", "drop it")
    before = pictures["before"][1]
    if "packed" not in pictures or "after" not in pictures:
        return FramePreview(before, why_not=why)
    packed, pixels = pictures["packed"]
    changed = pictures["mask"][1] if "mask" in pictures else b""
    return FramePreview(before, pictures["after"][1], changed, pixels, packed.shape)


def image_id(scan_id: str, index: int) -> str:
    """The id of a frame's image in the corpus, as `prepare` gives it."""
    return content_id(scan_id, str(index))


def trusting(settings: CleanSettings) -> CleanSettings:
    """The settings without the doubt that would leave a person nothing to look at."""
    return settings.model_copy(update={"smallest_region": 0.0})


def png(pixels: Pixels) -> bytes:
    """A picture (H, W) or (H, W, 3) as a PNG file."""
    from PIL import Image

    out = BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
