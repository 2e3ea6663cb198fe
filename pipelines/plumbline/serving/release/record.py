"""The release record of a serve stage, `WORKSPACE/releases/RUN/STAGE.json`: what serves, what is to, and how it came to that.

One controller writes it. Whoever wants a rollback leaves a request beside it.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError

from plumbline.api.base import SpecModel
from plumbline.api.report import Rollback, rollback_key
from plumbline.api.stages.release import ReleaseSpec
from plumbline.artifacts import Workspace
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.serving.release.figures import Window

FOLDER = "releases"
MAX_HISTORY, MAX_REFUSED, MAX_SUPERSEDED = 50, 50, 20
Phase = Literal["full", "loading", "shadow", "canary", "rolledBack"]
RELEASING: tuple[Phase, ...] = ("loading", "shadow", "canary")
"""Phases in which the candidate is being released."""


class Version(SpecModel):
    """Something to serve."""

    fingerprint: str
    """Of the serve stage: it changes with all that clients could notice."""
    model: dict[str, JsonValue]
    """Fields of a `ServedModel`."""

    @property
    def name(self) -> str:
        """`model` in requests."""
        return str(self.model["name"])

    @property
    def answers_as(self) -> str:
        """`system_fingerprint` of its answers; empty for a bare base."""
        reference: Any = self.model["reference"]
        return reference.get("fingerprint") or ""


class Change(SpecModel):
    """One line of the history."""

    time: float
    phase: Phase
    percent: int
    stable: str
    candidate: str | None = None
    reason: str


class Record(SpecModel):
    """The state of a release."""

    schema_version: Literal[1] = 1
    holder: str
    """The application whose controller writes."""
    superseded: list[str] = []
    """Those that did before, the last of them."""
    stable: Version
    """What users get who are not chosen for the candidate."""
    previous: Version | None = None
    """What was stable before, and good."""
    candidate: Version | None = None
    """What is released, or was rolled back."""
    rules: ReleaseSpec | None = None
    """For the candidate; None: it takes over once it is loaded."""
    phase: Phase = "full"
    percent: Annotated[int, Field(ge=0, le=100)] = 0
    """Of callers that get the candidate."""
    since: float
    """Unix time at which this step began."""
    window: Window = Window()
    """Figures of this step so far."""
    reason: str = ""
    """Why it is as it is."""
    refused: dict[str, str] = {}
    """Fingerprints that were rolled back, and why; they stay so until they are asked for by `plumbline rollback --to`."""
    obeyed: str = ""
    """The last request that was."""
    history: list[Change] = []

    @property
    def releasing(self) -> bool:
        return self.phase in RELEASING

    def words(self) -> str:
        """The state in a sentence."""
        new = self.candidate.fingerprint if self.candidate else ""
        said = {
            "full": f"{self.stable.fingerprint} serves everyone",
            "loading": f"{new} is being loaded beside {self.stable.fingerprint}",
            "shadow": f"shadow: {new} answers copies of requests, {self.stable.fingerprint} serves",
            "canary": f"canary: {new} serves {self.percent} %, {self.stable.fingerprint} the others",
            "rolledBack": f"{new} was rolled back, {self.stable.fingerprint} serves",
        }[self.phase]
        return f"{said} ({self.reason})" if self.reason else said


class Records:
    """Where a stage's record lies."""

    def __init__(self, workspace: str, run: str, stage: str) -> None:
        self.workspace, self.run, self.stage = workspace, run, stage
        self._store = Workspace(workspace)

    def read(self) -> Record | None:
        """The record; None where nothing was served yet.

        Raises:
            PlumblineError: it cannot be read as one.
        """
        name = f"{self.stage}.json"
        found = self._store.read_json(FOLDER, self.run, name)
        if found is None:
            return None
        try:
            return Record.model_validate_json(json.dumps(found))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            at = ".".join(str(part) for part in first["loc"])
            raise InvalidInput(
                f"{self._store.uri}/{FOLDER}/{self.run}/{name} is no release record of this version ({at}: {first['msg']}); "
                "delete it, and what is served next counts as the first release"
            ) from error

    def write(self, record: Record) -> None:
        """Replace it."""
        self._store.write_json(record.model_dump(mode="json", by_alias=True), FOLDER, self.run, f"{self.stage}.json")

    def asked(self) -> Rollback | None:
        """What was asked for last; a file that cannot be read counts as none."""
        try:
            found = self._store.read_json(FOLDER, self.run, rollback_key(self.stage))
            return None if found is None else Rollback.model_validate(found)
        except (PlumblineError, ValidationError):
            return None

    def ask(self, to: str | None) -> Rollback:
        """Ask the controller for a rollback."""
        asked = Rollback.make(to)
        self._store.write_json(asked.model_dump(mode="json"), FOLDER, self.run, rollback_key(self.stage))
        return asked
