"""The pool of rollout actors, and the reward model's, as their trainer and its driver see them."""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group

from plumbline.api.ray_settings import GROWS_TO
from plumbline.data.row import Chat
from plumbline.errors import PlumblineError, plain_cause
from plumbline.models.reference import ModelReference
from plumbline.rollout.actors import POLL, Report, RewardActor, RolloutActor, Work
from plumbline.rollout.engine import NO_ADAPTER, Completion, Request
from plumbline.rollout.groups import Task
from plumbline.rollout.placement import placement

log = logging.getLogger(__name__)
MAX_SLOTS = 256  # answers that one actor decodes at the same time
RESTART = 1.0  # seconds before a lost actor is asked again
SHARED_GPU = 0.51  # of a GPU that an actor and a training worker share, who takes the rest: two actors do not fit on one
REWARD_SECONDS = 600.0  # that a reward model may take for the answers to one prompt, and once to be loaded
PLACED_SECONDS = 600.0  # to wait for the places of colocated actors
_ASKING = threading.Lock()


@dataclass
class _Member:
    """One actor, as the pool sees it."""

    actor: ActorHandle
    birth: str = ""
    open: dict[int, Task] = field(default_factory=dict)
    poll: ray.ObjectRef | None = None
    drawn: int = -1
    loading: bool = False
    moved: float = field(default_factory=time.monotonic)
    """When it last drew a token, or had nothing to do."""
    losses: int = 0
    """Since it last finished a task, canaries apart."""
    down: bool = False
    """Lost, and not heard of since; what is open is sent again then."""
    ask_at: float = 0.0
    """Not to be asked before."""


class RolloutPool:
    """Actors that answer prompts, as one trainer sees them. Which actor gets which prompt depends on the prompts alone, until one is lost.

    An actor that dies is started anew by Ray, one that hangs by us; what it had to do goes to the others, with the adapter of that moment.

    Args:
        actors: of `rollout_pool`.
        config: of the adapters to come.
        canary: asked of every actor whenever it gets a new adapter.
        max_failures: how often in a row an actor may be lost before it finishes anything.
        stall_seconds: how long an actor with work may draw no token.
        say: for people.
    """

    def __init__(
        self,
        actors: list[ActorHandle],
        config: dict[str, Any],
        canary: Request,
        max_failures: int,
        stall_seconds: float,
        say: Callable[[str], None],
    ) -> None:
        self._members = [_Member(actor) for actor in actors]
        self._config, self._canary = config, canary
        self._max_failures, self._stall, self._say = max_failures, stall_seconds, say
        self._work = Work(secrets.token_hex(8), (), [], config, NO_ADAPTER)
        self._canaries = 0
        self._paused = False
        self._lock = threading.Lock()
        self.lost = 0
        """How often an actor was."""

    def submit(self, tasks: list[Task], adapter: dict[str, torch.Tensor], version: int) -> list[int]:
        """Hand out tasks; see `Pool`. The adapter travels once, as one object by reference, and only it: never the base."""
        with self._lock:
            canaries: list[int] = []
            fresh = version != self._work.version
            if fresh:
                self._work = replace(self._work, adapter=[ray.put(adapter)], version=version)
            working = [member for member in self._members if not member.down] or self._members
            for number, member in enumerate(working):
                mine = [task for task in tasks if task.position % len(working) == number]
                if fresh:
                    mine.insert(0, self._next_canary())
                    canaries.append(mine[0].position)
                self._send(member, mine)
            return canaries

    def pause(self) -> None:
        """See `Pool`. An actor that does not answer is left to the watchdog."""
        with self._lock:
            self._paused = True
            asked = [member.actor.pause.remote() for member in self._members if not member.down]
        _, deaf = ray.wait(asked, num_returns=len(asked), timeout=self._stall)
        if deaf:
            self._say(f"{len(deaf)} rollout actors have not paused within {self._stall:g} seconds")

    def resume(self) -> None:
        """See `Pool`."""
        with self._lock:
            if self._paused:
                self._paused = False
                for member in self._members:
                    member.moved = time.monotonic()
                    member.actor.send.remote(self._work)

    def collect(self, seconds: float) -> list[tuple[int, list[Completion]]]:
        """What is done; see `Pool`.

        Raises:
            PlumblineError: an actor was lost too often, or what an engine raised for people.
        """
        with self._lock:
            for member in self._members:
                if member.poll is None and time.monotonic() >= member.ask_at:
                    member.poll = member.actor.poll.remote(self._work.session, POLL if member.birth else 0)
            waiting = {member.poll: member for member in self._members if member.poll is not None}
        ready: list[ray.ObjectRef] = []
        if waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=seconds)
            if ready:  # all that are: nobody is to be judged while what it has reported is unread
                ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        else:
            time.sleep(seconds)
        finished: list[tuple[int, list[Completion]]] = []
        with self._lock:
            for reference in ready:
                member = waiting[reference]
                member.poll = None
                try:
                    finished += self._heard(member, ray.get(reference))
                except RayTaskError as error:
                    known = plain_cause(error)
                    if known is not None:
                        raise known from error
                    self._replace(member, f"its engine failed: {str(error).strip().splitlines()[-1]}")
                except RayError as error:
                    member.ask_at = time.monotonic() + RESTART
                    if not member.down:
                        self._lost(member, str(error).strip().splitlines()[0])
            for member in self._members:
                if member.down and member.open:
                    self._hand_over(member)
                if not member.open or self._paused or time.monotonic() - member.moved <= self._stall:
                    continue
                number, seconds = self._members.index(member), f"{self._stall:g} seconds"
                if member.loading:
                    self._say(f"rollout actor {number} has been loading its model for {seconds}")
                    member.moved = time.monotonic()
                elif not member.birth:  # Ray has no room for it yet, or its node is slow
                    self._say(f"rollout actor {number} has not started for {seconds}")
                    member.down, member.moved = True, time.monotonic()
                else:
                    self._replace(member, f"it has drawn no token for {seconds} with {len(member.open)} prompts to answer")
        return finished

    def _next_canary(self) -> Task:
        self._canaries += 1
        return Task(-self._canaries, (replace(self._canary, id=f"canary/{self._canaries}"),))

    def _heard(self, member: _Member, report: Report) -> list[tuple[int, list[Completion]]]:
        if member.birth and report.birth != member.birth and not member.down:
            self._lost(member, "it was started anew")
        if member.down and not self._paused:
            member.down, tasks = False, list(member.open.values())
            self._send(member, [*([self._next_canary()] if self._work.adapter else []), *tasks])
        if report.drawn != member.drawn or report.loading != member.loading or not member.open or not member.birth:
            member.drawn, member.moved = report.drawn, time.monotonic()
        member.birth, member.loading = report.birth, report.loading
        mine = [(position, completions) for position, completions in report.finished if member.open.pop(position, None)]
        if any(position >= 0 for position, _ in mine):
            member.losses = 0
        return mine

    def _replace(self, member: _Member, why: str) -> None:
        """End an actor that lives and is of no use."""
        ray.kill(member.actor, no_restart=False)
        member.poll, member.ask_at = None, time.monotonic() + RESTART  # else the old one may still answer
        self._lost(member, why)

    def _lost(self, member: _Member, why: str) -> None:
        """Give what an actor had to do to those that work."""
        number = self._members.index(member)
        self.lost += 1
        member.losses += 1
        if member.losses > self._max_failures:
            raise PlumblineError(
                f"rollout actor {number} was lost {member.losses} times in a row without finishing anything, last: {why}; is its "
                "node's memory enough for the model?"
            )
        member.birth, member.loading, member.down, member.drawn, member.moved = "", False, True, -1, time.monotonic()
        if not member.open:
            return
        self._say(f"rollout actor {number} was lost ({why}); {len(member.open)} prompts are asked again")
        self._hand_over(member)

    def _hand_over(self, member: _Member) -> None:
        """Give the others what a lost actor had to do; where nobody else works, whoever is back first gets it."""
        others = [other for other in self._members if not other.down]
        if others and not self._paused:  # work would end the pause
            tasks, member.open = list(member.open.values()), {}
            for i, other in enumerate(others):
                self._send(other, tasks[i :: len(others)])

    def _send(self, member: _Member, tasks: list[Task]) -> None:
        if not tasks:
            return
        if not member.open:
            member.moved = time.monotonic()
        member.open |= {task.position: task for task in tasks}
        member.actor.send.remote(replace(self._work, tasks=tuple(tasks)))


def ask(actor: ActorHandle, chats: list[Chat]) -> list[float | None]:
    """Rewards from a `RewardActor`; see there. One at a time, as it works, so that nobody's time passes in a queue.

    Raises:
        PlumblineError: it was lost too often, or what it raised for people.
    """
    try:
        with _ASKING:
            rewards: list[float | None] = ray.get(actor.score.remote(chats), timeout=REWARD_SECONDS)
    except GetTimeoutError as error:
        raise PlumblineError(f"the reward model has not answered for {REWARD_SECONDS / 60:g} minutes") from error
    except RayError as error:
        known = plain_cause(error)
        raise known or PlumblineError(f"the reward model was lost ({str(error).strip().splitlines()[0]})") from error
    return rewards


@contextmanager
def rollout_pool(
    reference: ModelReference,
    *,
    workers: int,
    trainers: int,
    answers: int,
    slots: int | None = None,
    max_length: int,
    colocated: bool,
    engine: str = "auto",
    reward_model: ModelReference | None = None,
) -> Iterator[tuple[list[ActorHandle], ActorHandle | None]]:
    """Start the actors, and end them with the block.

    Args:
        reference: the model whose base they hold.
        workers: how many actors. Where they go, and whether they get GPUs, `placement` says.
        trainers: training workers beside them.
        answers: that are under way at the same time; decides how many an actor decodes together.
        slots: how many it decodes together.
        max_length: longest prompt with answer, in tokens.
        colocated: an actor takes a part of a trainer's GPU instead of a whole one.
        engine: `auto` or `vllm`.
        reward_model: one that is to be asked.

    Raises:
        PlumblineError: colocated actors find no room.
    """
    found = max(ray.cluster_resources().get("GPU", 0), json.loads(os.environ.get(GROWS_TO, "{}")).get("GPU", 0))
    place = placement(
        {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]},
        found,
        workers=workers,
        trainers=trainers,
        judged=reward_model is not None,
        share=SHARED_GPU if colocated else None,
    )
    for remark in place.remarks:
        log.warning(remark)
    slots = slots or min(MAX_SLOTS, max(8, -(-answers // workers)))
    placed = RolloutActor.options(**place.actor)
    sharing = 1 if "resources" in place.actor else 2 * workers  # a Pod's CPUs, or a machine's with trainers
    actors = [placed.remote(reference, max_length, slots, sharing, engine) for _ in range(workers)]
    judge = None
    if reward_model is not None:
        judge = RewardActor.options(**place.judge, max_task_retries=3).remote(reward_model)
    spare = [placement_group([{"GPU": SHARED_GPU}]) for _ in range(place.spare)]
    try:
        if colocated and found:  # before training workers, two of whose parts would fit on one GPU
            there = [*(actor.__ray_ready__.remote() for actor in actors), *(part.ready() for part in spare)]
            _, missing = ray.wait(there, num_returns=len(there), timeout=PLACED_SECONDS)
            if missing:
                raise PlumblineError(
                    f"for {PLACED_SECONDS / 60:g} minutes there was no room for {len(missing)} of {len(there)} parts of GPUs that rollout "
                    "actors share with training workers; add GPUs or lower rollout.workers and parallelism.workers"
                )
        yield actors, judge
    finally:
        for actor in [*actors, judge] if judge else actors:
            ray.kill(actor)
        for part in spare:
            remove_placement_group(part)
