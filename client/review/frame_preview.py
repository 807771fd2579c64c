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
        return assembled(_PROCESSES.preview(scan, index, settings))
    except (ProcessEndedError, ResourceError) as error:
        raise SourceError("this scan", meaning(getattr(error, "reason", "")) or str(error), "drop it") from None


class PreviewProcesses:
    """Decoding processes that wait for the next frame: the start of one takes seconds, a picture tenths of one.

    They end after IDLE_SECONDS without a request; one that fails ends with its request.
    """

    def __init__(self) -> None:
        self.free: list[Worker] = []
        self.lock = threading.Lock()
        self.idle: threading.Timer | None = None

    def preview(self, scan: Scan, index: int, settings: Settings) -> Answers:
        """As `Worker.preview`, without cleaning's doubt; as many at once as threads call."""
        worker = self._taken(settings.model_copy(update={"clean": trusting(settings.clean)}))
        try:
            answers = worker.preview(scan, index)
        except BaseException:
            worker.close()
            raise
        with self.lock:
            self.free.append(worker)
            if self.idle:
                self.idle.cancel()
            self.idle = threading.Timer(IDLE_SECONDS, self.close)
            self.idle.daemon = True
            self.idle.start()
        return answers

    def _taken(self, wanted: Settings) -> Worker:
        """A process that waits, or a new one; those of other settings end."""
        with self.lock:
            others = [worker for worker in self.free if worker.settings != wanted]
            self.free = [worker for worker in self.free if worker.settings == wanted]
            taken = self.free.pop() if self.free else Worker(wanted, b"")
        for worker in others:
            worker.close()
        return taken

    def close(self) -> None:
        """End the processes that wait."""
        with self.lock:
            waiting, self.free = self.free, []
        for worker in waiting:
            worker.close()


_PROCESSES = PreviewProcesses()
atexit.register(_PROCESSES.close)


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
