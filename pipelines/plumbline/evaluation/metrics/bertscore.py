"""BERTScore (Zhang et al. 2020, arXiv 1904.09675) with any encoder in a local folder.

Equal to the authors' package (bert-score 0.3.13) to 1e-6 given the same model, layer and weights. It ranks; it is no absolute measure, and
weak for open replies.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from plumbline.artifacts import file_digest
from plumbline.errors import InvalidInput, one_line
from plumbline.models.encoder import input_length

DEPTH = 0.75
"""Of the layers, where none is named: 9 of BERT base's 12. Middle layers agree best with people (appendix B of the paper)."""
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class BertScore:
    """Scores of texts; P, R and F1 in [-1, 1], 1 for equal texts.

    Attributes:
        precision, recall, f1: of each text, against the reference with the highest F1.
        hash: of model, layer, weighting and rescaling; only scores of equal hashes compare.
    """

    precision: tuple[float, ...]
    recall: tuple[float, ...]
    f1: tuple[float, ...]
    hash: str

    @property
    def means(self) -> Triple:
        """Mean P, R and F1 over the texts."""
        n = len(self.f1)
        return sum(self.precision) / n, sum(self.recall) / n, sum(self.f1) / n


class Encoder:
    """A model whose hidden states are compared.

    Args:
        folder: of a Hugging Face model with its tokenizer.
        layer: whose output is taken, from 1; 0 is the embeddings. Unset: three quarters up.

    Raises:
        InvalidInput: there is no such model, or it has no such layer.
    """

    def __init__(self, folder: str, layer: int | None = None) -> None:
        try:
            self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model: PreTrainedModel = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise InvalidInput(
                f"'{folder}' holds no encoder: {one_line(error)}; give a folder of a Hugging Face model with its tokenizer"
            ) from error
        layers = int(model.config.get_text_config().num_hidden_layers)
        chosen = max(1, round(DEPTH * layers)) if layer is None else layer
        if not 0 <= chosen <= layers:
            raise InvalidInput(f"layer {layer} of '{folder}' does not exist; it has layers 0 to {layers}")
        model.requires_grad_(False)
        model.train(False)
        self._model = model
        self._layer = chosen
        self._longest = input_length(model.config, int(min(self._tokenizer.model_max_length, 2**20)))
        digests = [file_digest(path) for path in sorted(Path(folder).iterdir()) if _is_part(path)]
        self._name = f"{Path(folder).name}_L{chosen}_{hashlib.sha256(''.join(digests).encode()).hexdigest()[:12]}"

    def name(self, idf: bool, baseline: Triple | None) -> str:
        """What a score depends on, in one word."""
        rescaled = "" if baseline is None else "_rescaled-" + "-".join(f"{value:.6f}" for value in baseline)
        return f"{self._name}_{'idf' if idf else 'no-idf'}{rescaled}"

    def tokens(self, text: str) -> tuple[int, ...]:
        """Token ids with the special ones around, cut at the longest input of the model."""
        return tuple(self._tokenizer.encode(text.strip(), truncation=True, max_length=self._longest))

    @property
    def unweighted(self) -> frozenset[int]:
        """Tokens that count nothing: those that begin and end every text."""
        ends = (self._tokenizer.cls_token_id, self._tokenizer.sep_token_id)
        return frozenset(token for token in ends if isinstance(token, int))

    @torch.inference_mode()
    def states(self, texts: Sequence[tuple[int, ...]], batch: int = 32) -> dict[tuple[int, ...], torch.Tensor]:
        """[tokens, width] hidden states of length 1 for each text, by its token ids."""
        found: dict[tuple[int, ...], torch.Tensor] = {}
        wanted = sorted({text for text in texts if text}, key=lambda text: (-len(text), text))
        for first in range(0, len(wanted), batch):
            some = wanted[first : first + batch]
            length = len(some[0])
            ids = torch.tensor([[*text, *[self._tokenizer.pad_token_id or 0] * (length - len(text))] for text in some])
            mask = torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in some])
            output: Any = self._model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            states = torch.nn.functional.normalize(output.hidden_states[self._layer], dim=-1)
            found |= {text: states[i, : len(text)].clone() for i, text in enumerate(some)}
        return found


def bert_score(
    encoder: Encoder,
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    idf: bool = False,
    baseline: Triple | None = None,
) -> BertScore:
    """R = Σ over the reference's tokens of w · max cosine to a token of the candidate / Σ w; P the other way round; F1 = 2PR/(P + R).

    Args:
        encoder: whose states are compared.
        candidates: texts.
        references: of each text, one or more.
        idf: w = ln((N + 1)/(df + 1)) over the N references; else 1, and 0 for the tokens around a text.
        baseline: P, R and F1 of unrelated texts by this encoder (`unrelated`); scores are then (x − b)/(1 − b).

    Raises:
        ValueError: there is no text, a text has no reference, the lists differ in length, or a baseline is 1.
    """
    if not candidates or len(candidates) != len(references) or not all(references):
        raise ValueError(f"each of {len(candidates)} texts needs references; {len(references)} lists are given")
    if baseline is not None and any(value >= 1 for value in baseline):
        raise ValueError(f"a baseline is below 1; {baseline} is given")
    ours = [encoder.tokens(text) for text in candidates]
    theirs = [[encoder.tokens(text) for text in some] for some in references]
    weights = _idf([text for some in theirs for text in some]) if idf else None
    states = encoder.states([*ours, *(text for some in theirs for text in some)])
    found = []
    for candidate, some in zip(ours, theirs, strict=True):
        triples = [_score(candidate, reference, states, weights, encoder.unweighted) for reference in some]
        found.append(max(triples, key=lambda triple: triple[2]))
    if baseline is not None:
        found = [_rescaled(triple, baseline) for triple in found]
    precision, recall, f1 = zip(*found, strict=True)
    return BertScore(precision, recall, f1, encoder.name(idf, baseline))


def unrelated(encoder: Encoder, texts: Sequence[str], *, idf: bool = False) -> Triple:
    """Mean P, R and F1 of texts against their neighbours in the list: the baseline, where neighbours have nothing in common.

    Raises:
        ValueError: there are fewer than two.
    """
    if len(texts) < 2:
        raise ValueError(f"a baseline needs two texts at least; {len(texts)} are given")
    return bert_score(encoder, texts, [[text] for text in (*texts[1:], texts[0])], idf=idf).means


def _score(
    candidate: tuple[int, ...],
    reference: tuple[int, ...],
    states: dict[tuple[int, ...], torch.Tensor],
    weights: dict[int, float] | None,
    unweighted: frozenset[int],
) -> Triple:
    if not set(candidate) - unweighted or not set(reference) - unweighted:
        return 0.0, 0.0, 0.0  # an empty text has nothing in common with any
    cosines = states[candidate] @ states[reference].T

    def mean(tokens: tuple[int, ...], best: torch.Tensor) -> float:
        if weights is None:
            weight = [0.0 if token in unweighted else 1.0 for token in tokens]
        else:
            weight = [weights[token] if token in weights else weights[_UNSEEN] for token in tokens]
        total = math.fsum(weight)
        return math.fsum(w * b for w, b in zip(weight, best.tolist(), strict=True)) / total if total else 0.0

    precision, recall = mean(candidate, cosines.max(dim=1).values), mean(reference, cosines.max(dim=0).values)
    both = precision + recall
    return precision, recall, 2 * precision * recall / both if both else 0.0


_UNSEEN = -1


def _idf(references: Sequence[tuple[int, ...]]) -> dict[int, float]:
    """Weight of each token; `_UNSEEN` of one that no reference has."""
    n = len(references)
    having = Counter(token for text in references for token in set(text))
    return {token: math.log((n + 1) / (df + 1)) for token, df in having.items()} | {_UNSEEN: math.log(n + 1)}


def _rescaled(triple: Triple, baseline: Triple) -> Triple:
    precision, recall, f1 = ((value - base) / (1 - base) for value, base in zip(triple, baseline, strict=True))
    return precision, recall, f1


def _is_part(path: Path) -> bool:
    return path.is_file() and path.suffix in (".safetensors", ".bin", ".json", ".txt", ".model")
