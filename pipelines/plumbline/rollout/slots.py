"""Continuous batching over cache slots: a finished sequence's slot is refilled from the queue before the next token."""

from __future__ import annotations

from bisect import bisect
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from peft import LoraConfig
from transformers import PreTrainedModel

from plumbline.rollout.adapter import AdaptedWeights
from plumbline.rollout.decoder import Decoder, linear_weights
from plumbline.rollout.engine import NO_ADAPTER, Request, Scored, Scoring, Token
from plumbline.rollout.sampling import Running, check_request, common_length, draw
from plumbline.rollout.scoring import Scorer

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


class SlotEngine:
    """See `Engine`. Live sequences fill slots 0 to n-1, so that a decode step reads the cache without gathering."""

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
        self._scorer = Scorer(model, self.max_scored)  # its weights are those of the decoder
        self._weights = AdaptedWeights(adapter_config, linear_weights(model))
        self._eos = frozenset(eos_token_ids)
        self._slots = slots
        self._unfinished: set[str] = set()
        self._queue: deque[_Slot] = deque()
        self._live: list[_Slot] = []

    @property
    def busy(self) -> bool:
        return bool(self._unfinished)

    def submit(self, request: Request) -> None:
        check_request(request, self._unfinished, self.max_length, self.decoder.embedding.shape[0])
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

    def load_adapter(self, tensors: dict[str, torch.Tensor], version: int) -> None:
        self._weights.load(tensors)
        self.adapter_version = version
        self._forget()

    def pause(self) -> None:
        self._forget()
        self.decoder.release()

    def resume(self) -> None:
        self.decoder.reserve()

    def _forget(self) -> None:
        """Leave the cache, such as that of old weights: unfinished sequences are read again."""
        self._scorer.forget()
        self._queue.extendleft(reversed(self._live))
        self._live.clear()

    def _admit(self) -> list[Token]:
        """Fill free slots from the queue and draw the first tokens; a prompt that several share is read once."""
        first = len(self._live)
        fresh = [self._queue.popleft() for _ in range(min(self._slots - first, len(self._queue)))]
        if not fresh:
            return []
        self._live += fresh
        owners = {held.read: slot for slot, held in reversed(list(enumerate(self._live[:first])))}
        unread: list[int] = []
        copies: dict[int, list[int]] = {}
        for slot, held in enumerate(fresh, start=first):
            held.read = held.context
            owner = owners.setdefault(held.read, slot)
            if owner == slot:
                unread.append(slot)
            else:
                copies.setdefault(owner, []).append(slot)
        self._read_all(unread, list(owners.values()))
        for owner, targets in copies.items():
            self.decoder.copy(owner, targets, len(self._live[owner].read))
            for slot in targets:
                self._live[slot].after = self._live[owner].after
        return self._draw(first, torch.stack([held.after for held in fresh if held.after is not None]))

    def _read_all(self, unread: list[int], owners: list[int]) -> None:
        """Read prompts. Of those that begin as another, in `owners` or among themselves, only the rest is read."""
        texts = {slot: self._live[slot].read for slot in owners}
        known = sorted(set(owners) - set(unread), key=texts.__getitem__)
        followers: dict[int, list[int]] = {}
        leaders: list[int] = []
        for slot in sorted(unread, key=texts.__getitem__):
            # Of sorted texts those that share the most are neighbours.
            at = bisect(known, texts[slot], key=texts.__getitem__)
            near = [*known[max(at - 1, 0) : at + 1], *leaders[-1:]]
            best = max(near, key=lambda one: common_length(texts[one], texts[slot]), default=slot)
            if best != slot and common_length(texts[best], texts[slot]) >= SHARED_TOKENS:
                followers.setdefault(best, []).append(slot)
            else:
                leaders.append(slot)
        for batch in _batches(leaders, [len(texts[slot]) for slot in leaders]):
            self._read(batch, 0)
        for owner, slots in followers.items():
            # At least one token is read, for what comes after it.
            start = min(min(common_length(texts[owner], texts[slot]), len(texts[slot]) - 1) for slot in slots)
            self.decoder.copy(owner, slots, start)
            for batch in _batches(slots, [len(texts[slot]) - start for slot in slots]):
                self._read(batch, start)

    def _read(self, slots: list[int], start: int) -> None:
        prompts = [self._live[slot].read[start:] for slot in slots]
        width = max(map(len, prompts))
        tokens = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts])
        where = torch.tensor([[len(prompt) for prompt in prompts], slots]).to(self.decoder.device)
        logits = self.decoder.prefill(tokens.to(self.decoder.device), where[0], where[1], start)
        for slot, after in zip(slots, logits, strict=True):
            self._live[slot].after = after.clone()  # a view would keep the whole batch's logits

    def _decode(self) -> list[Token]:
        if not self._live:
            return []
        inputs = torch.tensor([[held.tokens[-1] for held in self._live], [held.length - 1 for held in self._live]])
        tokens, positions = inputs.to(self.decoder.device)
        return self._draw(0, self.decoder.decode(tokens, positions, max(held.length for held in self._live)))

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
        """Close the gaps with the last live slots. From the end, so that what moves is always alive."""
        for slot in sorted(slots, reverse=True):
            last = self._live.pop()
            if slot < len(self._live):
                self.decoder.copy(len(self._live), [slot], last.length)
                self._live[slot] = last


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
