"""The benchmarks that rows are compared with: their questions, read from their files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from plumbline.api.curation.decontamination import BenchmarkFilesSpec, DecontaminateSpec
from plumbline.api.stages.evaluate import TaskSpec
from plumbline.data.decontamination.index import Question
from plumbline.data.read import read_records
from plumbline.data.records import Broken
from plumbline.data.sources import hub_files
from plumbline.errors import InvalidInput
from plumbline.evaluation.benchmarks import QUESTIONS
from plumbline.external import expand
from plumbline.graph import benchmark_files
from plumbline.plan import Plan


@dataclass(frozen=True)
class BenchmarkFiles:
    """One benchmark's files.

    Attributes:
        name: in reasons and the data card; unique.
        benchmark: how they are read; None for those of no benchmark that can be evaluated.
        uri: where they are.
        identity: of their content, as planned.
        items: the questions.
    """

    name: str
    benchmark: str | None
    uri: str
    identity: str
    items: tuple[Question, ...]


def benchmarks_of(plan: Plan, block: DecontaminateSpec, where: str) -> list[BenchmarkFiles]:
    """What the rows of a stage must not hold: the questions of the run's benchmarks, and of further ones.

    Args:
        plan: the run.
        block: `decontaminate` of the stage.
        where: field path of the block, for messages.

    Raises:
        InvalidInput, PlumblineError: see `load_benchmarks`.
    """
    if not block.enabled:
        return []
    return load_benchmarks(benchmark_files(plan.run.spec).values(), block.against, plan.identities, f"{where}.against")


def load_benchmarks(
    asked: Iterable[tuple[str, str]], against: Sequence[BenchmarkFilesSpec], identities: Mapping[str, str], where: str
) -> list[BenchmarkFiles]:
    """Read the questions of the run's benchmarks, then of further ones; each file set once.

    Args:
        asked: (benchmark, URI), from `plumbline.graph.benchmark_files`. Names of tasks do not matter: to rename one changes
            no dataset.
        against: further ones.
        identities: by URI, as planned.
        where: field path of `against`, for messages.

    Raises:
        InvalidInput: with file and line of what cannot be read.
        PlumblineError: a file cannot be reached now.
    """
    found: list[BenchmarkFiles] = []
    of_run = sorted(set(asked))
    kinds = [benchmark for benchmark, _ in of_run]
    for benchmark, uri in of_run:
        name = benchmark if kinds.count(benchmark) == 1 else f"{benchmark} {PurePosixPath(uri).name}"
        name = _unique(name, found)
        found.append(BenchmarkFiles(name, benchmark, uri, identities[uri], tuple(_of_benchmark(name, benchmark, uri))))
    for i, one in enumerate(against):
        if (one.benchmark, one.uri) not in of_run:
            name = _unique(one.name, found)
            items = (
                _of_benchmark(name, one.benchmark, one.uri)
                if one.benchmark
                else _of_fields(name, one, identities[one.uri], f"{where}[{i}].uri")
            )
            found.append(BenchmarkFiles(name, one.benchmark, one.uri, identities[one.uri], tuple(items)))
    return found


def _of_benchmark(name: str, benchmark: str, uri: str) -> Iterator[Question]:
    task = TaskSpec.model_validate({"name": "all", "benchmark": benchmark, "uri": uri})
    for item in QUESTIONS[benchmark].load(task):
        yield Question(name, item.id, item.texts or (item.prompt[-1]["content"],), item.code)


def _of_fields(name: str, spec: BenchmarkFilesSpec, planned: str, where: str) -> Iterator[Question]:
    on_hub = spec.uri.startswith("hf://")
    files = hub_files(spec.uri, spec.split, where, planned) if on_hub else expand(spec.uri, where)
    root = os.path.commonpath([str(Path(file).parent) for file in files])
    for file in files:
        for _, line, record in read_records(file, "fail"):
            assert not isinstance(record, Broken)
            question = _joined(record, spec.fields or [], file, line)
            own_id = f"{os.path.relpath(file, root)}:{line}"
            yield Question(name, own_id, (question,), _joined(record, spec.code, file, line))


def _joined(record: Mapping[str, Any], fields: Sequence[str], file: str, line: int) -> str:
    for field in fields:
        if field not in record:
            raise InvalidInput(f"{file}:{line}: no field '{field}'; there are: {', '.join(map(str, record))}")
    return "\n".join(part for field in fields for part in _strings(record[field]))


def _strings(value: Any) -> list[str]:
    """The texts in a value; of a list or an object, those in it."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for one in value for text in _strings(one)]
    return [] if value is None else [str(value)]


def _unique(name: str, taken: Sequence[BenchmarkFiles]) -> str:
    names = {one.name for one in taken}
    return next(new for new in (name, *(f"{name} {i}" for i in range(2, len(names) + 3))) if new not in names)
