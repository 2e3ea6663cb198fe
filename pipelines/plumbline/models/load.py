"""Loading models: safetensors only, code from model repositories never."""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from plumbline.artifacts import absolute_uri, cache_folder, fetch
from plumbline.errors import InvalidInput, PlumblineError, one_line
from plumbline.external import TINY, model_identity, tiny_folder
from plumbline.models.embeddings import Embeddings
from plumbline.models.reference import EMBEDDINGS, ModelReference
from plumbline.models.virtual_tokens import Prefix, learned_prefix

if TYPE_CHECKING:  # imported where they are used: most processes need a tokenizer at most
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = "*.safetensors"
WANTED = ("*.json", WEIGHTS, "*.jinja", "*.model", "*.txt")
"""What is fetched of a model: no weights in formats that can run code, no code."""


def base_folder(base: str, revision: str | None = None, weights: bool = True) -> Path:
    """A local folder in Hugging Face form with the base model; hub and remote ones are fetched.

    Args:
        base: as in `spec.model.base`; `hf://ORG/NAME@COMMIT` names a commit, as it does to the hub's own file system.
        revision: commit of a hub model, unless `base` names one.
        weights: whether these are needed; else only configuration and tokenizer are fetched.

    Raises:
        InvalidInput: what is there is no model: `config.json` or safetensors weights are missing.
        PlumblineError: the hub or the remote file system cannot be reached.
    """
    if base == TINY:
        return tiny_folder()
    wanted = [pattern for pattern in WANTED if weights or pattern != WEIGHTS]
    if base.startswith("hf://"):
        from huggingface_hub import snapshot_download

        try:
            name, _, commit = base.removeprefix("hf://").partition("@")
            return Path(snapshot_download(name, revision=commit or revision, allow_patterns=wanted))
        except Exception as error:  # the hub's client passes on whatever its transport raises
            raise PlumblineError(f"the model '{base}' cannot be fetched: {one_line(error)}") from error
    identity = model_identity(base)
    uri = absolute_uri(base)
    if "://" not in uri:
        return Path(uri)
    digest = hashlib.sha256(f"{uri} {identity}".encode()).hexdigest()[:32]
    folder = cache_folder("models", digest)
    if not weights and not folder.is_dir():
        folder = cache_folder("models", f"{digest}-tokenizer")
    if not folder.is_dir():
        try:
            fetch(uri, folder, lambda name: any(fnmatch(name, pattern) for pattern in wanted))
        except Exception as error:  # clients of remote file systems pass on whatever their transport raises
            raise PlumblineError(f"the model '{base}' cannot be fetched: {one_line(error)}") from error
    return folder


def model_folder(reference: ModelReference) -> Path:
    """A local folder with the model's configuration and weights below any adapter: the base, or what full training made of it."""
    return reference.weights_folder() or base_folder(reference.base, reference.revision)


def torch_dtype(name: str) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on a CPU, where bfloat16 is slow without special instructions."""
    if name == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def load_tokenizer(reference: ModelReference, chat: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer with its chat template; the one that was trained with, where there is an artifact.

    Args:
        reference: the model.
        chat: whether a chat template is needed, which is not so for plain texts.

    Raises:
        InvalidInput: there is no tokenizer, no end-of-text token or no chat template that works.
    """
    from transformers import AutoTokenizer

    folder = reference.tokenizer_folder() or base_folder(reference.base, reference.revision, weights=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers pass on what their parsers raise, down to plain Exception
        raise InvalidInput(
            f"spec.model.base: '{reference.base}' has no tokenizer that can be read: {one_line(error)}"
        ) from error
    if chat and tokenizer.chat_template is None:
        raise InvalidInput(
            f"spec.model.base: '{reference.base}' has no chat template; add chat_template.jinja to its folder"
        )
    try:
        if chat:
            tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    except Exception as error:  # a template is a program
        raise InvalidInput(
            f"spec.model.base: '{reference.base}' has a chat template that does not work: {one_line(error)}"
        ) from error
    if tokenizer.eos_token_id is None:
        raise InvalidInput(f"spec.model.base: '{reference.base}' has no end-of-text token, so answers could not end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(reference: ModelReference, nf4: bool = False) -> PreTrainedModel:
    """The base model without adapter, in evaluation mode; with the embedding rows that the artifact brings, if any.

    Args:
        reference: what to load.
        nf4: linear layers but the output head in four bits, with double quantization (QLoRA, arXiv 2305.14314), on the GPU
            where there is one. Needs bitsandbytes.

    Raises:
        InvalidInput: the weights cannot be read or do not fit the configuration.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = model_folder(reference)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=torch_dtype(reference.dtype),
            trust_remote_code=False,
            use_safetensors=True,
            **(_nf4(torch_dtype(reference.dtype)) if nf4 else {}),
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # transformers and safetensors pass on what their parsers raise
        raise InvalidInput(f"spec.model.base: '{reference.base}' cannot be loaded: {one_line(error)}") from error
    # Transformers would fill both with random numbers and only warn.
    unfit = sorted(name for name, *_ in loaded["mismatched_keys"]) or sorted(loaded["missing_keys"])
    if unfit:
        raise InvalidInput(
            f"spec.model.base: the weights of '{reference.base}' do not fit its config.json: "
            f"{unfit[0]} {'has another shape' if loaded['mismatched_keys'] else 'is missing'} ({len(unfit)} such)"
        )
    embeddings = load_embeddings(reference)
    if embeddings is not None:
        embeddings.put_into(model, "spec.model.base")
    for module in model.modules() if nf4 else ():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # would re-lay the weights for a product that has no gradient
            module.support_avx512bf16_for_cpu = False
    return model.eval()


def _nf4(dtype: torch.dtype) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    place = {"device_map": {"": torch.cuda.current_device()}} if torch.cuda.is_available() else {}
    return {"quantization_config": config, **place}


def load_embeddings(reference: ModelReference) -> Embeddings | None:
    """The embedding rows that the model's artifact brings, None where it brings none."""
    file = reference.embeddings_file()
    return Embeddings.load(file) if file is not None else None


def adapter_type(reference: ModelReference) -> str | None:
    """PEFT's name of the kind of adapter that the model brings (`LORA`, `IA3`, `PREFIX_TUNING`, `PROMPT_TUNING`), None without one."""
    folder = reference.adapter_folder()
    return str(json.loads((folder / "adapter_config.json").read_text())["peft_type"]) if folder else None


def has_virtual_tokens(reference: ModelReference) -> bool:
    """Whether the model's adapter is tokens before the text, which no weight can hold."""
    return adapter_type(reference) in ("PREFIX_TUNING", "PROMPT_TUNING")


def load_merged(reference: ModelReference) -> PreTrainedModel:
    """The model with its adapter merged in. Merging is done in float32 (bfloat16 would move logits).

    Raises:
        InvalidInput: the adapter is virtual tokens.
    """
    model = load_base(reference)
    folder = reference.adapter_folder()
    if folder is None:
        return model
    if has_virtual_tokens(reference):
        raise InvalidInput(
            "prefix and prompt adapters stand before the text and cannot be merged into weights; "
            "use the base with the adapter beside it"
        )
    from peft import PeftModel

    dtype = model.dtype
    merged = PeftModel.from_pretrained(model.float(), folder).merge_and_unload()
    return merged.to(dtype).eval()


def load_for_generation(reference: ModelReference) -> tuple[PreTrainedModel, Prefix | None]:
    """The model as engines take it: its adapter merged, or the virtual tokens that its cache begins with."""
    if not has_virtual_tokens(reference):
        return load_merged(reference), None
    from peft import PeftModel

    base = load_base(reference)
    return base, learned_prefix(PeftModel.from_pretrained(base, reference.adapter_folder()).eval())


def load_with_adapters(references: dict[str, ModelReference]) -> PeftModel:
    """One base under the adapters of several models. `set_adapter(NAME)` says whose answers it gives; the first's to begin with.

    Args:
        references: name of the adapter → its model. A name has no dot.

    Raises:
        InvalidInput: a model has no adapter, or they differ in base, embedding rows or kind of adapter.
    """
    (first, one), *others = references.items()
    for name, reference in references.items():
        kind = adapter_type(reference)
        if kind is None:
            raise InvalidInput(f"'{name}' is a model without an adapter; leave it out, or load it alone")
        if stands_on(reference) != stands_on(one):
            raise InvalidInput(
                f"'{first}' and '{name}' are adapters of different weights or embedding rows; one base carries only adapters made for it"
            )
        if kind != adapter_type(one):
            raise InvalidInput(
                f"'{first}' is a {adapter_type(one)} and '{name}' a {kind} adapter; one base carries one kind at a time"
            )
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_base(one), one.adapter_folder(), adapter_name=first)
    for name, reference in others:
        model.load_adapter(reference.adapter_folder(), adapter_name=name)
    return model.eval()


def stands_on(reference: ModelReference) -> tuple[Any, ...]:
    """What the model's adapter stands on: equal for adapters of one base."""
    artifact = reference.artifact()
    embeddings = artifact.manifest["files"].get(EMBEDDINGS) if artifact else None
    return reference.base, reference.revision, reference.inherited(), embeddings and embeddings["sha256"]


def cache_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes of keys and values for one position of one sequence."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * head_dim * model.dtype.itemsize)


def end_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[int]:
    """Tokens that end an answer, in rollouts as in serving: the tokenizer's, and those of the generation settings."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = configured if isinstance(configured, list) else [] if configured is None else [configured]
    return sorted({int(tokenizer.eos_token_id), *ids})
