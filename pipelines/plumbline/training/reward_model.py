"""Reward models: a scalar head on a backbone, trained on comparisons, handed over, and asked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plumbline.data.row import Chat
from plumbline.errors import InvalidInput
from plumbline.models.load import load_base, load_tokenizer
from plumbline.models.reference import HEAD, HEAD_FILE, ModelReference
from plumbline.training.batch import MicroBatch, Sequence, ask_in_order
from plumbline.training.encode import encode_chat
from plumbline.training.model import TargetLogProbs


class Rewards(TargetLogProbs):
    """Its forward returns the reward of every sequence: a linear function, without bias, of the hidden state at its last target.

    That place is known from the mask, never from the padding token, which may be one that ends answers.
    """

    has_logits = False

    def __init__(self, causal: PeftModel | PreTrainedModel, seed: int = 0) -> None:
        super().__init__(causal)
        self.head = value_head(self.base, seed)

    def forward(self, batch: MicroBatch, temperature: float = 1.0) -> torch.Tensor:
        """[S] rewards, float32."""
        before = torch.zeros(batch.size, dtype=torch.long, device=batch.predict_at.device)
        before = before.scatter_reduce(0, batch.sequence, batch.predict_at, "amax", include_self=False)
        states = self.hidden(batch, before + 1).to(self.head.weight.dtype)
        rewards: torch.Tensor = self.head(states).sum(dim=1)  # of one: FSDP2 wants no view
        return rewards


def value_head(base: PreTrainedModel, seed: int) -> nn.Linear:
    """A new linear function of hidden states, of standard deviation 1/(hidden + 1), as Stiennon et al. 2020 (arXiv 2009.01325)."""
    size = base.get_output_embeddings().weight.shape[1]
    head = nn.Linear(size, 1, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(1, size, generator=torch.Generator().manual_seed(seed)) / (size + 1))
    return head


@dataclass(frozen=True)
class RewardModel:
    """A finished reward model. Its rewards of the answers that it was trained on have mean 0 and standard deviation 1."""

    model: Rewards
    reference: ModelReference
    mean: float
    std: float
    max_length: int

    @classmethod
    def load(cls, reference: ModelReference) -> RewardModel:
        """The model of a RewardModel artifact, on the CPU.

        Raises:
            InvalidInput: the reference names something else.
        """
        artifact = reference.artifact()
        if artifact is None or "reward" not in artifact.details:
            raise InvalidInput(f"{reference.kind or reference.base} is no reward model; name a stage of kind rewardModel")
        base, folder = load_base(reference), reference.adapter_folder()
        model = Rewards(base if folder is None else PeftModel.from_pretrained(base, folder))
        model.head.load_state_dict({"weight": load_file(artifact.local() / HEAD_FILE)[HEAD]})
        facts = artifact.details["reward"]
        return cls(model.eval(), reference, facts["mean"], facts["std"], facts["maxLength"])

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of its base."""
        return load_tokenizer(self.reference)

    def fits(self, chat: Chat) -> bool:
        """Whether a chat is no longer than those that the model was trained for."""
        return len(encode_chat(self.tokenizer, chat, self.max_length + 1, "last").ids) <= self.max_length

    @torch.no_grad()
    def score(self, chats: list[Chat], micro_batch_tokens: int = 8192) -> list[float]:
        """The reward of each chat's last answer.

        Raises:
            InvalidInput: a chat is longer than the model was trained for, or does not end with an answer.
        """
        sequences = [encode_chat(self.tokenizer, chat, self.max_length + 1, "last") for chat in chats]
        for i, (chat, sequence) in enumerate(zip(chats, sequences, strict=True)):
            if not chat or chat[-1]["role"] != "assistant":
                raise InvalidInput(f"chat {i} does not end with an assistant turn, which is what is scored; add the answer")
            if len(sequence.ids) > self.max_length or not sequence.targets:
                raise InvalidInput(
                    f"chat {i} has more than the {self.max_length} tokens that the reward model was trained for"
                )
        raw = rewards_of(self.model, sequences, micro_batch_tokens)
        return [(value - self.mean) / self.std for value in raw]


def rewards_of(model: Rewards, sequences: list[Sequence], micro_batch_tokens: int) -> list[float]:
    """Raw rewards, in order."""
    device = model.head.weight.device

    def rewards(batches: list[MicroBatch]) -> list[torch.Tensor]:
        return [model(batch.to(device)) for batch in batches]

    return ask_in_order(sequences, rewards, micro_batch_tokens=micro_batch_tokens)
