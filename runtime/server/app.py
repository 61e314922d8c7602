"""The application: which path answers what, who may ask, and how refusals look."""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sampan.errors import InputError

from ..generate import check_shift
from ..session import Session
from . import chat, completions
from .endpoint import Endpoint, Service
from .metrics import TYPE
from .refusals import RefusalError
from .settings import BODY_SECONDS, LOCAL, Settings
from .turns import BROKEN

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE = Path(__file__).with_name("page.html")
OPEN = ("/", "/health")  # need no key: one is the page that asks for it
LOG = logging.getLogger("sampan.server")


def service(session: Session, settings: Settings) -> Service:
    """What answers, running."""
    settings.check()
    check_shift(settings.shift, session.context)
    return Service(session, settings)


def application(service: Service) -> Starlette:
    """The ASGI application."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.cors import CORSMiddleware
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse
    from starlette.routing import Route

    settings = service.settings
    card = {"id": settings.name, "object": "model", "created": service.created, "owned_by": "sampan",
            "context_length": service.session.context}  # fmt: skip
    html = PAGE.read_text(encoding="utf-8")
    policy = {"content-security-policy": _policy(html), "x-content-type-options": "nosniff"}

    async def page(request: Request) -> Response:
        return HTMLResponse(html, headers=policy)

    async def health(request: Request) -> Response:
        if service.worker.stopping:
            return JSONResponse({"status": "stopping"}, 503)
        return JSONResponse({"status": "ok", "parallel": len(service.lanes.sessions)})

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    async def model(request: Request) -> Response:
        if request.path_params["name"] != settings.name:
            raise RefusalError(404, f"model: this server has {settings.name} only", "model", "model_not_found")
        return JSONResponse(card)

    async def metrics(request: Request) -> Response:
        gauges = {
            "sampan_requests_running": service.worker.running,
            "sampan_requests_waiting": service.worker.waiting,
            "sampan_context_tokens": service.session.context,
        }
        return PlainTextResponse(service.metrics.text(gauges), media_type=TYPE)

    async def refused(request: Request, e: Exception) -> Response:
        if isinstance(e, HTTPException):  # of starlette's own routing
            e = RefusalError(e.status_code, f"{request.method} {request.url.path}: {e.detail}", headers=e.headers)
        if not isinstance(e, RefusalError):
            e = BROKEN
        return JSONResponse(e.body(), e.status, e.headers)

    routes = [
        Route("/", page),
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/v1/chat/completions", Endpoint(service, chat), methods=["POST"]),
        Route("/v1/completions", Endpoint(service, completions), methods=["POST"]),
    ]
    paths = {route.path for route in routes}
    guards = [Middleware(_Guard, service, refused, paths)]
    if settings.cors:
        allowed = {"allow_methods": ["GET", "POST"], "allow_headers": ["authorization", "content-type"]}
        guards.insert(0, Middleware(CORSMiddleware, allow_origins=settings.cors, **allowed))
    handlers = {RefusalError: refused, HTTPException: refused, Exception: refused}
    return Starlette(routes=routes, middleware=guards, exception_handlers=handlers)


class _Guard:
    """Counts responses and lets in who may ask; ASGI middleware."""

    def __init__(
        self, app: ASGIApp, service: Service, refused: Callable[[Any, Exception], Any], paths: set[str]
    ) -> None:
        self._app, self._service, self._refused, self._paths = app, service, refused, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._service.metrics.response(path, message["status"])
            await send(message)

        if refusal := self._refusal(dict(scope["headers"]), scope["path"]):
            from starlette.requests import Request

            response = await self._refused(Request(scope), refusal)
            await response(scope, receive, counted)
        else:
            await self._app(scope, receive, counted)

    def _refusal(self, headers: dict[bytes, bytes], path: str) -> RefusalError | None:
        settings = self._service.settings
        if settings.api_key is None:
            # a stranger's page may have a name of its own point to this machine, and ask under that
            host = re.sub(r":\d*$", "", headers.get(b"host", b"localhost").decode("latin-1")).strip("[]").lower()
            if host not in (*LOCAL, settings.host):
                return RefusalError(403, f"host: expected {settings.host}, found another; --api-key allows any")
        elif path not in OPEN:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + settings.api_key.encode()):
                wrong = "wrong" if given else "missing"
                return RefusalError(
                    401, f"the API key is {wrong}; send it as Authorization: Bearer KEY", None, "invalid_api_key",
                    {"www-authenticate": "Bearer"},
                )  # fmt: skip
        return None


def _policy(html: str) -> str:
    """What the page may do: run its own script, and talk to this server."""
    digests = {}
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digests[tag] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return (
        f"default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        f"img-src data:; script-src 'sha256-{digests['script']}'; style-src 'sha256-{digests['style']}'"
    )


def bind(settings: Settings) -> socket.socket:
    """The address, taken before a model is loaded; nobody is let in yet."""
    settings.check()
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
    except OSError as e:
        raise InputError(f"--host {settings.host}: {e.strerror or e}") from None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # a reader that takes nothing does not hold its connection for ever
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(2000 * BODY_SECONDS))
    try:
        sock.bind(address)
    except OSError as e:
        sock.close()
        raise InputError(f"--host {settings.host} --port {settings.port}: {e.strerror}; give another one") from None
    return sock


def server(service: Service) -> uvicorn.Server:
    """What accepts connections; a signal lets it finish what runs and refuse what waits."""
    import uvicorn

    config = uvicorn.Config(
        application(service), lifespan="off", log_config=None, access_log=False, server_header=False, ws="none",
        proxy_headers=False,
    )  # fmt: skip
    return uvicorn.Server(config)


def run(service: Service, sock: socket.socket) -> None:
    """Serve until a signal comes: SIGTERM, or Ctrl-C, which raises KeyboardInterrupt at the end."""
    import asyncio
    import signal

    serving = server(service)
    ended = serving.handle_exit

    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def finish() -> None:
            service.worker.stop()
            while service.inside:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.2)  # the last bytes leave
            serving.force_exit = True  # whoever still holds a connection has no answer to wait for

        tasks = []

        def stop(number: int, frame: Any) -> None:
            loop.call_soon_threadsafe(lambda: tasks.append(asyncio.create_task(finish())))
            ended(number, frame)

        serving.handle_exit = stop
        await serving.serve(sockets=[sock])

    before = signal.signal(signal.SIGTERM, lambda number, frame: None)  # uvicorn raises what it caught once more
    try:
        asyncio.run(main())
    finally:
        signal.signal(signal.SIGTERM, before)
        service.close()
