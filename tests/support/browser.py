"""A real headless Chromium, driven through its DevTools protocol."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import websocket

from support.patience import PATIENCE, wait_for

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="needs a browser: install chromium (Debian: apt-get install chromium)"
)


class Browser:
    """Headless Chromium through its DevTools protocol: real key presses and mouse clicks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = folder / "profile" / "DevToolsActivePort"
        port = wait_for(lambda: file.exists() and file.read_text().split("\n")[0])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as reply:
            pages = [one for one in json.load(reply) if one["type"] == "page"]
        self.socket = websocket.create_connection(pages[0]["webSocketDebuggerUrl"], timeout=PATIENCE)
        self.calls = 0
        self.url = "about:blank"
        self.events: list[dict[str, Any]] = []
        (folder / "downloads").mkdir()
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder / "downloads"))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.calls += 1
        self.socket.send(json.dumps({"id": self.calls, "method": method, "params": parameters}))
        while True:
            reply = json.loads(self.socket.recv())
            if "id" not in reply:
                self.events.append(reply)
            if reply.get("id") == self.calls:
                assert "error" not in reply, reply
                found: dict[str, Any] = reply["result"]
                return found

    def do(self, script: str) -> Any:
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, url: str) -> None:
        self.url = url
        self.call("Page.navigate", url=url)
        self.ready()

    def ready(self) -> None:
        here = f"location.href === {json.dumps(self.url)} && document.readyState === 'complete' && !window.old"
        wait_for(lambda: self.do(here))

    def reload(self) -> None:
        self.do("window.old = 1")
        self.call("Page.reload")
        self.ready()

    def listen(self) -> None:
        """Take down from here on what the page asks for and what it complains of."""
        self.events.clear()
        for domain in ("Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def asked(self) -> list[str]:
        """URLs that were asked for since `listen`."""
        sent = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def complaints(self) -> list[dict[str, Any]]:
        """What stands in the console since `listen`, a browser's advice apart."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        found = [event["params"] for event in self.events if event["method"] in kinds]
        return [one for one in found if one.get("entry", {}).get("level") != "verbose"]

    def press(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def click(self, selector: str) -> None:
        found = f"document.querySelector({json.dumps(selector)})"
        self.do(f"{found}.scrollIntoView({{block: 'center'}})")
        box = self.do(
            f"(({{x, y, width, height}}) => ({{x: x + width / 2, y: y + height / 2}}))({found}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **box)

    def type(self, selector: str, text: str) -> None:
        self.do(f"document.querySelector({json.dumps(selector)}).focus()")
        for letter in text:
            self.press(letter)
        self.do("document.activeElement.blur()")

    def text(self, selector: str) -> str:
        return str(self.do(f"document.querySelector({json.dumps(selector)}).textContent"))

    def choose(self, selector: str, file: Path) -> None:
        node = self.call("DOM.getDocument")["root"]["nodeId"]
        found = self.call("DOM.querySelector", nodeId=node, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=found, files=[str(file)])

    def downloaded(self, name: str) -> Path:
        file = self.folder / "downloads" / name
        wait_for(file.exists)
        return file.rename(self.folder / f"{self.calls}{file.suffix}")


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser with an empty profile in the folder."""
    assert CHROMIUM is not None
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += ["--remote-debugging-port=0", "--remote-allow-origins=*", f"--user-data-dir={folder / 'profile'}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([CHROMIUM, *options, "about:blank"], **quiet) as process:
        try:
            yield Browser(folder)
        finally:
            process.terminate()
