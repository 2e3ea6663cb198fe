"""Objectives by hand, against TRL's own code, for gradients, and whatever the split into micro-batches."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from plumbline.api.stages.preference import OPTIONS, PreferenceSpec
from plumbline.training.batch import MicroBatch
from plumbline.training.engine import Objective
from plumbline.training.objectives.bradley_terry import bradley_terry
from plumbline.training.objectives.cpo import cpo
from plumbline.training.objectives.cut import cut
from plumbline.training.objectives.dpo import dpo
from plumbline.training.objectives.ipo import ipo
from plumbline.training.objectives.judge import judge
from plumbline.training.objectives.kto import kto
from plumbline.training.objectives.orpo import log1mexp, orpo
from plumbline.training.objectives.pro import pro
from plumbline.training.objectives.rrhf import rrhf
from plumbline.training.objectives.simpo import simpo
from plumbline.training.objectives.slic import slic
from plumbline.training.objectives.weighted import weighted
from plumbline.training.preferences import METHODS

UNITS, LONGEST = 6, 7


def batch_of(lengths: list[int], **per_sequence: list[float]) -> MicroBatch:
    """Sequences with so many targets; the tensors that only the model reads are left empty."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    none = torch.zeros(0, dtype=torch.long)
    values = {name: torch.tensor(numbers) for name, numbers in per_sequence.items()}
    return MicroBatch(none, none, none, none, owner, len(lengths), values)


def random_batch(seed: int, width: int = 2, labels: bool = False) -> tuple[torch.Tensor, MicroBatch]:
    """(log-probs, batch) of `UNITS` units of `width` sequences, with everything that any objective reads."""
    torch.manual_seed(seed)
    count = UNITS * width
    lengths = torch.randint(1, LONGEST, (count,)).tolist()
    if width == 2 and labels:  # the same answer twice
        lengths = [n for n in lengths[::2] for _ in range(2)]
    batch = batch_of(
        lengths,
        reference=(-3 * torch.rand(count)).tolist(),
        label=torch.randint(0, 2, (count,)).float().tolist(),
        bad=[float(i % 3 == 0) for i in range(UNITS) for _ in range(width)],
        ranking=[float(i) for i in range(UNITS) for _ in range(width)],
        score=torch.randint(0, 4, (count,)).float().tolist(),
        weight=torch.rand(count).tolist(),
    )
    batch.per_step = {"pairs": UNITS, "chosenTargets": float(sum(lengths[::width])), "kl": 0.3}
    return -torch.rand(sum(lengths)) * 2, batch


def value(objective: Objective, logps: torch.Tensor, batch: MicroBatch) -> float:
    loss, normaliser, _ = objective(logps, batch)
    return float(loss / normaliser)


OBJECTIVES: dict[str, tuple[Objective, int, bool]] = {
    "dpo": (dpo(0.3), 2, False),
    "conservative": (dpo(0.3, 0.1), 2, False),
    "robust": (dpo(0.3, 0.1, robust=True), 2, False),
    "rpo": (dpo(0.3, nll_weight=0.5), 2, False),
    "rpo, mean": (dpo(0.3, nll_weight=0.5, length_normalised=True), 2, False),
    "ipo": (ipo(0.3), 2, False),
    "ipo, summed": (ipo(0.3, length_normalised=False), 2, False),
    "kto": (kto(0.3, 1.3, 0.7), 1, False),
    "orpo": (orpo(0.3), 2, False),
    "simpo": (simpo(2.0, 0.5), 2, False),
    "cpo": (cpo(0.3, 0.7, 0.1), 2, False),
    "slic": (slic(1.0, 1.0, 0.5), 2, False),
    "slic, reference": (slic(0.3, 1.0, 0.5, reference=True), 2, False),
    "rrhf": (rrhf(1.0, 1.0), 4, False),
    "pro": (pro(0.05), 4, False),
    "judge": (judge, 2, False),
    "crlft": (weighted, 1, False),
    "cut": (cut(1.1, 0.8), 2, True),
}


def part_of(logps: torch.Tensor, batch: MicroBatch, sequences: slice) -> tuple[torch.Tensor, MicroBatch]:
    """Some of a batch's sequences as a micro-batch of their own."""
    chosen = range(*sequences.indices(batch.size))
    keep = (batch.sequence >= chosen.start) & (batch.sequence < chosen.stop)
    lengths = torch.bincount(batch.sequence, minlength=batch.size)[sequences].tolist()
    part = batch_of(lengths, **{name: tensor[sequences].tolist() for name, tensor in batch.per_sequence.items()})
    part.per_step = batch.per_step
    return logps[keep], part


@pytest.mark.parametrize("name", OBJECTIVES)
def test_any_split_gives_the_same_loss_and_gradient(name: str) -> None:
    objective, width, same = OBJECTIVES[name]
    logps, batch = random_batch(11, width, same)
    logps.requires_grad_()
    whole, normaliser, _ = objective(logps, batch)
    (gradient,) = torch.autograd.grad(whole / normaliser, logps)

    sums, counts, gradients = 0.0, 0.0, torch.zeros_like(logps)
    for size in (width, 3 * width, 2 * width):  # three micro-batches, or ranks
        start = sum((width, 3 * width, 2 * width)[: (width, 3 * width, 2 * width).index(size)])
        loss, count, _ = objective(*part_of(logps, batch, slice(start, start + size)))
        sums, counts = sums + float(loss.detach()), counts + float(count)
        gradients += torch.autograd.grad(loss, logps)[0]
    assert sums / counts == pytest.approx(float(whole / normaliser), rel=1e-5)
    torch.testing.assert_close(gradients / counts, gradient)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    objective, width, same = OBJECTIVES[name]
    logps, batch = random_batch(5, width, same)
    logps = logps.double().requires_grad_()
    batch.per_sequence = {key: tensor.double() for key, tensor in batch.per_sequence.items()}

    def loss(x: torch.Tensor) -> torch.Tensor:
        return objective(x, batch)[0]

    if name != "cut":  # which takes no gradient through its ratio
        assert torch.autograd.gradcheck(loss, (logps,), eps=1e-6, atol=1e-4)
    else:
        assert torch.isfinite(torch.autograd.grad(loss(logps), logps)[0]).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_extreme_log_probabilities_stay_finite(name: str) -> None:
    objective, width, same = OBJECTIVES[name]
    logps, batch = random_batch(7, width, same)
    for extreme in (torch.full_like(logps, -80.0), torch.zeros_like(logps)):
        extreme.requires_grad_()
        loss, _, _ = objective(extreme, batch)
        assert torch.isfinite(loss)
        assert torch.isfinite(torch.autograd.grad(loss, extreme)[0]).all()


# ── by hand ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


CHOSEN, REJECTED = torch.tensor([-0.5, -0.7]), torch.tensor([-1.0, -0.4, -0.6])  # sums -1.2 and -2.0
PAIR = torch.cat([CHOSEN, REJECTED])


def pair_batch() -> MicroBatch:
    batch = batch_of([2, 3], reference=[-1.5, -1.4])  # log-ratios 0.3 and -0.6: h = 0.9
    batch.per_step = {"pairs": 1.0, "chosenTargets": 2.0}
    return batch


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (dpo(0.5), -log_sigmoid(0.45)),
        (dpo(0.5, 0.1), -0.9 * log_sigmoid(0.45) - 0.1 * log_sigmoid(-0.45)),
        (dpo(0.5, 0.1, robust=True), (-0.9 * log_sigmoid(0.45) + 0.1 * log_sigmoid(-0.45)) / 0.8),
        (dpo(0.5, nll_weight=0.25), -log_sigmoid(0.45) + 0.25 * 1.2),
        (dpo(0.5, nll_weight=0.25, length_normalised=True), -log_sigmoid(0.45) + 0.25 * 0.6),
        (ipo(0.5), (0.3 / 2 + 0.6 / 3 - 1.0) ** 2),
        (ipo(0.5, length_normalised=False), (0.9 - 1.0) ** 2),
        (simpo(2.0, 0.5), -log_sigmoid(2 * (-0.6 + 2 / 3) - 0.5)),
        (cpo(0.5, 0.7), -log_sigmoid(0.5 * 0.8) + 0.7 * 0.6),
        (slic(1.0, 1.0, 0.5), (1 - 0.8) + 0.5 * 1.2),
        (slic(1.0, 0.5, 0.0), 0.0),
        (slic(1.0, 1.0, 0.0, reference=True), 0.1),
        (
            orpo(0.5),
            0.6
            - 0.5
            * log_sigmoid(
                math.log(math.exp(-0.6) / (1 - math.exp(-0.6))) - math.log(math.exp(-2 / 3) / (1 - math.exp(-2 / 3)))
            ),
        ),
    ],
)
def test_pair_objectives_by_hand(objective: Objective, expected: float) -> None:
    assert value(objective, PAIR, pair_batch()) == pytest.approx(expected, abs=1e-6)


def test_kto_by_hand() -> None:
    batch = batch_of([2, 3], reference=[-1.5, -1.4], label=[1.0, 0.0])
    batch.per_step = {"kl": 0.2}
    good = 1.5 * (1 - 1 / (1 + math.exp(-0.5 * (0.3 - 0.2))))
    bad = 0.5 * (1 - 1 / (1 + math.exp(-0.5 * (0.2 + 0.6))))
    assert value(kto(0.5, 1.5, 0.5), PAIR, batch) == pytest.approx((good + bad) / 2)


def test_rankings_by_hand() -> None:
    logps = torch.tensor([-1.0, -0.4, -0.6, -0.3])  # means: -0.7 (2 tokens), -0.6, -0.3
    batch = batch_of([2, 1, 1], ranking=[0.0, 0.0, 0.0], score=[3.0, 2.0, 0.0])
    # (0.1 + 0.4 + 0.3) for the three pairs, and the best answer's mean
    assert value(rrhf(1.0, 1.0), logps, batch) == pytest.approx(0.8 + 0.7)
    assert value(rrhf(0.0, 0.0), logps, batch) == pytest.approx((1.4 - 0.6) + (1.4 - 0.3) + 0.3)
    first = math.log(math.exp(3 * -0.7) + math.exp(1 * -0.6) + math.exp(3 * -0.3)) + 3 * 0.7
    second = math.log(math.exp(2 * -0.6) + math.exp(2 * -0.3)) + 2 * 0.6
    assert value(pro(0.0), logps, batch) == pytest.approx(first + second)
    assert value(pro(0.05), logps, batch) == pytest.approx(first + second + 0.05 * 4 * 1.4)


def test_equal_scores_teach_no_order() -> None:
    logps = torch.tensor([-1.0, -0.4, -0.6]).requires_grad_()
    batch = batch_of([1, 1, 1], ranking=[0.0, 0.0, 0.0], score=[1.0, 1.0, 1.0])
    for objective in (rrhf(1.0, 0.0), pro(0.0)):
        loss, rankings, _ = objective(logps, batch)
        assert float(loss) == 0.0
        assert float(rankings) == 1.0
        assert not torch.autograd.grad(loss, logps)[0].any()


def test_weights_are_per_answer_and_the_mean_is_over_tokens() -> None:
    batch = batch_of([2, 3], weight=[1.0, 0.1])
    assert value(weighted, PAIR, batch) == pytest.approx((1.2 + 0.1 * 2.0) / 5)


def test_verdicts_count_alike_whatever_their_length() -> None:
    logps = torch.tensor([0.8, 0.5, 0.5, 0.9, 0.2]).log()  # 0.8 and 0.25 in the orders of one comparison, 0.9 and 0.2
    loss, normaliser, metrics = judge(logps, batch_of([1, 2, 1, 1]))
    assert float(loss / normaliser) == pytest.approx(-(math.log(0.8) + math.log(0.25) + math.log(0.9) + math.log(0.2)) / 4)
    means = {name: float(total / count) for name, (total, count) in metrics.items()}
    assert means["sureAndRight"] == 0.5
    assert means["orderGap"] == pytest.approx((math.log(0.8 / 0.25) + math.log(0.9 / 0.2)) / 2)


def test_cut_flags_tokens_that_the_judgment_explains() -> None:
    informed, plain = torch.tensor([-0.1, -2.0]), torch.tensor([-0.5, -1.9])  # ratios 1.49 and 0.90
    logps = torch.cat([informed, plain])
    faulty = batch_of([2, 2], bad=[1.0, 1.0])
    expected = (-math.log(1 - math.exp(-0.5)) * 0.8 + 1.9 + 0.1 + 2.0) / 2 / 2
    assert value(cut(1.1, 0.8), logps, faulty) == pytest.approx(expected)
    praised = batch_of([2, 2], bad=[0.0, 0.0])
    assert value(cut(1.1, 0.8), logps, praised) == pytest.approx((0.5 + 1.9 + 0.1 + 2.0) / 2 / 2)
    assert value(cut(1.5, 0.8), logps, faulty) == pytest.approx((0.5 + 1.9 + 0.1 + 2.0) / 2 / 2)


def ranked(scores: list[float], size: int) -> MicroBatch:
    return batch_of([1] * len(scores), ranking=[float(i // size) for i in range(len(scores))], score=scores)


def test_reward_margins_and_centering_by_hand() -> None:
    rewards = torch.tensor([1.0, 0.5])
    assert value(bradley_terry(0.0), rewards, ranked([1.0, 0.0], 2)) == pytest.approx(-log_sigmoid(0.5))
    expected = -log_sigmoid(0.5 - 1 / 3) + 0.01 * 2.25
    assert value(bradley_terry(0.01, 1 / 3), rewards, ranked([4.0, 3.0], 2)) == pytest.approx(expected)


def test_all_pairs_of_a_prompt_count_as_one() -> None:
    rewards = torch.tensor([1.0, 0.5, -0.2, 2.0, 1.0, 0.0])
    batch = ranked([3.0, 2.0, 1.0, 1.0, 1.0, 0.0], 3)
    first = -(log_sigmoid(0.5) + log_sigmoid(1.2) + log_sigmoid(0.7)) / 3
    second = -(log_sigmoid(2.0) + log_sigmoid(1.0)) / 2  # a tie is no pair
    assert value(bradley_terry(0.0), rewards, batch) == pytest.approx((first + second) / 2)
    loss, rankings, _ = bradley_terry(0.0)(rewards[:2].requires_grad_(), ranked([1.0, 1.0], 2))
    assert (float(loss), float(rankings)) == (0.0, 0.0)


def test_log_of_one_minus_a_probability_is_exact_at_both_ends() -> None:
    x = torch.tensor([-1e-6, -0.1, -1.0, -50.0])
    exact = torch.log1p(-torch.exp(x.double())).float()
    torch.testing.assert_close(log1mexp(x), exact, rtol=1e-4, atol=1e-9)


# ── against TRL ──────────────────────────────────────────────────────────────────────────────────────────────────────


def trainer(**attributes: Any) -> Any:
    """What TRL's loss methods read of their trainer."""
    accelerator = Accelerator(cpu=True)
    fields: dict[str, Any] = {
        "accelerator": accelerator,
        "model": SimpleNamespace(training=True),
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "aux_loss_enabled": False,
        "precompute_ref_logps": True,
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "use_weighting": False,
        "calculate_KL": True,
        "label_smoothing": 0.0,
        "loss_weights": [1.0],
    }
    return SimpleNamespace(**fields | attributes)


def padded(logps: torch.Tensor, batch: MicroBatch, order: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-token log-probs [S, T] and the mask [S, 1 + T] of completions, sequences in another order."""
    table = torch.zeros(batch.size, LONGEST)
    mask = torch.zeros(batch.size, 1 + LONGEST, dtype=torch.long)
    for row, sequence in enumerate(order):
        own = logps[batch.sequence == sequence]
        table[row, : len(own)] = own
        mask[row, 1 : 1 + len(own)] = 1
    return table, mask


def outputs(table: torch.Tensor) -> Callable[..., Any]:
    """A model that gives these log-probabilities."""
    return lambda **_: SimpleNamespace(log_probs=table, entropy=table * 0, mean_logits=table * 0, is_top1=table > 0)


TRL_DPO = {
    "sigmoid": (dpo(0.3), {}),
    "robust": (dpo(0.3, 0.1, robust=True), {"label_smoothing": 0.1}),
    "ipo": (ipo(0.3), {}),
    "hinge": (slic(0.3, 1.0, 0.0, reference=True), {}),
}


@pytest.mark.parametrize("kind", TRL_DPO)
def test_equals_trls_dpo(kind: str) -> None:
    from trl import DPOTrainer

    objective, fields = TRL_DPO[kind]
    logps, batch = random_batch(3)
    order = [*range(0, batch.size, 2), *range(1, batch.size, 2)]  # all chosen, then all rejected
    table, mask = padded(logps, batch, order)
    reference = batch.per_sequence["reference"]
    inputs = {
        "input_ids": mask,
        "attention_mask": mask,
        "completion_mask": mask,
        "ref_chosen_logps": reference[0::2],
        "ref_rejected_logps": reference[1::2],
    }
    theirs = DPOTrainer._compute_loss(trainer(beta=0.3, loss_types=[kind], **fields), outputs(table), inputs, False)
    assert value(objective, logps, batch) == pytest.approx(float(theirs), abs=1e-6)


def test_equals_trls_kto() -> None:
    from trl import KTOTrainer

    logps, batch = random_batch(4, width=1)
    table, mask = padded(logps, batch, list(range(batch.size)))
    batch.per_sequence["label"] = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    unrelated, unrelated_reference = torch.tensor([-1.0, -2.0]), torch.tensor([-1.4, -2.2])
    batch.per_step = {"kl": 0.3}
    self = trainer(
        beta=0.3, loss_type="kto", desirable_weight=1.3, undesirable_weight=0.7, _compute_kl_logps=lambda *_: unrelated
    )
    inputs = {
        "input_ids": mask,
        "attention_mask": mask,
        "completion_mask": mask,
        "label": batch.per_sequence["label"].bool(),
        "ref_logps": batch.per_sequence["reference"],
        "ref_KL_logps": unrelated_reference,
    }
    theirs = KTOTrainer._compute_loss(self, outputs(table), inputs, False)
    assert value(kto(0.3, 1.3, 0.7), logps, batch) == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("kind", ["sigmoid", "simpo"])
def test_equals_trls_cpo(kind: str) -> None:
    from trl.experimental.cpo import CPOTrainer

    logps, batch = random_batch(6)
    ours = cpo(2.0, 0.0, 0.1) if kind == "sigmoid" else simpo(2.0, 0.5)
    seen = batch.summed(logps) if kind == "sigmoid" else batch.averaged(logps)
    smoothing = 0.1 if kind == "sigmoid" else 0.0
    self = trainer(beta=2.0, loss_type=kind, simpo_gamma=0.5, alpha=0.0, label_smoothing=smoothing)
    theirs, _, _ = CPOTrainer.cpo_loss(self, seen[0::2], seen[1::2])
    assert value(ours, logps, batch) == pytest.approx(float(theirs.mean()), abs=1e-6)


def test_equals_trls_orpo() -> None:
    from trl.experimental.orpo import ORPOTrainer

    logps, batch = random_batch(8)
    mean = batch.averaged(logps)
    ratio, *_ = ORPOTrainer.odds_ratio_loss(trainer(beta=0.3), mean[0::2], mean[1::2])
    nll = -logps[batch.sequence % 2 == 0].mean()
    assert value(orpo(0.3), logps, batch) == pytest.approx(float(nll - ratio.mean()), abs=1e-6)


@pytest.mark.parametrize("margin", [0.0, 0.4])
def test_equals_trls_reward_loss(margin: float) -> None:
    from trl import RewardTrainer

    torch.manual_seed(9)
    rewards = torch.randn(2 * UNITS)
    scores = [score for _ in range(UNITS) for score in (float(torch.rand(())) + 1.0, 1.0)]
    inputs: dict[str, Any] = {"attention_mask": torch.ones(1)}
    if margin:
        inputs["margin"] = margin * (torch.tensor(scores[0::2]) - 1.0)
    logits = torch.cat([rewards[0::2], rewards[1::2]])[:, None]
    self = trainer(args=SimpleNamespace(center_rewards_coefficient=0.01))
    theirs = RewardTrainer.compute_loss(self, lambda **_: SimpleNamespace(logits=logits), inputs)
    assert value(bradley_terry(0.01, margin), rewards, ranked(scores, 2)) == pytest.approx(float(theirs), abs=1e-6)


# ── the spec ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", OPTIONS)
def test_every_objective_takes_its_own_options_and_no_others(name: str) -> None:
    spec = PreferenceSpec(objective=name)  # type: ignore[arg-type]
    assert not spec.problems()
    METHODS[name].loss(**spec.options())
    stranger = next(option for options in OPTIONS.values() for option in options if option not in OPTIONS[name])
    (foreign,) = {type(options[stranger]) for options in OPTIONS.values() if stranger in options}
    given = spec.model_copy(update={stranger: foreign()})
    assert any(name not in sentence.partition(" is an option of ")[2] for _, sentence in given.problems())
