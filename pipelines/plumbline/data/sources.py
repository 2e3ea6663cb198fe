"""From `sources` of the spec to parts that can be read independently, and from a part to the outcomes of its records."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, Literal, cast

import fsspec

from plumbline import hub
from plumbline.api.stages.curate import SKILLS_COUNT, SourceSpec
from plumbline.artifacts import Artifact
from plumbline.builtin import skills
from plumbline.data.dataset import part_uris
from plumbline.data.formats import SAMPLE, Format, choose
from plumbline.data.formats.options import Options
from plumbline.data.forms import reform
from plumbline.data.measured import Progress
from plumbline.data.normalise import clean
from plumbline.data.read import read_records, spans_of_file
from plumbline.data.records import EXCERPT, LONG_EXCERPT, Broken, Item
from plumbline.data.row import Chat, Form, Reject, Row
from plumbline.data.rows import Outcome, to_row
from plumbline.data.spans import SPAN_BYTES, Span
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.external import SKILLS, Stamp, expand, identity, reaching, stamp_of

STATED = ("record_id", "licence", "language", "category", "teacher")
"""What a row holds in a record's own words, and so whatever its writer put there."""
ID_FIELDS = ("id", "record_id", "prompt_id", "message_id", "uid", "idx")

# Control characters as JSON writes them: in `\n+49 30 …` the number would seem to be a part of a word.
_ESCAPED = re.compile(r"\\(?:[bfnrt]|u00[01][0-9a-f])", re.IGNORECASE)
_ABOUT = re.compile(
    r"(readme|licen[cs]e|notice|citation)(\.(txt|rst|cff))?|.*\.md|_success|_(common_)?metadata", re.IGNORECASE
)


@dataclass(frozen=True)
class File:
    """A file of a source, or a span of its lines.

    Attributes:
        name: in the rows' provenance.
        path: local path or fsspec URI.
        stamp: what it was when the stage began; None where that does not matter.
        span: None for all of it.
    """

    name: str
    path: str
    stamp: Stamp | None = None
    span: Span | None = None


@dataclass(frozen=True)
class Files:
    """Files of one source, read one after the other.

    Attributes:
        origin: ordinal of the source in the card.
        files: in order.
        source: how to read them; its `limit` counts over all of the files.
    """

    origin: int
    files: tuple[File, ...]
    source: SourceSpec


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
    sources: Sequence[SourceSpec],
    earlier: Artifact | None,
    seed: int,
    paths: Sequence[str],
    identities: Mapping[str, str] | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[list[Origin], list[Part]]:
    """What there is to read, in source order.

    A source with a limit is one part; of others each file is one, and a big file of lines several, by spans that follow from
    the file alone.

    Args:
        sources: of the spec.
        earlier: an earlier dataset, which comes first.
        seed: of generated sources.
        paths: field path of each source, for messages.
        identities: by URI, as planned: data sets of the hub are read at the commit that was planned.
        progress: told how many MiB of a big file's lines are counted, of how many.

    Raises:
        InvalidInput: a source matches no file, or has no such split.
        PlumblineError: a source cannot be reached now.
    """
    origins: list[Origin] = []
    parts: list[Part] = []
    if earlier is not None:
        origins.append(Origin(str(earlier.manifest["stage"]), earlier.uri))
        parts += [Earlier(0, path) for path in part_uris(earlier)]
    for source, path in zip(sources, paths, strict=True):
        origin = len(origins)
        name = _unique(source.name or source.uri.rstrip("/").rpartition("/")[2], [o.name for o in origins])
        origins.append(Origin(name, source.uri))
        if source.uri == SKILLS:
            split = _skills_split(source.split, path)
            parts.append(Skills(origin, name, source.limit or SKILLS_COUNT, split, seed, path))
            continue
        files = _files(source, name, path, (identities or {}).get(source.uri))
        groups = (
            [tuple(files)] if source.limit else [(piece,) for file in files for piece in _pieces(file, source, progress)]
        )
        parts += [Files(origin, group, source) for group in groups]
    return origins, parts


def check_unchanged(sources: Sequence[SourceSpec], identities: Mapping[str, str]) -> None:
    """Refuse to go on where a source is another than was planned, so that no artifact is kept under a wrong fingerprint.

    Args:
        sources: of the spec.
        identities: by URI, as planned.

    Raises:
        PlumblineError: one has changed, or cannot be reached now.
    """
    for source in sources:
        planned = identities.get(source.uri)
        # A data set of the hub is read at the planned commit: that its branch moved on does not matter.
        if planned is not None and not source.uri.startswith(hub.DATASETS) and identity(source.uri) != planned:
            raise PlumblineError(f"{source.uri} has changed since the run was planned; run again when nothing writes to it")


def _skills_split(split: str, path: str) -> Literal["train", "heldout"]:
    match split:
        case "train" | "heldout":
            return split
    raise InvalidInput(f"{path}.split: '{split}' is not accepted for {SKILLS}; use train or heldout")


def _files(source: SourceSpec, name: str, where: str, planned: str | None) -> list[File]:
    uri = source.uri
    if uri.startswith("hf://"):
        paths = hub_files(uri, source.split, f"{where}.uri", planned)
    else:
        paths = expand(uri, f"{where}.uri")
        paths = [path for path in paths if not _tells_about(path)] or paths
    with reaching(uri, f"{where}.uri: "):
        return [File(shown, path, stamp_of(path, fresh=False)) for shown, path in _named(name, paths, uri)]


def _tells_about(path: str) -> bool:
    """Whether a file only tells about the data beside it."""
    name = path.rpartition("/")[2]
    return name in hub.METADATA or _ABOUT.fullmatch(name) is not None


def hub_files(uri: str, split: str, where: str, planned: str | None) -> list[str]:
    """URIs of the files of a data set of the hub.

    Args:
        uri: `hf://datasets/ORG/NAME[@REVISION][/PATH]`.
        split: see `plumbline.hub.dataset_files`.
        where: field path of the URI, for messages.
        planned: its identity as planned, which names the commit; None: the commit of now.

    Raises:
        InvalidInput: there is no such data set, file or split.
        PlumblineError: the hub cannot be reached now.
    """
    prefix = f"{where}: "
    named = hub.dataset(uri, prefix)
    named = named.at(planned.removeprefix("commit:") if planned else named.commit(prefix))
    with reaching(uri, prefix):
        return hub.dataset_files(fsspec.filesystem("hf"), named, split, prefix)


def _pieces(file: File, source: SourceSpec, progress: Progress) -> list[File]:
    """The file, or spans of it."""
    if file.stamp is None or file.stamp.size < 2 * SPAN_BYTES:
        return [file]
    return [replace(file, span=span) for span in spans_of_file(file.path, source.text_unit, progress)] or [file]


def _unique(name: str, taken: list[str]) -> str:
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name} ({number})"
    return candidate


def _named(name: str, paths: list[str], uri: str) -> list[tuple[str, str]]:
    """Each file with its name in the provenance: the source's name, and below a folder or glob the path there."""
    if len(paths) == 1 and paths[0].endswith(uri.rpartition("/")[2]):
        return [(name, paths[0])]
    # commonpath would fold the // of a URI
    root = os.path.commonprefix(paths).rpartition("/")[0] + "/"  # noqa: RUF071
    return [(f"{name}/{path.removeprefix(root)}", path) for path in paths]


def read_part(part: Part, form: Form) -> Iterator[Outcome]:
    """The outcomes of a part's records, in order; a record may have several.

    Raises:
        InvalidInput: see `read_records` and `choose`; or there are fewer built-in tasks than asked for.
        PlumblineError: a file cannot be reached now, or changed since the stage began.
    """
    match part:
        case Files():
            return _from_files(part, form)
        case Skills():
            return _from_skills(part, form)
        case Earlier():
            return _from_earlier(part, form)


def _from_files(part: Files, form: Form) -> Iterator[Outcome]:
    source, left = part.source, part.source.limit
    options = Options(form, source.per_task, source.paths)
    for file in part.files:
        if left == 0:
            return
        items = islice(_read(file, source), left)
        head = list(islice(items, SAMPLE))
        format = _format(file, head, source, form)
        for index, line, value in chain(head, items):
            left = None if left is None else left - 1
            if isinstance(value, Broken):
                yield Outcome(file.name, index, reason=value.reason, excerpt=_excerpt(f"line {line}: {value.excerpt}"))
            else:
                # Where the head has only broken lines, the first record decides.
                format = format or choose(source.format, [value], f"{file.path}:{line}", form)
                yield from _convert(format, value, options, file.name, index, source.licence)


def _read(file: File, source: SourceSpec, span: Span | None = None) -> Iterator[Item]:
    unit = source.text_unit
    return read_records(file.path, source.bad_records, text_unit=unit, span=span or file.span, stamp=file.stamp)


def _format(file: File, head: list[Item], source: SourceSpec, form: Form) -> Format | None:
    """By the first records of the file, so that all spans of a file are read alike."""
    if file.span is not None and file.span.start > 0:
        head = list(islice(_read(file, source, Span(0, file.span.start, 0)), SAMPLE))
    found = [(line, value) for _, line, value in head if not isinstance(value, Broken)]
    return choose(source.format, [value for _, value in found], f"{file.path}:{found[0][0]}", form) if found else None


def _convert(
    format: Format, record: dict[str, Any], options: Options, source: str, index: int, licence: str | None
) -> list[Outcome]:
    try:
        own = {"record_id": _own(record, ID_FIELDS), "licence": _own(record, ("licence", "license")) or licence}
        outcomes = []
        for row in format.rows(record, options):
            try:
                if isinstance(row, Reject):
                    raise row
                stated: dict[str, Any] = {
                    name: _stated(value) for name in STATED if (value := getattr(row, name) or own.get(name))
                }
                row = replace(row, **stated) if stated else row
                outcomes.append(Outcome(source, index, format.name, row))
            except Reject as reject:
                outcomes.append(_rejected(reject, record, format, source, index))
        return outcomes
    except Reject as reject:
        return [_rejected(reject, record, format, source, index)]


def _rejected(reject: Reject, record: dict[str, Any], format: Format, source: str, index: int) -> Outcome:
    text = json.dumps(record, default=str, ensure_ascii=False)
    shown = f"{reject.detail}; {text}" if reject.detail else text
    return Outcome(source, index, format.name, reason=reject.reason, excerpt=_excerpt(shown))


def _excerpt(text: str) -> str:
    return _ESCAPED.sub(" ", text[:LONG_EXCERPT]).encode(errors="replace").decode()


def _own(record: dict[str, Any], names: tuple[str, ...]) -> str | None:
    return next((stated for name in names if (stated := _stated(record.get(name)))), None)


def _stated(value: Any) -> str | None:
    """What a record says of itself, as a short text.

    Raises:
        Reject: see `clean`.
    """
    return clean(str(value))[:EXCERPT] or None if isinstance(value, str | int) else None


def _from_skills(part: Skills, form: Form) -> Iterator[Outcome]:
    try:
        for index, task in enumerate(skills.tasks(part.count, split=part.split, seed=part.seed)):
            rows = reform(_task_row(task, part.seed, form), form)
            yield from (Outcome(part.name, index, "skills", row) for row in rows)
    except ValueError as error:
        raise InvalidInput(f"{part.where}.limit: {part.count} is not accepted: {error}") from error


def _task_row(task: skills.Task, seed: int, form: Form) -> Row:
    def turn(role: str, content: str) -> Chat:
        return [{"role": role, "content": content}]

    prompt, answer = turn("user", task.prompt), turn("assistant", task.answer)
    if form == "messages":
        return Row({"messages": prompt + answer}, record_id=task.id)
    if form == "text":
        return Row({"text": f"{task.prompt}\n{task.answer}"}, record_id=task.id)
    wrong = skills.corrupt(task, random.Random(f"corrupt:{seed}:{task.id}"))
    return Row({"prompt": prompt, "chosen": answer, "rejected": turn("assistant", wrong)}, record_id=task.id)


def _from_earlier(part: Earlier, form: Form) -> Iterator[Outcome]:
    for _, _, value in read_records(part.path, "fail"):
        values = cast(dict[str, Any], value)
        yield Outcome(values["source"], values["record"], values["format"], to_row(values, form))
