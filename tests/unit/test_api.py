"""The contract: what is generated from it is current, bounded and complete."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import Field, ValidationError

from plumbline.api import crd, reference
from plumbline.api.base import SpecModel, StageSpec, list_map
from plumbline.api.run import KINDS, AlignmentRun, StageInputs
from plumbline.api.stages.preference import PreferenceSpec
from plumbline.api.stages.rlhf import RlhfSpec
from plumbline.api.stages.sft import SftSpec
from plumbline.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "path"),
    [(["crd"], "manifests/crd/plumbline.dev_alignmentruns.yaml"), (["crd", "--docs"], "docs/reference.md")],
)
def test_what_is_generated_is_current(arguments: list[str], path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert (ROOT / path).read_text() == capsys.readouterr().out, f"regenerate it: plumbline {' '.join(arguments)} > {path}"


def test_the_crd_is_small_enough_for_client_side_apply() -> None:
    """kubectl keeps what was applied, as JSON, among annotations, which may take 262,144 bytes together."""
    text = (ROOT / "manifests/crd/plumbline.dev_alignmentruns.yaml").read_text()
    assert len(json.dumps(yaml.safe_load(text), separators=(",", ":")).encode()) < 240_000
    assert "&id" not in text, "an object occurs twice, so YAML would need anchors"


def schemas(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, field in node.get("properties", {}).items():
        yield from schemas(field, f"{path}.{name}")
    for word in ("items", "additionalProperties"):
        if word in node:
            yield from schemas(node[word], f"{path}[]")


def root() -> dict[str, Any]:
    version: dict[str, Any] = crd.render()["spec"]["versions"][0]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return found


def test_the_schema_is_structural() -> None:
    for path, schema in schemas(root()):
        assert isinstance(schema["type"], str), path
        foreign = {"title", "anyOf", "$ref", "$defs", "const", "x-immutable"} & set(schema)
        assert not foreign, (path, foreign)
        assert all(type(schema.get(word, True)) is bool for word in ("exclusiveMinimum", "exclusiveMaximum")), path


def test_every_field_is_explained() -> None:
    unexplained = [path for path, schema in schemas(root()) if not schema.get("description") and not path.endswith("[]")]
    assert unexplained == [".metadata"]
    page = reference.render()
    assert all(f"[`{kind}`]" in page for kind in KINDS)


def test_bounds_enums_and_defaults_in_the_words_of_openapi() -> None:
    class Sample(SpecModel):
        share: float = Field(default=0.0, ge=0, lt=0.5)
        """Fractional bounds would be cut off for whole values."""
        rate: float = Field(gt=0, lt=1)
        """Open bounds."""
        method: Literal["only"] = "only"
        """One word."""
        never: Literal[False] = False
        """A constant."""
        rows: list[str] | None = Field(default=None, json_schema_extra=list_map("name"))
        """Unset unless given."""

    found = crd.structural(Sample)
    assert found["required"] == ["rate"]
    fields = found["properties"]
    assert fields["share"] == {
        "description": "Fractional bounds would be cut off for whole values.",
        "type": "number",
        "default": 0.0,
        "minimum": 0,
        "x-kubernetes-validations": [{"rule": "self < 0.5", "message": "must be less than 0.5"}],
    }
    rate = {"minimum": 0, "exclusiveMinimum": True, "maximum": 1, "exclusiveMaximum": True}
    assert fields["rate"] == {"description": "Open bounds.", "type": "number", **rate}
    assert fields["method"]["enum"] == ["only"]
    assert fields["never"] == {"description": "A constant.", "type": "boolean", "enum": [False], "default": False}
    assert "default" not in fields["rows"]
    assert fields["rows"]["x-kubernetes-list-map-keys"] == ["name"]


def test_a_union_of_two_types_cannot_be_said() -> None:
    class Sample(SpecModel):
        value: int | str
        """Either."""

    with pytest.raises(TypeError, match=r"Sample\.value is a union of 2 types"):
        crd.structural(Sample)


def test_every_role_of_every_kind_can_be_wired() -> None:
    roles = {field.alias or name for name, field in StageInputs.model_fields.items()}
    for kind, spec in KINDS.items():
        assert issubclass(spec, StageSpec)
        assert set(spec.inputs) <= roles, kind


def test_blocks_are_strict() -> None:
    for wrong in (
        {"seed": "1"},
        {"seed": True},
        {"seed": 1.5},
        {"packing": 1},
        {"train_on": "all"},
        {"epochs": float("inf")},
    ):
        with pytest.raises(ValidationError):
            SftSpec.model_validate(wrong, by_name=False, by_alias=True)


def test_values_are_read_as_the_api_server_reads_them() -> None:
    assert SftSpec.model_validate({"seed": None, "maxLength": None}) == SftSpec()
    whole = SftSpec.model_validate({"seed": 1.0, "maxLength": 512.0})
    assert (whole.seed, type(whole.seed), type(whole.max_length)) == (1, int, int)


@pytest.mark.parametrize(("kind", "rate"), [(SftSpec, 2e-4), (PreferenceSpec, 5e-5), (RlhfSpec, 1e-5)])
def test_setting_one_optimizer_field_keeps_the_kinds_own_defaults(kind: Any, rate: float) -> None:
    spec = kind.model_validate({"optimizer": {"maxGradNorm": 0.5}})
    assert spec.optimizer.learning_rate == rate
    assert spec.optimizer.schedule == kind().optimizer.schedule


@pytest.mark.parametrize("name", ["a..b", "a.-b", "-a", "A", "a" * 64, ""])
def test_a_run_is_named_as_kubernetes_names_objects(name: str) -> None:
    run = {
        "apiVersion": "plumbline.dev/v1alpha1",
        "kind": "AlignmentRun",
        "metadata": {"name": name, "labels": {"team": "a"}},
        "spec": {
            "model": {"base": "builtin://tiny"},
            "workspace": {"uri": "w"},
            "stages": [{"name": "data", "curate": {"sources": [{"uri": "builtin://skills"}]}}],
        },
    }
    with pytest.raises(ValidationError, match="metadata"):
        AlignmentRun.model_validate(run)
    run["metadata"] = {"name": "a-1.b", "labels": {"team": "a"}}
    assert AlignmentRun.model_validate(run).metadata.name == "a-1.b"
