"""The probability of given tokens: what several texts begin with is read once, and kept for texts to come."""

from __future__ import annotations

import inspect
import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, groupby
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from plumbline.errors import InvalidInput
from plumbline.models.virtual_tokens import Prefix
from plumbline.rollout.decoder import STATIC_ROPE
from plumbline.rollout.engine import Likely, Scored, Scoring
from plumbline.rollout.low_rank import LowRank, Site
from plumbline.rollout.sampling import check_adapter, common_length, likeliest

READ_TOKENS = 4096  # in one pass, padding included: others wait as long
PASS_LOGITS = 2**26  # 256 MB of float32
PAST_TOKENS = 32768  # of keys and values, copied for every row of a pass
KEPT_TOKENS = 8192  # of keys and values, from one call to the next
SPREAD = 1.25  # rows are read together while the longest is at most this much longer than the shortest
PASS_COST = 128  # tokens: what rows share is read by itself where that saves more


@dataclass
class _Asked:
    """A request and what is known of it; `missing` tokens have no probability yet."""

    request: Scoring
    missing: int
    scored: Scored

    @classmethod
    def of(cls, request: Scoring) -> _Asked:
        number = len(request.tokens) - request.start
        top: list[tuple[Likely, ...]] = [()] * number
        return cls(request, number, Scored(request.id, [math.nan] * number, [False] * number, top))


@dataclass
class _Line:
    """Tokens to read, and who asks: requests that differ in their last token alone, which is not read."""

    tokens: tuple[int, ...]
    asked: list[_Asked] = field(default_factory=list)

    @property
    def first(self) -> int:
        """The first position after which a token is asked for."""
        return min(one.request.start for one in self.asked) - 1


@dataclass
class _Row:
    """Tokens that are read as one row of a pass, and the lines that begin with them."""

    tokens: tuple[int, ...]
    lines: list[_Line]

    def __post_init__(self) -> None:
        self.first = min(line.first for line in self.lines)


class Scorer:
    """`Engine.score` by the model's own forward pass.

    Args:
        model: in evaluation mode. Whoever changes its weights calls `forget`.
        longest: most tokens of a request.
        prefix: virtual tokens that everything stands after.
        sites: of the engine's decoder, if requests may have adapters.
    """

    def __init__(
        self, model: PreTrainedModel, longest: int, prefix: Prefix | None = None, sites: Sequence[Site] | None = None
    ) -> None:
        self._model: Any = model
        self._longest = longest
        self._device = model.device
        self._head: Any = self._model.get_output_embeddings()
        self._vocabulary = len(self._head.weight)
        self._accepts = set(inspect.signature(model.forward).parameters)
        self._virtual = prefix or []
        self._virtual_tokens = prefix[0][0].shape[-2] if prefix else 0
        self._sites = sites
        self._kept: list[tuple[tuple[int, ...], Prefix]] = []  # the latest last
        self._adapter: LowRank | None = None  # with which they were read

    def forget(self) -> None:
        """Leave the keys and values of earlier calls, and the adapter that they were read with."""
        self._kept.clear()
        self._adapter = None

    def score(self, requests: Sequence[Scoring]) -> Iterator[list[Scored]]:
        """See `Engine.score`. Each turn is one pass of the model."""
        groups: dict[LowRank | None, list[Scoring]] = {}
        for request in requests:
            check_scoring(request, self._longest, self._vocabulary, self._sites)
            groups.setdefault(request.adapter, []).append(request)
        return chain.from_iterable(self._turns(adapter, group) for adapter, group in groups.items())

    def _turns(self, adapter: LowRank | None, requests: Sequence[Scoring]) -> Iterator[list[Scored]]:
        passes = self._passes(requests)
        while True:
            if adapter is not self._adapter:
                self.forget()
                self._adapter = adapter
            # Not around a `yield`: the caller's own work would be in it.
            with torch.inference_mode(), _beside(self._model, adapter):
                done = next(passes, None)
            if done is None:
                return
            yield done

    def _passes(self, requests: Sequence[Scoring]) -> Iterator[list[Scored]]:
        lines: dict[tuple[int, ...], _Line] = {}
        for request in requests:
            tokens = request.tokens[:-1]
            lines.setdefault(tokens, _Line(tokens)).asked.append(_Asked.of(request))
        # A stack and not recursion: texts may be nested as deep as they are long.
        waiting: list[tuple[int, Prefix, list[_Line]]] = [(0, self._virtual, [lines[tokens] for tokens in sorted(lines)])]
        while waiting:
            depth, past, members = waiting.pop()
            shared, alone = _split(members, depth) if self._shares else ([], members)
            for row in shared:
                at, known = self._known(row, depth, past)
                known = yield from self._read(at, known, [row])
                beyond = [line for line in row.lines if len(line.tokens) > len(row.tokens)]
                waiting.append((len(row.tokens), known, beyond))
            together: dict[tuple[int, ...], tuple[Prefix, list[_Row]]] = {}  # by what they stand after
            for line in alone:  # they may share with earlier calls what they do not share with each other
                row = _Row(line.tokens, [line])
                at, known = self._known(row, depth, past)
                together.setdefault(row.tokens[:at], (known, []))[1].append(row)
            for before, (known, rows) in together.items():
                for batch in _batches(rows, len(before), PASS_LOGITS // self._vocabulary):
                    yield from self._read(len(before), known, batch)

    def _read(self, depth: int, past: Prefix, rows: list[_Row]) -> Generator[list[Scored], None, Prefix]:
        """Read rows that stand after the same `depth` tokens; returns the keys and values of the first row, from its start."""
        width = max(len(row.tokens) for row in rows)
        if depth == width:
            return past
        cache = self._cache(past, len(rows)) if self._shares else None
        while depth < width:
            end = min(width, depth + max(1, READ_TOKENS // len(rows))) if self._shares else width
            while self._shares and end > depth + 1 and _wanted(rows, depth, end) * self._vocabulary > PASS_LOGITS:
                end = (depth + end) // 2
            yield self._pass(rows, depth, end, cache)
            depth = end
        return self._keep(rows[0].tokens, cache) if cache is not None else []

    def _pass(self, rows: list[_Row], start: int, end: int, cache: DynamicCache | None) -> list[Scored]:
        """Read positions `start` to `end` and give what that completes."""
        padded = [[*row.tokens[start:end], *[0] * (end - max(start, len(row.tokens)))][: end - start] for row in rows]
        spans = [(max(row.first, start), min(len(row.tokens), end)) for row in rows]
        places = [(i, p - start) for i, span in enumerate(spans) for p in range(*span)]
        which = torch.tensor(places, dtype=torch.long, device=self._device).view(-1, 2).T
        logits = self._logits(torch.tensor(padded, device=self._device), start, which, cache).float()
        total = logits.logsumexp(-1)
        best = logits.argmax(-1)

        parts: list[tuple[_Asked, int, int]] = []  # who asks, and for which of its tokens
        at: list[int] = []
        targets: list[int] = []
        base = 0
        for row, (low, high) in zip(rows, spans, strict=True):
            for one in (one for line in row.lines for one in line.asked):
                first = max(one.request.start - 1, low)
                if first < high:
                    parts.append((one, first + 1, high + 1))
                    at += range(base + first - low, base + high - low)
                    targets += one.request.tokens[first + 1 : high + 1]
            base += max(0, high - low)
        index, target = torch.tensor([at, targets], dtype=torch.long, device=self._device)
        logprobs = (logits[index, target] - total[index]).tolist()
        greedy = (best[index] == target).tolist()
        number = max((one.request.likeliest for one, _, _ in parts), default=0)
        top = likeliest(logits - total[:, None], number) if number else []

        done, used = [], 0
        for one, low, high in parts:
            to = slice(low - one.request.start, high - one.request.start)
            some = slice(used, used + high - low)
            one.scored.logprobs[to] = logprobs[some]
            one.scored.greedy[to] = greedy[some]
            if one.request.likeliest:
                one.scored.likeliest[to] = [top[i][: one.request.likeliest] for i in at[some]]
            used += high - low
            one.missing -= high - low
            if not one.missing:
                done.append(one.scored)
        return done

    def _logits(self, tokens: torch.Tensor, start: int, which: torch.Tensor, cache: DynamicCache | None) -> torch.Tensor:
        """Logits [places, vocabulary] after some of the tokens [rows, width]; `which` is [2, places]: row and column."""
        rows, width = tokens.shape
        before = self._virtual_tokens + start
        options = {
            "attention_mask": torch.ones(rows, before + width, dtype=torch.long, device=self._device),
            "position_ids": torch.arange(before, before + width, device=self._device).expand(rows, -1),
        }
        # The head is called with the asked positions alone, and whatever the model does to logits is still done.
        hook = self._head.register_forward_pre_hook(lambda _, inputs: (inputs[0][which[0], which[1]][None],))
        try:
            output = self._model(
                input_ids=tokens,
                past_key_values=cache,
                use_cache=cache is not None,
                **{name: value for name, value in options.items() if name in self._accepts},
            )
        finally:
            hook.remove()
        logits: torch.Tensor = output.logits[0]
        return logits

    @cached_property
    def _shares(self) -> bool:
        """Whether a token's past is its keys and values, which can be copied and cut; a state of another kind cannot."""
        if self._virtual:
            return True
        if not _static_positions(self._model.config):  # keys read in a shorter text are others
            return False
        found = self._model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self._device), use_cache=True)
        layers = getattr(getattr(found, "past_key_values", None), "layers", [])
        return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)

    def _cache(self, past: Prefix, rows: int) -> DynamicCache:
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(past):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        return cache

    def _known(self, row: _Row, depth: int, past: Prefix) -> tuple[int, Prefix]:
        """The longest beginning of a row that is there already, up to where tokens are asked for, and its keys and values."""
        best = -1
        for i, (tokens, _) in enumerate(self._kept):
            length = min(common_length(tokens, row.tokens), row.first)
            if length > depth:
                depth, best = length, i
        if best < 0:
            return depth, past
        self._kept.append(self._kept.pop(best))
        end = self._virtual_tokens + depth
        return depth, [(keys[:, :, :end], values[:, :, :end]) for keys, values in self._kept[-1][1]]

    def _keep(self, tokens: tuple[int, ...], cache: DynamicCache) -> Prefix:
        """Keep the first row of a cache for the calls to come, and let the oldest go."""
        end = self._virtual_tokens + len(tokens)
        layers: list[Any] = cache.layers
        # Copies: a view would keep the other rows and the padding.
        past = [(layer.keys[:1, :, :end].clone(), layer.values[:1, :, :end].clone()) for layer in layers]
        self._kept = [kept for kept in self._kept if kept[0] != tokens[: len(kept[0])]]
        self._kept.append((tokens, past))
        while len(self._kept) > 1 and sum(len(kept) for kept, _ in self._kept) > KEPT_TOKENS:
            del self._kept[0]
        return past


@contextmanager
def _beside(model: Any, adapter: LowRank | None) -> Iterator[None]:
    """The model with an adapter beside its weights."""
    with ExitStack() as hooks:
        for name, (down, up) in adapter.modules.items() if adapter is not None else ():

            def add(_: Any, inputs: Any, output: torch.Tensor, down: torch.Tensor = down, up: torch.Tensor = up) -> Any:
                return output + inputs[0] @ down @ up

            hooks.callback(model.get_submodule(name).register_forward_hook(add).remove)
        yield


def _static_positions(config: Any) -> bool:
    """Whether a token's rotary frequencies are the same however long the text is."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else [kind for kind in rope.values() if isinstance(kind, dict)]
    return all(kind.get("rope_type", "default") in STATIC_ROPE for kind in kinds)


def check_scoring(request: Scoring, longest: int, vocabulary: int, sites: Sequence[Site] | None = None) -> None:
    """Refuse what no engine can score.

    Raises:
        InvalidInput: see `Engine.score`.
    """
    tokens = request.tokens
    check_adapter(request.id, request.adapter, sites)
    if len(tokens) > longest:
        raise InvalidInput(
            f"request '{request.id}': {len(tokens)} tokens do not fit a context of {longest}; shorten the text"
        )
    if not 1 <= request.start < len(tokens):
        raise InvalidInput(
            f"request '{request.id}': start {request.start} must be 1 to {len(tokens) - 1}: a token is scored after at least one"
        )
    if not 0 <= min(tokens) <= max(tokens) < vocabulary:
        raise InvalidInput(
            f"request '{request.id}': token ids must be 0 to {vocabulary - 1}, not {min(tokens)} to {max(tokens)}"
        )


def _split(lines: list[_Line], depth: int) -> tuple[list[_Row], list[_Line]]:
    """Which lines share enough beyond their first `depth` tokens for a pass of its own, and those that do not.

    Args:
        lines: sorted, all longer than `depth`.
    """
    shared: list[_Row] = []
    alone: list[_Line] = []
    waiting = [(depth, lines)]
    while waiting:
        branch, members = waiting.pop()
        for _, some in groupby(members, lambda line: line.tokens[branch : branch + 1]):  # noqa: B023
            group = list(some)
            common = group[0].tokens[: common_length(group[0].tokens, group[-1].tokens)]
            if len(group) == 1:
                alone += group
            elif (len(group) - 1) * (len(common) - depth) > PASS_COST:
                shared.append(_Row(common, group))
            else:
                waiting.append((len(common), group))
    return shared, alone


def _batches(rows: list[_Row], depth: int, most: int) -> Iterator[list[_Row]]:
    """Rows in batches of like lengths beyond `depth`, each within the budgets and with `most` positions that are asked for (a long row may exceed
    them alone)."""
    batch: list[_Row] = []
    shortest = wanted = 0
    for row in sorted(rows, key=lambda row: len(row.tokens)):
        length, number = len(row.tokens) - depth, len(batch) + 1
        asked = _wanted([row], depth, len(row.tokens))
        full = length * number > READ_TOKENS or len(row.tokens) * number > PAST_TOKENS or wanted + asked > most
        if batch and (full or length > shortest * SPREAD):
            yield batch
            batch, wanted = [], 0
        wanted += asked
        if not batch:
            shortest = length
        batch.append(row)
    if batch:
        yield batch


def _wanted(rows: list[_Row], start: int, end: int) -> int:
    """Positions of a pass after which tokens are asked for."""
    return sum(max(0, min(len(row.tokens), end) - max(row.first, start)) for row in rows)
