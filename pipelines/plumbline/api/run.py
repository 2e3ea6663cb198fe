"""`AlignmentRun` v1alpha1: the one object that users write."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import ConfigDict, Field

from plumbline.api.base import Name, NonNegativeInt, ObjectName, PositiveInt, SpecModel, StageSpec, Uri, list_map
from plumbline.api.cluster import ClusterSpec
from plumbline.api.stages.curate import CurateSpec
from plumbline.api.stages.evaluate import EvaluateSpec
from plumbline.api.stages.extend_tokenizer import ExtendTokenizerSpec
from plumbline.api.stages.preference import PreferenceSpec
from plumbline.api.stages.reward_model import RewardModelSpec
from plumbline.api.stages.rlhf import RlhfSpec
from plumbline.api.stages.serve import ServeSpec
from plumbline.api.stages.sft import SftSpec
from plumbline.api.stages.synthesize import SynthesizeSpec

GROUP, VERSION, KIND, PLURAL = "plumbline.dev", "v1alpha1", "AlignmentRun", "alignmentruns"
API_VERSION = f"{GROUP}/{VERSION}"
MAX_STAGES = 32
MAX_NAME = 63  # of a run: its name becomes a label value


class ModelSpec(SpecModel):
    """The base model."""

    base: Uri
    """`builtin://tiny`, `hf://ORG/NAME`, a folder in Hugging Face form, or its fsspec URI (`s3://…`)."""
    revision: str | None = Field(default=None, max_length=200)
    """Branch, tag or commit of a `hf://` model."""
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    """Type of the frozen weights. `auto`: bfloat16 on a GPU, float32 on a CPU. Adapters are float32 always."""
    trust_remote_code: Literal[False] = False
    """Code from model repositories is never run; the field is here so that nobody looks for it in vain."""
    token_secret: ObjectName | None = None
    """Name of the Secret whose `token` reads a private `hf://` model."""


class WorkspaceSpec(SpecModel):
    """Where artifacts and checkpoints lie. Cannot be changed: the run's results are there."""

    uri: Uri
    """fsspec URI. A relative path lies below the current folder with `plumbline run`, below the volume claim in a cluster."""
    persistent_volume_claim: ObjectName | None = None
    """Claim that the stages mount."""
    credentials_secret: ObjectName | None = None
    """Name of the Secret whose keys become environment variables of the stages (`AWS_ACCESS_KEY_ID`, …)."""


class StageInputs(SpecModel):
    """Explicit wiring: names of earlier stages. `base` means `spec.model.base`. What is unset finds its own way."""

    model: Name | None = None
    """The model to start from, to evaluate or to serve. Default: the nearest earlier model, or `base`."""
    dataset: Name | None = None
    """Default: the nearest earlier dataset of the type that the kind needs."""
    reward_model: Name | None = None
    """Default: the nearest earlier reward model."""
    demonstrations: Name | None = None
    """What `rlhf` with `ptxWeight` goes on learning by heart. Must be given there."""
    baselines: list[Name] | None = Field(default=None, max_length=8)
    """Models that `evaluate` compares with. Default: `base`."""
    judge: Name | None = None
    """The model that judges in `evaluate`, where its `judge` has no endpoint. Default: `base`."""
    report: Name | None = None
    """The evaluation whose gate guards `serve`. Default: the nearest earlier report."""


class Stage(SpecModel):
    """One step: a name and exactly one kind."""

    name: Name = Field(description="Unique in the run; DNS-1035 label, at most 30 characters.")
    inputs: StageInputs | None = None
    """Which earlier stages this one reads. Default: the nearest earlier stage with the right output."""
    cluster: ClusterSpec | None = None
    """Overrides of `spec.cluster` for this stage."""

    # The registry of stage kinds: one line each.
    curate: CurateSpec | None = None
    """Curate data with Ray Data."""
    synthesize: SynthesizeSpec | None = None
    """Make data with a teacher or the model itself."""
    extend_tokenizer: ExtendTokenizerSpec | None = None
    """Add tokens for a language."""
    sft: SftSpec | None = None
    """Supervised fine-tuning."""
    reward_model: RewardModelSpec | None = None
    """Train a reward model on pairs."""
    preference: PreferenceSpec | None = None
    """Tune on pairs without reinforcement learning."""
    rlhf: RlhfSpec | None = None
    """Reinforcement learning with rollout workers."""
    evaluate: EvaluateSpec | None = None
    """Evaluate, compare and gate."""
    serve: ServeSpec | None = None
    """Serve the model."""

    @property
    def kinds(self) -> list[str]:
        """Field names (YAML spelling) of the kinds that this stage sets; valid runs have exactly one."""
        return [alias for alias, attribute in KIND_FIELDS.items() if getattr(self, attribute) is not None]

    @property
    def kind(self) -> str:
        return self.kinds[0]

    @property
    def spec(self) -> StageSpec:
        return cast(StageSpec, getattr(self, KIND_FIELDS[self.kind]))


KINDS: dict[str, type[StageSpec]] = {}
"""Stage kinds by their YAML spelling."""
KIND_FIELDS: dict[str, str] = {}
for _attribute, _field in Stage.model_fields.items():
    for _type in getattr(_field.annotation, "__args__", ()):
        if isinstance(_type, type) and issubclass(_type, StageSpec):
            KINDS[_field.alias or _attribute] = _type
            KIND_FIELDS[_field.alias or _attribute] = _attribute


class RunSpec(SpecModel):
    """What the user wants."""

    model: ModelSpec
    """The base model that everything starts from."""
    workspace: WorkspaceSpec = Field(json_schema_extra={"x-immutable": True})
    """Where artifacts lie."""
    stages: list[Stage] = Field(min_length=1, max_length=MAX_STAGES, json_schema_extra=list_map("name"))
    """The pipeline, in an order in which every stage comes after its inputs."""
    cluster: ClusterSpec | None = None
    """Ray cluster of every stage that does not override it."""
    queue_name: Annotated[ObjectName, Field(max_length=63)] | None = None
    """Kueue LocalQueue."""
    priority_class_name: ObjectName | None = None
    """Priority class of all Pods."""
    suspend: bool = False
    """True stops the current stages at their last checkpoint; false goes on from there. A local run refuses to start."""
    backoff_limit: NonNegativeInt = 3
    """How often a failed stage is tried again (Kubernetes Jobs: 6; a GPU attempt costs more). A local run tries again only
    what was killed."""
    active_deadline_seconds: PositiveInt | None = None
    """The run fails when it is not complete after this many seconds. As with a Kubernetes Job, the clock begins anew when a
    suspended run is resumed, and when the run is edited."""
    ttl_seconds_after_finished: NonNegativeInt | None = None
    """The object is deleted this long after the run ended; artifacts stay. A run whose endpoint serves has not ended."""
    managed_by: Literal["plumbline.dev/operator", "kueue.x-k8s.io/multikueue"] = Field(
        default="plumbline.dev/operator", json_schema_extra={"x-immutable": True}
    )
    """Which controller runs this object."""


class ObjectMeta(SpecModel):
    """The part of Kubernetes metadata that a local run reads; all else is allowed and kept."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$", max_length=MAX_NAME)
    """Name of the run."""
    namespace: str | None = None
    """Namespace; a local run has none."""


class AlignmentRun(SpecModel):
    """One declarative object for the whole pipeline: data, tuning, evaluation, gate, serving."""

    api_version: Literal["plumbline.dev/v1alpha1"]
    """Version of this contract."""
    kind: Literal["AlignmentRun"]
    """Always AlignmentRun."""
    metadata: ObjectMeta
    """Kubernetes object metadata."""
    spec: RunSpec
    """What the user wants."""
    status: dict[str, Any] | None = None
    """What the operator observed (`plumbline.api.status.RunStatus`); ignored on input."""
