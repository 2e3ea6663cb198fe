"""The controller of a release: one Ray actor that all replicas of an application report to, and hear from what to serve."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, ValidationError

from plumbline.api.base import SpecModel
from plumbline.api.report import Rollback
from plumbline.api.stages.release import ReleaseJudgeSpec, ReleaseSpec
from plumbline.api.stages.serve import ServeSpec
from plumbline.artifacts import Workspace
from plumbline.errors import PlumblineError
from plumbline.progress import Event
from plumbline.serving.release import policy
from plumbline.serving.release.figures import Window
from plumbline.serving.release.record import Phase, Record, Records, Version
from plumbline.state import StageReports
from plumbline.state import State as RunState

if TYPE_CHECKING:
    from plumbline.plan import Plan
    from plumbline.serving.chat import ServedModel

log = logging.getLogger(__name__)

NAMESPACE = "plumbline"
ON_HEAD = {"node:__internal_head__": 0.001}  # only its Pod may write the run's ConfigMap, and it goes with no load
GONE_SECONDS = 30.0  # without a report a replica is no more
LATE_SECONDS = 10.0  # that it is given beyond, before it counts as dead
LOOK_SECONDS = 2.0  # between two looks for a request
REMOTE_LOOK_SECONDS = 10.0  # in an object store, where a look costs something
SAVE_SECONDS = 10.0  # between two writes of figures; transitions are written at once
CRASHES = 3  # in one step, and no fewer than there are replicas: chance is no explanation


class ReleaseArguments(SpecModel):
    """What an application's controller is made from.

    Attributes:
        workspace, run, stage: where its record lies.
        version: what to serve.
        rules: how it takes the place of what served before; None: at once.
        holder: tells this application from others of the same stage.
        asked: path of a file in which a rollback is asked for, beside the one in the workspace.
    """

    model_config = ConfigDict(use_attribute_docstrings=False)

    workspace: str
    run: str
    stage: str
    version: Version
    rules: ReleaseSpec | None = None
    holder: str
    asked: str | None = None

    @classmethod
    def of(cls, plan: Plan, stage: str, model: ServedModel, holder: str, asked: Path | None = None) -> ReleaseArguments:
        """Of a serve stage that serves this model."""
        spec = plan.graph[stage].spec
        assert isinstance(spec, ServeSpec)
        version = Version(fingerprint=plan.fingerprints[stage], model=asdict(model))
        return cls(
            workspace=plan.workspace_uri,
            run=plan.name,
            stage=stage,
            version=version,
            rules=spec.release,
            holder=holder,
            asked=str(asked) if asked else None,
        )

    @property
    def actor(self) -> str:
        """Name of the controller's actor."""
        return f"release {self.run} {self.stage} {self.holder}"


@dataclass(frozen=True)
class State:
    """What replicas must know."""

    phase: Phase
    stable: Version
    candidate: Version | None
    percent: int
    shadow_percent: int
    judge: ReleaseJudgeSpec | None
    words: str
    replicas: int

    @classmethod
    def of(cls, record: Record, replicas: int) -> State:
        rules = record.rules if record.phase == "shadow" else None
        shadow, judge = (rules.shadow.percent, rules.judge) if rules is not None else (0, None)
        candidate = record.candidate if record.releasing else None
        return cls(record.phase, record.stable, candidate, record.percent, shadow, judge, record.words(), replicas)


@dataclass(frozen=True)
class Report:
    """What a replica tells about once a second.

    Attributes:
        replica: which.
        about: fingerprint of the candidate that the window is about.
        window: figures since its last report.
        loaded: fingerprints of the versions that it could answer with; with the first report it has loaded what was stable.
        failed: fingerprint → why it could not be loaded.
        chats: whether the candidate gives answers that can be compared; an encoder does not, and takes over once it is loaded.
    """

    replica: str
    about: str | None
    window: Window
    loaded: frozenset[str] = frozenset()
    failed: dict[str, str] = field(default_factory=dict)
    chats: bool = True


class Controller:
    """Holds the record, and takes a release from step to step. Plain: `connect` makes an actor of it.

    The record is taken over from the application before when the first replica reports: one that never serves leaves it alone, and
    the other in charge.

    Args:
        arguments: `ReleaseArguments` as JSON.
        restarted: an actor that Ray restarted goes on with the record; a new one begins with its version.
        clock: Unix time.
        told: called with every new record.

    Raises:
        PlumblineError: the record cannot be read.
    """

    def __init__(
        self,
        arguments: str,
        restarted: bool = False,
        clock: Callable[[], float] = time.time,
        told: Callable[[Record], None] | None = None,
    ) -> None:
        self._arguments = ReleaseArguments.model_validate_json(arguments)
        self._clock, self._told = clock, told
        self._records = Records(self._arguments.workspace, self._arguments.run, self._arguments.stage)
        self._replicas: dict[str, tuple[float, Report]] = {}
        self._looked = self._saved = 0.0
        self._missed: dict[str, float] = {}  # since when
        self._crashed = 0.0, 0  # in the step that began then
        found, holder = self._records.read(), self._arguments.holder
        self._fenced = restarted and found is not None and holder in found.superseded
        self._holds = self._fenced or (restarted and found is not None and holder == found.holder)
        self._record = found if found is not None and self._holds else self._begun(found)

    def _begun(self, found: Record | None) -> Record:
        if found is not None and not _is_there(found.stable):
            log.warning("release: the model that served before is gone: what is to be served now is not released in steps")
            found = None
        return policy.begin(found, self._arguments.version, self._arguments.rules, self._arguments.holder, self._clock())

    def _take_over(self) -> bool:
        """Become the record's holder; returns whether it is, or was."""
        if not self._holds:
            try:
                record = self._begun(self._records.read())  # what was released meanwhile counts
                self._records.write(record)
            except Exception as error:  # each store has errors of its own
                log.warning("release: the record cannot be taken over, so nothing changes: %s", error)
                return False
            self._record, self._holds = record, True
            self._tell()
        return True

    def state(self) -> State:
        """What to serve now."""
        now = self._clock()
        return State.of(self._record, sum(now - since < GONE_SECONDS for since, _ in self._replicas.values()))

    def left(self, replica: str) -> None:
        """A replica ends, as it should."""
        self._replicas.pop(replica, None)

    def report(self, report: Report) -> State:
        """Take a replica's report; returns what to serve now."""
        now = self._clock()
        self._replicas[report.replica] = now, report
        if not self._take_over():
            return self.state()
        record = self._obeyed(self._mourned(self._record, now), now)
        candidate = record.candidate.fingerprint if record.candidate and record.releasing else None
        if candidate is not None and candidate in report.failed:
            record = policy.not_loaded(record, report.failed[candidate], now)
        elif record.phase == "loading" and all(
            candidate in one.loaded for last, one in self._replicas.values() if now - last < GONE_SECONDS
        ):
            record = policy.loaded(record if report.chats else record.model_copy(update={"rules": None}), now)
        elif candidate is not None and report.about == candidate and record.phase == self._record.phase:
            record = policy.advance(record, record.window + report.window, now)
        self._set(record, now)
        return self.state()

    def propose(self, version: str, rules: str | None) -> State:
        """Release another version in place.

        Args:
            version, rules: JSON of a `Version` and of a `ReleaseSpec`.
        """
        wanted = Version.model_validate_json(version)
        now = self._clock()
        self._take_over()
        self._set(policy.propose(self._record, wanted, ReleaseSpec.model_validate_json(rules) if rules else None, now), now)
        return self.state()

    def _mourned(self, record: Record, now: float) -> Record:
        """The record after replicas that ended without a word: a candidate that takes them with it cannot be counted by them."""
        silent = [name for name, (last, _) in self._replicas.items() if now - last >= GONE_SECONDS]
        self._missed = {name: self._missed.get(name, now) for name in silent}
        # Not at once: after a while in which nothing was read here, their reports may be the next.
        gone = [name for name, missed in self._missed.items() if now - missed >= LATE_SECONDS]
        since, crashed = self._crashed if self._crashed[0] == record.since else (record.since, 0)
        crashed += sum(self._replicas.pop(name)[0] >= since for name in gone)
        self._crashed = since, crashed
        if not record.releasing or crashed < max(CRASHES, len(self._replicas)):
            return record
        return policy.roll_back(record, f"{crashed} replicas died in this step", now)

    def _obeyed(self, record: Record, now: float) -> Record:
        """The record after a request, if there is a new one."""
        local = Workspace(self._arguments.workspace).is_local
        if now - self._looked < (LOOK_SECONDS if local else REMOTE_LOOK_SECONDS):
            return record
        self._looked = now
        found = []
        try:
            found.append(self._records.asked())
        except Exception as error:  # each store has errors of its own
            log.warning("release: it cannot be seen whether a rollback is asked for: %s", error)
        if self._arguments.asked is not None:
            with suppress(OSError, ValidationError):
                found.append(Rollback.model_validate_json(Path(self._arguments.asked).read_bytes()))
        asked = max((one for one in found if one is not None), key=lambda one: one.id, default=None)
        return record if asked is None else policy.obey(record, asked, now)

    def _set(self, record: Record, now: float) -> None:
        """Write, then believe: what is not in the record has not happened."""
        if record == self._record or self._fenced or not self._holds:
            return
        if record.model_copy(update={"window": self._record.window}) == self._record and now - self._saved < SAVE_SECONDS:
            self._record = record  # nothing but figures
            return
        try:
            found = self._records.read()
            if found is not None and found.holder != record.holder:
                self._fenced = True
                log.warning("release: another application serves this stage now; this one stays as it is")
                return
            self._records.write(record)
        except Exception as error:
            log.warning("release: the record cannot be written, so nothing changes: %s", error)
            return
        moved = record.history != self._record.history
        self._record, self._saved = record, now
        if moved:
            self._tell()

    def _tell(self) -> None:
        log.info("release: %s", self._record.words())
        if self._told is not None:
            self._told(self._record)


def _is_there(version: Version) -> bool:
    """Whether the version's model still exists; one that cannot be looked for counts as there, and loading it will tell."""
    reference: Any = version.model["reference"]
    if not reference.get("fingerprint"):
        return True
    try:
        return Workspace(reference["workspace"]).find(reference["kind"], reference["fingerprint"]) is not None
    except PlumblineError:
        return True


def connect(arguments: ReleaseArguments) -> Any:
    """A handle of the application's controller, which is started where there is none. It ends with its Ray cluster, or by `end`."""
    import ray

    options = {"name": arguments.actor, "namespace": NAMESPACE, "get_if_exists": True, "lifetime": "detached"}
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, resources=ON_HEAD)(_Actor)
    return actor.options(**options).remote(arguments.model_dump_json(by_alias=True))


def end(arguments: ReleaseArguments) -> None:
    """End the controller, if it runs."""
    import ray

    try:
        ray.kill(ray.get_actor(arguments.actor, NAMESPACE))
    except ValueError:  # there is none
        return


class _Actor(Controller):
    """The controller in a process of its own."""

    def __init__(self, arguments: str) -> None:
        import ray

        logging.getLogger("plumbline").setLevel(logging.INFO)
        super().__init__(arguments, ray.get_runtime_context().was_current_actor_reconstructed, told=reporter(arguments))


def reporter(arguments: str) -> Callable[[Record], None] | None:
    """In a cluster the run's ConfigMap is told, and so the stage's status."""
    state = RunState.from_environment()
    if state is None:
        return None
    asked = ReleaseArguments.model_validate_json(arguments)
    reports = StageReports(state, asked.stage, 1, asked.version.fingerprint)

    def tell(record: Record) -> None:
        reports(Event(asked.stage, record.words() if record.phase != "full" or record.previous else ""))

    return tell
