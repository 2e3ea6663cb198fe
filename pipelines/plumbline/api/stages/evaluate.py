"""`evaluate`: the model is deployed as it would be served, asked over HTTP, compared with its baselines and gated."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from plumbline.api.base import (
    ArtifactType,
    Input,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    SpecModel,
    StageSpec,
    Uri,
    list_map,
    validated_by,
)


class TaskSpec(SpecModel):
    """One benchmark."""

    model_config = validated_by(
        ("self.benchmark == 'skills' || has(self.uri)", "every benchmark but skills needs the uri of its data")
    )

    name: Name
    """Name in reports and gates."""
    benchmark: Literal["skills", "gsm8k", "mmlu", "humaneval", "ifeval", "promptAnswer"]
    """`skills`: held-out `builtin://skills`. `gsm8k`: question/answer JSONL, last number compared. `mmlu`: CSV files, the letter compared. `humaneval`: its JSONL, code run against the tests in a sandbox. `ifeval`: its JSONL, all instructions followed. `promptAnswer`: JSONL with prompt and answer, exact match."""
    uri: Uri | None = None
    """Data file, glob or folder. Needed for all but `skills`."""
    limit: PositiveInt | None = None
    """Ask only the first items, after a seeded shuffle. For `skills`: how many to make (default 400)."""
    seed: NonNegativeInt = 0
    """Seed of the shuffle, or of the generated tasks."""
    max_tokens: PositiveInt = 256
    """Longest answer in tokens."""


class GateSpec(SpecModel):
    """One rule. The gate passes when every rule passes; a rule that the numbers cannot decide is inconclusive."""

    model_config = validated_by(
        ("has(self.baseline) != has(self.threshold)", "give either a baseline (with minEffect) or a threshold")
    )

    task: Name
    """The task whose score is judged."""
    baseline: Name | None = None
    """Compare with this baseline on the same items; unset: compare the score itself with `threshold`."""
    min_effect: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """With a baseline: the paired difference must exceed this. A negative value states non-inferiority."""
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """Without a baseline: the score must exceed this."""


class EvaluateSpec(StageSpec):
    """Evaluate through Ray Serve, compare, and decide the gate."""

    model_config = validated_by(
        ("self.gates.all(g, self.tasks.exists(t, t.name == g.task))", "gates[].task must name a task of the same stage")
    )

    inputs: ClassVar = {
        "model": Input(type=ArtifactType.MODEL, default_to_base=True),
        "baselines": Input(type=ArtifactType.MODEL, nearest=False, default_to_base=True, many=True),
    }
    output: ClassVar = ArtifactType.REPORT
    program: ClassVar = "plumbline.stages.evaluate"
    code_version: ClassVar = "2"
    names_inputs: ClassVar = True
    unfingerprinted: ClassVar = frozenset({"concurrency"})

    tasks: list[TaskSpec] = Field(min_length=1, max_length=64, json_schema_extra=list_map("name"))
    """Benchmarks to run."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Level of every interval and of the gate."""
    gates: list[GateSpec] = Field(default=[], max_length=64)
    """Rules that decide whether the model may be served. None: the report has no verdict."""
    temperature: NonNegativeFloat = 0.0
    """Sampling temperature of the answers; 0 is greedy."""
    concurrency: PositiveInt = 32
    """Requests in flight. Does not enter the fingerprint."""

    def external_uris(self) -> dict[str, str]:
        return {
            f"tasks[{i}].uri": task.uri or f"builtin://{task.benchmark}"
            for i, task in enumerate(self.tasks)
            if task.uri or task.benchmark == "skills"
        }

    def benchmark_files(self) -> dict[str, tuple[str, str]]:
        return {f"tasks[{i}].uri": (task.benchmark, task.uri) for i, task in enumerate(self.tasks) if task.uri}

    def problems(self) -> list[tuple[str, str]]:
        found = []
        names = [task.name for task in self.tasks]
        for i, task in enumerate(self.tasks):
            if task.benchmark != "skills" and task.uri is None:
                found.append((f"tasks[{i}].uri", f"benchmark {task.benchmark} needs the uri of its data"))
            if task.name in names[:i]:
                found.append((f"tasks[{i}].name", f"'{task.name}' names an earlier task too; task names are unique"))
        for i, gate in enumerate(self.gates):
            if gate.task not in names:
                found.append((f"gates[{i}].task", f"'{gate.task}' is no task of this stage; tasks: {', '.join(names)}"))
            if (gate.baseline is None) == (gate.threshold is None):
                found.append((f"gates[{i}]", "give either a baseline (with minEffect) or a threshold"))
        return found
