"""HTTP: liveness, readiness and metrics."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from plumbline_operator import metrics

Check = Callable[[], list[str]]


def application(alive: Check, ready: Check) -> web.Application:
    """`/healthz`, `/readyz`, `/metrics`.

    Args:
        alive: what only a restart puts right; nothing if all is well.
        ready: why it does not do its work yet.
    """

    async def healthz(_: web.Request) -> web.Response:
        return _answer(alive())

    async def readyz(_: web.Request) -> web.Response:
        return _answer([*alive(), *ready()])

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    application = web.Application()
    application.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", exposition)])
    return application


def _answer(problems: list[str]) -> web.Response:
    return web.Response(text="\n".join(problems) or "ok", status=503 if problems else 200)
