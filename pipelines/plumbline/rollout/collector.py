"""Which prompts are handed out when, and in what order their answers are learned from. Knows neither Ray nor the model.

Prompts have positions in one endless sequence. They are handed out in its order and learned from in its order, whichever answers come
first: so no prompt is lost or comes twice, short answers are not preferred, and how old the weights of an answer are is bounded by how far
ahead prompts are handed out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, Self

import torch

from plumbline.rollout.engine import Completion
from plumbline.rollout.groups import Group, Task

SCORERS = 32  # groups whose rewards are asked for at the same time: judges and endpoints take seconds
MOST_DRAWN = 4  # times the prompts of a step, where groups without any difference are replaced
LOOK = 0.5  # seconds that one look for answers may take

Adapter = dict[str, torch.Tensor]


class Pool(Protocol):
    """Engines somewhere. Thread-safe.

    Attributes:
        lost: how often one was lost.
    """

    lost: int

    def submit(self, tasks: list[Task], adapter: Adapter, version: int) -> list[int]:
        """Hand out tasks to engines that take this adapter first. Returns the positions of the canaries that were added."""
        ...

    def collect(self, seconds: float) -> list[tuple[int, list[Completion]]]:
        """Tasks that are done by now, waiting for one a while: (position, completions)."""
        ...

    def pause(self) -> None:
        """Have the engines stop and give back the memory of their caches; returns when they have."""
        ...

    def resume(self) -> None:
        """End a pause, if there is one."""
        ...


class Collector:
    """Hands out prompts, has answers rewarded while others are still written, and gives out whole groups in order.

    Args:
        pool: the engines.
        task: position → what is asked.
        score: position and completions → the group with its rewards; called in threads.
        per_step: prompts of a step.
        staleness: updates that the weights of an answer's first token may be behind those that learn from it.
        skip_equal: draw further prompts for groups without any difference in reward.
        steps: of the run.
        turns: engines pause while the groups are learned from.
        state: what `state` gave before an interruption.
    """

    def __init__(
        self,
        pool: Pool,
        task: Callable[[int], Task],
        score: Callable[[int, list[Completion]], Group],
        per_step: int,
        staleness: int = 0,
        skip_equal: bool = False,
        steps: int = 2**31,
        turns: bool = False,
        state: dict[str, Any] | None = None,
    ) -> None:
        self._pool, self._task, self._score = pool, task, score
        self._per_step, self._staleness, self._skip_equal, self._steps = per_step, staleness, skip_equal, steps
        self._turns = turns
        self._taken: int = state["taken"] if state else 0
        self._handed_out: int = state["handedOut"] if state else 0
        self._done: dict[int, Group] = {group.position: group for group in map(Group.of, state["done"])} if state else {}
        self._again = [p for p in range(self._taken, self._handed_out) if p not in self._done]
        self._canaries: dict[int, list[Completion]] = {}
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._scorers = ThreadPoolExecutor(SCORERS, "score")
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)

    def start(self) -> Self:
        """Begin to listen to the pool."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop listening; what is on its way is lost."""
        self._over.set()
        self._thread.join()
        self._scorers.shutdown(wait=False, cancel_futures=True)

    def take(self, adapter: Adapter, version: int) -> tuple[list[Group], list[Completion], dict[str, float]]:
        """The next step's groups.

        Args:
            adapter: the present weights.
            version: number of updates that made them.

        Returns:
            (groups in order, those that were replaced among them; answers of canaries that the engines gave with these weights; what
            happened)
        """
        began, canaries = time.monotonic(), list[int]()
        if self._turns:
            self._pool.resume()
        if self._staleness > 1 or self._again:
            canaries += self._hand_out(self._again, adapter, version)  # those on their way go on with these weights
            self._again = []
        groups: list[Group] = []
        kept = 0
        while kept < self._per_step and len(groups) < MOST_DRAWN * self._per_step:
            need = min(self._per_step - kept, MOST_DRAWN * self._per_step - len(groups))
            missing = self._taken + need - self._handed_out
            if missing > 0:
                canaries += self._hand_out(self._next(missing), adapter, version)
            groups += [self._wait_for(position) for position in range(self._taken, self._taken + need)]
            self._taken += need
            kept = sum(not (self._skip_equal and group.equal) for group in groups)
        if self._staleness:
            further = min(self._staleness, self._steps - 1 - version)  # after the last step nobody learns
            ahead = self._taken + further * self._per_step - self._handed_out
            canaries += self._hand_out(self._next(ahead), adapter, version)
        for canary in canaries:
            self._wait_for_canary(canary)
        with self._changed:  # also of engines that came back
            given, self._canaries = self._canaries, {}
        answered = [c for completions in given.values() for c in completions if c.first_version >= version]
        if self._turns:
            self._pool.pause()
        waited = time.monotonic() - began
        samples = [sample for group in groups for sample in group.samples]
        stale = sum(version - sample.began for sample in samples) / max(1, len(samples))
        learned = {group.position for group in groups}
        facts = {"staleness": stale, "promptsDrawn": float(len(learned)), "promptsSoFar": float(max(learned) + 1)}
        return groups, answered, facts | {"waitSeconds": waited}

    @property
    def lost(self) -> int:
        """How often an engine was lost."""
        return self._pool.lost

    def state(self) -> dict[str, Any]:
        """For a checkpoint: what was taken, what is on its way, and the groups that wait to be taken."""
        with self._changed:
            done = [group.plain() for _, group in sorted(self._done.items())]
        return {"taken": self._taken, "handedOut": self._handed_out, "done": done}

    def _next(self, count: int) -> list[int]:
        positions = list(range(self._handed_out, self._handed_out + max(0, count)))
        self._handed_out += len(positions)
        return positions

    def _hand_out(self, positions: list[int], adapter: Adapter, version: int) -> list[int]:
        return self._pool.submit([self._task(position) for position in positions], adapter, version)

    def _wait_for(self, position: int) -> Group:
        with self._changed:
            self._changed.wait_for(lambda: position in self._done or self._failure is not None)
            if self._failure is not None:
                raise self._failure
            return self._done.pop(position)

    def _wait_for_canary(self, position: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: position in self._canaries or self._failure is not None)
            if self._failure is not None:
                raise self._failure

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                for position, completions in self._pool.collect(LOOK):
                    if position < 0:
                        with self._changed:
                            self._canaries[position] = completions
                            self._changed.notify_all()
                    else:
                        self._scorers.submit(self._score, position, completions).add_done_callback(self._scored)
        except BaseException as error:
            self._fail(error)

    def _scored(self, future: Future[Group]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            self._fail(error)
            return
        group = future.result()
        with self._changed:
            self._done[group.position] = group
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
