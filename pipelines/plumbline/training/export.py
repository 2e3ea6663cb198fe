"""A finished stage's last checkpoint → the files of a Model artifact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

from safetensors.torch import save_file

from plumbline.models.load import load_tokenizer
from plumbline.models.reference import EMBEDDINGS, ModelReference
from plumbline.stage import StageContext
from plumbline.training.checkpoint import Checkpoint
from plumbline.training.embeddings import trained_embeddings


def export_model(
    context: StageContext, reference: ModelReference, checkpoint: Checkpoint, template: Callable[[str], str] | None = None
) -> None:
    """Write `adapter/` (PEFT form), `embeddings.safetensors`, `tokenizer/` (with chat template) and `metrics.jsonl`.

    Also fills the manifest. What was not trained is handed on as the input model has it, if it has it; `template` changes its
    chat template.
    """
    folder = context.output.folder
    before = reference.adapter_folder()
    adapter = folder / "adapter"
    if checkpoint.adapter:
        adapter.mkdir()
        tensors = {name: t.contiguous() for name, t in sorted(checkpoint.adapter.items())}
        save_file(tensors, adapter / "adapter_model.safetensors")
        (adapter / "adapter_config.json").write_text(json.dumps(checkpoint.adapter_config, indent=1, sort_keys=True))
    elif before is not None:
        shutil.copytree(before, adapter)
    embeddings = trained_embeddings(checkpoint.parameters, reference)
    if embeddings is not None:
        embeddings.save(folder / EMBEDDINGS)
    tokenizer = load_tokenizer(reference)
    if template is not None:
        tokenizer.chat_template = template(str(tokenizer.chat_template))
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in checkpoint.history))
    context.output.metrics.update(checkpoint.history[-1])
    context.output.details.update(
        {
            "base": reference.base,
            "revision": reference.revision,
            "baseIdentity": context.plan.identities[reference.base],
            "adapter": {
                key: checkpoint.adapter_config.get(key) for key in ("peft_type", "r", "lora_alpha", "target_modules")
            }
            if adapter.is_dir()
            else None,
        }
    )
