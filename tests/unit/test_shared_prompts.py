"""Answers that share one prompt in a row: the log-probabilities and gradients of the same answers laid out one by one."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache, partial
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config, GPT2LMHeadModel

from plumbline.api.stages.training import OptimizerSpec, ParallelismSpec
from plumbline.training.batch import MicroBatch, Sequence, collate, micro_batches, share, without_sharing
from plumbline.training.engine import TrainEngine
from plumbline.training.kernels import _segments
from plumbline.training.model import TargetLogProbs
from plumbline.training.world import World
from support.families import tiny

SHAPES = {
    "several groups": [(7, [5, 3, 9]), (4, [2, 2, 6, 1]), (11, [4, 4])],
    "a prompt of one token": [(1, [5, 3, 1, 4])],
    "answers of one token": [(6, [1, 1, 1]), (3, [1, 1])],
    "an answer without tokens": [(6, [0, 2, 0, 3])],
    "groups of one": [(5, [4]), (8, [3])],
    "a group among single texts": [(9, [3]), (5, [4, 2, 3]), (12, [5])],
}
LORA = {"r": 3, "target_modules": "all-linear", "init_lora_weights": False}


def build(family: str = "llama") -> TargetLogProbs:
    """The same model each time, its adapter and norms away from their start."""
    whole = TargetLogProbs(get_peft_model(tiny(family), LoraConfig(**LORA)))
    whole.eval()
    return whole


def groups(shape: list[tuple[int, list[int]]], seed: int = 0) -> list[tuple[int, list[Sequence]]]:
    """(prompt length, sequences) of random tokens; every sequence and target has a number of its own."""
    draw = random.Random(seed)
    found, number = [], 0
    for length, answers in shape:
        prompt = [draw.randrange(64) for _ in range(length)]
        group = []
        for size in answers:
            ids = [*prompt, *(draw.randrange(64) for _ in range(size))]
            values: dict[str, float | list[float]] = {
                "number": float(number), "weight": [draw.uniform(-1, 1) for _ in range(size)],
            }  # fmt: skip
            group.append(Sequence(ids, [False] * length + [True] * size, values, row=number))
            number += 1
        found.append((length, group))
    return found


def shared(shape: list[tuple[int, list[int]]], most: int = 10**6, **layout: Any) -> list[MicroBatch]:
    units = list(chain.from_iterable(share(group, length, most) for length, group in groups(shape)))
    return micro_batches(units, **{"micro_batch_tokens": 10**6, **layout})


def alone(shape: list[tuple[int, list[int]]]) -> list[MicroBatch]:
    return [collate([[sequence]]) for _, group in groups(shape) for sequence in group]


def results(model: TargetLogProbs, batches: list[MicroBatch]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Log-probabilities of each sequence, and the gradients of every adapter weight of a sum that weighs each target."""
    logps: dict[float, torch.Tensor] = {}
    loss = torch.zeros(())
    for batch in batches:
        found = model(batch)
        loss = loss + (found * batch.per_target["weight"]).sum()
        for place, number in enumerate(batch.per_sequence["number"].tolist()):
            logps[number] = found.detach()[batch.sequence == place]
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    assert any(g is not None and g.abs().max() > 0.01 for g in gradients)
    return [logps[n] for n in sorted(logps)], [
        torch.zeros_like(p) if g is None else g for p, g in zip(trained, gradients, strict=True)
    ]


@cache
def expected(family: str, shape: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return results(build(family), alone(SHAPES[shape]))


def check(model: TargetLogProbs, batches: list[MicroBatch], shape: str, family: str = "llama", within: float = 1e-5) -> None:
    for ours, theirs in zip(chain(*results(model, batches)), chain(*expected(family, shape)), strict=True):
        # An entry near zero is a sum of large ones, in another order: processors round it each in their way.
        largest = max(theirs.abs().flatten().tolist(), default=0.0)
        torch.testing.assert_close(ours, theirs, atol=within * max(1.0, largest), rtol=1e-5)


LAYOUTS: dict[str, dict[str, Any]] = {
    "one row": {},
    "several rows": {"row_tokens": 24},
    "several micro-batches": {"micro_batch_tokens": 16},
    "groups that are split": {"most": 12},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_log_probs_and_gradients_are_those_of_the_sequences_alone(shape: str, layout: str) -> None:
    check(build(), shared(SHAPES[shape], **LAYOUTS[layout]), shape)


def test_layers_with_norms_of_queries_and_keys() -> None:
    check(build("qwen3"), shared(SHAPES["several groups"]), "several groups", "qwen3")


def test_layers_computed_again() -> None:
    model = build()
    for layer in model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    assert model.shares_prompts
    check(model, shared(SHAPES["several groups"]), "several groups")


@pytest.mark.parametrize(
    "parallelism",
    [{}, {"sharding": "fsdp2", "cpu_offload": True, "activation_checkpointing": True}],
    ids=["replicate", "fsdp2, layers again"],
)
def test_a_step_of_the_engine(parallelism: dict[str, Any]) -> None:
    def objective(logps: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        return (logps * batch.per_target["weight"]).sum(), torch.tensor(float(len(logps))), {}

    shape, found = SHAPES["several groups"], []
    for batches in (shared(shape), alone(shape)):
        spec = OptimizerSpec(learning_rate=1e-3, schedule="constant", warmup_ratio=0.0)
        engine = TrainEngine(build(), spec, World(0, 1, torch.device("cpu")), ParallelismSpec(**parallelism))
        assert engine.model.shares_prompts
        found.append((engine.step(batches, objective, 1e-3), engine.work))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    (ours, work), (theirs, more) = found
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert work.targets == more.targets
    assert work.tokens == 22 + 17 + 11 + 8  # each prompt once, and the answers
    assert work.tokens < more.tokens
    assert work.pairs < more.pairs


def test_no_answer_sees_another() -> None:
    """Other tokens in one answer change its own log-probabilities, and no other's by a bit."""
    model = build()
    shape = [(6, [4, 5, 3]), (3, [2, 4])]
    batch = shared(shape)[0]
    before = model(batch).detach()
    for changed in range(5):
        units = list(chain.from_iterable(share(group, length, 10**6) for length, group in groups(shape)))
        sequence = [s for unit in units for s in unit][changed]
        first = len(sequence.ids) - sequence.targets
        sequence.ids[first] = (sequence.ids[first] + 1) % 64
        after = model(micro_batches(units, micro_batch_tokens=10**6)[0]).detach()
        numbers = batch.per_sequence["number"][batch.sequence]
        assert torch.equal(after[numbers != changed], before[numbers != changed])
        assert bool((after[numbers == changed] != before[numbers == changed]).all())


def test_every_answer_sees_its_prompt_and_no_other() -> None:
    model = build()
    shape = [(6, [4, 5, 3]), (3, [2, 4])]
    batch = shared(shape)[0]
    before = model(batch).detach()
    for place, own in ((2, (0, 1, 2)), (1, (3, 4))):
        units = list(chain.from_iterable(share(group, length, 10**6) for length, group in groups(shape)))
        for sequence in (s for unit in units for s in unit if s.row in own):
            sequence.ids[place] = (sequence.ids[place] + 1) % 64
        after = model(micro_batches(units, micro_batch_tokens=10**6)[0]).detach()
        numbers = batch.per_sequence["number"][batch.sequence]
        of_it = torch.tensor([number in own for number in numbers.tolist()])
        assert bool((after[of_it] != before[of_it]).all())
        assert torch.equal(after[~of_it], before[~of_it])


def test_which_models_share_prompts() -> None:
    assert build().shares_prompts
    assert build("qwen3").shares_prompts
    assert not build("mistral of short sight").shares_prompts
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2))
    assert not TargetLogProbs(gpt2).shares_prompts
    virtual = get_peft_model(tiny("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert not TargetLogProbs(virtual).shares_prompts


def test_layers_that_were_given_back_refuse_what_they_would_read_wrongly() -> None:
    model = build()
    for layer in model.layers:
        for module in layer.modules():
            vars(module).pop("forward", None)  # as whoever compiles them does
    assert not model.shares_prompts
    shape = SHAPES["several groups"]
    with pytest.raises(ValueError, match="without_sharing"):
        model(shared(shape)[0])
    whole = without_sharing(chain.from_iterable(share(group, length, 10**6) for length, group in groups(shape)))
    check(
        model, micro_batches(whole, micro_batch_tokens=10**6), "several groups", within=1e-4
    )  # layers of HF round otherwise


def test_tokens_that_are_not_the_same_are_refused() -> None:
    one, other = Sequence([1, 2, 3], [True] * 3), Sequence([1, 5, 4], [True] * 3, shared=2)
    with pytest.raises(ValueError, match="shares 2 tokens"):
        collate([[one, other]])
    with pytest.raises(ValueError, match="shares 2 tokens"):
        collate([[other]])
    with pytest.raises(ValueError, match="shares 2 tokens"):  # the model read other tokens there
        collate([[replace(one, ids=[1, 5, 3], inputs=[1, 2, 3]), other]])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(0, 7), min_size=1, max_size=5)), min_size=1, max_size=5),
    st.integers(4, 60),
    st.one_of(st.none(), st.integers(4, 60)),
    st.integers(4, 60),
)
def test_every_target_is_predicted_after_all_that_stands_before_it(
    shape: list[tuple[int, list[int]]], tokens: int, row_tokens: int | None, most: int
) -> None:
    """Reading a row as attention does gives back each sequence up to each of its targets."""
    sequences = {sequence.row: sequence for _, group in groups(shape) for sequence in group}
    batches = shared(shape, most, micro_batch_tokens=tokens, row_tokens=row_tokens)
    assert sorted(row for batch in batches for row in batch.rows) == sorted(sequences)
    found: dict[int, list[int]] = {row: [] for row in sequences}
    laid = 0
    for batch in batches:
        rows, width = batch.input_ids.shape
        for at, target, place in zip(*(x.tolist() for x in (batch.predict_at, batch.targets, batch.sequence)), strict=True):
            sequence = sequences[batch.rows[place]]
            context = seen(batch.input_ids[at // width].tolist(), batch.position_ids[at // width].tolist(), at % width)
            done = len(sequence.ids) - sequence.targets + len(found[sequence.row])
            assert context == sequence.ids[:done]
            assert target == sequence.ids[done]
            found[sequence.row].append(target)
        assert batch.tokens <= rows * width
        laid += batch.tokens
    assert all(len(found[row]) == sequence.targets for row, sequence in sequences.items())
    assert laid <= sum(len(sequence.ids) for sequence in sequences.values())


def seen(ids: list[int], positions: list[int], place: int) -> list[int]:
    """Tokens that a place of a row sees, itself last: its segment's, and what that one shares."""
    start = place
    while start and positions[start] == positions[start - 1] + 1:
        start -= 1
    first = max((i for i in range(start + 1) if positions[i] == 0), default=0)
    return ids[first : first + positions[start]] + ids[start : place + 1]


def test_positions_alone_tell_what_is_shared() -> None:
    rows = torch.tensor(
        [[0, 1, 2, 1, 2, 0, 1, 1], [5, 6, 7, 0, 0, 1, 2, 2]]
    )  # the first place of a row shares nothing of the row before
    assert _segments(rows) == ([3, 2, 2, 1, 3, 1, 3, 1], [0, 1, 0, 1, 0, 0, 0, 2])


def test_a_group_that_is_too_long_is_split() -> None:
    ((length, group),) = groups([(5, [3, 3, 3, 3, 3])])
    units = share(group, length, 11)
    assert [[sequence.shared for sequence in unit] for unit in units] == [[0, 5], [0, 5], [0]]
    assert [sequence.row for unit in units for sequence in unit] == [0, 1, 2, 3, 4]
    assert [[sequence.shared for sequence in unit] for unit in share(group, length, 1)] == [[0]] * 5


def test_a_sequence_that_is_cut_shares_no_more_than_it_has() -> None:
    sequence = Sequence([1, 2, 3, 4], [True] * 4, shared=3)
    assert (sequence.cut(2).shared, sequence.cut(2).places, sequence.cut(4).shared) == (2, 0, 3)
