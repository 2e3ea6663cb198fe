"""An engine on transformers' continuous batching: pages of cache in the place of padded rows, for models without a fused decoder.

It is driven step by step in the caller's thread, with none of its own, and draws as every engine here does. So an error comes out of
`step` and not in a field of a partial result, and log-probabilities are those that tokens were drawn with, whatever the sampling.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager
from transformers.generation.continuous_batching.requests import RequestState

from plumbline.errors import PlumblineError
from plumbline.rollout.adapter import AdaptedWeights
from plumbline.rollout.decoder import linear_weights
from plumbline.rollout.engine import NO_ADAPTER, Request, Scored, Scoring, Token
from plumbline.rollout.probe import disagreement
from plumbline.rollout.sampling import Running, check_request, draw
from plumbline.rollout.scoring import Scorer

if TYPE_CHECKING:
    from peft import LoraConfig

PAGE_TOKENS = 64
READ_TOKENS = 2048  # read in one step; longer prompts take several. The mask is this times all pages


class ContinuousEngine:
    """See `Engine`. A finished request's pages go to the next one before the next token.

    Raises:
        ValueError: the model's attention has no paged kind that leaves the model itself as it is.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        adapter_config: LoraConfig | None,
        eos_token_ids: Sequence[int],
        slots: int,
        max_length: int,
    ) -> None:
        attention = model.config._attn_implementation
        if attention != "sdpa":
            raise ValueError(f"its attention is {attention}, not sdpa")
        self.adapter_version = NO_ADAPTER
        self.max_length = max_length
        self.max_scored = max_length + 1
        self._model = model
        self._scorer = Scorer(model, self.max_scored)
        self._weights = AdaptedWeights(adapter_config, linear_weights(model))
        self._eos = frozenset(eos_token_ids)
        self._running: dict[str, Running] = {}
        self._count = 0
        self._drawn: list[Token] = []
        self._config = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=slots * (math.ceil(max_length / PAGE_TOKENS) + 1),  # else it takes all memory there is
            max_batch_tokens=max(READ_TOKENS, slots),
            max_requests_per_batch=slots,
            allow_block_sharing=False,  # pages of an earlier adapter would be taken for the present one's
            use_async_batching=False,
            use_cuda_graph=False,
            auto_switch_to_flash=False,  # it fetches kernels, and turns the model's own attention into another
        )
        self.resume()

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def submit(self, request: Request) -> None:
        unfinished = {held.request.id for held in self._running.values()}
        check_request(request, unfinished, self.max_length, self._model.get_input_embeddings().weight.shape[0])
        self._count += 1
        self._running[str(self._count)] = held = Running(request)
        self._queue(str(self._count), held)

    def cancel(self, request_id: str) -> None:
        for key in [key for key, held in self._running.items() if held.request.id == request_id]:
            del self._running[key]
            self._processor.scheduler.set_request_cancellation(key)

    def step(self) -> list[Token]:
        if not self.busy:
            return []
        self._drawn = []
        if not self._processor.prepare_next_batch():
            raise PlumblineError(f"continuous batching holds none of {len(self._running)} unfinished requests")
        self._processor._generation_step(self._model)
        self._processor.update_batch()
        results = self._processor.output_router.output_queue
        while not results.empty():
            result = results.get()
            if result.error is not None:
                raise PlumblineError(f"continuous batching gave up a request: {result.error}")
            del self._running[result.request_id]
        return self._drawn

    def score(self, requests: Sequence[Scoring]) -> Iterator[list[Scored]]:
        return self._scorer.score(requests)

    def load_adapter(self, tensors: dict[str, torch.Tensor], version: int) -> None:
        self._weights.load(tensors)
        self.adapter_version = version
        self._scorer.forget()
        self._processor.reset()  # what the cache holds came from the old weights
        self._read_again()

    def pause(self) -> None:
        del self._processor
        self._scorer.forget()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    def resume(self) -> None:
        model, device = self._model, self._model.device
        whole = GenerationConfig(do_sample=False, eos_token_id=-1)  # nothing between the logits and `draw`
        with torch.random.fork_rng([] if device.type == "cpu" else [device]):  # it seeds all of torch
            self._processor = ContinuousBatchingManager(model, whole, self._config)._create_batch_processor()
        self._processor.model_runner._sample = self._sample
        self._read_again()

    def _read_again(self) -> None:
        for key, held in self._running.items():
            self._queue(key, held)

    def _queue(self, key: str, held: Running) -> None:
        left = min(held.request.sampling.max_tokens - len(held.tokens), self.max_length - held.length)
        state = RequestState(key, list(held.context), max_new_tokens=left, eos_token_id=sorted(self._eos))
        self._processor.scheduler.add_waiting_request(state)

    def _sample(self, scores: torch.Tensor, output_ids: torch.Tensor) -> None:
        """Stands for the runner's own, which has one random stream for all requests and one sampling.

        Args:
            scores: [1, requests that get a token, vocabulary].
            output_ids: [1 or 2, width], where the tokens go.
        """
        states = [one.state for one in self._processor.inputs_and_outputs.requests_in_batch if one.has_new_token]
        running = [self._running[state.request_id] for state in states]
        if not running:  # parts of long prompts only
            return
        drawn = draw(scores[0, : len(running)], running)
        output_ids[0, : len(running)] = torch.tensor([token for token, *_ in drawn], device=output_ids.device)
        self._drawn = [held.advance(token, self._eos, self.max_length) for held, token in zip(running, drawn, strict=True)]


def build_continuous(
    model: PreTrainedModel, adapter_config: LoraConfig | None, eos_token_ids: Sequence[int], slots: int, max_length: int
) -> ContinuousEngine | str:
    """An engine whose log-probabilities agree with the model's own forward pass, or why there is none."""
    try:
        engine = ContinuousEngine(model, adapter_config, eos_token_ids, slots, max_length)
        return disagreement(engine, model, "continuous batching") or engine
    except Exception as error:  # any model may come here, and what it does not fit fails in ways of its own
        return f"transformers' continuous batching does not run it ({type(error).__name__}: {error})"
