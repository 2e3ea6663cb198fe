"""How like replies are to their references, by name of the metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.evaluation.metrics.bleu import sentence_bleu
from plumbline.evaluation.metrics.rouge import rouge_l
from plumbline.evaluation.results import Sample

CHUNK = 256  # replies whose hidden states are held together

if TYPE_CHECKING:  # brings torch
    from plumbline.evaluation.metrics.bertscore import Encoder


def likeness(
    metrics: Sequence[str], replies: Sequence[str], references: Sequence[Sequence[str]], encoder: Encoder | None
) -> list[dict[str, float]]:
    """Metric → value in [0, 1] for each reply, against the most alike of its references.

    Args:
        metrics: of `rougeL`, `bleu` (of one reply, smoothed) and `bertScore` (F1; below 0 counts 0).
        replies: texts.
        references: one or more of each.
        encoder: for `bertScore`.
    """
    found: list[dict[str, float]] = [{} for _ in replies]
    for values, reply, right in zip(found, replies, references, strict=True):
        if "rougeL" in metrics:
            values["rougeL"] = max(rouge_l(reply, one) for one in right)
        if "bleu" in metrics:
            values["bleu"] = min(1.0, sentence_bleu(reply, right))
    if "bertScore" in metrics and replies:
        from plumbline.evaluation.metrics.bertscore import bert_score

        assert encoder is not None, "TaskSpec.problems asks for it"
        for first in range(0, len(replies), CHUNK):
            some = slice(first, first + CHUNK)
            for values, f1 in zip(found[some], bert_score(encoder, replies[some], references[some]).f1, strict=True):
                values["bertScore"] = min(1.0, max(0.0, f1))
    return found


def with_likeness(task: TaskSpec, samples: Sequence[Sample], encoder: Encoder | None) -> list[Sample]:
    """The samples, those of the task with its text metrics as variants of their scores."""
    own = [(i, model) for i, sample in enumerate(samples) if sample.task == task.name for model in sample.scores]
    values = likeness(
        task.metrics,
        [samples[i].replies[model].text for i, model in own],
        [samples[i].item.references or (samples[i].item.reference,) for i, _ in own],
        encoder,
    )
    found = list(samples)
    for (i, model), more in zip(own, values, strict=True):
        score = found[i].scores[model]
        told = replace(score, variants={**score.variants, **more})
        found[i] = replace(found[i], scores={**found[i].scores, model: told})
    return found
