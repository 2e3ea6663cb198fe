"""Who gets the new model. Pure."""

from __future__ import annotations

import hashlib


def chosen(caller: str, percent: float, salt: str) -> bool:
    """Whether a caller is among so many percent of all. Who is stays so while the percentage grows.

    Args:
        caller: what tells callers apart.
        percent: 0 to 100.
        salt: of the release, so that each begins with other callers.
    """
    digest = hashlib.sha256(f"{salt} {caller}".encode(errors="replace")).digest()
    return int.from_bytes(digest[:8]) < percent / 100 * 2**64
