"""`/health`, `/metrics` and the chat page."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, JSONResponse, Response

from emu.serve.gate import Traffic
from emu.serve.metrics import CONTENT_TYPE
from emu.serve.server import Server

PAGE_POLICY = (
    "default-src 'none'; img-src 'self' data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'"
)


def router(server: Server, traffic: Traffic) -> APIRouter:
    """The routes that need no model."""
    routes = APIRouter()
    page = (files("emu.serve") / "page" / "index.html").read_text("utf-8")
    icon = (files("emu.serve") / "page" / "icon.svg").read_bytes()

    @routes.get("/health")
    @routes.get("/healthz")
    async def health() -> JSONResponse:
        """Whether requests are answered, and if not, why."""
        found = await server.backend.health()
        if found.is_ready and not traffic.is_draining:
            return JSONResponse({"status": "ok"})
        reason = "the server is about to stop" if traffic.is_draining else found.reason
        body = {"status": "not ready", "reason": reason}
        return JSONResponse(body, 503, headers={"Retry-After": "2"})

    @routes.get("/metrics")
    async def metrics() -> Response:
        """The figures of the server in the format of Prometheus."""
        text = server.metrics.text(await server.backend.stats())
        return Response(text, media_type=CONTENT_TYPE)

    @routes.get("/favicon.ico", include_in_schema=False)
    @routes.get("/icon.svg", include_in_schema=False)
    async def page_icon() -> Response:
        return Response(
            icon, media_type="image/svg+xml", headers={"Cache-Control": "max-age=86400"}
        )

    @routes.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        """A page to chat with the model."""
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    return routes
