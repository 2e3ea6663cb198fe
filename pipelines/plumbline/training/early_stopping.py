"""Early stopping of supervised fine-tuning by the Instruction Following Score (AlShikh et al. 2023, arXiv 2307.03692).

The paper sees two phases: within some thousand examples a model learns to answer at all, and the score reaches a plateau at 0.90 to
0.95; what it learns then is knowledge. It gives no formula for the stop. Here: the score is high and has ceased to rise, or the
model has drifted too far.

An evaluation is part of its step's metrics, which lie in checkpoints, and whether training is over follows from the metrics alone: an
interrupted run stops where an undisturbed one does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from plumbline.api.stages.sft import EarlyStoppingSpec, SftSpec
from plumbline.data.row import Chat
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.models.load import end_tokens
from plumbline.training.batch import MicroBatch, ask_in_order
from plumbline.training.batch import Sequence as Tokens
from plumbline.training.checkpoint import Checkpoint, CheckpointStore
from plumbline.training.encode import encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from plumbline.evaluation.instruction_following import ToneClassifier
    from plumbline.training.engine import TrainEngine

IFS, PARTIAL, FULL, BARE, DRIFT = "ifs", "ifsPartial", "ifsFull", "ifsBare", "drift"
KEPT = "instruction-following"
"""Name among a store's tensors: the tone classifier, and the scores of the input model."""
HELD_OUT_SHARE = 0.2
"""Most of the dataset that may be held out."""

History = list[dict[str, float]]
Row = dict[str, Any]
"""With a chat in `messages`."""


@dataclass(frozen=True)
class Probe:
    """A prompt that is never trained on.

    Attributes:
        chat: tokens of the prompt in the chat template, up to where the answer begins.
        bare: tokens of the instruction alone.
        cut: whether the instruction breaks off in the middle of a sentence.
    """

    chat: list[int]
    bare: list[int]
    cut: bool


def reason_to_stop(history: History, spec: EarlyStoppingSpec) -> str | None:
    """Why training is over after these steps, in words; None where it goes on."""
    scores = [row[IFS] for row in history if IFS in row]
    if not scores or IFS not in history[-1]:
        return None
    drift = history[-1][DRIFT]
    if spec.max_drift is not None and drift > spec.max_drift:
        return f"the model has drifted {drift:.3g} nats a token from the input model, and maxDrift is {spec.max_drift:g}"
    last = scores[-spec.window :]
    if len(last) < spec.window or last[-1] < spec.threshold:
        return None
    slope = float(np.polyfit(np.arange(len(last)), last, 1)[0])
    if slope >= spec.min_slope:
        return None
    return f"the instruction following score is {last[-1]:.3f} and has ceased to rise ({slope:+.3g} an evaluation)"


def best_step(history: History, spec: EarlyStoppingSpec) -> int | None:
    """The step whose weights are handed over: the highest score within `maxDrift`, of equal ones the first; where all have drifted too
    far, the one that did so least. None before the first evaluation."""
    measured = [row for row in history if IFS in row]
    near = [row for row in measured if spec.max_drift is None or row[DRIFT] <= spec.max_drift]
    if near:
        return int(max(near, key=lambda row: (row[IFS], -row["step"]))["step"])
    return int(min(measured, key=lambda row: (row[DRIFT], row["step"]))["step"]) if measured else None


def load_best(store: CheckpointStore, history: History, spec: EarlyStoppingSpec) -> Checkpoint:
    """The checkpoint of the best step.

    Raises:
        PlumblineError: it is damaged.
    """
    step = best_step(history, spec)
    assert step is not None, "the last step is always evaluated"
    try:
        return store.load(step)
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise PlumblineError(
            f"the checkpoint of step {step}, the best one, is damaged ({error}); delete {store.uri} to train again"
        ) from error


def hold_out(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, spec: EarlyStoppingSpec, max_length: int, seed: int, where: str
) -> tuple[list[int], list[Probe]]:
    """Numbers of rows that are kept from training, drawn by the seed, and their prompts: half of them cut, half whole.

    Args:
        rows: all of the dataset.
        tokenizer: with a chat template.
        spec: how many.
        max_length: of prompt and reply, in tokens.
        seed: of the choice and of the cuts.
        where: field path of the stage's block.

    Raises:
        InvalidInput: the dataset is too small, or too few prompts can be cut or fit.
    """
    from plumbline.evaluation.instruction_following import cut_instruction  # imports scikit-learn

    where = f"{where}.earlyStopping.prompts"
    if spec.prompts > HELD_OUT_SHARE * len(rows):
        raise InvalidInput(
            f"{where}: {spec.prompts} of the dataset's {len(rows)} chats would be held out from training, and a fifth is "
            "the most; lower it"
        )
    draw = np.random.default_rng([seed, 0])
    held: list[int] = []
    probes: list[Probe] = []
    wanted = {True: spec.prompts // 2, False: spec.prompts - spec.prompts // 2}
    for row in map(int, draw.permutation(len(rows))):
        turns, _ = first_exchange(rows[row]["messages"])
        cut = cut_instruction(turns[-1]["content"], draw) if wanted[True] else None
        if not wanted[cut is not None]:
            continue
        text = cut[0] if cut else turns[-1]["content"]
        chat = encode_prompt(tokenizer, [*turns[:-1], {"role": "user", "content": text}])
        bare = list(tokenizer(text)["input_ids"])
        if max(len(chat), len(bare)) + spec.max_tokens > max_length:
            continue
        wanted[cut is not None] -= 1
        held.append(row)
        probes.append(Probe(chat, bare, cut is not None))
        if len(probes) == spec.prompts:
            return held, probes
    raise InvalidInput(
        f"{where}: {len(probes)} of {spec.prompts} prompts were found that leave room for maxTokens {spec.max_tokens} within "
        "maxLength, half of them with an instruction that can be cut in the middle of a sentence; lower it"
    )


def first_exchange(chat: Chat) -> tuple[Chat, str]:
    """The turns before the first answer, and that answer."""
    end = next(place for place, turn in enumerate(chat) if turn["role"] == "assistant")
    return chat[:end], chat[end]["content"]


def exchanges_of(rows: Sequence[Row], taught: Sequence[int], seed: int) -> Iterator[tuple[str, str]]:
    """First instruction and answer of the rows with these numbers, in a random order."""
    for place in np.random.default_rng([seed, 2]).permutation(len(taught)):
        turns, answer = first_exchange(rows[taught[place]]["messages"])
        yield turns[-1]["content"], answer


@dataclass(frozen=True)
class EarlyStopping:
    """Measures the model that an engine trains, and says when it is enough.

    Attributes:
        spec: the rule.
        engine: keeps its reference.
        probes: what is asked, the same on every rank.
        tone: classifier of answers.
        decode: tokens → text.
        ends: tokens that end an answer.
        micro_batch_tokens: bound of one forward pass.
    """

    spec: EarlyStoppingSpec
    engine: TrainEngine
    probes: list[Probe]
    tone: ToneClassifier
    decode: Callable[[list[int]], str]
    ends: frozenset[int]
    micro_batch_tokens: int

    def due(self, step: int, steps: int) -> bool:
        """Whether there is an evaluation after `step` of `steps`."""
        return step % self.spec.every_steps == 0 or step == steps

    def measure(self) -> dict[str, float]:
        """Scores under the present weights, the same on every rank. Every rank must call it.

        `ifs`: share of answer-like replies to all prompts in the chat template; `ifsPartial`, `ifsFull`: to cut and to whole ones;
        `ifsBare`: to all without the template; `drift`: mean over the tokens of replies in the template of log π/p, π the model and p the
        input model, which estimates KL(π‖p).
        """
        world = self.engine.world
        own = self.probes[world.rank :: world.size]
        asked = [probe.chat for probe in own] + [probe.bare for probe in own]
        replies = self._replies(asked)
        answered = self.tone.answer_like([self.decode(reply) for reply in replies])
        chat, bare = answered[: len(own)], answered[len(own) :]
        cut = np.array([probe.cut for probe in own], bool)
        said = [(probe.chat, reply) for probe, reply in zip(own, replies[: len(own)], strict=True)]
        present = self._log_probs(said)
        with self.engine.reference():
            before = self._log_probs(said)
        tokens = sum(len(reply) for _, reply in said)
        sums = (chat.sum(), chat[cut].sum(), cut.sum(), bare.sum(), len(own), present - before, tokens)
        answers, of_cut, cuts, of_bare, count, moved, tokens_of_all = world.totals(*map(float, sums))
        return {
            IFS: answers / count,
            PARTIAL: of_cut / cuts,
            FULL: (answers - of_cut) / (count - cuts),
            BARE: of_bare / count,
            DRIFT: moved / tokens_of_all,
        }

    def _replies(self, prompts: list[list[int]]) -> list[list[int]]:
        """The likeliest tokens after each prompt up to one that ends the answer, that one included. Without a cache: whatever is
        trained, and however it is sharded, the forward is that of training."""
        replies: list[list[int]] = [[] for _ in prompts]
        going = list(range(len(prompts)))
        for _ in range(self.spec.max_tokens):
            if not self.engine.world.maximum(len(going)):  # ranks keep step
                break
            whole = [prompts[i] + replies[i] for i in going]
            asked = [Tokens([*ids, 0], [False] * len(ids) + [True]) for ids in whole]
            for i, token in zip(going, self._in_order(asked, self.engine.next_tokens), strict=True):
                replies[i].append(int(token))
            going = [i for i in going if replies[i][-1] not in self.ends]
        return replies

    def _log_probs(self, said: list[tuple[list[int], list[int]]]) -> float:
        """Sum over the tokens of replies, each after its prompt."""

        def ask(batches: list[MicroBatch]) -> list[torch.Tensor]:
            return [batch.summed(logps) for batch, logps in zip(batches, self.engine.log_probs(batches), strict=True)]

        sequences = [Tokens(prompt + reply, [False] * len(prompt) + [True] * len(reply)) for prompt, reply in said]
        return sum(self._in_order(sequences, ask))

    def _in_order(self, asked: list[Tokens], ask: Callable[[list[MicroBatch]], list[torch.Tensor]]) -> list[float]:
        return ask_in_order(asked, ask, micro_batch_tokens=self.micro_batch_tokens)


def prepare(
    engine: TrainEngine,
    exchanges: Iterator[tuple[str, str]],
    probes: list[Probe],
    tokenizer: PreTrainedTokenizerBase,
    spec: SftSpec,
    where: str,
    store: CheckpointStore,
) -> EarlyStopping:
    """Train the tone classifier and score the input model, or take both from the store, where an earlier attempt has left them.

    Every rank must call it, before a checkpoint is restored.

    Args:
        engine: at its first step, with its reference.
        exchanges: (instruction, answer) of the rows that are trained on, in a random order.
        probes: of those that are not.
        tokenizer: of the model.
        spec: the stage's block, with the rule in `early_stopping`.
        where: its field path.
        store: where they are kept: a resumed run must decide by the same bits.

    Raises:
        InvalidInput: no classifier of this dataset is good enough.
    """
    from plumbline.evaluation.instruction_following import ToneClassifier, train_tone

    world, rule = engine.world, spec.early_stopping
    assert rule is not None
    kept = store.load_tensors(KEPT) if world.rank == 0 else None
    known = bool(world.from_first(int(kept is not None)))
    if known:
        kept = world.gather(kept)[0]
        assert kept is not None
        tone = ToneClassifier(kept["weights"].numpy(), float(kept["intercept"]), float(kept["accuracy"]))
    else:
        tone = world.gather(train_tone(exchanges, rule.min_accuracy, spec.seed, f"{where}.earlyStopping"))[0]

    def decode(tokens: list[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=True))

    ends = frozenset(end_tokens(tokenizer, engine.model.base))
    early = EarlyStopping(rule, engine, probes, tone, decode, ends, spec.micro_batch_tokens)
    if not known:
        start = early.measure()
        if world.rank == 0:
            numbers = {"intercept": tone.intercept, "accuracy": tone.accuracy, **start}
            tensors = {name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()}
            store.save_tensors(KEPT, {"weights": torch.from_numpy(tone.weights), **tensors})
    return early


def summary(store: CheckpointStore, history: History, spec: EarlyStoppingSpec) -> dict[str, Any]:
    """What came of it, for the artifact: the step handed over, the last one, why that was the last, the classifier's accuracy and the
    input model's scores."""
    kept = store.load_tensors(KEPT) or {}
    return {
        "step": best_step(history, spec),
        "steps": len(history),
        "reason": reason_to_stop(history, spec) or "all steps are done",
        "classifierAccuracy": float(kept["accuracy"]),
        "start": {name: float(kept[name]) for name in (IFS, PARTIAL, FULL, BARE)},
    }
