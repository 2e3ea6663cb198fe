"""Embedding rows that are trained: those before stay frozen, these are kept in float32 beside a base of fewer bits.

PEFT's `trainable_token_indices` copies the whole matrix in every forward pass, and its `modules_to_save` trains all rows in
the base's type; both make adapters that engines would have to know. Two small layers do without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from plumbline.api.stages.sft import EmbeddingsSpec
from plumbline.errors import InvalidInput
from plumbline.models.embeddings import Embeddings, check_growable
from plumbline.models.load import load_embeddings
from plumbline.models.reference import ModelReference

if TYPE_CHECKING:
    from peft import PeftModel

INPUT, OUTPUT = "input_rows", "output_rows"


class SplitEmbedding(nn.Module):
    """An embedding of frozen rows [first, hidden] and trained ones [rows, hidden] after them."""

    def __init__(self, frozen: nn.Parameter, rows: nn.Parameter) -> None:
        super().__init__()
        self.frozen, self.input_rows = frozen, rows

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        first = len(self.frozen)
        trained = nn.functional.embedding((ids - first).clamp(min=0), self.input_rows).to(self.frozen.dtype)
        if first == 0:
            return trained
        known = nn.functional.embedding(ids.clamp(max=first - 1), self.frozen)
        return torch.where((ids < first)[..., None], known, trained)


class SplitHead(nn.Module):
    """An output layer of frozen rows [first, hidden] and trained ones [rows, hidden] after them."""

    def __init__(self, frozen: nn.Parameter, rows: nn.Parameter) -> None:
        super().__init__()
        self.frozen, self.output_rows = frozen, rows
        self.out_features = len(frozen) + len(rows)  # before they are sharded

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        linear = nn.functional.linear
        return torch.cat([linear(hidden, self.frozen), linear(hidden, self.output_rows.to(hidden.dtype))], dim=-1)


def train_rows(model: PeftModel, reference: ModelReference, spec: EmbeddingsSpec, where: str) -> None:
    """Put trained rows in the place of the model's own, in the input and the output layer; one and the same where it ties them.

    Raises:
        InvalidInput: the model brings no new rows, the adapter changes these layers, or they are no plain tables.
    """
    causal = model.get_base_model()
    before = load_embeddings(reference)
    first = 0 if spec.rows == "all" else before.known if before else None
    if first is None or (before and first == before.end):
        raise InvalidInput(
            f"{where}.embeddings.rows: the input model has no new tokens; put an extendTokenizer stage before this one, or "
            "set rows: all"
        )
    check_growable(causal, f"{where}.embeddings")
    embedding, head = causal.get_input_embeddings().weight, causal.get_output_embeddings().weight
    frozen, rows = _split(embedding, first)
    causal.set_input_embeddings(SplitEmbedding(frozen, rows))
    causal.set_output_embeddings(SplitHead(frozen, rows) if head is embedding else SplitHead(*_split(head, first)))


def _split(weight: torch.Tensor, first: int) -> tuple[nn.Parameter, nn.Parameter]:
    frozen = nn.Parameter(weight.detach()[:first].clone(), requires_grad=False)
    return frozen, nn.Parameter(weight.detach()[first:].float().clone())


def trained_embeddings(parameters: dict[str, torch.Tensor], reference: ModelReference) -> Embeddings | None:
    """The embedding rows of a model after training: the trained ones, else those that the input model brought.

    Args:
        parameters: trained parameters, whole, by name.
        reference: the input model.
    """
    before = load_embeddings(reference)
    named = {name.rpartition(".")[2]: tensor for name, tensor in parameters.items()}
    if INPUT not in named:
        return before
    rows = len(named[INPUT])
    end, known = (before.end, before.known) if before else (rows, rows)  # without new tokens all rows are trained
    return Embeddings(end - rows, named[INPUT], named.get(OUTPUT), known)
