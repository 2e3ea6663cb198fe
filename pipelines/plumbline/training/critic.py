"""The critic of PPO: what reward a policy may expect, told at every token."""

from __future__ import annotations

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from plumbline.api.stages.rlhf import RlhfSpec
from plumbline.models.load import stands_on
from plumbline.models.reference import HEAD, HEAD_FILE, ModelReference
from plumbline.training.batch import MicroBatch
from plumbline.training.model import TargetLogProbs, build_trainable
from plumbline.training.reward_model import value_head


class Values(TargetLogProbs):
    """Its forward returns the value of every place before a target: a linear function of the hidden state there.

    Args:
        causal: the model.
        head: the function's weight.
        shift: what is taken off, which does not learn.
    """

    has_logits = False

    def __init__(self, causal: PeftModel | PreTrainedModel, head: nn.Linear, shift: float = 0.0) -> None:
        super().__init__(causal)
        self.head, self._shift = head, shift

    def forward(self, batch: MicroBatch, temperature: float = 1.0) -> torch.Tensor:
        """[N] values, float32."""
        states = self.hidden(batch, batch.predict_at).to(self.head.weight.dtype)
        values: torch.Tensor = self.head(states).sum(dim=1)  # of one: FSDP2 wants no view
        return values - self._shift


def build_critic(policy: ModelReference, reward_model: ModelReference | None, spec: RlhfSpec, where: str) -> Values:
    """A critic that starts from the reward model, where there is one on the policy's base (InstructGPT, appendix C.4), with its head on the
    scale of its rewards; else from the policy's input model with a new head."""
    artifact = reward_model.artifact() if reward_model is not None else None
    if artifact is None or reward_model is None or stands_on(reward_model) != stands_on(policy):
        trainable = build_trainable(policy, spec, where)
        return Values(trainable.causal, value_head(trainable.base, spec.seed))
    reward = artifact.details["reward"]
    inherited = spec.model_copy(update={"adapter": None})
    trainable = build_trainable(reward_model, inherited, where)
    head = value_head(trainable.base, spec.seed)
    with torch.no_grad():
        head.weight.copy_(load_file(artifact.local() / HEAD_FILE)[HEAD] / reward["std"])
    return Values(trainable.causal, head, reward["mean"] / reward["std"])
