"""The CustomResourceDefinition of AlignmentRun, generated from the pydantic models."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

from pydantic import BaseModel

from plumbline.api import cel
from plumbline.api.run import GROUP, KIND, PLURAL, VERSION, AlignmentRun, RunSpec
from plumbline.api.status import RunStatus

Schema = dict[str, Any]

ORIGIN = "Generated from the pydantic models of plumbline.api by: plumbline crd"
COLUMNS = {
    "Phase": ".status.phase",
    "Stage": ".status.currentStage",
    "Progress": ".status.progress",
    "Gate": ".status.gate",
    "Endpoint": ".status.endpoint",
}
_FIRST_SENTENCE = re.compile(r"(?<=\.)\s+(?=[A-Z`])")
_REWRITTEN = {"properties", "items", "additionalProperties", "const", "default"}
_DROPPED = {"title", "anyOf", "$ref", "$defs", "x-immutable"}


def render() -> dict[str, Any]:
    """The CustomResourceDefinition as plain values (no object occurs twice, so YAML needs no anchors)."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["arun"],
                "categories": ["ai"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        *({"name": name, "type": "string", "jsonPath": path} for name, path in COLUMNS.items()),
                        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                    ],
                    "schema": {"openAPIV3Schema": _root()},
                }
            ],
        },
    }


def structural(model: type[BaseModel]) -> Schema:
    """A model's JSON schema as a Kubernetes structural schema: no references, no unions, OpenAPI v3.0 bounds.

    Raises:
        TypeError: the model has a field that no structural schema can say, such as a union of two types.
    """
    schema = model.model_json_schema(by_alias=True)
    return _convert(schema, schema.get("$defs", {}), model.__name__, set())


def _root() -> Schema:
    spec = structural(RunSpec)
    _add_rules(spec, cel.spec_rules())
    _add_rules(spec["properties"]["stages"]["items"], cel.stage_rules())
    return {
        "description": (AlignmentRun.__doc__ or "").strip(),
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"description": "Version of this contract.", "type": "string"},
            "kind": {"description": f"Always {KIND}.", "type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": structural(RunStatus),
        },
        "x-kubernetes-validations": cel.run_rules(),
    }


def _convert(node: Schema, definitions: dict[str, Schema], path: str, seen: set[str], brief: bool = False) -> Schema:
    """One node.

    Args:
        node: to convert.
        definitions: what references point to.
        path: for messages.
        seen: blocks that have been described in full; again they are in brief, as several stage kinds share them and a definition has a limit.
        brief: inside such a block.
    """
    blocks = set(_blocks(node))
    brief = brief or bool(blocks & seen)
    seen |= blocks
    node = _resolve(node, definitions, path)
    found: Schema = {key: deepcopy(node[key]) for key in ("description", "type") if key in node}
    found |= {key: deepcopy(value) for key, value in node.items() if key not in _DROPPED | _REWRITTEN | set(_BOUNDS)}
    if "description" in found:
        text = " ".join(found["description"].split())  # readers wrap lines themselves
        found["description"] = _FIRST_SENTENCE.split(text)[0] if brief else text
    if "const" in node:
        found["enum"] = [node["const"]]
    if "default" in node:
        found["default"] = _without_null(node["default"])
        if found["default"] is None:
            del found["default"]
    if "properties" in node:
        found["properties"] = {
            name: _convert(field, definitions, f"{path}.{name}", seen, brief) for name, field in node["properties"].items()
        }
    if "items" in node:
        found["items"] = _convert(node["items"], definitions, f"{path}[]", seen, brief)
    if isinstance(node.get("additionalProperties"), dict):
        found["additionalProperties"] = _convert(node["additionalProperties"], definitions, f"{path}.*", seen, brief)
    _set_bounds(found, node)
    if node.get("x-immutable"):
        name = path.rpartition(".")[2]
        _add_rules(found, [{"rule": "self == oldSelf", "message": f"{name} cannot be changed once the run exists"}])
    if "type" not in found:
        raise TypeError(f"{path} has no single type: {node}")
    return found


_BOUNDS = {
    "minimum": ("minimum", ">=", "at least"),
    "exclusiveMinimum": ("minimum", ">", "greater than"),
    "maximum": ("maximum", "<=", "at most"),
    "exclusiveMaximum": ("maximum", "<", "less than"),
}


def _set_bounds(found: Schema, node: Schema) -> None:
    """Bounds in the words of OpenAPI v3.0. Fractional ones become CEL: the API server cuts them off for whole values (0 < 0.5)."""
    for word, (bound, operator, phrase) in _BOUNDS.items():
        if word not in node:
            continue
        value = node[word]
        if value != int(value):
            _add_rules(found, [{"rule": f"self {operator} {value}", "message": f"must be {phrase} {value}"}])
            continue
        found[bound] = value
        if bound != word:
            found[word] = True


def _blocks(node: Schema) -> list[str]:
    """The definitions that a node refers to."""
    nodes = [node, *node.get("anyOf", [])]
    return [one["$ref"] for one in nodes if "$ref" in one]


def _resolve(node: Schema, definitions: dict[str, Schema], path: str) -> Schema:
    """The node with its reference inlined and `X | None` taken as X; what stands beside them wins."""
    while "$ref" in node or "anyOf" in node:
        beside = {key: value for key, value in node.items() if key not in ("$ref", "anyOf")}
        if "$ref" in node:
            inner = definitions[node["$ref"].rpartition("/")[2]]
        else:
            options = [option for option in node["anyOf"] if option.get("type") != "null"]
            if len(options) != 1:
                raise TypeError(f"{path} is a union of {len(options)} types; a structural schema can say only one")
            inner = options[0]
        node = {**inner, **beside}
    return node


def _without_null(value: Any) -> Any:
    """A default in which unset fields are absent, as in any stored object."""
    if isinstance(value, dict):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return [_without_null(inner) for inner in value] if isinstance(value, list) else value


def _add_rules(schema: Schema, rules: list[dict[str, str]]) -> None:
    schema["x-kubernetes-validations"] = [*schema.get("x-kubernetes-validations", []), *rules]
