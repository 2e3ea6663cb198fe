"""Addresses as reports show them: without what may be a key."""

from __future__ import annotations

from urllib.parse import urlsplit


def public(uri: str) -> str:
    """An address without user, password and query, also of each link of a chain (`zip://a.csv::https://…`)."""
    return "::".join(_public(link) for link in uri.split("::"))


def _public(link: str) -> str:
    try:
        parts = urlsplit(link)
    except ValueError:
        return link.partition("://")[0] + "://…"
    if not parts.netloc:
        return link
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
