"""An engine in a process of its own does what one in a thread does, and how either process ends is told or followed by the other."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing, closing, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file
from starlette.testclient import TestClient

from plumbline.errors import InvalidInput, PlumblineError
from plumbline.external import TINY, tiny_folder
from plumbline.models.reference import ModelReference
from plumbline.rollout.engine import Request, Sampling, Scored, Scoring, Token
from plumbline.serving.chat import ChatModel, ServedModel
from plumbline.serving.engine_process import HOST, EngineProcess, HostProcess
from plumbline.serving.engine_readers import EngineReaders
from plumbline.serving.http import create_app
from plumbline.serving.models import Models, load
from support.patience import PATIENCE, wait_for
from support.served import ENDLESS, endless_model

SERVED = ServedModel("tiny", ModelReference(TINY), max_tokens=2000)


@pytest.fixture(scope="module")
def apart() -> Iterator[EngineProcess]:
    engine = EngineProcess(SERVED, 4, 1.0, HostProcess())
    yield engine
    engine.close()
    engine._host.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """Answers as long as is asked for: the tiny model ends by itself after a few steps."""
    return ServedModel("endless", endless_model(tmp_path_factory.mktemp("models") / "endless"), ENDLESS)


def test_answers_and_scores_are_those_of_a_thread(apart: EngineProcess) -> None:
    near = ChatModel.load(SERVED, slots=4)
    requests = [Request(f"r{i}", tuple(range(5, 20 + i)), Sampling(seed=i, max_tokens=20, likeliest=2)) for i in range(6)]
    texts = [Scoring("a", (7, 8, 9), likeliest=1), Scoring("b", tuple(range(40)), 2)]

    async def run(engine: EngineReaders) -> tuple[list[list[Token]], list[Scored]]:
        async def answer(request: Request, stream: bool) -> list[Token]:
            return [token async for tokens in engine.tokens(request, stream=stream) for token in tokens]

        answers = await asyncio.gather(*(answer(request, i % 2 == 0) for i, request in enumerate(requests)))
        return answers, await engine.scores(texts)

    assert isinstance(near.engine, EngineReaders)
    (answers, scores), (expected, scored) = asyncio.run(run(apart)), asyncio.run(run(near.engine))
    # What is worked on together depends on the time, and the last digits on that.
    for one, other in zip(answers, expected, strict=True):
        assert [(t.token, t.finish_reason) for t in one] == [(t.token, t.finish_reason) for t in other]
        assert [t.logprob for t in one] == pytest.approx([t.logprob for t in other], abs=1e-4)
        assert [len(t.likeliest) for t in one] == [2] * len(one)
    for score, known in zip(scores, scored, strict=True):
        assert (score.request_id, score.greedy) == (known.request_id, known.greedy)
        assert score.logprobs == pytest.approx(known.logprobs, abs=1e-4)
    assert (apart.limits.max_length, apart.limits.max_scored, apart.limits.vocabulary) == (
        near.max_length,
        near.max_scored,
        near.vocabulary,
    )
    near.engine.close()


def test_what_the_engine_refuses_is_one_readers_matter(apart: EngineProcess) -> None:
    async def run() -> None:
        with pytest.raises(InvalidInput, match="token ids"):
            await anext(apart.tokens(Request("bad", (10**6,), Sampling(max_tokens=8)), stream=False))
        with pytest.raises(InvalidInput, match="token ids"):
            await apart.scores([Scoring("bad", (5, 10**6))])
        assert apart.running == 0

    asyncio.run(run())


def test_who_leaves_is_forgotten_and_closing_ends_the_process_and_wakes_who_waits(endless: ServedModel) -> None:
    engine = EngineProcess(endless, 1, 1.0, HostProcess())
    request = Request("r", (7,), Sampling(max_tokens=ENDLESS))

    async def run() -> None:
        for _ in range(3):  # an id that is not done would be refused, and there is but one slot
            async with aclosing(engine.tokens(request, stream=True)) as tokens:
                assert await anext(tokens)
                assert engine.running == 1
        assert engine.running == 0
        waiting = asyncio.create_task(anext(engine.tokens(request, stream=False)))
        while not engine.running:
            await asyncio.sleep(0)
        engine.close()
        with pytest.raises(PlumblineError, match="let go"):
            await waiting

    asyncio.run(run())
    assert engine._host.process.wait(PATIENCE) == 0
    assert engine.failure is None


def test_a_model_that_cannot_be_loaded_is_told_in_its_own_words(tmp_path: Path) -> None:
    broken = replace(SERVED, reference=ModelReference(str(tmp_path / "nowhere")))
    with closing(HostProcess()) as host, pytest.raises(InvalidInput, match="nowhere"):
        EngineProcess(broken, 4, 1.0, host)


def test_an_engine_that_is_killed_ends_its_answers_and_the_health_of_the_model(endless: ServedModel) -> None:
    model = ChatModel.load(endless, slots=1, host=HostProcess())
    engine = model.engine
    assert isinstance(engine, EngineProcess)

    async def run() -> None:
        async with aclosing(engine.tokens(Request("r", (7,), Sampling(max_tokens=ENDLESS)), stream=True)) as tokens:
            await anext(tokens)
            os.kill(engine._host.process.pid, signal.SIGTERM)  # as a whole group may get: nothing comes of it
            await anext(tokens)
            os.kill(engine._host.process.pid, signal.SIGKILL)
            with pytest.raises(PlumblineError, match="ended by signal 9"):
                async for _ in tokens:
                    pass

    asyncio.run(run())
    with TestClient(create_app(Models.of({"endless": model})), raise_server_exceptions=False) as client:
        chat = {"model": "endless", "messages": [{"role": "user", "content": "Hi"}]}
        failed = client.post("/v1/chat/completions", json=chat)
        assert failed.status_code == 500
        assert "ended by signal 9" in failed.json()["error"]["message"]
        assert client.get("/healthz").status_code == 503


def test_of_several_models_each_has_a_process_and_none_is_left_where_one_cannot_be_loaded(tmp_path: Path) -> None:
    def hosts() -> set[int]:
        found = set()
        for child in psutil.Process().children():
            with suppress(psutil.Error):  # it has ended
                found |= {child.pid} if HOST in child.cmdline() else set()
        return found

    before = hosts()
    loaded = load([SERVED, replace(SERVED, name="other")], slots=2)
    assert [model.served.name for model in loaded] == ["tiny", "other"]
    assert len(hosts() - before) == 2
    for model in loaded:
        model.engine.close()
    wait_for(lambda: not hosts() - before)
    broken = shutil.copytree(tiny_folder(), tmp_path / "broken")
    save_file({"other": torch.zeros(1)}, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidInput, match="do not fit"):
        load([SERVED, replace(SERVED, name="broken", reference=ModelReference(str(broken))), SERVED], slots=2)
    assert not hosts() - before


def test_a_replica_imports_nothing_that_runs_models() -> None:
    program = """
import sys
import plumbline.serving.application
from plumbline.external import TINY
from plumbline.models.encoder import is_encoder
from plumbline.models.load import load_tokenizer
from plumbline.models.reference import ModelReference

load_tokenizer(ModelReference(TINY)), is_encoder(ModelReference(TINY))
print({"transformers.modeling_utils", "peft"} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


PROGRAM = """
import sys
import plumbline.serving.engine_process as engine_process
from plumbline.external import TINY
from plumbline.models.reference import ModelReference
from plumbline.serving.chat import ServedModel

engine_process.HOST = sys.argv[1]
engine_process.EngineProcess(ServedModel("tiny", ModelReference(TINY), max_tokens=8), 2, 1.0, engine_process.HostProcess())
print("loaded", flush=True)
sys.stdin.read()
"""
LOADS_FOR_EVER = """
import time
from plumbline.serving import engine_host
engine_host.load_engine = lambda *_: print("loading", flush=True) or time.sleep(10_000)
engine_host.main()
"""


def has_ended(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):  # it may go between the two questions
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


@pytest.mark.parametrize(("host", "said"), [(HOST, "loaded"), ("loads_for_ever", "loading")])
def test_it_does_not_outlive_who_started_it(host: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "loads_for_ever.py").write_text(LOADS_FOR_EVER)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, host],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == said
        (child,) = psutil.Process(process.pid).children()
        process.kill()
    wait_for(lambda: has_ended(child))
