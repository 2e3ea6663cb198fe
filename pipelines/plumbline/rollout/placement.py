"""Where rollout actors and the reward model may be: what a Ray cluster has → the options that their actors are started with. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plumbline.api.ray_settings import ROLLOUT

Options = dict[str, Any]

HEAD = "node:__internal_head__"  # Ray's own resource of the head
NODE = "ray.io/node-id"  # Ray's own label
REWARD_GPU = (
    0.005  # of an actor's part of a shared GPU, for a reward model that has no place of its own: Ray counts, CUDA shares
)


@dataclass(frozen=True)
class Placement:
    """Options for Ray.

    Attributes:
        actor, judge: of each rollout actor, and of the reward model's.
        spare: parts of GPUs to be held though nobody is there: what a training worker leaves would do for a second one.
        remarks: for people.
    """

    actor: Options
    judge: Options
    spare: int
    remarks: tuple[str, ...]


def placement(
    nodes: Mapping[str, Mapping[str, float]], gpus: float, *, workers: int, trainers: int, judged: bool, share: float | None
) -> Placement:
    """Places that training workers, who come later, do not need; so nobody waits for another.

    Nodes with the resource `rollout`, where there are some; else all but a head that Ray is to put nothing on. No CPUs are asked
    for: there may be no more than training workers take.

    Args:
        nodes: resources of each living node, by its id.
        gpus: of the cluster, and of what it may grow to.
        workers: rollout actors.
        trainers: training workers.
        judged: there is a reward model.
        share: what an actor takes of a training worker's GPU, more than half; None: they have GPUs of their own, or none.
    """
    own = [has for has in nodes.values() if has.get(ROLLOUT)] if share is None else []
    where: Options = {"max_restarts": -1, "scheduling_strategy": "SPREAD"}
    if own:
        where["resources"] = {ROLLOUT: 1}
    for node, has in nodes.items():
        if not own and HEAD in has and not has.get("CPU") and not has.get("GPU"):
            where["label_selector"] = {NODE: f"!{node}"}
    if share is not None and gpus:
        left = int(max(trainers, sum(has.get("GPU", 0) for has in nodes.values()))) - workers
        alone = judged and left > 0
        actor = share - REWARD_GPU if judged and not alone else share
        judge = share if alone else REWARD_GPU
        return Placement(where | {"num_gpus": actor}, where | {"num_gpus": judge}, max(0, left - alone), ())
    free = sum(has.get("GPU", 0) for has in own) if own else gpus - trainers
    of_actor, of_judge = int(free >= workers), int(free > workers)
    taken = f"their Pods have {free:g} GPUs" if own else f"{trainers} training workers need the cluster's {gpus:g} GPUs"
    remarks = []
    if gpus and not of_actor:
        remarks.append(f"{workers} rollout actors run on CPUs: {taken}")
    if gpus and judged and not of_judge:
        remarks.append(f"the reward model runs on a CPU: no GPU is left beside {workers} rollout actors, and {taken}")
    return Placement(where | {"num_gpus": of_actor}, where | {"num_gpus": of_judge}, 0, tuple(remarks))
