"""Adapters of several runs on one copy of a base's weights: loaded when they are asked for, let go where memory is short."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from plumbline.api.base import ArtifactType
from plumbline.api.stages.serve import ServeSpec
from plumbline.artifacts import Artifact, Workspace
from plumbline.errors import InvalidInput, PlumblineError, one_line
from plumbline.models.load import adapter_type, end_tokens, load_base, load_tokenizer, stands_on
from plumbline.models.reference import ModelReference
from plumbline.plan import Plan
from plumbline.rollout.low_rank import LowRank
from plumbline.serving.chat import ChatModel, ServedModel
from plumbline.serving.engine_process import HostProcess
from plumbline.serving.engine_thread import AdapterEngine, EngineThread
from plumbline.serving.openai_answers import ModelCard, OpenAIError

log = logging.getLogger(__name__)

OWN_SHARE = 0.25  # of the memory for keys and values that is free goes to an adapter with an engine of its own
FAILED_SECONDS = 10.0  # for which a failure is told again without another try
ARTIFACT = re.compile(r"([A-Za-z]+)/([0-9a-f]{8,64})")
STAGE = re.compile(r"([a-z0-9][a-z0-9.-]*)/([a-z0-9][a-z0-9-]*)")


@dataclass(frozen=True)
class ServedAdapters:
    """The adapters of a deployment. Plain values.

    Attributes:
        base: what they stand on. Its name is empty where it is not served itself.
        identity: of the run's base model, as plans have it.
        models: those with names of their own.
        discover: whether every one in the base's workspace can be asked for.
        workspace: of the run.
        max_loaded, max_bytes: of one replica.
        max_rank: of an adapter.
    """

    base: ServedModel
    identity: str
    models: tuple[ServedModel, ...]
    discover: bool
    workspace: str
    max_loaded: int
    max_bytes: int
    max_rank: int

    @classmethod
    def of(cls, plan: Plan, stage: str) -> ServedAdapters | None:
        """What a `serve` stage says of adapters, if it does.

        Raises:
            InvalidInput: one has the name of the served model.
            PlumblineError: the model's artifact is not there.
        """
        spec = plan.graph[stage].spec
        assert isinstance(spec, ServeSpec)
        if spec.adapters is None:
            return None
        served = ServedModel.of(plan, stage)
        wanted, reference = spec.adapters, served.reference
        if served.name in (wanted.base_name, *(one.name for one in wanted.models)):
            raise InvalidInput(
                f"stage '{stage}' serves its model as '{served.name}', and `serve.adapters` has another of that name; "
                "give one of them another name (`serve.modelName` names the model)"
            )
        models = [
            ServedModel(
                one.name,
                replace(
                    reference, workspace=one.workspace or plan.workspace_uri, kind=one.kind, fingerprint=one.fingerprint
                ),
                spec.max_tokens,
            )
            for one in wanted.models
        ]
        return cls(
            base=ServedModel(wanted.base_name or "", reference, spec.max_tokens),
            identity=plan.identities[plan.run.spec.model.base],
            models=tuple(models),
            discover=wanted.discover,
            workspace=plan.workspace_uri,
            max_loaded=wanted.max_loaded,
            max_bytes=wanted.max_megabytes * 10**6,
            max_rank=wanted.max_rank,
        )


class Base:
    """The weights that adapters stand on, in one engine. `load` belongs to no thread, the rest to one event loop."""

    def __init__(self, adapters: ServedAdapters, slots: int, share: float = 1.0) -> None:
        """Load it.

        Args:
            adapters: what is to stand on it.
            slots: requests to work on at the same time, fewer where memory is short.
            share: part of the memory for keys and values that it may take.

        Raises:
            InvalidInput: it cannot be loaded.
        """
        from plumbline.serving.engine_loading import start_engine

        reference = adapters.base.reference
        bare = replace(reference, workspace=None, kind=None, fingerprint=None)
        self._identity, self._slots, self._max_rank = adapters.identity, slots, adapters.max_rank
        self._stands_on = self._standing(reference)
        self._model = load_base(reference)
        self.bytes = sum(parameter.nbytes for parameter in self._model.parameters())
        tokenizer = load_tokenizer(bare, chat=bool(adapters.base.name))
        self._end = end_tokens(tokenizer, self._model)
        engine, self._limits = start_engine(
            adapters.base.name, tokenizer, self._model, slots, share, adapter_rank=adapters.max_rank
        )
        self.max_length = self._limits.max_length
        self.engine = EngineThread(engine, adapters.base.name)
        self._served, self._tokenizer = replace(adapters.base, reference=bare), tokenizer

    def bare(self) -> ChatModel:
        """The base as a model of its own name."""
        return self._view(self._served, None, self._tokenizer)

    def load(self, served: ServedModel, share: float = OWN_SHARE) -> tuple[ChatModel, int]:
        """A model: an adapter of this base beside its weights, any other in an engine of its own.

        Args:
            served: what to load.
            share: part of the memory for keys and values that an engine of its own may take.

        Returns:
            The model, and the bytes that it takes for itself.

        Raises:
            InvalidInput: it cannot be loaded.
            PlumblineError: its artifact is gone or damaged.
        """
        tokenizer = load_tokenizer(served.reference)
        adapter = self._beside(served.reference, tokenizer)
        if isinstance(adapter, str):
            log.warning("model '%s' gets an engine of its own: %s", served.name, adapter)
            return ChatModel.load(served, self._slots, share, host=HostProcess()), self.bytes
        return self._view(served, adapter, tokenizer), adapter.bytes if adapter is not None else 0

    def check(self, reference: ModelReference) -> None:
        """Refuse what is no adapter of this base.

        Raises:
            InvalidInput: it is not.
            PlumblineError: its artifact is gone.
        """
        artifact = reference.artifact()
        assert artifact is not None
        name = f"{artifact.manifest['kind']}/{artifact.fingerprint}"
        if artifact.type is not ArtifactType.MODEL or not artifact.details.get("adapter"):
            raise InvalidInput(f"{name} is no adapter; serve it in a stage of its own")
        found = self._standing(reference)
        if found != self._stands_on:
            of = "" if found[0] != self._stands_on[0] else "weights or embedding rows that training made of "
            raise InvalidInput(
                f"{name} is an adapter of {of}{artifact.details.get('base')}, which is not what is served here; "
                "serve it in a stage of its own"
            )

    def _standing(self, reference: ModelReference) -> tuple[Any, ...]:
        """What a model's adapter stands on: equal for those of one base, wherever they lie."""
        artifact = reference.artifact()
        base = self._identity if artifact is None else artifact.details.get("baseIdentity")
        return base, *stands_on(reference)[2:]

    def _view(self, served: ServedModel, adapter: LowRank | None, tokenizer: Any) -> ChatModel:
        return ChatModel(served, tokenizer, AdapterEngine(self.engine, adapter), self._limits)

    def _beside(self, reference: ModelReference, tokenizer: Any) -> LowRank | str | None:
        """The model's adapter ready for the shared engine, None for the base itself, or why it cannot be there."""
        folder, mixing = reference.adapter_folder(), self.engine.mixing
        if self._standing(reference) != self._stands_on:
            return "it stands on other weights"
        if end_tokens(tokenizer, self._model) != self._end:
            return "its answers end with other tokens"
        if folder is None:
            return None
        if mixing is None:
            return "the engine of its base cannot mix adapters"
        if adapter_type(reference) != "LORA":
            return f"its adapter is {adapter_type(reference)}, not LORA"
        from peft import LoraConfig

        config = LoraConfig.from_pretrained(folder)
        if config.use_dora:
            return "DoRA changes the lengths of weights, which cannot be added beside them"
        adapter = mixing.prepare_adapter(config, load_file(folder / "adapter_model.safetensors"))
        if adapter.rank > self._max_rank:
            raise InvalidInput(f"its rank is {adapter.rank}, and adapters.maxRank {self._max_rank}; raise maxRank")
        return adapter


class Adapters:
    """Adapters by name. All methods belong to one event loop; loading is done in a thread, one at a time."""

    def __init__(self, served: ServedAdapters, base: Base) -> None:
        self._served, self._base = served, base
        self.known = {model.name: model for model in served.models}
        self._loaded: OrderedDict[str, tuple[ChatModel, int]] = OrderedDict()  # with bytes; the longest unused first
        self._loading: dict[str, asyncio.Task[ChatModel | None]] = {}
        self._failed: dict[str, tuple[float, OpenAIError]] = {}
        self._one_at_a_time = asyncio.Lock()
        self._created = int(time.time())

    async def find(self, name: str) -> ChatModel | None:
        """The model of this name, loaded if it is not; None: there is none.

        Raises:
            OpenAIError: 400: it is no adapter of this base; 503: it cannot be loaded now.
        """
        found = self._loaded.get(name)
        if found is not None:
            if found[0].engine.failure is None or self._base.engine.failure is not None:
                self._loaded.move_to_end(name)
                return found[0]
            self._let_go(name)  # it had an engine of its own
        when, error = self._failed.get(name, (0.0, None))
        if error is not None:
            if time.monotonic() - when < FAILED_SECONDS:
                raise _again(error)
            del self._failed[name]
        if name not in self._loading:
            self._loading[name] = asyncio.create_task(self._load(name))
        # Shielded: others may wait for it too when this reader leaves.
        return await asyncio.shield(self._loading[name])

    def loaded(self) -> list[ChatModel]:
        """Those in memory that work."""
        return [model for model, _ in self._loaded.values() if model.engine.failure is None]

    def cards(self) -> list[ModelCard]:
        """What is told of every adapter with a name of its own, and of those that were found."""
        found = {name: model.served for name, (model, _) in self._loaded.items()}
        return [self._card(served) for served in (self.known | found).values()]

    def card(self, name: str) -> ModelCard | None:
        """What is told of one; None: it is not known, though there may be one that was not asked for yet."""
        found = self._loaded.get(name)
        served = self.known.get(name) if found is None else found[0].served
        return None if served is None else self._card(served)

    def close(self) -> None:
        """End what is loaded."""
        for name in list(self._loaded):
            self._let_go(name)
        self._base.engine.close()

    def check(self) -> None:
        """Raises PlumblineError when the shared engine has failed."""
        self._base.engine.check()

    def _card(self, served: ServedModel) -> ModelCard:
        return ModelCard(
            id=served.name,
            created=self._created,
            fingerprint=served.reference.fingerprint,
            max_model_len=self._base.max_length,
            parent=self._served.base.name or self._served.base.reference.base,
            loaded=served.name in self._loaded,
        )

    async def _load(self, name: str) -> ChatModel | None:
        try:
            async with self._one_at_a_time:
                served = self.known.get(name) or await asyncio.to_thread(self._discovered, name)
                if served is None:
                    return None
                await asyncio.to_thread(self._base.check, served.reference)
                # Of one with an engine of its own it is too little; then what was let go for it comes after it.
                self._make_room(name, 0)
                began = time.perf_counter()
                model, size = await asyncio.to_thread(self._base.load, served)
                try:
                    self._make_room(name, size)
                except (OpenAIError, InvalidInput):
                    model.engine.close()
                    raise
                self._loaded[name] = model, size
                log.info("adapter '%s': loaded in %.2f s, %d bytes", name, time.perf_counter() - began, size)
                return model
        except Exception as error:  # a store's, a library's: whatever it is, the others are served on
            failure = _told(name, error)
            if failure.code != BUSY:
                now = time.monotonic()
                self._failed = {other: told for other, told in self._failed.items() if now - told[0] < FAILED_SECONDS}
                self._failed[name] = now, _again(failure)  # without a traceback: that would keep what was loaded in memory
            raise failure from error
        finally:
            del self._loading[name]

    def _make_room(self, name: str, size: int) -> None:
        """Let go of the longest unused until another of so many bytes has room; none that answers.

        Raises:
            OpenAIError: 503: those that answer leave no room.
            InvalidInput: it has no room even alone.
        """
        if size > self._served.max_bytes:
            raise InvalidInput(f"it takes {size} bytes, and adapters.maxMegabytes allows {self._served.max_bytes}; raise it")
        idle = [other for other, (model, _) in self._loaded.items() if not model.engine.running]
        while len(self._loaded) >= self._served.max_loaded or self._taken + size > self._served.max_bytes:
            if not idle:
                raise OpenAIError(
                    503,
                    f"The model '{name}' has no room beside the {len(self._loaded)} that answer now; try again soon.",
                    param="model",
                    code=BUSY,
                )
            self._let_go(idle.pop(0))

    @property
    def _taken(self) -> int:
        return sum(size for _, size in self._loaded.values())

    def _let_go(self, name: str) -> None:
        model, _ = self._loaded.pop(name)
        model.engine.close()

    def _discovered(self, name: str) -> ServedModel | None:
        """A model of the workspace, by its artifact or by run and stage."""
        if not self._served.discover:
            return None
        workspace, artifact = Workspace(self._served.workspace), None
        if match := ARTIFACT.fullmatch(name):
            artifact = workspace.find(match[1], match[2])
        if artifact is None and workspace.is_local and (match := STAGE.fullmatch(name)):
            artifact = _of_run(Path(workspace.path("runs", match[1], "run.json")), match[2])
        if artifact is None:
            return None
        reference = replace(
            self._served.base.reference,
            workspace=workspace.uri,
            kind=artifact.manifest["kind"],
            fingerprint=artifact.fingerprint,
        )
        return ServedModel(name, reference, self._served.base.max_tokens)


BUSY = "adapters_busy"


def _of_run(run_json: Path, stage: str) -> Artifact | None:
    if not run_json.is_file():
        return None
    try:
        plan = Plan.load(run_json)
    except InvalidInput as error:  # not the client's fault, nor its business where that lies
        raise PlumblineError(str(error)) from error
    if stage not in plan.fingerprints or plan.graph[stage].output is not ArtifactType.MODEL:
        return None
    return plan.artifact(stage)


def _again(error: OpenAIError) -> OpenAIError:
    """The same, raised nowhere yet."""
    return OpenAIError(error.status, error.message, param=error.param, code=error.code)


def _told(name: str, error: Exception) -> OpenAIError:
    """What a client is told. What is wrong with a store goes to the log alone: it names folders."""
    if isinstance(error, OpenAIError):
        return error
    log.warning("adapter '%s' cannot be loaded: %s", name, one_line(error))
    if isinstance(error, InvalidInput):
        message = f"The model '{name}' cannot be loaded: {one_line(error)}"
        return OpenAIError(400, message, param="model", code="model_not_loadable")
    known = isinstance(error, (PlumblineError, OSError, json.JSONDecodeError))
    message = f"The model '{name}' cannot be loaded now; the log says why."
    return OpenAIError(503 if known else 500, message, param="model", code="model_not_loadable")
