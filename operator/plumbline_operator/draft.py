"""What one reconcile works with and what it collects. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from plumbline.api.run import RunSpec
from plumbline.api.status import RunStatus
from plumbline.graph import Graph
from plumbline_operator.desired import Desired, Reference
from plumbline_operator.observed import Fault, Observed, PodView, unix
from plumbline_operator.settings import Patience


@dataclass(frozen=True)
class Outcome:
    """What a reconcile decides. `create` lists only what is to be made or changed.

    Attributes:
        status: the new status; None leaves the object alone.
        create: PlanJob and StageJob are created and never updated; the others are created or applied.
        delete: children to delete.
        prune: keys to remove from the run's ConfigMap.
        delete_run: its time to live is over.
        requeue: seconds until it must look again without an event; None: only an event can change anything.
    """

    status: RunStatus | None = None
    create: tuple[Desired, ...] = ()
    delete: tuple[Reference, ...] = ()
    prune: tuple[str, ...] = ()
    delete_run: bool = False
    requeue: float | None = None


@dataclass
class Draft:
    """An outcome in the making, with what everybody needs to read.

    Attributes:
        wake: Unix time at which something may change without an event.
    """

    observed: Observed
    spec: RunSpec
    graph: Graph
    patience: Patience
    now: float
    create: list[Desired] = field(default_factory=list)
    delete: list[Reference] = field(default_factory=list)
    wake: float = float("inf")

    @property
    def run_name(self) -> str:
        return self.observed.run.meta.name

    @property
    def generation(self) -> int:
        return self.observed.run.meta.generation

    def look_again(self, at: float) -> None:
        """At this time something may change without an event."""
        self.wake = min(self.wake, at)

    def remove(self, kind: str, name: str, deleted: float | None) -> None:
        """Delete a child, unless that was done already."""
        reference = Reference(kind, name)
        if deleted is None and reference not in self.delete:
            self.delete.append(reference)

    def fault(self, kind: str, name: str) -> Fault | None:
        return self.observed.faults.get((kind, name))

    def delay(self, failures: int) -> float:
        """Seconds to wait after that many failures: doubling, bounded."""
        return min(self.patience.retry_limit, self.patience.retry_base * 2.0 ** min(failures - 1, 30))

    def due(self, retry_time: str, failures: int) -> bool:
        """Whether the time of a retry has come. One that is farther off than any delay: the clock was set back meanwhile."""
        due = unix(retry_time) or 0.0
        if not self.now < due <= self.now + 2 * self.delay(failures):
            return True
        self.look_again(due)
        return False

    def living_pods(self, stage: str | None) -> list[PodView]:
        """Pods that may still run, of a stage, or of planning. One that does not end long after its deletion is on a lost node."""
        found = []
        for pod in self.observed.pods:
            if pod.meta.stage != stage or pod.ended:
                continue
            if pod.meta.deleted is not None:
                given_up = pod.meta.deleted + self.patience.ending
                if self.now >= given_up:
                    continue
                self.look_again(given_up)
            found.append(pod)
        return found
