"""An engine in a process of its own does what one in a thread does, and how either process ends is told or followed by the other."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from starlette.testclient import TestClient

from plumbline.errors import InvalidInput, PlumblineError
from plumbline.external import TINY
from plumbline.models.reference import ModelReference
from plumbline.rollout.engine import Request, Sampling, Scoring
from plumbline.serving.chat import ChatModel, ServedModel
from plumbline.serving.engine_process import EngineProcess
from plumbline.serving.http import create_app
from plumbline.serving.models import Models

SERVED = ServedModel("tiny", ModelReference(TINY), max_tokens=2000)
PATIENCE = 60


@pytest.fixture(scope="module")
def apart() -> Iterator[EngineProcess]:
    engine = EngineProcess(SERVED, slots=4)
    yield engine
    engine.close()
    engine._process.wait(PATIENCE)


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def test_answers_and_scores_are_those_of_a_thread(apart: EngineProcess) -> None:
    near = ChatModel.load(SERVED, slots=4)
    requests = [Request(f"r{i}", tuple(range(5, 20 + i)), Sampling(seed=i, max_tokens=20, likeliest=2)) for i in range(6)]
    texts = [Scoring("a", (7, 8, 9), likeliest=1), Scoring("b", tuple(range(40)), 2)]

    async def run(engine: object) -> tuple[object, ...]:
        async def answer(request: Request, stream: bool) -> list[object]:
            return [token async for tokens in engine.tokens(request, stream=stream) for token in tokens]  # type: ignore[attr-defined]

        answers = await asyncio.gather(*(answer(request, i % 2 == 0) for i, request in enumerate(requests)))
        return answers, await engine.scores(texts)  # type: ignore[attr-defined]

    assert asyncio.run(run(apart)) == asyncio.run(run(near.engine))
    assert (apart.limits.max_length, apart.limits.max_scored, apart.limits.vocabulary) == (
        near.max_length,
        near.max_scored,
        near.vocabulary,
    )
    near.engine.close()


def test_what_the_engine_refuses_is_one_readers_matter_and_who_leaves_is_forgotten(apart: EngineProcess) -> None:
    async def run() -> None:
        with pytest.raises(InvalidInput, match="token ids"):
            await anext(apart.tokens(Request("bad", (10**6,), Sampling(max_tokens=8)), stream=False))
        with pytest.raises(InvalidInput, match="token ids"):
            await apart.scores([Scoring("bad", (5, 10**6))])
        async with aclosing(apart.tokens(Request("long", (7,), Sampling(max_tokens=1900)), stream=True)) as tokens:
            assert await anext(tokens)
            assert apart.running == 1
        # More than there are slots: they only get one if the one before has left its own.
        for number in range(8):
            async with aclosing(apart.tokens(Request(f"l{number}", (7,), Sampling(max_tokens=1900)), stream=True)) as tokens:
                assert await anext(tokens)
        assert apart.running == 0

    asyncio.run(run())


def test_a_model_that_cannot_be_loaded_is_told_in_its_own_words(tmp_path: Path) -> None:
    broken = replace(SERVED, reference=ModelReference(str(tmp_path / "nowhere")))
    with pytest.raises(InvalidInput, match="nowhere"):
        EngineProcess(broken, slots=4)


def test_an_engine_that_is_killed_ends_its_answers_and_the_health_of_the_model() -> None:
    model = ChatModel.load(SERVED, slots=4, apart=True)
    engine = model.engine
    assert isinstance(engine, EngineProcess)

    async def run() -> None:
        async with aclosing(engine.tokens(Request("r", (7,), Sampling(max_tokens=1900)), stream=True)) as tokens:
            await anext(tokens)
            os.kill(engine._process.pid, signal.SIGTERM)  # as a whole group may get: nothing comes of it
            await anext(tokens)
            os.kill(engine._process.pid, signal.SIGKILL)
            with pytest.raises(PlumblineError, match="ended by signal 9"):
                async for _ in tokens:
                    pass

    asyncio.run(run())
    with TestClient(create_app(Models.of({"tiny": model})), raise_server_exceptions=False) as client:
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
        failed = client.post("/v1/chat/completions", json=chat)
        assert failed.status_code == 500
        assert "ended by signal 9" in failed.json()["error"]["message"]
        assert client.get("/healthz").status_code == 503


def test_closing_it_ends_the_process_and_wakes_who_waits() -> None:
    engine = EngineProcess(SERVED, slots=4)

    async def run() -> None:
        waiting = asyncio.create_task(anext(engine.tokens(Request("r", (7,), Sampling(max_tokens=1900)), stream=False)))
        while not engine.running:
            await asyncio.sleep(0)
        engine.close()
        with pytest.raises(PlumblineError, match="let go"):
            await waiting

    asyncio.run(run())
    assert engine._process.wait(PATIENCE) == 0
    assert engine.failure is None


PROGRAM = """
import asyncio, json, sys
from plumbline.external import TINY
from plumbline.models.reference import ModelReference
from plumbline.rollout.engine import Request, Sampling
from plumbline.serving.chat import ServedModel
from plumbline.serving.engine_process import EngineProcess

async def main():
    engine = EngineProcess(ServedModel("tiny", ModelReference(TINY), max_tokens=2000), slots=2)
    tokens = engine.tokens(Request("r", (7,), Sampling(max_tokens=1900)), stream=True)
    await anext(tokens)
    print(json.dumps(engine._process.pid), flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


def test_it_does_not_outlive_who_started_it() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = psutil.Process(json.loads(process.stdout.readline()))
        process.kill()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
