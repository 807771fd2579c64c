"""A page as one application: Starlette's middleware in order, login and logout, strict headers, bounded forms.

A page on loopback is reachable by every web site the same browser has open: through a name that points to 127.0.0.1
(so the Host header is checked, TrustedHostMiddleware), and through a form that posts there (so the Origin is checked
here, and a form carries a token of its session; the published middlewares for that answer 500 to a malformed cookie
or pass a request that has none). Starlette is a toolkit: it opens no port, see server_thread.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from usfmae.core.errors import UsageError, UsfmaeError
from usfmae.core.report.audit_search import exported, search
from usfmae.core.web import audit_view, templating
from usfmae.core.web.access import SESSION_HOURS, Access, local_path

LOOPBACK = ("127.0.0.1", "localhost", "[")  # "[": an IPv6 address, which no name can be rebound to
LARGEST_BODY = 64 * 1024  # bytes of a form; an enrol.json is under 2 KiB

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class StrictHeaders:
    """Every answer carries HEADERS; behind a TLS proxy, cookies are Secure."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        secure = scope["type"] == "http" and Headers(scope=scope).get("x-forwarded-proto") == "https"

        async def strict(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if secure and "set-cookie" in headers:
                    headers["set-cookie"] += "; Secure"
            await send(message)

        await self.app(scope, receive, strict)


class OwnForms:
    """Forms of other sites, and large ones, go no further."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = _refusal(scope) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)


def _refusal(scope: Scope) -> Response | None:
    headers = Headers(scope=scope)
    if scope["method"] in ("GET", "HEAD"):
        return None
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != headers.get("host", ""):
        return PlainTextResponse("this form came from another site", 403)
    length = headers.get("content-length", "")
    if not length.isdecimal() or int(length) > LARGEST_BODY:
        return PlainTextResponse("the form is too large", 413)
    return None


class WebPage:
    """What both pages do alike: render templates, ask for the token, say what did not work."""

    heading, why = "Who is asking?", ""  # of the login form
    hint = "The token stands in keys/page.token, readable by the account that runs this service."

    def __init__(self, package: str, access: Access, audit_log: Path, **shown: object) -> None:
        self.access, self.audit_log, self.shown = access, audit_log, shown
        self.templates = templating.environment(package)

    def show(self, request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        session = self.access.session(request)
        person = {"person": session.person if session else "", "form_token": session.form_token if session else ""}
        text = self.templates.get_template(template).render(path=request.url.path, **person, **self.shown, **values)
        return HTMLResponse(text, status)

    async def login(self, request: Request) -> Response:
        target = local_path(request.query_params.get("next", "/"))
        wrong = False
        if request.method == "POST":
            target = local_path(str((await request.form()).get("next", "/")))
            if await self.access.log_in(request):
                return RedirectResponse(target, 303)
            wrong = True
        words = {"heading": self.heading, "why": self.why, "hint": self.hint}
        shown = {**words, "next": target, "wrong": wrong}
        return self.show(request, "login.html", 403 if wrong else 200, **shown)

    async def audit(self, request: Request) -> Response:
        log = await asyncio.to_thread(audit_view.audited, self.audit_log, request.query_params)
        return self.show(request, "audit.html", 400 if log["problem"] else 200, log=log)

    async def audit_file(self, request: Request) -> Response:
        """Every entry that fits, as a file."""
        form: Literal["csv", "json"] = "json" if request.url.path.endswith(".json") else "csv"
        entries = await asyncio.to_thread(search, self.audit_log, audit_view.wanted(request.query_params))
        media = {"csv": "text/csv; charset=utf-8", "json": "application/json"}[form]
        saved = {"content-disposition": f'attachment; filename="audit.{form}"'}
        return Response(exported(entries, form), media_type=media, headers=saved)

    async def problem(self, request: Request, error: Exception) -> Response:
        """Any exception of one request costs that one."""
        if isinstance(error, HTTPException):
            return self.show(request, "problem.html", error.status_code, text=error.detail)
        status = 400 if isinstance(error, UsageError) else 503
        return self.show(request, "problem.html", status, text=str(error))


class LoginFirst:
    """A page that strangers see nothing of but the login form."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or scope["user"].is_authenticated or path == "/login" or path.startswith("/static/"):
            await self.app(scope, receive, send)
        elif scope["method"] in ("GET", "HEAD"):
            target = f"/login?next={path}" if local_path(path) == path else "/login"
            await RedirectResponse(target, 303)(scope, receive, send)
        else:
            await PlainTextResponse("log in first: this needs a token", 403)(scope, receive, send)


def assemble(page: WebPage, routes: Sequence[BaseRoute], names: Sequence[str] = (), closed: bool = True) -> Starlette:
    """The application of a page. `names`: further host names it answers to; `closed`: nothing without a login."""
    middleware = [
        Middleware(StrictHeaders),
        Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, *(n.lower() for n in names)], www_redirect=False),
        Middleware(OwnForms),
        Middleware(
            SessionMiddleware,
            secret_key=secrets.token_hex(32),
            session_cookie=page.access.cookie,
            max_age=int(SESSION_HOURS * 3600),
            same_site="strict",
        ),
        Middleware(AuthenticationMiddleware, backend=page.access),
        *([Middleware(LoginFirst)] if closed else []),
    ]
    common = [
        Route("/login", page.login, methods=["GET", "POST"], name="login"),
        Route("/logout", page.access.log_out, methods=["POST"]),
        Mount("/static", StaticFiles(directory=templating.STATIC)),
    ]
    handlers: Mapping[Any, Any] = {HTTPException: page.problem, UsfmaeError: page.problem}
    return Starlette(routes=[*routes, *common], middleware=middleware, exception_handlers=dict(handlers))
