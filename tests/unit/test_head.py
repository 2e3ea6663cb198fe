"""Log-probabilities of targets in chunks: the values and gradients of the whole logits, without holding them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from plumbline.training import head as room
from plumbline.training.head import target_log_probs


def plain(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    return -nn.functional.cross_entropy(head(hidden).float() / temperature, targets, reduction="none")


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_are_those_of_whole_logits(
    trained: bool, bias: bool, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "CHUNK_LOGITS", 0)
    monkeypatch.setattr(room, "LEAST_ROWS", 5)  # 13 targets: two whole chunks and a part
    torch.manual_seed(0)
    head = nn.Linear(8, 31, bias=bias).requires_grad_(trained)
    targets, weights = torch.randint(0, 31, (13,)), torch.randn(13)
    found = []
    for compute in (target_log_probs, plain):
        hidden = torch.randn(13, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        logps = compute(head, hidden, targets, temperature)
        inputs = [hidden, *(p for p in head.parameters() if p.requires_grad)]
        found.append([logps.detach(), *torch.autograd.grad((logps * weights).sum(), inputs)])
    for ours, whole in zip(*found, strict=True):
        torch.testing.assert_close(ours, whole)


def test_bfloat16_is_as_near_as_the_whole_logits_are() -> None:
    torch.manual_seed(0)
    exact = nn.Linear(64, 300, bias=False).requires_grad_(False)
    rough = nn.Linear(64, 300, bias=False).requires_grad_(False).to(torch.bfloat16)
    rough.weight.copy_(exact.weight)
    targets = torch.randint(0, 300, (40,))
    gradients = []
    for head, compute in ((exact, plain), (rough, plain), (rough, target_log_probs)):
        hidden = torch.randn(40, 64, generator=torch.Generator().manual_seed(1)).to(head.weight.dtype).requires_grad_()
        gradients.append(torch.autograd.grad(compute(head, hidden, targets, 1.0).sum(), hidden)[0].float())
    true, whole, ours = gradients
    assert (ours - true).norm() <= 1.5 * (whole - true).norm()


def test_no_targets_and_no_gradient() -> None:
    head = nn.Linear(4, 9).requires_grad_(False)
    none = torch.zeros(0, 4, requires_grad=True)
    logps = target_log_probs(head, none, torch.zeros(0, dtype=torch.long))
    assert torch.autograd.grad(logps.sum(), none)[0].shape == (0, 4)
    with torch.no_grad():
        assert target_log_probs(head, torch.randn(3, 4), torch.tensor([1, 2, 3])).shape == (3,)


@pytest.mark.parametrize("trained", [False, True])
def test_logits_are_never_whole(trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor that a forward and backward pass makes is one chunk's."""
    monkeypatch.setattr(room, "CHUNK_LOGITS", 0)
    monkeypatch.setattr(room, "LEAST_ROWS", 16)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(result):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return result

    head = nn.Linear(8, 1000, bias=False).requires_grad_(trained)
    hidden = torch.randn(256, 8, requires_grad=True)
    with Watch():
        target_log_probs(head, hidden, torch.randint(0, 1000, (256,))).sum().backward()
    assert largest <= 16 * 1000
