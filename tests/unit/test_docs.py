"""The pages in `docs/` speak of the contract as it is: examples are valid, no field of the data stages and no objective is left out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from pydantic.alias_generators import to_camel

from plumbline.api.stages.curate import CurateSpec, SourceSpec
from plumbline.api.stages.extend_tokenizer import ExtendTokenizerSpec
from plumbline.api.stages.preference import OPTIONS
from plumbline.api.stages.rewards import REWARD_OPTIONS
from plumbline.api.stages.rlhf import ALGORITHMS
from plumbline.api.stages.synthesize import SynthesizeSpec
from plumbline.data.formats import FORMATS
from plumbline.run_file import load_run, validate_run
from plumbline.training.preferences import METHODS

ROOT = Path(__file__).resolve().parents[2]
PAGE, TRAINING, RLHF = ((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("data", "training", "rlhf"))
EXAMPLES, OF_TRAINING, OF_RLHF = (re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) for page in (PAGE, TRAINING, RLHF))


@pytest.mark.parametrize("example", EXAMPLES + OF_TRAINING + OF_RLHF)
def test_examples_are_valid_stages(example: str) -> None:
    stages = yaml.safe_load(example)
    earlier = {"name": "before", "curate": {"sources": [{"uri": "x.jsonl"}]}}
    spec = {"model": {"base": "builtin://tiny"}, "workspace": {"uri": "file:///tmp/w"}, "stages": [earlier, *stages]}
    kind = {"apiVersion": "plumbline.dev/v1alpha1", "kind": "AlignmentRun", "metadata": {"name": "page"}}
    assert validate_run(kind | {"spec": spec})


@pytest.mark.parametrize("sample", sorted((ROOT / "manifests" / "samples").glob("*.yaml")), ids=lambda path: path.name)
def test_samples_are_valid(sample: Path) -> None:
    assert load_run(sample)


def _fields(model: type[BaseModel]) -> set[str]:
    """Names in YAML spelling, of blocks within blocks too."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        found.add(field.alias or name)
        for inner in _models(field.annotation):
            found |= _fields(inner)
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


@pytest.mark.parametrize("stage", [CurateSpec, SynthesizeSpec, ExtendTokenizerSpec])
def test_no_field_is_left_out(stage: type[BaseModel]) -> None:
    said = set(re.findall(r"[A-Za-z]+", " ".join([*re.findall(r"`([^`\n]+)`", PAGE), *EXAMPLES])))
    assert len(_fields(stage)) > 5
    assert _fields(stage) - said == set()


def test_every_format_has_a_line_in_the_order_of_recognition() -> None:
    table = PAGE[PAGE.index("| `format` |") :]
    lines = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    named = get_args(SourceSpec.model_fields["format"].annotation)[1:]
    assert lines[1 : 1 + len(FORMATS)] == list(FORMATS) == list(named)


def test_every_objective_has_a_line_with_what_it_reads_and_its_defaults() -> None:
    table = TRAINING[TRAINING.index("| `objective` |") :]
    lines = re.findall(r"^\| `(\w+)` \| (\w+) \|.*\| (.*?) \| .*? \|$", table, re.MULTILINE)
    assert {name: form for name, form, _ in lines[1:] if name in METHODS} == {name: m.form for name, m in METHODS.items()}
    for name, _, options in lines:
        if name in OPTIONS:
            said = dict(re.findall(r"`(\w+)` (true|false|[\d.]+)", options))
            meant = {
                to_camel(option): str(value).lower() for option, value in OPTIONS[name].items() if not isinstance(value, str)
            }
            assert {k: v.removesuffix(".0") for k, v in said.items()} == {
                k: v.removesuffix(".0") for k, v in meant.items()
            }, name
            assert all(f"`{to_camel(option)}`" in options for option in OPTIONS[name]), name


def test_every_algorithm_option_and_reward_is_told() -> None:
    said = set(re.findall(r"[A-Za-z]+", " ".join([*re.findall(r"`([^`\n]+)`", RLHF), *OF_RLHF])))
    options = {to_camel(name) for block in (ALGORITHMS, REWARD_OPTIONS) for known in block.values() for name in known}
    assert (options | set(ALGORITHMS) | set(REWARD_OPTIONS)) - said == set()
