"""What is trained: an adapter put on a base, the input model's own, or all weights."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from enum import Enum
from typing import Any

import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from plumbline.api.stages.training import VIRTUAL, AdapterSpec
from plumbline.errors import InvalidInput
from plumbline.models.load import has_virtual_tokens, load_base, load_merged, load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.models.virtual_tokens import Prefix, attends_to_all, read, table

KEYS_AND_VALUES, FEED_FORWARD = ["k_proj", "v_proj"], ["down_proj"]
"""What (IA)³ scales in models that PEFT does not know; their names in most families."""


def load_causal(
    reference: ModelReference, adapter: AdapterSpec | None, seed: int, where: str
) -> PeftModel | PreTrainedModel:
    """The input model with what is to be trained switched on, in float32, and all else frozen.

    Args:
        reference: the input model.
        adapter: None continues the input model's, or starts a LoRA with the defaults; so does one that says no more than
            `quantization`.
        seed: of a new adapter's initialisation.
        where: field path of the stage's block, for error messages.

    Raises:
        InvalidInput: a new adapter is asked for although the model has one, it does not fit the model, or bitsandbytes is not there.
    """
    spec = adapter or AdapterSpec()
    if spec.method == "none":
        whole = load_merged(replace(reference, dtype="float32")).requires_grad_(True)
        beside = whole.state_dict().keys() - dict(whole.named_parameters(remove_duplicate=False)).keys()
        if beside:
            raise InvalidInput(
                f"{where}.adapter.method: {whole.config.model_type} models keep more than weights ({min(beside)}), which whole "
                "weights would be handed over without; use lora"
            )
        return whole
    folder = reference.adapter_folder()
    goes_on = adapter is None or (adapter.quantization and adapter == AdapterSpec(quantization=adapter.quantization))
    if folder is not None and not goes_on:
        raise InvalidInput(
            f"{where}.adapter: the input model has an adapter already and this stage continues it; leave `adapter` out, name "
            "another model in inputs.model, or, unless it has virtual tokens, set method: none to merge it and train all weights"
        )
    nf4 = spec.quantization == "nf4"
    if nf4 and importlib.util.find_spec("bitsandbytes") is None:
        raise InvalidInput(f"{where}.adapter.quantization: nf4 needs bitsandbytes; install plumbline[qlora]")
    base = load_base(reference, nf4)
    base.requires_grad_(False)
    if folder is not None:
        virtual = has_virtual_tokens(reference)
        model = PeftModel.from_pretrained(base, folder, is_trainable=not virtual)  # PEFT loads virtual tokens only frozen
        if virtual:
            table(model).requires_grad_(True)
        return model
    torch.manual_seed(seed)
    if spec.method in VIRTUAL:
        model = _with_virtual_tokens(base, reference, spec, seed, where)
    else:
        model = get_peft_model(base, _lora(base, spec, where) if spec.method == "lora" else _ia3(base, where))
    model.peft_config["default"].base_model_name_or_path = reference.base  # PEFT puts in the local folder
    return model


def _lora(base: PreTrainedModel, spec: AdapterSpec, where: str) -> LoraConfig:
    modules = [path for path, module in base.named_modules() if isinstance(module, nn.Linear)]
    wanted = spec.option("target_modules")
    targets: str | list[str] = "all-linear" if wanted == ["all-linear"] else list(wanted)
    unknown = [t for t in targets if not any(path == t or path.endswith(f".{t}") for path in modules)]
    if isinstance(targets, list) and unknown:
        known = ", ".join(sorted({path.rpartition(".")[2] for path in modules}))
        raise InvalidInput(
            f"{where}.adapter.targetModules: {', '.join(unknown)} match no linear module of the model; it has {known}"
        )
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if head is not None and head.weight is embedding.weight:
        tied = [path for path, module in base.named_modules() if module is head and isinstance(targets, list)]
        named = [t for t in targets if any(path == t or path.endswith(f".{t}") for path in tied)]
        if named:
            raise InvalidInput(
                f"{where}.adapter.targetModules: {named[0]} is the output layer, whose weights this model shares with its input "
                "embeddings; a merged adapter would change both. Leave it out"
            )
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.option("rank"),
        lora_alpha=spec.option("alpha"),
        lora_dropout=spec.option("dropout"),
        target_modules=targets,
        use_rslora=spec.option("rank_stabilised"),
        use_dora=spec.option("dora"),
        init_lora_weights="pissa" if spec.option("init") == "pissa" else True,
    )


def _ia3(base: PreTrainedModel, where: str) -> IA3Config:
    kind = base.config.model_type
    targets = TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(kind, KEYS_AND_VALUES + FEED_FORWARD)
    inputs = TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(kind, FEED_FORWARD)
    paths = [path for path, _ in base.named_modules()]
    missing = [t for t in targets if not any(path == t or path.endswith(f".{t}") for path in paths)]
    if missing:
        raise InvalidInput(
            f"{where}.adapter.method: ia3 scales keys, values and feed-forward activations, and {kind} models have no "
            f"{', '.join(missing)}; use lora"
        )
    return IA3Config(task_type="CAUSAL_LM", target_modules=targets, feedforward_modules=inputs)


def _with_virtual_tokens(
    base: PreTrainedModel, reference: ModelReference, spec: AdapterSpec, seed: int, where: str
) -> PeftModel:
    """Virtual tokens that begin as real ones do, which both papers found best (2101.00190, section 7.4; 2104.08691, section 3.2)."""
    if not attends_to_all(base):
        raise InvalidInput(
            f"{where}.adapter.method: {spec.method} needs layers that attend to all earlier tokens, and some of these "
            f"{base.config.model_type} layers do not; use lora"
        )
    count, text = spec.option("virtual_tokens"), spec.option("init_text")
    embedding = base.get_input_embeddings()
    if text is None:
        draw = torch.Generator().manual_seed(seed)
        tokens = torch.randint(base.config.get_text_config().vocab_size, (count,), generator=draw)
    else:
        ids = load_tokenizer(reference, chat=False)(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise InvalidInput(f"{where}.adapter.initText: {text!r} has no tokens; give some words, or leave it out")
        tokens = torch.tensor((ids * count)[:count])
    tokens = tokens.to(base.device)
    if spec.method == "prompt":
        rows = embedding(tokens)
        config: PeftConfig = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=count, token_dim=rows.shape[1])
    else:
        parts = torch.cat([torch.cat(pair) for pair in read(base, input_ids=tokens[None])])  # [2·layers, heads, count, size]
        rows = parts.permute(2, 0, 1, 3).flatten(1)
        config = PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=count,
            num_layers=len(parts) // 2,
            num_attention_heads=parts.shape[1],
            token_dim=parts.shape[1] * parts.shape[3],
        )
    model = get_peft_model(base, config)
    with torch.no_grad():
        table(model).copy_(rows)
    return model


class ReadBefore(DynamicLayer):
    """A layer's keys and values [R, heads, tokens, size] from before the text. It keeps nothing of what it is shown, so that a
    layer may be computed twice, as activation checkpointing does."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True
        self.dtype, self.device = keys.dtype, keys.device

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Those before, and the new ones."""
        assert self.keys is not None
        assert self.values is not None
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


def cache_of(prefix: Prefix, rows: int, dtype: torch.dtype) -> Cache:
    """The virtual tokens before each of so many rows."""
    shape = (rows, -1, -1, -1)
    return Cache(layers=[ReadBefore(k.to(dtype).expand(shape), v.to(dtype).expand(shape)) for k, v in prefix])


class Handover:
    """How a trained adapter is handed over: as an adapter of the unchanged base, in PEFT's form.

    PiSSA moves the start B0·A0 of the adapter out of the base, so what is learned is B·A - B0·A0: [B, -B0]·[A; A0].

    Args:
        model: before its first step.
    """

    def __init__(self, model: PeftModel) -> None:
        self._model, self._config = model, model.peft_config["default"]
        self._pissa = getattr(self._config, "init_lora_weights", None) == "pissa"
        start = {  # DoRA's lengths are learned as they are
            name: p.detach().clone()
            for name, p in model.named_parameters()
            if self._pissa and (".lora_A." in name or ".lora_B." in name)
        }
        self._start = self._named(start) if start else {}

    def config(self) -> dict[str, Any]:
        """What PEFT writes into `adapter_config.json`, in a fixed order."""
        config = self._config.to_dict() | {"inference_mode": True}
        if self._pissa:
            growth = math.sqrt(2) if config["use_rslora"] else 2  # the scale stays what it was
            config |= {"r": 2 * config["r"], "lora_alpha": growth * config["lora_alpha"], "init_lora_weights": True}
        return {name: _plain(value) for name, value in sorted(config.items())}

    def tensors(self, parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Trained parameters of the PEFT model, whole → tensors under the names that PEFT files use."""
        now = self._named(parameters)
        for name, start in self._start.items():
            side, sign = (0, 1) if name.endswith("lora_A.weight") else (1, -1)
            now[name] = torch.cat([now[name], sign * start.to(now[name].device)], dim=side)
        return now

    def _named(self, parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self._config.is_prompt_learning:  # PEFT would take what the model holds, of which a rank may have a shard only
            learned = [rows for name, rows in parameters.items() if name.startswith("prompt_encoder.")]
            return {"prompt_embeddings": learned[0]} if learned else {}
        # By default PEFT asks the hub for the base's vocabulary, and adds whole embeddings where it was extended.
        return dict(get_peft_model_state_dict(self._model, state_dict=parameters, save_embedding_layers=False))


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return value.value if isinstance(value, Enum) else value
