"""`serve.adapters`: adapters of several runs on one base."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from plumbline.api.base import WHOLE, PositiveInt, SpecModel, list_map

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=200)]


class AdapterSource(SpecModel):
    """A Model artifact that is an adapter of the base that is served."""

    name: Name
    """`model` in requests."""
    kind: Annotated[str, Field(pattern=r"^[A-Za-z]+$", max_length=40)]
    """Kind of the stage that made it, such as `sft`."""
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]+$", max_length=64)]
    """Fingerprint of that stage, as `plumbline status` shows it."""
    workspace: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """URI of the workspace that holds it. Unset: the run's own."""


class AdaptersSpec(SpecModel):
    """Adapters beside the served model, on one copy of the base's weights: each is loaded when it is first asked for, and requests of
    different ones are answered in one batch. LoRA adapters share the engine; one of another kind gets an engine of its own."""

    models: Annotated[list[AdapterSource], Field(max_length=1000, json_schema_extra=list_map("name"))] = []
    """Adapters by the names that clients ask for."""
    discover: bool = False
    """Serve every adapter of this base in the run's workspace under `KIND/FINGERPRINT`, and where the workspace is a local folder under
    `RUN/STAGE` too, as it is when it is loaded. Whoever may ask may then use all of them."""
    base_name: Name | None = None
    """Name under which the bare base is served, too. Unset: it is not."""
    max_loaded: Annotated[int, Field(ge=1, le=10_000), WHOLE] = 64
    """Adapters in the memory of one replica at the same time. For a further one the longest unused is let go."""
    max_megabytes: PositiveInt = 4096
    """Their memory (10⁶ bytes) on the device of one replica, likewise."""
    max_rank: Annotated[int, Field(ge=1, le=512), WHOLE] = 64
    """Largest rank. On a GPU room is kept for one adapter of this rank for each request worked on."""

    def problems(self, served: str | None) -> list[tuple[str, str]]:
        """What field types cannot say: (field path below the block, sentence) for each contradiction.

        Args:
            served: name of the model beside them, where the run says it.
        """
        if served is not None and served == self.base_name:
            return [("baseName", f"'{served}' is the served model's `modelName`; give the base another name")]
        names = [source.name for source in self.models]
        names += [name for name in (self.base_name, served) if name]
        twice = next((name for name in names if names.count(name) > 1), None)
        return [("models", f"two have the name '{twice}'; give each its own")] if twice else []
