"""The trainable model: one forward that gives log-probabilities of targets, whatever of the model is trained."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from plumbline.api.stages.sft import PACKED_VIRTUAL, EmbeddingsSpec
from plumbline.api.stages.training import TrainingSpec
from plumbline.errors import InvalidInput
from plumbline.models.load import torch_dtype
from plumbline.models.reference import ModelReference
from plumbline.models.virtual_tokens import prefix_of, table
from plumbline.training.adapters import Handover, cache_of, load_causal
from plumbline.training.batch import MicroBatch, Sequence, collate
from plumbline.training.embeddings import train_rows
from plumbline.training.head import likeliest, target_log_probs
from plumbline.training.kernels import fuse_layers, shares_prompts, states_at, untouched

CAUSAL = "causal."


class TargetLogProbs(nn.Module):
    """Wraps a causal language model, with an adapter or without; its forward returns the log-probability of every target.

    The head runs on target positions only, and this one forward is all that FSDP2 needs to know of.
    """

    compute_dtype: torch.dtype | None = None
    """What whole weights, which are kept in float32, are computed in; None: what they are."""
    has_logits = True
    """Whether the forward runs the output layer."""

    def __init__(self, causal: PeftModel | PreTrainedModel) -> None:
        super().__init__()
        self.causal = causal
        self._handover = Handover(causal) if isinstance(causal, PeftModel) else None
        self._dropouts = [module for name, module in causal.named_modules() if name.endswith("lora_dropout")]
        fuse_layers(causal)

    @property
    def base(self) -> PreTrainedModel:
        """The model below a wrapper of PEFT's."""
        return self.causal.get_base_model() if isinstance(self.causal, PeftModel) else self.causal

    @property
    def virtual_tokens(self) -> int:
        """How many trained tokens stand before the text."""
        config = self.causal.peft_config["default"] if isinstance(self.causal, PeftModel) else None
        return int(config.num_virtual_tokens) if config is not None and config.is_prompt_learning else 0

    @property
    def shares_prompts(self) -> bool:
        """Whether rows in which sequences share their first tokens are computed rightly, now; not where layers were compiled whole."""
        return not self.virtual_tokens and shares_prompts(self.base.get_decoder())

    def forward(self, batch: MicroBatch, temperature: float = 1.0) -> torch.Tensor:
        """[N] log-probabilities, float32, of softmax(logits / temperature)."""
        head = self.base.get_output_embeddings()
        return target_log_probs(head, self.hidden(batch, batch.predict_at), batch.targets, temperature)

    def next_tokens(self, batch: MicroBatch) -> torch.Tensor:
        """[N] likeliest tokens in the places of the targets."""
        return likeliest(self.base.get_output_embeddings(), self.hidden(batch, batch.predict_at))

    def hidden(self, batch: MicroBatch, places: torch.Tensor) -> torch.Tensor:
        """[K, H] last hidden states at `places` [K], flat indices into R·T.

        Raises:
            ValueError: rows of several sequences, where the model has virtual tokens; or of sequences that share tokens, where its
                layers know nothing of that.
        """
        if batch.shares and not self.shares_prompts:
            raise ValueError("this model cannot share prompts; lay its sequences out with `without_sharing`")
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
        virtual = self.virtual_tokens
        if virtual:
            if batch.size > len(batch.input_ids):
                raise ValueError("virtual tokens stand before one sequence; a row of several would be read wrongly")
            inputs = self._after_virtual_tokens(batch, virtual)
        # Packed rows are kept apart only with no mask and no cache (transformers 5.23 then reads position_ids).
        width = batch.input_ids.shape[1]
        before = inputs["position_ids"].shape[1] - width  # embeddings of virtual tokens
        places = places + before * (1 + places // width)
        return states_at(self.base.get_decoder(), places, attention_mask=None, use_cache=False, **inputs)

    def _after_virtual_tokens(self, batch: MicroBatch, count: int) -> dict[str, Any]:
        """Inputs of the decoder. Positions of the text begin after the virtual tokens."""
        rows, config = table(self.causal), self.causal.peft_config["default"]
        size = len(batch.input_ids)
        positions = batch.position_ids + count
        if config.peft_type == "PREFIX_TUNING":
            cache = cache_of(prefix_of(rows, config), size, self.base.dtype)
            return {"input_ids": batch.input_ids, "position_ids": positions, "past_key_values": cache}
        before = torch.arange(count, device=positions.device).expand(size, -1)
        text = self.base.get_input_embeddings()(batch.input_ids)
        embeddings = torch.cat([rows.to(text.dtype).expand(size, -1, -1), text], dim=1)
        return {"inputs_embeds": embeddings, "position_ids": torch.cat([before, positions], dim=1)}

    def train_adapter(self) -> None:
        """Dropout on the adapter only: the base stays the model that is served."""
        if self.training:
            self.eval()
        for dropout in self._dropouts:
            dropout.train()

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers, the units of sharding.

        Raises:
            InvalidInput: the architecture keeps them in no list.
        """
        decoder = self.base.get_decoder()
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
        count, device = self.base.config.get_text_config().vocab_size, self.base.device
        one, other = (Sequence([(7 * i + start) % count for i in range(12)], [True] * 12) for start in (3, 5))
        alone = [self(collate([[sequence]]).to(device)) for sequence in (one, other)]
        with untouched(self):
            logits = self.causal(torch.tensor([one.ids], device=device), use_cache=False).logits[0, -12:-1].float()
        own = logits.log_softmax(-1).gather(1, torch.tensor(one.ids[1:], device=device)[:, None])[:, 0]
        packed = torch.cat(alone) if self.virtual_tokens else self(collate([[one, other]]).to(device))
        return float((alone[0] - own).abs().mean()), float((packed - torch.cat(alone)).abs().mean())

    def adapter_config(self) -> dict[str, Any] | None:
        """What PEFT writes into `adapter_config.json`, in a fixed order; None where whole weights are trained."""
        return self._handover.config() if self._handover else None

    def adapter(self, parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Trainable parameters, whole → an adapter of the unchanged base, under the names that PEFT files use.

        Empty where whole weights are trained: these have the names of Hugging Face after `causal.`.
        """
        own = {name.removeprefix(CAUSAL): p for name, p in parameters.items() if name.startswith(CAUSAL)}
        return self._handover.tensors(own) if self._handover else {}

    def trainable(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def build_trainable(
    reference: ModelReference,
    spec: TrainingSpec,
    where: str,
    packing: bool | None = False,
    embeddings: EmbeddingsSpec | None = None,
) -> TargetLogProbs:
    """Load the input model with what is to be trained: its own adapter, a new one, or all weights.

    Args:
        reference: the input model.
        spec: its `adapter` (None continues the input model's, or starts a LoRA with the defaults), `seed` of a new
            adapter's initialisation, and `max_length`.
        where: field path for error messages.
        packing: whether rows will hold several sequences; None: unless the adapter has virtual tokens.
        embeddings: embedding rows to train too.

    Raises:
        InvalidInput: a new adapter is asked for although the model has one, it does not fit the model, sequences
            exceed the model's positions, the embeddings cannot be trained, or the architecture computes what this
            forward does not.
    """
    model = TargetLogProbs(load_causal(reference, spec.adapter, spec.seed, where))
    base, virtual = model.base, model.virtual_tokens
    positions = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    if positions and spec.max_length + virtual > positions:
        said = f"{spec.max_length} and {virtual} virtual tokens exceed" if virtual else f"{spec.max_length} exceeds"
        raise InvalidInput(f"{where}.maxLength: {said} the model's {positions} positions; lower it")
    if packing and virtual:
        raise InvalidInput(f"{where}.packing: {PACKED_VIRTUAL}")
    if isinstance(model.causal, PreTrainedModel):
        if torch_dtype(reference.dtype) == torch.bfloat16:
            model.compute_dtype = torch.bfloat16
    elif embeddings is not None:
        if embeddings.alone:
            model.requires_grad_(False)  # an adapter that was there works on as it is; a new one is the identity
        train_rows(model.causal, reference, embeddings, where)
    tolerance = 1e-3 if base.dtype == torch.float32 else 0.1
    own, packed = model.disagreement()
    kind = base.config.model_type
    if not own <= tolerance:
        raise InvalidInput(
            f"{where}: {kind} models change their logits in ways that training here does not know ({own:.2g} off)"
        )
    if packing is not False and not packed <= tolerance:
        raise InvalidInput(f"{where}.packing: packed sequences would see each other in {kind} models; set packing: false")
    return model
