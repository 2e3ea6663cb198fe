"""Rows scored by a transformers sequence classifier: safety and quality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from plumbline.api.curation.filters import ClassifierSpec, QualitySpec, SafetySpec
from plumbline.data.filters.words import learned
from plumbline.data.row import Reject, Row
from plumbline.errors import InvalidInput, one_line
from plumbline.models.encoder import input_length

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BatchEncoding, PretrainedConfig

BATCH_TOKENS = 16_384  # of one forward pass, padding included; activations of a base model stay below a gigabyte


class Classifier:
    """Scores texts. Load it where it is used: it holds the model.

    Args:
        spec: model and label.
        where: field path of the block, for messages.

    Raises:
        InvalidInput: what is there is no sequence classifier in safetensors, or has no such label.
        PlumblineError: the model cannot be fetched now.
    """

    def __init__(self, spec: ClassifierSpec, where: str) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from plumbline.external import check_model
        from plumbline.models.load import base_folder

        self._spec = spec
        if not spec.model.startswith("hf://"):
            check_model(spec.model, f"{where}.model")
        folder = base_folder(spec.model)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
        except Exception as error:  # transformers and safetensors pass on what their parsers raise
            raise InvalidInput(f"{where}.model: '{spec.model}' cannot be loaded: {one_line(error)}") from error
        if report["missing_keys"]:  # transformers would fill a missing head with random numbers
            missing = sorted(report["missing_keys"])[0]
            raise InvalidInput(
                f"{where}.model: '{spec.model}' is no sequence classifier: its weights lack {missing}; give one that was "
                f"trained as such"
            )
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model.eval().to(self._device)
        self._column = _column(spec, model.config, where)
        self._longest = input_length(model.config, spec.max_tokens)
        if self._tokenizer.pad_token is None:  # as causal models have none
            self._tokenizer.pad_token = self._tokenizer.eos_token or self._tokenizer.unk_token
            if self._tokenizer.pad_token is None:
                raise InvalidInput(
                    f"{where}.model: the tokenizer of '{spec.model}' has no token to pad with; give it a pad token"
                )
        if model.config.pad_token_id is None:
            model.config.pad_token_id = self._tokenizer.pad_token_id

    def scores(self, rows: Sequence[Row]) -> np.ndarray:
        """(n,) float64: the label's probability, or the one output as it is; however rows are batched, up to rounding.

        NaN for a row without an answer to imitate (a bad one of KTO), where the answer is read.
        """
        import torch

        readable = [i for i, row in enumerate(rows) if self._spec.reads == "prompt" or learned(row)]
        encoded = {i: self._encode(rows[i]) for i in readable}
        scores = np.full(len(rows), np.nan)
        for places in _batches([len(encoded[i]["input_ids"]) for i in readable]):
            batch = [readable[place] for place in places]
            padded = self._tokenizer.pad([encoded[i] for i in batch], return_tensors="pt").to(self._device)
            with torch.inference_mode():
                logits = self._model(**padded).logits.double().cpu()
            scores[batch] = self._read(logits).numpy()
        return scores

    def _encode(self, row: Row) -> BatchEncoding:
        """Prompt and answer as the pair that BERT-like models are trained with; the longer one is cut first."""
        prompt, answer = "\n".join(row.prompts), "\n".join(learned(row))
        first, second = {"prompt": (prompt, None), "answer": (answer, None), "chat": (prompt, answer)}[self._spec.reads]
        if not first:
            first, second = answer, None
        encoded: BatchEncoding = self._tokenizer(first, second, truncation="longest_first", max_length=self._longest)
        return encoded

    def _read(self, logits: Tensor) -> Tensor:
        if self._column is None:
            return logits[:, 0]
        several = self._model.config.problem_type == "multi_label_classification"
        return (logits.sigmoid() if several else logits.softmax(-1))[:, self._column]


@lru_cache(maxsize=2)
def loaded(spec: ClassifierSpec, where: str) -> Classifier:
    """The classifier; a process that works on many parts loads it once."""
    return Classifier(spec, where)


class SafetyFilter:
    """Drops rows that the classifier holds for unsafe; see `Classifier`."""

    def __init__(self, spec: SafetySpec, where: str) -> None:
        self._spec, self._classifier = spec, loaded(spec, where)

    def __call__(self, rows: Sequence[Row]) -> list[Row | Reject]:
        """Each row, or why it is dropped. What has no score stays."""
        scored = zip(rows, self._classifier.scores(rows), strict=True)
        return [
            Reject("unsafe by the classifier", f"{score:.3f}") if score > self._spec.max_score else row
            for row, score in scored
        ]


class QualityFilter:
    """Drops rows that the classifier holds for poor, and notes the score of the others; see `Classifier`."""

    def __init__(self, spec: QualitySpec, where: str) -> None:
        self._spec, self._classifier = spec, loaded(spec, where)

    def __call__(self, rows: Sequence[Row]) -> list[Row | Reject]:
        """Each row with its score, or why it is dropped."""
        scored = zip(rows, self._classifier.scores(rows).tolist(), strict=True)
        return [
            Reject("poor by the classifier", f"{score:.3f}")
            if score < self._spec.min_score
            else row
            if math.isnan(score)
            else replace(row, score=score)
            for row, score in scored
        ]


def _column(spec: ClassifierSpec, config: PretrainedConfig, where: str) -> int | None:
    """Which output is the label's; None for a model with a single output."""
    labels = {str(name): int(number) for number, name in (config.id2label or {}).items()}
    if config.num_labels == 1:
        if spec.label is not None:
            raise InvalidInput(f"{where}.label: '{spec.label}' is not accepted: '{spec.model}' has one output; leave it out")
        return None
    if spec.label not in labels:
        given = "none is given" if spec.label is None else f"'{spec.label}' is none of them"
        raise InvalidInput(f"{where}.label: '{spec.model}' has the labels {', '.join(labels)}; {given}: name one")
    return labels[spec.label]


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Indices in batches of similar length, each of at most `BATCH_TOKENS` with its padding."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= BATCH_TOKENS:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
