"""`evaluate`: the model is deployed as it would be served, asked over HTTP, compared with its baselines and gated."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from plumbline.api.base import (
    WHOLE,
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
from plumbline.api.synthesis.teacher import JUDGE_KEY, TeacherSpec

CHOICES = ("mmlu", "ceval", "cmmlu", "truthfulqa", "bbq", "haluEval")
"""Benchmarks whose answer is one of a few."""
JUDGED = ("mtBench", "vicuna80", "alpacaEval", "flask", "arenaHard", "prompts")
"""Benchmarks without right answers: a judge grades or compares."""
COMPARED = ("vicuna80", "alpacaEval", "arenaHard", "prompts")
"""Those of them that compare two answers where the run does not say; the others grade each."""
WORDED = ("promptAnswer", "superNaturalInstructions")
"""Benchmarks whose reference is a text."""
EXAMPLES = ("mmlu", "ceval", "cmmlu", "gsm8k")
"""Benchmarks that show solved examples before each question."""
HARNESS = "lmEvaluationHarness"
"""Any task of EleutherAI's lm-evaluation-harness, by its name there."""
WITHOUT_FILES = ("skills", HARNESS)
"""Benchmarks that need no `uri`."""


class TaskSpec(SpecModel):
    """One benchmark."""

    model_config = validated_by(
        (
            "self.benchmark in ['skills', 'lmEvaluationHarness'] || has(self.uri)",
            "every benchmark but skills and lmEvaluationHarness needs the uri of its data",
        ),
        (
            "(self.benchmark == 'lmEvaluationHarness') == has(self.harnessTask)",
            "harnessTask goes with benchmark lmEvaluationHarness, which needs it",
        ),
        (
            f"!has(self.grading) || self.benchmark in [{', '.join(map(repr, JUDGED))}]",
            "grading is of benchmarks that a judge grades or compares",
        ),
        ("!has(self.against) || !has(self.opponents)", "give either against or opponents"),
    )

    name: Name
    """Name in reports and gates."""
    benchmark: Literal[
        "skills", "gsm8k", "mmlu", "humaneval", "ifeval", "promptAnswer",
        "ceval", "cmmlu", "truthfulqa", "bbq", "superNaturalInstructions", "haluEval", "supportedFacts", "advBench",
        "xsTest", "lmEvaluationHarness",
        "mtBench", "vicuna80", "alpacaEval", "flask", "arenaHard", "prompts",
    ]  # fmt: skip
    """What is asked; docs/evaluation.md says how each is read and scored. Those from `mtBench` on need a `judge`."""
    uri: Uri | None = None
    """Data file, glob or folder. Needed for all but `skills` and `lmEvaluationHarness`."""
    examples: Uri | None = None
    """Solved examples to show before each question (`mmlu`, `ceval`, `cmmlu`: the dev files; `gsm8k`: its training file)."""
    shots: Annotated[int, Field(ge=1, le=64), WHOLE] | None = None
    """How many examples are shown, the first ones. Unset: 5. Of `lmEvaluationHarness`: as many as the task says."""
    answers: Literal["likelihood", "written"] | None = None
    """Of multiple choice. `likelihood` (unset): the likeliest continuation is the answer, no chat template, as published figures have it.
    `written`: the model writes its choice in a chat."""
    references: Uri | None = None
    """Reference answers that the judge is shown, as in FastChat's `reference_answer` (`mtBench`, `vicuna80`, `prompts`)."""
    grading: Literal["single", "pairwise"] | None = None
    """`single`: the judge grades each answer. `pairwise`: it compares the candidate's with another's, in both orders. Unset: as the benchmark
    is known: `single` for mtBench and flask."""
    against: Name | None = None
    """Pairwise: the baseline whose answers are compared. Unset: the first."""
    opponents: Uri | None = None
    """Pairwise: stored answers to compare with instead of a baseline's, such as AlpacaEval's reference outputs."""
    metrics: list[Literal["rougeL", "bleu", "bertScore"]] = Field(default=[], max_length=3)
    """Likeness of replies to references, told beside the score (`promptAnswer`, `superNaturalInstructions`)."""
    encoder: Uri | None = None
    """The model whose hidden states `bertScore` compares."""
    difficulties: Uri | None = None
    """How hard each instruction is (`alpacaEval`): AlpacaEval's table of `instruction_difficulty`, by `index` or `instruction`. With it the report
    tells the length-controlled win rate (Dubois et al. 2024, arXiv 2404.04475), and gates can name it: `lengthControlledWinRate`."""
    samples: Annotated[int, Field(ge=1, le=200), WHOLE] = 1
    """Programs written for each problem (`humaneval`), for pass@k without bias (Chen et al. 2021, arXiv 2107.03374). More than 1 need a `temperature`."""
    k: list[Annotated[int, Field(ge=1, le=200), WHOLE]] = Field(default=[1], min_length=1, max_length=5)
    """The k of pass@k (`humaneval`), none above `samples`. `score` is pass@1; the others are metrics such as `pass@10`."""
    harness_task: Annotated[str, Field(pattern=r"^[\w.+:-]+$", max_length=200)] | None = None
    """A task, group or tag of lm-evaluation-harness, such as `hellaswag`. It needs the extra `harness` where the stage runs, and the task's data:
    the harness fetches them from the hub, or from `includePath`."""
    harness_metric: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Which of its metrics is `score`, such as `acc_norm` or, with its filter, `exact_match,flexible-extract`. Unset: the first. The others are told
    beside it."""
    include_path: Uri | None = None
    """Folder of your own harness tasks: YAML files and data files beside them. Python in them (`!function`) is refused."""
    chat_template: bool = True
    """Of a harness task that is answered in writing: ask in a chat, its examples as turns. `false`: the text goes on as plain text, as the harness
    does by itself. Likelihoods are always of plain text."""
    temperature: NonNegativeFloat | None = None
    """Sampling temperature of this task's answers. Unset: the stage's."""
    limit: PositiveInt | None = None
    """Ask only the first items, after a seeded shuffle; of a harness group so many of each task. For `skills`: how many to make (default 400)."""
    seed: NonNegativeInt = 0
    """Seed of the shuffle, or of the generated tasks."""
    max_tokens: PositiveInt = 256
    """Longest answer in tokens."""

    @property
    def pairwise(self) -> bool:
        """Whether a judge compares two answers."""
        return (
            self.benchmark in JUDGED
            and (self.grading or ("pairwise" if self.benchmark in COMPARED else "single")) == "pairwise"
        )

    def problems(self) -> list[tuple[str, str]]:
        """What the types cannot say: (field, sentence)."""
        found = []
        if self.benchmark not in WITHOUT_FILES and self.uri is None:
            found.append(("uri", f"benchmark {self.benchmark} needs the uri of its data"))
        belongs = {
            "examples": EXAMPLES,
            "answers": CHOICES,
            "references": ("mtBench", "vicuna80", "prompts"),
            "grading": JUDGED,
            "against": JUDGED,
            "opponents": JUDGED,
            "metrics": WORDED,
            "difficulties": ("alpacaEval",),
            "harness_task": (HARNESS,),
            "harness_metric": (HARNESS,),
            "include_path": (HARNESS,),
        }
        for field, benchmarks in belongs.items():
            if getattr(self, field) not in (None, []) and self.benchmark not in benchmarks:
                name = TaskSpec.model_fields[field].alias or field
                found.append((name, f"benchmark {self.benchmark} has no use for it; it goes with {', '.join(benchmarks)}"))
        if ("bertScore" in self.metrics) != (self.encoder is not None):
            found.append(
                (
                    "encoder",
                    "goes with metrics: [bertScore], which needs it: the folder or hub name of an encoder such as BERT",
                )
            )
        if self.benchmark == HARNESS:
            if self.harness_task is None:
                found.append(("harnessTask", f"benchmark {HARNESS} needs the name of a task, such as hellaswag"))
            if self.uri is not None:
                found.append(("uri", "a harness task knows its data; give your own tasks as includePath"))
        elif not self.chat_template:
            found.append(("chatTemplate", f"benchmark {self.benchmark} has no use for it; it goes with {HARNESS}"))
        found += self._sampling_problems()
        if self.shots is not None and self.examples is None and self.benchmark != HARNESS:
            found.append(("shots", "says how many examples are shown; give examples too"))
        if self.against is not None and self.opponents is not None:
            found.append(("against", "give either against or opponents"))
        if self.benchmark in JUDGED and not self.pairwise:
            for field in ("against", "opponents"):
                if getattr(self, field) is not None:
                    found.append((field, "single grading compares with nobody; set grading: pairwise, or leave it out"))
        if self.benchmark == "flask" and self.pairwise:
            found.append(("grading", "flask grades skills one by one; set grading: single, or leave it out"))
        if self.difficulties is not None and not self.pairwise:
            found.append(("difficulties", "are of win rates; set grading: pairwise, or leave them out"))
        return found

    def _sampling_problems(self) -> list[tuple[str, str]]:
        if self.benchmark != "humaneval":
            given = [("samples", self.samples != 1), ("k", self.k != [1])]
            return [
                (field, f"benchmark {self.benchmark} has no use for it; it goes with humaneval")
                for field, is_set in given
                if is_set
            ]
        if max(self.k) > self.samples:
            return [("k", f"pass@{max(self.k)} needs {max(self.k)} samples of each problem; there are {self.samples}")]
        return []


class QualificationSpec(SpecModel):
    """Labelled pairs that the judge must read as people did, before it is believed."""

    uri: Uri
    """File of pairs with people's verdicts."""
    format: Literal["pandalm", "llmbar", "auto_j"]
    """Its form; docs/evaluation.md shows each."""
    min_accuracy: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Least share of verdicts equal to people's. For scale: a single person agrees with the majority on 66 % of AlpacaEval's pairs, GPT-4 on 69 %."""
    limit: PositiveInt = 200
    """Ask only so many pairs."""


class JudgeSpec(TeacherSpec):
    """Who grades and compares: a model behind an endpoint, else the input `judge`, served in the stage's own cluster; with
    `style: rewardModel` the input `rewardModel`."""

    style: Literal["plumbline", "pandalm", "prometheus", "mtBench", "rewardModel"] = "plumbline"
    """How it is asked and read. `plumbline` and `mtBench` are for any chat model; `pandalm` and `prometheus` for models trained so."""
    samples: Annotated[int, Field(ge=1, le=16), WHOLE] = 1
    """Verdicts for each order of a pair, or of each answer, averaged. 3 at temperature 1 is what Wang et al. 2023 (arXiv 2305.17926) take."""
    temperature: NonNegativeFloat = 0.0
    """Sampling temperature of verdicts."""
    max_tokens: PositiveInt = 512
    """Longest verdict in tokens, reasons included."""
    qualification: QualificationSpec | None = None
    """Checked first; a judge that fails it leaves every gate on its tasks inconclusive."""
    self_tests: bool = True
    """Before a gate that needs the judge: is it moved by position, length, constant or copied answers, or by verdicts planted in an answer?"""

    def problems(self) -> list[tuple[str, str]]:
        found = super().problems()
        if self.style == "rewardModel" and self.endpoint is not None:
            found.append(("endpoint", "a reward model is a stage of the run; leave endpoint out, or choose another style"))
        if self.samples > 1 and self.temperature == 0 and self.style != "rewardModel":
            found.append(("samples", "are all the same at temperature 0; set temperature: 1, or samples: 1"))
        return found


METRICS: dict[str, tuple[str, ...]] = {
    "skills": (),
    "gsm8k": ("strict",),
    "mmlu": (),
    "humaneval": (),
    "ifeval": ("loose",),
    "promptAnswer": ("rougeL", "bleu", "bertScore"),
    "ceval": (),
    "cmmlu": (),
    "truthfulqa": ("mc2",),
    "bbq": (
        "ambiguous", "disambiguated", "stereotypedAmbiguous", "stereotypedDisambiguated", "biasAmbiguous", "biasDisambiguated",
    ),
    "superNaturalInstructions": ("exactMatch", "rougeL", "bleu", "bertScore"),
    "supportedFacts": (),
    "haluEval": ("found", "believed", "suspicion", "balanced", "pick"),
    "advBench": ("harmfulCompliance", "partialRefusal", "undecided"),
    "xsTest": ("overRefusal", "harmfulCompliance", "partialRefusal", "undecided"),
    "mtBench": ("turn 1", "turn 2"),
    "vicuna80": (),
    "alpacaEval": (),
    "arenaHard": (),
}  # fmt: skip
"""What benchmarks tell beside `score`, also by part as in `biasAmbiguous Age`. Of one that is missing here the run tells, after its items are
scored."""


WORDS = ("rougeL", "bleu", "bertScore")
"""Figures that `TaskSpec.metrics` asks for."""
LIKELIHOOD_ONLY = ("mc2", "suspicion", "pick")
"""Figures that written answers do not give."""


class GateSpec(SpecModel):
    """One rule: an interval must lie beyond a limit. The gate passes when every rule passes, so several rules need no correction for being
    several; a rule that the numbers cannot decide is inconclusive."""

    model_config = validated_by(
        ("has(self.baseline) != has(self.threshold)", "give either a baseline (with minEffect) or a threshold"),
        (
            "!(self.comparison == 'below' && has(self.threshold) && self.threshold == 0.0)",
            "nothing lies below a threshold of 0; give the highest value to accept, such as 0.02",
        ),
    )

    task: Name
    """The task whose score is judged."""
    metric: Annotated[str, Field(min_length=1, max_length=200)] = "score"
    """What of it: `score`, another figure of the benchmark such as `strict` or `harmfulCompliance`, the score of one group such as
    `subject=anatomy`, or `macro`, the mean over groups such as MMLU's subjects (`macro:GROUPING` where items are grouped in several ways)."""
    baseline: Name | None = None
    """Compare with this baseline on the same items; unset: compare the figure itself with `threshold`."""
    comparison: Literal["above", "below"] = "above"
    """`above`: higher is better. `below`: lower is, as with harmfulCompliance."""
    min_effect: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """With a baseline: the candidate must be better than it by more than this. A negative value states non-inferiority: worse by less than that."""
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """Without a baseline: the figure must lie above (or below) this."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] | None = None
    """Level of the interval. Unset: the stage's."""
    contaminated: Literal["refuse", "accept"] = "refuse"
    """`refuse`: only questions that occur in no source of the training data count; where nobody compared them, the rule is inconclusive.
    `accept`: all questions count. What the base model has read is not known in either case."""

    def problems(self) -> list[tuple[str, str]]:
        """What the types cannot say: (field, sentence); no field: the rule as a whole."""
        found = []
        if (self.baseline is None) == (self.threshold is None):
            found.append(("", "give either a baseline (with minEffect) or a threshold"))
        if self.comparison == "below" and self.threshold == 0:
            found.append(
                ("threshold", "nothing lies below a threshold of 0; give the highest value to accept, such as 0.02")
            )
        return found

    def baseline_problem(self, task: TaskSpec) -> str | None:
        """Why the rule compares with somebody whom the judge does not compare the candidate with."""
        if not task.pairwise or self.baseline is None:
            return None
        if task.opponents is not None:
            return (
                f"task '{task.name}' compares with stored answers; give threshold: 0.5 (the win rate) instead of a baseline"
            )
        if task.against not in (None, self.baseline):
            return f"task '{task.name}' compares with '{task.against}'; name that one, or give a task of its own for '{self.baseline}'"
        return None

    def metric_problem(self, task: TaskSpec) -> str | None:
        """Why a task has no such metric, as far as is known before its items are read."""
        known = METRICS.get(task.benchmark)
        of_groups = self.metric == "macro" or self.metric.startswith("macro:") or "=" in self.metric
        if known is None or of_groups:
            return None
        given = [one for one in known if one not in WORDS or one in task.metrics]
        if task.answers == "written":
            given = [one for one in given if one not in LIKELIHOOD_ONLY]
        if task.pairwise:
            given = ["lengthControlledWinRate"] if task.difficulties is not None else []
        if task.benchmark == "humaneval":
            given = [f"pass@{k}" for k in task.k if k > 1]  # pass@1 is the score
        if self.metric in ("score", *given) or any(self.metric.startswith(f"{one} ") for one in given):
            return None
        return (
            f"'{self.metric}' is no metric of task '{task.name}' ({task.benchmark}); accepted: {', '.join(('score', *given))}, GROUP=VALUE such as "
            "subject=anatomy, or macro, where its items have groups"
        )


class EvaluateSpec(StageSpec):
    """Evaluate through Ray Serve, compare, and decide the gate."""

    model_config = validated_by(
        ("self.gates.all(g, self.tasks.exists(t, t.name == g.task))", "gates[].task must name a task of the same stage")
    )

    inputs: ClassVar = {
        "model": Input(type=ArtifactType.MODEL, default_to_base=True),
        "baselines": Input(type=ArtifactType.MODEL, nearest=False, default_to_base=True, many=True),
        "judge": Input(
            type=ArtifactType.MODEL,
            nearest=False,
            default_to_base=True,
            when="has({block}.judge) && !has({block}.judge.endpoint) && (!has({block}.judge.style) || {block}.judge.style != 'rewardModel')",
        ),
        "rewardModel": Input(
            type=ArtifactType.REWARD_MODEL,
            when="has({block}.judge) && has({block}.judge.style) && {block}.judge.style == 'rewardModel'",
        ),
    }
    output: ClassVar = ArtifactType.REPORT
    program: ClassVar = "plumbline.stages.evaluate"
    code_version: ClassVar = "4"
    names_inputs: ClassVar = True
    unfingerprinted: ClassVar = frozenset({"concurrency"})

    tasks: list[TaskSpec] = Field(min_length=1, max_length=64, json_schema_extra=list_map("name"))
    """Benchmarks to run."""
    judge: JudgeSpec | None = None
    """Who grades and compares where nothing is right or wrong."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Level of every interval and of the gate."""
    gates: list[GateSpec] = Field(default=[], max_length=64)
    """Rules that decide whether the model may be served. None: the report has no verdict."""
    temperature: NonNegativeFloat = 0.0
    """Sampling temperature of the answers; 0 is greedy."""
    concurrency: PositiveInt = 32
    """Requests in flight. Does not enter the fingerprint."""

    @property
    def judged(self) -> bool:
        """Whether any task needs the judge."""
        return any(task.benchmark in JUDGED for task in self.tasks)

    def reads(self, role: str) -> bool:
        graded = self.judge is not None and self.judge.style == "rewardModel"
        served = self.judge is not None and self.judge.endpoint is None and not graded
        return {"judge": served, "rewardModel": graded}.get(role, True)

    def external_uris(self) -> dict[str, str]:
        found = {}
        for i, task in enumerate(self.tasks):
            if task.uri is None and task.benchmark == "skills":
                found[f"tasks[{i}].uri"] = "builtin://skills"
            for field in ("uri", "examples", "references", "opponents", "difficulties", "include_path"):
                uri = getattr(task, field)
                if uri is not None:
                    found[f"tasks[{i}].{TaskSpec.model_fields[field].alias or field}"] = uri
        if self.judge is not None and self.judge.qualification is not None:
            found["judge.qualification.uri"] = self.judge.qualification.uri
        return found

    def external_models(self) -> dict[str, str]:
        return {f"tasks[{i}].encoder": task.encoder for i, task in enumerate(self.tasks) if task.encoder}

    def benchmark_files(self) -> dict[str, tuple[str, str]]:
        return {f"tasks[{i}].uri": (task.benchmark, task.uri) for i, task in enumerate(self.tasks) if task.uri}

    def secrets(self) -> dict[str, tuple[str, str]]:
        return {JUDGE_KEY: (self.judge.key_secret, "apiKey")} if self.judge and self.judge.key_secret else {}

    def problems(self) -> list[tuple[str, str]]:
        found = []
        names = [task.name for task in self.tasks]
        for i, task in enumerate(self.tasks):
            found += [(f"tasks[{i}].{field}", what) for field, what in task.problems()]
            if task.samples > 1 and not (self.temperature if task.temperature is None else task.temperature):
                found.append(
                    (f"tasks[{i}].samples", "are all the same at temperature 0; give the task a temperature, such as 0.8")
                )
            if task.name in names[:i]:
                found.append((f"tasks[{i}].name", f"'{task.name}' names an earlier task too; task names are unique"))
            if task.benchmark in JUDGED and self.judge is None:
                found.append(
                    (
                        "judge",
                        f"task '{task.name}' has no right answers; say who judges, such as judge: {{endpoint: …, model: …}}",
                    )
                )
        if self.judge is not None:
            found += [(f"judge.{field}", what) for field, what in self.judge.problems()]
            if not self.judged:
                found.append(("judge", f"has nothing to judge; leave it out, or add a task of {', '.join(JUDGED)}"))
            for i, task in enumerate(self.tasks):
                if task.benchmark in JUDGED and not task.pairwise and self.judge.style == "pandalm":
                    found.append(
                        (f"tasks[{i}].grading", "pandalm only compares; set grading: pairwise, or another judge.style")
                    )
        for i, gate in enumerate(self.gates):
            if gate.task not in names:
                found.append((f"gates[{i}].task", f"'{gate.task}' is no task of this stage; tasks: {', '.join(names)}"))
            found += [(f"gates[{i}].{field}" if field else f"gates[{i}]", what) for field, what in gate.problems()]
            for task in self.tasks:
                if task.name == gate.task:
                    unknown, other = gate.metric_problem(task), gate.baseline_problem(task)
                    found += [(f"gates[{i}].metric", unknown)] if unknown else []
                    found += [(f"gates[{i}].baseline", other)] if other else []
        return found
