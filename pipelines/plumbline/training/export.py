"""A finished stage's last checkpoint → the files of a Model artifact."""

from __future__ import annotations

import json

from safetensors.torch import save_file

from plumbline.models.load import load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.stage import StageContext
from plumbline.training.checkpoint import Checkpoint


def export_model(context: StageContext, reference: ModelReference, checkpoint: Checkpoint) -> None:
    """Write `adapter/` (PEFT form), `tokenizer/` (with chat template) and `metrics.jsonl`, and fill the manifest."""
    folder = context.output.folder
    adapter = folder / "adapter"
    adapter.mkdir()
    save_file(
        {name: t.contiguous() for name, t in sorted(checkpoint.adapter.items())}, adapter / "adapter_model.safetensors"
    )
    (adapter / "adapter_config.json").write_text(json.dumps(checkpoint.adapter_config, indent=1, sort_keys=True))
    load_tokenizer(reference).save_pretrained(str(folder / "tokenizer"))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in checkpoint.history))
    context.output.metrics.update(checkpoint.history[-1])
    context.output.details.update(
        {
            "base": reference.base,
            "revision": reference.revision,
            "baseIdentity": context.plan.identities[reference.base],
            "adapter": {
                key: checkpoint.adapter_config.get(key) for key in ("peft_type", "r", "lora_alpha", "target_modules")
            },
        }
    )
