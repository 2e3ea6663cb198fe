"""The reference page of AlignmentRun, generated from the pydantic models: one table per block."""

from __future__ import annotations

import inspect
import json
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from plumbline.api import cel
from plumbline.api.base import BASE, StageSpec
from plumbline.api.run import API_VERSION, KIND, KINDS, RunSpec
from plumbline.api.status import RunStatus

Schema = dict[str, Any]

_INTRODUCTION = f"""\
# Reference: {KIND} `{API_VERSION}`

Generated from the pydantic models of `plumbline.api` by `plumbline crd --docs`; do not edit.

An {KIND} has `apiVersion: {API_VERSION}`, `kind: {KIND}`, `metadata.name`, and the blocks below. Unknown fields are refused.
A field with a default may be left out; a field marked *required* may not; others are unset unless given.
"""


def render() -> str:
    """The page as Markdown."""
    sections = [_INTRODUCTION, _kinds(), "## Rules that span stages\n", _bullets([*cel.stage_rules(), *cel.spec_rules()])]
    for title, path, root in (("The spec", "spec", RunSpec), ("The status", "status", RunStatus)):
        sections.append(f"## {title}\n")
        places: dict[type[BaseModel], list[str]] = {}
        _collect(root, path, places)
        sections += [_block(model, paths) for model, paths in places.items()]
    return "\n".join(sections)


def _kinds() -> str:
    """What each stage kind reads and makes."""
    rows = []
    for kind, spec in KINDS.items():
        inputs = []
        for role, accepts in spec.inputs.items():
            default = []
            if accepts.nearest:
                default.append(f"the nearest earlier {accepts.type.value}")
            if accepts.default_to_base:
                default.append(f"`{BASE}`")
            else:
                default.append("must be given" if accepts.required else "none")
            if accepts.when:
                default = [f"where it is read, {default[0]}", *default[1:]]
            if accepts.unless:
                default.append(f"with `{accepts.unless}` none")
            inputs.append(f"`{role}`: {'list of ' if accepts.many else ''}{accepts.type.value} ({', else '.join(default)})")
        output = spec.output.value if spec.output else _alternatives(get_args(spec.model_fields["produces"].annotation))
        rows.append([f"[`{kind}`](#{_anchor(spec)})", "<br>".join(inputs), output, _summary(spec)])
    return "## Stage kinds\n\n" + _table(["Kind", "Inputs (when not named)", "Output", "What it does"], rows)


def _collect(model: type[BaseModel], path: str, places: dict[type[BaseModel], list[str]]) -> None:
    """Every block below `model` in the order of reading → the field paths where it stands."""
    places.setdefault(model, []).append(path)
    for name, field in model.model_fields.items():
        inner, suffix = _block_in(field.annotation)
        if inner is not None:
            _collect(inner, f"{path}.{field.alias or name}{suffix}", places)


def _block_in(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """The block that a field holds, and `[]` where it holds a list of them."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation, ""
    for argument in get_args(annotation):
        inner, suffix = _block_in(argument)
        if inner is not None:
            return inner, f"[]{suffix}" if get_origin(annotation) is list else suffix
    return None, ""


def _block(model: type[BaseModel], paths: list[str]) -> str:
    schema = model.model_json_schema(by_alias=True)
    rows = []
    for name, field in schema["properties"].items():
        default = "*required*" if name in schema.get("required", []) else _default(field)
        rows.append([f"`{name}`", _type(field), default, field["description"]])
    where = ", ".join(f"`{path}`" for path in paths)
    return f"### {model.__name__}\n\n{where}\n\n{_summary(model)}\n\n{_rules(schema)}" + _table(
        ["Field", "Type", "Default", "Description"], rows
    )


def _rules(schema: Schema) -> str:
    """The block's rules beyond its fields' types."""
    rules = schema.get("x-kubernetes-validations", [])
    return _bullets(rules) + "\n" if rules else ""


def _bullets(rules: list[dict[str, str]]) -> str:
    return "".join(f"- {rule['message']}.\n" for rule in rules)


def _type(field: Schema) -> str:
    """A field's type with its bounds, in words."""
    if "anyOf" in field:
        return _type(next(option for option in field["anyOf"] if option.get("type") != "null"))
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    values = [field["const"]] if "const" in field else field.get("enum")
    if values:
        return _alternatives(values)
    match field["type"]:
        case "array":
            return f"list of {_type(field['items'])}" + _bounds(field, "minItems", "maxItems")
        case "object":
            inner = field.get("additionalProperties")
            return "object" if inner in (True, None) else f"map of {_type(inner)}"
        case "string":
            return (
                "string"
                + _bounds(field, "minLength", "maxLength")
                + (f", `{field['pattern']}`" if "pattern" in field else "")
            )
        case other:
            return str(other) + _bounds(field, "minimum", "maximum")


def _bounds(field: Schema, low: str, high: str) -> str:
    exclusive = {"minimum": "exclusiveMinimum", "maximum": "exclusiveMaximum"}
    unit = {"Items": " items", "Length": " characters"}.get(low[3:], "")
    words = []
    if low in field and (unit == "" or field[low] > 0):
        words.append(f"≥ {field[low]:g}")
    if exclusive.get(low) in field:
        words.append(f"> {field[exclusive[low]]:g}")
    if high in field and field[high] != 2**31 - 1:
        words.append(f"≤ {field[high]}")
    if exclusive.get(high) in field:
        words.append(f"< {field[exclusive[high]]:g}")
    return f" ({', '.join(words)}{unit})" if words else ""


def _default(field: Schema) -> str:
    """A default as one would write it; a block's default is in its own table."""
    value = field.get("default")
    if value is None:
        return ""
    if isinstance(value, dict):
        return "its defaults"
    return f"`{json.dumps(value)}`"


def _alternatives(values: Any) -> str:
    return " or ".join(f"`{json.dumps(value) if isinstance(value, bool) else value}`" for value in values)


def _summary(model: type[BaseModel]) -> str:
    return inspect.cleandoc(model.__doc__ or "")


def _anchor(model: type[StageSpec]) -> str:
    return model.__name__.lower()


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return (
        "\n".join("| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in line) + " |" for line in lines)
        + "\n"
    )
