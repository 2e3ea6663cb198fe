"""A replica's part in a release: who is answered by which model, what is counted, and that nothing which serves is put at risk."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from plumbline.api.stages.release import ReleaseJudgeSpec
from plumbline.external import TINY
from plumbline.models.reference import ModelReference
from plumbline.serving.chat import ChatModel, ServedModel
from plumbline.serving.metrics import Observed
from plumbline.serving.models import Models
from plumbline.serving.openai_requests import ChatCompletionRequest
from plumbline.serving.release.controller import Report, State
from plumbline.serving.release.record import Version
from plumbline.serving.release.replica import Release
from support.teacher import Teacher


def version(fingerprint: str) -> Version:
    reference = {"base": TINY, "fingerprint": fingerprint}
    return Version(fingerprint=fingerprint, model={"name": "m", "reference": reference, "max_tokens": 8})


A, B = version("a"), version("b")
FULL = State("full", A, None, 0, 0, None, "", 1)
CANARY = State("canary", A, B, 25, 0, None, "", 1)
SHADOW = State("shadow", A, B, 0, 100, None, "", 1)
PROMOTED = State("full", B, None, 0, 0, None, "", 1)
BODY = ChatCompletionRequest.model_validate(
    {"model": "m", "messages": [{"role": "user", "content": "Sort c a b."}], "max_tokens": 4}
)
SEEN = Observed("chat", "m", "a", "", 200, 1.0, None, 5, 4, 0, "stop", "I can't help with that.")


def load(version: Version) -> ChatModel:
    model = ChatModel.load(ServedModel("m", ModelReference(TINY), 8), slots=2)
    model.served = replace(model.served, reference=ModelReference(TINY, fingerprint=version.fingerprint))
    return model


class Replica:
    """One with a controller that says what it is told to."""

    def __init__(self) -> None:
        self.told: list[Report] = []
        self.answer: State | Exception = FULL
        self.models = Models.of({"m": load(A)})
        self.release = Release(FULL, self.models, load, self._tell)

    async def _tell(self, report: Report) -> State:
        self.told.append(report)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def goes_to(self, state: State) -> None:
        self.answer = state
        await self.release.exchange()

    async def model(self, user: str) -> str | None:
        found = await self.models.find(self.release.version("m", None, user))
        return found.served.reference.fingerprint


@pytest.fixture
def replica() -> Iterator[Replica]:
    made = Replica()
    yield made
    made.models.close()


def test_callers_are_chosen_once_the_candidate_is_loaded_and_all_have_it_at_the_end(replica: Replica) -> None:
    async def run() -> None:
        assert {await replica.model(f"u{i}") for i in range(40)} == {"a"}
        await replica.goes_to(CANARY)
        first = [await replica.model(f"u{i}") for i in range(200)]
        assert first.count("b") == pytest.approx(50, abs=20)
        await replica.goes_to(replace(CANARY, percent=60))
        second = [await replica.model(f"u{i}") for i in range(200)]
        assert all(now == "b" for before, now in zip(first, second, strict=True) if before == "b")
        assert [card.id for card in replica.models.cards()] == ["m", "m@b"]
        await replica.goes_to(PROMOTED)
        assert {await replica.model(f"u{i}") for i in range(40)} == {"b"}
        assert [card.id for card in replica.models.cards()] == ["m"]

    asyncio.run(run())


def test_what_is_counted_survives_a_controller_that_is_away(replica: Replica) -> None:
    async def run() -> None:
        replica.release.observe(SEEN)  # no release: nothing to compare
        await replica.goes_to(CANARY)
        replica.release.observe(SEEN)
        replica.release.observe(replace(SEEN, version="b", status=500, text=""))
        replica.release.observe(replace(SEEN, version="b", status=400))  # the client's fault
        replica.answer = ConnectionError("gone")
        with pytest.raises(ConnectionError):
            await replica.release.exchange()
        await replica.goes_to(CANARY)
        window = replica.told[-1].window
        assert (window.stable.answers, window.stable.refusals) == (1, 1)
        assert (window.candidate.requests, window.candidate.errors) == (1, 1)
        assert replica.told[-1].about == "b"
        assert "help" not in repr(replica.told)

    asyncio.run(run())


def test_a_shadow_answers_copies_and_nobody_sees_them(replica: Replica) -> None:
    async def run() -> None:
        await replica.goes_to(SHADOW)
        for body in (BODY, BODY.model_copy(update={"stream": True}), *[BODY] * 10):  # the last are too many at a time
            replica.release.mirror(body)
        assert await replica.model("u") == "a"
        while replica.release._shadows:
            await asyncio.gather(*replica.release._shadows)
        await replica.goes_to(SHADOW)
        told = replica.told[-1].window.candidate
        assert (told.requests, told.errors) == (4, 0)
        assert 4 <= told.tokens <= 16

    asyncio.run(run())


def test_a_judge_compares_the_shadow_with_the_model_before_in_both_orders(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLUMBLINE_JUDGE_KEY", "secret")
    judge = Teacher(lambda body: "1\nIt is better." if len(judge.bodies) == 1 else "Tie")
    with closing(judge):
        spec = ReleaseJudgeSpec(endpoint=judge.url, model="wise", key_secret="keys", percent=100)

        async def run() -> None:
            await replica.goes_to(replace(SHADOW, judge=spec))
            replica.release.mirror(BODY)
            await asyncio.gather(*replica.release._shadows)
            await replica.goes_to(SHADOW)

        asyncio.run(run())
        told = replica.told[-1].window.candidate
        assert (told.judged, told.requests) == (1, 1)
        assert told.wins == 0.75
        assert [header.get("Authorization") for header in judge.headers] == ["Bearer secret"] * 2
        assert all("Sort c a b." in str(body["messages"]) for body in judge.bodies)


def test_while_chats_are_copied_only_chats_are_compared(replica: Replica) -> None:
    async def run() -> None:
        for state, stable in ((SHADOW, 1), (CANARY, 2)):
            await replica.goes_to(state)
            replica.release.observe(SEEN)
            replica.release.observe(replace(SEEN, route="text", completion_tokens=1))
            await replica.goes_to(state)
            assert replica.told[-1].window.stable.requests == stable

    asyncio.run(run())


def test_a_replica_that_loads_a_model_is_heard_of(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    from plumbline.serving.release import replica as module

    monkeypatch.setattr(module, "ALIVE_SECONDS", 0.0)
    begun, heard = threading.Event(), threading.Event()

    def slow(version: Version) -> ChatModel:
        begun.set()
        assert heard.wait(60)
        return load(version)

    async def tell(report: Report) -> State:
        if begun.is_set():
            heard.set()
        return await replica._tell(report)

    replica.release = Release(FULL, replica.models, slow, tell)
    asyncio.run(replica.goes_to(CANARY))
    assert len(replica.told) > 1
    assert {(one.replica, one.loaded) for one in replica.told} == {(replica.release.replica, frozenset("a"))}


def test_a_candidate_whose_engine_fails_is_let_go_at_once(replica: Replica) -> None:
    async def run() -> None:
        await replica.goes_to(replace(CANARY, percent=100))
        model = await replica.models.find("m@b")
        assert isinstance(model, ChatModel)
        model.engine.failure = RuntimeError("out of memory")  # type: ignore[misc]
        await replica.release.exchange()
        assert replica.told[-1].failed == {"b": "its engine failed: out of memory"}
        assert await replica.model("u") == "a"
        replica.models.check()
        await replica.release.exchange()
        assert await replica.model("u") == "a"  # and it is not loaded again

    asyncio.run(run())
