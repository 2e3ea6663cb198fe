"""An engine for any causal language model of transformers: one batch at a time, simple before fast."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, PreTrainedModel

from plumbline.models.virtual_tokens import Prefix
from plumbline.rollout.adapter import AdaptedWeights
from plumbline.rollout.decoder import linear_weights
from plumbline.rollout.engine import NO_ADAPTER, Request, Scored, Scoring, Token
from plumbline.rollout.sampling import Running, check_request, draw
from plumbline.rollout.scoring import Scorer

if TYPE_CHECKING:
    from peft import LoraConfig


class FallbackEngine:
    """See `Engine`. The model's own forward pass and cache class; prompts are padded on the left.

    A batch is admitted when the one before it is done, so mixed lengths leave rows idle.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        adapter_config: LoraConfig | None,
        eos_token_ids: Sequence[int],
        slots: int,
        max_length: int,
        prefix: Prefix | None = None,
    ) -> None:
        self.adapter_version = NO_ADAPTER
        self.max_length = max_length
        self.max_scored = max_length + 1
        self._model = model
        self._prefix = [(keys.to(model.device), values.to(model.device)) for keys, values in prefix or []]
        self._scorer = Scorer(model, self.max_scored, self._prefix)
        self._weights = AdaptedWeights(adapter_config, linear_weights(model))
        self._eos = frozenset(eos_token_ids)
        self._slots = slots
        self._unfinished: set[str] = set()
        self._accepts = set(inspect.signature(model.forward).parameters)
        self._queue: deque[Running] = deque()
        self._live: list[Running] = []
        self._cache: Any = None
        self._mask = torch.empty(0)

    @property
    def busy(self) -> bool:
        return bool(self._unfinished)

    def submit(self, request: Request) -> None:
        check_request(request, self._unfinished, self.max_length, self._model.get_input_embeddings().weight.shape[0])
        self._queue.append(Running(request))
        self._unfinished.add(request.id)

    def cancel(self, request_id: str) -> None:
        self._unfinished.discard(request_id)
        self._queue = deque(waiting for waiting in self._queue if waiting.request.id != request_id)
        self._keep([row for row, held in enumerate(self._live) if held.request.id != request_id])

    @torch.inference_mode()
    def step(self) -> list[Token]:
        if not self.busy:
            return []
        device = self._model.device
        if self._live:
            tokens = torch.tensor([[held.tokens[-1]] for held in self._live], device=device)
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._live), 1)], 1)
        else:
            self._live = [self._queue.popleft() for _ in range(min(self._slots, len(self._queue)))]
            contexts = [held.context for held in self._live]
            width = max(map(len, contexts))
            tokens = torch.tensor([[0] * (width - len(context)) + list(context) for context in contexts], device=device)
            virtual = self._prefix[0][0].shape[-2] if self._prefix else 0
            mask = [[1] * virtual + [0] * (width - len(context)) + [1] * len(context) for context in contexts]
            self._mask = torch.tensor(mask, device=device)
            self._cache = self._first_cache(len(contexts))
        drawn = [
            held.advance(token, self._eos, self.max_length)
            for held, token in zip(self._live, draw(self._forward(tokens), self._live), strict=True)
        ]
        self._unfinished -= {token.request_id for token in drawn if token.finish_reason}
        self._keep([row for row, token in enumerate(drawn) if token.finish_reason is None])
        return drawn

    def score(self, requests: Sequence[Scoring]) -> Iterator[list[Scored]]:
        return self._scorer.score(requests)

    def load_adapter(self, tensors: dict[str, torch.Tensor], version: int) -> None:
        self._weights.load(tensors)
        self.adapter_version = version
        self._forget()

    def pause(self) -> None:
        self._forget()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    def resume(self) -> None:
        """The next batch makes a cache of its own."""

    def _forget(self) -> None:
        """Leave the cache, such as that of old weights: unfinished sequences are read again."""
        self._scorer.forget()
        self._queue.extendleft(reversed(self._live))
        self._keep([])

    def _forward(self, tokens: torch.Tensor) -> torch.Tensor:
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        options = {"position_ids": positions, "logits_to_keep": 1}
        output = self._model(
            input_ids=tokens,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            **{name: value for name, value in options.items() if name in self._accepts},
        )
        self._cache = output.past_key_values
        return output.logits[:, -1]

    def _first_cache(self, rows: int) -> DynamicCache | None:
        """What is read before any prompt. None: the model makes a cache of the class it needs."""
        if not self._prefix:
            return None
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._prefix):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        return cache

    def _keep(self, rows: list[int]) -> None:
        """Drop all other rows of the batch."""
        if len(rows) == len(self._live):
            return
        self._live = [self._live[row] for row in rows]
        if not rows:
            self._cache = None
            return
        kept = torch.tensor(rows, device=self._mask.device)
        self._mask = self._mask[kept]
        self._cache.batch_select_indices(kept)
