"""Rows of a preference dataset → units of sequences, and the objective that reads them: one table for all methods. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from plumbline.api.stages.preference import PreferenceSpec
from plumbline.data.mapped import Rows
from plumbline.data.row import Chat, Form
from plumbline.evaluation.judges.pairwise import SWAPPED, pairwise_prompt, verdict_of
from plumbline.evaluation.judges.rating import request_of
from plumbline.training.batch import Sequence
from plumbline.training.encode import encode_chat
from plumbline.training.objectives import Objective
from plumbline.training.objectives.cpo import cpo
from plumbline.training.objectives.cut import cut
from plumbline.training.objectives.dpo import dpo
from plumbline.training.objectives.ipo import ipo
from plumbline.training.objectives.judge import judge
from plumbline.training.objectives.kto import kto
from plumbline.training.objectives.orpo import orpo
from plumbline.training.objectives.pro import pro
from plumbline.training.objectives.rrhf import rrhf
from plumbline.training.objectives.sft import sft
from plumbline.training.objectives.simpo import simpo
from plumbline.training.objectives.slic import slic
from plumbline.training.objectives.weighted import weighted
from plumbline.training.share import Unit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
"""One row by column of the method's form."""


@dataclass(frozen=True)
class Encoder:
    """Rows → units.

    Attributes:
        tokenizer: fast, with a chat template.
        max_length: in tokens; rows with a longer sequence are left out.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int

    def answer(self, prompt: Chat, answer: Chat, **values: float) -> Sequence:
        """An answer after its prompt; trained on the answer only."""
        sequence = encode_chat(self.tokenizer, [*prompt, *answer], self.max_length + 1, "last")
        sequence.values.update(values)
        return sequence

    def fits(self, unit: Unit) -> bool:
        """Whether each sequence is whole and has something to learn."""
        return all(len(sequence.ids) <= self.max_length and sequence.targets for sequence in unit)


Encode = Callable[[Encoder, Rows, int, PreferenceSpec], Unit]
"""(encoder, all rows, number of the row, spec) → its unit."""


def ranking(encoder: Encoder, row: Row) -> Unit:
    """The answers of a ranking, with their scores."""
    answers = zip(row["completions"], row["scores"], strict=True)
    return [encoder.answer(row["prompt"], answer, score=score) for answer, score in answers]


def pair_by_score(encoder: Encoder, row: Row) -> Unit:
    """A pair as a ranking of two."""
    return ranking(encoder, {**row, "completions": [row["chosen"], row["rejected"]], "scores": [1.0, 0.0]})


def _pair(encoder: Encoder, rows: Rows, i: int, spec: PreferenceSpec) -> Unit:
    return [encoder.answer(rows[i]["prompt"], rows[i][side]) for side in ("chosen", "rejected")]


def _ranking(encoder: Encoder, rows: Rows, i: int, spec: PreferenceSpec) -> Unit:
    return ranking(encoder, rows[i])


def _label(encoder: Encoder, rows: Rows, i: int, spec: PreferenceSpec) -> Unit:
    """The answer, and the next answer to another prompt after this one, on which KTO measures the divergence.

    The other one is cut to fit: a row is left out for its own length only.
    """
    row, label = rows[i], float(rows[i]["label"])
    others = (rows[(i + k) % len(rows)] for k in range(1, len(rows)))
    other = next((one for one in others if one["prompt"] != row["prompt"]), row)
    own, unrelated = (encoder.answer(row["prompt"], one["completion"], label=label) for one in (row, other))
    return [own, unrelated.cut(encoder.max_length)]


def _conditioned(encoder: Encoder, rows: Rows, i: int, spec: PreferenceSpec) -> Unit:
    row = rows[i]
    options = spec.options()
    marker, weight = ("good_marker", 1.0) if row["label"] else ("bad_marker", float(options["bad_weight"]))
    return [encoder.answer(marked(row["prompt"], str(options[marker])), row["completion"], weight=weight)]


def _judged(encoder: Encoder, rows: Rows, i: int, spec: PreferenceSpec) -> Unit:
    row = rows[i]
    bad = float(not row["label"])
    *before, question = row["prompt"]  # the judgment is of the last answer
    prompts = ([*before, *marked([question], f"Judgment: {row['judgment']}")], row["prompt"])
    return [encoder.answer(prompt, row["completion"], bad=bad) for prompt in prompts]


def _hindsight(encoder: Encoder, rows: Rows, i: int, spec: PreferenceSpec) -> Unit:
    """The worse answer and then the better one, each after its marker, and the other way round."""
    row, options, draw = rows[i], spec.options(), np.random.default_rng([spec.seed, i])
    answers = [(options["bad_marker"], row["rejected"]), (options["good_marker"], row["chosen"])]
    unit = []
    for (marker, answer), (other_marker, other) in (answers, answers[::-1]):
        chat = [*marked(row["prompt"], str(marker)), *answer, {"role": "user", "content": str(other_marker)}, *other]
        sequence = encode_chat(encoder.tokenizer, chat, encoder.max_length + 1, 2)
        hidden = draw.random(len(sequence.ids)) < float(options["forget"])
        blank = next(
            token
            for token in (encoder.tokenizer.unk_token_id, encoder.tokenizer.pad_token_id, encoder.tokenizer.eos_token_id, 0)
            if token is not None
        )
        sequence.inputs = [
            blank if hide and trained else token
            for token, trained, hide in zip(sequence.ids, sequence.trained, hidden, strict=True)
        ]
        unit.append(sequence)
    return unit


def _compared(encoder: Encoder, rows: Rows, i: int, spec: PreferenceSpec) -> Unit:
    """A judge's verdict on every two answers of the ranking, in both orders one after the other."""
    row = rows[i]
    request, answers = request_of(row["prompt"]), [answer[0]["content"] for answer in row["completions"]]
    unit = []
    for (one, score), (other, of_other) in combinations(zip(answers, row["scores"], strict=True), 2):
        verdict = verdict_of(score, of_other)
        for first, second, right in ((one, other, verdict), (other, one, SWAPPED[verdict])):
            question = {"role": "user", "content": pairwise_prompt(request, first, second)}
            unit.append(encoder.answer([question], [{"role": "assistant", "content": right}]))
    return unit


def marked(prompt: Chat, marker: str) -> Chat:
    """The prompt with every user turn ending in the marker, on a line of its own."""
    return [turn | {"content": f"{turn['content']}\n{marker}"} if turn["role"] == "user" else turn for turn in prompt]


def marking(template: str, marker: str) -> str:
    """A chat template that marks user turns as `marked` does, in the place of a marker that it has: whoever renders prompts
    asks for good answers."""
    return (
        "{%- set marked = namespace(turns=[]) %}{%- for turn in messages %}"
        "{%- if turn['role'] == 'user' and turn['content'] is string %}"
        f"{{%- set turn = dict(turn, content=turn['content'] ~ '\\n' ~ {json.dumps(marker, ensure_ascii=False)}) %}}{{%- endif %}}"
        f"{{%- set marked.turns = marked.turns + [turn] %}}{{%- endfor %}}{_MARKED}"
    ) + unmarked(template)


_MARKED = "{%- set messages = marked.turns %}"


def unmarked(template: str) -> str:
    """The chat template without what `marking` has put before it."""
    return template.rpartition(_MARKED)[2]


@dataclass(frozen=True)
class Method:
    """What an objective reads.

    Attributes:
        form: of the dataset's rows.
        encode: row → unit.
        loss: from the options of the spec.
        reference: whether it compares with the input model's log-probabilities (`reference` in `per_sequence`).
        together: how many sequences of a unit, in their order, must share a micro-batch; None: all.
        baseline: whether the last sequence of a unit is not trained on: the step's divergence (`kl` in `per_step`) is its.
    """

    form: Form
    encode: Encode
    loss: Callable[..., Objective]
    reference: bool = False
    baseline: bool = False
    together: int | None = None

    def parts(self, unit: Unit) -> list[Unit]:
        """What must share a micro-batch."""
        size = self.together or len(unit)
        return [unit[i : i + size] for i in range(0, len(unit), size)]


METHODS: dict[str, Method] = {
    "dpo": Method("pairs", _pair, dpo, reference=True),
    "rpo": Method("pairs", _pair, dpo, reference=True),
    "ipo": Method("pairs", _pair, ipo, reference=True),
    "orpo": Method("pairs", _pair, orpo),
    "simpo": Method("pairs", _pair, simpo),
    "cpo": Method("pairs", _pair, cpo),
    "slic": Method("pairs", _pair, slic),
    "coh": Method("pairs", _hindsight, lambda **_: sft),
    "rrhf": Method("rankings", _ranking, rrhf),
    "pro": Method("rankings", _ranking, pro),
    "judge": Method("rankings", _compared, lambda **_: judge, together=2),
    "kto": Method("labels", _label, kto, reference=True, baseline=True),
    "crlft": Method("labels", _conditioned, lambda **_: weighted),
    "cut": Method("judgments", _judged, cut),
}
