"""The cache: order of arrival, deletions, and which object belongs to which run."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from plumbline.api import labels
from plumbline_operator.cache import Cache
from plumbline_operator.observed import View, project

NS = "team"


def of(kind: str, name: str, version: int = 1, uid: str = "", **meta: Any) -> View:
    meta = {"namespace": NS, "name": name, "uid": uid or f"uid-{kind}-{name}", "resourceVersion": str(version), **meta}
    return project({"kind": kind, "metadata": meta})


def owned(run: str, kind: str, name: str, version: int = 1, uid: str = "") -> View:
    owner = {"kind": "AlignmentRun", "name": run, "uid": f"uid-AlignmentRun-{run}", "controller": True}
    return of(kind, name, version, uid, ownerReferences=[owner], labels={labels.RUN_UID: owner["uid"]})


def labelled(run: str, kind: str, name: str) -> View:
    return of(kind, name, labels={labels.RUN_UID: f"uid-AlignmentRun-{run}"})


def workload(name: str, job: str) -> View:
    return of("Workload", name, ownerReferences=[{"kind": "RayJob", "name": job, "uid": "?", "controller": True}])


FAMILY = (
    of("AlignmentRun", "a"),
    of("AlignmentRun", "b"),
    owned("a", "ConfigMap", "a-state"),
    owned("a", "Job", "a-plan-1-1"),
    owned("a", "RayJob", "a-sft-1"),
    owned("a", "RayService", "a-live"),
    labelled("a", "Pod", "a-sft-1-head"),
    labelled("b", "Pod", "b-sft-1-head"),
    workload("rayjob-a-sft-1", "a-sft-1"),
    workload("rayjob-other", "other"),
)


@given(st.permutations(FAMILY))
def test_a_run_is_observed_with_all_that_belongs_to_it(views: list[View]) -> None:
    cache = Cache()
    assert all(cache.put(view) for view in views)
    observed = cache.observed((NS, "a"))
    assert observed is not None
    assert observed.state is not None
    assert [view.meta.name for view in observed.plan_jobs] == ["a-plan-1-1"]
    assert [view.meta.name for view in observed.ray_jobs] == ["a-sft-1"]
    assert [view.meta.name for view in observed.services] == ["a-live"]
    assert [view.meta.name for view in observed.pods] == ["a-sft-1-head"]
    assert [view.meta.name for view in observed.workloads] == ["rayjob-a-sft-1"]
    assert [cache.run_of(view) for view in FAMILY] == [(NS, run) if run != "-" else None for run in "abaaaaaba-"]


def test_labels_alone_make_no_child() -> None:
    cache = Cache()
    cache.put(of("AlignmentRun", "a"))
    cache.put(labelled("a", "RayJob", "a-sft-1"))
    cache.put(labelled("a", "ConfigMap", "a-state"))
    observed = cache.observed((NS, "a"))
    assert observed is not None
    assert observed.ray_jobs == ()
    assert observed.state is None


def test_what_is_older_or_the_same_is_passed_over() -> None:
    cache = Cache()
    assert cache.put(owned("a", "RayJob", "j", 7))
    assert not cache.put(owned("a", "RayJob", "j", 6))
    assert not cache.put(owned("a", "RayJob", "j", 7))
    assert cache.put(owned("a", "RayJob", "j", 8))


def test_an_object_of_a_used_name_is_another() -> None:
    cache = Cache()
    cache.put(of("AlignmentRun", "a"))
    cache.put(owned("a", "RayJob", "j", 5, "first"))
    cache.put(owned("a", "RayJob", "j", 9, "second"))  # our own answer came before the watch told of the deletion
    assert not cache.put(owned("a", "RayJob", "j", 6, "first"))
    assert cache.drop("RayJob", NS, "j", "first") is None
    observed = cache.observed((NS, "a"))
    assert observed is not None
    assert [job.meta.uid for job in observed.ray_jobs] == ["second"]


def test_a_late_answer_does_not_bring_back_what_is_gone() -> None:
    cache = Cache()
    cache.put(owned("a", "RayJob", "j", 5))
    cache.drop("RayJob", NS, "j", "uid-RayJob-j")
    assert not cache.put(owned("a", "RayJob", "j", 6))
    assert cache.get("RayJob", NS, "j") is None


def test_what_lost_its_label_comes_back_with_it() -> None:
    cache = Cache()
    cache.put(owned("a", "RayJob", "j", 5))
    assert cache.drop("RayJob", NS, "j", "uid-RayJob-j", 6) is not None
    assert not cache.put(owned("a", "RayJob", "j", 5)), "a late answer"
    assert cache.put(owned("a", "RayJob", "j", 7))
    assert cache.drop("RayJob", NS, "j", "uid-RayJob-j", 6) is None, "a late event"
    assert cache.get("RayJob", NS, "j") is not None


def test_a_deletion_that_was_accepted_shows_at_once() -> None:
    cache = Cache()
    cache.put(owned("a", "RayJob", "j", 5))
    cache.mark_deleted("RayJob", NS, "j", "another", 3.0)
    view = cache.get("RayJob", NS, "j")
    assert view is not None
    assert view.meta.deleted is None
    cache.mark_deleted("RayJob", NS, "j", "uid-RayJob-j", 3.0)
    view = cache.get("RayJob", NS, "j")
    assert view is not None
    assert view.meta.deleted == 3.0


def test_a_child_that_loses_its_run_belongs_to_none() -> None:
    cache = Cache()
    cache.put(of("AlignmentRun", "a"))
    cache.put(owned("a", "RayJob", "j", 5))
    cache.put(of("RayJob", "j", 6))
    observed = cache.observed((NS, "a"))
    assert observed is not None
    assert observed.ray_jobs == ()


def test_a_run_that_is_gone_is_not_observed() -> None:
    cache = Cache()
    cache.put(of("AlignmentRun", "a"))
    cache.put(owned("a", "RayJob", "j"))
    cache.drop("AlignmentRun", NS, "a", "uid-AlignmentRun-a")
    assert cache.observed((NS, "a")) is None
    assert cache.run_of(owned("a", "RayJob", "j")) is None


def test_versions_are_those_of_one_kind_and_namespace() -> None:
    cache = Cache()
    cache.put(owned("a", "RayJob", "j", 5))
    cache.put(owned("a", "Job", "k", 6))
    assert cache.versions("RayJob", None) == {(NS, "j"): ("uid-RayJob-j", 5)}
    assert cache.versions("RayJob", "elsewhere") == {}


@given(st.lists(st.tuples(st.sampled_from("xy"), st.integers(1, 9), st.sampled_from(["put", "drop"])), max_size=30))
def test_the_latest_wins_whatever_the_order(events: list[tuple[str, int, str]]) -> None:
    cache, gone, best = Cache(), dict[str, int](), None
    for name, version, what in events:
        uid = f"{name}{version // 4}"
        if what == "drop":
            cache.drop("RayJob", NS, "j", uid, version)
            if best is None or best[0] != uid or best[1] <= version:
                gone[uid] = max(version, gone.get(uid, 0))
                best = None if best is not None and best[0] == uid else best
        else:
            accepted = cache.put(owned("a", "RayJob", "j", version, uid))
            assert accepted == (version > gone.get(uid, 0) and (best is None or version > best[1]))
            best = (uid, version) if accepted else best
    view = cache.get("RayJob", NS, "j")
    assert (view and (view.meta.uid, view.meta.version)) == best
