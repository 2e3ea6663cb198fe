"""The run's ConfigMap, as the programs in a cluster write it; `plumbline.api.report` says what is in it.

PLUMBLINE_STATE=NAMESPACE/NAME in the environment names it. The Pod's own account may read and patch this one object.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from functools import cached_property
from typing import TYPE_CHECKING, Any

from plumbline.api.report import Failure, Result, StageReport, Verdict, stage_key
from plumbline.api.status import StageProgress
from plumbline.artifacts import Artifact
from plumbline.errors import EXIT_INVALID, InvalidInput, PlumblineError, plain_cause, sentence
from plumbline.kubernetes_api import MERGE_PATCH, TIMEOUT, connect, words
from plumbline.progress import Event

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Api, V1ConfigMap

VARIABLE = "PLUMBLINE_STATE"
RUN_UID = "PLUMBLINE_RUN_UID"
PROGRESS_INTERVAL = 5.0  # seconds between two writes of a stage's progress
PATIENCE = 300.0  # seconds for which a result or an error is tried: an API server that restarts is back by then
FIRST_WAIT, LONGEST_WAIT = 0.5, 15.0  # seconds between two tries
CONFLICTS = 20  # writes of others that may come in between
HOPELESS = (400, 413, 422)  # what the API server refuses today it refuses tomorrow
MAX_METRICS, MAX_KEY, MAX_FIGURE = 64, 128, 256
MAX_MESSAGE, MAX_WORDS = 1024, 8192
TRACEBACK_LINES = 15
VERDICTS: dict[Any, Verdict] = {"pass": "Passed", "fail": "Failed", "inconclusive": "Inconclusive"}


class Superseded(PlumblineError):
    """A later attempt has reported; this one must not overwrite it."""


class NotReported(PlumblineError):
    """The ConfigMap could not be written."""


class State:
    """The ConfigMap of a run."""

    def __init__(self, namespace: str, name: str) -> None:
        self.namespace, self.name = namespace, name
        self._version: str | None = None  # of the object, as long as nobody else has written

    @classmethod
    def from_environment(cls) -> State | None:
        """The ConfigMap that PLUMBLINE_STATE names, None where it is not set.

        Raises:
            InvalidInput: it is not NAMESPACE/NAME.
        """
        value = os.environ.get(VARIABLE)
        if not value:
            return None
        namespace, _, name = value.partition("/")
        if not namespace or not name:
            raise InvalidInput(f"{VARIABLE}='{value}' is not NAMESPACE/NAME of a ConfigMap")
        return cls(namespace, name)

    @cached_property
    def _api(self) -> CoreV1Api:
        from kubernetes.client import CoreV1Api

        client, _ = connect()
        return CoreV1Api(client)

    def write(self, key: str, attempt: int, values: dict[str, str]) -> None:
        """Set some keys, at once or not at all. Whatever goes wrong is raised.

        Args:
            key: holds a report with an `attempt`; nothing is written where that is a later one.
            attempt: who writes.
            values: by key.

        Raises:
            Superseded: a later attempt has reported.
        """
        from kubernetes.client import ApiException

        for i in range(CONFLICTS):
            if self._version is None:
                found = self._api.read_namespaced_config_map(self.name, self.namespace, _request_timeout=TIMEOUT)
                later = _attempt((found.data or {}).get(key))
                if later > attempt:
                    raise Superseded(f"attempt {attempt} gives way to attempt {later}, which has reported to '{key}'")
                self._version = _version(found)
            patch = {"metadata": {"resourceVersion": self._version}, "data": values}
            try:
                written = self._api.patch_namespaced_config_map(
                    self.name, self.namespace, patch, _content_type=MERGE_PATCH, _request_timeout=TIMEOUT
                )
            except ApiException as error:
                self._version = None
                if error.status != 409 or i == CONFLICTS - 1:
                    raise
            else:
                self._version = _version(written)
                return

    def insist(self, key: str, attempt: int, values: dict[str, str], patience: float = PATIENCE) -> None:
        """`write`, again and again while there is hope.

        Raises:
            Superseded: a later attempt has reported.
            NotReported: it did not work for `patience` seconds, or never will.
        """
        deadline, wait = time.monotonic() + patience, FIRST_WAIT
        while True:
            try:
                self.write(key, attempt, values)
                return
            except Superseded:
                raise
            except Exception as error:  # of the API server, the network, the Pod's token …
                if getattr(error, "status", None) in HOPELESS or time.monotonic() + wait > deadline:
                    raise NotReported(f"ConfigMap {self.namespace}/{self.name} cannot be written: {words(error)}") from error
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)


class StageReports:
    """What one attempt at a stage reports. As a progress sink it neither waits nor fails: a thread writes the latest event."""

    def __init__(
        self, state: State, stage: str, attempt: int, fingerprint: str, interval: float = PROGRESS_INTERVAL
    ) -> None:
        self._state, self._attempt, self._fingerprint, self._interval = state, attempt, fingerprint, interval
        self._key = stage_key(stage)
        self._latest = Event(stage)
        self._news = threading.Event()
        self._writing = threading.Lock()
        self._closed = False
        threading.Thread(target=self._follow, name="progress", daemon=True).start()

    def __call__(self, event: Event) -> None:
        self._latest = event
        self._news.set()

    def succeeded(self, result: Result, patience: float = PATIENCE) -> None:
        """The last word; returns once it is written.

        Raises:
            PlumblineError: it cannot be.
        """
        self._close({"result": result}, patience)

    def failed(self, failure: Failure, patience: float = PATIENCE) -> None:
        """The last word of an attempt that failed. Where it cannot be written, standard error says so."""
        try:
            self._close({"error": failure}, patience)
        except PlumblineError as error:
            print(f"warning: {error}", file=sys.stderr, flush=True)

    def _close(self, outcome: dict[str, Any], patience: float) -> None:
        self._closed = True
        with self._writing:  # a progress report that is on its way arrives before
            self._state.insist(self._key, self._attempt, {self._key: self._report(outcome)}, patience)

    def _follow(self) -> None:
        told = False
        while True:
            self._news.wait()
            with self._writing:
                if self._closed:
                    return
                self._news.clear()
                try:
                    self._state.write(self._key, self._attempt, {self._key: self._report({})})
                    told = False
                except Superseded:
                    return
                except Exception as error:
                    self._news.set()  # the next try takes what is latest then
                    if not told:
                        print(f"warning: progress is not reported: {words(error)}", file=sys.stderr, flush=True)
                    told = True
            time.sleep(self._interval)

    def _report(self, outcome: dict[str, Any]) -> str:
        event = self._latest
        progress = None
        if event.step is not None:
            progress = StageProgress(
                step=_count(event.step),
                total=None if event.total is None else _count(event.total),
                eta_seconds=None if event.eta_seconds is None else _count(event.eta_seconds),
            )
        report = StageReport(
            attempt=self._attempt,
            fingerprint=self._fingerprint,
            time=time.time(),
            message=_cut(event.message, MAX_MESSAGE),
            progress=progress,
            metrics=figures(event.metrics),
            **outcome,
        )
        return report.model_dump_json(by_alias=True, exclude_none=True)


def result_of(artifact: Artifact) -> Result:
    """A whole artifact, in short."""
    verdict = VERDICTS.get(artifact.details.get("verdict"))
    reason = artifact.details.get("verdictReason")
    return Result(
        artifact=artifact.uri,
        metrics=figures(artifact.metrics),
        verdict=verdict,
        verdict_reason=_cut(str(reason), MAX_WORDS) if verdict and reason else None,
    )


def failure_of(error: BaseException) -> Failure:
    """Why a program ends: a sentence, and below it the end of the traceback where nobody foresaw the error."""
    said, code = sentence(error)
    said = _cut(said, MAX_WORDS // 2)
    if plain_cause(error) is None:
        lines = "".join(traceback.format_exception(error)).splitlines()[-TRACEBACK_LINES:]
        said += "\n\n" + _cut("\n".join(lines), MAX_WORDS // 2 - 2, keep_end=True)
    return Failure(message=said, permanent=code == EXIT_INVALID)


def figures(metrics: dict[str, Any]) -> dict[str, str]:
    """Metrics as strings, four digits each; the first 64."""
    return {
        _cut(str(name), MAX_KEY): _cut(_figure(value), MAX_FIGURE) for name, value in list(metrics.items())[:MAX_METRICS]
    }


def _figure(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def _count(value: float) -> int:
    return int(min(max(value, 0), 2**31 - 1))


def _cut(text: str, limit: int, keep_end: bool = False) -> str:
    """Bounded, and valid Unicode: a model may write half a surrogate pair."""
    text = text.encode(errors="replace").decode()
    if len(text) <= limit:
        return text
    return f"…{text[1 - limit :]}" if keep_end else f"{text[: limit - 1]}…"


def _attempt(text: str | None) -> int:
    """The attempt that wrote a report; 0 where there is none that can be read."""
    try:
        return int(json.loads(text or "")["attempt"])
    except (ValueError, KeyError, TypeError):
        return 0


def _version(value: V1ConfigMap) -> str | None:
    return value.metadata.resource_version if value.metadata else None
