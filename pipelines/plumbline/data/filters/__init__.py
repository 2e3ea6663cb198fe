"""Filters: one file each, and one registry line. A filter returns the row, maybe changed, or raises `Reject`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from plumbline.data.filters.language import check_language
from plumbline.data.filters.length import check_length
from plumbline.data.filters.pii import check_pii
from plumbline.data.filters.refusals import check_refusals
from plumbline.data.filters.repetition import check_repetition
from plumbline.data.filters.symbols import check_symbols
from plumbline.data.filters.textbook import TextbookModel, filter_textbook
from plumbline.data.row import Reject, Row

if TYPE_CHECKING:
    from plumbline.api.curation.filters import FiltersSpec

RowFilter = Callable[[Row], Row]
BatchFilter = Callable[[Sequence[Row]], list[Row | Reject]]
"""Rows → for each the row, maybe changed, or why it is dropped."""

ROW_FILTERS: dict[str, Callable[[Row, Any], Row]] = {
    "length": check_length,
    "symbols": check_symbols,
    "refusals": check_refusals,
    "repetition": check_repetition,
    "language": check_language,
    "pii": check_pii,
}
"""By field of the spec, the cheapest first; `pii` is last, since it changes texts."""


def make_filters(spec: FiltersSpec) -> list[tuple[str, RowFilter]]:
    """The row filters that the spec asks for, by name, in the order in which they run."""
    blocks = {name: getattr(spec, name) for name in ROW_FILTERS}
    return [(name, partial(_checked, ROW_FILTERS[name], block)) for name, block in blocks.items() if block is not None]


def make_batch_filters(
    spec: FiltersSpec, where: str, textbook: TextbookModel | None = None
) -> list[tuple[str, BatchFilter]]:
    """The filters that need a model, by name, in the order in which they run. Loads the models: call it in the worker.

    The judge is none of them: it is one client of one endpoint, whatever the number of workers; see `judge`.

    Args:
        spec: the stage's `filters` block.
        where: its field path, for messages.
        textbook: the trained classifier; needed where the spec has `textbook`.

    Raises:
        InvalidInput: a model cannot be used.
    """
    made: list[tuple[str, BatchFilter]] = []
    if spec.textbook is not None:
        if textbook is None:
            raise ValueError("the textbook filter needs its trained classifier")
        made.append(("textbook", partial(filter_textbook, spec=spec.textbook, model=textbook)))
    if spec.safety is not None or spec.quality is not None:
        from plumbline.data.filters.classifier import QualityFilter, SafetyFilter  # imports torch

        if spec.safety is not None:
            made.append(("safety", SafetyFilter(spec.safety, f"{where}.safety")))
        if spec.quality is not None:
            made.append(("quality", QualityFilter(spec.quality, f"{where}.quality")))
    return made


def _checked(check: Callable[[Row, Any], Row], block: Any, row: Row) -> Row:
    return check(row, block)
