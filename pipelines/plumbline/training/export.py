"""A finished stage's last checkpoint → the files of a Model artifact."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import save_file

from plumbline.models.load import load_embeddings, load_tokenizer, model_folder
from plumbline.models.reference import EMBEDDINGS, ModelReference
from plumbline.stage import StageContext
from plumbline.training.checkpoint import PARAMETERS, Checkpoint
from plumbline.training.embeddings import trained_embeddings

SHARD_BYTES = 5 * 10**9
WHOLE = f"{PARAMETERS}causal."
"""What precedes the Hugging Face name of a parameter in checkpoints of whole weights."""


def export_model(
    context: StageContext,
    reference: ModelReference,
    checkpoint: Checkpoint,
    adapter: dict[str, torch.Tensor],
    template: Callable[[str], str] | None = None,
) -> None:
    """Write `adapter/` (PEFT form) or `weights/` (Hugging Face form), `embeddings.safetensors`, `tokenizer/` and `metrics.jsonl`.

    Also fills the manifest. What was not trained is handed on as the input model has it, if it has it; `template` changes its
    chat template.
    """
    folder = context.output.folder
    before = reference.adapter_folder()
    config = checkpoint.adapter_config
    if config is None:
        write_weights(checkpoint, reference, folder / "weights")
    elif adapter:
        (folder / "adapter").mkdir()
        save_file(
            {name: t.contiguous() for name, t in sorted(adapter.items())}, folder / "adapter/adapter_model.safetensors"
        )
        (folder / "adapter/adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True))
    elif before is not None:
        shutil.copytree(before, folder / "adapter")
    embeddings = None if config is None else trained_embeddings(checkpoint.parameters, reference)
    if embeddings is not None:
        embeddings.save(folder / EMBEDDINGS)
    tokenizer = load_tokenizer(reference, chat=False)
    if template is not None:
        tokenizer.chat_template = template(str(tokenizer.chat_template))
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in checkpoint.history))
    context.output.metrics.update(checkpoint.history[-1])
    described = ("peft_type", "r", "lora_alpha", "target_modules")
    context.output.details.update(
        {
            "base": reference.base,
            "revision": reference.revision,
            "baseIdentity": context.plan.identities[reference.base],
            "adapter": {key: config.get(key) for key in described} if config and (folder / "adapter").is_dir() else None,
        }
    )
    if config is not None:
        context.output.details.update(reference.inherited())


def write_weights(checkpoint: Checkpoint, reference: ModelReference, folder: Path) -> None:
    """Whole weights as a plain Hugging Face folder, a shard at a time, in the number format that the base's files have."""
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(model_folder(reference), trust_remote_code=False)
    dtype = config.dtype or torch.float32
    embeddings = load_embeddings(reference)
    if embeddings is not None:
        config.get_text_config().vocab_size = embeddings.end
    config.save_pretrained(folder)
    with suppress(OSError):  # where the model has none
        GenerationConfig.from_pretrained(model_folder(reference)).save_pretrained(folder)
    shards: list[list[str]] = []
    room = 0
    shapes = {name: shape for name, shape in sorted(checkpoint.shapes.items()) if name.startswith(WHOLE)}
    for name, shape in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        if not shards or size > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= size
    places = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name.removeprefix(WHOLE): checkpoint.rows(name).to(dtype) for name in names}
        save_file(tensors, folder / file, {"format": "pt"})
        places |= dict.fromkeys(tensors, file)
    total = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1, sort_keys=True))
