"""The shape of the Ray cluster that a stage runs on. Nothing here enters a fingerprint."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from plumbline.api.base import Name, NonNegativeInt, PositiveInt, Quantity, SpecModel, list_map, validated_by


class PodShape(SpecModel):
    """Resources and placement of one Pod."""

    cpu: Quantity | None = None
    """CPU request and limit. Default: 4 for each GPU, 2 without."""
    memory: Quantity | None = None
    """Memory request and limit. Default: 32Gi for each GPU, 4Gi without."""
    gpus: NonNegativeInt = 0
    """Whole GPUs."""
    accelerator: str | None = Field(default=None, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", max_length=63)
    """Accelerator type, as Ray names it (`H100`, `A100`, …). The operator's settings say which node labels stand for it; one
    that they do not know places nothing."""
    node_selector: dict[str, str] | None = None
    """Node labels that the Pod needs."""
    template: dict[str, Any] | None = Field(default=None, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
    """Pod template laid over the generated one: tolerations, volumes, security context, … Maps are merged, null removes a
    key (apply with `--server-side`: plain `kubectl apply` drops nulls); containers, env and volumes are merged by name,
    volumeMounts by mountPath; tolerations are added. Ray's container is called `ray-head` or `ray-worker`. What Plumbline
    itself needs to work (its labels, its mounts, PLUMBLINE_*) stays."""


class WorkerGroup(PodShape):
    """A group of like worker Pods."""

    model_config = validated_by(
        ("self.name != 'head'", "'head' is reserved for the head Pod; take another name"),
        ("has(self.minReplicas) == has(self.maxReplicas)", "give both minReplicas and maxReplicas, or none"),
        (
            "!has(self.minReplicas) || !has(self.maxReplicas) || "
            "(self.minReplicas <= self.replicas && self.replicas <= self.maxReplicas)",
            "replicas must lie between minReplicas and maxReplicas",
        ),
    )

    name: Name = "workers"
    """Group name. In an `rlhf` stage with `placement: disaggregated` one named `rollout`, of a fixed number, is for rollout actors and
    the reward model alone, if the others have room for all training workers."""
    replicas: NonNegativeInt = 1
    """Pods to start with."""
    min_replicas: NonNegativeInt | None = None
    """With `maxReplicas`: lets Ray's autoscaler change the number. In a Kueue queue it stays at `replicas`."""
    max_replicas: PositiveInt | None = None
    """See `minReplicas`."""

    @property
    def autoscaled(self) -> bool:
        return self.min_replicas is not None and self.max_replicas is not None

    def problems(self) -> list[tuple[str, str]]:
        """Contradictions: (field below the group, sentence)."""
        found = []
        if self.name == "head":
            found.append(("name", "'head' is reserved for the head Pod; take another name"))
        if self.min_replicas is None and self.max_replicas is None:
            return found
        if self.min_replicas is None or self.max_replicas is None:
            found.append(("minReplicas", "give both minReplicas and maxReplicas, or none"))
        elif not self.min_replicas <= self.replicas <= self.max_replicas:
            between = f"minReplicas {self.min_replicas} and maxReplicas {self.max_replicas}"
            found.append(("replicas", f"{self.replicas} is not between {between}"))
        return found


class ClusterSpec(SpecModel):
    """One Ray cluster. What a stage says here goes before what the run says, field by field, `head` and `workers` as wholes.

    With no `workers` said anywhere the stage's kind decides: as many Pods as it has training workers or replicas, in `rlhf` one more for
    each rollout actor and for the reward model unless they are colocated, one for evaluation, as many as are needed for curation."""

    image: str | None = Field(default=None, max_length=500)
    """Stage image. Default: the operator's."""
    ray_version: str | None = Field(default=None, max_length=30)
    """Ray version in that image."""
    head: PodShape | None = None
    """The head Pod. The run's template for it is laid over the Pod of the plan Job too, whose container is called `plan`."""
    workers: list[WorkerGroup] | None = Field(default=None, max_length=16, json_schema_extra=list_map("name"))
    """Worker groups. An empty list leaves all work to the head. `curate` takes those of the run without their GPUs."""

    def problems(self) -> list[tuple[str, str]]:
        """Contradictions: (field path below the cluster, sentence)."""
        found = []
        names = [group.name for group in self.workers or []]
        for i, group in enumerate(self.workers or []):
            if group.name in names[:i]:
                words = f"'{group.name}' names group {names.index(group.name)} too; names are unique"
                found.append((f"workers[{i}].name", words))
            found += [(f"workers[{i}].{where}", what) for where, what in group.problems()]
        return found


def overridden(run: ClusterSpec | None, stage: ClusterSpec | None) -> ClusterSpec:
    """The cluster of a stage: its own fields, and the run's where it has none."""
    fields: dict[str, Any] = {}
    for given in (run, stage):
        if given is not None:
            fields |= {name: value for name, value in given if value is not None}
    return ClusterSpec(**fields)
