"""Tasks of EleutherAI's lm-evaluation-harness, by their names there, asked like every other task: our endpoint, our client, our journal.

The library builds the prompts, filters the replies and computes each item's metrics; it is an extra (`harness`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.errors import InvalidInput

if TYPE_CHECKING:
    from plumbline.evaluation.harness.tasks import HarnessTasks


def load(task: TaskSpec, where: str) -> HarnessTasks:
    """The harness's tasks that a task of the stage names, with their data.

    Args:
        task: with `harness_task`.
        where: its field path.

    Raises:
        InvalidInput: the library is not installed, it has no such task, or one that cannot be asked here.
        PlumblineError: the task's data cannot be reached now.
    """
    try:
        from plumbline.evaluation.harness.tasks import HarnessTasks
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"{where}.benchmark: {task.benchmark} needs the extra `harness` where the stage runs, and module '{error.name}' is missing there; "
            'install it ("plumbline[harness]"), or name an image that has it'
        ) from error
    return HarnessTasks.load(task, where)
