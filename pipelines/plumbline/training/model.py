"""The trainable model: frozen base, LoRA adapter in float32, one forward that gives log-probabilities of targets."""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel

from plumbline.api.stages.sft import EmbeddingsSpec
from plumbline.api.stages.training import AdapterSpec, TrainingSpec
from plumbline.errors import InvalidInput
from plumbline.models.load import load_base
from plumbline.models.reference import ModelReference
from plumbline.training.batch import MicroBatch, Sequence, collate
from plumbline.training.embeddings import train_rows
from plumbline.training.head import target_log_probs
from plumbline.training.lora import fuse_lora


class TargetLogProbs(nn.Module):
    """Wraps a causal language model; its forward returns the log-probability of every target.

    The head runs on target positions only, and this one forward is all that FSDP2 needs to know of.
    """

    def __init__(self, peft_model: PeftModel) -> None:
        super().__init__()
        self.peft_model = peft_model
        self._pissa = peft_model.peft_config["default"].init_lora_weights == "pissa"
        start = {name: p.detach().clone() for name, p in peft_model.named_parameters() if self._pissa and p.requires_grad}
        self._start = peft_names(peft_model, start) if start else {}
        fuse_lora(peft_model)

    def forward(self, batch: MicroBatch, temperature: float = 1.0) -> torch.Tensor:
        """[N] log-probabilities, float32, of softmax(logits / temperature)."""
        head = self.peft_model.get_base_model().get_output_embeddings()
        return target_log_probs(head, self.hidden(batch)[batch.predict_at], batch.targets, temperature)

    def hidden(self, batch: MicroBatch) -> torch.Tensor:
        """[R·T, H] last hidden states."""
        decoder = self.peft_model.get_base_model().get_decoder()
        # Packed rows are kept apart only with no mask and no cache (transformers 5.23 then reads position_ids).
        states: torch.Tensor = decoder(
            input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=None, use_cache=False
        ).last_hidden_state
        return states.flatten(0, 1)

    def train_adapter(self) -> None:
        """Dropout on the adapter only: the frozen base stays the model that is served."""
        self.eval()
        for name, module in self.named_modules():
            if "lora_dropout" in name:
                module.train()

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers, the units of sharding.

        Raises:
            InvalidInput: the architecture keeps them in no list.
        """
        decoder = self.peft_model.get_base_model().get_decoder()
        lists = [module for module in decoder.children() if isinstance(module, nn.ModuleList)]
        if not lists:
            raise InvalidInput(
                f"{type(decoder).__name__} has no list of layers to shard; set parallelism.sharding: replicate"
            )
        return list(max(lists, key=len))

    @torch.no_grad()
    def disagreement(self) -> tuple[float, float]:
        """How far this forward is from the model's own, and packed sequences from the same ones alone: mean log-probability."""
        self.eval()
        causal = self.peft_model.get_base_model()
        count = causal.config.get_text_config().vocab_size
        one, other = (Sequence([(7 * i + start) % count for i in range(12)], [True] * 12) for start in (3, 5))
        alone = [self(collate([[sequence]])) for sequence in (one, other)]
        logits = causal(torch.tensor([one.ids]), use_cache=False).logits[0, :-1].float()
        own = logits.log_softmax(-1).gather(1, torch.tensor(one.ids[1:])[:, None])[:, 0]
        packed = self(collate([[one, other]]))
        return float((alone[0] - own).abs().mean()), float((packed - torch.cat(alone)).abs().mean())

    def adapter_config(self) -> dict[str, Any]:
        """What PEFT writes into `adapter_config.json`, in a fixed order."""
        config = self.peft_model.peft_config["default"].to_dict() | {"inference_mode": True}
        if self._pissa:
            growth = math.sqrt(2) if config["use_rslora"] else 2  # the scale stays what it was
            config |= {"r": 2 * config["r"], "lora_alpha": growth * config["lora_alpha"], "init_lora_weights": True}
        return {name: _plain(value) for name, value in sorted(config.items())}

    def adapter(self, parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Trainable parameters, whole → an adapter of the unchanged base, under the names that PEFT files use.

        PiSSA moves the start B0·A0 of the adapter out of the base, so what is learned is B·A - B0·A0: [B, -B0]·[A; A0].
        """
        now = peft_names(self.peft_model, parameters)
        for name, start in self._start.items():
            side, sign = (0, 1) if name.endswith("lora_A.weight") else (1, -1)
            now[name] = torch.cat([now[name], sign * start.to(now[name].device)], dim=side)
        return now

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.peft_model.named_parameters() if p.requires_grad}


def build_trainable(
    reference: ModelReference,
    spec: TrainingSpec,
    where: str,
    packing: bool = False,
    embeddings: EmbeddingsSpec | None = None,
) -> TargetLogProbs:
    """Load the base and put the adapter on it: the input model's own, or a new one.

    Args:
        reference: the input model.
        spec: its `adapter` (None continues the input model's, or starts a LoRA with the defaults), `seed` of a new
            adapter's initialisation, and `max_length`.
        where: field path for error messages.
        packing: whether rows will hold several sequences.
        embeddings: embedding rows to train too.

    Raises:
        InvalidInput: a new adapter is asked for although the model has one, its targets match nothing, sequences
            exceed the model's positions, the embeddings cannot be trained, or the architecture computes what this
            forward does not.
    """
    base = load_base(reference)
    base.requires_grad_(False)
    positions = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    if positions and spec.max_length > positions:
        raise InvalidInput(f"{where}.maxLength: {spec.max_length} exceeds the model's {positions} positions; lower it")
    folder = reference.adapter_folder()
    if folder is None:
        model = TargetLogProbs(_new_adapter(base, spec.adapter or AdapterSpec(), spec.seed, reference.base, where))
    elif spec.adapter is not None:
        raise InvalidInput(
            f"{where}.adapter: the input model has an adapter already and this stage continues it; leave `adapter` out"
        )
    else:
        model = TargetLogProbs(PeftModel.from_pretrained(base, folder, is_trainable=True))
    if embeddings is not None:
        if embeddings.alone:
            model.requires_grad_(False)  # an adapter that was there works on as it is; a new one is the identity
        train_rows(model.peft_model, reference, embeddings, where)
    tolerance = 1e-3 if base.dtype == torch.float32 else 0.1
    own, packed = model.disagreement()
    kind = base.config.model_type
    if not own <= tolerance:
        raise InvalidInput(
            f"{where}: {kind} models change their logits in ways that training here does not know ({own:.2g} off)"
        )
    if packing and not packed <= tolerance:
        raise InvalidInput(f"{where}.packing: packed sequences would see each other in {kind} models; set packing: false")
    return model


def _new_adapter(base: PreTrainedModel, spec: AdapterSpec, seed: int, name: str, where: str) -> PeftModel:
    modules = [path for path, module in base.named_modules() if isinstance(module, nn.Linear)]
    targets: str | list[str] = "all-linear" if spec.target_modules == ["all-linear"] else list(spec.target_modules)
    unknown = [t for t in targets if not any(path == t or path.endswith(f".{t}") for path in modules)]
    if isinstance(targets, list) and unknown:
        known = ", ".join(sorted({path.rpartition(".")[2] for path in modules}))
        raise InvalidInput(
            f"{where}.adapter.targetModules: {', '.join(unknown)} match no linear module of the model; it has {known}"
        )
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=targets,
        use_rslora=spec.rank_stabilised,
        use_dora=spec.dora,
        init_lora_weights="pissa" if spec.init == "pissa" else True,
    )
    torch.manual_seed(seed)
    model = get_peft_model(base, config)
    model.peft_config["default"].base_model_name_or_path = name  # PEFT puts in the local folder
    return model


def peft_names(model: PeftModel, adapter: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameter names → the names that PEFT files use."""
    # By default PEFT asks the hub for the base's vocabulary, and adds whole embeddings where it was extended.
    return dict(get_peft_model_state_dict(model, state_dict=adapter, save_embedding_layers=False))


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return value.value if isinstance(value, Enum) else value
