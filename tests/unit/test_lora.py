"""Fused LoRA layers: PEFT's values and gradients, and PEFT's own code for what they do not cover."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from plumbline.training.lora import fuse_lora


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 10), nn.Linear(10, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(torch.tanh(self.first(x)))
        return result


def pair(dtype: torch.dtype = torch.float32, **config: Any) -> list[PeftModel]:
    """The same model twice, the second one fused; adapters away from their start."""
    made = []
    for fused in (False, True):
        torch.manual_seed(0)
        base = Two().to(dtype)
        model = get_peft_model(base, LoraConfig(r=3, lora_alpha=6, target_modules=["first", "second"], **config))
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)))
        if fused:
            fuse_lora(model)
        made.append(model)
    return made


def results(model: PeftModel, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    trained = [p for p in model.parameters() if p.requires_grad]
    return [y.detach(), *torch.autograd.grad((y.float() ** 2).sum(), [x, *trained])]


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6), (0, 6)])
def test_values_and_gradients_are_pefts(shape: tuple[int, ...]) -> None:
    plain, fused = pair()
    x = torch.randn(shape)
    for theirs, ours in zip(results(plain, x), results(fused, x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_base_of_fewer_bits_is_as_near_the_truth_as_pefts() -> None:
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    (_, exact), (plain, fused) = pair(), pair(torch.bfloat16)
    exact.load_state_dict(plain.state_dict())  # the rounded weights, computed with in float32
    for true, theirs, ours in zip(results(exact, x.float()), results(plain, x), results(fused, x), strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours.float() - true).norm() <= 1.5 * (theirs.float() - true).norm() + 1e-3 * true.norm()


def test_disabled_and_merged_adapters() -> None:
    plain, fused = pair()
    x = torch.randn(3, 6)
    with plain.disable_adapter(), fused.disable_adapter():
        assert torch.equal(fused(x), plain(x))
    plain.merge_adapter()
    fused.merge_adapter()
    assert torch.equal(fused(x), plain(x))
    plain.unmerge_adapter()
    fused.unmerge_adapter()
    torch.testing.assert_close(fused(x), plain(x))


def test_dropout_and_variants_are_pefts_own() -> None:
    for config in ({"lora_dropout": 0.5}, {"use_dora": True}):
        plain, fused = pair(**config)
        x = torch.randn(4, 6)
        outputs = []
        for model in (plain, fused):
            torch.manual_seed(3)
            outputs.append(model.train()(x))
        assert torch.equal(*outputs)


@pytest.mark.parametrize("config", [{"lora_bias": True}, {"bias": "lora_only"}])
def test_biases_that_are_trained(config: dict[str, Any]) -> None:
    plain, fused = pair(**config)
    assert any("bias" in name and p.requires_grad for name, p in fused.named_parameters())
    x = torch.randn(4, 6)
    for theirs, ours in zip(results(plain, x), results(fused, x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_several_adapters_at_once() -> None:
    plain, fused = pair()
    for model in (plain, fused):
        torch.manual_seed(1)
        model.add_adapter("other", LoraConfig(r=2, target_modules=["first"], init_lora_weights=False))
        model.base_model.set_adapter(["default", "other"])
    x = torch.randn(4, 6)
    assert torch.equal(fused(x), plain(x))
