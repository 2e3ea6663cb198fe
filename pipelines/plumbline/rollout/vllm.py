"""vLLM as an engine, where a run asks for it; an optional library, with pins of its own.

It is driven step by step in the caller's thread and process. The adapter stays beside the weights, and vLLM draws by itself:
a seed gives the same answer every time, but not the one that the other engines give. Its process should hold nothing else:
vLLM seeds all random streams, takes `torch.set_num_threads` away, and an engine that goes takes another's groups along.
"""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import PreTrainedModel

from plumbline.errors import InvalidInput, PlumblineError, one_line
from plumbline.models.load import cache_bytes_per_token
from plumbline.rollout.adapter import AdaptedWeights
from plumbline.rollout.decoder import linear_weights
from plumbline.rollout.engine import NO_ADAPTER, Likely, Request, Scored, Scoring, Token
from plumbline.rollout.sampling import Running, check_request
from plumbline.rollout.scoring import check_scoring

if TYPE_CHECKING:
    from vllm.logprobs import Logprob
    from vllm.lora.request import LoRARequest
    from vllm.outputs import RequestOutput

log = logging.getLogger(__name__)

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # for which vLLM makes room; an adapter's may be below
LEAST_TEMPERATURE = 0.01  # below it vLLM samples at this one
READ_TOKENS = 8192  # in one step; longer prompts take several
READ_TOKENS_SCORED = 2048  # where texts are scored: each token then has logits for the whole vocabulary
MOST_LIKELIEST = 20  # of one request
PAGE_TOKENS = 128  # the largest page of cache
INSTEAD = "set rollout.engine: auto"


class VllmEngine:
    """See `Engine`. What adapters do to the cache is its affair: each has a name of its own, which pages are found by.

    Args:
        folder: the base model in Hugging Face form.
        model: the same, for its shape and dtype; it is not kept.
        adapter_config: configuration of the adapters to come; None if there will be none.
        eos_token_ids: tokens that end an answer.
        slots: requests worked on at the same time.
        max_length: longest prompt and answer together, in tokens; None: as long as the model and the memory allow.
        cpu_bytes: most that keys and values may take on a CPU; None: as much as full slots.
        gpu_share: part of a GPU's memory to take, with the weights; None: nearly all.

    Attributes:
        vocabulary: tokens that there are.

    Raises:
        InvalidInput: vLLM does not know this kind of adapter.
        Exception: whatever vLLM raises for a model that it cannot run.
    """

    def __init__(
        self,
        folder: Path,
        model: PreTrainedModel,
        adapter_config: LoraConfig | None,
        eos_token_ids: Sequence[int],
        slots: int,
        max_length: int | None,
        *,
        cpu_bytes: int | None = None,
        gpu_share: float | None = None,
    ) -> None:
        rank = largest_rank(adapter_config)
        self.adapter_version = NO_ADAPTER
        self.vocabulary = _vocabulary(model)
        self._eos = frozenset(eos_token_ids)
        self._config = adapter_config
        # Shapes alone: what fits is refused or taken as by the engines that merge.
        shapes = {name: weight.to("meta") for name, weight in linear_weights(model).items()}
        self._weights = AdaptedWeights(adapter_config, shapes)
        self._lora: LoRARequest | None = None
        self._loads = 0
        self._running: dict[str, Running] = {}
        self._scoring: dict[str, Scoring] = {}
        self._scored: list[Scored] = []
        self._drawn_meanwhile: list[Token] = []
        self._count = 0

        from vllm import EngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.llm_engine import LLMEngine

        self._on_cpu = current_platform.device_type == "cpu"
        longest = max_length or model.config.get_text_config().max_position_embeddings
        full = _cache_bytes(model, slots, longest)
        read = READ_TOKENS if rank else READ_TOKENS_SCORED
        arguments = EngineArgs(
            model=str(folder),
            load_format="safetensors",
            trust_remote_code=False,
            skip_tokenizer_init=True,
            generation_config="vllm",  # not the folder's: nothing but the request says how is sampled
            dtype=str(model.dtype).removeprefix("torch."),
            max_model_len=max_length or -1,
            max_num_seqs=slots,
            max_num_batched_tokens=max(slots, min(read, slots * longest)),
            max_logprobs=MOST_LIKELIEST,
            logprobs_mode="processed_logprobs",  # what tokens are drawn with; the default is at temperature 1, without top_p
            enable_prefix_caching=True,
            async_scheduling=False,  # a token would be under way when the weights change
            # Of a node it would take nearly all, which others work on too; of a GPU it may.
            kv_cache_memory_bytes=min(full, cpu_bytes or full) if self._on_cpu else None,
            enforce_eager=self._on_cpu,  # compiling takes minutes, and a compiler
            disable_log_stats=True,
            **({"enable_lora": True, "max_loras": 1, "max_lora_rank": rank} if rank else {}),
            **({"gpu_memory_utilization": gpu_share} if gpu_share else {}),
        )
        with self._uncompiled():
            self._engine = LLMEngine.from_engine_args(arguments)
        self.max_length: int = self._engine.model_config.max_model_len
        self.max_scored = self.max_length - 1  # one token has to be drawn as well
        if self.max_length < longest:
            log.warning("%s: context cut from %d to %d tokens to fit memory", type(model).__name__, longest, self.max_length)

    @property
    def busy(self) -> bool:
        return bool(self._running or self._drawn_meanwhile)

    def submit(self, request: Request) -> None:
        check_request(request, {held.request.id for held in self._running.values()}, self.max_length, self.vocabulary)
        if 0 < request.sampling.temperature < LEAST_TEMPERATURE:
            raise InvalidInput(
                f"request '{request.id}': temperature {request.sampling.temperature} must be 0 (greedy) or at least "
                f"{LEAST_TEMPERATURE} with vLLM"
            )
        from vllm.exceptions import VLLMValidationError

        try:
            self._add(Running(request))
        except VLLMValidationError as error:  # more than we know of
            raise InvalidInput(f"request '{request.id}': vLLM refuses it: {one_line(error)}") from error

    def cancel(self, request_id: str) -> None:
        for key in [key for key, held in self._running.items() if held.request.id == request_id]:
            del self._running[key]
            self._engine.abort_request([key])

    def step(self) -> list[Token]:
        before, self._drawn_meanwhile = self._drawn_meanwhile, []
        return before + self._turn() if self._running else before

    def score(self, requests: Sequence[Scoring]) -> Iterator[list[Scored]]:
        if self._config is not None:
            # Its LoRA head takes one row a request, and here there is one a token.
            raise InvalidInput(f"vLLM scores given texts only without room for adapters; {INSTEAD}")
        for request in requests:
            check_scoring(request, self.max_scored, self.vocabulary)
        return self._scores(requests)

    def _scores(self, requests: Sequence[Scoring]) -> Iterator[list[Scored]]:
        """A step at a time, in which answers may go on too: their tokens wait for `step`."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        try:
            for request in requests:
                wanted = SamplingParams(
                    temperature=0,
                    max_tokens=1,
                    prompt_logprobs=request.likeliest,
                    detokenize=False,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                )
                self._count += 1
                key = str(self._count)
                self._engine.add_request(key, tokens_input(list(request.tokens)), wanted, lora_request=self._lora)
                self._scoring[key] = request
            while self._scoring or self._scored:
                if self._scoring:
                    self._drawn_meanwhile += self._turn()
                found, self._scored = self._scored, []
                yield found
        finally:  # who asked may have left
            self._engine.abort_request(list(self._scoring))
            self._scoring, self._scored = {}, []

    def _turn(self) -> list[Token]:
        """One step of vLLM: tokens are returned, scores are kept."""
        if not self._engine.has_unfinished_requests():
            number = len(self._running) + len(self._scoring)
            raise PlumblineError(f"vLLM holds none of {number} unfinished requests")
        with self._uncompiled():
            outputs = self._engine.step()
        tokens: list[Token] = []
        for output in outputs:
            if output.request_id in self._running:
                tokens += self._drawn(output)
            elif output.request_id in self._scoring and output.finished:
                self._scored.append(_scored(self._scoring.pop(output.request_id), output))
        return tokens

    def load_adapter(self, tensors: dict[str, torch.Tensor], version: int) -> None:
        self._weights.load({name: tensor.to("meta") for name, tensor in tensors.items()})
        self._change(self._taken(tensors) if tensors else None)
        self.adapter_version = version

    def pause(self) -> None:
        """Stop all requests. The memory is kept: vLLM gives it back on GPUs only, and in a mode of its own."""
        self._engine.abort_request(list(self._running))

    def resume(self) -> None:
        self._read_again()

    def _taken(self, tensors: dict[str, torch.Tensor]) -> LoRARequest:
        """An adapter's place in vLLM, which reads it from a folder."""
        from vllm.lora.request import LoRARequest

        assert self._config is not None
        # A count of our own: a trainer may give a version twice, and pages read with the first would be found again.
        self._loads += 1
        with TemporaryDirectory(prefix="plumbline-adapter-") as folder:
            file = Path(folder, "adapter_model.safetensors")
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, file)
            Path(folder, "adapter_config.json").write_text(json.dumps(_described(self._config, tensors)))
            lora = LoRARequest(str(self._loads), self._loads, folder)
            try:
                self._engine.add_lora(lora)
            except ValueError as error:
                raise InvalidInput(f"adapter: vLLM does not take it: {one_line(error)}; {INSTEAD}") from error
        return lora

    def _change(self, lora: LoRARequest | None) -> None:
        self._engine.abort_request(list(self._running))
        if self._lora is not None:
            self._engine.remove_lora(self._lora.lora_int_id)
        self._lora = lora
        self._read_again()

    def _read_again(self) -> None:
        running, self._running = self._running, {}
        for held in running.values():
            self._add(held)

    def _add(self, held: Running) -> None:
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        sampling = held.request.sampling
        wanted = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=min(sampling.max_tokens - len(held.tokens), self.max_length - held.length),
            seed=_seed(sampling.seed, len(held.tokens)),
            logprobs=sampling.likeliest,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=dict(sampling.logit_bias) or None,
            stop_token_ids=sorted(self._eos),
            ignore_eos=True,  # those that the folder names
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self._count += 1  # a key of our own: the id may come again while vLLM still ends the one before
        key = str(self._count)
        self._engine.add_request(key, tokens_input(list(held.context)), wanted, lora_request=self._lora)
        self._running[key] = held

    def _drawn(self, output: RequestOutput) -> list[Token]:
        (answer,) = output.outputs
        if answer.finish_reason not in (None, "stop", "length"):
            raise PlumblineError(f"vLLM gave up a request: {answer.finish_reason}")
        held = self._running[output.request_id]
        held.cached = output.num_cached_tokens or 0
        drawn = [
            held.advance(
                (token, logprobs[token].logprob, _likeliest(logprobs, held.request.sampling.likeliest)),
                self._eos,
                self.max_length,
            )
            for token, logprobs in zip(answer.token_ids, answer.logprobs or [], strict=True)
        ]
        if output.finished:
            del self._running[output.request_id]
        return drawn

    def _uncompiled(self) -> Any:
        """vLLM's sampler is compiled at its first token, which on a CPU needs a compiler that need not be there."""
        return torch.compiler.set_stance("force_eager" if self._on_cpu else "default")


def _likeliest(there: Mapping[int, Logprob], number: int) -> tuple[Likely, ...]:
    ranked = sorted(there.items(), key=lambda pair: -pair[1].logprob)
    return tuple((token, logprob.logprob) for token, logprob in ranked[:number])


def _scored(request: Scoring, output: RequestOutput) -> Scored:
    if output.prompt_logprobs is None or len(output.prompt_logprobs) != len(request.tokens):
        raise PlumblineError(f"vLLM gave up a request: {output.outputs[0].finish_reason}")
    there = [one or {} for one in output.prompt_logprobs[request.start :]]
    own = [one[token] for token, one in zip(request.tokens[request.start :], there, strict=True)]
    return Scored(
        request.id,
        [one.logprob for one in own],
        [one.rank == 1 for one in own],
        [_likeliest(one, request.likeliest) for one in there],
    )


def _vocabulary(model: PreTrainedModel) -> int:
    embedding: Any = model.get_input_embeddings()
    return len(embedding.weight)


def largest_rank(config: LoraConfig | None) -> int:
    """How much room vLLM is to make, 0 for none.

    Raises:
        InvalidInput: it does not know this kind of adapter.
    """
    if config is None:
        return 0
    if config.use_dora:
        raise InvalidInput(f"rollout.engine: vLLM does not know DoRA; leave adapter.dora out, or {INSTEAD}")
    rank = max([config.r, *(config.rank_pattern or {}).values()])
    if rank > RANKS[-1]:
        raise InvalidInput(
            f"rollout.engine: vLLM takes adapters of rank {RANKS[-1]} at most, not {rank}; lower adapter.rank, or {INSTEAD}"
        )
    return min(room for room in RANKS if room >= rank)


def _described(config: LoraConfig, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What vLLM needs to know of an adapter. How it began is left out: some beginnings are refused by their name."""
    names = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
    modules = sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in tensors})
    return {name: getattr(config, name) for name in names} | {"target_modules": modules}


def _seed(seed: int, drawn: int) -> int:
    """Of a request's tokens from number `drawn` on. vLLM begins anew for what is read again: the old stream would repeat."""
    return random.Random(f"{seed}/{drawn}").getrandbits(62)


def _cache_bytes(model: PreTrainedModel, slots: int, max_length: int) -> int:
    """Keys and values for full slots."""
    return cache_bytes_per_token(model) * slots * (math.ceil(max_length / PAGE_TOKENS) + 1) * PAGE_TOKENS
