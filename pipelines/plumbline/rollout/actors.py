"""What runs in the actors of a rollout: an engine that works through its inbox, and a reward model."""

from __future__ import annotations

import queue
import secrets
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
import torch
from joblib import cpu_count  # of this container, not of the node
from ray.exceptions import RayError

from plumbline.data.row import Chat
from plumbline.models.load import end_tokens, load_base, load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.rollout.engine import NO_ADAPTER, Completion, Engine, Token, build_engine, completion
from plumbline.rollout.groups import Task

if TYPE_CHECKING:  # the driver imports this file too, and has no use for what it takes to run a model
    from peft import LoraConfig

    from plumbline.training.reward_model import RewardModel

POLL = 2.0  # seconds that an actor waits for something to report


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
        # A killed trainer's last poll takes nothing of another's.
        outbox = self._outboxes.setdefault(session, queue.SimpleQueue())
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
            while task.position < 0 and task.position in self._open:  # trainers wait for canaries: before the rest
                self._draw(self._engine)

    def _built(self, adapter: LoraConfig) -> Engine:
        if self._kind == "vllm":
            from plumbline.rollout.vllm_loading import build_vllm

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
            completions = [_completed(task.drawn[request.id]) for request in task.task.requests]
            self._outboxes.setdefault(self._session, queue.SimpleQueue()).put((task.task.position, completions))


@dataclass
class _Open:
    """A task that an engine works on."""

    task: Task
    drawn: dict[str, list[tuple[Token, int]]] = field(default_factory=dict)
    unfinished: int = field(init=False)

    def __post_init__(self) -> None:
        self.unfinished = len(self.task.requests)


def _completed(drawn: list[tuple[Token, int]]) -> Completion:
    return completion([token for token, _ in drawn], drawn[0][1], drawn[-1][1])


def lora_config(plain: dict[str, Any]) -> LoraConfig:
    """The configuration that `adapter_config.json` holds."""
    from peft import LoraConfig

    known = LoraConfig.__dataclass_fields__
    return LoraConfig(**{name: value for name, value in plain.items() if name in known and value is not None})


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
            from plumbline.training.reward_model import RewardModel

            self._model = RewardModel.load(self._reference)
            self._model.model.to(_device())
        fitting = [self._model.fits(chat) for chat in chats]
        rewards = iter(self._model.score([chat for chat, fits in zip(chats, fitting, strict=True) if fits]))
        return [next(rewards) if fits else None for fits in fitting]


def _device() -> str:
    """The GPU that Ray gave this actor, if any: others' can be seen too."""
    own = ray.get_runtime_context().get_accelerator_ids().get("GPU")
    return "cuda" if own and torch.cuda.is_available() else "cpu"
