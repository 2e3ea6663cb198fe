"""Rewards that are asked of an endpoint: a real server that fails, stalls, limits and lies."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from aiohttp import web

from plumbline.api.stages.rewards import RewardSpec
from plumbline.data.synthesis.endpoint import Endpoint
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.rollout.rewards import judge as judge_module
from plumbline.rollout.rewards.judge import Judge
from plumbline.rollout.rewards.remote import RemoteReward
from plumbline.rollout.rewards.scorer import Answer, Scorer
from support.teacher import Body, Teacher, cut, prompt_of

PROMPT: Any = [{"role": "user", "content": "Say how long it is."}]
QUICK = [0.0] * 7
KEY = "k3y-of-the-endpoint"
Sent = tuple[int, dict[str, str], str]


def lengths(body: Body) -> Sent:
    """The right answer: the length of each."""
    return 200, {}, json.dumps({"rewards": [len(item["answer"]) for item in body["items"]]})


class Rewarder:
    """An endpoint on a thread of its own; `script` is sent before `lengths` begins."""

    def __init__(self, *script: Sent | Callable[[BaseHTTPRequestHandler], None]) -> None:
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        steps = iter(script)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.bodies.append(body)
                outer.headers.append(dict(self.headers))
                step = next(steps, lengths(body))
                if callable(step):
                    step(self)
                    return
                status, headers, text = step
                self.send_response(status)
                for name, content in {**headers, "Content-Length": str(len(text.encode()))}.items():
                    self.send_header(name, content)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/rewards"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


Start = Callable[..., Rewarder]


@pytest.fixture
def rewarder() -> Iterator[Start]:
    running = []

    def start(*script: Any) -> Rewarder:
        running.append(Rewarder(*script))
        return running[-1]

    yield start
    for server in running:
        server.close()


def ask(url: str, *replies: str, key: str | None = None, timeout: float = 20.0) -> list[float]:
    remote = RemoteReward(url, where="here", key=key, timeout=timeout, delays=QUICK)
    return remote.rewards(PROMPT, replies, "its reference")


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


def half(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.wfile.write(b'{"rewards": [1')
    handler.close_connection = True


def stall(handler: BaseHTTPRequestHandler) -> None:
    threading.Event().wait(1.0)
    handler.close_connection = True


def test_one_call_asks_for_all_answers_to_a_prompt(rewarder: Start) -> None:
    server = rewarder()
    assert ask(server.url, "a", "bcd", "", key=KEY) == [1, 3, 0]
    item = {"prompt": PROMPT, "answer": "bcd", "reference": "its reference"}
    assert [len(body["items"]) for body in server.bodies] == [3]
    assert server.bodies[0]["items"][1] == item
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "fault",
    [
        (500, {}, "oops"),
        (503, {"Retry-After": "0"}, ""),
        (429, {"Retry-After": "0.01"}, "slow down"),
        (408, {}, ""),
        (425, {}, ""),
        (200, {}, "not JSON"),
        hang_up,
        half,
    ],
)
def test_what_passes_is_tried_again(rewarder: Start, fault: Any) -> None:
    server = rewarder(fault, fault)
    assert ask(server.url, "ab") == [2]
    assert len(server.bodies) == 3


def test_a_call_that_stalls_is_tried_again(rewarder: Start) -> None:
    server = rewarder(stall)
    assert ask(server.url, "ab", timeout=0.3) == [2]


def test_an_endpoint_that_stalls_for_ever_is_given_up(rewarder: Start) -> None:
    server = rewarder(stall, stall, stall)
    with pytest.raises(PlumblineError, match=r"^here: http://.*: no whole answer in 0.1 s \(3 tries\)$"):
        ask(server.url, "ab", timeout=0.1)


@pytest.mark.parametrize(
    "lie",
    [
        "not JSON",
        "[]",
        "[1]",
        "{}",
        '{"rewards": null}',
        '{"rewards": 1}',
        '{"rewards": [1]}',
        '{"rewards": [1, 2, 3]}',
        '{"rewards": [1, "2"]}',
        '{"rewards": [1, null]}',
        '{"rewards": [1, true]}',
        '{"rewards": [1, NaN]}',
        '{"rewards": [1, Infinity]}',
        '{"rewards": [1, 1e999]}',
        '{"rewards": [1, 1' + "0" * 400 + "]}",
        '{"rewards": {"0": 1, "1": 1}}',
        "[" * 100_000,
    ],
)
def test_rewards_that_are_none_are_an_error_after_three_tries(rewarder: Start, lie: str) -> None:
    server = rewarder(*[(200, {}, lie)] * 3)
    with pytest.raises(
        PlumblineError, match=r"^here: .*\{\"rewards\": \[2 finite numbers\]\} was expected.*\(3 tries\)$"
    ) as caught:
        ask(server.url, "a", "b")
    assert len(server.bodies) == 3
    assert not isinstance(caught.value, InvalidInput)  # another attempt may find it mended


def test_an_endpoint_that_fails_for_ever_is_an_error(rewarder: Start) -> None:
    server = rewarder(*[(500, {}, f"broken: {KEY}")] * 8)
    with pytest.raises(PlumblineError, match=r"HTTP 500: broken: … \(8 tries\)"):
        ask(server.url, "a", key=KEY)
    assert len(server.bodies) == 8


def test_nobody_listening_is_an_error(rewarder: Start) -> None:
    server = rewarder()
    server.close()
    with pytest.raises(PlumblineError, match=r"^here: .*Connect.* \(8 tries\)"):
        ask(server.url, "a")
    server.close = lambda: None  # type: ignore[method-assign]


def test_a_wait_that_is_too_long_is_another_attempts_business(rewarder: Start) -> None:
    server = rewarder((429, {"Retry-After": "99999"}, "tomorrow"))
    with pytest.raises(PlumblineError, match="HTTP 429: tomorrow"):
        ask(server.url, "a")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ((401, {}, "who are you"), r"here\.keySecret: .* refuses the key: HTTP 401: who are you"),
        ((403, {}, ""), r"here\.keySecret: "),
        ((404, {}, "no such place"), r"here\.url: .* HTTP 404: no such place"),
        ((422, {}, "what is this"), r"here\.url: .* it must take POST"),
    ],
)
def test_what_will_be_as_wrong_the_next_time_is_asked_once(rewarder: Start, fault: Sent, message: str) -> None:
    server = rewarder(fault)
    with pytest.raises(InvalidInput, match=message):
        ask(server.url, "a", key=KEY)
    assert len(server.bodies) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_the_key_follows_no_redirect(rewarder: Start, status: int) -> None:
    other = rewarder()
    server = rewarder((status, {"Location": f"{other.url}?{KEY}"}, ""))
    with pytest.raises(InvalidInput, match=r"here\.url: .* redirects to .*\?…, where the key is not sent"):
        ask(server.url, "a", key=KEY)
    assert other.bodies == []


def test_the_scorer_reads_the_key_of_each_endpoint(rewarder: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMBLINE_REWARD_KEY", "first")
    monkeypatch.setenv("PLUMBLINE_REWARD_KEY_2", "second\n")
    one, two = rewarder(), rewarder()
    specs = [RewardSpec(type="http", url=server.url, key_secret="a-secret") for server in (one, two)]
    scorer = Scorer(specs, 9, "here", None)
    group = [Answer("abc", 1, False), Answer("d", 1, False)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: scorer.score(PROMPT, group, ""), range(8)))
    assert results == [[{"http": 3, "http-2": 3, "unscored": 0}, {"http": 1, "http-2": 1, "unscored": 0}]] * 8
    assert {h["Authorization"] for h in one.headers} == {"Bearer first"}
    assert {h["Authorization"] for h in two.headers} == {"Bearer second"}


Teach = Callable[..., Teacher]


@pytest.fixture
def teacher() -> Iterator[Teach]:
    running = []

    def start(*args: Any, **named: Any) -> Teacher:
        running.append(Teacher(*args, **named))
        return running[-1]

    yield start
    for server in running:
        server.close()


def rate(server: Teacher, *replies: str, rubric: str | None = None) -> list[float | None]:
    endpoint = Endpoint(server.url, "the-judge", where="here", key=KEY, timeout=20, remote=False, delays=QUICK)
    return Judge(endpoint, rubric).rewards(PROMPT, replies)


def test_a_judge_rates_from_0_to_1(teacher: Teach) -> None:
    server = teacher(lambda body: "Fine.\nRating: 4.5" if "ANSWER-A" in prompt_of(body) else "No.\nRating: 0")
    assert rate(server, "ANSWER-A", "ANSWER-B", rubric="how terse it is") == [0.9, 0.0]
    assert "Rate how terse it is." in prompt_of(server.bodies[0])
    assert "Say how long it is." in prompt_of(server.bodies[0])
    assert server.bodies[0]["model"] == "the-judge"
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_an_unreadable_verdict_is_asked_for_again(teacher: Teach) -> None:
    server = teacher(lambda body: "Rating: 5" if body["temperature"] else "It is nice.")
    assert rate(server, "ANSWER-A") == [1.0]
    assert len(server.bodies) == 2


def test_a_verdict_that_was_cut_is_not_read(teacher: Teach) -> None:
    verdict = {"choices": [{"message": {"content": "Rating: 5"}, "finish_reason": "length"}]}
    server = teacher(lambda body: verdict)
    assert rate(server, "ANSWER-A") == [None]
    assert len(server.bodies) == 3


def test_an_unscored_answer_is_neither_pushed_nor_pulled(teacher: Teach) -> None:
    def verdict(body: Body) -> str:
        text = prompt_of(body)
        return "Rating: 5" if "ANSWER-A" in text else "Rating: 2" if "ANSWER-B" in text else "I will not say."

    server = teacher(verdict)
    spec = RewardSpec(type="judge", url=server.url, model="the-judge")
    scorer = Scorer([spec], 9, "here", None)
    parts = scorer.score(PROMPT, [Answer(text, 1, False) for text in ("ANSWER-A", "ANSWER-B", "ANSWER-C")], "")
    assert parts == [{"judge": 1.0, "unscored": 0}, {"judge": 0.4, "unscored": 0}, {"judge": 0.7, "unscored": 1}]
    assert scorer.score(PROMPT, [Answer("ANSWER-C", 1, False)], "") == [{"judge": 0, "unscored": 1}]


def test_a_judge_that_never_rates_stops_the_run(teacher: Teach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_module, "UNREADABLE_IN_A_ROW", 4)
    server = teacher(lambda body: "It is nice.")
    with pytest.raises(
        PlumblineError, match="here: 4 answers in a row have no verdict, the last: unreadable verdict: …It is nice"
    ):
        rate(server, *"abcd")


def test_a_judge_that_is_not_there_stops_the_run(teacher: Teach) -> None:
    def broken(request: web.Request, body: Body, times: int) -> web.Response | None:
        if times % 2:
            return web.Response(status=502, text="bad gateway")
        cut(request)
        return None

    with pytest.raises(PlumblineError, match="here: the judge failed: "):
        rate(teacher(lambda body: "Rating: 5", fault=broken), "ANSWER-A")
    wrong = teacher(lambda body: "Rating: 5", fault=lambda *_: web.Response(status=401, text="no"))
    with pytest.raises(InvalidInput, match=r"here\.keySecret: .* refuses the key"):
        rate(wrong, "ANSWER-A")
