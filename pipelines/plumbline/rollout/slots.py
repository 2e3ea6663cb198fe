"""Continuous batching over cache slots: a finished sequence's slot is refilled from the queue before the next token."""

from __future__ import annotations

from bisect import bisect
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from plumbline.rollout.adapter import AdaptedWeights
from plumbline.rollout.decoder import Decoder, linear_weights
from plumbline.rollout.engine import NO_ADAPTER, Request, Scored, Scoring, Token
from plumbline.rollout.low_rank import LowRank, SlotDeltas
from plumbline.rollout.sampling import Running, check_request, common_length, draw
from plumbline.rollout.scoring import Scorer

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

PREFILL_TOKENS = 8192  # padding included; bounds the memory of one prefill
SHARED_TOKENS = 32  # a shared beginning is copied from another slot where it is at least as long
PREFILL_SPREAD = 1.25  # prompts are read together while the longest is at most this much longer than the shortest


class _Slot(Running):
    """A request that lives, or will live, in a slot.

    Attributes:
        read: what its slot was filled with, and others with the same prompt can copy.
        after: logits after that, [vocabulary].
    """

    read: tuple[int, ...] = ()
    after: torch.Tensor | None = None

    @property
    def adapter(self) -> LowRank | None:
        return self.request.adapter


@dataclass(frozen=True, eq=False)
class _Idle:
    """A text whose keys and values are still in a free slot: others that begin alike, such as a chat's next turn, copy them."""

    read: tuple[int, ...]
    adapter: LowRank | None

    def goes_on_after(self, other: _Idle) -> bool:
        """Whether it begins with all of the other; nearly always its last token tells."""
        end = len(other.read)
        same = self.adapter is other.adapter and end <= len(self.read) and self.read[end - 1] == other.read[-1]
        return same and self.read[:end] == other.read


class SlotEngine:
    """See `Engine` and `Mixing`. Live sequences fill slots 0 to n-1, so that a decode step reads the cache without gathering."""

    def __init__(
        self,
        model: PreTrainedModel,
        adapter_config: LoraConfig | None,
        eos_token_ids: Sequence[int],
        slots: int,
        max_length: int,
    ) -> None:
        self.adapter_version = NO_ADAPTER
        self.max_length = max_length
        self.max_scored = max_length + 1
        self.decoder = Decoder(model, slots, max_length)
        self._scorer = Scorer(model, self.max_scored, sites=self.decoder.sites)  # its weights are those of the decoder
        self._linear_weights = linear_weights(model)
        self._weights = AdaptedWeights(adapter_config, self._linear_weights)
        self._eos = frozenset(eos_token_ids)
        self._slots = slots
        self._unfinished: set[str] = set()
        self._queue: deque[_Slot] = deque()
        self._live: list[_Slot] = []
        self._idle: dict[int, _Idle] = {}  # by slot, the latest used last
        self._deltas = SlotDeltas(self.decoder.sites, slots, self.decoder.embedding)

    @property
    def busy(self) -> bool:
        return bool(self._unfinished)

    def submit(self, request: Request) -> None:
        check_request(request, self._unfinished, self.max_length, self.decoder.embedding.shape[0], self.decoder.sites)
        self._queue.append(_Slot(request))
        self._unfinished.add(request.id)

    def cancel(self, request_id: str) -> None:
        self._unfinished.discard(request_id)
        self._queue = deque(waiting for waiting in self._queue if waiting.request.id != request_id)
        self._free([slot for slot, held in enumerate(self._live) if held.request.id == request_id])

    @torch.inference_mode()
    def step(self) -> list[Token]:
        return self._admit() + self._decode()

    def score(self, requests: Sequence[Scoring]) -> Iterator[list[Scored]]:
        return self._scorer.score(requests)

    def prepare_adapter(self, config: LoraConfig, tensors: dict[str, torch.Tensor]) -> LowRank:
        return LowRank.of(self.decoder.sites, self._linear_weights, config, tensors)

    def forget_adapter(self, adapter: LowRank) -> None:
        self._idle = {slot: idle for slot, idle in self._idle.items() if idle.adapter is not adapter}
        self._deltas.forget(adapter)
        self._scorer.forget()

    def load_adapter(self, tensors: dict[str, torch.Tensor], version: int) -> None:
        self._weights.load(tensors)
        self.adapter_version = version
        self._forget()

    def pause(self) -> None:
        self._forget()
        self.decoder.release()
        self._deltas.release()

    def resume(self) -> None:
        self.decoder.reserve()

    def _forget(self) -> None:
        """Leave the cache, such as that of old weights: unfinished sequences are read again."""
        self._scorer.forget()
        self._queue.extendleft(reversed(self._live))
        self._live.clear()
        self._idle.clear()

    def _admit(self) -> list[Token]:
        """Fill free slots from the queue and draw the first tokens; a prompt that several share is read once."""
        first = len(self._live)
        fresh = [self._queue.popleft() for _ in range(min(self._slots - first, len(self._queue)))]
        if not fresh:
            return []
        self._live += fresh
        for held in fresh:
            self._touch(held)
        self._clear(range(first, len(self._live)))
        owners = {(held.adapter, held.read): slot for slot, held in reversed(list(enumerate(self._live[:first])))}
        unread: list[int] = []
        copies: dict[int, list[int]] = {}
        for slot, held in enumerate(fresh, start=first):
            held.read = held.context
            owner = owners.setdefault((held.adapter, held.read), slot)
            if owner == slot:
                unread.append(slot)
            else:
                copies.setdefault(owner, []).append(slot)
        self._read_all(unread, first)
        for slot in range(first, len(self._live)):
            self._idle.pop(slot, None)
        for owner, targets in copies.items():
            self.decoder.copy(owner, targets, len(self._live[owner].read))
            for slot in targets:
                self._live[slot].after = self._live[owner].after
                self._live[slot].cached = len(self._live[owner].read)
        return self._draw(first, torch.stack([held.after for held in fresh if held.after is not None]))

    def _touch(self, held: _Slot) -> None:
        """Let the idle text that shares the most with a prompt be the last one to go."""
        text, begin = held.context, held.context[:SHARED_TOKENS]
        alike = [
            (common_length(idle.read, text), slot)
            for slot, idle in self._idle.items()
            if idle.adapter is held.adapter and idle.read[:SHARED_TOKENS] == begin
        ]
        if alike:
            _, slot = max(alike)
            self._idle[slot] = self._idle.pop(slot)

    def _clear(self, slots: range) -> None:
        """Move idle texts out of slots that are wanted, to where the oldest lie; where there is no room they are left, for who comes there."""
        for slot in slots:
            if slot in self._idle:
                idle = self._idle.pop(slot)
                to = self._place(idle, slots.stop)
                if to is None:
                    self._idle[slot] = idle
                else:
                    self.decoder.copy(slot, [to], len(idle.read))
                    self._idle[to] = idle

    def _place(self, idle: _Idle, above: int) -> int | None:
        """A slot from `above` on where the text may be kept: of a text that it goes on after, else an empty or the oldest one."""
        free = range(above, self._slots)
        old = [slot for slot in self._idle if slot in free]
        for slot in old:
            if idle.goes_on_after(self._idle[slot]):
                del self._idle[slot]
                return slot
        empty = next((slot for slot in free if slot not in self._idle), None)
        if empty is None and old:
            del self._idle[old[0]]
            return old[0]
        return empty

    def _read_all(self, unread: list[int], first: int) -> None:
        """Read prompts. Of those that begin as another, which is there or among themselves, only the rest is read.

        Args:
            unread: slots.
            first: what live slots from here on hold is not their own yet, also of those that are to be copied.
        """
        texts = {slot: held.read for slot, held in enumerate(self._live)}
        texts |= {slot: idle.read for slot, idle in self._idle.items() if slot >= len(self._live)}
        there = [(slot, held.adapter) for slot, held in enumerate(self._live[:first])]
        there += [(slot, idle.adapter) for slot, idle in self._idle.items() if slot >= len(self._live)]
        leaders: list[int] = []
        # Owner → (length in common, slot): of texts that are there, and of leaders, which are to be read first.
        followers: tuple[dict[int, list[tuple[int, int]]], ...] = ({}, {})
        for adapter in dict.fromkeys(self._live[slot].adapter for slot in unread):
            known = sorted((slot for slot, other in there if other is adapter), key=texts.__getitem__)
            leader: list[int] = []
            for slot in sorted((slot for slot in unread if self._live[slot].adapter is adapter), key=texts.__getitem__):
                # Of sorted texts those that share the most are neighbours.
                at = bisect(known, texts[slot], key=texts.__getitem__)
                near = [(common_length(texts[one], texts[slot]), one) for one in known[max(at - 1, 0) : at + 1]]
                here = self._idle.get(slot)  # what its own slot holds still
                if here is not None and here.adapter is adapter:
                    near.append((common_length(here.read, texts[slot]), slot))
                common, owner = max(near, default=(0, slot))
                ahead = common_length(texts[leader[0]], texts[slot]) if leader else 0
                if ahead >= (common if common >= SHARED_TOKENS else 0) + SHARED_TOKENS:
                    followers[1].setdefault(leader[0], []).append((ahead, slot))
                    continue
                leader = [slot]
                if common >= SHARED_TOKENS:
                    followers[0].setdefault(owner, []).append((common, slot))
                else:
                    leaders.append(slot)
        for batch in _batches(leaders, [len(texts[slot]) for slot in leaders]):
            self._read(batch, 0)
        for owner, found in [*followers[0].items(), *followers[1].items()]:
            for common, slots in _alike(found):
                start = min(common, *(len(texts[slot]) - 1 for slot in slots))  # one token is read, for what comes after it
                self.decoder.copy(owner, [slot for slot in slots if slot != owner], start)
                for batch in _batches(slots, [len(texts[slot]) - start for slot in slots]):
                    self._read(batch, start)

    def _read(self, slots: list[int], start: int) -> None:
        prompts = [self._live[slot].read[start:] for slot in slots]
        width = max(map(len, prompts))
        tokens = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts])
        where = torch.tensor([[len(prompt) for prompt in prompts], slots]).to(self.decoder.device)
        deltas = self._deltas.rows([self._live[slot].adapter for slot in slots], slots)
        logits = self.decoder.prefill(tokens.to(self.decoder.device), where[0], where[1], start, deltas)
        for slot, after in zip(slots, logits, strict=True):
            self._live[slot].after = after.clone()  # a view would keep the whole batch's logits
            self._live[slot].cached = start

    def _decode(self) -> list[Token]:
        if not self._live:
            return []
        inputs = torch.tensor([[held.tokens[-1] for held in self._live], [held.length - 1 for held in self._live]])
        tokens, positions = inputs.to(self.decoder.device)
        deltas = self._deltas.rows([held.adapter for held in self._live], range(len(self._live)))
        return self._draw(0, self.decoder.decode(tokens, positions, max(held.length for held in self._live), deltas))

    def _draw(self, first: int, logits: torch.Tensor) -> list[Token]:
        """Draw for the slots from `first` on, and free the slots of those that are done."""
        running = self._live[first:]
        drawn = [
            held.advance(token, self._eos, self.max_length)
            for held, token in zip(running, draw(logits, running), strict=True)
        ]
        self._unfinished -= {token.request_id for token in drawn if token.finish_reason}
        self._free([slot for slot, token in enumerate(drawn, start=first) if token.finish_reason])
        return drawn

    def _free(self, slots: list[int]) -> None:
        """Close the gaps with the last live slots. From the end, so that what moves is always alive. What goes is kept where there is room."""
        for slot in sorted(slots, reverse=True):
            gone = self._live[slot]
            last = self._live.pop()
            idle = _Idle(gone.context[:-1], gone.adapter)  # the last token was drawn and not read
            worth = len(idle.read) >= SHARED_TOKENS
            if slot == len(self._live):
                if worth:
                    self._idle[slot] = idle
                continue
            to = self._place(idle, len(self._live) + 1) if worth else None
            if to is not None:
                self.decoder.copy(slot, [to], len(idle.read))
                self._idle[to] = idle
            self.decoder.copy(len(self._live), [slot], last.length)
            self._live[slot] = last


def _alike(followers: list[tuple[int, int]]) -> Iterator[tuple[int, list[int]]]:
    """Followers of one text in groups that begin at nearly the same place: (what all of a group have in common, their slots)."""
    group: list[tuple[int, int]] = []
    for common, slot in sorted(followers, reverse=True):
        if group and group[0][0] - common > SHARED_TOKENS:
            yield group[-1][0], [one for _, one in group]
            group = []
        group.append((common, slot))
    yield group[-1][0], [one for _, one in group]


def _batches(slots: list[int], lengths: list[int]) -> Iterator[list[int]]:
    """Slots in batches of like lengths, each within the token budget (one long prompt may exceed it)."""
    batch: list[int] = []
    shortest = 0
    for length, slot in sorted(zip(lengths, slots, strict=True)):
        if batch and (length > shortest * PREFILL_SPREAD or length * (len(batch) + 1) > PREFILL_TOKENS):
            yield batch
            batch = []
        if not batch:
            shortest = length
        batch.append(slot)
    if batch:
        yield batch
