"""Rows on their way to a tracker: in order, each step once, whatever the tracker does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from plumbline.errors import one_line
from plumbline.training.tracking.tracker import PACE, Row, Tracker

logger = logging.getLogger(__name__)

RETRY = 60.0  # seconds until a tracker that failed is tried again


def in_order(rows: Iterable[Row], last: int, history: Callable[[], Iterable[Row]]) -> list[Row]:
    """Each step after `last` once, in order; of repeated ones the first counts.

    Args:
        rows: as they were reported: with repeats where a group of workers began again, and gaps where one was lost.
        last: the step before the first.
        history: rows of the newest checkpoint, asked for only where a step is missing.
    """
    wanted: dict[int, Row] = {}
    for row in rows:
        if row["step"] > last:
            wanted.setdefault(int(row["step"]), row)
    end = max(wanted, default=last)
    if len(wanted) < end - last:
        for row in history():
            if last < row["step"] < end:
                wanted.setdefault(int(row["step"]), row)
    return [wanted[step] for step in sorted(wanted)]


class Feed:
    """Rows on their way to one tracker, in a thread of its own. What a tracker does not take is kept, and offered again later.

    Args:
        where: field path of its block.
        open: starts the tracker, or goes on with its run.
        history: rows of the newest checkpoint.
        pace, retry: seconds between two deliveries, and after one that failed.
    """

    def __init__(
        self,
        where: str,
        open: Callable[[], Tracker],
        history: Callable[[], list[Row]],
        pace: float = PACE,
        retry: float = RETRY,
    ) -> None:
        self._where, self._open, self._history, self._pace, self._retry = where, open, history, pace, retry
        self._tracker: Tracker | None = None
        self._pending: list[Row] = []
        self._failure: str | None = None
        self._warned = False
        self._over, self._ok = threading.Event(), False
        self._thread = threading.Thread(target=self._work, name=where, daemon=True)
        self._thread.start()

    def add(self, row: Row) -> None:
        self._pending.append(row)

    @property
    def failure(self) -> str | None:
        """Why it does not take rows now, for people."""
        return self._failure

    def end(self, ok: bool) -> None:
        """Deliver what is left, then end the tracker's run. Does not wait for that."""
        self._ok = ok
        self._over.set()

    def wait(self, patience: float) -> None:
        """Wait for the end that was asked for, some seconds at most."""
        self._thread.join(patience)
        if self._thread.is_alive() or self._failure is not None:
            why, steps = self._failure or f"{self._where} does not answer", {row["step"] for row in self._pending}
            logger.warning("%s; %d steps were not logged there, the artifact's metrics.jsonl has them", why, len(steps))

    def _work(self) -> None:
        pause = 0.0
        while True:
            last = self._over.wait(pause)
            try:
                self._deliver()
                if last and self._tracker is not None:
                    self._tracker.close(self._ok)
                self._failure, pause = None, self._pace
            except Exception as error:  # libraries raise what they like, and none of it may end the training
                self._failure, pause = f"{self._where} fails: {one_line(error, 200)}", self._retry
                if not self._warned:
                    logger.warning("%s; training goes on, and its steps are offered again later", self._failure)
                self._warned = True
            if last:
                return

    def _deliver(self) -> None:
        if self._tracker is None:
            self._tracker = self._open()
        taken = len(self._pending)
        rows = in_order(self._pending[:taken], self._tracker.last, self._history)
        if rows:
            self._tracker.log(rows)
        del self._pending[:taken]
