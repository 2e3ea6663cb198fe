"""Where rollout actors and the reward model go: never on an idle head, never where training workers must be."""

from __future__ import annotations

from typing import Any

from plumbline.rollout.placement import HEAD, Placement, placement

IDLE, LOCAL = {HEAD: 1.0}, {HEAD: 1.0, "CPU": 2.0}
NOT_ON_HEAD = {"ray.io/node-id": "!head"}


def places(*workers: dict[str, float], head: dict[str, float] = IDLE, gpus: float | None = None, **asked: Any) -> Placement:
    nodes = {"head": head} | {f"node-{i}": has for i, has in enumerate(workers)}
    found = sum(has.get("GPU", 0) for has in nodes.values())
    usual = {"workers": 2, "trainers": 1, "judged": True, "share": None}
    return placement(nodes, found if gpus is None else gpus, **usual | asked)


def gpus(found: Placement) -> tuple[float, float]:
    return found.actor["num_gpus"], found.judge["num_gpus"]


def test_on_one_machine_they_go_beside_training_and_take_nothing() -> None:
    found = places(head=LOCAL)
    assert found.actor == found.judge == {"max_restarts": -1, "scheduling_strategy": "SPREAD", "num_gpus": 0}
    assert found.spare == 0
    assert found.remarks == ()
    assert "label_selector" not in places(head={HEAD: 1.0, "GPU": 1.0}).actor  # a head for work


def test_an_idle_head_stays_idle() -> None:
    found = places({"CPU": 2.0})
    assert found.actor["label_selector"] == found.judge["label_selector"] == NOT_ON_HEAD
    assert "num_cpus" not in found.actor  # two CPUs may be two training workers'


def test_pods_that_are_kept_for_them_take_them_all() -> None:
    found = places({"CPU": 2.0}, {"rollout": 2.0}, {"rollout": 2.0})
    for options in (found.actor, found.judge):
        assert options["resources"] == {"rollout": 1}
        assert "label_selector" not in options
    assert found.remarks == ()


def test_gpus_are_taken_where_training_leaves_them() -> None:
    node = {"CPU": 16.0, "GPU": 4.0}
    assert gpus(places(node)) == (1, 1)
    assert places(node).remarks == ()
    found = places(node, trainers=2)
    assert gpus(found) == (1, 0)
    assert found.remarks == (
        "the reward model runs on a CPU: no GPU is left beside 2 rollout actors, and 2 training workers need the cluster's 4 GPUs",
    )
    found = places(node, trainers=3, judged=False)
    assert gpus(found) == (0, 0)
    assert found.remarks == ("2 rollout actors run on CPUs: 3 training workers need the cluster's 4 GPUs",)
    assert gpus(places(trainers=3, gpus=6)) == (1, 1)  # it grows to that


def test_of_gpus_in_pods_of_their_own_training_takes_none_and_others_do_not_count() -> None:
    trainers = {"CPU": 16.0, "GPU": 4.0}
    assert gpus(places(trainers, {"rollout": 3.0, "GPU": 3.0}, trainers=4)) == (1, 1)
    found = places(trainers, {"rollout": 3.0, "GPU": 2.0}, trainers=2)  # two GPUs that no actor can get at
    assert gpus(found) == (1, 0)
    assert "their Pods have 2 GPUs" in found.remarks[0]
    assert gpus(places(trainers, {"rollout": 3.0}, trainers=1)) == (0, 0)


def test_colocated_actors_leave_each_training_worker_its_part_of_a_gpu() -> None:
    node = {"CPU": 16.0, "GPU": 4.0}
    for workers, judged in ((4, True), (4, False), (3, True), (2, True), (1, False)):
        found = places(node, {"rollout": 9.0}, workers=workers, trainers=4, judged=judged, share=0.51)
        actor, judge = gpus(found)
        assert "resources" not in found.actor
        assert actor > 0.5  # never two on one GPU
        assert 4 * 0.51 >= workers * actor + judged * judge + found.spare * 0.51 > 4 * 0.5
        assert workers + found.spare + (judged and judge > 0.5) == 4  # no GPU has room for a second training worker
        assert actor + (judge if judged and judge < 0.5 else 0) <= 0.51
    assert gpus(places(share=0.51)) == (0, 0)  # without GPUs there is nothing to share
