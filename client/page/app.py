"""The site's page: a small Starlette application over the site's directory. All of it needs the token.

It shows pictures of patients, to people of this hospital alone: nothing it serves may be kept by a browser, and no
picture is ever stored.
"""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from usfmae.client import outbox, site_policy, withdraw
from usfmae.client.page import learning, view
from usfmae.client.review import corpus_view, gallery, quarantine
from usfmae.client.review.frame_preview import FramePreview
from usfmae.client.review.preview_cache import PreviewCache
from usfmae.client.review.quarantine import QuarantinedFrame
from usfmae.client.rounds import campaigns
from usfmae.client.site import Site
from usfmae.core.errors import UsfmaeError
from usfmae.core.report.reasons import meaning
from usfmae.core.web import server_thread
from usfmae.core.web.access import Access, People
from usfmae.core.web.application import WebPage, assemble

SHOWN = 24  # kept frames, or quarantined ones, on a page
PANELS = 12  # reconstructions on a page
AHEAD = 6  # pictures that are made before somebody asks for them
WARMED, WARM_SECONDS = 2, 60.0  # of these already on the overview, so often: a decoding process takes seconds to start


class SitePage(WebPage):
    heading, why = "This page shows scans", "It is for people of this hospital who may see them."

    def __init__(self, site: Site) -> None:
        settings = site.settings.page
        access = Access(People(site.root / "keys"), site.note, settings.trusted_proxies, settings.user_header)
        super().__init__("usfmae.client.page", access, site.audit_log, name=site.settings.name)
        self.site = site
        self.intake, self.shelf = quarantine.Intake(), outbox.Outbox(site)
        self.album, self.previews = corpus_view.CorpusView(), PreviewCache()
        self.warmed = -math.inf
        self.templates.filters |= {"meaning": meaning, "question": view.question}

    def show(self, request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """As every page's, with how much waits for a person beside the names of pages."""
        requested = sum(one.state is campaigns.CampaignState.WAITING for one in campaigns.agreements(self.site))
        held = sum(entry["state"] == outbox.EntryState.WAITING for entry in self.shelf.entries())
        waiting = {"/outbox": held, "/campaigns": requested}
        return super().show(request, template, status, waiting=waiting, **values)

    # What it shows

    async def overview(self, request: Request) -> Response:
        totals = await asyncio.to_thread(view.overview, self.site, self.intake, self.shelf)
        if totals["waiting"] and time.monotonic() - self.warmed > WARM_SECONDS:
            self.warmed = time.monotonic()
            self._look_ahead(await asyncio.to_thread(quarantine.waiting, self.site, self.intake, "", WARMED))
        return self.show(request, "overview.html", totals=totals)

    async def quarantine(self, request: Request, notice: str = "") -> Response:
        await asyncio.to_thread(self.intake.refresh, self.site.corpus)
        reasons = await asyncio.to_thread(quarantine.waiting_by_reason, self.site, self.intake)
        chosen = request.query_params.get("reason", "")
        ahead = await asyncio.to_thread(quarantine.waiting, self.site, self.intake, chosen, SHOWN + AHEAD)
        held = ahead[:SHOWN]
        self._look_ahead(ahead)
        total = reasons[chosen] if chosen else reasons.total()
        done = list(quarantine.decisions(self.site, last=20).values())
        lists: dict[str, Any] = {"held": held, "reasons": reasons.most_common(), "done": done}
        return self.show(request, "quarantine.html", total=total, chosen=chosen, notice=notice, **lists)

    async def entry(self, request: Request) -> Response:
        held = self._held(request)
        problem = ""
        looked: FramePreview | None = None
        try:
            looked = await self._look(held)
        except UsfmaeError as error:
            problem = str(error)
        decided = quarantine.decision_on(self.site, held.id)
        self._look_ahead(quarantine.waiting(self.site, self.intake, held.reason, AHEAD))
        return self.show(request, "entry.html", held=held, looked=looked, problem=problem, decided=decided)

    async def picture(self, request: Request) -> Response:
        looked = await self._look(self._held(request))
        pictures = {"before": looked.before, "after": looked.after, "changed": looked.changed or looked.before}
        return _picture(pictures.get(request.path_params["which"], b""))

    async def kept_images(self, request: Request) -> Response:
        number = request.query_params.get("page", "1")
        page = max(1, int(number)) if number.isdecimal() and len(number) < 9 else 1
        await asyncio.to_thread(self.album.refresh, self.site.corpus)
        shown = self.album.slice((page - 1) * SHOWN, SHOWN)
        pages = max(1, -(-self.album.total // SHOWN))
        return self.show(request, "kept.html", shown=shown, total=self.album.total, page=page, pages=pages)

    async def kept_frame(self, request: Request) -> Response:
        one = self._kept_image(request)
        problem = ""
        try:
            await self._origin(one)
        except UsfmaeError as error:
            problem = str(error)
        return self.show(request, "kept_frame.html", one=one, problem=problem, neighbours=self.album.neighbours(one))

    async def withdraw(self, request: Request) -> Response:
        form = await self.access.own_form(request)
        one, by = self._kept_image(request), request.user.display_name
        try:
            if form.get("what") == "patient":
                asked = await asyncio.to_thread(withdraw.patient_of_image, self.site, one)
                await asyncio.to_thread(withdraw.take_out, self.site, asked, by)
            else:
                await asyncio.to_thread(withdraw.take_out_image, self.site, one, by)
        except UsfmaeError as error:
            return self.show(request, "problem.html", 400, text=str(error))
        return RedirectResponse("/kept", 303)

    async def kept_picture(self, request: Request) -> Response:
        one, which = self._kept_image(request), request.path_params["which"]
        if which == "image":
            return _picture(await asyncio.to_thread(corpus_view.image, self.site, one))
        origin = await self._origin(one)
        pictures = await self.previews.get(f"{one} pictures", lambda: corpus_view.pictures(self.site, origin))
        return _picture(pictures.get(which, b""))

    def _kept_image(self, request: Request) -> corpus_view.KeptImage:
        self.album.refresh(self.site.corpus)
        try:
            return self.album.find(request.path_params["shard"], request.path_params["row"])
        except UsfmaeError as error:
            raise HTTPException(404, str(error)) from None

    async def _origin(self, one: corpus_view.KeptImage) -> corpus_view.ImageOrigin:
        return await self.previews.get(f"{one}", lambda: corpus_view.origin(self.site, one))

    def _held(self, request: Request) -> QuarantinedFrame:
        self.intake.refresh(self.site.corpus)
        try:
            return quarantine.find(self.intake, request.path_params["id"])
        except UsfmaeError as error:
            raise HTTPException(404, str(error)) from None

    async def _look(self, held: QuarantinedFrame) -> FramePreview:
        """The frame's pictures; decoded once for a page and its two pictures."""
        return await self.previews.get(held.id, lambda: quarantine.picture(self.site, held))

    def _look_ahead(self, held: Sequence[QuarantinedFrame]) -> None:
        """Make the pictures that a person will ask for next."""
        self.previews.prepare([(one.id, functools.partial(quarantine.picture, self.site, one)) for one in held])

    async def left(self, request: Request, notice: str = "", bad: bool = False) -> Response:
        entries = await asyncio.to_thread(self.shelf.entries)
        shown = [{**e, "text": outbox.sheet(e)} for e in entries[::-1][:100]]
        return self.show(
            request, "outbox.html", 400 if bad else 200, entries=shown, total=len(entries), notice=notice, bad=bad
        )

    async def read_from_update(self, request: Request) -> Response:
        """What the probe read from an update that it held back, beside what was drawn."""
        file = outbox.folder(self.site, request.path_params["id"]) / outbox.PICTURE
        return _picture(file.read_bytes() if file.is_file() else b"")

    async def campaigns(self, request: Request, notice: str = "", bad: bool = False) -> Response:
        listed = await asyncio.to_thread(campaigns.agreements, self.site)
        shown = [(one, campaigns.in_words(one)) for one in listed[::-1]]
        return self.show(request, "campaigns.html", 400 if bad else 200, campaigns=shown, notice=notice, bad=bad)

    async def learning(self, request: Request) -> Response:
        entries = await asyncio.to_thread(self.shelf.entries)
        charts = {
            "losses": await asyncio.to_thread(learning.loss_chart, entries),
            "intake": await asyncio.to_thread(learning.intake_chart, self.site),
        }
        values: dict[str, Any] = {"panels": gallery.panels(self.site)[:PANELS], **charts}
        return self.show(request, "learning.html", **values)

    async def panel(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in {file for _, _, file in gallery.panels(self.site)}:
            raise HTTPException(404, "there is no such panel")
        return _picture((self.site.root / "gallery" / name).read_bytes())

    # What it changes

    async def pause(self, request: Request) -> Response:
        form = await self.access.own_form(request)
        action = site_policy.resume if form.get("now") == "resume" else site_policy.pause
        await asyncio.to_thread(action, self.site)
        return RedirectResponse("/", 303)

    async def decide_many(self, request: Request) -> Response:
        """One decision on several entries; what cannot be decided so is named, and stays."""
        await self.access.own_form(request)
        form = await request.form()
        release = form.get("decision") == "release"
        action = quarantine.release if release else quarantine.drop
        left: list[str] = []
        chosen = [str(value) for value in form.getlist("id")][:SHOWN]
        self.intake.refresh(self.site.corpus)
        for name in chosen:
            try:
                held = quarantine.find(self.intake, name)
                await asyncio.to_thread(action, self.site, held, request.user.display_name)
            except UsfmaeError as error:
                left.append(f"{name}: {error}")
        word = "released" if release else "dropped"
        notice = f"{len(chosen) - len(left)} {word}." + (" Not decided: " + "; ".join(left) if left else "")
        return await self.quarantine(request, notice)

    async def decide(self, request: Request) -> Response:
        form = await self.access.own_form(request)
        held = self._held(request)
        action = quarantine.release if form.get("decision") == "release" else quarantine.drop
        try:
            await asyncio.to_thread(action, self.site, held, request.user.display_name)
        except UsfmaeError as error:
            return self.show(request, "problem.html", 400, text=str(error))
        same = quarantine.waiting(self.site, self.intake, held.reason, 1)
        return RedirectResponse(f"/quarantine/{same[0].id}" if same else "/quarantine", 303)

    async def approve(self, request: Request) -> Response:
        form = await self.access.own_form(request)
        yes = form.get("decision") == "approve"
        try:
            await asyncio.to_thread(
                outbox.decide,
                self.site,
                request.path_params["id"],
                yes,
                str(form.get("reason", ""))[:200],
                by=request.user.display_name,
            )
        except UsfmaeError as error:
            return await self.left(request, str(error), bad=True)
        return await self.left(request, "approved: it leaves with the next look" if yes else "rejected: it stays here")

    async def agree(self, request: Request) -> Response:
        form = await self.access.own_form(request)
        name, yes, reason = request.path_params["name"], form.get("decision") == "approve", str(form.get("reason", ""))
        try:
            await asyncio.to_thread(campaigns.decide, self.site, name, yes, reason[:200], by=request.user.display_name)
        except UsfmaeError as error:
            return await self.campaigns(request, str(error), bad=True)
        return await self.campaigns(request, "agreed: its rounds are trained" if yes else "refused: nothing is trained")


def _picture(content: bytes) -> Response:
    """A PNG no browser keeps."""
    if not content:
        raise HTTPException(404, "there is no such picture")
    return Response(content, media_type="image/png", headers={"Cache-Control": "no-store"})


def application(site: Site) -> Starlette:
    """The page of one site: nothing of it is shown without a login."""
    page = SitePage(site)
    routes = [
        Route("/", page.overview),
        Route("/quarantine", page.quarantine),
        Route("/quarantine/decide", page.decide_many, methods=["POST"]),
        Route("/quarantine/{id}", page.entry),
        Route("/quarantine/{id}/decide", page.decide, methods=["POST"]),
        Route("/quarantine/{id}/{which}.png", page.picture),
        Route("/kept", page.kept_images),
        Route("/kept/{shard}/{row:int}", page.kept_frame),
        Route("/kept/{shard}/{row:int}/withdraw", page.withdraw, methods=["POST"]),
        Route("/kept/{shard}/{row:int}/{which}.png", page.kept_picture),
        Route("/learning", page.learning),
        Route("/learning/{name}", page.panel),
        Route("/campaigns", page.campaigns),
        Route("/campaigns/{name}", page.agree, methods=["POST"]),
        Route("/outbox", page.left),
        Route("/outbox/{id}", page.approve, methods=["POST"]),
        Route("/outbox/{id}/probe.png", page.read_from_update),
        Route("/audit", page.audit),
        Route("/audit.csv", page.audit_file),
        Route("/audit.json", page.audit_file),
        Route("/pause", page.pause, methods=["POST"]),
    ]
    return assemble(page, routes, site.settings.page.names)


def serving(app: Any, host: str, port: int) -> AbstractContextManager[int]:
    """An ASGI application in a thread; the port it listens on. ResourceError where the port is taken."""
    config = uvicorn.Config(app, http=server_thread.page_protocol(H11Protocol), **server_thread.OPTIONS)
    return server_thread.serving(uvicorn.Server(config), host, port)
