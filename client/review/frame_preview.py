"""One frame as it came and as it would go into the corpus, for a person who decides.

The file may be hostile: it is decoded in a process of its own (`core/sandbox`). A frame that still shows text, or little
of a scan, is shown as far as cleaning went.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from usfmae.core.config import CleanSettings, Settings
from usfmae.core.errors import ResourceError, SourceError
from usfmae.core.report.reasons import meaning
from usfmae.core.sandbox.records import NoPicture, Picture
from usfmae.core.sandbox.worker import ProcessEndedError, Worker
from usfmae.core.types import Pixels, Scan, content_id


@dataclass(frozen=True)
class FramePreview:
    """PNG pictures, and the pixels that would be packed; where cleaning gives none, `why_not` says why, for people."""

    before: bytes
    after: bytes = b""
    packed: bytes = b""
    shape: tuple[int, ...] = ()
    why_not: str = ""


def preview_frame(scan: Scan, index: int, settings: Settings) -> FramePreview:
    """Decode, clean and pack one frame as `prepare` would. SourceError where the file gives no picture."""
    worker = Worker(settings.model_copy(update={"clean": trusting(settings.clean)}), b"")
    try:
        answers = worker.preview(scan, index)
    except (ProcessEndedError, ResourceError) as error:
        raise SourceError("this scan", meaning(getattr(error, "reason", "")) or str(error), "drop it") from None
    finally:
        worker.close()
    return assembled(answers)


def assembled(answers: Sequence[tuple[Picture | NoPicture, bytes]]) -> FramePreview:
    """What the decoding process answered, as one. SourceError where it gave no picture."""
    pictures = {answer.name: (answer, blob) for answer, blob in answers if not isinstance(answer, NoPicture)}
    why = next((meaning(answer.reason) or answer.reason for answer, _ in answers if isinstance(answer, NoPicture)), "")
    if "before" not in pictures:
        raise SourceError("this scan", why or "gives no picture", "drop it")
    before = pictures["before"][1]
    if "packed" not in pictures or "after" not in pictures:
        return FramePreview(before, why_not=why)
    packed, pixels = pictures["packed"]
    return FramePreview(before, pictures["after"][1], pixels, packed.shape)


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
