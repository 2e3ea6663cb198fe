"""A namespace with runs in it, as a test sees it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from plumbline.api.run import API_VERSION
from support.patience import wait_for
from support.rest import CONFIG_MAPS, EVENTS, RUNS, Object

if TYPE_CHECKING:
    from support.installation import Installation

CLAIM = "workspace"


class Project:
    """A namespace, its runs, and what the fake cluster makes of them."""

    def __init__(self, installation: Installation, name: str) -> None:
        self.on, self.name, self.fake = installation, name, installation.fake

    def make_claim(self, name: str = CLAIM) -> None:
        meta = {"name": name, "namespace": self.name}
        self.on.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": {}})

    def apply(self, spec: Object, name: str = "run", annotations: dict[str, str] | None = None) -> Object:
        """Apply a run."""
        meta = {"name": name, "namespace": self.name, "annotations": annotations or {}}
        return self.on.apply({"apiVersion": API_VERSION, "kind": "AlignmentRun", "metadata": meta, "spec": spec})

    def patch(self, body: Object, name: str = "run") -> None:
        """Merge patch of a run."""
        self.on.patch(RUNS, self.name, name, body)

    def status(self, name: str = "run") -> Object:
        return (self.on.get(RUNS, self.name, name) or {}).get("status") or {}

    def stage(self, stage: str, name: str = "run") -> Object:
        """Status of a stage; empty before there is one."""
        return next((one for one in self.status(name).get("stages", ()) if one["name"] == stage), {})

    def condition(self, type: str, name: str = "run") -> Object:
        return next((one for one in self.status(name).get("conditions", ()) if one["type"] == type), {})

    def wait(self, true: Callable[[], Any], timeout: float = 150, name: str = "run") -> Any:
        """Until something is true; returns it.

        Raises:
            TimeoutError: with the run's status and the operator's last words.
        """

        def words() -> str:
            status = json.dumps(self.status(name), indent=1)
            log = self.on.operator.log.read_text(errors="replace")[-3000:]
            seen = [(e.stage, e.attempt, e.state) for e in self.fake.journal if e.namespace == self.name]
            return f"{status}\n\n{seen}\n\n{self.fake.violations}\n\n{log}"

        return wait_for(true, timeout, words)

    def wait_condition(self, type: str, reason: str | None = None, status: str = "True", name: str = "run") -> Object:
        """Until a condition holds, for the generation that is stored."""

        def true() -> Object | None:
            run = self.on.get(RUNS, self.name, name) or {}
            current = run.get("metadata", {}).get("generation")
            for one in run.get("status", {}).get("conditions", ()):
                if (one["type"], one["status"]) == (type, status) and reason in (None, one["reason"]):
                    found: Object = one
                    return found if one["observedGeneration"] == current else None
            return None

        found: Object = self.wait(true, name=name)
        return found

    def wait_stage(self, stage: str, phase: str | None = None, reason: str | None = None, name: str = "run") -> Object:
        """Until a stage is in a phase or says a reason."""

        def true() -> Object | None:
            one = self.stage(stage, name)
            return one if one and phase in (None, one["phase"]) and reason in (None, one.get("reason")) else None

        found: Object = self.wait(true, name=name)
        return found

    def saw_stage(self, stage: str, true: Callable[[Object], Any], name: str = "run") -> Object:
        """Until a stage is, or was for a moment, as `true` says; returns it as it was then."""

        def found() -> Object | None:
            statuses = list(self.fake.statuses[self.name, name])
            stages = (one for status in statuses for one in status.get("stages", ()) if one["name"] == stage)
            return next((one for one in stages if true(one)), None)

        seen: Object = self.wait(found, name=name)
        return seen

    def state(self, name: str = "run-state") -> Object:
        """Data of the run's ConfigMap."""
        return (self.on.get(CONFIG_MAPS, self.name, name) or {}).get("data") or {}

    def events(self) -> list[tuple[str, str, str]]:
        """(type, reason, message) of the namespace's Events."""
        return [(one["type"], one["reason"], one["message"]) for one in self.on.list(EVENTS, self.name)]


def pipeline(*stages: Object, **fields: Any) -> Object:
    """A spec: the given stages, or data → sft → check → live."""
    return {
        "model": {"base": "builtin://tiny"},
        "workspace": {"uri": "runs", "persistentVolumeClaim": CLAIM},
        "stages": list(stages) or [DATA, SFT, CHECK, LIVE],
        "backoffLimit": 2,
        **fields,
    }


DATA: Object = {"name": "data", "curate": {"sources": [{"uri": "builtin://skills", "limit": 100}]}}
SFT: Object = {"name": "sft", "sft": {"maxSteps": 10}}
CHECK: Object = {
    "name": "check",
    "evaluate": {
        "tasks": [{"name": "skills", "benchmark": "skills"}],
        "gates": [{"task": "skills", "baseline": "base", "minEffect": 0.1}],
    },
}
LIVE: Object = {"name": "live", "serve": {}}


def changed(stage: Object, **fields: Any) -> Object:
    """A stage with other fields in its block."""
    copied = copy.deepcopy(stage)
    block = next(value for key, value in copied.items() if key not in ("name", "inputs", "cluster"))
    block.update(fields)
    return copied
