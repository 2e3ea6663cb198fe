"""Spec → stage graph: wiring by artifact type, order, fingerprints. Pure: no I/O; both drivers use it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plumbline.api.base import BASE, ArtifactType, Input, StageSpec
from plumbline.api.run import RunSpec, Stage
from plumbline.errors import InvalidRun, Problem


@dataclass(frozen=True)
class Node:
    """One stage with its wiring: `inputs` maps each role to the stages (or `base`) that fill it."""

    name: str
    kind: str
    spec: StageSpec
    output: ArtifactType
    inputs: dict[str, tuple[str, ...]]

    @property
    def parents(self) -> list[str]:
        """Stages that must be done first, each once."""
        names = (name for role in self.inputs.values() for name in role if name != BASE)
        return list(dict.fromkeys(names))


@dataclass(frozen=True)
class Graph:
    """The stages of a run in their order; every stage comes after its parents."""

    nodes: tuple[Node, ...]

    def __getitem__(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def up_to(self, name: str) -> set[str]:
        """`name` and everything that it needs."""
        needed, pending = set(), [name]
        while pending:
            current = pending.pop()
            if current not in needed:
                needed.add(current)
                pending += self[current].parents
        return needed


def build_graph(spec: RunSpec) -> Graph:
    """Wire the stages.

    Raises:
        InvalidRun: with all problems: two kinds in a stage, a name used twice, an input that is missing, comes
            later, closes a cycle or has the wrong type, a `serve` without a gate, a contradiction in a cluster, and what
            the kinds themselves find.
    """
    problems: list[Problem] = []
    nodes: list[Node] = []
    names = [stage.name for stage in spec.stages]
    if spec.cluster is not None:
        problems += [Problem(f"spec.cluster.{where}", what) for where, what in spec.cluster.problems()]
    for i, stage in enumerate(spec.stages):
        path = f"spec.stages[{i}]"
        if stage.cluster is not None:
            problems += [Problem(f"{path}.cluster.{where}", what) for where, what in stage.cluster.problems()]
        if stage.name == BASE:
            problems.append(Problem(f"{path}.name", f"'{BASE}' is reserved for spec.model.base; take another name"))
        if stage.name in names[:i]:
            problems.append(
                Problem(f"{path}.name", f"'{stage.name}' names stage {names.index(stage.name)} too; names are unique")
            )
        if len(stage.kinds) != 1:
            found = " and ".join(stage.kinds) or "none"
            problems.append(Problem(path, f"a stage holds exactly one kind; '{stage.name}' has {found}"))
            continue
        problems += [Problem(f"{path}.{stage.kind}.{where}".rstrip("."), what) for where, what in stage.spec.problems()]
        inputs = _wire(stage, path, nodes, spec, problems)
        nodes.append(Node(stage.name, stage.kind, stage.spec, stage.spec.output_type(), inputs))
        _check_kind_rules(nodes, path, problems)
    if problems:
        raise InvalidRun(problems)
    return Graph(tuple(nodes))


def _wire(
    stage: Stage, path: str, earlier: list[Node], spec: RunSpec, problems: list[Problem]
) -> dict[str, tuple[str, ...]]:
    explicit = stage.inputs.model_dump(by_alias=True, exclude_none=True) if stage.inputs else {}
    wired: dict[str, tuple[str, ...]] = {}
    for role, accepts in stage.spec.inputs.items():
        named = explicit.pop(role, None)
        if named is None and not stage.spec.reads(role):
            continue
        if named is None:
            wired[role] = _default(stage, role, accepts, path, earlier, problems)
            continue
        values = named if isinstance(named, list) else [named]
        wired[role] = tuple(values)
        for value in values:
            message = _refusal(value, stage.name, accepts, earlier, spec)
            if message:
                problems.append(Problem(f"{path}.inputs.{role}", message))
    for role in explicit:
        roles = ", ".join(stage.spec.inputs) or "none"
        problems.append(Problem(f"{path}.inputs.{role}", f"kind {stage.kind} has no such input; it has: {roles}"))
    return {role: names for role, names in wired.items() if names}


def _default(
    stage: Stage, role: str, accepts: Input, path: str, earlier: list[Node], problems: list[Problem]
) -> tuple[str, ...]:
    if accepts.nearest:
        for node in reversed(earlier):
            if node.output == accepts.type:
                return (node.name,)
    if accepts.default_to_base:
        return (BASE,)
    waived = accepts.unless is not None and getattr(stage.spec, accepts.unless) is not None
    if accepts.required and not waived:
        problems.append(
            Problem(f"{path}.inputs.{role}", f"'{stage.name}' needs a {accepts.type.value} and no earlier stage makes one")
        )
    return ()


def _refusal(name: str, reader: str, accepts: Input, earlier: list[Node], spec: RunSpec) -> str | None:
    """Why `name` cannot fill the input, or None."""
    fitting = [node.name for node in earlier if node.output == accepts.type]
    if accepts.default_to_base:
        if name == BASE:
            return None
        fitting.append(BASE)
    options = f"accepted here: {', '.join(fitting)}" if fitting else "no earlier stage fits"
    for node in earlier:
        if node.name == name:
            if node.output == accepts.type:
                return None
            return f"'{name}' makes a {node.output.value}, this input takes a {accepts.type.value}; {options}"
    if name == reader:
        return f"'{name}' reads itself, which is a cycle; {options}"
    for stage in spec.stages:
        if stage.name == name:
            back = stage.inputs.model_dump(by_alias=True, exclude_none=True) if stage.inputs else {}
            cycle = any(reader == value or (isinstance(value, list) and reader in value) for value in back.values())
            why = f"and reads '{reader}' itself: a cycle" if cycle else "and a stage reads only earlier ones"
            return f"'{name}' comes later {why}; {options}"
    return f"no stage is called '{name}'; {options}"


def _check_kind_rules(nodes: list[Node], path: str, problems: list[Problem]) -> None:
    """The rules that span stages: a gate compares with what its stage evaluates; what is served is what a gate passed."""
    node = nodes[-1]
    baselines = node.inputs.get("baselines", ())
    for i, gate in enumerate(getattr(node.spec, "gates", [])):
        if gate.baseline is not None and gate.baseline not in baselines:
            message = (
                f"'{gate.baseline}' is no baseline of '{node.name}'; its inputs.baselines: {_join(baselines) or 'none'}"
            )
            problems.append(Problem(f"{path}.{node.kind}.gates[{i}].baseline", message))
    if node.kind != "serve" or getattr(node.spec, "ungated", False):
        return
    named = [n for name in node.inputs.get("report", ()) for n in nodes if n.name == name]
    if not named or not getattr(named[0].spec, "gates", []):
        problems.append(
            Problem(
                f"{path}.serve",
                f"'{node.name}' needs an earlier evaluate stage with gates; add one, or say `ungated: true`",
            )
        )
    elif named[0].inputs.get("model") != node.inputs.get("model"):
        problems.append(
            Problem(
                f"{path}.inputs.report",
                f"'{named[0].name}' evaluated {_join(named[0].inputs.get('model'))}, but '{node.name}' would serve "
                f"{_join(node.inputs.get('model'))}; name the same model in both",
            )
        )


def _join(names: tuple[str, ...] | None) -> str:
    return ", ".join(f"'{name}'" for name in names or ())


def benchmark_files(spec: RunSpec) -> dict[str, tuple[str, str]]:
    """The benchmark files that any stage of the run asks from, by field path of their URI: (benchmark, URI)."""
    return {
        f"spec.stages[{i}].{stage.kind}.{where}": found
        for i, stage in enumerate(spec.stages)
        for where, found in stage.spec.benchmark_files().items()
    }


def fingerprints(graph: Graph, spec: RunSpec, identities: Mapping[str, str]) -> dict[str, str]:
    """Fingerprint of every stage: its spec slice, its inputs' fingerprints, external identities, the kind's code version.

    Args:
        graph: the wired stages.
        spec: the run.
        identities: content identity of every external URI, by URI, the base model's among them.

    Returns:
        Stage name → 20 hex digits. A stage's name, cluster, queue and retry settings do not enter.
    """
    done: dict[str, str] = {
        BASE: _digest({"identity": identities[spec.model.base], "dtype": spec.model.dtype}),
    }
    asked = sorted(set(benchmark_files(spec).values()))
    for node in graph.nodes:
        avoided = asked if node.spec.avoids_benchmarks() else []
        done[node.name] = _digest(
            {
                "kind": node.kind,
                "codeVersion": node.spec.code_version,
                "spec": node.spec.model_dump(
                    mode="json", by_alias=True, exclude_none=True, exclude=set(node.spec.unfingerprinted)
                ),
                "inputs": {
                    role: [[name if node.spec.names_inputs else None, done[name]] for name in names]
                    for role, names in sorted(node.inputs.items())
                },
                "external": {where: identities[uri] for where, uri in sorted(_external(node.spec).items())},
                **({"avoided": [[benchmark, uri, identities[uri]] for benchmark, uri in avoided]} if avoided else {}),
            }
        )
    del done[BASE]
    return done


def _external(spec: StageSpec) -> dict[str, str]:
    return spec.external_uris() | spec.external_models()


def _digest(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:20]
