"""`plumbline chat`: conversations with a real endpoint of two tiny models, and with endpoints that refuse, break off and lie."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse

from plumbline.chat.client import Endpoint
from plumbline.chat.terminal import Chat, converse, plain
from plumbline.cli import main
from plumbline.data.formats import FORMATS
from plumbline.data.formats.options import Options
from plumbline.data.row import Row
from plumbline.local_endpoint import PROGRAM
from support.served import ENDLESS, two_models
from support.web import listening

QUESTION = "Reverse the letters q k d."
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of two models: `ours`, and `org/other one`, which answers for minutes where it is asked to."""
    with two_models(tmp_path_factory.mktemp("models"), "ours", "org/other one") as address:
        yield f"{address}/v1"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`plumbline chat` in this process: exit code, standard output, standard error."""

    def run(*arguments: object, questions: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(questions))
        code = main(["chat", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def told(url: str, *lines: str, models: tuple[str, ...] = ("ours",), **sampling: Any) -> tuple[Chat, str, str]:
    """What a person at a terminal is shown: the chat, answers, notes."""
    shown, notes = io.StringIO(), io.StringIO()
    sampling = {"temperature": 0, "max_tokens": 8, **sampling}
    chat = Chat(Endpoint(url), list(models), "", sampling, interactive=True, shown=shown, notes=notes)
    converse(chat, iter(lines))
    return chat, shown.getvalue(), notes.getvalue()


# --- a real endpoint


def test_one_question_an_answer_and_nothing_else(url: str, command: Command) -> None:
    code, out, err = command("--endpoint", url, "--message", QUESTION, "--temperature", 0, "--max-tokens", 3)
    assert (code, out.count("\n")) == (0, 1)
    assert len(out) > 1
    assert err == "cut at the longest answer allowed; --max-tokens asks for longer ones\n"
    bare = command("--endpoint", url.removesuffix("/v1"), "--message", QUESTION, "--temperature", 0, "--max-tokens", 3)
    assert bare[:2] == (0, out)


def test_questions_of_a_file_are_one_conversation_and_no_commands(url: str, command: Command) -> None:
    options = ("--endpoint", url, "--temperature", 0, "--max-tokens", 4)
    first, second = command(*options, questions="hello\n\n/quit\n")[1].splitlines()
    alone = command(*options, "--message", "hello")[1]
    assert first == alone.rstrip("\n")
    turns = [("user", "hello"), ("assistant", first), ("user", "/quit")]
    answer = Endpoint(url).answer(
        "ours", [{"role": role, "content": text} for role, text in turns], temperature=0, max_tokens=4
    )
    assert second == "".join(piece.text for piece in answer)


def test_two_models_are_asked_the_same_each_in_its_own_conversation(url: str) -> None:
    models = ("ours", "org/other one")
    chat, shown, _ = told(url, "/system Say little.", QUESTION, "again", models=models)
    assert [talk.model for talk in chat.talks] == list(models)
    turns = [talk.turns for talk in chat.talks]
    assert [[turn["role"] for turn in one] for one in turns] == [["user", "assistant"] * 2] * 2
    assert shown == "".join(f"── {name} ──\n{turns[m][i]['content']}\n" for i in (1, 3) for m, name in enumerate(models))
    alone, _, _ = told(url, "/system Say little.", QUESTION, "again", models=models[:1])
    assert alone.talks[0].turns == turns[0], "the other model's answers are not part of it"
    plainly, _, _ = told(url, QUESTION, "again")
    assert plainly.talks[0].turns != turns[0], "the system message is sent"


def test_commands(url: str, tmp_path: Path) -> None:
    file = tmp_path / "saved.jsonl"
    chat, _, notes = told(
        url,
        "/models",
        "/system Be brief.",
        QUESTION,
        "/model ours 'org/other one'",
        f"/save {file}",
        f"/save {file}",
        "/save ~no-such-person/file",
        "/save",
        "/new",
        "/model nobody",
        "/model 'open",
        "/system",
        "/nonsense x",
        "/help",
        "/quit",
        "never asked",
    )
    assert [talk.turns for talk in chat.talks] == [[], []]
    assert chat.system == ""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["model"] for row in rows] == ["ours", "org/other one"]
    assert rows[0]["messages"] == rows[1]["messages"], "a model that comes in has heard what was said"
    (row,) = FORMATS["messages"].rows(rows[0], Options("messages"))
    assert isinstance(row, Row)
    assert row.content["messages"] == rows[0]["messages"], "`curate` reads it"
    assert [turn["role"] for turn in rows[0]["messages"]] == ["system", "user", "assistant"]
    lines = notes.splitlines()
    assert lines[:2] == ["* ours", "  org/other one"]
    for said in (
        "saved to",
        "cannot be written: File exists; give another name",
        "~no-such-person/file cannot be written: Could not determine home directory",
        "/save needs the name of a file",
        "no model 'nobody' is served here; there are: ours, org/other one",
        "quote a name that has spaces",
        "no command '/nonsense'",
        "end an answer that is coming",
    ):
        assert sum(said in line for line in lines) == 1, said


def test_a_full_context_is_said_and_nothing_is_dropped(url: str, command: Command) -> None:
    long = "word " * 3000
    chat, _, notes = told(url, "hello", long, "hello")
    assert "context" in notes
    assert "nothing was left out to make it fit; /new begins afresh" in notes
    assert [turn["content"] for turn in chat.talks[0].turns if turn["role"] == "user"] == ["hello", "hello"]
    code, out, err = command("--endpoint", url, "--message", long)
    assert (code, out) == (2, "")
    assert "answers 400" in err


def test_what_cannot_be_is_said_before_anything_is_asked(url: str, command: Command, tmp_path: Path) -> None:
    here = ("--endpoint", url, "--message", "x")
    assert "'theirs' does not exist; served here: 'ours'" in command(*here, "--model", "theirs")[2]
    assert "there is no such environment variable" in command(*here, "--api-key-env", "NO_SUCH_KEY")[2]
    assert "whom to talk to?" in command("--message", "x")[2]
    assert "go with a run file" in command("a-run", "--stage", "live")[2]
    for wrong_url in ("file:///etc", "http://[::1", "http://127.0.0.1:99999/v1", "http://127.0.0.1:x/v1"):
        assert f"'{wrong_url}' is no http URL" in command("--endpoint", wrong_url, "--message", "x")[2]
    assert "nothing answers at" in command("--endpoint", "http://127.0.0.1:9/v1", "--message", "x")[2]
    for wrong in (("--temperature", "3"), ("--max-tokens", "0"), ("--model", "a", "--compare", "a", "b")):
        with pytest.raises(SystemExit):
            command(*here, *wrong)


RUN = """
apiVersion: plumbline.dev/v1alpha1
kind: AlignmentRun
metadata: {name: small}
spec:
  model: {base: "builtin://tiny"}
  workspace: {uri: WORKSPACE}
  stages:
    - name: live
      serve: {ungated: true}
    - name: second
      serve: {ungated: true}
"""


def test_the_endpoint_of_a_run_file_is_found(url: str, command: Command, tmp_path: Path) -> None:
    file, workspace = tmp_path / "run.yaml", tmp_path / "workspace"
    file.write_text(RUN.replace("WORKSPACE", str(workspace)))
    records = workspace / "runs" / "small"
    records.mkdir(parents=True)
    _, _, err = command(file, "--message", "x")
    assert "small: nothing is serving on this machine; start it with `plumbline run" in err
    assert "no serve stage 'sft'; serve stages: live, second" in command(file, "--stage", "sft", "--message", "x")[2]
    with subprocess.Popen([sys.executable, "-c", "input()", PROGRAM], stdin=subprocess.PIPE) as lives:

        def serve(stage: str, model: str) -> None:
            record = {"url": url, "pid": lives.pid, "model": model}
            (records / f"endpoint-{stage}.json").write_text(json.dumps(record))

        serve("live", "org/other one")
        assert command(file, "--message", QUESTION, "--max-tokens", 20)[0] == 0, "`ours` gives 16 at most"
        assert "second: nothing is serving" in command(file, "--stage", "second", "--message", "x")[2]
        serve("second", "ours")
        assert "several endpoints; name one with --stage: live, second" in command(file, "--message", "x")[2]
        assert "gives at most 16" in command(file, "--stage", "second", "--message", "x", "--max-tokens", 20)[2]
        assert command(file, "--stage", "second", "--message", "x", "--workspace", workspace)[0] == 0
        assert lives.stdin is not None
        lives.stdin.close()


# --- at a terminal


@contextmanager
def terminal(*arguments: str) -> Iterator[tuple[Callable[[str], None], Callable[[str], str], subprocess.Popen[bytes]]]:
    """The command behind a pseudo-terminal: a function that types, one that waits for a text on the screen, the process."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "plumbline.cli", "chat", *arguments]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=lambda: _own(theirs)
    )
    os.close(theirs)
    screen = ""

    def until(text: str) -> str:
        nonlocal screen
        while text not in screen:
            assert select.select([ours], [], [], 60)[0], screen
            screen += os.read(ours, 4096).decode(errors="replace")
        before, _, screen = screen.partition(text)
        return before

    try:
        yield lambda text: (os.write(ours, text.encode()), None)[1], until, process
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _own(descriptor: int) -> None:
    """Make it the terminal of this session, so that Ctrl-C becomes a signal, and one that is obeyed: a shell lets what it starts in the
    background ignore it."""
    import fcntl
    import signal
    import termios

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)


def test_ctrl_c_ends_the_answer_and_ctrl_d_the_conversation(url: str) -> None:
    with terminal("--endpoint", url, "--model", "org/other one", "--max-tokens", str(ENDLESS // 2)) as (
        write,
        until,
        process,
    ):
        until("talking to org/other one")
        until("> ")
        write("models\x01/\n")  # edited with the keys of a shell: Ctrl-A goes to the beginning of the line
        until("* org/other one")
        until("> ")  # what is typed before it would be echoed twice
        write("Count.\n")
        until("Count.\r\n")
        until(" ")  # the answer has begun
        write("\x03")
        until("stopped; what was said so far is part of the conversation")
        until("> ")
        write("\x04")
        assert process.wait(30) == 0


def test_ctrl_c_before_a_question_takes_back_the_line_alone(url: str) -> None:
    class Lines(Iterator[str]):
        left: ClassVar = [KeyboardInterrupt(), "hello", KeyboardInterrupt()]

        def __next__(self) -> str:
            line = self.left.pop(0) if self.left else StopIteration()
            if isinstance(line, BaseException):
                raise line
            return line

    notes = io.StringIO()
    chat = Chat(Endpoint(url), ["ours"], sampling={"max_tokens": 2}, interactive=True, shown=io.StringIO(), notes=notes)
    converse(chat, Lines())
    assert len(chat.talks[0].turns) == 2
    assert notes.getvalue().count("Ctrl-D or /quit ends the conversation") == 2


def test_nothing_of_a_model_moves_the_cursor() -> None:
    assert plain("a\x1b]0;owned\x07b\r\x9b2J\tc\n") == "a�]0;owned�b��2J\tc\n"


# --- endpoints that misbehave


def endpoint_that(answer: Callable[[Request], Response]) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models")
    async def models(request: Request) -> Any:
        return {"data": [{"id": "ours"}]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return answer(request)

    return app


def stream(*events: str) -> Response:
    async def body() -> AsyncIterator[str]:
        for event in events:
            yield f"data: {event}\n\n"

    return StreamingResponse(body(), media_type="text/event-stream")


def refusal(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status)


HALF = '{"choices": [{"delta": {"content": "half an"}}]}'


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (lambda _: refusal(429, "too many"), 1, "answers 429: too many"),
        (lambda _: refusal(503, "draining"), 1, "answers 503: draining"),
        (lambda _: Response("<html>", 404), 2, "answers 404: Not Found"),
        (lambda _: stream(HALF), 1, "the answer broke off"),
        (lambda _: stream(HALF, '{"error": {"message": "engine lost"}}'), 1, "the endpoint failed: engine lost"),
        (lambda _: stream("[1]"), 1, "none of OpenAI's API"),
        (lambda _: RedirectResponse("http://127.0.0.1:9/v1", 307), 2, "answers 307"),
    ],
)
def test_faults_are_told_in_words(answer: Callable[[Request], Response], code: int, said: str, command: Command) -> None:
    with listening(endpoint_that(answer)) as address:
        found = command("--endpoint", address, "--message", "x")
        assert found[0] == code
        assert said in found[2]
        chat, _, notes = told(f"{address}/v1", "x")
    assert said in notes
    assert "the question is not part of the conversation" in notes
    assert chat.talks[0].turns == []


def test_a_key_goes_by_the_environment_into_the_header_alone(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def checked(request: Request) -> Response:
        if request.headers.get("authorization") != "Bearer sk-right":
            return refusal(401, "wrong key")
        return stream(HALF, "[DONE]")

    with listening(endpoint_that(checked)) as address:
        here = ("--endpoint", address, "--message", "x")
        code, _, err = command(*here)
        assert (code, "--api-key-env" in err) == (2, True)
        monkeypatch.setenv("MY_KEY", "sk-right")
        assert command(*here, "--api-key-env", "MY_KEY")[:2] == (0, "half an\n")
        monkeypatch.setenv("MY_KEY", "sk-wrong\n")
        code, _, err = command(*here, "--api-key-env", "MY_KEY")
        assert code == 2
        assert "sk-wrong" not in err
