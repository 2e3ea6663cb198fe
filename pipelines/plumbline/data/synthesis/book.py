"""What a synthesis makes: rows in order, and everything that was dropped, by reason."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from plumbline.data.records import EXCERPT
from plumbline.data.row import Reject, Row
from plumbline.data.rows import Outcome

BARREN_ROUNDS = 10  # in a row without a row: the teacher has no more ideas
SURPLUS = "more than the rows asked for"


class Book:
    """Rows kept and drops, as outcomes in the order in which they were decided.

    Args:
        stage: name of the stage: the rows' source.
        method: their format; their ids begin with both.
        wanted: how many rows to make.
        teacher: who writes, for the rows' provenance.
    """

    def __init__(self, stage: str, method: str, wanted: int, teacher: str) -> None:
        self._stage, self._method, self._teacher = stage, method, teacher
        self.outcomes: list[Outcome] = []
        self.scores = array("d")
        """Of all answers that were scored, kept or not."""
        self.wanted, self.rows = wanted, 0

    @property
    def left(self) -> int:
        """Rows still to make."""
        return self.wanted - self.rows

    def rounds(self) -> Iterator[int]:
        """Number after number, until there are enough rows or rounds bring no more."""
        number = barren = 0
        while self.left > 0 and barren < BARREN_ROUNDS:
            before = self.rows
            yield number
            number += 1
            barren = barren + 1 if self.rows == before else 0

    def keep(self, row: Row) -> Row:
        """Add a row; it gets an id, by which later rows can name it as their parent.

        Raises:
            Reject: there are enough.
        """
        if self.left <= 0:
            raise Reject(SURPLUS)
        row = replace(row, record_id=f"{self._stage}/{self.rows}", teacher=self._teacher)
        self.outcomes.append(Outcome(self._stage, len(self.outcomes), self._method, row))
        self.rows += 1
        return row

    def drop(self, reject: Reject, shown: str) -> None:
        """Count a drop. `shown` is what was dropped, for the examples."""
        excerpt = (f"{reject.detail}; {shown}" if reject.detail else shown)[:EXCERPT]
        self.outcomes.append(Outcome(self._stage, len(self.outcomes), self._method, reason=reject.reason, excerpt=excerpt))

    @contextmanager
    def dropping(self, shown: str) -> Iterator[None]:
        """Count whatever the block rejects."""
        try:
            yield
        except Reject as reject:
            self.drop(reject, shown)
