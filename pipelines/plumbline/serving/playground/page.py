"""The page as one answer that needs nothing else: styles and script stand in it, so that it works below any path and without a network."""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib import resources

from fastapi import FastAPI, Response

STYLE_TAG = '<link rel="stylesheet" href="playground.css">'
SCRIPT_TAG = '<script src="playground.js"></script>'


def mount(app: FastAPI) -> None:
    """Serve the page at `/`. It holds no secret, and asks the API as any client does."""

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def playground() -> Response:
        page, policy = render()
        headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)


@functools.cache
def render() -> tuple[str, str]:
    """The page and its Content-Security-Policy: its own script and style alone, requests to its own origin alone, text that stays text."""
    folder = resources.files("plumbline.serving.playground")
    page, style, script = (
        (folder / name).read_text(encoding="utf-8") for name in ("index.html", "playground.css", "playground.js")
    )
    page = page.replace(STYLE_TAG, f"<style>{style}</style>").replace(SCRIPT_TAG, f"<script>{script}</script>")
    policy = [
        "default-src 'none'",
        f"script-src '{_digest(script)}'",
        f"style-src '{_digest(style)}'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ]
    return page, "; ".join(policy)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
