"""The client against a real HTTP server that counts, delays and fails as the tests say."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from plumbline.errors import InvalidInput, PlumblineError
from plumbline.evaluation.benchmarks.benchmark import likelihoods
from plumbline.evaluation.client import Question, Sampling, ask
from plumbline.evaluation.journal import Journal, Reply

QUICK = (0.01, 0.02, 0.03)


class Endpoint:
    """An OpenAI-like endpoint on a thread of its own. It answers with the prompt in capitals."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.in_flight = self.most_in_flight = 0
        self.delay = 0.0
        self.failures: dict[str, list[tuple[int, Any]]] = {}
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(20)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        application = web.Application()
        application.router.add_post("/v1/chat/completions", self._answer)
        application.router.add_post("/v1/completions", self._score)
        runner = web.AppRunner(application)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        prompt = body["messages"][-1]["content"]
        self.asked[prompt] += 1
        self.bodies.append(body)
        if self.failures.get(prompt):
            status, answer = self.failures[prompt].pop(0)
            if status == 0:
                assert request.transport is not None
                request.transport.abort()
            return web.json_response(answer, status=status or 200)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        # Later questions answer sooner, so that order is the client's doing.
        await asyncio.sleep(self.delay if self.delay else 0.02 / len(self.bodies))
        self.in_flight -= 1
        message = {"role": "assistant", "content": prompt.upper()}
        return web.json_response({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    async def _score(self, request: web.Request) -> web.Response:
        """Tokens are characters, but "()" is one; each is as likely as e to the minus its place. `plain`: `echo_from` is not known."""
        body = await request.json()
        prompt = body["prompt"] if isinstance(body["prompt"], str) else body["prompt"][0]
        self.asked[prompt] += 1
        self.bodies.append(body)
        if self.failures.get(prompt):
            status, answer = self.failures[prompt].pop(0)
            return web.json_response(answer, status=status)
        if body["max_tokens"]:
            text = f"{body['prompt']}, and on"
            return web.json_response(
                {"choices": [{"index": 0, "text": text, "finish_reason": "length"}], "usage": {"prompt_tokens": 3}}
            )
        choices = []
        for index, prompt in enumerate(body["prompt"]):
            tokens = re.findall(r"\(\)|.", prompt, re.DOTALL)
            offsets = [len("".join(tokens[:i])) for i in range(len(tokens))]
            logprobs = [None, *(-float(i) for i in range(1, len(tokens)))]
            first = 0 if body["model"] == "plain" else len(re.findall(r"\(\)|.", prompt[: body["echo_from"]], re.DOTALL))
            told: dict[str, Any] = {
                "tokens": tokens[first:], "text_offset": offsets[first:], "token_logprobs": logprobs[first:]
            }  # fmt: skip
            if body["logprobs"]:  # an "x" is not the likeliest in its place
                top = [
                    {"?": -0.1} if token == "x" else {token: value} for token, value in zip(tokens, logprobs, strict=True)
                ]
                told["top_logprobs"] = [None, *top[1:]][first:]
            choices.append({"index": index, "text": "", "logprobs": told, "prompt_tokens_cut": int("cut" in prompt)})
        return web.json_response({"choices": choices[::-1]})


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    yield server
    server.close()


def question(text: str, model: str = "align", fingerprint: str = "f1", seed: int = 1) -> Question:
    return Question(model, fingerprint, [{"role": "user", "content": text}], Sampling(0.0, 16, seed))


def test_replies_keep_the_order_of_questions_and_concurrency_is_bounded(endpoint: Endpoint, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with Journal(str(tmp_path / "j")) as journal:
        replies = ask(
            endpoint.url,
            [question(f"q{i}") for i in range(30)],
            concurrency=4,
            journal=journal,
            on_reply=lambda done, total: seen.append((done, total)),
        )
    assert replies == [Reply(f"Q{i}", "stop") for i in range(30)]
    assert 2 <= endpoint.most_in_flight <= 4
    assert seen == [(i, 30) for i in range(31)]


def test_the_request_is_openais(endpoint: Endpoint, tmp_path: Path) -> None:
    with Journal(str(tmp_path)) as journal:
        ask(endpoint.url, [question("hello", seed=7)], concurrency=1, journal=journal)
    assert endpoint.bodies == [
        {
            "model": "align",
            "messages": [{"role": "user", "content": "hello"}],
            "stream": False,
            "temperature": 0.0,
            "max_tokens": 16,
            "seed": 7,
        }
    ]


def test_equal_questions_are_asked_once(endpoint: Endpoint, tmp_path: Path) -> None:
    asked = [question("same", "align"), question("same", "base"), question("same", "base", "f2"), question("same", seed=2)]
    with Journal(str(tmp_path)) as journal:
        assert len(ask(endpoint.url, asked, concurrency=4, journal=journal)) == 4
    assert endpoint.asked["same"] == 3  # another name alone is no other model


@pytest.mark.parametrize("status", [0, 429, 500, 503])
def test_passing_failures_are_tried_again(endpoint: Endpoint, tmp_path: Path, status: int) -> None:
    endpoint.failures["q"] = [(status, {"error": {"message": "not now"}})] * 2
    with Journal(str(tmp_path)) as journal:
        [reply] = ask(endpoint.url, [question("q")], concurrency=1, journal=journal, delays=QUICK)
    assert reply.text == "Q"
    assert endpoint.asked["q"] == 3


def test_lasting_failure_is_retryable_and_keeps_what_was_answered(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.failures["bad"] = [(503, {"error": {"message": "overloaded"}})] * 4
    with (
        pytest.raises(PlumblineError, match=r"model 'align' in 4 tries: HTTP 503: overloaded") as caught,
        Journal(str(tmp_path)) as journal,
    ):
        ask(endpoint.url, [question("good"), question("bad")], concurrency=1, journal=journal, delays=QUICK)
    assert not isinstance(caught.value, InvalidInput)
    with Journal(str(tmp_path)) as journal:
        ask(endpoint.url, [question("good"), question("bad")], concurrency=1, journal=journal)
    assert (endpoint.asked["good"], endpoint.asked["bad"]) == (1, 5)


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(PlumblineError, match="in 2 tries: ClientConnectorError"), Journal(str(tmp_path)) as journal:
        ask("http://127.0.0.1:9/v1", [question("q")], concurrency=1, journal=journal, delays=(0.01,))


def test_refusals_are_permanent(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.failures["q"] = [(404, {"error": {"message": "no model 'align'", "code": "model_not_found"}})]
    with pytest.raises(InvalidInput, match="HTTP 404: no model 'align'"), Journal(str(tmp_path)) as journal:
        ask(endpoint.url, [question("q")], concurrency=1, journal=journal)
    assert endpoint.asked["q"] == 1


TOO_LONG = (400, {"error": {"message": "too long", "code": "context_length_exceeded"}})


def test_an_answer_that_does_not_fit_gets_the_room_that_is_left(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.failures["q"] = [TOO_LONG]
    with Journal(str(tmp_path)) as journal:
        assert ask(endpoint.url, [question("q")], concurrency=1, journal=journal) == [Reply("Q", "stop")]
    assert ["max_tokens" in body for body in endpoint.bodies] == [True, False]


def test_a_prompt_that_is_too_long_is_an_empty_reply(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.failures["q"] = [TOO_LONG, TOO_LONG]
    with Journal(str(tmp_path)) as journal:
        assert ask(endpoint.url, [question("q")], concurrency=1, journal=journal) == [Reply("", "context_length_exceeded")]


def test_an_answer_of_another_form_is_shown(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.failures["q"] = [(200, {"hello": "world"})]
    with pytest.raises(PlumblineError, match=r"no chat completion .*hello"), Journal(str(tmp_path)) as journal:
        ask(endpoint.url, [question("q")], concurrency=1, journal=journal)


def choices(text: str, *continuations: str, model: str = "align") -> Question:
    return Question(model, model, [{"role": "user", "content": text}], Sampling(0.0, 16, 1), continuations)


@pytest.mark.parametrize("model", ["align", "plain"])
def test_choices_are_scored_in_one_request(endpoint: Endpoint, tmp_path: Path, model: str) -> None:
    asked = [choices("Q:", " a", " bc", model=model), question("q"), choices("end ", "x", model=model)]
    with Journal(str(tmp_path)) as journal:
        first, chat, spaced = ask(endpoint.url, asked, concurrency=2, journal=journal)
    assert likelihoods(first.text) == [-2 - 3, -2 - 3 - 4]
    assert (first.finish_reason, chat.text) == ("stop", "Q")
    assert likelihoods(spaced.text) == [-3 - 4]  # the space counts to the choice
    [body] = [body for body in endpoint.bodies if body.get("prompt", [""])[0] == "Q: a"]
    assert (body["prompt"], body["echo"], body["max_tokens"], body["echo_from"]) == (["Q: a", "Q: bc"], True, 0, 2)
    with Journal(str(tmp_path)) as journal:
        assert ask(endpoint.url, asked[:1], concurrency=1, journal=journal) == [first]
    assert endpoint.asked["Q: a"] == 1
    assert asked[0].key != choices("Q:", " a", " bd", model=model).key


@pytest.mark.parametrize("model", ["align", "plain"])
def test_choices_are_told_to_be_greedy_or_not(endpoint: Endpoint, tmp_path: Path, model: str) -> None:
    asked = replace(choices("Qx:", " a", " xa", model=model), greedy=True)
    with Journal(str(tmp_path)) as journal:
        [reply] = ask(endpoint.url, [asked], concurrency=1, journal=journal)
    assert json.loads(reply.text) == [[-3 - 4, True], [-3 - 4 - 5, False]]
    assert endpoint.bodies[0]["logprobs"] == 1
    assert asked.key != replace(asked, greedy=False).key


def test_plain_text_goes_on(endpoint: Endpoint, tmp_path: Path) -> None:
    asked = [replace(question(text), plain=True) for text in ("Once", "long")]
    endpoint.failures["long"] = [(400, {"error": {"message": "too long", "code": "context_length_exceeded"}})]
    with Journal(str(tmp_path)) as journal:
        first, _ = ask(endpoint.url, asked, concurrency=1, journal=journal)
    assert first == Reply("Once, and on", "length", 3)
    assert endpoint.bodies[0] == {
        "model": "align", "prompt": "Once", "stream": False, "temperature": 0.0, "max_tokens": 16, "seed": 1
    }  # fmt: skip
    assert (
        endpoint.bodies[-1]["truncate_prompt_tokens"] == -1
    )  # as in lm-evaluation-harness the beginning is lost, and not the answer
    assert asked[0].key != question("Once").key


def test_a_token_across_the_boundary_counts_to_the_choice(endpoint: Endpoint, tmp_path: Path) -> None:
    with Journal(str(tmp_path)) as journal:
        [reply] = ask(endpoint.url, [choices("f(", ")", "))", model="plain")], concurrency=1, journal=journal)
    assert likelihoods(reply.text) == [-1, -1 - 2]


def test_texts_that_are_too_long_lose_their_beginning_or_are_empty_replies(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.failures["long a"] = [(400, {"error": {"message": "too long", "code": "context_length_exceeded"}})]
    with Journal(str(tmp_path)) as journal:
        cut, empty = ask(endpoint.url, [choices("cut", "a"), choices("long ", "a")], concurrency=1, journal=journal)
    assert (cut.finish_reason, len(likelihoods(cut.text))) == ("context_cut", 1)
    assert empty == Reply("", "context_length_exceeded")


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": []},
        {"choices": [{"index": 0, "logprobs": None}]},
        {"choices": [{"index": 0, "logprobs": {"tokens": [], "text_offset": [], "token_logprobs": []}}]},
        {"choices": [{"index": 0, "logprobs": {"tokens": ["a"], "text_offset": [4], "token_logprobs": [None]}}]},
        {"choices": "x"},
        [],
    ],
)
def test_scores_of_another_form_are_shown(endpoint: Endpoint, tmp_path: Path, answer: Any) -> None:
    endpoint.failures["hm, a"] = [(200, answer)]
    with pytest.raises(PlumblineError, match="completion"), Journal(str(tmp_path)) as journal:
        ask(endpoint.url, [choices("hm,", " a")], concurrency=1, journal=journal)


def test_stop_strings_are_part_of_the_question(endpoint: Endpoint, tmp_path: Path) -> None:
    stopped = Question("align", "f1", [{"role": "user", "content": "q"}], Sampling(0.0, 16, 1, ("END",)))
    with Journal(str(tmp_path)) as journal:
        ask(endpoint.url, [stopped], concurrency=1, journal=journal)
    assert endpoint.bodies[0]["stop"] == ["END"]
    assert stopped.key != question("q").key


PROGRAM = """
import sys
from plumbline.evaluation.client import Question, Sampling, ask
from plumbline.evaluation.journal import Journal

questions = [Question("align", "f1", [{"role": "user", "content": f"q{i}"}], Sampling(0.0, 16, 1)) for i in range(40)]
with Journal(sys.argv[2]) as journal:
    ask(sys.argv[1], questions, concurrency=3, journal=journal, on_reply=lambda done, total: print(done, flush=True))
"""


def test_a_killed_evaluation_asks_nothing_twice(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.delay = 0.05
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, endpoint.url, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 8:
            break
    process.kill()
    process.wait()
    kept = [json.loads(line)["text"].lower() for path in tmp_path.glob("*.jsonl") for line in path.open()]
    assert 8 <= len(kept) < 40
    endpoint.delay = 0.0
    with Journal(str(tmp_path)) as journal:
        replies = ask(endpoint.url, [question(f"q{i}") for i in range(40)], concurrency=3, journal=journal)
    assert [reply.text for reply in replies] == [f"Q{i}" for i in range(40)]
    assert all(endpoint.asked[prompt] == 1 for prompt in kept)
    assert sum(endpoint.asked.values()) <= 40 + 3  # at most the requests in flight were lost


def test_journal_forgives_a_half_written_last_line_only(tmp_path: Path) -> None:
    with Journal(str(tmp_path)) as journal:
        journal.add("a", Reply("one\ntwo \ud800", "stop"))
        journal.add("b", Reply("three", "length"))
    [path] = tmp_path.glob("*.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with Journal(str(tmp_path)) as journal:
        assert journal.replies == {"a": Reply("one\ntwo \ud800", "stop")}
        journal.add("b", Reply("again", "stop"))
    assert Journal(str(tmp_path)).replies["b"].text == "again"
    path.write_bytes(b"x" + whole)
    with pytest.raises(PlumblineError, match=f"{path.name}:1: "):
        Journal(str(tmp_path))


def test_journal_in_a_store_that_cannot_append() -> None:
    uri = "memory://journal-test/checkpoints/f/replies"
    with Journal(uri) as journal:
        for i in range(70):
            journal.add(str(i), Reply(f"r{i}", "stop"))
        assert len(Journal(uri).replies) == 64
    assert Journal(uri).replies == {str(i): Reply(f"r{i}", "stop") for i in range(70)}
