"""Loading tasks of lm-evaluation-harness and running them against models."""

from __future__ import annotations

import difflib
import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

import datasets
import evaluate
import lm_eval
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval import utils
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.errors import InvalidInput, PlumblineError, one_line
from plumbline.evaluation.benchmarks.benchmark import Item
from plumbline.evaluation.client import Question
from plumbline.evaluation.conversations import Ask
from plumbline.evaluation.harness import rows
from plumbline.evaluation.harness.endpoint import EndpointModel
from plumbline.evaluation.harness.folder import plain_tasks
from plumbline.evaluation.journal import Reply
from plumbline.evaluation.results import Sample

evaluate.config.HF_EVALUATE_OFFLINE = True  # it would fetch metrics as programs
FEWSHOT_SEED = 1234  # lm-evaluation-harness's own, so that its default examples are ours
GROUPING = "task"
UNSAFE = "runs programs of a model without a sandbox; use benchmark humaneval, which has one"


@dataclass(frozen=True)
class HarnessTasks:
    """What a task of the stage comes to in the harness.

    Attributes:
        spec: the task of the stage.
        where: its field path.
        tasks: the harness's, by name.
        numbers: name → numbers of the items that are asked, ascending.
        limited: names of those that are not asked whole.
    """

    spec: TaskSpec
    where: str
    tasks: Mapping[str, Task]
    numbers: Mapping[str, list[int]]
    limited: frozenset[str]

    @classmethod
    def load(cls, spec: TaskSpec, where: str) -> HarnessTasks:
        """As `plumbline.evaluation.harness.load`."""
        name = str(spec.harness_task)
        _run_templates_in_sandbox()
        own = plain_tasks(spec.include_path, f"{where}.includePath") if spec.include_path else nullcontext(None)
        with own as folder:
            manager = TaskManager(include_path=folder, include_defaults=False) if folder else _library()
            if name not in manager.all_tasks:
                raise _unknown(name, manager, spec, where)
            tasks = _loaded(manager, name, where)
        for task in tasks.values():
            _check(task, spec, where)
        numbers = {known: list(range(len(task.eval_docs))) for known, task in tasks.items()}
        limited = frozenset(known for known, of in numbers.items() if spec.limit is not None and spec.limit < len(of))
        for known in limited:
            random.Random(spec.seed).shuffle(numbers[known])
            numbers[known] = sorted(numbers[known][: spec.limit])
        return cls(spec, where, tasks, numbers, limited)

    @property
    def items(self) -> list[Item]:
        """The items by id and group, before anything is asked: still without prompts."""
        return [
            Item(f"{name}:{number}", [], "", groups=self._groups(name))
            for name, numbers in self.numbers.items()
            for number in numbers
        ]

    def samples(self, models: Mapping[str, str], temperature: float, ask: Ask) -> tuple[list[Sample], list[str]]:
        """What every model made of every item, and what a reader of it must know.

        Args:
            models: name → fingerprint.
            temperature: of written answers, where neither the task nor the harness says.
            ask: questions → one reply each.

        Raises:
            InvalidInput: no metric is a score of items, or the harness fails at the replies.
        """
        found: list[Sample] = []
        remarks = [f"{self.spec.name}: {self.spec.harness_task} of lm-evaluation-harness {version('lm_eval')}"]
        for name, task in self.tasks.items():
            told = {model: self._asked(name, task, model, print_, temperature, ask) for model, print_ in models.items()}
            metrics, left_out = rows.metrics_of([row for one in told.values() for row in one.rows])
            if left_out:
                words = f"{', '.join(left_out)} of {name} are no value of 0 to 1 of each item and are not told"
                remarks.append(f"{self.spec.name}: {words}")
            longest = max(one.longest for one in told.values())
            if longest > self.spec.max_tokens:
                words = f"{name} asks for answers of up to {longest} tokens; maxTokens cuts them at {self.spec.max_tokens}"
                remarks.append(f"{self.spec.name}: {words}")
            main = self._main(name, task, metrics, left_out)
            for number, one in zip(self.numbers[name], rows.answered(told, main, metrics), strict=True):
                item = Item(f"{name}:{number}", one.prompt, one.reference, groups=self._groups(name))
                found.append(Sample(self.spec.name, item, one.replies, one.scores))
        return found, remarks

    def _asked(self, name: str, task: Task, model: str, fingerprint: str, temperature: float, ask: Ask) -> rows.Asked:
        chat = _in_chat(task, self.spec)
        greedy = task.OUTPUT_TYPE != "multiple_choice" or "exact_match" in task.higher_is_better()
        failed: list[Exception] = []

        def asking(questions: Sequence[Question]) -> list[Reply]:
            try:
                return ask(questions)
            except Exception as error:
                failed.append(error)
                raise

        endpoint = EndpointModel(asking, model, fingerprint, self.spec, temperature, chat, greedy)
        task.set_fewshot_seed(FEWSHOT_SEED + self.spec.seed)  # for each model again: all are shown the same
        try:
            result = lm_eval.evaluate(
                endpoint, {"tasks": {name: task}}, samples={name: self.numbers[name]} if name in self.limited else None, bootstrap_iters=0,
                apply_chat_template=chat, fewshot_as_multiturn=chat, confirm_run_unsafe_code=False,
            )  # fmt: skip
        except Exception as error:  # whatever the functions of a task raise
            if failed:  # or the endpoint
                raise
            raise InvalidInput(f"{self.where}.harnessTask: the harness fails at '{name}': {one_line(error)}") from error
        assert result is not None, "there is one process"
        return rows.Asked(result["samples"][name], endpoint.replies, chat, endpoint.longest)

    def _main(self, name: str, task: Task, metrics: Sequence[str], left_out: Sequence[str]) -> str:
        """Which metric is the score."""
        wanted = self.spec.harness_metric
        fit = [one for one in metrics if wanted is None or wanted in (one, one.partition(",")[0])]
        worse = [one for one in fit if task.higher_is_better().get(one.partition(",")[0]) is False]
        if fit and fit[0] not in worse:
            return fit[0]
        accepted = ", ".join(one for one in metrics if one not in worse) or "none"
        why = (
            f"of '{fit[0]}' less is better" if fit
            else f"'{wanted}' is no value of 0 to 1 of each item" if wanted in left_out or not metrics
            else f"'{wanted}' is no metric of it"
        )  # fmt: skip
        raise InvalidInput(f"{self.where}.harnessMetric: task '{name}': {why}; what can be its score: {accepted}")

    def _groups(self, name: str) -> dict[str, str]:
        return {GROUPING: name} if len(self.tasks) > 1 else {}


def _run_templates_in_sandbox() -> None:
    """The harness's templates may come from somebody's folder: they see their document and nothing else."""
    if not isinstance(utils.env, ImmutableSandboxedEnvironment):
        sandbox = ImmutableSandboxedEnvironment(
            undefined=utils.env.undefined, keep_trailing_newline=utils.env.keep_trailing_newline
        )
        sandbox.filters |= utils.env.filters
        utils.env = sandbox


@cache
def _library() -> TaskManager:
    """All tasks of the library; reading what there are takes seconds."""
    return TaskManager()


def _unknown(name: str, manager: TaskManager, spec: TaskSpec, where: str) -> InvalidInput:
    near = ", ".join(difflib.get_close_matches(name, manager.all_tasks, n=5, cutoff=0.5)) or "nothing"
    if spec.include_path:
        return InvalidInput(
            f"{where}.harnessTask: the folder of includePath has no task, group or tag '{name}'; near it: {near}; leave includePath out to take "
            "one of the library's"
        )
    return InvalidInput(
        f"{where}.harnessTask: lm-evaluation-harness {version('lm_eval')} has no task, group or tag '{name}'; near it: {near}; give your own "
        "tasks as includePath"
    )


def _loaded(manager: TaskManager, name: str, where: str) -> dict[str, Task]:
    entry = manager.task_index[name]
    for one in (entry, *(manager.task_index[tagged] for tagged in entry.tags if tagged in manager.task_index)):
        if (one.cfg or {}).get("unsafe_code"):  # told before what it needs is looked for
            raise _refused(one.name, UNSAFE, where)
    try:
        tasks: dict[str, Task] = manager.load(name)["tasks"]
    except datasets.exceptions.DatasetNotFoundError as error:
        raise InvalidInput(f"{where}.harnessTask: the data of '{name}' are not there: {one_line(error)}") from error
    except OSError as error:  # the hub's errors are such
        raise PlumblineError(
            f"{where}.harnessTask: the data of '{name}' cannot be fetched now: {one_line(error)}; try again, or give them beside a task of "
            "your own as includePath"
        ) from error
    except Exception as error:  # whatever a task's functions and templates raise
        raise InvalidInput(f"{where}.harnessTask: '{name}' cannot be loaded: {one_line(error)}") from error
    if not tasks:
        raise InvalidInput(f"{where}.harnessTask: '{name}' holds no task")
    return dict(sorted(tasks.items()))


def _in_chat(task: Task, spec: TaskSpec) -> bool:
    return spec.chat_template and task.OUTPUT_TYPE == "generate_until"


def _check(task: Task, spec: TaskSpec, where: str) -> None:
    name, metrics = task.task_name, getattr(task, "_metric_fn_list", {})
    problem = None
    if getattr(task, "UNSAFE_CODE", False):
        problem = UNSAFE
    elif getattr(task, "MULTIMODAL", False):
        problem = "shows pictures or sounds, and models here read text"
    elif task.OUTPUT_TYPE == "loglikelihood_rolling":
        problem = "tells perplexities, which are no share of items; take a task of answers"
    elif task.get_config("process_results") is None and None in metrics.values():
        missing = ", ".join(metric for metric, function in metrics.items() if function is None)
        problem = f"needs metrics that are fetched as programs ({missing}), which is off; take a task without"
    elif _in_chat(task, spec) and task.get_config("gen_prefix"):
        problem = "begins the model's answer itself, which a chat cannot; set chatTemplate: false"
    elif spec.shots is not None and task.get_config("num_fewshot") == 0:
        problem = "is made to be asked without examples; leave shots out"
    if problem is not None:
        raise _refused(name, problem, where)
    if spec.shots is not None:
        task.set_config("num_fewshot", spec.shots)


def _refused(name: str, problem: str, where: str) -> InvalidInput:
    return InvalidInput(f"{where}.harnessTask: '{name}' {problem}")
