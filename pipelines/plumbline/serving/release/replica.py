"""The release in one replica: which model answers a request, figures of the answers, and copies of requests for a shadow."""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol

from plumbline.api.stages.release import ReleaseJudgeSpec
from plumbline.data.row import Chat
from plumbline.errors import PlumblineError
from plumbline.evaluation.metrics.refusal import Reaction, reaction_to
from plumbline.serving import chat_completions
from plumbline.serving.chat import ChatModel
from plumbline.serving.metrics import Observed
from plumbline.serving.models import AnyModel, Models
from plumbline.serving.openai_requests import ChatCompletionRequest
from plumbline.serving.release.controller import Report, State
from plumbline.serving.release.figures import Figures, Window
from plumbline.serving.release.judging import Judge
from plumbline.serving.release.record import Version
from plumbline.serving.release.routing import chosen

log = logging.getLogger(__name__)

REPORT_SECONDS = 1.0
ALIVE_SECONDS = 5.0  # between two reports while a model is loaded
SHADOWS = 4  # copies under way; more are dropped
SHADOW_SECONDS = 300.0
RETIRED_SECONDS = 60.0  # that a model is kept for requests that found it and have not reached its engine yet
SAID = 2000  # characters of an answer that are looked at for a refusal


class Caller(Protocol):
    """Who asks, as admission knows it."""

    digest: str


class Release:
    """One replica's part. Methods belong to one event loop.

    The stable version has the public name among the models, the candidate `NAME@FINGERPRINT`: by that name it can be asked for.

    Args:
        state: what is served; its stable version is loaded.
        models: all models of the replica.
        load: loads a version; called in a thread.
        tell: brings a report to the controller, and the state back.
    """

    def __init__(
        self,
        state: State,
        models: Models,
        load: Callable[[Version], AnyModel],
        tell: Callable[[Report], Coroutine[Any, Any, State]],
    ) -> None:
        self._models, self._load, self._tell = models, load, tell
        self.replica = uuid.uuid4().hex
        self._state = state
        self._served = state.stable  # what has the public name here
        self._candidate: Version | None = None  # what is loaded beside it
        self._beside: AnyModel | None = None
        self._failed: dict[str, str] = {}
        self._window = Window()
        self._shadows: set[asyncio.Task[None]] = set()
        self._retired: list[tuple[float, AnyModel]] = []

    def version(self, name: str, caller: Caller | None, user: str | None) -> str:
        """The name of the model that answers: of the candidate for callers that are chosen.

        Args:
            name: that the request asks for.
            caller: the API key, where there are keys.
            user: that the request names. Without either each request is chosen for itself.
        """
        candidate = self._candidate
        if candidate is None or name != self._served.name or self._state.candidate != candidate:
            return name
        who = caller.digest if caller is not None else user if user else uuid.uuid4().hex
        return _name_beside(candidate) if chosen(who, self._state.percent, candidate.fingerprint) else name

    def observe(self, observed: Observed) -> None:
        """Count a finished request."""
        candidate = self._candidate
        if candidate is None or observed.route == "embeddings" or observed.model != self._served.name:
            return
        if not (observed.ok or observed.failed):
            return  # the client's fault, or it left
        if self._state.phase == "shadow" and observed.route != "chat":
            return  # only chats are copied: like is compared with like
        seconds = observed.seconds if observed.first_token_seconds is None else observed.first_token_seconds
        figures = _figures(observed.completion_tokens, observed.text, seconds) if observed.ok else Figures.of_error()
        if observed.version == candidate.answers_as:
            self._window += Window(candidate=figures)
        elif observed.version == self._served.answers_as:
            self._window += Window(stable=figures)

    def mirror(self, body: ChatCompletionRequest) -> None:
        """Let the candidate answer a copy of a request in the background, if it is its turn and there is room."""
        share = self._state.shadow_percent / 100
        if self._candidate is None or body.model != self._served.name or random.random() >= share:
            return
        if len(self._shadows) < SHADOWS and isinstance(self._beside, ChatModel):
            task = asyncio.get_running_loop().create_task(self._shadow(self._candidate, self._beside, body))
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)

    async def _shadow(self, candidate: Version, model: ChatModel, body: ChatCompletionRequest) -> None:
        began, first, text = time.perf_counter(), None, ""
        try:
            async with asyncio.timeout(SHADOW_SECONDS):
                requests = await asyncio.to_thread(model.read, body)
                if body.stream:
                    tokens = 0
                    async for chunk in chat_completions.stream(model, body, requests):
                        for choice in chunk.choices:
                            said = choice.delta.content or ""
                            first = first or (time.perf_counter() - began if said else None)
                            text += said if choice.index == 0 else ""
                        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
                else:
                    whole = await chat_completions.complete(model, body, requests)
                    text, tokens = whole.choices[0].message.content or "", whole.usage.completion_tokens
            figures = _figures(tokens, text, first or time.perf_counter() - began)
        except Exception as error:  # also a refusal: what the stable version answers the candidate must answer too
            log.warning("release: a copy of a request failed: %s", type(error).__name__)
            figures = Figures.of_error()
        if self._candidate == candidate:
            self._window += Window(candidate=figures)
        judge = self._state.judge
        if judge is not None and figures.answers and random.random() < judge.percent / 100:
            await self._judged(judge, candidate, body, text)

    async def _judged(self, spec: ReleaseJudgeSpec, candidate: Version, body: ChatCompletionRequest, text: str) -> None:
        """Have a judge compare the candidate's answer with one of the stable version."""
        try:
            stable = await self._models.find(self._served.name)
            assert isinstance(stable, ChatModel)
            whole = await chat_completions.complete(stable, body, await asyncio.to_thread(stable.read, body))
            chat: Chat = [{"role": turn.role, "content": turn.content or ""} for turn in body.messages]
            won = await Judge(spec).win(chat, text, whole.choices[0].message.content or "")
        except Exception as error:  # of the judge, not of the candidate: without verdicts the shadow does not end
            log.warning("release: no verdict: %s", str(error) if isinstance(error, PlumblineError) else type(error).__name__)
            return
        if won is not None and self._candidate == candidate:
            self._window += Window(candidate=Figures(judged=1, wins=won))

    async def follow(self) -> None:
        """Report and obey for ever; while the controller is away, all stays as it is."""
        while True:
            try:
                await self.exchange()
            except Exception as error:  # a dead actor, a lost node …: Ray brings it back
                log.warning("release: the controller does not answer: %s", error)
            await asyncio.sleep(REPORT_SECONDS)

    async def exchange(self) -> None:
        """One report; then what is to be served is loaded, and what is not is let go."""
        self._look_after_candidate()
        told, self._window = self._window, Window()
        about = self._candidate.fingerprint if self._candidate else None
        chats = self._beside is None or isinstance(self._beside, ChatModel)
        try:
            self._state = await self._tell(Report(self.replica, about, told, self._has, dict(self._failed), chats))
        except BaseException:
            self._window = told + self._window
            raise
        await self._obey(self._state)
        self._close_retired()

    @property
    def _has(self) -> frozenset[str]:
        """Fingerprints of what is loaded."""
        return frozenset(one.fingerprint for one in (self._served, self._candidate) if one)

    def _look_after_candidate(self) -> None:
        """A candidate whose engine has failed is let go at once: it must not take the replica with it."""
        if self._candidate is None or self._beside is None or self._beside.engine.failure is None:
            return
        self._failed[self._candidate.fingerprint] = f"its engine failed: {self._beside.engine.failure}"[:500]
        self._models.take(_name_beside(self._candidate)).engine.close()
        self._candidate = self._beside = None

    async def _obey(self, state: State) -> None:
        if state.stable.fingerprint != self._served.fingerprint:
            await self._serve(state.stable)
        if self._candidate is not None and self._candidate != state.candidate:
            self._retire(self._models.take(_name_beside(self._candidate)))
            self._candidate = self._beside = None
        wanted = state.candidate
        if wanted is not None and self._candidate is None and wanted.fingerprint not in self._failed:
            model = await self._loaded(wanted)
            if model is not None:
                self._models.put(_name_beside(wanted), model)
                self._candidate, self._beside, self._window = wanted, model, Window()
        if state.candidate is None:
            self._failed.clear()

    async def _serve(self, version: Version) -> None:
        """Give a version the public name."""
        if self._candidate is not None and self._candidate.fingerprint == version.fingerprint:
            model: AnyModel | None = self._models.take(_name_beside(self._candidate))
            self._candidate = self._beside = None
        else:
            model = await self._loaded(version)
        if model is None:
            raise PlumblineError(f"what everyone else serves cannot be loaded here: {self._failed[version.fingerprint]}")
        before, self._served = self._served, version
        replaced = self._models.put(version.name, model)
        self._retire(replaced if replaced is not None else self._models.take(before.name))
        log.info("release: %s answers as '%s'", version.fingerprint, version.name)

    async def _loaded(self, version: Version) -> AnyModel | None:
        loading = asyncio.ensure_future(asyncio.to_thread(self._load, version))
        while not (await asyncio.wait({loading}, timeout=ALIVE_SECONDS))[0]:
            with suppress(Exception):  # what is to be served is heard with the next report
                await self._tell(Report(self.replica, None, Window(), self._has, dict(self._failed)))
        try:
            return await loading
        except Exception as error:  # a wrong model, and whatever a library says of it: nothing that serves is touched
            log.warning("release: %s cannot be loaded: %s", version.fingerprint, error)
            self._failed[version.fingerprint] = f"{type(error).__name__}: {error}"[:500]
            return None

    def _retire(self, model: AnyModel) -> None:
        self._retired.append((time.monotonic(), model))

    def _close_retired(self) -> None:
        """End engines that have nothing left to do."""
        now = time.monotonic()
        over = [model for since, model in self._retired if now - since > RETIRED_SECONDS and not model.engine.running]
        self._retired = [one for one in self._retired if one[1] not in over]
        for model in over:
            model.engine.close()


def _name_beside(candidate: Version) -> str:
    """Name of the candidate among the models."""
    return f"{candidate.name}@{candidate.fingerprint}"


def _figures(tokens: int, text: str, seconds: float) -> Figures:
    return Figures.of_answer(tokens, reaction_to(text[:SAID]) is Reaction.REFUSAL, seconds)
