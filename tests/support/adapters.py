"""Model artifacts with random adapters of the tiny model, as training stages write them."""

from __future__ import annotations

import json
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model

from plumbline.api.base import ArtifactType
from plumbline.artifacts import Workspace
from plumbline.external import TINY, model_identity
from plumbline.models.load import load_base, load_tokenizer
from plumbline.models.reference import ModelReference

LORA: dict[str, Any] = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear"}


def adapter_artifact(
    workspace: Workspace,
    fingerprint: str,
    seed: int,
    *,
    kind: str = "sft",
    config: PeftConfig | None = None,
    details: dict[str, Any] | None = None,
    type: ArtifactType = ArtifactType.MODEL,
    **lora: Any,
) -> ModelReference:
    """A strong random adapter; `lora` changes `LORA`."""
    base = ModelReference(TINY)
    config = config or LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **(LORA | lora))
    torch.manual_seed(seed)
    workspace.acquire(fingerprint, "test")
    with workspace.create(kind=kind, fingerprint=fingerprint, stage="tune", type=type, inputs={}, holder="test") as writer:
        get_peft_model(load_base(base), config).save_pretrained(writer.folder / "adapter")
        load_tokenizer(base).save_pretrained(writer.folder / "tokenizer")
        described = json.loads((writer.folder / "adapter/adapter_config.json").read_text())
        writer.details.update(
            {
                "base": TINY,
                "revision": None,
                "baseIdentity": model_identity(TINY),
                "adapter": {"peft_type": described["peft_type"]},
            }
        )
        writer.details.update(details or {})
    return ModelReference(TINY, workspace=workspace.uri, kind=kind, fingerprint=fingerprint)
