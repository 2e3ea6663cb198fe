"""The embedding rows that a Model artifact brings: those of tokens that the base does not know, or trained ones.

They are kept beside the adapter, from a first row to the last, so that the base is never copied and the adapter stays a
plain LoRA: whoever loads the base by `models.load` has them, trainer, rollouts and server alike.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from plumbline.artifacts import ArtifactCorrupt
from plumbline.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Embeddings:
    """Rows `first` to the last of the input embeddings, and of the output layer where it has its own.

    Attributes:
        first: row that the tensors begin with.
        input: [rows, hidden].
        output: the same; None where the output layer shares the input's.
        known: how many tokens the base has; later rows are of new ones.
    """

    first: int
    input: torch.Tensor
    output: torch.Tensor | None
    known: int

    @property
    def end(self) -> int:
        """Rows of the whole matrix."""
        return self.first + len(self.input)

    @classmethod
    def of(cls, model: PreTrainedModel, first: int, known: int) -> Embeddings:
        """A model's own from row `first` on; copies."""
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        rows = embedding.detach()[first:].clone()
        return cls(first, rows, None if head is embedding else head.detach()[first:].clone(), known)

    @classmethod
    def load(cls, file: Path) -> Embeddings:
        """Read what `save` wrote.

        Raises:
            ArtifactCorrupt: it is no such file.
        """
        try:
            with safe_open(file, "pt") as tensors:
                names = set(tensors.keys())
                output = tensors.get_tensor("output") if "output" in names else None
                facts = json.loads(tensors.metadata()["facts"])
                return cls(int(facts["first"]), tensors.get_tensor("input"), output, int(facts["known"]))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ArtifactCorrupt(f"{file} holds no embedding rows ({error}); run the stage that made it again") from error

    def save(self, file: Path) -> None:
        tensors = {"input": self.input} | ({} if self.output is None else {"output": self.output})
        facts = {
            "facts": json.dumps({"first": self.first, "known": self.known})
        }  # one key: with two, their order would vary
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, facts)

    @torch.no_grad()
    def put_into(self, model: PreTrainedModel, where: str) -> None:
        """Give a model these rows; its vocabulary becomes as large as they need.

        Args:
            model: the base.
            where: of what the message speaks.

        Raises:
            InvalidInput: they were made for another model.
        """
        check_growable(model, where)
        embedding = model.get_input_embeddings().weight
        tied = model.get_output_embeddings().weight is embedding
        if self.first > len(embedding) or self.input.shape[1] != embedding.shape[1] or tied != (self.output is None):
            raise InvalidInput(
                f"{where}: the embedding rows {self.first} to {self.end - 1} of width {self.input.shape[1]} do not fit the "
                f"model's {len(embedding)} rows of width {embedding.shape[1]}; give the base that they were made for"
            )
        if self.end != len(embedding):
            model.resize_token_embeddings(self.end, mean_resizing=False)
        model.get_input_embeddings().weight[self.first :] = self.input.to(embedding.dtype)
        if self.output is not None:
            model.get_output_embeddings().weight[self.first :] = self.output.to(embedding.dtype)


def check_growable(model: PreTrainedModel, where: str) -> None:
    """Refuse models whose embeddings are more than a table of rows.

    Raises:
        InvalidInput: input or output layer computes something else, or has a bias.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if type(embedding) is not nn.Embedding or type(head) is not nn.Linear or head.bias is not None:
        raise InvalidInput(
            f"{where}: {model.config.model_type} models have embeddings that cannot be extended or trained here "
            f"({type(embedding).__name__} and {type(head).__name__}{' with a bias' if hasattr(head, 'bias') else ''}); "
            "a plain table and a linear output layer without bias are accepted"
        )


@torch.no_grad()
def with_new_rows(model: PreTrainedModel, before: Embeddings | None, new: int, parts: Sequence[Sequence[int]]) -> Embeddings:
    """Rows for new tokens, each the mean of its parts' rows, in the input embeddings and in the output layer.

    Rows that only fill the matrix up (to a multiple of 64, say) are used first, and those left over stay.

    Args:
        model: the model before, with the rows of `before`.
        before: the rows that it brings already, if any.
        new: id of the first new token, at most the model's rows.
        parts: of each new token, the old ids that it stands for.
    """
    start, known = (min(before.first, new), before.known) if before else (new, new)
    present = Embeddings.of(model, start, known)
    numbers = torch.tensor([token for tokens in parts for token in tokens])
    offsets = torch.tensor([0] + [len(tokens) for tokens in parts])[:-1].cumsum(0)

    def grown(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        means = nn.functional.embedding_bag(numbers, weight.detach().float(), offsets, mode="mean")
        return torch.cat([rows[: new - start], means.to(rows.dtype), rows[new - start + len(parts) :]])

    output = present.output
    if output is not None:
        output = grown(output, model.get_output_embeddings().weight)
    return replace(present, input=grown(present.input, model.get_input_embeddings().weight), output=output)
