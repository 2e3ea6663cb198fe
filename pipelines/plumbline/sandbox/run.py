"""Starts sandboxed processes, and stops them."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from plumbline.errors import InvalidInput, PlumblineError

INSIDE = Path(__file__).with_name("inside.py")
DIALOGUE = Path(__file__).with_name("dialogue.py")
START = 60.0  # seconds for Python to start, however busy the host is
OUTPUT = 1 << 16  # bytes that are kept
MEMORY = 512  # MiB


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        exit_code: its own; negative for the signal that ended it; None if its time was up.
        output: what it printed to standard output and error, cut at the limit.
        reason: why it did not pass, in words; empty if it did.
    """

    exit_code: int | None
    output: str
    reason: str

    @property
    def passed(self) -> bool:
        """Whether it ran to its end without an error."""
        return self.exit_code == 0


@cache
def supported() -> str | None:
    """Why this host cannot isolate programs, in words; None if it can. Tried with a program that does nothing."""
    try:
        with _Process("pass", 10.0, MEMORY, isolate=True) as process:
            outcome = process.wait(OUTPUT)
    except (PlumblineError, OSError) as error:
        return str(error)
    return None if outcome.passed else f"an empty program failed: {outcome.reason}: {outcome.output[-200:]}"


def require(where: str, allow_unsandboxed: bool) -> None:
    """Refuse a host that cannot isolate programs, unless that is allowed.

    Args:
        where: field path of the block that has `allowUnsandboxed`, for the message.
        allow_unsandboxed: its value.

    Raises:
        InvalidInput: it cannot.
    """
    reason = None if allow_unsandboxed else supported()
    if reason is not None:
        raise InvalidInput(
            f"{where}.allowUnsandboxed: this host cannot isolate programs ({reason}), and these are written by a model; use a Linux "
            "kernel with Landlock and seccomp, or set allowUnsandboxed: true where the machine holds nothing of worth"
        )


def run_python(
    program: str,
    *,
    seconds: float,
    memory_mb: int = MEMORY,
    output_bytes: int = OUTPUT,
    allow_unsandboxed: bool = False,
) -> Outcome:
    """Run a program as `__main__` with Python's standard library and nothing else.

    It can read Python's own files and the system's libraries. It cannot write a file, start or signal a process, open a socket,
    read the environment or the memory of others, or take more memory or time than given. It runs in one process without
    capabilities or a way back to them. Enforced by Landlock, seccomp, resource limits and an empty environment; no user
    namespaces, which containers mostly forbid. It withstands what goes through the kernel's interface as it is meant to be; a fault
    of the kernel itself opens it. Threads are allowed, and several may run at once.

    Args:
        program: source text.
        seconds: of wall-clock time from its first statement on.
        memory_mb: MiB of address space.
        output_bytes: how much of its output is kept; the rest is read and thrown away.
        allow_unsandboxed: run it where the host cannot isolate it, too. There it can read and remove the files that its user can.

    Raises:
        InvalidInput: the host cannot isolate programs, and that is not allowed.
    """
    require("sandbox", allow_unsandboxed)
    with _Process(program, seconds, memory_mb, isolate=supported() is None) as process:
        return process.wait(output_bytes)


def run_tests(code: str, tests: str, *, seconds: float, memory_mb: int = MEMORY, allow_unsandboxed: bool = False) -> Outcome:
    """Run tests against code that may try to pass them without being right.

    Code and tests run in a sandboxed process each (see `run_python`), joined by two pipes. The tests see the code's global names:
    plain values by value, all else as remote objects; the code never sees the tests, nor what they expect. So the code cannot forge
    the verdict by ending its process, by printing, by changing builtins, modules, the tests or what is compared: an object of its own
    equals only itself, and orders with nothing. See `dialogue`.

    Args:
        code: source text of the answer; runs as a module, not as `__main__`.
        tests: source text; runs as `__main__`. They pass if they end without an exception, and at least one statement is there to
            fail. Functions `test…` without parameters are called.
        seconds: of wall-clock time for both together.
        memory_mb: MiB of address space of each process.
        allow_unsandboxed: see `run_python`.

    Returns:
        The outcome of the tests; the output is theirs, not the code's.

    Raises:
        InvalidInput: the host cannot isolate programs, and that is not allowed.
    """
    require("sandbox", allow_unsandboxed)
    isolate = supported() is None
    dialogue = DIALOGUE.read_text()
    serve, examine = f"{dialogue}\nserve(code, reader, writer)", f"{dialogue}\nexamine(tests, reader, writer)"
    to_code, from_tests = os.pipe()
    to_tests, from_code = os.pipe()
    ends = {to_code, from_tests, to_tests, from_code}
    try:
        with (
            _Process(serve, seconds, memory_mb, isolate, (to_code, from_code), code=code) as answer,
            _Process(examine, seconds, memory_mb, isolate, (to_tests, from_tests), tests=tests) as examiner,
        ):
            while ends:
                os.close(ends.pop())  # the end of one process is the end of the other's pipe
            return examiner.wait(OUTPUT, beside=answer)
    finally:
        for end in ends:
            os.close(end)


class _Process:
    """One sandboxed process; leaving the context ends it.

    Args:
        program: source text.
        seconds: of wall-clock time.
        memory_mb: MiB.
        isolate: whether it may not start otherwise.
        pipes: ends to read from and to write to; its globals `reader` and `writer`.
        values: further globals.
    """

    def __init__(
        self, program: str, seconds: float, memory_mb: int, isolate: bool, pipes: tuple[int, ...] = (), **values: str
    ) -> None:
        job: dict[str, Any] = {"program": program, "isolate": isolate, "seconds": seconds, "memory_mb": memory_mb}
        job["values"] = {**values, **dict(zip(("reader", "writer"), pipes, strict=False))}
        self._seconds = seconds
        self._status, status = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-s", "-S", "-P", "-B", "-X", "utf8", str(INSIDE), str(status)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(status, *pipes),
                env={"PYTHONHASHSEED": "0"},  # sets have the same order each time, so that verdicts repeat
                start_new_session=True,
            )
        except BaseException:
            os.close(self._status)
            raise
        finally:
            os.close(status)
        self._job = json.dumps(job).encode()

    def __enter__(self) -> _Process:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(self._job)
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # `wait` says why it died
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        os.close(self._status)

    def wait(self, output_bytes: int, beside: _Process | None = None) -> Outcome:
        """Its outcome.

        Args:
            output_bytes: see `run_python`.
            beside: a process whose output is read and thrown away meanwhile.

        Raises:
            PlumblineError: it could not give up its rights, or did not start.
        """
        output = bytearray()
        with selectors.DefaultSelector() as waiting:
            others = [beside] if beside is not None else []
            for process in [self, *others]:
                process._await_start()
            deadline = time.monotonic() + self._seconds
            for process in [self, *others]:
                waiting.register(process._stdout, selectors.EVENT_READ, process)
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    return Outcome(None, output.decode(errors="replace"), f"not done in {self._seconds:g} s")
                for key, _ in waiting.select(left):
                    chunk = os.read(key.fd, 1 << 16)
                    if key.data is self:
                        output += chunk[: output_bytes - len(output)]
                    if not chunk:
                        waiting.unregister(key.fd)
                if self._stdout not in waiting.get_map():
                    break
        return self._ended(output.decode(errors="replace"), deadline)

    def _await_start(self) -> None:
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._status, selectors.EVENT_READ)
            if not waiting.select(START):
                raise PlumblineError(f"Python did not start in {START:g} s")
        problem = os.read(self._status, 4096).decode(errors="replace")
        if problem:
            raise PlumblineError(problem)

    def _ended(self, output: str, deadline: float) -> Outcome:
        """A program may close its output long before its end."""
        try:
            code = self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return Outcome(None, output, f"not done in {self._seconds:g} s")
        if code < 0:
            return Outcome(code, output, f"ended by {signal.Signals(-code).name}")
        lines = output.strip().splitlines()
        return Outcome(code, output, "" if code == 0 else f"exit code {code}: {lines[-1][:200] if lines else 'no output'}")

    @property
    def _stdout(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()
