"""What driver and workers of one group tell each other beside progress. It is an actor, so this file imports nothing that is heavy."""

from __future__ import annotations

import asyncio


class Group:
    """The workers say where they are, the driver that they are to stop."""

    def __init__(self) -> None:
        self._nodes: dict[int, str] = {}
        self._stop = asyncio.Event()

    async def join(self, rank: int, node: str) -> None:
        """Rank `rank` works on this node."""
        self._nodes[rank] = node

    async def nodes(self) -> dict[int, str]:
        """Rank → node, of those that have joined."""
        return self._nodes

    async def stop(self) -> None:
        """Ask the group to save and stop."""
        self._stop.set()

    async def stopped(self) -> None:
        """Answers when the group is asked to stop."""
        await self._stop.wait()
