"""What a run will do: wiring, fingerprints, what is cached. Both drivers start from a plan."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from plumbline.api.run import AlignmentRun
from plumbline.artifacts import Artifact, Workspace
from plumbline.errors import InvalidInput, InvalidRun, PlumblineError, Problem
from plumbline.external import identity, model_identity
from plumbline.graph import Graph, Node, benchmark_files, build_graph, fingerprints


@dataclass(frozen=True)
class Plan:
    """A run with everything resolved. `to_json` is the RUN.json of the stage program."""

    run: AlignmentRun
    graph: Graph
    fingerprints: dict[str, str]
    identities: dict[str, str]
    workspace_uri: str

    @property
    def name(self) -> str:
        return self.run.metadata.name

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.workspace_uri)

    def artifact(self, stage: str) -> Artifact | None:
        """The artifact of a stage, if it is whole. A `serve` stage has none: its endpoint lives or does not."""
        return self.workspace.find(self.graph[stage].kind, self.fingerprints[stage])

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run.model_dump(mode="json", by_alias=True, exclude_none=True),
            "fingerprints": self.fingerprints,
            "identities": self.identities,
            "workspace": self.workspace_uri,
        }

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a RUN.json.

        Raises:
            InvalidInput: it cannot be read or is none.
        """
        try:
            value = _RunJson.model_validate_json(path.read_bytes(), by_name=False, by_alias=True)
        except OSError as error:
            raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            at = ".".join(str(part) for part in first["loc"])
            raise InvalidInput(f"{path} is no RUN.json of this version: {at + ': ' if at else ''}{first['msg']}") from error
        graph = build_graph(value.run.spec)
        planned = Graph(tuple(node for node in graph.nodes if node.name in value.fingerprints))
        lacking = [parent for node in planned.nodes for parent in node.parents if parent not in value.fingerprints]
        if lacking:
            raise InvalidInput(f"{path} is no RUN.json of this version: no fingerprint for stage '{lacking[0]}'")
        return cls(value.run, planned, value.fingerprints, value.identities, value.workspace)


class _RunJson(BaseModel):
    """What `Plan.to_json` writes."""

    run: AlignmentRun
    fingerprints: dict[str, str]
    identities: dict[str, str]
    workspace: str


def make_plan(run: AlignmentRun, workspace: str | None = None, until: str | None = None) -> Plan:
    """Resolve external inputs and fingerprints.

    Args:
        run: a validated run.
        workspace: URI instead of `spec.workspace.uri`.
        until: plan only this stage and what it needs; nothing of the others is looked at but their wiring.

    Raises:
        InvalidInput: there is no stage `until`.
        InvalidRun: the wiring is wrong, or an external input does not exist.
        PlumblineError: an external input cannot be reached.
    """
    graph = build_graph(run.spec)
    names = [node.name for node in graph.nodes]
    if until is not None:
        if until not in names:
            raise InvalidInput(f"--until {until}: no such stage; stages: {', '.join(names)}")
        graph = Graph(tuple(node for node in graph.nodes if node.name in graph.up_to(until)))
    problems: list[Problem] = []
    identities: dict[str, str] = {}
    models, wanted = {"spec.model.base": run.spec.model.base}, dict[str, str]()
    for node in graph.nodes:
        path = f"spec.stages[{names.index(node.name)}].{node.kind}"
        wanted |= {f"{path}.{where}": uri for where, uri in node.spec.external_uris().items()}
        models |= {f"{path}.{where}": uri for where, uri in node.spec.external_models().items()}
    if any(node.spec.avoids_benchmarks() for node in graph.nodes):  # also those of stages that are not planned now
        wanted |= {where: uri for where, (_, uri) in benchmark_files(run.spec).items()}
    for where, uri in (models | wanted).items():
        revision = run.spec.model.revision if uri == run.spec.model.base else None
        try:
            identities[uri] = model_identity(uri, revision, where) if where in models else identity(uri, where)
        except PlumblineError as error:
            if error.exit_code != InvalidRun.exit_code:
                raise
            problems.append(Problem(where, str(error).removeprefix(f"{where}: ")))
    if problems:
        raise InvalidRun(problems)
    resolved = Workspace(workspace or run.spec.workspace.uri).uri
    return Plan(run, graph, fingerprints(graph, run.spec, identities), identities, resolved)


def check_libraries(plan: Plan, nodes: Iterable[Node]) -> None:
    """Refuse stages that need an optional library which is not installed here.

    Raises:
        InvalidRun: with every such field.
    """
    names = [stage.name for stage in plan.run.spec.stages]
    problems = [
        Problem(
            f"spec.stages[{names.index(node.name)}].{node.kind}.{where}",
            f"needs the Python library {module}, which is not installed here; pip install 'plumbline[{extra}]', in a cluster in "
            "the stage's image, or leave the field out",
        )
        for node in nodes
        for where, (module, extra) in node.spec.libraries().items()
        if importlib.util.find_spec(module) is None
    ]
    if problems:
        raise InvalidRun(problems)
