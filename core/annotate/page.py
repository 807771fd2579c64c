"""The labelling page: one picture at a time, on this machine alone. Nothing of a picture is stored.

with labelling(Path("pictures"), Path("truth.json")) as page:
    print(page.address, page.token)
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from usfmae.core.annotate.truth import LabelledPicture, Mark, Truth
from usfmae.core.config.read import ReadSettings
from usfmae.core.errors import SourceError, UsageError, UsfmaeError
from usfmae.core.files import locked
from usfmae.core.read import discover, read
from usfmae.core.types import Pixels, Scan
from usfmae.core.web import server_thread
from usfmae.core.web.access import Access, People
from usfmae.core.web.application import WebPage, assemble

HOST = "127.0.0.1"
READ = ReadSettings(fps=1000)  # every frame of a clip, so that labels of a later one are found


@dataclass(frozen=True)
class NativePicture:
    """A picture as it was recorded: its first frame, and the hash of its file."""

    pixels: Pixels
    sha256: str


@functools.lru_cache(maxsize=4)
def native_picture(scan: Scan, frame: int) -> NativePicture:
    """One frame of a file. SourceError where it cannot be read."""
    pixels = next((f.pixels for f in read(scan, READ) if f.index == frame), None)
    if pixels is None:
        raise SourceError(f"frame {frame} of {scan.path.name}", "does not exist", "see the file")
    return NativePicture(pixels, hashlib.sha256(scan.path.read_bytes()).hexdigest())


class LabelSet:
    """The pictures below a folder, in order of their names, and the labels that a person gave them so far.

    Every change is written at once. A picture whose file has changed since it was labelled is not shown over its old
    labels: it is refused by name.
    """

    def __init__(self, folder: Path, file: Path) -> None:
        self.folder, self.file = folder.resolve(), file
        scans = [s for s in discover([self.folder], b"labels", READ) if isinstance(s, Scan) and not s.member]
        self.scans = {s.path.resolve().relative_to(self.folder).as_posix(): s for s in scans}
        if not self.scans:
            raise UsageError(f"folder {folder}", "holds no picture that can be read", "name another folder")
        self.truth = Truth.load(file) if file.exists() else Truth(dataset=self.folder.name)
        self.entries = sorted({(name, 0) for name in self.scans} | set(self._labelled()))

    def _labelled(self) -> dict[tuple[str, int], LabelledPicture]:
        return {(p.name, p.frame): p for p in self.truth.pictures if p.name in self.scans}

    @property
    def done(self) -> int:
        return sum(picture.done for picture in self._labelled().values())

    def first_open(self) -> int:
        """The first picture that is not done; the first of all where every one is."""
        labelled = self._labelled()
        left = (i for i, entry in enumerate(self.entries) if entry not in labelled or not labelled[entry].done)
        return next(left, 0)

    def picture(self, number: int) -> NativePicture:
        """SourceError where it cannot be read, or is not the file that was labelled."""
        name, frame = self.entries[number]
        native, labelled = native_picture(self.scans[name], frame), self._labelled().get((name, frame))
        if labelled and labelled.sha256 != native.sha256:
            raise SourceError(f"picture {name}", "is not the file that was labelled", "bring that one back")
        return native

    def labelled(self, number: int) -> LabelledPicture:
        """What is known of a picture: its labels, none so far where nobody gave any."""
        name, frame = self.entries[number]
        native = self.picture(number)
        height, width = native.pixels.shape[:2]
        blank = LabelledPicture(name=name, frame=frame, sha256=native.sha256, width=width, height=height)
        return self._labelled().get((name, frame), blank)

    def put(self, number: int, shapes: Sequence[object], done: bool) -> LabelledPicture:
        """Replace the labels of a picture and save them. ValueError for shapes that are none."""
        fields = self.labelled(number).model_dump() | {"shapes": shapes, "done": done}
        picture = LabelledPicture.model_validate(fields)
        self.truth = self.truth.with_picture(picture)
        self.truth.save(self.file)
        return picture


class LabellingPage(WebPage):
    heading, why = "This page shows pictures", "It is for the person who started it."
    hint = "The token stands in the terminal in which the page was started."

    def __init__(self, labels: LabelSet, keys: Path) -> None:
        access = Access(People(keys), lambda *_, **__: None)
        super().__init__("usfmae.core.annotate", access, keys / "audit.jsonl")  # no log is kept of a page on loopback
        self.labels = labels
        self.writing = asyncio.Lock()

    async def start(self, request: Request) -> Response:
        return RedirectResponse(f"/pictures/{self.labels.first_open()}", 303)

    async def label(self, request: Request) -> Response:
        number = self._number(request)
        last = len(self.labels.entries) - 1
        steps = {"before": max(0, number - 1), "after": min(last, number + 1)}
        totals: dict[str, Any] = {
            "number": number,
            "total": last + 1,
            "done": self.labels.done,
            "marks": list(Mark),
            **steps,
        }
        name, _ = self.labels.entries[number]
        try:
            picture = await asyncio.to_thread(self.labels.labelled, number)
        except UsfmaeError as error:
            return self.show(request, "annotate.html", name=name, picture=None, problem=str(error), **totals)
        shapes = picture.model_dump_json(include={"shapes"})
        return self.show(request, "annotate.html", name=name, picture=picture, problem="", shapes=shapes, **totals)

    async def pixels(self, request: Request) -> Response:
        native = await asyncio.to_thread(self.labels.picture, self._number(request))
        out = BytesIO()
        await asyncio.to_thread(Image.fromarray(native.pixels).save, out, "PNG", compress_level=1)
        return Response(out.getvalue(), media_type="image/png")

    async def save(self, request: Request) -> Response:
        form = await self.access.own_form(request)
        number = self._number(request)
        try:
            shapes = json.loads(str(form.get("shapes", "")))
            async with self.writing:
                picture = await asyncio.to_thread(self.labels.put, number, shapes, form.get("done") == "yes")
        except ValidationError as error:
            raise HTTPException(400, f"these shapes cannot be saved: {error.errors()[0]['msg']}") from None
        except (ValueError, RecursionError):
            raise HTTPException(400, "these shapes cannot be saved: no JSON") from None
        return JSONResponse({"shapes": len(picture.shapes), "done": self.labels.done})

    def _number(self, request: Request) -> int:
        number = int(request.path_params["number"])
        if number >= len(self.labels.entries):
            raise HTTPException(404, "there is no such picture")
        return number


def application(labels: LabelSet, keys: Path) -> Starlette:
    """The page of one folder; nothing of it is shown without its token, which lies in `keys`."""
    page = LabellingPage(labels, keys)
    routes = [
        Route("/", page.start),
        Route("/pictures/{number:int}", page.label),
        Route("/pictures/{number:int}/picture.png", page.pixels),
        Route("/pictures/{number:int}/shapes", page.save, methods=["POST"]),
    ]
    return assemble(page, routes)


@dataclass(frozen=True)
class OpenPage:
    address: str
    token: str
    labels: LabelSet


@contextlib.contextmanager
def labelling(folder: Path, file: Path, port: int = 0) -> Iterator[OpenPage]:
    """The page of a folder while the block runs, on loopback; port 0 picks a free one.

    UsageError where the folder holds no picture or another process labels into the same file, SourceError where the
    file is no file of labels, ResourceError where the port is taken.
    """
    with tempfile.TemporaryDirectory() as keys, contextlib.ExitStack() as stack:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = file.with_name(f".{file.name}.lock")
        if not stack.enter_context(locked(lock)):
            raise UsageError(f"labels {file}", "are open in another process", "end it, or name another file")
        stack.callback(lock.unlink, missing_ok=True)
        labels = LabelSet(folder, file)
        app = application(labels, Path(keys))
        config = uvicorn.Config(app, http=server_thread.page_protocol(H11Protocol), **server_thread.OPTIONS)
        taken = stack.enter_context(server_thread.serving(uvicorn.Server(config), HOST, port, "annotate"))
        yield OpenPage(f"http://{HOST}:{taken}/", People(Path(keys)).shared_token(), labels)
