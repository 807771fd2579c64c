"""The site's page: a small Starlette application over the site's directory. All of it needs the token.

It shows pictures of patients, to people of this hospital alone: nothing it serves may be kept by a browser, and no
picture is ever stored.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from usfmae.client import allowance, outbox, review
from usfmae.client.look import Looked
from usfmae.client.page import view
from usfmae.client.site import Site
from usfmae.core.errors import UsfmaeError
from usfmae.core.web import looks
from usfmae.core.web.guard import Guard
from usfmae.core.web.session import COOKIE, HOURS, Sessions

WRONG_TOKEN_SECONDS = 1.0
PICTURES = 8  # frames held in memory between a page and its two pictures
BY = "page"  # who decides, in the audit log: whoever holds the token

Endpoint = Callable[[Request], Awaitable[Response]]


class Page:
    def __init__(self, site: Site) -> None:
        self.site = site
        self.sessions = Sessions.of(site.root / "keys" / "page.token")
        self.intake = review.Intake()
        self.looked: OrderedDict[str, Looked] = OrderedDict()
        self.looking = asyncio.Lock()
        self.templates = looks.environment("usfmae.client.page")

    def show(self, request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        cookie = request.cookies.get(COOKIE, "")
        known = self.sessions.holds(cookie)
        mark = self.sessions.form_mark(cookie) if known else ""
        values |= {"known": known, "mark": mark, "path": request.url.path, "name": self.site.settings.name}
        return HTMLResponse(self.templates.get_template(template).render(**values), status)

    # Who may see it

    def private(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint for those with a session; everybody else is asked for the token."""

        async def guarded(request: Request) -> Response:
            if not self.sessions.holds(request.cookies.get(COOKIE, "")):
                if request.method != "GET":
                    raise HTTPException(403, "log in first: this needs the site's token")
                return RedirectResponse(f"/login?next={request.url.path}", 303)
            return await endpoint(request)

        return guarded

    def own_form(self, endpoint: Callable[[Request, Any], Awaitable[Response]]) -> Endpoint:
        """The endpoint for a form that our own page sent."""

        async def checked(request: Request) -> Response:
            form = await request.form()
            cookie = request.cookies.get(COOKIE, "")
            if not self.sessions.is_own_form(cookie, str(form.get("mark", ""))):
                raise HTTPException(403, "this form is not from this page, or too old: go back and reload")
            return await endpoint(request, form)

        return self.private(checked)

    async def login(self, request: Request) -> Response:
        if request.method == "GET":
            return self._login_form(request, request.query_params.get("next", "/"))
        form = await request.form()
        wanted = str(form.get("next", "/"))
        if not self.sessions.opens(str(form.get("token", ""))):
            await asyncio.sleep(WRONG_TOKEN_SECONDS)
            return self._login_form(request, wanted, wrong=True)
        answer = RedirectResponse(_local(wanted), 303)
        secure = request.headers.get("x-forwarded-proto") == "https"
        answer.set_cookie(
            COOKIE, self.sessions.new(), int(HOURS * 3600), httponly=True, samesite="strict", secure=secure
        )
        return answer

    def _login_form(self, request: Request, wanted: str, wrong: bool = False) -> Response:
        values = {
            "heading": "This page shows scans",
            "why": "It is for people of this hospital who may see them.",
            "file": "keys/page.token",
            "next": _local(wanted),
            "wrong": wrong,
        }
        return self.show(request, "login.html", 403 if wrong else 200, **values)

    async def logout(self, request: Request) -> Response:
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE)
        return answer

    # What it shows

    async def overview(self, request: Request) -> Response:
        found = await asyncio.to_thread(view.overview, self.site, self.intake)
        return self.show(request, "overview.html", found=found)

    async def quarantine(self, request: Request) -> Response:
        await asyncio.to_thread(self.intake.refresh, self.site.corpus)
        held = review.waiting(self.site, self.intake)
        reasons = view.by_reason(held)
        chosen = request.query_params.get("reason", "")
        shown = [h for h in held if not chosen or h.reason == chosen]
        done = sorted(review.decisions(self.site).values(), key=lambda d: -d["time"])[:20]
        return self.show(
            request, "quarantine.html", held=shown[:200], total=len(shown), reasons=reasons, chosen=chosen, done=done
        )

    async def entry(self, request: Request) -> Response:
        held = self._held(request)
        trouble = ""
        looked: Looked | None = None
        try:
            looked = await self._look(held)
        except UsfmaeError as error:
            trouble = str(error)
        decided = review.decisions(self.site).get(held.id)
        return self.show(request, "entry.html", held=held, looked=looked, trouble=trouble, decided=decided)

    async def picture(self, request: Request) -> Response:
        looked = await self._look(self._held(request))
        content = looked.before if request.path_params["which"] == "before" else looked.after
        if not content:
            raise HTTPException(404, "there is no such picture")
        return Response(content, media_type="image/png", headers={"Cache-Control": "no-store"})

    def _held(self, request: Request) -> review.Held:
        self.intake.refresh(self.site.corpus)
        try:
            return review.find(self.intake, request.path_params["id"])
        except UsfmaeError as error:
            raise HTTPException(404, str(error)) from None

    async def _look(self, held: review.Held) -> Looked:
        """The frame's pictures; decoded once for a page and its two pictures, one at a time."""
        async with self.looking:
            if held.id not in self.looked:
                self.looked[held.id] = await asyncio.to_thread(review.picture, self.site, held)
            self.looked.move_to_end(held.id)
            while len(self.looked) > PICTURES:
                self.looked.popitem(last=False)
            return self.looked[held.id]

    async def left(self, request: Request, notice: str = "", bad: bool = False) -> Response:
        entries = await asyncio.to_thread(outbox.entries, self.site)
        shown = [{**e, "text": outbox.sheet(e)} for e in entries[::-1][:100]]
        return self.show(
            request, "outbox.html", 400 if bad else 200, entries=shown, total=len(entries), notice=notice, bad=bad
        )

    async def audit(self, request: Request) -> Response:
        found = await asyncio.to_thread(view.audited, self.site)
        return self.show(request, "audit.html", found=found)

    # What it changes

    async def pause(self, request: Request, form: Any) -> Response:
        action = allowance.resume if form.get("now") == "resume" else allowance.pause
        await asyncio.to_thread(action, self.site)
        return RedirectResponse("/", 303)

    async def decide(self, request: Request, form: Any) -> Response:
        held = self._held(request)
        action = review.release if form.get("decision") == "release" else review.drop
        try:
            await asyncio.to_thread(action, self.site, held, BY)
        except UsfmaeError as error:
            return self.show(request, "problem.html", 400, text=str(error))
        left = review.waiting(self.site, self.intake)
        same = [h for h in left if h.reason == held.reason]
        return RedirectResponse(f"/quarantine/{same[0].id}" if same else "/quarantine", 303)

    async def approve(self, request: Request, form: Any) -> Response:
        yes = form.get("decision") == "approve"
        try:
            await asyncio.to_thread(
                outbox.decide, self.site, request.path_params["id"], yes, str(form.get("reason", ""))[:200]
            )
        except UsfmaeError as error:
            return await self.left(request, str(error), bad=True)
        return await self.left(request, "approved: it leaves with the next look" if yes else "rejected: it stays here")

    async def problem(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 503
        text = error.detail if isinstance(error, HTTPException) else str(error)
        return self.show(request, "problem.html", status, text=text)


def _local(target: str) -> str:
    """A path on this page, never another site."""
    return target if re.fullmatch(r"/[a-z0-9/-]*", target) and not target.startswith("//") else "/"


def application(site: Site, names: tuple[str, ...] = ()) -> Guard:
    """The page of one site, behind its guard."""
    page = Page(site)
    routes = [
        Route("/", page.private(page.overview)),
        Route("/quarantine", page.private(page.quarantine)),
        Route("/quarantine/{id}", page.private(page.entry)),
        Route("/quarantine/{id}/decide", page.own_form(page.decide), methods=["POST"]),
        Route("/quarantine/{id}/{which}.png", page.private(page.picture)),
        Route("/outbox", page.private(page.left)),
        Route("/outbox/{id}", page.own_form(page.approve), methods=["POST"]),
        Route("/audit", page.private(page.audit)),
        Route("/pause", page.own_form(page.pause), methods=["POST"]),
        Route("/login", page.login, methods=["GET", "POST"]),
        Route("/logout", page.logout, methods=["POST"]),
        Mount("/static", StaticFiles(directory=looks.STATIC)),
    ]
    handlers: Any = {HTTPException: page.problem, UsfmaeError: page.problem}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), names)
