"""Working on parts in parallel with Ray Data. The only file of this area that imports Ray."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import TaskPoolStrategy

from plumbline.data.row import Row
from plumbline.errors import EXIT_INVALID, InvalidInput, PlumblineError

AHEAD = 2
"""Chunks that an actor is given before it has answered: it works on one while the other travels."""
RESTARTS = 3
"""How often an actor that was lost, with its node or for want of memory, is begun anew."""
FAILURE = pa.field("failure", pa.struct([("message", pa.string()), ("exit_code", pa.int32())]))


def tables_of_parts(
    count: int, work: Callable[[int], Iterator[pa.Table]], schema: pa.Schema, parallelism: int
) -> Iterator[pa.Table]:
    """Yield the tables of all parts, in the order of parts, whatever the parallelism.

    Needs a connected Ray. Of several broken parts the first in order is the one that raises.

    Args:
        count: how many parts.
        work: ordinal of a part → its tables; runs in Ray tasks.
        schema: of the tables.
        parallelism: parts that are worked on at the same time.

    Raises:
        PlumblineError: the one that `work` raised; InvalidInput stays what it is.
    """

    def tables(batch: pa.Table) -> Iterator[pa.Table]:
        try:
            for table in work(batch["part"][0].as_py()):
                yield table.append_column(FAILURE, pa.nulls(table.num_rows, FAILURE.type))
        except PlumblineError as error:  # as a value: it keeps its type and its place, and Ray logs no traceback
            row = {FAILURE.name: {"message": str(error), "exit_code": error.exit_code}}
            yield pa.Table.from_pylist([row], schema.append(FAILURE))

    # Ray Data announces every execution on the console; errors come to us as values.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    dataset = ray.data.from_items([{"part": i} for i in range(count)], override_num_blocks=count).map_batches(
        tables, batch_size=1, batch_format="pyarrow", compute=TaskPoolStrategy(size=min(parallelism, count))
    )
    dataset.context.execution_options.preserve_order = True
    for table in cast(Iterator[pa.Table], dataset.iter_batches(batch_size=None, batch_format="pyarrow")):
        failures = table[FAILURE.name].combine_chunks().drop_null()
        if len(failures):
            raise _error(failures[0].as_py())
        yield table.drop_columns([FAILURE.name])


def _error(failure: dict[str, str | int]) -> PlumblineError:
    kind = InvalidInput if failure["exit_code"] == EXIT_INVALID else PlumblineError
    return kind(failure["message"])


def measure_chunks(
    chunks: Iterator[list[Row]], make: Callable[[], Callable[[list[Row]], dict[str, np.ndarray]]], workers: int
) -> Iterator[dict[str, np.ndarray]]:
    """What models say of rows, in actors that each load them once; in the order of the chunks.

    Needs a connected Ray. Each actor takes a GPU where the cluster has some.

    Args:
        chunks: rows, some hundred at a time.
        make: loads the models; runs in the actor.
        workers: actors at most.

    Raises:
        PlumblineError: the one that `make` or the measuring raised; InvalidInput stays what it is.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    resources = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    actor = ray.remote(**resources, max_restarts=RESTARTS, max_task_retries=RESTARTS)(_Measurer)
    actors = [actor.remote(make) for _ in range(min(workers, gpus) if gpus else workers)]
    waiting: deque[ray.ObjectRef[Any]] = deque()  # a bounded number of chunks, not all of them
    for turn, chunk in zip(cycle(actors), chunks, strict=False):
        waiting.append(turn.measure.remote(chunk))
        if len(waiting) == AHEAD * len(actors):
            yield _measured(waiting.popleft())
    while waiting:
        yield _measured(waiting.popleft())


def _measured(waiting: ray.ObjectRef[Any]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] | tuple[str, int] = ray.get(waiting)
    if isinstance(found, tuple):
        raise _error({"message": found[0], "exit_code": found[1]})
    return found


class _Measurer:
    """An actor that keeps its models."""

    def __init__(self, make: Callable[[], Callable[[list[Row]], dict[str, np.ndarray]]]) -> None:
        self._make, self._work = make, None

    def measure(self, rows: list[Row]) -> dict[str, np.ndarray] | tuple[str, int]:
        try:
            self._work = self._work or self._make()
            return self._work(rows)
        except PlumblineError as error:  # as a value, see above
            return str(error), error.exit_code
