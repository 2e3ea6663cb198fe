"""Errors that are for people: one sentence that names the culprit and says what to do. No traceback is shown for them."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

EXIT_RETRYABLE = 1
EXIT_INVALID = 2
EXIT_GATE = 3
EXIT_INTERRUPTED = 130


class PlumblineError(Exception):
    """Something that the reader can understand and act on; trying again may help."""

    exit_code = EXIT_RETRYABLE


class InvalidInput(PlumblineError):
    """Input that will be as wrong the next time: never retried."""

    exit_code = EXIT_INVALID


class GateNotPassed(PlumblineError):
    """The evaluation gate did not pass, so what it guards is not done."""

    exit_code = EXIT_GATE


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a run file.

    Attributes:
        path: field path, such as `spec.stages[1].sft.epochs`.
        message: what is wrong, with the value, and what would be accepted.
    """

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class InvalidRun(InvalidInput):
    """All problems of a run at once."""

    def __init__(self, problems: Sequence[Problem], origin: str = "") -> None:
        self.problems = list(problems)
        head = f"{origin}: " if origin else ""
        super().__init__("\n".join(f"{head}{problem}" for problem in self.problems))


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what Ray, a pool or `raise … from` wrapped into it, from the outside in, each once."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        pending += [current.__cause__, current.__context__, getattr(current, "cause", None)]
        pending += list(getattr(current, "worker_failures", {}).values())  # Ray Train's WorkerGroupError


def plain_cause(error: BaseException) -> PlumblineError | None:
    """The PlumblineError inside whatever was wrapped around it, or None."""
    return next((cause for cause in causes(error) if isinstance(cause, PlumblineError)), None)


def disk_full(error: BaseException) -> bool:
    """Whether this one error says that a device or a quota is full; libraries in Rust say it in words only."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error)


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error's text in one line, cut where it is long; its type where it has none."""
    text = " ".join(str(error).split())
    return f"{text[:limit]}…" if len(text) > limit else text or type(error).__name__


def sentence(error: BaseException) -> tuple[str, int]:
    """An error as (words for people, exit code)."""
    known = plain_cause(error)
    if known is not None:
        return str(known), known.exit_code
    for cause in causes(error):
        if disk_full(cause):
            filename = getattr(cause, "filename", None)
            where = f" at {filename}" if filename else ""
            return f"no space left on the device{where}; make room and run again, finished stages are kept", EXIT_RETRYABLE
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else 'no message'}", EXIT_RETRYABLE


def complain(error: BaseException) -> int:
    """Say on standard error why a program ends, with the traceback where nobody foresaw it; returns the exit code."""
    words, code = sentence(error)
    for cause in causes(error):
        traceback.clear_frames(cause.__traceback__)  # closes files: removed ones still fill the disk that the log is on
    if plain_cause(error) is None:
        traceback.print_exception(error)
    print(f"error: {words}", file=sys.stderr, flush=True)
    return code
