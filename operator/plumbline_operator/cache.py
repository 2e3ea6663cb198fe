"""What the watches have told us, in memory: views by kind, namespace and name, and by the run that they belong to."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from typing import TypeVar

from plumbline_operator.kinds import RUN
from plumbline_operator.observed import (
    Observed,
    PlanJobView,
    PodView,
    RayJobView,
    RayServiceView,
    RunView,
    StateView,
    View,
    WorkloadView,
)

RunKey = tuple[str, str]
"""Namespace and name of a run."""
ViewKey = tuple[str, str, str]
"""Kind, namespace and name."""
KINDS: dict[type[View], str] = {
    RunView: RUN.kind,
    PlanJobView: "Job",
    RayJobView: "RayJob",
    RayServiceView: "RayService",
    PodView: "Pod",
    WorkloadView: "Workload",
    StateView: "ConfigMap",
}
GONE = 10_000  # UIDs of deleted objects to remember: longer than any answer of our own can be under way
_V = TypeVar("_V", bound=View)


class Cache:
    """Views of all objects of interest. Pure; not safe for threads."""

    def __init__(self) -> None:
        self._views: dict[ViewKey, View] = {}
        self._runs: dict[str, RunKey] = {}
        self._children: dict[str, set[ViewKey]] = {}
        self._workloads: dict[RunKey, set[ViewKey]] = {}  # by namespace and name of the RayJob
        self._gone: OrderedDict[str, float] = OrderedDict()  # version at which each was gone

    def __len__(self) -> int:
        return len(self._views)

    def put(self, view: View) -> bool:
        """Take in a view; False where it tells nothing new.

        Watches and the answers to our own writes race: what is older than what is known, or speaks of an object known to be
        gone, is passed over.
        """
        meta = view.meta
        key = (KINDS[type(view)], meta.namespace, meta.name)
        known = self._views.get(key)
        if meta.version <= self._gone.get(meta.uid, 0) or (known is not None and meta.version <= known.meta.version):
            return False
        if known is not None:
            self._unlink(key, known)
        self._views[key] = view
        self._link(key, view)
        return True

    def drop(self, kind: str, namespace: str, name: str, uid: str, version: float = math.inf) -> View | None:
        """Forget an object that is gone; the view that was there, if it was of that object.

        Args:
            version: from when it was gone. A watch says "deleted" also of what has lost the label that the watch selects by;
                with its label back such an object comes back, in a later version.
        """
        key = (kind, namespace, name)
        known = self._views.get(key)
        same = known is not None and known.meta.uid == uid
        if known is not None and same and known.meta.version > version:
            return None
        self._gone[uid] = max(version, self._gone.get(uid, 0))
        if len(self._gone) > GONE:
            self._gone.popitem(last=False)
        if known is None or not same:
            return None
        del self._views[key]
        self._unlink(key, known)
        return known

    def mark_deleted(self, kind: str, namespace: str, name: str, uid: str, now: float) -> None:
        """Its deletion was accepted; the watch will say so later."""
        key = (kind, namespace, name)
        view = self._views.get(key)
        if view is not None and view.meta.uid == uid and view.meta.deleted is None:
            meta = dataclasses.replace(view.meta, deleted=now)
            self._views[key] = dataclasses.replace(view, meta=meta)

    def get(self, kind: str, namespace: str, name: str) -> View | None:
        return self._views.get((kind, namespace, name))

    def run(self, key: RunKey) -> RunView | None:
        view = self._views.get((RUN.kind, *key))
        return view if isinstance(view, RunView) else None

    def runs(self) -> list[RunKey]:
        return list(self._runs.values())

    def run_of(self, view: View) -> RunKey | None:
        """The run that a view belongs to, if it is known."""
        if isinstance(view, RunView):
            return view.meta.namespace, view.meta.name
        if isinstance(view, WorkloadView):
            for kind in ("RayJob", "RayService"):
                owner = self._views.get((kind, view.meta.namespace, view.owner_name))
                if owner is not None:
                    return self.run_of(owner)
        return self._runs.get(view.meta.run_uid or "")

    def versions(self, kind: str, namespace: str | None) -> dict[tuple[str, str], tuple[str, int]]:
        """(UID, resourceVersion) of all objects of a kind, by namespace and name."""
        return {
            (view.meta.namespace, view.meta.name): (view.meta.uid, view.meta.version)
            for (of_kind, of_namespace, _), view in self._views.items()
            if of_kind == kind and namespace in (None, of_namespace)
        }

    def observed(self, key: RunKey) -> Observed | None:
        """All that is known of a run, children in the order of their names; None where there is no such run."""
        run = self.run(key)
        if run is None:
            return None
        keys = self._children.get(run.meta.uid, set())
        rays = [name for kind, _, name in keys if kind in ("RayJob", "RayService")]
        workloads = {one for name in rays for one in self._workloads.get((key[0], name), ())}
        views = [self._views[one] for one in sorted(keys | workloads)]
        # Labels can be copied to anywhere; only what the run owns, or what KubeRay and Kueue made of that, counts.
        states = [view for view in _of(views, StateView) if view.meta.owner == run.meta.uid]
        return Observed(
            run,
            plan_jobs=tuple(view for view in _of(views, PlanJobView) if view.meta.owner == run.meta.uid),
            ray_jobs=tuple(view for view in _of(views, RayJobView) if view.meta.owner == run.meta.uid),
            services=tuple(view for view in _of(views, RayServiceView) if view.meta.owner == run.meta.uid),
            pods=tuple(_of(views, PodView)),
            workloads=tuple(_of(views, WorkloadView)),
            state=states[0] if states else None,
        )

    def _link(self, key: ViewKey, view: View) -> None:
        meta = view.meta
        if isinstance(view, RunView):
            self._runs[meta.uid] = (meta.namespace, meta.name)
        elif isinstance(view, WorkloadView):
            self._workloads.setdefault((meta.namespace, view.owner_name), set()).add(key)
        elif meta.run_uid is not None:
            self._children.setdefault(meta.run_uid, set()).add(key)

    def _unlink(self, key: ViewKey, view: View) -> None:
        meta = view.meta
        if isinstance(view, RunView):
            self._runs.pop(meta.uid, None)
        elif isinstance(view, WorkloadView):
            _discard(self._workloads, (meta.namespace, view.owner_name), key)
        elif meta.run_uid is not None:
            _discard(self._children, meta.run_uid, key)


_K = TypeVar("_K")


def _discard(index: dict[_K, set[ViewKey]], at: _K, key: ViewKey) -> None:
    keys = index.get(at)
    if keys is not None:
        keys.discard(key)
        if not keys:
            del index[at]


def _of(views: list[View], kind: type[_V]) -> list[_V]:
    return [view for view in views if isinstance(view, kind)]
