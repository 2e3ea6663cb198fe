"""A decoder for generation only: fused weights and a preallocated cache of keys and values, one slot per sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from plumbline.rollout.low_rank import Deltas, Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ARCHITECTURES = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
STATIC_ROPE = frozenset({"default", "linear", "llama3"})  # the others change their frequencies with the length

SITES = 4  # of a layer

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def unsupported(model: PreTrainedModel) -> str | None:
    """Why this decoder cannot run the model, or None."""
    config = model.config
    if type(model).__name__ not in ARCHITECTURES:
        return f"only {', '.join(sorted(ARCHITECTURES))} have a fused decoder"
    if config.hidden_act != "silu":
        return f"hidden_act is {config.hidden_act}, not silu"
    if config.rope_parameters["rope_type"] not in STATIC_ROPE:
        return f"rope_type is {config.rope_parameters['rope_type']}, whose frequencies change with the length"
    if getattr(config, "mlp_bias", False):
        return "mlp_bias is on"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None) is not None:
        return "some layers attend to a sliding window"
    return None


@dataclass(frozen=True)
class Layer:
    """Weights of one layer; q, k, v and gate, up are fused along their outputs."""

    attention_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    out: torch.Tensor
    out_bias: torch.Tensor | None
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


class Decoder:
    """The model's forward pass for prompts and for single tokens.

    Args:
        model: a model for which `unsupported` is None. Its weights are shared, and re-laid to be contiguous.
        slots: sequences that the cache holds.
        max_length: positions per slot.
    """

    def __init__(self, model: PreTrainedModel, slots: int, max_length: int) -> None:
        config, attention = model.config, model.model.layers[0].self_attn
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = attention.head_dim
        self.epsilon = config.rms_norm_eps
        self.embedding = model.get_input_embeddings().weight.detach()
        self.head = model.get_output_embeddings().weight.detach()
        self.norm = model.model.norm.weight.detach()
        self.layers = [_layer(block) for block in model.model.layers]
        self.sites = _sites(model)
        self.device = self.embedding.device
        positions = torch.arange(max_length, device=self.device)
        cos, sin = model.model.rotary_emb(self.embedding[:1], positions[None])
        self.cos, self.sin = cos[0].detach(), sin[0].detach()  # [max_length, head_dim]
        self._positions = positions
        self._shape = (slots, self.kv_heads, max_length, self.head_dim)
        self.reserve()

    def reserve(self) -> None:
        """Make an empty cache."""
        # Zeros, not empty: a masked position has weight 0, and 0 times a stray NaN is NaN.
        kind = {"dtype": self.embedding.dtype, "device": self.device}
        self.keys, self.values = ([torch.zeros(self._shape, **kind) for _ in self.layers] for _ in range(2))

    def release(self) -> None:
        """Give the cache's memory back, to other processes too."""
        self.keys, self.values = [], []
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def prefill(
        self,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        slots: torch.Tensor,
        start: int = 0,
        deltas: Deltas | None = None,
    ) -> torch.Tensor:
        """Read prompts into their slots.

        Args:
            tokens: [rows, width], padded on the right with any token.
            lengths: [rows].
            slots: [rows].
            start: positions that the slots hold already; tokens and lengths are those beyond.
            deltas: what adapters add for these rows.

        Returns:
            Logits after the last token of each prompt, [rows, vocabulary].
        """
        rows, width = tokens.shape

        end = start + width
        positions = self._positions[start:end]
        mask = None
        if start:
            mask = torch.zeros(width, end, dtype=self.embedding.dtype, device=self.device)
            mask.masked_fill_(self._positions[None, :end] > positions[:, None], float("-inf"))

        whole = self._positions[None, :end] < (start + lengths)[:, None]

        # Padding on the right: plain causal attention never looks at it, and later tokens overwrite its cache.
        def attend(i: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self.keys[i][slots, :, start:end] = k
            self.values[i][slots, :, start:end] = v
            if start:
                k, v = self.keys[i][slots, :, :end], self.values[i][slots, :, :end]
            if i == len(self.layers) - 1:  # the last tokens only
                return F.scaled_dot_product_attention(q, k, v, whole[:, None, None], enable_gqa=True)
            return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=True)

        hidden = self._forward(tokens, positions.expand(rows, -1), attend, deltas, lengths - 1)
        return self._logits(hidden[:, 0], deltas)

    def decode(
        self, tokens: torch.Tensor, positions: torch.Tensor, width: int, deltas: Deltas | None = None
    ) -> torch.Tensor:
        """One token for each of the first slots.

        Args:
            tokens: [rows]; row i belongs to slot i.
            positions: [rows], where each token stands in its sequence.
            width: above every position.
            deltas: what adapters add for these rows.

        Returns:
            Logits after the tokens, [rows, vocabulary].
        """
        rows = len(tokens)
        slots = torch.arange(rows, device=self.device)
        seen = self._positions[None, :width] <= positions[:, None]
        mask = torch.zeros(rows, width, dtype=self.embedding.dtype, device=self.device)
        mask = mask.masked_fill_(~seen, float("-inf"))[:, None, None, :]

        def attend(i: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self.keys[i][slots, :, positions] = k[:, :, 0]
            self.values[i][slots, :, positions] = v[:, :, 0]
            # With one query per sequence, the query heads that share a key head can stand as its queries: no copy of K, V.
            q = q.reshape(rows, self.kv_heads, -1, self.head_dim)
            out = F.scaled_dot_product_attention(q, self.keys[i][:rows, :, :width], self.values[i][:rows, :, :width], mask)
            return out.reshape(rows, self.heads, 1, self.head_dim)

        return self._logits(self._forward(tokens[:, None], positions[:, None], attend, deltas)[:, 0], deltas)

    def copy(self, source: int, targets: list[int], length: int) -> None:
        """Give other slots the first `length` positions of a slot."""
        for cache in (*self.keys, *self.values):
            cache[targets, :, :length] = cache[source, :, :length]

    def _forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        attend: Attend,
        deltas: Deltas | None,
        last: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states [rows, width, size] of tokens [rows, width], or [rows, 1, size] of each row's `last` alone: the layers before need all
        tokens, the last layer their keys and values."""
        rows, width = tokens.shape
        heads, kv = self.heads, self.kv_heads
        cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        x = F.embedding(tokens, self.embedding)
        for i, layer in enumerate(self.layers):
            site = SITES * i
            qkv = _linear(self._normed(x, layer.attention_norm), layer.qkv, layer.qkv_bias, deltas, site)
            qkv = qkv.view(rows, width, heads + 2 * kv, self.head_dim).transpose(1, 2)
            qk, v = qkv[:, : heads + kv], qkv[:, heads + kv :]
            if layer.q_norm is not None and layer.k_norm is not None:
                qk = torch.cat([self._normed(qk[:, :heads], layer.q_norm), self._normed(qk[:, heads:], layer.k_norm)], 1)
            first, second = qk.chunk(2, -1)
            qk = qk * cos + torch.cat([-second, first], -1) * sin
            q = qk[:, :heads]
            if last is not None and i == len(self.layers) - 1:
                row = torch.arange(rows, device=self.device)
                q, x, width = q[row, :, last][:, :, None], x[row, last][:, None], 1
            mixed = attend(i, q, qk[:, heads:], v).transpose(1, 2).reshape(rows, width, -1)
            x = x + _linear(mixed, layer.out, layer.out_bias, deltas, site + 1)
            gate, up = _linear(self._normed(x, layer.mlp_norm), layer.gate_up, None, deltas, site + 2).chunk(2, -1)
            x = x + _linear(F.silu(gate) * up, layer.down, None, deltas, site + 3)
        return x

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, self.epsilon)

    def _logits(self, hidden: torch.Tensor, deltas: Deltas | None) -> torch.Tensor:
        return _linear(self._normed(hidden, self.norm)[:, None], self.head, None, deltas, -1)[:, 0]


def _linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, deltas: Deltas | None, site: int
) -> torch.Tensor:
    y = F.linear(x, weight, bias)
    if deltas is not None and (delta := deltas[site]) is not None:
        delta.add(x, y)
    return y


def linear_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Module name → weight, for what an adapter may change: every linear layer, and the head where it is not tied."""
    embedding = model.get_input_embeddings().weight
    return {
        name: module.weight.detach()
        for name, module in model.named_modules()
        # transformers' Conv1D (GPT-2) is a linear layer with a transposed weight.
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D") and module.weight is not embedding
    }


def _sites(model: PreTrainedModel) -> list[Site]:
    """Where adapters may add: the linear layers in the order of the forward pass, `SITES` of each layer, and the head."""
    names = {module: name for name, module in model.named_modules()}

    def site(*linears: nn.Linear) -> Site:
        outputs = tuple(linear.out_features for linear in linears)
        return Site(tuple(names[linear] for linear in linears), linears[0].in_features, outputs)

    found: list[Site] = []
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        found += [
            site(attention.q_proj, attention.k_proj, attention.v_proj),
            site(attention.o_proj),
            site(mlp.gate_proj, mlp.up_proj),
            site(mlp.down_proj),
        ]
    head: Any = model.get_output_embeddings()
    return [*found, site(head)]


def _layer(block: Any) -> Layer:
    attention, mlp = block.self_attn, block.mlp
    q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
    return Layer(
        attention_norm=block.input_layernorm.weight.detach(),
        qkv=_fuse(q, k, v),
        qkv_bias=None if q.bias is None else torch.cat([q.bias, k.bias, v.bias]).detach(),
        q_norm=attention.q_norm.weight.detach() if hasattr(attention, "q_norm") else None,
        k_norm=attention.k_norm.weight.detach() if hasattr(attention, "k_norm") else None,
        out=attention.o_proj.weight.detach(),
        out_bias=None if attention.o_proj.bias is None else attention.o_proj.bias.detach(),
        mlp_norm=block.post_attention_layernorm.weight.detach(),
        gate_up=_fuse(mlp.gate_proj, mlp.up_proj),
        down=mlp.down_proj.weight.detach(),
    )


def _fuse(*linears: nn.Linear) -> torch.Tensor:
    """One weight of several linears; theirs become views of it, so that nothing is held twice."""
    fused = torch.cat([linear.weight.detach() for linear in linears])
    for linear, part in zip(linears, fused.split([linear.out_features for linear in linears]), strict=True):
        linear.weight.data = part
    return fused


@torch.inference_mode()
def disagreement(decoder: Decoder, model: PreTrainedModel) -> str | None:
    """Compare a prompt's, read whole and in two parts, and the next token's log-probabilities with the model's own; None when they agree."""
    length = min(24, decoder.cos.shape[0])
    vocabulary = decoder.embedding.shape[0]
    probe = torch.tensor([(7 * i + 3) % vocabulary for i in range(length)], device=decoder.device)
    expected = model(input_ids=probe[None], use_cache=False).logits[0, -2:].float().log_softmax(-1)
    prompt, last = probe[None, :-1], probe[-1:]
    at = torch.tensor([length - 1], device=decoder.device)
    read = decoder.prefill(prompt, at, torch.zeros_like(at))
    half = (length - 1) // 2
    rest = decoder.prefill(prompt[:, half:], at - half, torch.zeros_like(at), half)
    decoded = decoder.decode(last, at, length)
    found = torch.cat([read, rest, decoded]).float().log_softmax(-1)
    expected = expected[[0, 0, 1]]
    # 16-bit sums in another order differ by rounding; the mean tells that apart from another function.
    error = float((found - expected).abs().mean())
    tolerance = 1e-4 if decoder.embedding.dtype == torch.float32 else 0.1
    return (
        None if error <= tolerance else f"its log-probabilities differ by {error:.2g} from the model's (allowed {tolerance})"
    )
