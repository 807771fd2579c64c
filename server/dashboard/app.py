"""The coordinator's page: a small Starlette application over the ledger. Reading is open, changing needs the token."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.authentication import requires
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from usfmae.core import audit
from usfmae.core.config.sources import PageSettings
from usfmae.core.errors import UsfmaeError
from usfmae.core.web.access import Access, People
from usfmae.core.web.application import WebPage, assemble
from usfmae.core.web.chart import Axis, line_chart
from usfmae.server import certificates
from usfmae.server import sites as enrolled
from usfmae.server.dashboard import view
from usfmae.server.dashboard.lineage import ancestry, releases
from usfmae.server.layout import Layout

LONG = 50  # rounds on one page of a list


class Dashboard(WebPage):
    why = "Downloads, enrolling and revoking need the coordinator's token."

    def __init__(self, home: Layout, settings: PageSettings) -> None:
        def note(event: str, status: str, **fields: Any) -> None:
            audit.append(home.audit, "page", event, status, **fields)

        access = Access(People(home.keys), note, settings.trusted_proxies, settings.user_header)
        super().__init__("usfmae.server.dashboard", access, home.audit)
        self.home, self.history = home, view.History()

    # Reading

    async def overview(self, request: Request) -> Response:
        federation = await asyncio.to_thread(view.overview, self.home, self.history)
        limits = {"seed": 0.0} | ({"budget": federation.budget} if federation.budget is not None else {})
        losses = line_chart(*federation.losses(), "held-out loss by round", "round")
        by_site = line_chart(*federation.site_losses(), "held-out loss by site and round", "round")
        organs = line_chart(*federation.organs("loss"), "panel loss by organ and round", "round")
        lines, rounds = federation.organs("forgetting")
        forgetting = line_chart(lines, rounds, "forgetting by organ and round", "round", axis=Axis(True, limits))
        charts = [
            (title, text, chart)
            for title, text, chart in (
                (
                    "Held-out loss",
                    "masked loss on images of patients no training step has seen, weighted by images",
                    losses,
                ),
                ("Held-out loss, by site", "masked loss of the merged encoder at each site, before it trains", by_site),
                ("Panel, by organ", "masked loss of the merged encoder on the public panel", organs),
                ("Forgetting, by organ", "panel loss over the seed's; above 0 is worse", forgetting),
            )
            if chart
        ]
        return self.show(
            request,
            "overview.html",
            federation=federation,
            charts=charts,
            latest=view.LATEST,
            warning=certificates.warning(self.home),
        )

    async def rounds(self, request: Request) -> Response:
        federation = await asyncio.to_thread(view.overview, self.home, self.history)
        return self.show(request, "rounds.html", **_paged(request, federation.rounds))

    async def round(self, request: Request) -> Response:
        number = int(request.path_params["number"])
        with view.reading(self.home) as db:
            one = view.round_(db, number)
            replies = view.verdicts(db, number)
        if one is None:
            raise HTTPException(404, "there is no such round")
        shown: dict[str, Any] = {
            "replies": replies,
            "spans": _spans(one, replies),
            "file": self.home.checkpoint(number).exists(),
        }
        return self.show(request, "round.html", one=one, **shown)

    async def lineage(self, request: Request) -> Response:
        federation = await asyncio.to_thread(view.overview, self.home, self.history)
        paged = _paged(request, ancestry(federation.committed))
        stored = {
            number for number in (0, *(r["number"] for r in paged["rounds"])) if self.home.checkpoint(number).exists()
        }
        with view.reading(self.home) as db:
            merged = {one["number"]: view.merged(db, one["number"]) for one in paged["rounds"]}
        return self.show(request, "lineage.html", merged=merged, stored=stored, releases=releases(self.home), **paged)

    @requires("authenticated", redirect="login")
    async def released(self, request: Request) -> Response:
        """A file of a release; both names must be ones that the lineage shows."""
        name, file = request.path_params["name"], request.path_params["file"]
        if not any(one.name == name and file in one.files for one in releases(self.home)):
            raise HTTPException(404, "there is no such file of a release")
        return FileResponse(self.home.root / "releases" / name / file, filename=f"{name}-{file}")

    @requires("authenticated", redirect="login")
    async def download(self, request: Request) -> Response:
        """A round's encoder. The number is the only thing taken from the address, so no other file can be asked for."""
        file = self.home.checkpoint(int(request.path_params["number"]))
        if not file.is_file():
            raise HTTPException(404, "this checkpoint is not kept")
        return FileResponse(file, filename=file.name, media_type="application/octet-stream")

    # Changing

    async def sites(self, request: Request, notice: str = "", bad: bool = False) -> Response:
        with view.reading(self.home) as db:
            rows = view.sites(db, {})
        status = 400 if bad else 200
        return self.show(request, "sites.html", status, sites=rows, notice=notice, bad=bad)

    async def enrol(self, request: Request) -> Response:
        form = await self.access.own_form(request)
        given = form.get("file")
        content = await given.read() if isinstance(given, UploadFile) else b""
        content = content or str(form.get("text", "")).encode()
        try:
            added = await asyncio.to_thread(self._add, content, request.user.display_name)
        except UsfmaeError as error:
            return await self.sites(request, str(error), bad=True)
        return await self.sites(request, f"{added['name']} is enrolled; a running aggregator lets it in at once.")

    def _add(self, content: bytes, by: str) -> dict[str, Any]:
        with tempfile.NamedTemporaryFile(suffix=".json", dir=self.home.root) as file:
            file.write(content)
            file.flush()
            return enrolled.add(self.home, Path(file.name), by)

    async def revoke(self, request: Request) -> Response:
        form = await self.access.own_form(request)
        name, typed = str(form.get("name", "")), str(form.get("typed", ""))
        if typed != name:
            return await self.sites(request, f"Type the name {name} to revoke it: nothing was changed.", bad=True)
        try:
            await asyncio.to_thread(enrolled.revoke, self.home, name, request.user.display_name)
        except UsfmaeError as error:
            return await self.sites(request, str(error), bad=True)
        return await self.sites(request, f"{name} is revoked; a running aggregator cuts it off at once.")


def _spans(one: dict[str, Any], replies: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, Any], float, float]]:
    """Name, reply, share of the longest wait, and seconds from the round's opening to each reply."""
    waits = [(reply, max(0.0, reply["received"] - one["opened"])) for reply in replies]
    longest = max((seconds for _, seconds in waits), default=0.0) or 1.0
    return [(reply["name"], reply, seconds / longest, seconds) for reply, seconds in sorted(waits, key=lambda w: w[1])]


def _paged(request: Request, rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The page of a long list that the address asks for."""
    text = request.query_params.get("page", "1")
    page = max(1, int(text)) if text.isdecimal() and len(text) < 9 else 1
    return {"rounds": rounds[(page - 1) * LONG : page * LONG], "page": page, "more": len(rounds) > page * LONG}


def application(home: Layout, settings: PageSettings | None = None) -> Starlette:
    """The page of one coordinator's directory: reading is open, downloads and changes need a login."""
    settings = settings or PageSettings()
    page = Dashboard(home, settings)
    known_person = requires("authenticated", redirect="login")
    routes = [
        Route("/", page.overview),
        Route("/rounds", page.rounds),
        Route("/rounds/{number:int}", page.round),
        Route("/lineage", page.lineage),
        Route("/checkpoints/{number:int}", page.download),
        Route("/releases/{name}/{file}", page.released),
        Route("/sites", page.sites),
        Route("/sites/enrol", page.enrol, methods=["POST"]),
        Route("/sites/revoke", page.revoke, methods=["POST"]),
        Route("/audit", known_person(page.audit)),
        Route("/audit.csv", known_person(page.audit_file)),
        Route("/audit.json", known_person(page.audit_file)),
    ]
    return assemble(page, routes, settings.names, closed=False)
