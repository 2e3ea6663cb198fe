"""Reading parts in parallel with Ray Data. The only file of this area that imports Ray."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import cast

import pyarrow as pa
import ray.data
from ray.data import TaskPoolStrategy

from plumbline.data.formats import Makes
from plumbline.data.rows import tabulate, working_schema
from plumbline.data.sources import Part, read_part
from plumbline.errors import EXIT_INVALID, InvalidInput, PlumblineError

FAILURE = pa.field("failure", pa.struct([("message", pa.string()), ("exit_code", pa.int32())]))


def read_parallel(parts: Sequence[Part], makes: Makes, max_characters: int, parallelism: int) -> Iterator[pa.Table]:
    """Yield the working tables of all parts, in the order of parts and records, whatever the parallelism.

    Needs a connected Ray. Of several broken parts the first in order is the one that raises.

    Raises:
        InvalidInput: see `read_part`.
        PlumblineError: a file cannot be reached now.
    """

    def read(batch: pa.Table) -> Iterator[pa.Table]:
        ordinal = batch["part"][0].as_py()
        try:
            for table in tabulate(read_part(parts[ordinal], makes), makes, ordinal, max_characters):
                yield table.append_column(FAILURE, pa.nulls(table.num_rows, FAILURE.type))
        except PlumblineError as error:  # as a value: it keeps its type and its place, and Ray logs no traceback
            yield _failed(error, makes)

    # Ray Data announces every execution on the console; errors come to us as values.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = [{"part": i} for i in range(len(parts))]
    dataset = ray.data.from_items(items, override_num_blocks=len(parts)).map_batches(
        read, batch_size=1, batch_format="pyarrow", compute=TaskPoolStrategy(size=min(parallelism, len(parts)))
    )
    dataset.context.execution_options.preserve_order = True
    tables = cast(Iterator[pa.Table], dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    for table in tables:
        failures = table[FAILURE.name].combine_chunks().drop_null()
        if len(failures):
            raise _error(failures[0].as_py())
        yield table.drop_columns([FAILURE.name])


def _failed(error: PlumblineError, makes: Makes) -> pa.Table:
    row = {FAILURE.name: {"message": str(error), "exit_code": error.exit_code}}
    return pa.Table.from_pylist([row], working_schema(makes).append(FAILURE))


def _error(failure: dict[str, str | int]) -> PlumblineError:
    kind = InvalidInput if failure["exit_code"] == EXIT_INVALID else PlumblineError
    return kind(failure["message"])
