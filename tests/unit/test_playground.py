"""The page at `/` in a real browser, over two real models and over endpoints that refuse, break off and write hostile text."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import AsyncIterator, Iterator
from importlib import resources
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from plumbline.serving.playground import page
from support.browser import Browser, chromium, needs_browser
from support.patience import wait_for
from support.served import two_models
from support.web import listening

pytestmark = needs_browser

LEFT, RIGHT = ".column:nth-child(1)", ".column:nth-child(2)"
HOSTILE = (
    "</script><script>window.owned = 1</script>",
    '"><img src=x onerror="window.owned = 1">',
    "[x](javascript:window.owned=1) <iframe srcdoc='<script>parent.owned=1</script>'>",
    "&lt;b&gt; <!-- ${window.owned = 1} `x` \u2028 \U0001f600 \u202e é 中",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two models: `tuned` gives at most 16 tokens, `base` may go on for minutes."""
    with two_models(tmp_path_factory.mktemp("models"), "tuned", "base") as address:
        yield address


def show(browser: Browser, address: str) -> None:
    """Open the page as one who has never been there, and wait until it knows the models or why not."""
    browser.listen()
    browser.open(f"{address}/")
    browser.do("sessionStorage.clear()")
    browser.reload()
    wait_for(
        lambda: browser.do(
            f"document.querySelector('{LEFT} option') !== null || document.querySelector('#status').textContent"
        )
    )


def send(browser: Browser, text: str) -> None:
    browser.do(f"document.querySelector('#prompt').value = {json.dumps(text)}")
    browser.do("document.querySelector('#prompt').focus()")
    browser.press("Enter")


def idle(browser: Browser) -> str:
    """Wait until nothing is coming any more; gives what the page says then."""
    wait_for(lambda: not browser.do("document.querySelector('#send').disabled"))
    return browser.text("#status")


def turns(browser: Browser, column: str) -> list[list[str]]:
    """Per turn: who, what, and the note below."""
    script = (
        f"[...document.querySelectorAll('{column} .turn')].map((turn) => [...turn.children].map((part) => part.textContent))"
    )
    found: list[list[str]] = browser.do(script)
    return found


def pick(browser: Browser, column: str, model: str) -> None:
    browser.do(
        f"((select) => {{ select.value = {json.dumps(model)}; select.dispatchEvent(new Event('change')); }})"
        f"(document.querySelector('{column} select'))"
    )


# --- two real models


def test_two_models_answer_side_by_side_and_nothing_else_is_asked_for(browser: Browser, address: str) -> None:
    show(browser, address)
    assert set(browser.asked()) == {f"{address}/", f"{address}/v1/models"} | {
        url for url in browser.asked() if url.startswith("data:image/svg+xml")
    }
    assert [browser.do(f"document.querySelector('{column} select').value") for column in (LEFT, RIGHT)] == ["tuned", "base"]
    assert "context 2048 tokens" in browser.text(f"{LEFT} .about")
    browser.click("summary")
    browser.type("#tokens", "7")
    browser.type("#temperature", "0")
    browser.type("#system", "Say little.")
    for question in ("Reverse the letters q k d.", "And again."):
        send(browser, question)
        assert idle(browser) == "Answered."
    for column, model in ((LEFT, "tuned"), (RIGHT, "base")):
        asked, answer, asked_again, _ = turns(browser, column)
        assert asked == ["You", "Reverse the letters q k d.", ""]
        assert asked_again[1] == "And again."
        assert answer[0] == model
        assert "first token after" in answer[2]
        assert "tokens/s" in answer[2]
    assert "7 tokens in" in turns(browser, RIGHT)[1][2]
    assert "cut at the longest answer allowed" in turns(browser, RIGHT)[1][2]

    def direct(model: str, messages: list[dict[str, str]]) -> str:
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 7}
        request = urllib.request.Request(
            f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as reply:
            return str(json.load(reply)["choices"][0]["message"]["content"])

    messages = [{"role": "system", "content": "Say little."}]
    for asked, answer in zip(turns(browser, RIGHT)[::2], turns(browser, RIGHT)[1::2], strict=True):
        messages.append({"role": "user", "content": asked[1]})
        assert answer[1] == direct("base", messages), "system message, settings and what was said before are sent"
        messages.append({"role": "assistant", "content": answer[1]})

    browser.click("#export")
    saved = json.loads(browser.downloaded("conversation.json").read_text())
    assert (saved["system"], [one["model"] for one in saved["conversations"]]) == ("Say little.", ["tuned", "base"])
    exported = [{"role": one["role"], "content": one["content"]} for one in saved["conversations"][1]["messages"]]
    assert exported == messages[1:]
    assert saved["conversations"][1]["messages"][1]["tokens"] == 7

    browser.click("#new")
    assert turns(browser, LEFT) == []
    pick(browser, RIGHT, "")  # nobody
    send(browser, "hello")
    assert idle(browser) == "Answered."
    assert (len(turns(browser, LEFT)), turns(browser, RIGHT)) == (2, [])
    assert browser.complaints() == []


@pytest.mark.parametrize("how", ["button", "key", "new"])
def test_an_answer_streams_until_it_is_stopped(browser: Browser, address: str, how: str) -> None:
    show(browser, address)
    pick(browser, LEFT, "")
    pick(browser, LEFT, "base")
    pick(browser, RIGHT, "")
    send(browser, "Count.")
    answer = f"document.querySelector('{LEFT} .turn:last-child pre')"
    begun = wait_for(lambda: browser.do(f"{answer} && {answer}.textContent.length"))
    wait_for(lambda: browser.do(f"{answer}.textContent.length") > begun)
    assert browser.do("document.querySelector('#send').disabled")
    assert browser.do(f"document.querySelector('{LEFT} .log').getAttribute('aria-busy')") == "true"
    if how == "key":
        browser.press("Escape")
    else:
        browser.click("#stop" if how == "button" else "#new")
    assert idle(browser) == "Stopped."
    with urllib.request.urlopen(f"{address}/healthz") as reply:
        assert json.load(reply)["status"] == "ok"
    wait_for(lambda: running(address) == 0)
    if how == "new":
        assert turns(browser, LEFT) == []
    else:
        assert "stopped" in turns(browser, LEFT)[1][2]
    browser.do("document.querySelector('#tokens').value = 3")
    send(browser, "Go on.")
    assert idle(browser) == "Answered."
    assert len(turns(browser, LEFT)) == browser.do("columns[0].turns.length") == (2 if how == "new" else 4)
    assert browser.complaints() == []


def running(address: str) -> int:
    with urllib.request.urlopen(f"{address}/healthz") as reply:
        return sum(int(model["running"]) for model in json.load(reply)["models"])


def test_narrow_dark_and_for_screen_readers(browser: Browser, address: str) -> None:
    show(browser, address)
    browser.click("summary")
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    controls = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if node.get("role", {}).get("value") in ("textbox", "button", "combobox", "spinbutton", "log")
    ]
    assert {role for role, _ in controls} == {"textbox", "button", "combobox", "spinbutton", "log"}
    assert all(name for _, name in controls), controls
    light = browser.do("getComputedStyle(document.body).backgroundColor")
    try:
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        assert browser.do("getComputedStyle(document.body).backgroundColor") != light
        tops = f"['{LEFT}', '{RIGHT}'].map((one) => document.querySelector(one).getBoundingClientRect().top)"
        left, right = browser.do(tops)
        assert left == right
        browser.call("Emulation.setDeviceMetricsOverride", width=360, height=640, deviceScaleFactor=1, mobile=True)
        left, right = browser.do(tops)
        assert left < right
        assert browser.do("document.documentElement.scrollWidth") <= 360
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")
        browser.call("Emulation.setEmulatedMedia", features=[])


# --- endpoints that refuse, break off and write hostile text


class Endpoint:
    """Speaks as much of the API as the page needs; what it says is settled by the test."""

    def __init__(self) -> None:
        self.models, self.events = ["ours"], ["[DONE]"]
        self.key: str | None = None
        self.refusal: Response | None = None
        self.app = FastAPI(docs_url=None)
        page.mount(self.app)
        self.app.get("/v1/models")(self._list)
        self.app.post("/v1/chat/completions")(self._chat)

    def _refused(self, request: Request) -> Response | None:
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "no such key"}}, 401)
        return None

    async def _list(self, request: Request) -> Response:
        return self._refused(request) or JSONResponse({"data": [{"id": name} for name in self.models]})

    async def _chat(self, request: Request) -> Response:
        async def body() -> AsyncIterator[str]:
            for event in self.events:
                yield f"data: {event}\n\n"

        return self._refused(request) or self.refusal or StreamingResponse(body(), media_type="text/event-stream")

    def says(self, *texts: str) -> None:
        self.events = [*map(said, texts), "[DONE]"]


def said(text: str) -> str:
    return json.dumps({"choices": [{"delta": {"content": text}}]}, ensure_ascii=False)


def failed(status: int, message: str, headers: dict[str, str] | None = None, **fields: Any) -> Response:
    return JSONResponse({"error": {"message": message, **fields}}, status, headers)


def test_what_models_people_and_servers_write_is_text(browser: Browser) -> None:
    endpoint = Endpoint()
    endpoint.models = list(HOSTILE[:2])
    with listening(endpoint.app) as address:
        show(browser, address)
        names = f"[...document.querySelectorAll('{LEFT} option')].map((option) => option.textContent)"
        assert browser.do(names) == list(HOSTILE[:2])
        for text in HOSTILE:
            endpoint.says(text[:5], text[5:])
            send(browser, text)
            assert idle(browser) == "Answered."
            asked, answer = turns(browser, RIGHT)[-2:]
            assert (asked[1], answer[:2]) == (text, [HOSTILE[1], text])
        endpoint.events = [json.dumps({"error": {"message": HOSTILE[1]}})]
        send(browser, "x")
        idle(browser)
        assert HOSTILE[1] in turns(browser, LEFT)[-1][2]
        assert browser.complaints() == []
        assert set(browser.asked()) - {url for url in browser.asked() if url.startswith((f"{address}/", "data:"))} == set()

        # Were there a hole in the page, its policy would still stand.
        blocked = "new Promise((r) => { addEventListener('securitypolicyviolation', (e) => r(e.effectiveDirective)); %s })"
        assert browser.do(blocked % "fetch('http://127.0.0.1:9/').catch(() => 0)") == "connect-src"
        inline = "const s = document.createElement('script'); s.append('window.owned = 1'); document.body.append(s)"
        assert browser.do(blocked % inline).startswith(("script-src", "require-trusted-types"))
        assert browser.do("try { document.body.innerHTML = '<b>'; 'set' } catch (error) { error.name }") == "TypeError"
        assert browser.do("window.owned") is None


def test_errors_are_told_in_words_and_no_question_is_lost(browser: Browser) -> None:
    endpoint = Endpoint()
    endpoint.key = "sk-right"
    with listening(endpoint.app) as address:
        show(browser, address)
        assert browser.text("#status") == "The server wants an API key: enter it under Settings."
        send(browser, "kept")
        assert "wants an API key" in idle(browser)
        assert browser.do("document.querySelector('#prompt').value") == "kept"
        browser.click("summary")
        for key, said_then in (
            ("sk-wrong", "The server refuses the API key: no such key"),
            ("sk-é", "characters that no key has"),
        ):
            browser.do("document.querySelector('#key').value = ''")
            browser.type("#key", key)
            wait_for(lambda said_then=said_then: said_then in browser.text("#status"))
        browser.do("document.querySelector('#key').value = ''")
        browser.type("#key", "sk-right")
        wait_for(lambda: browser.do(f"document.querySelector('{LEFT} option') !== null"))
        endpoint.says("hello")
        browser.reload()
        wait_for(lambda: browser.do(f"document.querySelector('{LEFT} option') !== null"))
        send(browser, "first")
        assert idle(browser) == "Answered."
        assert "sk-right" not in browser.do("location.href + document.cookie + JSON.stringify(localStorage)")

        for refusal, words in (
            (failed(429, "10 requests a minute.", {"Retry-After": "7"}), "10 requests a minute. Try again in 7 s."),
            (
                failed(400, "2049 tokens.", code="context_length_exceeded"),
                "2049 tokens. Nothing was left out to make it fit",
            ),
            (failed(503, "draining"), "The server answers 503: draining"),
            (Response("<html>", 502), "The server answers 502: Bad Gateway"),
        ):
            endpoint.refusal = refusal
            send(browser, "tried")
            assert idle(browser) == "Not every model has answered."
            assert words in turns(browser, LEFT)[-1][2]
            assert browser.do("document.querySelector('#prompt').value") == "tried"
        endpoint.refusal, endpoint.events = None, [said("half an")]
        send(browser, "tried")
        idle(browser)
        assert turns(browser, LEFT)[-1][1:] == [
            "half an",
            "The answer broke off: the connection to the server is lost. This question is not part of the conversation.",
        ]
        browser.click("#export")
        saved = json.loads(browser.downloaded("conversation.json").read_text())
        assert [one["content"] for one in saved["conversations"][0]["messages"]] == ["first", "hello"]
        assert "sk-right" not in json.dumps(saved)
        browser.do("document.querySelector('#temperature').value = 3")
        send(browser, "tried")
        assert idle(browser).startswith("Temperature, 0 to 2: ")
        browser.do("document.querySelector('#temperature').value = ''")
    send(browser, "kept")
    assert idle(browser) == "Not every model has answered."
    assert "The server cannot be reached" in turns(browser, LEFT)[-1][2]


def test_below_a_path_and_with_a_strict_policy(browser: Browser) -> None:
    endpoint = Endpoint()
    whole = FastAPI(docs_url=None)
    whole.mount("/endpoint-live", endpoint.app)
    with listening(whole) as address:
        browser.open(f"{address}/endpoint-live/")
        wait_for(lambda: browser.do(f"document.querySelector('{LEFT} option') !== null"))
        with urllib.request.urlopen(urllib.request.Request(f"{address}/endpoint-live/", method="HEAD")) as reply:
            policy = reply.headers["Content-Security-Policy"]
            assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert "unsafe" not in policy
    assert {part.split()[0] for part in policy.split("; ")} >= {
        "default-src",
        "script-src",
        "connect-src",
        "frame-ancestors",
    }


def test_the_files_are_in_the_package_and_name_no_other_host() -> None:
    folder = resources.files("plumbline.serving.playground")
    for name in ("index.html", "playground.css", "playground.js"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
    built, _ = page.render()
    assert page.STYLE_TAG not in built
    assert page.SCRIPT_TAG not in built
