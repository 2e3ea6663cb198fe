"""The pool of rollout actors, and the reward model's: the only file of this area that knows Ray."""

from __future__ import annotations

import json
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import ray
import torch
from joblib import cpu_count  # of this container, not of the node
from peft import LoraConfig
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group

from plumbline.api.ray_settings import GROWS_TO
from plumbline.data.row import Chat
from plumbline.errors import PlumblineError, plain_cause
from plumbline.models.load import end_tokens, load_base, load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.rollout.engine import NO_ADAPTER, Completion, Engine, Request, Token, build_engine
from plumbline.rollout.groups import Task
from plumbline.rollout.placement import placement
from plumbline.rollout.vllm import build_vllm
from plumbline.training.reward_model import RewardModel

log = logging.getLogger(__name__)
MAX_SLOTS = 256  # answers that one actor decodes at the same time
POLL = 2.0  # seconds that an actor waits for something to report
RESTART = 1.0  # seconds before a lost actor is asked again
SHARED_GPU = (
    0.51  # of a GPU that an actor and a training worker share: two actors do not fit on one; the worker takes the rest
)
REWARD_SECONDS = 600.0  # that a reward model may take for the answers to one prompt, and once to be loaded
PLACED_SECONDS = 600.0  # to wait for the places of colocated actors
_ASKING = threading.Lock()


@dataclass(frozen=True)
class Work:
    """What an actor is sent: tasks, and the adapter that they are to be begun with.

    Attributes:
        session: the trainer that sends it; a new one's first work makes an actor forget all that it was sent by another.
        adapter: a list with the reference of the tensors, so that they are fetched only where they are new.
    """

    session: str
    tasks: tuple[Task, ...]
    adapter: list[ray.ObjectRef]
    config: dict[str, Any]
    version: int


@dataclass(frozen=True)
class Report:
    """What an actor says of itself.

    Attributes:
        birth: changes when it is started anew, and has forgotten everything.
        drawn: tokens so far.
        loading: it has no model yet.
        finished: tasks that are done: (position, completions).
    """

    birth: str
    drawn: int
    loading: bool
    finished: list[tuple[int, list[Completion]]]


@ray.remote(num_cpus=0, concurrency_groups={"inbox": 1, "outbox": 4})
class RolloutActor:
    """An engine that works through its inbox in a thread. Whoever sends the same task twice gets one answer."""

    def __init__(self, reference: ModelReference, max_length: int, slots: int, sharing: int, engine: str) -> None:
        # As many as are always there: sums must repeat exactly, and threads that wait for a core cost more than they give.
        torch.set_num_threads(max(1, cpu_count() // sharing))
        self._reference, self._max_length, self._slots, self._kind = reference, max_length, slots, engine
        self._birth, self._session = secrets.token_hex(8), ""
        self._inbox: queue.SimpleQueue[Work | threading.Event] = queue.SimpleQueue()  # an event: pause, and set it
        self._outboxes: dict[str, queue.SimpleQueue[tuple[int, list[Completion]]]] = {}  # by session
        self._engine: Engine | None = None
        self._open: dict[int, _Open] = {}
        self._tasks: dict[str, int] = {}
        self._drawn = 0
        self._paused = False
        self._failure: BaseException | None = None
        threading.Thread(target=self._run, daemon=True).start()

    @ray.method(concurrency_group="inbox")  # of one thread: a trainer's work must not overtake its successor's
    def send(self, work: Work) -> None:
        """Put work into the inbox. Ends a pause."""
        self._inbox.put(work)

    @ray.method(concurrency_group="inbox")
    def pause(self) -> None:
        """Give back the memory of caches once what was sent before is taken in; returns when that is done."""
        paused = threading.Event()
        self._inbox.put(paused)
        while not paused.wait(POLL) and self._failure is None:
            pass

    @ray.method(concurrency_group="outbox")
    def poll(self, session: str, seconds: float) -> Report:
        """What has been finished for a trainer since its last poll, waiting a while for something.

        Raises:
            what made the engine fail.
        """
        outbox = self._outboxes.setdefault(
            session, queue.SimpleQueue()
        )  # a killed trainer's last poll takes nothing of another's
        finished = []
        with suppress(queue.Empty):
            finished.append(outbox.get(timeout=seconds))
            while True:
                finished.append(outbox.get_nowait())
        if self._failure is not None:
            raise self._failure
        return Report(self._birth, self._drawn, self._engine is None, finished)

    def _run(self) -> None:
        try:
            while True:
                while self._engine is None or self._paused or not self._engine.busy or not self._inbox.empty():
                    self._take(self._inbox.get())
                self._draw(self._engine)
        except BaseException as error:
            self._failure = error

    def _take(self, work: Work | threading.Event) -> None:
        if isinstance(work, threading.Event):
            if self._engine is not None and not self._paused:
                self._engine.pause()
            self._paused = True
            work.set()
            return
        if self._engine is None:
            self._engine = self._built(lora_config(work.config))
        elif self._paused:
            self._engine.resume()
        self._paused = False
        version = self._engine.adapter_version
        if work.session != self._session:
            for request in self._tasks:
                self._engine.cancel(request)
            self._open, self._tasks, self._session, version = {}, {}, work.session, NO_ADAPTER
        if work.version != version:
            try:
                adapter = ray.get(work.adapter[0])
            except RayError:  # it went with the trainer that sent it; whoever still waits will ask again
                return
            self._engine.load_adapter(adapter, work.version)
        for task in work.tasks:
            if task.position not in self._open:
                self._open[task.position] = _Open(task)
                for request in task.requests:
                    self._tasks[request.id] = task.position
                    self._engine.submit(request)
            while (
                task.position < 0 and task.position in self._open
            ):  # a trainer waits for canaries, so they come before the rest
                self._draw(self._engine)

    def _built(self, adapter: LoraConfig) -> Engine:
        if self._kind == "vllm":
            return build_vllm(self._reference, adapter, self._slots, max_length=self._max_length, device=_device())
        model = load_base(self._reference).to(_device())
        end = end_tokens(load_tokenizer(self._reference), model)
        return build_engine(model, adapter, end, slots=self._slots, max_length=self._max_length)

    def _draw(self, engine: Engine) -> None:
        for token in engine.step():
            self._note(token, engine.adapter_version)

    def _note(self, token: Token, version: int) -> None:
        self._drawn += 1
        task = self._open[self._tasks[token.request_id]]
        tokens = task.drawn.setdefault(token.request_id, [])
        tokens.append((token, version))
        if token.finish_reason is None:
            return
        task.unfinished -= 1
        if not task.unfinished:
            del self._open[task.task.position]
            for request in task.task.requests:
                del self._tasks[request.id]
            completions = [_completion(task.drawn[request.id]) for request in task.task.requests]
            self._outboxes.setdefault(self._session, queue.SimpleQueue()).put((task.task.position, completions))


@dataclass
class _Open:
    """A task that an engine works on."""

    task: Task
    drawn: dict[str, list[tuple[Token, int]]] = field(default_factory=dict)
    unfinished: int = field(init=False)

    def __post_init__(self) -> None:
        self.unfinished = len(self.task.requests)


def _completion(drawn: list[tuple[Token, int]]) -> Completion:
    tokens = [token for token, _ in drawn]
    reason = tokens[-1].finish_reason
    assert reason is not None
    return Completion(
        tokens[-1].request_id, [t.token for t in tokens], [t.logprob for t in tokens], reason, drawn[0][1], drawn[-1][1]
    )


def lora_config(plain: dict[str, Any]) -> LoraConfig:
    """The configuration that `adapter_config.json` holds."""
    known = LoraConfig.__dataclass_fields__
    return LoraConfig(**{name: value for name, value in plain.items() if name in known and value is not None})


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


@ray.remote(num_cpus=0)
class RewardActor:
    """Holds a reward model."""

    def __init__(self, reference: ModelReference) -> None:
        torch.set_num_threads(max(1, cpu_count() // 2))
        self._reference = reference
        self._model: RewardModel | None = None

    def score(self, chats: list[Chat]) -> list[float | None]:
        """The reward of each chat's last answer; None where a chat is too long. An answer that is written and read again may have more tokens than
        were drawn."""
        if self._model is None:  # not in the constructor: Ray would lose the sentence of an error there
            self._model = RewardModel.load(self._reference)
            self._model.model.to(_device())
        fitting = [self._model.fits(chat) for chat in chats]
        rewards = iter(self._model.score([chat for chat, fits in zip(chats, fitting, strict=True) if fits]))
        return [next(rewards) if fits else None for fits in fitting]


def _device() -> str:
    """The GPU that Ray gave this actor, if any: others' can be seen too."""
    own = ray.get_runtime_context().get_accelerator_ids().get("GPU")
    return "cuda" if own and torch.cuda.is_available() else "cpu"


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
