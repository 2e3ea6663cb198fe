"""What is done to rows one by one, in the Ray task that reads them: repairs, filters, and the columns that decide later."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice

import pyarrow as pa

from plumbline.api.stages.curate import CurateSpec
from plumbline.data.deduplication.key import key_texts
from plumbline.data.deduplication.minhash import band_hashes, border_hashes, settings_of
from plumbline.data.filters import BatchFilter, RowFilter, make_batch_filters, make_filters
from plumbline.data.filters.pii import check_pii
from plumbline.data.filters.programming import PROGRAMMING, mark_programming
from plumbline.data.normalise import KEY_BYTES, Count, make_normaliser, row_key
from plumbline.data.records import EXCERPT, LONG_EXCERPT
from plumbline.data.row import Chat, Form, Reject, Row
from plumbline.data.rows import TABLE_ROWS, Annotation, Outcome, tabulate, working_schema
from plumbline.data.sources import Part, read_part
from plumbline.models.reference import ModelReference

SEPARATOR = "\n"
"""Between the texts of a row that are compared as one."""
BORDER = "border"
"""Column of a second set of MinHash bands, which few rows have; see `border_hashes`."""
DETAIL = 160
"""Most characters of an excerpt that say what exactly was wrong; the row's beginning follows."""


@dataclass(frozen=True)
class Preparation:
    """Work on parts. It is sent to Ray's tasks.

    Attributes:
        parts: the parts of the sources, then those that rows are only compared with.
        own: how many of them are the sources'.
        form: what the rows hold.
        spec: of the stage.
        where: its field path, for messages.
        model: whose tokenizer counts tokens.
        checks: further columns, such as what a row has in common with benchmarks.
    """

    parts: tuple[Part, ...]
    own: int
    form: Form
    spec: CurateSpec
    where: str
    model: ModelReference
    checks: tuple[Annotation, ...] = ()

    @property
    def annotations(self) -> tuple[Annotation, ...]:
        """Columns that deduplication, decontamination and mixing go by."""
        key = self.spec.deduplicate.key

        def compared(rows: list[Row]) -> list[str]:
            return [SEPARATOR.join(key_texts(row, key)) for row in rows]

        def keys(rows: list[Row]) -> pa.Array:
            return pa.array([row_key(key_texts(row, key)) for row in rows], pa.binary(KEY_BYTES))

        found = [
            Annotation(pa.field("key", pa.binary(KEY_BYTES)), keys),
            Annotation(pa.field("compared", pa.int32()), lambda rows: pa.array(map(len, compared(rows)), pa.int32())),
            Annotation(
                pa.field("programming", pa.bool_()), lambda rows: pa.array([row.category == PROGRAMMING for row in rows])
            ),
        ]
        if self.spec.deduplicate.minhash is not None:
            settings = settings_of(self.spec.deduplicate.minhash)
            kind = pa.binary(8 * settings.bands)

            def bands(rows: list[Row]) -> pa.Array:
                hashes = band_hashes(compared(rows), settings)
                return pa.FixedSizeBinaryArray.from_buffers(kind, len(rows), [None, pa.py_buffer(hashes.tobytes())])

            def border(rows: list[Row]) -> pa.Array:
                chosen, hashes = border_hashes(compared(rows), settings)
                values: list[bytes | None] = [None] * len(rows)
                for i, one in zip(chosen, hashes, strict=True):
                    values[i] = one.tobytes()
                return pa.array(values, pa.binary())

            found += [Annotation(pa.field("bands", kind), bands), Annotation(pa.field(BORDER, pa.binary()), border)]
        return (*found, *self.checks)

    @property
    def schema(self) -> pa.Schema:
        """Of the tables."""
        return working_schema(self.form, self.annotations)

    def tables(self, ordinal: int) -> Iterator[pa.Table]:
        """The working tables of one part.

        Raises:
            PlumblineError: see `read_part`; or a model that a filter needs cannot be used.
        """
        yield from tabulate(self._outcomes(ordinal), self.form, ordinal, self.annotations)

    def _masked(self, text: str, length: int = EXCERPT) -> str:
        """An excerpt for the data card: what `filters.pii` keeps out of rows has no place there either."""
        row = Row({"text": text[:LONG_EXCERPT].encode(errors="replace").decode()})
        for _, apply in self._redaction():
            row = apply(row)
        return row.texts[0][:length]

    def _redaction(self) -> list[tuple[str, RowFilter]]:
        """What takes out everything that `filters.pii` keeps out of rows, and drops none."""
        pii = self.spec.filters.pii
        if pii is None:
            return []
        everything = pii.model_copy(update={"redact": [*pii.redact, *pii.drop], "drop": []})
        return [("pii", partial(check_pii, spec=everything))]

    def _dropped(self, outcome: Outcome, reject: Reject, row: Row, by: str) -> Outcome:
        text = " / ".join(row.texts)
        detail = f"{self._masked(reject.detail, DETAIL)}; " if reject.detail else ""
        excerpt = f"{detail}{self._masked(text)}"[:EXCERPT]
        return replace(outcome, row=None, reason=reject.reason, dropped_by=by, excerpt=excerpt)

    def _outcomes(self, ordinal: int) -> Iterator[Outcome]:
        spec = self.spec
        count = _counter(self.model) if spec.normalise.max_tokens is not None else None
        normalise = make_normaliser(spec.normalise, count)
        if ordinal >= self.own:  # only compared with: no more than redacted, as ours are, so that it is recognised
            yield from self._refined(read_part(self.parts[ordinal], self.form), normalise, self._redaction())
            return
        filters = [*make_filters(spec.filters), ("category", mark_programming)]
        refined = self._refined(read_part(self.parts[ordinal], self.form), normalise, filters)
        # The textbook classifier is trained once all rows are there.
        alone = spec.filters.model_copy(update={"textbook": None})
        batch_filters = make_batch_filters(alone, f"{self.where}.filters")
        while batch := list(islice(refined, TABLE_ROWS)):
            yield from self._filtered(batch, batch_filters)

    def _refined(
        self,
        outcomes: Iterator[Outcome],
        normalise: Callable[[Row], Iterator[Row | Reject]],
        filters: Sequence[tuple[str, RowFilter]],
    ) -> Iterator[Outcome]:
        for outcome in outcomes:
            if outcome.row is None:
                yield replace(outcome, excerpt=self._masked(outcome.excerpt or ""))
                continue
            for row in normalise(outcome.row):
                yield self._checked(outcome, outcome.row, row, filters)

    def _checked(
        self, outcome: Outcome, before: Row, row: Row | Reject, filters: Sequence[tuple[str, RowFilter]]
    ) -> Outcome:
        if isinstance(row, Reject):
            return self._dropped(outcome, row, before, "normalise")
        characters = sum(map(len, row.texts))
        if characters > self.spec.max_characters:
            return self._dropped(outcome, Reject("too long", f"{characters} characters"), before, "maxCharacters")
        for name, apply in filters:
            try:
                row = apply(row)
            except Reject as reject:
                return self._dropped(outcome, reject, before, f"filters.{name}")
        return replace(outcome, row=row)

    def _filtered(self, outcomes: list[Outcome], filters: Sequence[tuple[str, BatchFilter]]) -> list[Outcome]:
        for name, apply in filters:
            answers = iter(apply([outcome.row for outcome in outcomes if outcome.row is not None]))
            outcomes = [
                outcome
                if outcome.row is None
                else self._dropped(outcome, answer, outcome.row, f"filters.{name}")
                if isinstance(answer := next(answers), Reject)
                else replace(outcome, row=answer)
                for outcome in outcomes
            ]
        return outcomes


@lru_cache(maxsize=1)
def _counter(model: ModelReference) -> Count:
    """Tokens of a chat, as training will see it. Kept by the worker process for its next part."""
    from plumbline.models.load import load_tokenizer  # imports torch

    tokenizer = load_tokenizer(model)

    def count(chat: Chat) -> int:
        return len(tokenizer.apply_chat_template(list(chat), tokenize=True)["input_ids"])

    return count
