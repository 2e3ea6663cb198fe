"""Policy losses by hand, against TRL's own code, for gradients, and whatever the split into micro-batches."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from plumbline.training.batch import MicroBatch
from plumbline.training.objectives.policy_gradient import PolicyLoss, kl_divergence, mismatch_weights, policy_gradient
from plumbline.training.objectives.value import clipped_value

ANSWERS, LONGEST = 8, 6


def batch_of(lengths: list[int], **per_target: torch.Tensor) -> MicroBatch:
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    none = torch.zeros(0, dtype=torch.long)
    return MicroBatch(none, none, none, none, owner, len(lengths), per_target=per_target)


def random_batch(seed: int) -> tuple[torch.Tensor, MicroBatch, list[int]]:
    torch.manual_seed(seed)
    lengths = torch.randint(1, LONGEST + 1, (ANSWERS,)).tolist()
    count = sum(lengths)
    logps = -2 * torch.rand(count)
    owner = torch.repeat_interleave(torch.arange(ANSWERS), torch.tensor(lengths))
    batch = batch_of(
        lengths,
        advantage=torch.randn(ANSWERS)[owner],
        behaviour=logps + 0.4 * torch.randn(count),
        old=logps + 0.3 * torch.randn(count),
        reference=logps + 0.5 * torch.randn(count),
    )
    return logps.requires_grad_(), batch, lengths


def value_of(how: PolicyLoss, logps: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
    loss, normaliser, _ = policy_gradient(how)(logps, batch)
    return loss / normaliser


def trl_loss(logps: torch.Tensor, batch: MicroBatch, lengths: list[int], **settings: Any) -> torch.Tensor:
    """What TRL's trainer computes from the same numbers, laid out in its padded way."""
    from trl import GRPOTrainer

    def padded(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(values.split(lengths)), batch_first=True)

    mask = padded(torch.ones(len(logps)))
    own = padded(logps)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (own, torch.zeros_like(own), None),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        accelerator=Accelerator(), model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1,
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, beta=0.0, epsilon_low=0.2,
        epsilon_high=0.2, use_vllm=False, _entropy_bonus_enabled=False, importance_sampling_level="token", loss_type="dapo",
        max_completion_length=LONGEST, _metrics={"train": defaultdict(list)},
    )  # fmt: skip
    vars(trainer).update(settings)
    ids = mask.long()
    inputs = {
        "prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": mask,
        "advantages": padded(batch.per_target["advantage"]), "old_per_token_logps": padded(batch.per_target["behaviour"]),
        "ref_per_token_logps": padded(batch.per_target["reference"]), "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    loss: torch.Tensor = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("how", "settings"),
    [
        (PolicyLoss(), {}),
        (PolicyLoss(clip_high=0.28), {"epsilon_high": 0.28}),
        (PolicyLoss(kl_coefficient=0.04), {"beta": 0.04}),
        (PolicyLoss(aggregate="sequences"), {"loss_type": "grpo"}),
        (PolicyLoss(aggregate="constant", longest=LONGEST), {"loss_type": "dr_grpo"}),
        (
            PolicyLoss(sequence_ratio=True, aggregate="sequences", clip_low=3e-4, clip_high=4e-4),
            {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
        ),
        (
            PolicyLoss(sequence_ratio=True, aggregate="sequences", kl_coefficient=0.1, clip_low=0.5, clip_high=0.5),
            {
                "loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.5, "epsilon_high": 0.5, "beta": 0.1,
            },
        ),
    ],
    ids=["token mean", "clip higher", "k3", "grpo", "dr_grpo", "gspo", "gspo with kl"],
)  # fmt: skip
def test_loss_and_gradient_are_trls(how: PolicyLoss, settings: dict[str, Any], seed: int) -> None:
    logps, batch, lengths = random_batch(seed)
    ours = value_of(how, logps, batch)
    theirs = trl_loss(logps, batch, lengths, **settings)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    (mine,) = torch.autograd.grad(ours, logps)
    (other,) = torch.autograd.grad(theirs, logps)
    assert torch.allclose(mine, other, atol=1e-6)


EVERY = [
    PolicyLoss(),
    PolicyLoss(aggregate="sequences", sequence_ratio=True),
    PolicyLoss(aggregate="constant", longest=9, kl_coefficient=0.3, kl_estimator="k2"),
    PolicyLoss(mismatch="truncate", kl_coefficient=0.1),
    PolicyLoss(mismatch="mask", dual_clip=1.5),
    PolicyLoss(mismatch="maskSequences"),
]


@pytest.mark.parametrize("how", EVERY)
def test_the_split_into_micro_batches_changes_nothing(how: PolicyLoss) -> None:
    logps, batch, lengths = random_batch(3)
    whole = value_of(how, logps, batch)
    (gradient,) = torch.autograd.grad(whole, logps)
    losses, normalisers, start = [], [], 0
    for first, last in ((0, 1), (1, 4), (4, ANSWERS)):
        count = sum(lengths[first:last])
        part = batch_of(lengths[first:last], **{n: v[start : start + count] for n, v in batch.per_target.items()})
        loss, normaliser, _ = policy_gradient(how)(logps[start : start + count], part)
        losses.append(loss)
        normalisers.append(normaliser)
        start += count
    split = torch.stack(losses).sum() / torch.stack([torch.as_tensor(n) for n in normalisers]).sum()
    assert split.item() == pytest.approx(whole.item(), abs=1e-6)
    assert torch.allclose(torch.autograd.grad(split, logps)[0], gradient, atol=1e-6)


def test_by_hand() -> None:
    batch = batch_of([2, 1], advantage=torch.tensor([2.0, 2.0, -1.0]), behaviour=torch.full((3,), -1.0))
    logps = torch.tensor([-1.0, -0.5, -0.5], requires_grad=True)
    loss, tokens, metrics = policy_gradient(PolicyLoss(clip_low=0.2, clip_high=0.3))(logps, batch)
    grown = math.exp(0.5)
    assert loss.item() == pytest.approx(-(2.0 * 1.0) - (2.0 * 1.3) + grown)
    assert tokens == 3
    (gradient,) = torch.autograd.grad(loss, logps)
    assert gradient.tolist() == pytest.approx([-2.0, 0.0, grown])  # clipped upwards only where that would gain
    assert metrics["clipFraction"][0] == 1
    bounded, _, _ = policy_gradient(PolicyLoss(clip_high=0.3, dual_clip=1.2))(logps, batch)
    assert bounded.item() == pytest.approx(-2.0 - 2.6 + 1.2)
    batch.per_target["reference"] = torch.full((3,), -1.0)
    with_kl, _, found = policy_gradient(PolicyLoss(clip_high=0.3, kl_coefficient=0.5))(logps, batch)
    k3 = 2 * (math.exp(-0.5) - 1 + 0.5)
    assert found["kl"][0].item() == pytest.approx(k3)
    assert with_kl.item() == pytest.approx(loss.item() + 0.5 * k3)


def test_estimators_of_kl() -> None:
    """All have the mean Σ p·log(p/q) (k2 in second order), over tokens drawn from p."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.45, 0.33, 0.22])
    d = (p / q).log()
    kl = (p * d).sum()
    assert (p * kl_divergence(d, "k1")).sum() == pytest.approx(kl)
    assert (p * kl_divergence(d, "k3")).sum() == pytest.approx(kl)
    assert (p * kl_divergence(d, "k2")).sum() == pytest.approx(float(kl), rel=0.05)
    assert (kl_divergence(d, "k3") >= 0).all()
    assert torch.isfinite(kl_divergence(torch.tensor([-500.0, 500.0]), "k3")).all()


def test_weights_against_a_mismatch() -> None:
    batch = batch_of([2, 2])
    ratio = torch.tensor([0.1, 3.0, 1.005, 1.0])
    assert mismatch_weights(ratio.log(), batch, "truncate").tolist() == pytest.approx([0.1, 2.0, 1.005, 1.0])
    assert mismatch_weights(ratio.log(), batch, "mask").tolist() == pytest.approx([0.0, 3.0, 1.005, 1.0])
    assert mismatch_weights(ratio.log(), batch, "maskSequences").tolist() == [0.0, 0.0, 1.0, 1.0]


def test_extreme_ratios_stay_finite() -> None:
    batch = batch_of([2], advantage=torch.tensor([1.0, -1.0]), behaviour=torch.tensor([-400.0, 0.0]))
    logps = torch.tensor([-1e-3, -400.0], requires_grad=True)
    loss = value_of(PolicyLoss(), logps, batch)
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, logps)[0]).all()


def test_demonstrations_count_by_their_own_tokens() -> None:
    """InstructGPT's mix: the policy's loss as without them, plus γ times the mean loss of demonstrations; in any split."""
    batch = batch_of(
        [2, 3], advantage=torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]), behaviour=torch.tensor([-1.0, -1.0, 0, 0, 0])
    )
    batch.per_sequence["demonstration"] = torch.tensor([0.0, 1.0])
    batch.per_step = {"weights": 2.0, "demonstrations": 3.0}
    logps = torch.tensor([-1.0, -1.0, -0.5, -1.5, -4.0], requires_grad=True)
    loss, normaliser, metrics = policy_gradient(PolicyLoss(ptx_weight=0.7))(logps, batch)
    assert normaliser == 2
    assert (loss / normaliser).item() == pytest.approx(-1.0 + 0.7 * 2.0)
    assert metrics["demonstrationLoss"][0].item() / 3 == pytest.approx(2.0)
    (gradient,) = torch.autograd.grad(loss / normaliser, logps)
    assert gradient.tolist() == pytest.approx([-0.5, -0.5, *[-0.7 / 3] * 3])


def test_clipped_value_by_hand() -> None:
    batch = batch_of([3], value=torch.tensor([0.0, 0.0, 1.0]), **{"return": torch.tensor([1.0, -1.0, 1.0])})
    values = torch.tensor([0.5, 0.1, 1.0], requires_grad=True)
    loss, count, _ = clipped_value(0.2)(values, batch)
    assert loss.item() == pytest.approx((0.64 + 1.21 + 0.0) / 2)  # the clipped 0.2 is further from 1 than 0.5 is
    assert count == 3
    (gradient,) = torch.autograd.grad(loss, values)
    assert gradient.tolist() == pytest.approx([0.0, 1.1, 0.0])
