"""The trainable model: frozen base, LoRA adapter in float32, one forward that gives log-probabilities of targets."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn

from plumbline.api.stages.training import AdapterSpec
from plumbline.errors import InvalidInput
from plumbline.models.load import load_base
from plumbline.models.reference import ModelReference
from plumbline.training.batch import MicroBatch


class TargetLogProbs(nn.Module):
    """Wraps a causal language model; its forward returns the log-probability of every target.

    The head runs on target positions only, and this one forward is all that FSDP2 needs to know of.
    """

    def __init__(self, peft_model: PeftModel) -> None:
        super().__init__()
        self.peft_model = peft_model

    def forward(self, batch: MicroBatch, temperature: float = 1.0) -> torch.Tensor:
        """[N] log-probabilities, float32, of softmax(logits / temperature)."""
        causal = self.peft_model.get_base_model()
        # Packed rows are kept apart only with no mask and no cache (transformers 5.23 then reads position_ids).
        hidden = causal.get_decoder()(
            input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=None, use_cache=False
        ).last_hidden_state
        logits = causal.get_output_embeddings()(hidden.flatten(0, 1)[batch.predict_at]).float()
        if temperature != 1.0:
            logits = logits / temperature
        return -nn.functional.cross_entropy(logits, batch.targets, reduction="none")

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers, the units of sharding."""
        decoder = self.peft_model.get_base_model().get_decoder()
        return list(decoder.layers)

    def adapter_config(self) -> dict[str, Any]:
        """What PEFT writes into `adapter_config.json`, in a fixed order."""
        config = self.peft_model.peft_config["default"].to_dict() | {"inference_mode": True}
        return {name: _plain(value) for name, value in sorted(config.items())}

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.peft_model.named_parameters() if p.requires_grad}


def build_trainable(reference: ModelReference, adapter: AdapterSpec | None, seed: int, where: str) -> TargetLogProbs:
    """Load the base and put the adapter on it: the input model's own, or a new one.

    Args:
        reference: the input model.
        adapter: a new adapter; None continues the input model's, or starts a LoRA with the defaults.
        seed: of a new adapter's initialisation, the same on every rank.
        where: field path for error messages.

    Raises:
        InvalidInput: a new adapter is asked for although the model has one, or its targets match nothing.
    """
    base = load_base(reference)
    base.requires_grad_(False)
    folder = reference.adapter_folder()
    if folder is not None:
        if adapter is not None:
            raise InvalidInput(
                f"{where}.adapter: the input model has an adapter already and this stage continues it; leave `adapter` out"
            )
        return TargetLogProbs(PeftModel.from_pretrained(base, folder, is_trainable=True))
    spec = adapter or AdapterSpec()
    targets: str | list[str] = "all-linear" if spec.target_modules == ["all-linear"] else list(spec.target_modules)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=targets,
    )
    torch.manual_seed(seed)
    try:
        model = get_peft_model(base, config)
    except ValueError as error:
        linear = sorted({name.rpartition(".")[2] for name, module in base.named_modules() if isinstance(module, nn.Linear)})
        raise InvalidInput(
            f"{where}.adapter.targetModules: {spec.target_modules} match no module of the model; it has {', '.join(linear)}"
        ) from error
    model.peft_config["default"].base_model_name_or_path = reference.base  # PEFT puts in the local folder
    return TargetLogProbs(model)


def peft_names(model: PeftModel, adapter: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameter names → the names that PEFT files use."""
    return dict(get_peft_model_state_dict(model, state_dict=adapter))


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return value.value if isinstance(value, Enum) else value
