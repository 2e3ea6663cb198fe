"""Naming a model: its base, and the Model artifact (adapter, tokenizer, chat template) that tuned it, if any."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plumbline.artifacts import Artifact, Workspace
from plumbline.errors import PlumblineError
from plumbline.plan import Plan

EMBEDDINGS = "embeddings.safetensors"
WEIGHTS = "weights"
HEAD, HEAD_FILE = "head.weight", "head.safetensors"
"""A reward model's head: the tensor, and the file that holds it."""


@dataclass(frozen=True)
class ModelReference:
    """Enough to load a model anywhere. Plain values: it travels to Ray actors and into manifests.

    Attributes:
        base: `builtin://tiny`, `hf://ORG/NAME`, or a folder URI in Hugging Face form.
        revision: commit of a hub model, None for others.
        dtype: `auto`, `float32` or `bfloat16`.
        workspace, kind, fingerprint: where the Model artifact lies; all None for the bare base.
    """

    base: str
    revision: str | None = None
    dtype: str = "auto"
    workspace: str | None = None
    kind: str | None = None
    fingerprint: str | None = None

    @classmethod
    def of(cls, plan: Plan, artifact: Artifact | None) -> ModelReference:
        """The model of an artifact, or the run's base where there is none."""
        model = plan.run.spec.model
        identity = plan.identities[model.base]
        revision = identity.removeprefix("commit:") if identity.startswith("commit:") else None
        if artifact is None:
            return cls(model.base, revision, model.dtype)
        return cls(model.base, revision, model.dtype, plan.workspace_uri, artifact.manifest["kind"], artifact.fingerprint)

    def artifact(self) -> Artifact | None:
        """The Model artifact, None for the bare base.

        Raises:
            PlumblineError: it has been deleted since.
        """
        if self.workspace is None or self.kind is None or self.fingerprint is None:
            return None
        found = Workspace(self.workspace).find(self.kind, self.fingerprint)
        if found is None:
            raise PlumblineError(
                f"the model {self.kind}/{self.fingerprint} is gone from {self.workspace}; run its stage again"
            )
        return found

    def adapter_folder(self) -> Path | None:
        """Local folder with the adapter in PEFT form, None where there is none."""
        return self._part("adapter")

    def embeddings_file(self) -> Path | None:
        """Local file with the embedding rows that the artifact brings (`models.embeddings`), None where there is none."""
        return self._part(EMBEDDINGS)

    def weights_folder(self) -> Path | None:
        """Local folder in Hugging Face form with the whole weights that training has changed; None where they are the base's.

        Raises:
            PlumblineError: the artifact that holds them has been deleted since.
        """
        source = self.inherited().get(WEIGHTS)
        return replace(self, **source)._part(WEIGHTS) if source else None

    def inherited(self) -> dict[str, Any]:
        """Details that a model trained from this one has of it: which artifact holds the whole weights below its adapter."""
        artifact = self.artifact()
        if artifact is None:
            return {}
        if _holds(artifact, WEIGHTS):
            return {WEIGHTS: {"kind": self.kind, "fingerprint": self.fingerprint}}
        return {WEIGHTS: artifact.details[WEIGHTS]} if WEIGHTS in artifact.details else {}

    def tokenizer_folder(self) -> Path | None:
        """Local folder with the tokenizer that the artifact brings, None for the bare base."""
        artifact = self.artifact()
        return artifact.local() / "tokenizer" if artifact else None

    def _part(self, name: str) -> Path | None:
        artifact = self.artifact()
        return artifact.local() / name if artifact is not None and _holds(artifact, name) else None


def _holds(artifact: Artifact, name: str) -> bool:
    return any(file.split("/")[0] == name for file in artifact.manifest["files"])
