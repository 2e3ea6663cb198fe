"""Advantages by hand, and against the sums that define them."""

from __future__ import annotations

import pytest
import torch

from plumbline.rollout.advantages import (
    KlController,
    generalised,
    group_advantages,
    leave_one_out,
    returns_to_go,
    token_rewards,
    whitened,
)


def test_groups_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    std = torch.tensor([0.5, -0.5, -0.5, 0.5]).std().item()
    scaled = 0.5 / (std + 1e-4)
    assert group_advantages(rewards, scale=True).tolist() == [
        pytest.approx([scaled, -scaled, -scaled, scaled]),
        [0, 0, 0, 0],
    ]
    assert group_advantages(rewards, scale=False)[0].tolist() == [0.5, -0.5, -0.5, 0.5]
    assert leave_one_out(torch.tensor([[3.0, 0.0, 0.0]]))[0].tolist() == pytest.approx([3.0, -1.5, -1.5])


def test_equal_rewards_are_no_advantage_whatever_the_rounding() -> None:
    for size in (2, 3, 7, 8):
        assert not group_advantages(torch.full((2, size), 0.3), scale=True).any()
        assert not leave_one_out(torch.full((2, size), 0.1)).any()


def test_token_rewards_and_returns() -> None:
    rewards = token_rewards(2.0, torch.tensor([0.5, -0.5, 1.0]), 0.1)
    assert rewards.tolist() == pytest.approx([-0.05, 0.05, 1.9])
    assert returns_to_go(rewards).tolist() == pytest.approx([1.9, 1.95, 1.9])


@pytest.mark.parametrize(("discount", "decay"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_generalised_advantages_are_their_sum(discount: float, decay: float) -> None:
    """A_t = Σ_l (γλ)^l·δ_{t+l}."""
    torch.manual_seed(0)
    rewards, values = torch.randn(7), torch.randn(7)
    after = torch.cat([values[1:], torch.zeros(1)])
    deltas = rewards + discount * after - values
    expected = [sum((discount * decay) ** k * float(deltas[t + k]) for k in range(7 - t)) for t in range(7)]
    advantages, returns = generalised(rewards, values, discount, decay)
    assert advantages.tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.allclose(returns, advantages + values)


def test_whitening_is_over_all_ranks() -> None:
    """Each of two ranks, told the sums of both, gives its part of what one rank alone gives of all."""
    torch.manual_seed(1)
    one, other = [torch.randn(3) * 4 + 2, torch.randn(5)], [torch.randn(2)]
    together = whitened([*one, *other], lambda *values: list(values))
    every = torch.cat(together)
    assert every.mean().item() == pytest.approx(0, abs=1e-6)
    assert every.std().item() == pytest.approx(1, abs=1e-5)

    def sums_of(parts: list[torch.Tensor]) -> tuple[float, float]:
        flat = torch.cat(parts).double()
        return float(flat.sum()), float(len(flat))

    mean = (sums_of(one)[0] + sums_of(other)[0]) / (sums_of(one)[1] + sums_of(other)[1])

    def totals(*values: float) -> list[float]:
        if len(values) == 2:
            return [a + b for a, b in zip(values, sums_of(other), strict=True)]
        return [values[0] + float((torch.cat(other).double() - mean).square().sum())]

    assert torch.allclose(torch.cat(whitened(one, totals)), torch.cat(together[:2]))
    assert whitened([torch.tensor([5.0])], lambda *values: list(values))[0].tolist() == [0.0]
    assert whitened([], lambda *values: list(values)) == []


def test_kl_controller() -> None:
    fixed = KlController(0.1, None, 100)
    fixed.update(50.0, 64)
    assert fixed.coefficient == 0.1
    moved = KlController(0.1, 2.0, 100)
    moved.update(2.2, 50)
    assert moved.coefficient == pytest.approx(0.1 * (1 + 0.1 * 0.5))
    moved.update(100.0, 50)  # errors count 0.2 at most
    assert moved.coefficient == pytest.approx(0.1 * 1.05 * 1.1)
    moved.update(0.0, 50)
    assert moved.coefficient == pytest.approx(0.1 * 1.05 * 1.1 * 0.9)
    moved.update(0.0, 10_000)  # as many as the horizon: it can come back
    assert moved.coefficient == pytest.approx(0.1 * 1.05 * 1.1 * 0.9 * 0.8)
