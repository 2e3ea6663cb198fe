"""Loading models: safetensors only, code from model repositories never."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import fsspec
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from plumbline.artifacts import absolute_uri
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.external import TINY, tiny_folder
from plumbline.models.reference import ModelReference


def base_folder(base: str, revision: str | None = None) -> Path:
    """A local folder in Hugging Face form with the base model; hub and remote ones are fetched.

    Raises:
        InvalidInput: what is there is no model: `config.json` or safetensors weights are missing.
        PlumblineError: the hub or the remote file system cannot be reached.
    """
    if base == TINY:
        return tiny_folder()
    if base.startswith("hf://"):
        from huggingface_hub import snapshot_download

        try:
            wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
            return Path(snapshot_download(base.removeprefix("hf://"), revision=revision, allow_patterns=wanted))
        except Exception as error:  # the hub's client passes on whatever its transport raises
            raise PlumblineError(f"spec.model.base: '{base}' cannot be fetched: {error}") from error
    uri = absolute_uri(base)
    filesystem, path = fsspec.core.url_to_fs(uri)
    if "://" in uri:
        folder = Path(tempfile.mkdtemp(prefix="plumbline-model-"))
        filesystem.get(path.rstrip("/") + "/", str(folder), recursive=True)
    else:
        folder = Path(path)
    problem = None
    if not folder.is_dir():
        problem = "is no folder"
    elif not (folder / "config.json").exists():
        problem = "has no config.json"
    elif not list(folder.glob("*.safetensors")):
        problem = "has no *.safetensors weights (other formats are refused: they can run code)"
    else:
        try:
            if "model_type" not in json.loads((folder / "config.json").read_text()):
                problem = "has a config.json without model_type"
        except ValueError as error:
            problem = f"has a config.json that is not JSON ({error})"
    if problem:
        raise InvalidInput(
            f"spec.model.base: '{base}' {problem}; give a folder in Hugging Face form, hf://ORG/NAME or {TINY}"
        )
    return folder


def torch_dtype(name: str) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on a CPU, where bfloat16 is slow without special instructions."""
    if name == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def load_tokenizer(reference: ModelReference) -> PreTrainedTokenizerBase:
    """The tokenizer with its chat template; the one that was trained with, where there is an artifact.

    Raises:
        InvalidInput: there is no tokenizer, no end-of-text token or no chat template.
    """
    folder = reference.tokenizer_folder() or base_folder(reference.base, reference.revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError) as error:
        raise InvalidInput(f"spec.model.base: '{reference.base}' has no tokenizer that can be read: {error}") from error
    if tokenizer.chat_template is None:
        raise InvalidInput(
            f"spec.model.base: '{reference.base}' has no chat template; add chat_template.jinja to its folder"
        )
    if tokenizer.eos_token_id is None:
        raise InvalidInput(f"spec.model.base: '{reference.base}' has no end-of-text token, so answers could not end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(reference: ModelReference) -> PreTrainedModel:
    """The base model without adapter, in evaluation mode.

    Raises:
        InvalidInput: the weights cannot be read or do not fit the configuration.
    """
    folder = base_folder(reference.base, reference.revision)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch_dtype(reference.dtype), trust_remote_code=False, use_safetensors=True
        )
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise InvalidInput(f"spec.model.base: '{reference.base}' cannot be loaded: {str(error).splitlines()[0]}") from error
    return model.eval()


def load_merged(reference: ModelReference) -> PreTrainedModel:
    """The model with its adapter merged in, for generation. Merging is done in float32 (bfloat16 would move logits)."""
    model = load_base(reference)
    folder = reference.adapter_folder()
    if folder is None:
        return model
    dtype = model.dtype
    merged = PeftModel.from_pretrained(model.float(), folder).merge_and_unload()
    return merged.to(dtype).eval()
