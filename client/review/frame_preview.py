"""One frame as it came and as it would go into the corpus, for a person: `python -m usfmae.client.review.frame_preview`.

A process of its own with a memory limit, because the file may be hostile; a request as JSON on stdin, answers on
stdout. A frame that still shows text, or little of a scan, is shown as far as cleaning went: a person decides.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from usfmae.core.config import CleanSettings, ReadSettings
from usfmae.core.errors import SourceError, UsfmaeError
from usfmae.core.sandbox.ipc import Inbox, receive, send
from usfmae.core.types import Frame, Pixels, Quarantined, Scan, Trail, content_id

SECONDS = 60.0


@dataclass(frozen=True)
class FramePreview:
    """PNG pictures, and the pixels that would be packed; where cleaning gives none, `why_not` says why, for people."""

    before: bytes
    after: bytes = b""
    packed: bytes = b""
    shape: tuple[int, ...] = ()
    why_not: str = ""


def preview_frame(scan: Scan, index: int, read: ReadSettings, clean: CleanSettings, size: int) -> FramePreview:
    """Decode and clean one frame in a process of its own. SourceError where the file gives no picture."""
    request = {
        "scan": {**vars(scan), "path": str(scan.path), "trail": scan.trail.id},
        "index": index,
        "read": read.model_dump(mode="json"),
        "clean": clean.model_dump(mode="json"),
        "size": size,
    }
    asked = BytesIO()
    send(asked, request)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "usfmae.client.review.frame_preview"],
            input=asked.getvalue(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # libraries' complaints can quote what stands in a file
            timeout=SECONDS,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SourceError("this scan", f"took more than {SECONDS:.0f} s to decode", "drop it") from None
    return _answer(done.stdout)


def _answer(output: bytes) -> FramePreview:
    inbox = Inbox()
    parts: dict[str, bytes] = {}
    notes: dict[str, Any] = {}
    inbox.add(output)
    try:
        while (message := inbox.next()) is not None:
            header, blob = message
            parts[header["event"]] = blob
            notes |= header
    except (ValueError, KeyError):
        parts = {}
    if "error" in notes or "before" not in parts:
        raise SourceError("this scan", str(notes.get("error", "gives no picture")), "drop it")
    return FramePreview(
        parts["before"],
        parts.get("after", b""),
        parts.get("packed", b""),
        tuple(notes.get("shape", ())),
        str(notes.get("why", "")),
    )


def image_id(scan_id: str, index: int) -> str:
    """The id of a frame's image in the corpus, as `prepare` gives it."""
    return content_id(scan_id, str(index))


def trusting(settings: CleanSettings) -> CleanSettings:
    """The settings without the doubt that would leave a person nothing to look at."""
    return settings.model_copy(update={"smallest_region": 0.0})


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    message = receive(sys.stdin.buffer)
    if message is None:
        return
    asked = message[0]
    limit = int(asked["read"]["memory_mb"]) << 20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        _show(asked, answers)
    except (UsfmaeError, MemoryError, OSError) as error:
        send(answers, {"event": "end", "error": getattr(error, "why", "") or type(error).__name__})


def _show(asked: dict[str, Any], answers: Any) -> None:
    from usfmae.core.clean import clean
    from usfmae.core.corpus.shard import square
    from usfmae.core.report.reasons import meaning

    values = asked["scan"]
    scan = Scan(**{**values, "path": Path(values["path"]), "trail": Trail(values["trail"])})
    frame = _frame(scan, int(asked["index"]), ReadSettings.model_validate(asked["read"]))
    send(answers, {"event": "before"}, png(frame.pixels))
    frame = replace(frame, regions=())  # where header and picture disagree, a person looks at the picture
    try:
        found = clean(frame, trusting(CleanSettings.model_validate(asked["clean"])))
    except Exception as error:  # the frame stays where it is; a person may still drop it
        found = Quarantined("cleaning-failed", detail=type(error).__name__)
    if isinstance(found, Quarantined):
        if found.image is None:
            send(answers, {"event": "end", "why": meaning(found.reason) or found.reason})
            return
        found = found.image
    send(answers, {"event": "after"}, png(found.pixels))
    packed = square(found, int(asked["size"]), scan.group)
    send(answers, {"event": "packed", "shape": list(packed.pixels.shape)}, packed.pixels.tobytes())


def _frame(scan: Scan, index: int, settings: ReadSettings) -> Frame:
    from usfmae.core.read import read

    for frame in read(scan, settings):
        if frame.index == index:
            return frame
    raise SourceError("this scan", f"has no frame {index}", "drop it")


def png(pixels: Pixels) -> bytes:
    """A picture (H, W) or (H, W, 3) as a PNG file."""
    from PIL import Image

    out = BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


if __name__ == "__main__":
    main()
