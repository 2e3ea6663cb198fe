"""The stage graph's rules in CEL, so that the API server refuses what `plumbline.graph` would refuse.

Generated from the registry `KINDS` and the kinds' traits. Written for Kubernetes 1.30: no two-variable comprehensions, so
"earlier" is said over a literal list of indices (computed lists have no bounded size, and their cost would not be
accepted), and a value gets a name by a comprehension over a list of one element.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from plumbline.api.base import BASE, ArtifactType, Input, StageSpec
from plumbline.api.run import KINDS, MAX_NAME, MAX_STAGES, StageInputs

Rule = dict[str, str]
INDICES = f"[{', '.join(map(str, range(MAX_STAGES)))}]"
_UNPROVEN = "has(self.stages[i].serve) && !self.stages[i].serve.ungated"


def run_rules() -> list[Rule]:
    """Rules on the whole object."""
    return [_rule(f"self.metadata.name.size() <= {MAX_NAME}", f"metadata.name must have at most {MAX_NAME} characters")]


def stage_rules() -> list[Rule]:
    """Rules on one stage: its name, exactly one kind, only the inputs that the kind has, known baselines."""
    rules = [
        _rule(f"self.name != '{BASE}'", f"'{BASE}' is reserved for spec.model.base; take another name"),
        _rule(
            f"[{', '.join(f'has(self.{kind})' for kind in KINDS)}].exists_one(given, given)",
            f"a stage holds exactly one kind of {', '.join(KINDS)}",
        ),
    ]
    roles = [field.alias or name for name, field in StageInputs.model_fields.items()]
    for kind, spec in KINDS.items():
        foreign = _any(f"has(self.inputs.{role})" for role in roles if role not in spec.inputs)
        rules.append(
            _rule(
                f"!has(self.{kind}) || !has(self.inputs) || !({foreign})",
                f"kind {kind} has only these inputs: {', '.join(spec.inputs)}",
            )
        )
    rules.append(
        _rule(
            "!has(self.evaluate) || self.evaluate.gates.all(g, !has(g.baseline) || "
            "(has(self.inputs) && has(self.inputs.baselines) ? "
            f"self.inputs.baselines.exists(b, b == g.baseline) : g.baseline == '{BASE}'))",
            f"evaluate.gates[].baseline must be one of inputs.baselines ('{BASE}' where that is not given)",
        )
    )
    return rules


def spec_rules() -> list[Rule]:
    """Rules that span stages: the wiring, and that only a gated model is served."""
    rules = []
    for (role, accepts), kinds in _readers().items():
        rules.append(_named_input_rule(role, accepts, kinds))
        if accepts.required and not accepts.default_to_base:
            rules.append(_missing_input_rule(role, accepts, kinds))
    return [*rules, _gate_rule(), _same_model_rule()]


def _readers() -> dict[tuple[str, Input], list[str]]:
    """Input role with what it accepts → the kinds that read it so."""
    found: dict[tuple[str, Input], list[str]] = {}
    for kind, spec in KINDS.items():
        for role, accepts in spec.inputs.items():
            found.setdefault((role, accepts), []).append(kind)
    return found


def _named_input_rule(role: str, accepts: Input, kinds: list[str]) -> Rule:
    """A named input is an earlier stage of the right type, or the base model where that is accepted."""
    reader = _stage("i")
    value = "v" if accepts.many else f"{reader}.inputs.{role}"
    fits = f"{INDICES}.exists(k, k < i && {_stage('k')}.name == {value} && ({_makes(_stage('k'), accepts.type)}))"
    accepted = f"an earlier stage that makes a {accepts.type.value} ({_makers(accepts.type)})"
    if accepts.default_to_base:
        fits = f"({value} == '{BASE}' || {fits})"
        accepted += f", or '{BASE}'"
    if accepts.many:
        fits = f"{reader}.inputs.{role}.all(v, {fits})"
    wrong = f"({_is(reader, kinds)}) && has({reader}.inputs) && has({reader}.inputs.{role}) && !{fits}"
    return _no_stage(wrong, f"inputs.{role} of {_or(kinds)} must name {accepted}")


def _missing_input_rule(role: str, accepts: Input, kinds: list[str]) -> Rule:
    """An input that is needed and not named has an earlier stage to come from."""
    reader = _stage("i")
    wrong = f"({_is(reader, kinds)}) && !(has({reader}.inputs) && has({reader}.inputs.{role}))"
    if accepts.unless:
        wrong += f" && !({_any(f'has({reader}.{kind}) && has({reader}.{kind}.{accepts.unless})' for kind in kinds)})"
    if accepts.when:
        wrong += (
            f" && ({_any(f'has({reader}.{kind}) && ' + accepts.when.format(block=f'{reader}.{kind}') for kind in kinds)})"
        )
    if accepts.nearest:
        wrong += f" && !{INDICES}.exists(k, k < i && ({_makes(_stage('k'), accepts.type)}))"
    message = f"{_or(kinds)} needs an earlier stage that makes a {accepts.type.value} ({_makers(accepts.type)})"
    return _no_stage(wrong, message)


def _gate_rule() -> Rule:
    report = _stage("r")
    gated = f"r >= 0 && has({report}.evaluate) && {report}.evaluate.gates.size() > 0"
    wrong = f"{_UNPROVEN} && ![{_source('serve', 'report', 'i')}].exists(r, {gated})"
    return _no_stage(wrong, "serve needs an earlier evaluate stage with gates; add one, or say `ungated: true`")


def _same_model_rule() -> Rule:
    differ = f"r >= 0 && {_source('serve', 'model', 'i')} != {_source('evaluate', 'model', 'r')}"
    wrong = f"{_UNPROVEN} && [{_source('serve', 'report', 'i')}].exists(r, {differ})"
    return _no_stage(wrong, "serve must serve the model that its report evaluated; name the same inputs.model in both")


def _source(kind: str, role: str, reader: str) -> str:
    """Index of the stage that fills an input of stage number `reader`, as `plumbline.graph` wires it; -1 for none."""
    name = f"{_stage(reader)}.inputs.{role}"
    makes = _makes(_stage("k"), KINDS[kind].inputs[role].type)
    fits = f"has({_stage(reader)}.inputs) && has({name}) ? {_stage('k')}.name == {name} : ({makes})"
    return f"[{INDICES}.filter(k, k < {reader} && ({fits}))].map(l, l.size() > 0 ? l[l.size() - 1] : -1)[0]"


def _outputs(spec: type[StageSpec]) -> tuple[str, ...]:
    """Artifact types that a kind can make: the fixed one, or what its `produces` may say."""
    return (spec.output.value,) if spec.output else get_args(spec.model_fields["produces"].annotation)


def _makes(stage: str, wanted: ArtifactType) -> str:
    """Test that a stage's output has a type."""
    return _any(
        f"has({stage}.{kind})" if spec.output else f"(has({stage}.{kind}) && {stage}.{kind}.produces == '{wanted.value}')"
        for kind, spec in KINDS.items()
        if wanted.value in _outputs(spec)
    )


def _makers(wanted: ArtifactType) -> str:
    """The kinds that can make a type, for people."""
    return _or(kind for kind, spec in KINDS.items() if wanted.value in _outputs(spec))


def _stage(index: str) -> str:
    return f"self.stages[{index}]"


def _is(stage: str, kinds: Iterable[str]) -> str:
    return _any(f"has({stage}.{kind})" for kind in kinds)


def _any(tests: Iterable[str]) -> str:
    return " || ".join(tests) or "false"


def _or(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def _no_stage(wrong: str, message: str) -> Rule:
    """A rule that no stage number `i` is `wrong`; its message names the first that is."""
    wrong = f"i < self.stages.size() && {wrong}"
    return {
        "rule": f"!{INDICES}.exists(i, {wrong})",
        "fieldPath": ".stages",
        "message": message,
        "messageExpression": f'"stage \'" + self.stages[{INDICES}.filter(i, {wrong})[0]].name + "\': {message}"',
    }


def _rule(rule: str, message: str) -> Rule:
    return {"rule": rule, "message": message}
