"""From `sources` of the spec to parts that can be read independently, and from a part to the outcomes of its records."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, cast

from plumbline.api.stages.curate import SKILLS_COUNT, SourceSpec
from plumbline.artifacts import Artifact
from plumbline.builtin import skills
from plumbline.data.chat import Chat, Content
from plumbline.data.dataset import part_uris
from plumbline.data.formats import Format, Makes, choose
from plumbline.data.normalise import Reject, clean
from plumbline.data.read import BadRecords, Broken, read_records
from plumbline.data.rows import COLUMNS, Outcome
from plumbline.errors import InvalidInput
from plumbline.external import SKILLS, expand

EXCERPT = 300
ID_FIELDS = ("id", "record_id", "prompt_id", "message_id", "uid")


@dataclass(frozen=True)
class Files:
    """Files of one source, read one after the other.

    Attributes:
        origin: ordinal of the source in the card.
        files: (name in the rows' provenance, path) of each.
        limit: how many records in all; None for all.
    """

    origin: int
    files: tuple[tuple[str, str], ...]
    format: str
    bad_records: BadRecords
    limit: int | None = None


@dataclass(frozen=True)
class Skills:
    """Generated tasks; see `plumbline.builtin.skills`."""

    origin: int
    name: str
    count: int
    split: Literal["train", "heldout"]
    seed: int
    where: str


@dataclass(frozen=True)
class Earlier:
    """One file of an earlier stage's dataset; its rows keep the provenance that they have."""

    origin: int
    path: str


Part = Files | Skills | Earlier


@dataclass(frozen=True)
class Origin:
    """One source as the data card shows it."""

    name: str
    uri: str


def find_parts(
    sources: Sequence[SourceSpec], earlier: Artifact | None, seed: int, where: str
) -> tuple[list[Origin], list[Part]]:
    """What there is to read, in source order; a source with a limit is one part, others one part a file.

    Args:
        sources: of the spec.
        earlier: an earlier dataset, which comes first.
        seed: of generated sources.
        where: field path of the stage's block, for messages.

    Raises:
        InvalidInput: a source matches no file.
    """
    origins: list[Origin] = []
    parts: list[Part] = []
    if earlier is not None:
        origins.append(Origin(str(earlier.manifest["stage"]), earlier.uri))
        parts += [Earlier(0, path) for path in part_uris(earlier)]
    for i, source in enumerate(sources):
        origin = len(origins)
        name = _unique(source.name or source.uri.rstrip("/").rpartition("/")[2], [o.name for o in origins])
        origins.append(Origin(name, source.uri))
        path = f"{where}.sources[{i}]"
        if source.uri == SKILLS:
            parts.append(Skills(origin, name, source.limit or SKILLS_COUNT, source.split, seed, path))
            continue
        files = _named(name, expand(source.uri, f"{path}.uri"), source.uri)
        groups = [files] if source.limit else [(file,) for file in files]
        parts += [Files(origin, tuple(group), source.format, source.bad_records, source.limit) for group in groups]
    return origins, parts


def _unique(name: str, taken: list[str]) -> str:
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name} ({number})"
    return candidate


def _named(name: str, paths: list[str], uri: str) -> tuple[tuple[str, str], ...]:
    """Each file with its name in the provenance: the source's name, and below a folder or glob the path there."""
    if len(paths) == 1 and paths[0].endswith(uri.rpartition("/")[2]):
        return ((name, paths[0]),)
    # commonpath would fold the // of a URI
    root = os.path.commonprefix(paths).rpartition("/")[0] + "/"  # noqa: RUF071
    return tuple((f"{name}/{path.removeprefix(root)}", path) for path in paths)


def read_part(part: Part, makes: Makes) -> Iterator[Outcome]:
    """The outcomes of a part's records, in order.

    Raises:
        InvalidInput: see `read_records` and `choose`; or there are fewer built-in tasks than asked for.
    """
    match part:
        case Files():
            return _from_files(part, makes)
        case Skills():
            return _from_skills(part, makes)
        case Earlier():
            return _from_earlier(part, makes)


def _from_files(part: Files, makes: Makes) -> Iterator[Outcome]:
    left = part.limit
    for name, path in part.files:
        format: Format | None = None
        for index, line, value in islice(read_records(path, part.bad_records), left):
            left = None if left is None else left - 1
            if isinstance(value, Broken):
                yield Outcome(name, index, reason=value.reason, excerpt=f"line {line}: {value.excerpt}")
                continue
            format = format or choose(part.format, value, f"{path}:{line}", makes)
            yield _convert(format, value, name, index)


def _convert(format: Format, record: dict[str, Any], source: str, index: int) -> Outcome:
    try:
        return Outcome(source, index, format.name, _own_id(record), format.convert(record))
    except Reject as reject:
        text = json.dumps(record, default=str, ensure_ascii=False).encode(errors="replace").decode()
        shown = f"{reject.detail}; {text}" if reject.detail else text
        return Outcome(source, index, format.name, reason=reject.reason, excerpt=shown[:EXCERPT])


def _own_id(record: dict[str, Any]) -> str | None:
    value = next((record[name] for name in ID_FIELDS if isinstance(record.get(name), str | int)), None)
    return None if value is None else clean(str(value))


def _from_skills(part: Skills, makes: Makes) -> Iterator[Outcome]:
    try:
        for index, task in enumerate(skills.tasks(part.count, split=part.split, seed=part.seed)):
            yield Outcome(part.name, index, "skills", task.id, _task_content(task, part.seed, makes))
    except ValueError as error:
        raise InvalidInput(f"{part.where}.limit: {part.count} is not accepted: {error}") from error


def _task_content(task: skills.Task, seed: int, makes: Makes) -> Content:
    def turn(role: str, content: str) -> Chat:
        return [{"role": role, "content": content}]

    prompt, answer = turn("user", task.prompt), turn("assistant", task.answer)
    if makes == "messages":
        return {"messages": prompt + answer}
    wrong = skills.corrupt(task, random.Random(f"corrupt:{seed}:{task.id}"))
    return {"prompt": prompt, "chosen": answer, "rejected": turn("assistant", wrong)}


def _from_earlier(part: Earlier, makes: Makes) -> Iterator[Outcome]:
    for _, _, value in read_records(part.path, "fail"):
        row = cast(dict[str, Any], value)
        content = {name: row[name] for name in COLUMNS[makes]}
        yield Outcome(row["source"], row["record"], row["format"], row["record_id"], content)
