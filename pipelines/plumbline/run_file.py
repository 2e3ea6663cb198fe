"""Reading AlignmentRun files: YAML, `--set`, validation with field paths and line numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from plumbline.api.problems import field_path, problem
from plumbline.api.run import AlignmentRun
from plumbline.errors import InvalidInput, InvalidRun, Problem
from plumbline.graph import build_graph


class _StrictLoader(yaml.SafeLoader):
    """Reads scalars as kubectl does, and refuses a key that is written twice (plain YAML: the last one wins in silence)."""


# PyYAML reads 1e-5 as a word, 2024-01-01 as a date and 1:30 as ninety; kubectl reads a number, a word and a word.
_NUMBERS = {
    "tag:yaml.org,2002:float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "tag:yaml.org,2002:int": r"[-+]?(0b[0-1_]+|0x[0-9a-fA-F_]+|0o?[0-7_]*|[1-9][0-9_]*)",
}
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in _NUMBERS and tag != "tag:yaml.org,2002:timestamp"]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag in sorted(_NUMBERS, reverse=True):  # integers first: every integer also reads as a float
    _StrictLoader.add_implicit_resolver(_tag, re.compile(f"^(?:{_NUMBERS[_tag]})$"), list("-+.0123456789"))


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise InvalidInput(f"line {line}: a key must be a plain word, not a list or mapping")
        if key_node.tag == "tag:yaml.org,2002:merge":  # what `<<` brings in, own keys may override
            continue
        key = loader.construct_object(key_node)  # type: ignore[no-untyped-call]
        if key in seen:
            raise InvalidInput(f"line {line}: '{key}' is written twice (first in line {seen[key]})")
        seen[key] = line
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_run(path: Path, overrides: list[str] | None = None) -> AlignmentRun:
    """Read, override and validate one run.

    Args:
        path: YAML file with one AlignmentRun.
        overrides: `path=value` words; a path starts below `spec`, and a stage goes by name or number:
            `stages.sft.sft.maxSteps=10`, `stages.data.curate.sources.0.uri=my.jsonl`.

    Raises:
        InvalidInput: the file cannot be read or is not YAML, or an override does not fit.
        InvalidRun: with every problem of the run.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from error
    try:
        documents = [d for d in yaml.load_all(text, _StrictLoader) if d is not None]  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except InvalidInput as error:
        raise InvalidInput(f"{path}, {error}") from error
    if len(documents) != 1:
        raise InvalidInput(f"{path} must hold one AlignmentRun; it holds {len(documents)} documents")
    if not isinstance(documents[0], dict):
        raise InvalidInput(f"{path} must hold one AlignmentRun, a mapping; it holds a {type(documents[0]).__name__}")
    places = {field: f"line {line}" for field, line in _lines(text).items()}
    document = _unshared(documents[0])
    for override in overrides or []:
        places[_override(document, override)] = f"--set {override}"
    try:
        return validate_run(document)
    except InvalidRun as error:
        raise InvalidRun(_with_places(error.problems, places), str(path)) from None


def validate_run(document: dict[str, Any]) -> AlignmentRun:
    """Validate one run.

    Args:
        document: the object as YAML or JSON has it.

    Raises:
        InvalidRun: with every problem of the run.
    """
    problems: list[Problem] = []
    for _ in range(2):  # once more without the wrong fields, so that what spans stages is found in the same go
        try:
            run = AlignmentRun.model_validate(document, by_name=False, by_alias=True)
            build_graph(run.spec)
        except ValidationError as error:
            if problems:
                break
            details = error.errors(include_url=False)
            problems = [problem(one) for one in details]
            if any(one["loc"][:2] != ("spec", "stages") or len(one["loc"]) < 5 for one in details):
                break  # a stage may have lost its kind or name, and what follows from that would mislead
            document = _without(document, [one["loc"] for one in details])
        except InvalidRun as error:
            blind = [known.path for known in problems]  # what a removed field leads to is no news
            problems += [one for one in error.problems if not any(path.startswith(one.path) for path in blind)]
            break
        else:
            break
    if problems:
        raise InvalidRun(problems)
    return run


def _unshared(value: Any) -> Any:
    """A copy in which what YAML anchors share is there several times, so that `--set` changes one place."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def _without(document: dict[str, Any], locations: list[tuple[int | str, ...]]) -> dict[str, Any]:
    """The document less the mapping entries at these places."""
    lessened: dict[str, Any] = _unshared(document)
    for location in locations:
        current: Any = lessened
        for part in location[:-1]:
            inside = isinstance(current, list) and isinstance(part, int) and part < len(current)
            current = current[part] if inside else current.get(part) if isinstance(current, dict) else None
        if isinstance(current, dict):
            current.pop(location[-1], None)
    return lessened


def _override(document: dict[str, Any], override: str) -> str:
    """Set one value; returns its field path."""
    where, equals, text = override.partition("=")
    if not equals or not where.strip(".[] "):
        raise InvalidInput(f"--set {override}: write it as path=value, such as stages.sft.sft.maxSteps=10")
    try:
        value = yaml.load(text, _StrictLoader)
    except (yaml.YAMLError, InvalidInput, ValueError, RecursionError) as error:
        raise InvalidInput(f"--set {override}: the value is not YAML: {' '.join(str(error).split())}") from error
    parts = [part for part in re.split(r"[.\[\]]+", where) if part]
    if parts[0] not in ("spec", "metadata"):
        parts.insert(0, "spec")
    current: Any = document
    keys: list[int | str] = []
    for i, part in enumerate(parts):
        shown = ".".join(parts[: i + 1])
        if isinstance(current, list):
            keys.append(_index(current, part, override, shown))
        elif isinstance(current, dict):
            keys.append(part)
        else:
            raise InvalidInput(f"--set {override}: '{shown}' is below a plain value ({current!r})")
        if i == len(parts) - 1:
            current[keys[-1]] = value
        elif isinstance(current, dict) and current.get(part) is None:
            current[part] = {}
        current = current[keys[-1]]
    return field_path(tuple(keys))


def _index(items: list[Any], part: str, override: str, shown: str) -> int:
    if part.isdecimal() and int(part) < len(items):
        return int(part)
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if part in names:
        return names.index(part)
    known = ", ".join(str(name) for name in names if name) or "none"
    raise InvalidInput(f"--set {override}: '{shown}' is neither a number below {len(items)} nor a name; names: {known}")


def _lines(text: str) -> dict[str, int]:
    """Field path → line number, from 1."""
    found: dict[str, int] = {}

    def visit(node: yaml.Node, path: tuple[int | str, ...]) -> None:
        found.setdefault(field_path(path), node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                found[field_path((*path, key.value))] = key.start_mark.line + 1
                visit(value, (*path, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                visit(value, (*path, i))

    root = next((node for node in yaml.compose_all(text, yaml.SafeLoader) if node is not None), None)
    if root is not None:
        visit(root, ())
    return found


def _with_places(problems: list[Problem], places: dict[str, str]) -> list[Problem]:
    """The problems with where they stand; for a field that is absent, where the block stands that lacks it."""
    found = []
    for one in problems:
        at = one.path
        while at and at not in places:
            at = re.sub(r"(\.|^)[^.\[\]]*$|\[\d+\]$", "", at)
        found.append(Problem(one.path, f"{one.message} ({places[at]})") if at else one)
    return found
