"""Layers of the Llama family with fewer passes over memory: norms, gated MLPs, rotary positions, projections of one input, and
attention in packed rows that computes each sequence's own square only.

A layer is taken over where it has the parts that are looked for and a try gives what its own forward pass gives; all others
stay as they are. Weights are read when a layer is called, so sharding and recomputing of layers work as they did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.activations import SiLUActivation
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from plumbline.training.elementwise import EAGER, Elementwise, Tensors, compiled
from plumbline.training.lora import fuse_lora, project

Example = tuple[tuple[Any, ...], dict[str, Any]]
"""Inputs to try a layer with."""
Mix = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""(queries [R, T, heads, D], keys, values [R, U, heads, D], mask [1, 1, T, U] or None for causal) → [R, T, heads, D]."""


def fuse_layers(model: nn.Module) -> None:
    """Let the layers of a PEFT model that are known here compute in few nodes. Values are the model's up to rounding."""
    fuse_lora(model)
    for module in list(model.modules()):
        for has_parts, forward, example in (
            (_is_norm, _norm, _norm_example),
            (_is_mlp, _mlp, _mlp_example),
            (_is_attention, _attention, _attention_example),
        ):
            if has_parts(module) and _agree(module, forward, example):  # each is tried: those of a class may differ
                module.forward = partial(forward, module)
    for module in model.modules():
        attentions = _attentions(module) if _is_decoder(module) else []
        if not attentions or len(attentions) != len(module.layers) or not _all_ours(attentions):
            continue
        if _sees_all(module.config):
            module.forward = partial(_decoder, module, attentions)
        last = module.layers[-1]
        if _is_layer(last) and _agree(last, _every_place, _layer_example):
            last.forward = partial(_layer, last)


def compile_layers(layers: Iterable[nn.Module]) -> None:
    """Let layers that are computed here do in one pass what they do to each number by itself. A layer of which something is not, such as
    one whose norms are trained, is compiled whole as it came, once for all that are like it."""
    for layer in layers:
        ours = [module for module in layer.modules() if _is_of(vars(module).get("forward"), _norm, _mlp, _attention)]
        norms = [module for module in layer.modules() if "Norm" in type(module).__name__]
        if {_attention, _mlp} <= {module.forward.func for module in ours} and all(
            norm in ours and not norm.weight.requires_grad for norm in norms
        ):
            for module in ours:
                vars(module)["each"] = compiled()
            continue
        for module in layer.modules():
            vars(module).pop("forward", None)  # nodes of our own would be compiled anew for each layer
        layer.forward = torch.compile(layer.forward, dynamic=True)  # micro-batches differ in shape


def _elementwise(module: nn.Module) -> Elementwise:
    each: Elementwise = vars(module).get("each", EAGER)
    return each


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Inside, all layers compute as they came."""
    ours = {module: vars(module).pop("forward") for module in model.modules() if "forward" in vars(module)}
    try:
        yield
    finally:
        for module, forward in ours.items():
            vars(module)["forward"] = forward


def _agree(module: nn.Module, forward: Callable[..., Any], example: Callable[[Any], Example]) -> bool:
    """Whether `forward` gives what the module's own forward pass gives."""
    training = [one for one in module.modules() if one.training]
    module.eval()
    try:
        with torch.no_grad():
            inputs, named = example(module)
            own, ours = (f(module, *inputs, **named) for f in (type(module).forward, forward))
    except (AttributeError, TypeError, ValueError, RuntimeError):  # another layer under the same names
        return False
    finally:
        for one in training:
            one.training = True
    own, ours = ((y[0] if isinstance(y, tuple) else y).float() for y in (own, ours))
    return own.shape == ours.shape and bool((own - ours).norm() <= 0.02 * own.norm())  # bfloat16 rounds by 0.004


def _random(*shape: int, like: torch.Tensor) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)


# --- norms


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return (
        isinstance(weight, nn.Parameter)
        and weight.ndim == 1
        and isinstance(getattr(module, "variance_epsilon", None), float)
    )


def _norm_example(norm: Any) -> Example:
    return (_random(2, len(norm.weight), like=norm.weight),), {}


def _norm(norm: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    if norm.weight.requires_grad or norm.weight.dtype != hidden_states.dtype:
        own: torch.Tensor = type(norm).forward(norm, hidden_states)
        return own
    y: torch.Tensor = _Norm.apply(hidden_states, norm.weight, norm.variance_epsilon, _elementwise(norm))
    return y


class _Norm(torch.autograd.Function):
    """With the weight frozen."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float, each: Elementwise) -> torch.Tensor:
        y, scale = each.normed(x, weight, epsilon)
        ctx.save_for_backward(x, weight, scale)
        ctx.each = each
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return ctx.each.normed_back(gradients[0], *ctx.saved_tensors), None, None, None


# --- gated MLPs


def _is_mlp(module: nn.Module) -> bool:
    gated = isinstance(getattr(module, "act_fn", None), (SiLUActivation, nn.SiLU))
    return gated and all(
        isinstance(getattr(module, name, None), nn.Module) for name in ("gate_proj", "up_proj", "down_proj")
    )


def _mlp_example(mlp: Any) -> Example:
    return (_random(2, mlp.gate_proj.in_features, like=mlp.gate_proj.weight),), {}


def _mlp(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    gate, up = project(x, [mlp.gate_proj, mlp.up_proj])
    y: torch.Tensor = mlp.down_proj(_Gated.apply(gate, up, _elementwise(mlp)))
    return y


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, each: Elementwise) -> torch.Tensor:
        y, open_ = each.gated(gate, up)
        ctx.save_for_backward(gate, up, open_)
        ctx.each = each
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *ctx.each.gated_back(gradients[0], *ctx.saved_tensors), None


# --- attention

SEGMENTED = torch.empty(0, 0, 0, 0, dtype=torch.bool)
"""In the place of a mask: every sequence of the row attends to itself, and `position_ids` say where one starts. One that starts at
p > 0 also attends to the first p tokens of the last one that started at 0, a prompt that several answers share. A layer that does
not know it fails, and so cannot mix sequences."""


def _is_attention(module: nn.Module) -> bool:
    parts = all(isinstance(getattr(module, name, None), nn.Module) for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
    known = all(hasattr(module, name) for name in ("head_dim", "scaling", "attention_dropout"))
    return parts and known and getattr(getattr(module, "config", None), "_attn_implementation", None) == "sdpa"


def _attention_example(attention: Any) -> Example:
    weight = attention.q_proj.weight
    cos, sin = _random(2, 1, 3, attention.head_dim, like=weight)
    states = _random(1, 3, attention.q_proj.in_features, like=weight)
    return (states,), {"position_embeddings": (cos, sin), "attention_mask": None}


def _attention(
    attention: Any,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor | None,
    past_key_values: Any = None,
    places: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As the model's own; with `places`, flat indices into R·T, [K, H] for those only."""
    cos, sin = position_embeddings
    plain = past_key_values is None and attention.config._attn_implementation == "sdpa"
    if not plain or cos.shape[-1] != attention.head_dim:
        own: tuple[torch.Tensor, torch.Tensor | None] = type(attention).forward(
            attention, hidden_states, position_embeddings=position_embeddings, attention_mask=attention_mask,
            past_key_values=past_key_values, **others,
        )  # fmt: skip
        return own if places is None else (own[0].flatten(0, 1).index_select(0, places), None)
    parts = project(hidden_states, [attention.q_proj, attention.k_proj, attention.v_proj])
    q, k, v = (part.view(*part.shape[:-1], -1, attention.head_dim) for part in parts)
    if hasattr(attention, "q_norm"):
        q, k = attention.q_norm(q), attention.k_norm(k)
    q, k = _Rotary.apply(q, k, cos.unsqueeze(2), sin.unsqueeze(2), _elementwise(attention))
    dropout = attention.attention_dropout if attention.training else 0.0

    def mix(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        mixed: torch.Tensor = ALL_ATTENTION_FUNCTIONS["sdpa"](
            attention, q, k, v, mask, dropout=dropout, scaling=attention.scaling, **others
        )[0]
        return mixed

    if attention_mask is not None and attention_mask.shape == SEGMENTED.shape:
        mixed = _segmented(mix, q, k, v, others["position_ids"])
    else:
        mixed = mix(q, k, v, attention_mask)
    if places is None:
        return attention.o_proj(mixed.reshape(*hidden_states.shape[:-1], -1)), None
    return attention.o_proj(mixed.flatten(0, 1).flatten(1).index_select(0, places)), None


def _segmented(mix: Mix, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    """[1, R·T, heads, D] of queries, keys and values [R, T, heads, D], each segment by itself but for what it shares."""
    lengths, shared = _segments(position_ids)
    rows = (x.flatten(0, 1).unsqueeze(0).split(lengths, 1) for x in (q, k, v))
    first_k = first_v = k[:0]
    found: list[torch.Tensor] = []
    for own_q, own_k, own_v, before in zip(*rows, shared, strict=True):
        sees = None
        if before:
            own_k, own_v = torch.cat([first_k[:, :before], own_k], 1), torch.cat([first_v[:, :before], own_v], 1)
            sees = torch.ones(own_q.shape[1], own_k.shape[1], dtype=torch.bool, device=q.device).tril_(before)[None, None]
        else:
            first_k, first_v = own_k, own_v
        found.append(mix(own_q, own_k, own_v, sees))
    return torch.cat(found, 1)


def _segments(position_ids: torch.Tensor) -> tuple[list[int], list[int]]:
    """Of rows [R, T], one after the other: lengths of the segments, and how many tokens each shares with the last that shares none."""
    starts = nn.functional.pad(position_ids.diff(dim=1), (1, 0)) != 1  # a row always starts one
    begins = starts.flatten().nonzero()[:, 0]
    shared = torch.where(begins % position_ids.shape[1] == 0, 0, position_ids.flatten()[begins])
    lengths, before = torch.stack([begins.diff(append=begins.new_full((1,), position_ids.numel())), shared]).tolist()
    return lengths, before


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, each: Elementwise
    ) -> Tensors:
        ctx.save_for_backward(cos, sin)
        ctx.each = each
        return each.turned(q, k, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *ctx.each.turned_back(*gradients, *ctx.saved_tensors), None, None, None


# --- the last layer


def _is_layer(module: nn.Module) -> bool:
    attention = getattr(module, "self_attn", None)
    norms = all(
        isinstance(getattr(module, name, None), nn.Module) for name in ("input_layernorm", "post_attention_layernorm")
    )
    return (
        norms
        and isinstance(attention, nn.Module)
        and _all_ours([attention])
        and isinstance(getattr(module, "mlp", None), nn.Module)
    )


def _layer_example(layer: Any) -> Example:
    return _attention_example(layer.self_attn)


def _every_place(layer: Any, hidden_states: torch.Tensor, **named: Any) -> Any:
    return _layer(
        layer, hidden_states, last_places=torch.arange(hidden_states.shape[1], device=hidden_states.device), **named
    )


def _layer(
    layer: Any, hidden_states: torch.Tensor, *arguments: Any, last_places: torch.Tensor | None = None, **named: Any
) -> Any:
    """As the model's own; with `last_places`, flat indices into R·T, [1, K, H] for those only."""
    places = last_places
    if places is None or arguments or not _all_ours([layer.self_attn]):
        own = type(layer).forward(layer, hidden_states, *arguments, **named)
        return own if places is None else own.flatten(0, 1).index_select(0, places).unsqueeze(0)
    mixed, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), places=places, **named)
    x = (hidden_states.flatten(0, 1).index_select(0, places) + mixed).unsqueeze(0)
    return x + layer.mlp(layer.post_attention_layernorm(x))  # no view, which FSDP2 could not hook on to


def states_at(decoder: Any, places: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """[K, H] last hidden states at flat indices into R·T; where the last layer is known here, it computes no others.

    Args:
        decoder: on which `fuse_layers` was.
        places: [K].
        inputs: of the decoder, by name.
    """
    known = _is_of(vars(decoder.layers[-1]).get("forward"), _layer) if hasattr(decoder, "layers") else False
    states: torch.Tensor = decoder(**inputs, **({"last_places": places} if known else {})).last_hidden_state.flatten(0, 1)
    return states if known else states.index_select(0, places)


def _is_of(forward: Any, *kinds: Callable[..., Any]) -> bool:
    """Whether a layer's forward pass is that of one of `kinds`, or computes it again in the backward pass."""
    while isinstance(forward, partial):
        if forward.func in kinds:
            return True
        forward = forward.args[0] if forward.args else None
    return False


# --- decoders


def _is_decoder(module: nn.Module) -> bool:
    layers = getattr(module, "layers", None)
    return isinstance(layers, nn.ModuleList) and hasattr(module, "embed_tokens") and hasattr(module, "config")


def _sees_all(config: Any) -> bool:
    """Whether every layer sees all that came before."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windows = getattr(config, "sliding_window", None) is not None
    return kinds == {"full_attention"} and not windows and getattr(config, "is_causal", True) is True


def _attentions(decoder: Any) -> list[nn.Module]:
    return [module for module in decoder.layers.modules() if "Attention" in type(module).__name__]


def _all_ours(attentions: list[nn.Module]) -> bool:
    return all(_is_of(vars(attention).get("forward"), _attention) for attention in attentions)


def _decoder(decoder: Any, attentions: list[nn.Module], *arguments: Any, **named: Any) -> Any:
    """Packed rows go without the mask of T² that HF builds of their positions: on the CPU, as other devices have kernels for it, and
    everywhere where sequences share tokens, which HF does not know of."""
    positions = named.get("position_ids")
    plain = not arguments and named.get("attention_mask") is None and named.get("past_key_values") is None
    if plain and not named.get("use_cache", True) and positions is not None and _knows_segments(decoder, attentions):
        starts = positions.diff(dim=1) != 1
        if positions.device.type != "cpu":
            starts &= positions[:, 1:] > 0
        if bool(starts.any()):
            named["attention_mask"] = SEGMENTED
    return type(decoder).forward(decoder, *arguments, **named)


def _knows_segments(decoder: Any, attentions: list[nn.Module]) -> bool:
    return decoder.config._attn_implementation == "sdpa" and _all_ours(attentions)


def shares_prompts(decoder: Any) -> bool:
    """Whether a decoder computes rows in which sequences share their first tokens, now: who compiles layers whole takes them away."""
    return _is_of(vars(decoder).get("forward"), _decoder) and _knows_segments(decoder, _attentions(decoder))
