"""What every model of the contract shares."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator
from pydantic.alias_generators import to_camel

# A DNS-1035 label: stage names become parts of Kubernetes object names.
Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=30)]
# A DNS subdomain, as Kubernetes names objects: it must not be able to lead out of the path of a request.
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
Uri = Annotated[str, Field(min_length=1, max_length=1024)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$", max_length=32)]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
"""JSON has one type of number: the API server takes 1.0 for 1, and so must every reader of what it stored."""
PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1), WHOLE]
NonNegativeInt = Annotated[int, Field(ge=0, le=2**31 - 1), WHOLE]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class SpecModel(BaseModel):
    """A block of the spec: strict (no unknown field, no silent conversion), camelCase outside, never changed."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,  # JSON has neither
        alias_generator=to_camel,
        validate_by_name=True,  # for Python callers; files are validated with by_name=False
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, value: Any) -> Any:
        """A field that is null counts as not given, as the API server has it."""
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def attribute(alias: str) -> str:
    """Python name of a field by its YAML spelling."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in alias)


def validated_by(*rules: tuple[str, str]) -> ConfigDict:
    """Model configuration with CEL rules for the CRD: (rule over `self`, what is accepted).

    They say what the block's `problems()` says, for the API server.
    """
    return ConfigDict(json_schema_extra={"x-kubernetes-validations": [{"rule": r, "message": m} for r, m in rules]})


def list_map(key: str) -> dict[str, JsonValue]:
    """Schema words for a list whose items are told apart by `key`: unique, and merged by it in server-side apply."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


class ArtifactType(StrEnum):
    """What a stage hands to the next. A stage input accepts exactly one of these."""

    DATASET = "Dataset"
    PREFERENCE_DATASET = "PreferenceDataset"
    MODEL = "Model"
    REWARD_MODEL = "RewardModel"
    REPORT = "Report"
    ENDPOINT = "Endpoint"


BASE = "base"
"""The reserved name under which inputs refer to `spec.model.base`."""


class Input(SpecModel):
    """One input role of a stage kind: what it accepts and where it comes from when the run does not say."""

    type: ArtifactType
    required: bool = True
    unless: str | None = None
    """A field of the block (YAML spelling of one word) that, where it is set, makes a required input optional."""
    when: str | None = None
    """CEL that says whether the stage reads it, as `StageSpec.reads` does; `{block}` is the stage's block. None: always."""
    default_to_base: bool = False
    """With no earlier stage of this type (and none named) the input is `spec.model.base`."""
    nearest: bool = True
    """With none named, the nearest earlier stage of this type is taken."""
    many: bool = False


class StageSpec(SpecModel):
    """The block of one stage kind, with the traits that the stage graph needs to know."""

    inputs: ClassVar[dict[str, Input]] = {}
    output: ClassVar[ArtifactType | None] = None
    """None: the block's own `produces` field says."""
    program: ClassVar[str]
    """Module whose `run(context, spec)` does the work."""
    code_version: ClassVar[str] = "1"
    """Part of the fingerprint: raise it when the same spec and inputs would give another artifact."""
    names_inputs: ClassVar[bool] = False
    """The block or the artifact speaks of inputs by their stage names, which then enter the fingerprint."""
    unfingerprinted: ClassVar[frozenset[str]] = frozenset()
    """Top-level fields (Python names) that change how the work is done, not what comes out."""

    def output_type(self) -> ArtifactType:
        """The artifact type that this stage produces."""
        return self.output or ArtifactType(self.produces)  # type: ignore[attr-defined]

    def reads(self, role: str) -> bool:
        """Whether the stage has a use for an input. One without is not filled by default."""
        return True

    def external_uris(self) -> dict[str, str]:
        """Inputs from outside the run, by field path below the block: `{"sources[0].uri": "s3://…"}`."""
        return {}

    def external_models(self) -> dict[str, str]:
        """Models from outside the run, beside its base, by field path below the block."""
        return {}

    def benchmark_files(self) -> dict[str, tuple[str, str]]:
        """Benchmark files that this stage asks from, by field path of their URI below the block: (benchmark, URI)."""
        return {}

    def avoids_benchmarks(self) -> bool:
        """Whether the stage keeps clear of every benchmark file that the run asks from. They then enter its fingerprint."""
        return False

    def secrets(self) -> dict[str, tuple[str, str]]:
        """Environment variables that the stage's Pods take from Secrets: variable → (name of the Secret, key in it)."""
        return {}

    def secret_files(self) -> dict[str, tuple[str, str]]:
        """Files that the stage's Pods have from Secrets, and that follow their changes: environment variable that names the file →
        (name of the Secret, key in it)."""
        return {}

    def libraries(self) -> dict[str, tuple[str, str]]:
        """Optional libraries that the stage's program needs, by field path below the block: (module, extra that brings it)."""
        return {}

    def problems(self) -> list[tuple[str, str]]:
        """What field types cannot say: (field path below the block, sentence) for each contradiction."""
        return []
