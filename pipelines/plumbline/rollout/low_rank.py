"""LoRA adapters beside the weights, so that the rows of one batch may have different ones.

Each adapter adds B·A·x to what a linear layer makes of x (S-LoRA, arXiv 2311.03285; Punica, arXiv 2310.18547). Rows that differ are
multiplied in batches of matrices that lie slot by slot, as keys and values do: to gather them at each step would cost more than the product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from plumbline.errors import InvalidInput
from plumbline.rollout.adapter import AdaptedWeights

if TYPE_CHECKING:
    from peft import LoraConfig


@dataclass(frozen=True)
class Site:
    """One linear layer of the decoder, of one or several modules that are fused along their outputs.

    Attributes:
        modules: their names in the model.
        inputs: of all of them.
        outputs: of each.
    """

    modules: tuple[str, ...]
    inputs: int
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """What one module of a site adds. `ranks` are its columns of the site's `down`, `outputs` its columns of what the site gives."""

    ranks: slice
    outputs: slice
    up: torch.Tensor  # [rank, outputs], with rows [rows, rank, outputs]; the scale is in it


@dataclass(frozen=True)
class Delta:
    """What adapters add at one site: all rows the same, or each its own."""

    down: torch.Tensor  # [inputs, ranks], with rows [rows, inputs, ranks]
    parts: tuple[Part, ...]

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """y += B·A·x in place; x is [rows, width, inputs], y [rows, width, outputs]."""
        if self.down.dim() == 2:
            x, y = x.flatten(0, 1), y.view(-1, y.shape[-1])
            low = x @ self.down
            for part in self.parts:
                y[:, part.outputs].addmm_(low[:, part.ranks], part.up)
            return
        low = torch.bmm(x, self.down)
        for part in self.parts:  # `baddbmm_` on some columns of y would be much slower
            y[..., part.outputs] += torch.bmm(low[..., part.ranks], part.up)

    def of(self, rows: torch.Tensor | slice) -> Delta:
        """Some of the rows."""
        return Delta(self.down[rows], tuple(Part(part.ranks, part.outputs, part.up[rows]) for part in self.parts))


Deltas = Sequence[Delta | None]
"""One for each site, None where nothing is added."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """An adapter, ready for a decoder.

    Attributes:
        sites: of the decoder that it is for.
        deltas: what it adds at each site.
        modules: module → what it adds: A transposed [inputs, rank], and B transposed, scaled, [rank, outputs].
        rank: the largest of its modules.
        bytes: of memory that it takes.
    """

    sites: Sequence[Site]
    deltas: Deltas
    modules: dict[str, tuple[torch.Tensor, torch.Tensor]]
    rank: int
    bytes: int

    @classmethod
    def of(
        cls,
        sites: Sequence[Site],
        weights: dict[str, torch.Tensor],
        config: LoraConfig,
        tensors: dict[str, torch.Tensor],
    ) -> LowRank:
        """An adapter from PEFT's configuration and tensors.

        Args:
            sites: of the decoder.
            weights: module → weight, for shapes, dtype and device.
            config: plain LoRA.
            tensors: as `peft.get_peft_model_state_dict` names them.

        Raises:
            InvalidInput: it is another kind of adapter, does not fit the model or holds numbers that are none.
        """
        if config.use_dora:
            raise InvalidInput(
                "adapter: DoRA changes the lengths of weights, which cannot be added beside them; it is served merged"
            )
        shapes = AdaptedWeights(config, weights)
        modules: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name, (a, b, _) in shapes.pairs(tensors).items():
            kind = weights[name]
            scaled = b.float() * shapes.scale(name)
            pair = (a.T.to(kind, copy=True).contiguous(), scaled.T.to(kind, copy=True).contiguous())
            if not all(bool(one.isfinite().all()) for one in pair):
                raise InvalidInput(f"adapter: '{name}' holds numbers that are not finite in {kind.dtype}; train it again")
            modules[name] = pair
        known = {module for site in sites for module in site.modules}
        if modules.keys() - known:
            raise InvalidInput(f"adapter: '{min(modules.keys() - known)}' is no layer that a decoder can add to")
        deltas = [_delta(site, modules) for site in sites]
        taken = sum(one.nbytes for pair in modules.values() for one in pair)
        fused = sum(delta.down.nbytes for delta in deltas if delta is not None and len(delta.parts) > 1)
        return cls(sites, deltas, modules, max((b.shape[0] for _, b in modules.values()), default=1), taken + fused)


GONE = LowRank((), (), {}, 0, 0)


def _delta(site: Site, modules: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Delta | None:
    downs, parts, ranks, outputs = [], [], 0, 0
    for module, width in zip(site.modules, site.outputs, strict=True):
        if module in modules:
            down, up = modules[module]
            downs.append(down)
            parts.append(Part(slice(ranks, ranks + up.shape[0]), slice(outputs, outputs + width), up))
            ranks += up.shape[0]
        outputs += width
    if not parts:
        return None
    return Delta(downs[0] if len(downs) == 1 else torch.cat(downs, 1), tuple(parts))


class SlotDeltas:
    """What each slot's adapter adds, for batches whose rows differ.

    Args:
        sites: of the decoder.
        slots: how many there are.
        like: a tensor of the dtype and on the device to use.
    """

    def __init__(self, sites: Sequence[Site], slots: int, like: torch.Tensor) -> None:
        self._sites, self._slots, self._like = sites, slots, like
        self.release()

    def release(self) -> None:
        """Give the memory back."""
        self._rank = 0
        self._held: list[LowRank | None] = [None] * self._slots
        self._deltas: list[Delta | None] = [None] * len(self._sites)

    def forget(self, adapter: LowRank) -> None:
        """Hold no reference to an adapter that was removed: its memory is counted as free."""
        self._held = [GONE if one is adapter else one for one in self._held]

    def rows(self, adapters: Sequence[LowRank | None], slots: Sequence[int]) -> Deltas | None:
        """What is added to the rows of a batch; None: nothing.

        Args:
            adapters: of each row.
            slots: of each row.
        """
        first = adapters[0]
        if all(one is first for one in adapters):
            return None if first is None else first.deltas
        there = [one for one in adapters if one is not None]
        self._reserve(max(one.rank for one in there), [any(one.deltas[i] for one in there) for i in range(len(self._sites))])
        for slot, adapter in zip(slots, adapters, strict=True):
            if self._held[slot] is not adapter:
                self._put(slot, adapter)
        rows = slice(len(slots))
        if list(slots) == list(range(len(slots))):
            return [delta and delta.of(rows) for delta in self._deltas]
        index = torch.tensor(slots, device=self._like.device)
        return [delta and delta.of(index) for delta in self._deltas]

    def _reserve(self, rank: int, wanted: Sequence[bool]) -> None:
        """Make room for adapters of a rank at the sites where there are any. An adapter that a slot holds adds nothing at new ones."""
        if rank > self._rank:
            self.release()
            self._rank = rank
        for i, site in enumerate(self._sites):
            if wanted[i] and self._deltas[i] is None:
                self._deltas[i] = self._empty(site)

    def _empty(self, site: Site) -> Delta:
        parts, at, rank = [], 0, self._rank
        for i, width in enumerate(site.outputs):
            up = self._like.new_zeros(self._slots, rank, width)
            parts.append(Part(slice(i * rank, (i + 1) * rank), slice(at, at + width), up))
            at += width
        return Delta(self._like.new_zeros(self._slots, site.inputs, len(parts) * rank), tuple(parts))

    def _put(self, slot: int, adapter: LowRank | None) -> None:
        for site, delta in zip(self._sites, self._deltas, strict=True):
            for module, part in zip(site.modules, delta.parts if delta is not None else (), strict=False):
                down, up = delta.down[slot, :, part.ranks], part.up[slot]
                pair = adapter.modules.get(module) if adapter is not None else None
                rank = pair[1].shape[0] if pair is not None else 0
                if pair is not None:
                    down[:, :rank].copy_(pair[0])
                    up[:rank].copy_(pair[1])
                down[:, rank:].zero_()
                up[rank:].zero_()
        self._held[slot] = adapter
