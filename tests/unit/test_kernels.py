"""Fused layers: the values and gradients of the model's own, for the families that are known, and no others touched."""

from __future__ import annotations

import shutil
from functools import partial
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm

from plumbline.training.batch import MicroBatch, Sequence, collate
from plumbline.training.kernels import compile_layers, fuse_layers, states_at
from plumbline.training.lora import project
from support.families import FAMILIES, SIZES, tiny


def build(family: str, fused: bool, dtype: torch.dtype = torch.float32, **lora: Any) -> PeftModel:
    """The same model each time; its adapter and its norms away from their start."""
    base = tiny(family)
    torch.manual_seed(1)
    causal = get_peft_model(base, LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False, **lora))
    for name, p in causal.named_parameters():
        if "lora_" not in name:
            p.data = p.data.to(dtype)
    causal.eval()
    if fused:
        fuse_layers(causal)
    return causal


def rows(packed: bool) -> MicroBatch:
    draw = torch.Generator().manual_seed(2)
    sequences = [
        Sequence(torch.randint(0, 64, (n,), generator=draw).tolist(), [True] * n) for n in (9, 4, 1, 13)
    ]  # fmt: skip
    for sequence in sequences:
        sequence.trained[: len(sequence.ids) // 2] = [False] * (len(sequence.ids) // 2)
    return collate([sequences[:3], sequences[3:]] if packed else [[sequence] for sequence in sequences])


def results(model: PeftModel, batch: MicroBatch, places: torch.Tensor | None = None) -> list[torch.Tensor]:
    """States at targets, or other places, and the gradients of every adapter weight and of the embeddings."""
    decoder = model.get_base_model().get_decoder()
    model.get_input_embeddings().weight.requires_grad_()
    inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "attention_mask": None, "use_cache": False}
    states = states_at(decoder, batch.predict_at if places is None else places, **inputs).float()
    trained = [p for name, p in model.named_parameters() if p.requires_grad and "lm_head" not in name]
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(3))
    return [states.detach(), *(g.float() for g in torch.autograd.grad((states * weights).sum(), trained))]


def taken_over(model: PeftModel) -> int:
    forwards = [getattr(vars(one).get("forward"), "func", None) for one in model.modules()]
    return sum(forward is not None and forward.__module__.endswith("kernels") for forward in forwards)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_are_the_models_own(family: str, packed: bool) -> None:
    own, fused = build(family, False), build(family, True)
    for theirs, ours in zip(results(own, rows(packed)), results(fused, rows(packed)), strict=True):
        assert (ours - theirs).norm() <= 3e-5 * theirs.norm()


def test_which_layers_are_taken_over() -> None:
    counts = {family: taken_over(build(family, True)) for family in FAMILIES}
    # two norms, MLP and attention of each layer; the last layer and norm; the decoder where all is seen; norms of queries and keys
    assert counts == {
        "llama": 11, "qwen2": 11, "qwen3": 15, "mistral": 11, "mistral of short sight": 10, "gemma2": 0,
        "smollm3": 8,
    }  # fmt: skip


def test_layers_of_the_same_parts_that_compute_something_else_stay_as_they_are() -> None:
    class Norm(LlamaRMSNorm):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden_states) + 0.1

    class MLP(LlamaMLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x))
            return result

    class Attention(LlamaAttention):
        def forward(self, hidden_states: torch.Tensor, *inputs: Any, **named: Any) -> Any:
            return super().forward(2 * hidden_states, *inputs, **named)

    config = LlamaConfig(**SIZES)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    layers = nn.ModuleList([Norm(32), MLP(config), Attention(config, 0), LlamaRMSNorm(32), LlamaMLP(config)])
    fuse_layers(layers.requires_grad_(False))
    assert ["forward" in vars(layer) for layer in layers] == [False, False, False, True, True]


def test_a_base_of_fewer_bits_is_as_near_the_truth_as_the_models_own() -> None:
    exact = build("qwen3", False)
    own, fused = (build("qwen3", on, torch.bfloat16) for on in (False, True))
    for name, p in own.named_parameters():
        exact.get_parameter(name).data = p.data.float()
    for true, theirs, ours in zip(*(results(model, rows(True)) for model in (exact, own, fused)), strict=True):
        assert (ours - true).norm() <= 1.5 * (theirs - true).norm() + 1e-3 * true.norm()


def test_norms_that_are_trained_get_their_gradient() -> None:
    found = []
    for fused in (False, True):
        model = build("llama", fused)
        for name, p in model.named_parameters():
            p.requires_grad_("norm" in name)
        found.append(results(model, rows(False)))
    for theirs, ours in zip(*found, strict=True):
        assert (ours - theirs).norm() <= 3e-5 * theirs.norm()


def test_all_weights_trained() -> None:
    found = [results(build("qwen2", fused).requires_grad_(True), rows(True)) for fused in (False, True)]
    for theirs, ours in zip(*found, strict=True):
        assert (ours - theirs).norm() <= 3e-5 * theirs.norm()


def test_dropout_of_the_adapter_is_pefts_own() -> None:
    found = []
    for fused in (False, True):
        model = build("llama", fused, lora_dropout=0.5).train()
        torch.manual_seed(4)
        batch = rows(False)  # at all places, as the last layer draws for those only that it computes
        found.append(results(model, batch, torch.arange(batch.input_ids.numel())))
    for theirs, ours in zip(*found, strict=True):
        assert (ours - theirs).norm() <= 3e-5 * theirs.norm()


def test_layers_computed_again_in_packed_rows() -> None:
    own, fused = build("llama", False), build("llama", True)
    for layer in fused.get_base_model().model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    for theirs, ours in zip(results(own, rows(True)), results(fused, rows(True)), strict=True):
        assert (ours - theirs).norm() <= 3e-5 * theirs.norm()


def test_packed_rows_with_layers_that_were_given_back() -> None:
    """Whoever compiles the layers takes their forwards away: the decoder must then leave the mask to the model."""
    own, fused = build("llama", False), build("llama", True)
    for layer in fused.get_base_model().model.layers:
        for module in layer.modules():
            vars(module).pop("forward", None)
    for theirs, ours in zip(results(own, rows(True)), results(fused, rows(True)), strict=True):
        assert (ours - theirs).norm() <= 3e-5 * theirs.norm()


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(
    ("family", "trained", "still"),
    [("llama", "lora_", 11), ("qwen3", "lora_", 15), ("llama", "norm", 2)],
    ids=["llama", "qwen3", "trained norms"],
)
def test_compiled_layers(family: str, trained: str, still: int) -> None:
    """Layers that are computed here stay so, with one pass for several; others are compiled whole."""
    own, fused = build(family, False), build(family, True)
    for model in (own, fused):
        for name, p in model.named_parameters():
            p.requires_grad_(trained in name)
    compile_layers(fused.get_base_model().model.layers)
    assert taken_over(fused) == still
    for batch in (rows(True), rows(False)):
        for theirs, ours in zip(results(own, batch), results(fused, batch), strict=True):
            assert (ours - theirs).norm() <= 3e-5 * theirs.norm()


def test_generation_with_a_cache_and_padding_on_the_left() -> None:
    prompt = torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    texts = [
        build("qwen3", fused).generate(
            input_ids=prompt, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0
        )
        for fused in (False, True)
    ]
    assert torch.equal(*texts)


def test_the_last_layer_computes_the_places_asked_for_only() -> None:
    model, seen = build("llama", True), []
    decoder = model.get_base_model().model
    decoder.norm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    batch = rows(True)
    results(model, batch)
    nothing = states_at(decoder, batch.predict_at[:0], input_ids=batch.input_ids, use_cache=False)
    assert seen == [(1, len(batch.targets), 32), (1, 0, 32)]
    assert nothing.shape == (0, 32)
    nothing.sum().backward()  # a rank without targets takes part in what others exchange
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora_" in name)


def test_packed_rows_need_no_square_of_their_length() -> None:
    sequences = [Sequence([(i + j) % 64 for j in range(16)], [True] * 16) for i in range(40)]
    batch, largest = collate([sequences]), 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(result):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return result

    with Watch():
        results(build("llama", True), batch)
    assert largest <= 640 * 48


def test_projections_with_and_without_an_adapter() -> None:
    found = []
    for together in (False, True):
        torch.manual_seed(0)
        parts = nn.ModuleDict({"a": nn.Linear(6, 5), "b": nn.Linear(6, 4, bias=False), "c": nn.Linear(6, 3)})
        model = get_peft_model(parts, LoraConfig(r=2, target_modules=["a", "c"], init_lora_weights=False))  # type: ignore[arg-type]
        layers = [model.get_base_model()[name] for name in "abc"]
        x = torch.randn(2, 7, 6, requires_grad=True)
        outputs = project(x, layers) if together else [layer(x) for layer in layers]
        loss = sum((y * torch.cos(y)).sum() for y in outputs)
        trained = [p for p in model.parameters() if p.requires_grad]
        found.append([*(y.detach() for y in outputs), *torch.autograd.grad(loss, [x, *trained])])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
