"""Calls to a real HTTP server that counts, fails, lies and talks rubbish."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from plumbline.data.synthesis import tokens
from plumbline.data.synthesis.budget import Budget
from plumbline.data.synthesis.calls import FAILURES_IN_A_ROW, Calls, worst
from plumbline.data.synthesis.endpoint import FAILED, Endpoint, key_of
from plumbline.data.synthesis.pace import Pace
from plumbline.data.synthesis.program import SPENT, Request, Sampling, ask
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.evaluation.journal import Journal, Reply
from support.teacher import Body, Fault, Teacher, completion, cut, half_reply, prompt_of

QUICK = (0.01, 0.02, 0.03)
Serve = Callable[..., Teacher]


def shout(body: Body) -> str:
    return prompt_of(body).upper()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts teachers, and stops them in the end."""
    running: list[Teacher] = []

    def start(answer: Callable[[Body], str | Body] = shout, **options: Any) -> Teacher:
        running.append(Teacher(answer, **options))
        return running[-1]

    yield start
    for teacher in running:
        teacher.close()


def question(text: str, seed: int = 0, max_tokens: int = 64, judge: bool = False) -> Request:
    return ask(text, Sampling(0.5, max_tokens, seed), judge=judge)


def asked(
    teacher: Teacher,
    requests: list[Request],
    folder: Path,
    *,
    concurrency: int = 8,
    budget: int | None = None,
    calls: Callable[[Calls], None] = lambda calls: None,
    **options: Any,
) -> list[Reply]:
    endpoint = Endpoint(teacher.url, "wise", where="spec.teacher", **{"delays": QUICK, "timeout": 20.0, **options})
    with Journal(str(folder)) as journal:
        return asked_with(lambda judge: endpoint, journal, requests, concurrency, budget, calls)


def asked_with(
    endpoint: Callable[[bool], Endpoint],
    journal: Journal,
    requests: list[Request],
    concurrency: int = 8,
    budget: int | None = None,
    calls: Callable[[Calls], None] = lambda calls: None,
) -> list[Reply]:
    with Calls(endpoint, ("teacher", "judge"), journal, Budget(budget), concurrency) as caller:
        replies = caller.ask(requests)
        calls(caller)
    return replies


def texts(replies: list[Reply]) -> list[str]:
    return [reply.text for reply in replies]


def test_replies_keep_the_order_of_requests_and_concurrency_is_bounded(serve: Serve, tmp_path: Path) -> None:
    teacher = serve(delay=lambda count: 0.05 / count)
    replies = asked(teacher, [question(f"q{i}") for i in range(30)], tmp_path, concurrency=4)
    assert texts(replies) == [f"Q{i}" for i in range(30)]
    assert 2 <= teacher.most_in_flight <= 4
    assert {(reply.prompt_tokens, reply.completion_tokens, reply.problem) for reply in replies} == {(1, 1, None)}


def test_the_request_is_openais_and_the_key_a_bearer_token(serve: Serve, tmp_path: Path) -> None:
    teacher = serve()
    asked(teacher, [question("hello", seed=7)], tmp_path, key="secret")
    assert teacher.bodies == [
        {
            "model": "wise",
            "messages": [{"role": "user", "content": "hello"}],
            "stream": False,
            "temperature": 0.5,
            "max_tokens": 64,
            "seed": question("hello", seed=7).seed,
            "top_p": 1.0,
        }
    ]
    assert teacher.headers[0]["Authorization"] == "Bearer secret"
    assert "secret" not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_equal_requests_are_one_call_and_count_once(serve: Serve, tmp_path: Path) -> None:
    teacher, seen = serve(), []
    requests = [question("a"), question("a"), question("a", seed=1), question("a", judge=True)]

    def look(calls: Calls) -> None:
        calls.ask(requests)
        seen.append((calls.budget.spent, dict(calls.counts)))

    replies = asked(teacher, requests, tmp_path, calls=look)
    assert texts(replies) == ["A"] * 4
    assert len(teacher.bodies) == 3  # the same words to teacher and judge are two questions
    assert seen == [
        (
            6,
            {
                **{"teacher calls": 2, "teacher prompt tokens": 2, "teacher answer tokens": 2},
                **{"judge calls": 1, "judge prompt tokens": 1, "judge answer tokens": 1},
            },
        )
    ]


def test_teacher_and_judge_are_two_endpoints_and_neither_is_reached_without_need(serve: Serve, tmp_path: Path) -> None:
    teacher, judge = serve(), serve(lambda body: "Rating: 4")
    used: list[bool] = []

    def endpoint(of_judge: bool) -> Endpoint:
        used.append(of_judge)
        return Endpoint((judge if of_judge else teacher).url, "m", where="x")

    requests = [question("a"), question("b", judge=True)]
    for expected in ({False, True}, set()):
        used.clear()
        with Journal(str(tmp_path)) as journal:
            assert texts(asked_with(endpoint, journal, requests)) == ["A", "Rating: 4"]
        assert set(used) == expected


def status(code: int, body: Any = None, first: int = 99, only: str = "", **headers: str) -> Fault:
    """Answer with this status the first times; only prompts that begin with `only`."""

    def fault(request: web.Request, asked: Body, times: int) -> web.Response | None:
        if times > first or not prompt_of(asked).startswith(only):
            return None
        return web.json_response(body or {"error": {"message": "not now"}}, status=code, headers=headers)

    return fault


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 529])
def test_passing_failures_are_tried_again(serve: Serve, tmp_path: Path, code: int) -> None:
    teacher = serve(fault=status(code, first=3))
    assert texts(asked(teacher, [question("q")], tmp_path)) == ["Q"]
    assert len(teacher.bodies) == 4


def test_tries_that_fail_are_told_in_the_log_but_not_each(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked(serve(fault=status(503, first=3)), [question("q")], tmp_path)
    assert capsys.readouterr().out == "spec.teacher: HTTP 503: not now; trying again\n"


@pytest.mark.parametrize("how", ["broken", "half", "slow"])
def test_connections_that_break(serve: Serve, tmp_path: Path, how: str) -> None:
    def fault(request: web.Request, body: Body, times: int) -> web.StreamResponse | None:
        if times > 2:
            return None
        if how == "broken":
            cut(request)
        return half_reply(request)

    if how == "slow":
        teacher, timeout = serve(delay=lambda count: 30.0 if count <= 2 else 0.0), 2.0
    else:
        teacher, timeout = serve(fault=fault), 20.0
    assert texts(asked(teacher, [question("q")], tmp_path, timeout=timeout)) == ["Q"]
    assert len(teacher.bodies) == 3


def test_a_call_that_never_ends_is_given_up_after_three_tries(serve: Serve, tmp_path: Path) -> None:
    teacher = serve(delay=lambda count: 30.0)
    (reply,) = asked(teacher, [question("q")], tmp_path, timeout=2.0)
    assert reply.problem == FAILED
    assert reply.text == "no whole answer in 2 s (3 tries)"
    assert len(teacher.bodies) == 3


def test_a_redirect_is_not_followed_with_the_key(serve: Serve, tmp_path: Path) -> None:
    other = serve()

    def fault(request: web.Request, body: Body, times: int) -> web.Response:
        return web.Response(status=307, headers={"Location": f"{other.url}/chat/completions"})

    teacher = serve(fault=fault)
    with pytest.raises(InvalidInput, match=r"spec\.teacher\.endpoint: .* redirects to http.*; give the base URL"):
        asked(teacher, [question("q")], tmp_path, key="secret")
    assert not other.bodies


def test_retry_after_silences_everybody_and_is_no_failed_try(serve: Serve, tmp_path: Path) -> None:
    teacher = serve(fault=status(429, first=5, only="q0", **{"Retry-After": "0.05"}))
    replies = asked(teacher, [question(f"q{i}") for i in range(4)], tmp_path, delays=(0.01,), concurrency=1)
    assert texts(replies) == ["Q0", "Q1", "Q2", "Q3"]
    assert len(teacher.bodies) == 4 + 5


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (status(429, **{"Retry-After": "86400"}), "asks to wait 86400 s"),
        (status(429, {"error": {"message": "no credit", "code": "insufficient_quota"}}), "no credit"),
        (status(402, {"error": {"message": "pay first"}}), "pay first"),
    ],
)
def test_what_takes_long_is_another_attempts_business(serve: Serve, tmp_path: Path, fault: Fault, words: str) -> None:
    teacher = serve(fault=lambda request, body, times: fault(request, body, times) if prompt_of(body) == "bad" else None)
    requests = [question("good"), question("bad"), question("never")]
    with pytest.raises(PlumblineError, match=words) as caught:
        asked(teacher, requests, tmp_path, concurrency=1)
    assert not isinstance(caught.value, InvalidInput)
    assert [prompt_of(body) for body in teacher.bodies] == ["good", "bad"]
    assert [reply.text for reply in Journal(str(tmp_path)).replies.values()] == ["GOOD"]


@pytest.mark.parametrize(
    ("code", "words"),
    [(401, r"spec.teacher.keySecret: .* refuses the key: HTTP 401: bad … here"), (404, r"has no model 'wise': HTTP 404")],
)
def test_what_no_call_can_do_is_permanent_and_shows_no_key(serve: Serve, tmp_path: Path, code: int, words: str) -> None:
    teacher = serve(fault=status(code, {"error": {"message": "bad sk-123 here"}}))
    with pytest.raises(InvalidInput, match=words) as caught:
        asked(teacher, [question("q")], tmp_path, key="sk-123")
    assert "sk-123" not in str(caught.value)


def test_refusals_concern_one_prompt_once_anything_was_answered(serve: Serve, tmp_path: Path) -> None:
    teacher = serve(fault=status(400, {"error": {"message": "unsafe"}}, only="bad"))
    requests = [question("good"), *(question(f"bad{i}") for i in range(2 * FAILURES_IN_A_ROW)), question("fine")]
    replies = asked(teacher, requests, tmp_path, concurrency=1)
    assert {reply.problem for reply in replies[1:-1]} == {"refused by the teacher"}
    assert texts(replies)[::21] == ["GOOD", "FINE"]
    assert len(teacher.bodies) == len(requests)  # no refusal is asked again


def test_an_endpoint_that_refuses_everything_is_wrong(serve: Serve, tmp_path: Path) -> None:
    teacher = serve(fault=status(400, {"error": {"message": "seed is not supported"}}))
    with pytest.raises(InvalidInput, match=r"spec\.teacher: 10 calls in a row failed, .*seed is not supported"):
        asked(teacher, [question(f"q{i}") for i in range(50)], tmp_path, concurrency=1)
    assert len(teacher.bodies) == FAILURES_IN_A_ROW


def test_prompts_that_do_not_fit_never_stop_the_others(serve: Serve, tmp_path: Path) -> None:
    error = {"error": {"message": "too long", "code": "context_length_exceeded"}}
    teacher = serve(fault=status(400, error, only="long"))
    replies = asked(teacher, [*(question(f"long{i}") for i in range(15)), question("q")], tmp_path, concurrency=1)
    assert [reply.problem for reply in replies] == ["does not fit the teacher's context"] * 15 + [None]


def test_a_dead_endpoint_stops_the_stage_and_keeps_what_came(serve: Serve, tmp_path: Path) -> None:
    teacher = serve(fault=status(503, only="bad"))
    requests = [*(question(f"good{i}") for i in range(5)), *(question(f"bad{i}") for i in range(40))]
    with pytest.raises(
        PlumblineError, match=r"10 calls in a row failed, the last: the teacher failed: HTTP 503.*run again to go on"
    ) as caught:
        asked(teacher, requests, tmp_path, concurrency=2)
    assert not isinstance(caught.value, InvalidInput)
    assert len(Journal(str(tmp_path)).replies) == 5
    teacher.fault = lambda request, body, times: None
    before = len(teacher.bodies)
    assert texts(asked(teacher, requests, tmp_path)) == [request.messages[0]["content"].upper() for request in requests]
    assert len(teacher.bodies) - before == 40


def test_single_failures_are_counted_and_left_for_another_time(serve: Serve, tmp_path: Path) -> None:
    teacher = serve(fault=status(500, only="q3"))
    replies = asked(teacher, [question(f"q{i}") for i in range(9)], tmp_path)
    assert [reply.problem for reply in replies].count("the teacher failed") == 1
    assert len(Journal(str(tmp_path)).replies) == 8


def test_nobody_listens(serve: Serve, tmp_path: Path) -> None:
    teacher = serve()
    teacher.url = "http://127.0.0.1:9/v1"
    [reply] = asked(teacher, [question("q")], tmp_path, delays=(0.01,))
    assert reply.problem == "the teacher failed"
    assert "Cannot connect" in reply.text
    for teacher.url in ("http://[nonsense", "http://host..name/v1", f"http://{'a' * 300}/v1"):
        with pytest.raises(InvalidInput, match=r"spec\.teacher\.endpoint: .* is no URL"):
            asked(teacher, [question("q")], tmp_path)


RUBBISH: list[Any] = [
    "<html><body>502 Bad Gateway</body></html>",
    "",
    "null",
    "[]",
    '"text"',
    "{}",
    '{"choices": []}',
    '{"choices": [{"message": null}]}',
    '{"choices": [{"message": {"content": 7}}]}',
    '{"choices": "none"}',
    '{"choices": [{"message": {"content": "cut',
    "[" * 100_000,
    b"\xff\xfe\x00",
]


@pytest.mark.parametrize("text", RUBBISH, ids=lambda text: repr(text)[:24])
def test_rubbish_is_asked_again_a_few_times_then_counted_and_never_kept(serve: Serve, tmp_path: Path, text: Any) -> None:
    raw = text.encode() if isinstance(text, str) else text

    def fault(request: web.Request, body: Body, times: int) -> web.Response | None:
        bad = prompt_of(body) == "always" or (prompt_of(body) == "once" and times == 1)
        return web.Response(body=raw, content_type="text/html") if bad else None

    teacher = serve(fault=fault)
    replies = asked(teacher, [question("fine"), question("once"), question("always")], tmp_path)
    assert [reply.problem for reply in replies] == [None, None, "no chat completion"]
    assert texts(replies)[:2] == ["FINE", "ONCE"]
    assert sorted(teacher.asked.values()) == [1, 2, 3]
    assert len(Journal(str(tmp_path)).replies) == 2
    assert replies[1].prompt_tokens > replies[0].prompt_tokens  # the first try may have been billed


def test_an_endless_answer_is_cut(serve: Serve, tmp_path: Path) -> None:
    sent: list[int] = []

    class Endless(web.StreamResponse):
        async def prepare(self, request: web.BaseRequest) -> Any:
            writer = await super().prepare(request)
            for i in range(400):
                sent.append(i)
                await self.write(b"x" * 2**18)
            return writer

    teacher = serve(fault=lambda request, body, times: Endless())
    [reply] = asked(teacher, [question("q")], tmp_path)
    assert reply.problem == "no chat completion"
    assert len(sent) < 3 * 400


def test_the_newer_name_of_the_limit_is_learned(serve: Serve, tmp_path: Path) -> None:
    error = {"error": {"message": "use the other", "param": "max_tokens", "code": "unsupported_parameter"}}

    def fault(request: web.Request, body: Body, times: int) -> web.Response | None:
        return web.json_response(error, status=400) if "max_tokens" in body else None

    teacher = serve(fault=fault)
    replies = asked(teacher, [question(f"q{i}") for i in range(5)], tmp_path, concurrency=1)
    assert texts(replies) == ["Q0", "Q1", "Q2", "Q3", "Q4"]
    assert len(teacher.bodies) == 6


@pytest.mark.parametrize("content", [None, ""])
def test_an_empty_answer_is_an_answer(serve: Serve, tmp_path: Path, content: Any) -> None:
    teacher = serve(lambda body: completion(content, finish_reason=None))
    assert asked(teacher, [question("q")], tmp_path) == [
        Reply("", "stop", *tokens.count([{"role": "user", "content": "q"}], "", 64, None))
    ]
    assert len(Journal(str(tmp_path)).replies) == 1


def long_answer(body: Body) -> str:
    return "all of the tides are high tonight " * 10


@pytest.mark.parametrize("lie", ["none", "too few", "too many", "honest"])
def test_the_budget_holds_whatever_the_server_says(serve: Serve, tmp_path: Path, lie: str) -> None:
    text = long_answer({})

    def answer(body: Body) -> str | Body:
        usage = {
            "none": None,
            "too few": {"prompt_tokens": 1, "completion_tokens": 1},
            "too many": {"prompt_tokens": 10**7, "completion_tokens": 10**7},
        }
        return text if lie == "honest" else completion(text, usage=usage[lie])

    teacher = serve(answer)
    spent: list[int] = []
    replies = asked(
        teacher,
        [question(f"tell me number {i}", max_tokens=100) for i in range(60)],
        tmp_path,
        budget=2000,
        calls=lambda calls: spent.append(calls.budget.spent),
    )
    done = [reply for reply in replies if reply.problem is None]
    true = sum(tokens.estimate(reply.text) + 4 for reply in done)
    assert [reply.problem for reply in replies] == [None] * len(done) + [SPENT] * (60 - len(done))
    assert true <= 2000
    assert spent[0] <= 2000
    assert spent[0] + worst(question("tell me number 59", max_tokens=100)) > 2000, "as much as fits is used"
    assert len(teacher.bodies) == len(done)


def test_answers_longer_than_asked_for_stop_the_rest(serve: Serve, tmp_path: Path) -> None:
    teacher = serve(lambda body: completion("on and on " * 400, usage={"prompt_tokens": 4, "completion_tokens": 8}))
    spent: list[int] = []
    replies = asked(
        teacher,
        [question(f"q{i}", max_tokens=10) for i in range(50)],
        tmp_path,
        concurrency=2,
        budget=3000,
        calls=lambda calls: spent.append(calls.budget.spent),
    )
    assert len(teacher.bodies) <= 4  # 1200 tokens each, where 10 were asked for
    assert replies[-1].problem == SPENT
    assert spent[0] < 3000 + 2 * 1300


def test_which_calls_are_made_does_not_depend_on_speed_concurrency_or_the_journal(serve: Serve, tmp_path: Path) -> None:
    requests = [question(f"say {i} " + "word " * (i % 7), max_tokens=40 + i % 30) for i in range(60)]
    made = []
    for round, concurrency in enumerate((1, 3, 16)):
        teacher = serve(delay=lambda count, round=round: 0.004 * ((count * 7 + round) % 3))
        made.append(asked(teacher, requests, tmp_path / str(concurrency), concurrency=concurrency, budget=500))
        if concurrency == 3:  # a part of the journal is lost
            [part] = (tmp_path / "3").glob("*.jsonl")
            lines = part.read_text().splitlines(keepends=True)
            part.write_text("".join(lines[::2]))
            made.append(asked(teacher, requests, tmp_path / "3", budget=500))
    assert made[0] == made[1] == made[2] == made[3]
    assert 0 < sum(reply.problem is None for reply in made[0]) < 60


def test_rate_limits_are_kept(serve: Serve, tmp_path: Path) -> None:
    teacher = serve()
    waits: list[float] = []

    class Recorded(Pace):
        def turn(self, tokens: int) -> float:
            waits.append(super().turn(tokens))
            return 0.0

    pace = Recorded(60, None, lambda: 0.0)  # no time passes between calls, however long they take
    asked(teacher, [question(f"q{i}") for i in range(4)], tmp_path, pace=pace, concurrency=1)
    assert [round(wait) for wait in waits] == [0, 1, 2, 3]


def test_the_journal_in_a_remote_store_has_every_answer_that_was_given(serve: Serve) -> None:
    uri = "memory://synthesis-test/replies"
    teacher = serve(fault=status(401, only="last"))
    requests = [*(question(f"q{i}") for i in range(20)), question("last")]
    endpoint = Endpoint(teacher.url, "wise", where="x")
    journal = Journal(uri)  # no `with`: a killed process closes nothing
    with pytest.raises(InvalidInput):
        asked_with(lambda judge: endpoint, journal, requests, 1)
    assert len(Journal(uri).replies) == 20


def test_tries_for_nothing_count_and_the_budget_holds_them_too(serve: Serve, tmp_path: Path) -> None:
    page = "<html>gateway " + "busy " * 200  # more than was asked for: as much as can be billed is counted

    def fault(request: web.Request, body: Body, times: int) -> web.Response | None:
        return web.Response(text=page) if times < 3 or "7" in prompt_of(body) else None

    teacher = serve(fault=fault)
    spent: list[int] = []
    requests = [question(f"number {i}") for i in range(60)]
    replies = asked(teacher, requests, tmp_path, budget=2000, calls=lambda calls: spent.append(calls.budget.spent))
    billed = len(teacher.bodies) - len(teacher.answered)
    assert spent[0] == billed * (2 + 64) + len(teacher.answered) * (2 + 2)
    assert spent[0] <= 2000
    assert spent[0] + worst(requests[-1]) > 2000, "as much as fits is used"
    assert {reply.problem for reply in replies} == {None, "no chat completion", SPENT}


def test_what_was_not_asked_says_how_much_it_lacked(serve: Serve, tmp_path: Path) -> None:
    [reply] = asked(serve(), [question("q", max_tokens=4000)], tmp_path, budget=3000)
    assert (reply.problem, reply.text) == (SPENT, f"3,000 tokens are left, the call could take {64 + 16 + 2 + 4000:,}")


def test_an_answer_that_cannot_be_what_was_asked_for_is_no_answer(serve: Serve, tmp_path: Path) -> None:
    teacher = serve(lambda body: "more of it " * (2000 if prompt_of(body) == "long" else 100))
    requests = [question("long"), question("fine")]
    for _ in range(2):  # it is paid, and not asked again
        replies = asked(teacher, requests, tmp_path)
        assert [reply.problem for reply in replies] == ["answer far longer than asked for", None]
        assert replies[0].text.startswith("maxTokens is 64, and this has 22000 characters: more of it")
        assert replies[0].completion_tokens == 6000
        assert len(teacher.bodies) == 2


def test_the_key_is_in_nothing_that_is_kept_also_where_the_server_repeats_it(serve: Serve, tmp_path: Path) -> None:
    def fault(request: web.Request, body: Body, times: int) -> web.Response:
        said = f"no: {request.headers['Authorization']}"
        rubbish = prompt_of(body) == "rubbish"
        return web.Response(text=said) if rubbish else web.json_response({"error": {"message": said}}, status=500)

    replies = asked(serve(fault=fault), [question("rubbish"), question("error")], tmp_path, key="sk-123")
    assert [reply.text for reply in replies] == ["no: Bearer …", "HTTP 500: no: Bearer … (4 tries)"]


@pytest.mark.parametrize("key", ["", "  \n", "sk-1\nsk-2", "sk-\0", "ключ"])
def test_a_key_that_is_none(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr("os.environ", {"K": key})
    with pytest.raises(
        InvalidInput, match=r"x\.keySecret: the environment variable K (is not set|holds a line break)"
    ) as caught:
        key_of("secret", "K", "x")
    assert not key.strip() or key not in str(caught.value)
    assert key_of(None, "K", "x") is None
