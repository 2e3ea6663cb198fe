"""What models say of rows: likelihoods, embeddings, scores. Load a scorer where it is used, such as in an actor: it
holds the model.

Rows of a call are batched by length. Results are the same however rows are spread over calls and batches, up to
rounding; where ties matter, call with the same rows together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from plumbline.api.curation.filters import ClassifierSpec
from plumbline.api.curation.selection import DeitaSpec, EmbeddingSpec, IfdSpec, ScorerSpec, SelectSpec
from plumbline.data.deduplication.key import Key, key_texts
from plumbline.data.filters.classifier import Classifier
from plumbline.data.filters.words import learned
from plumbline.data.row import Chat, Row
from plumbline.errors import InvalidInput, one_line
from plumbline.external import TINY, check_model
from plumbline.models.encoder import input_length
from plumbline.models.load import base_folder, load_tokenizer, torch_dtype
from plumbline.models.reference import ModelReference
from plumbline.training.batch import Sequence as Tokens
from plumbline.training.batch import collate, split_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_TOKENS = 16_384
"""Of one forward pass, padding included (as for classifiers)."""
BATCH_LOGITS = 2**27
"""Of one forward pass: half a gigabyte in float32. One longer row goes alone."""
MIDDLE = 3.0
"""Score of rows that a scorer cannot read (DEITA's fallback)."""
DIGITS = "123456"
_FIELD = re.compile(r"\{(prompt|answer)\}")

Scorer = Callable[[Sequence[Row]], dict[str, np.ndarray]]
"""n rows → name → (n, …)."""


MODEL_METHODS = ("ifd", "deita", "kCenter")
"""Methods of selection that ask models."""


def make_scorer(spec: SelectSpec, model: ModelReference, where: str) -> Scorer | None:
    """What the spec's method needs measured by models; None for methods that need none. Loads the models.

    Args:
        spec: the stage's `select` block.
        model: the run's, for methods that name none.
        where: field path of the block, for messages.

    Raises:
        InvalidInput: a model cannot be used.
        PlumblineError: it cannot be fetched now.
    """
    if spec.ifd is not None:
        return IfdScorer(spec.ifd, model, f"{where}.ifd")
    if spec.deita is not None:
        return DeitaScorer(spec.deita, model, f"{where}.deita")
    if spec.k_center is not None:
        return Embedder(spec.k_center, model, f"{where}.kCenter")
    return None


class IfdScorer:
    """Measures `ratio`: mean negative log-likelihood of the answers given all before them ÷ of each answer alone; see
    `IfdSpec`.

    The tokens of both are the same: the answer's text, without what the chat template puts around it. Alone means after the
    tokenizer's begin (or end) of text, so that the first token counts in both.
    """

    def __init__(self, spec: IfdSpec, model: ModelReference, where: str) -> None:
        self._model, folder = _load("AutoModelForCausalLM", spec.model, model, f"{where}.model")
        try:
            self._tokenizer = load_tokenizer(ModelReference(str(folder)) if spec.model else model)
        except InvalidInput as error:
            raise InvalidInput(
                str(error).replace("spec.model.base", f"{where}.model") if spec.model else str(error)
            ) from error
        self._longest = input_length(self._model.config, spec.max_tokens)
        start = self._tokenizer.bos_token_id
        self._start = self._tokenizer.eos_token_id if start is None else start

    def __call__(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        """Ratios; NaN for rows that are too long or have no good answer."""
        ratio = np.full(len(rows), np.nan)
        sequences: list[Tokens] = []
        owners: list[tuple[int, bool]] = []  # row, and whether prompts are there
        for number, row in enumerate(rows):
            pieces = encode_answers(self._tokenizer, chat_of(row))
            ids = [token for context, answer in pieces for token in (*context, *answer)]
            if not pieces or len(ids) > self._longest:
                continue
            trained = [flag for context, answer in pieces for flag in (*(False for _ in context), *(True for _ in answer))]
            sequences.append(Tokens(ids, trained))
            sequences += [Tokens([self._start, *answer], [False, *(True for _ in answer)]) for _, answer in pieces]
            owners += [(number, True), *((number, False) for _ in pieces)]
        given, alone = np.zeros(len(rows)), np.zeros(len(rows))
        for (number, prompted), loss in zip(owners, self._losses(sequences), strict=True):
            (given if prompted else alone)[number] += loss
        measured = alone > 0
        ratio[measured] = given[measured] / alone[measured]  # the counts of tokens are the same
        return {"ratio": ratio}

    def _losses(self, sequences: list[Tokens]) -> np.ndarray:
        """(m,) float64: sums of negative log-likelihoods in nats over what is trained."""
        losses = np.zeros(len(sequences))
        for batch in _batches([len(s.ids) for s in sequences], self._model):
            laid = collate([[sequences[i]] for i in batch]).to(self._model.device)
            with torch.inference_mode():  # padding is on the right, where causal attention does not look
                logits = self._model(input_ids=laid.input_ids, use_cache=False).logits.flatten(0, 1)
                for part in torch.arange(len(laid.targets), device=logits.device).split(1024):
                    nll = torch.nn.functional.cross_entropy(
                        logits[laid.predict_at[part]].float(), laid.targets[part], reduction="none"
                    )
                    np.add.at(losses, np.array(batch)[laid.sequence[part].cpu().numpy()], nll.double().cpu().numpy())
        return losses


class Embedder:
    """Measures `embedding`: mean of the last hidden states over the row's text, at length 1, (n, d) float16; see
    `EmbeddingSpec`."""

    def __init__(self, spec: EmbeddingSpec, model: ModelReference, where: str) -> None:
        self._model, folder = _load("AutoModel", spec.model, model, f"{where}.model")
        self._tokenizer = _tokenizer(folder, f"{where}.model")
        self._longest, self._where = input_length(self._model.config, spec.max_tokens), f"{where}.model"

    def __call__(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        """Embeddings."""
        texts = ["\n".join((*row.prompts, *(learned(row) or row.answers))) for row in rows]
        return {"embedding": self.embed(texts).astype(np.float16)}  # half the memory; cosines move by 1e-4

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(n, d) float32.

        Raises:
            InvalidInput: they are no numbers.
        """
        vectors = np.zeros((len(texts), self._model.config.get_text_config().hidden_size), np.float32)
        ids = self._tokenizer(list(texts), truncation=True, max_length=self._longest)["input_ids"] if texts else []
        for batch in _batches([len(one) for one in ids], self._model, logits=False):
            width = max(1, *(len(ids[i]) for i in batch))
            padded = torch.tensor([ids[i] + [0] * (width - len(ids[i])) for i in batch])
            mask = torch.tensor([[1] * len(ids[i]) + [0] * (width - len(ids[i])) for i in batch])
            padded, mask = padded.to(self._model.device), mask.to(self._model.device)
            with torch.inference_mode():
                hidden = self._model(input_ids=padded, attention_mask=mask).last_hidden_state.float()
            mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
            vectors[batch] = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
        if not np.isfinite(vectors).all():
            raise InvalidInput(
                f"{self._where}: its hidden states are no numbers, as of weights that overflow float16; give another"
            )
        return vectors


def embedder(spec: EmbeddingSpec, model: ModelReference, where: str, key: Key) -> Scorer:
    """Measures `embedding` of the texts that rows are compared by; see `SemanticSpec`."""
    embedding = Embedder(spec, model, where)
    return lambda rows: {"embedding": embedding.embed(["\n".join(key_texts(row, key)) for row in rows])}


class DeitaScorer:
    """Measures `value`, `complexity` (mean over prompts) and `embedding`; see `DeitaSpec`."""

    def __init__(self, spec: DeitaSpec, model: ModelReference, where: str) -> None:
        self._embedder = Embedder(spec, model, where)
        self._complexity = spec.complexity and _exchange_scorer(spec.complexity, f"{where}.complexity", "prompt")
        self._quality = spec.quality and _exchange_scorer(spec.quality, f"{where}.quality", "chat")

    def __call__(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        """Values are Σ complexity × quality over exchanges; NaN for rows without a score or without a good answer."""
        exchanges = [list(exchanges_of(row)) for row in rows]
        owner = np.repeat(np.arange(len(rows)), [len(one) for one in exchanges])
        flat = [exchange for one in exchanges for exchange in one]
        count = np.bincount(owner, minlength=len(rows))
        complexity = self._complexity(flat) if self._complexity else np.ones(len(flat))
        quality = self._quality(flat) if self._quality else np.ones(len(flat))
        value = np.bincount(owner, complexity * quality, len(rows))
        if not self._quality:
            scores = np.array([np.nan if row.score is None else row.score for row in rows])
            value = scores * (value if self._complexity else 1.0)
        if self._quality or self._complexity:
            value = np.where(count > 0, value, np.nan)
        mean = np.bincount(owner, complexity, len(rows)) / np.maximum(count, 1)
        return {"value": value, "complexity": mean} | self._embedder(rows)


class DigitScorer:
    """Scores exchanges by the digit from 1 to 6 that a causal model continues a template with: Σ k·p(k) over the six
    (DEITA)."""

    def __init__(self, spec: ScorerSpec, where: str) -> None:
        assert spec.template is not None
        self._template = spec.template
        self._model, folder = _load("AutoModelForCausalLM", spec.model, None, f"{where}.model")
        self._longest = input_length(self._model.config, spec.max_tokens)
        self._tokenizer = _tokenizer(folder, f"{where}.model")
        before = self._encode(spec.template)
        continued = [self._encode(spec.template + digit) for digit in DIGITS]
        self._digits = [ids[-1] for ids in continued]
        if any(ids[:-1] != before for ids in continued) or len(set(self._digits)) < len(DIGITS):
            raise InvalidInput(
                f"{where}.template: '{spec.model}' does not write a digit after it as one token of its own; "
                "end it as in training"
            )

    def __call__(self, exchanges: Sequence[tuple[str, str]]) -> np.ndarray:
        """(m,) scores from 1 to 6 of m (prompt, answer)."""
        ids = [self._encode(self._filled(*exchange)) for exchange in exchanges]
        scores = np.full(len(ids), MIDDLE)
        readable = [i for i, one in enumerate(ids) if len(one) <= self._longest]
        for places in _batches([len(ids[i]) for i in readable], self._model):
            batch = [readable[place] for place in places]
            laid = collate([[Tokens([*ids[i], self._digits[0]], [False] * len(ids[i]) + [True])] for i in batch])
            with torch.inference_mode():
                logits = self._model(input_ids=laid.input_ids.to(self._model.device), use_cache=False).logits.flatten(0, 1)
            weights = logits[laid.predict_at][:, self._digits].double().softmax(-1).cpu().numpy()
            scores[batch] = weights @ np.arange(1.0, len(DIGITS) + 1)
        return scores

    def _filled(self, prompt: str, answer: str) -> str:
        """In one pass, so that what stands in a prompt is not filled again."""
        return _FIELD.sub(lambda match: {"prompt": prompt, "answer": answer}[match[1]], self._template)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text)["input_ids"])


def count_tokens(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that training on a row sees, and those of the texts that it learns to write.

    Args:
        rows: n of any form. Of a preference all answers count, each with its prompt.
        tokenizer: with a chat template.

    Returns:
        (n,) and (n,) int64.
    """
    rendered = [list(_rendered(row, tokenizer)) for row in rows]
    answers = [learned(row) for row in rows]
    return _sums(rendered, tokenizer), _sums(answers, tokenizer)


def encode_answers(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> list[tuple[list[int], list[int]]]:
    """A chat as (what is before the answer, the answer), for each answer: together the whole chat up to its last word.

    Raises:
        InvalidInput: the template rewrites earlier turns.
    """
    pieces, done = [], ""
    for i, turn in enumerate(chat):
        if turn["role"] != "assistant":
            continue
        before = str(tokenizer.apply_chat_template(list(chat[:i]), tokenize=False, add_generation_prompt=True))
        if not before.startswith(done):
            raise InvalidInput(
                "the chat template changes earlier turns when the chat goes on, so answers cannot be measured in their "
                "place; use a template that only appends"
            )
        context, answer = tokenizer([before[len(done) :], turn["content"]], add_special_tokens=False)["input_ids"]
        pieces.append((context, answer))
        done = before + turn["content"]
    return pieces


def chat_of(row: Row) -> Chat:
    """The chat that a model is to imitate; of a preference the prompt with the better answer; empty where there is none."""
    if "messages" in row.content:
        return list(row.content["messages"])
    good = [{"role": "assistant", "content": text} for text in learned(row)]
    return [*row.content["prompt"], *good] if "prompt" in row.content and good else []


def exchanges_of(row: Row) -> Iterator[tuple[str, str]]:
    """(prompt, answer) of each exchange of a row's chat."""
    prompt = ""
    for turn in chat_of(row):
        if turn["role"] == "user":
            prompt = turn["content"]
        elif turn["role"] == "assistant":
            yield prompt, turn["content"]


def _exchange_scorer(spec: ScorerSpec, where: str, reads: Any) -> Callable[[Sequence[tuple[str, str]]], np.ndarray]:
    if spec.template is not None:
        return DigitScorer(spec, where)
    classifier = Classifier(
        ClassifierSpec(model=spec.model, label=spec.label, reads=reads, max_tokens=spec.max_tokens), where
    )

    def scores(exchanges: Sequence[tuple[str, str]]) -> np.ndarray:
        turns = [[("user", prompt), ("assistant", answer)] for prompt, answer in exchanges]
        return classifier.scores([Row({"messages": [{"role": r, "content": c} for r, c in chat]}) for chat in turns])

    return scores


def _rendered(row: Row, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    if "text" in row.content:
        yield row.content["text"]
        return
    prompt = row.content.get("prompt", [])
    alternatives = [row.content[name] for name in ("messages", "chosen", "rejected", "completion") if name in row.content]
    for answer in (*alternatives, *row.content.get("completions", ())):
        yield str(tokenizer.apply_chat_template([*prompt, *answer], tokenize=False))


def _sums(texts: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    flat = [text for one in texts for text in one]
    lengths = [len(ids) for ids in tokenizer(flat, add_special_tokens=False)["input_ids"]] if flat else []
    owner = np.repeat(np.arange(len(texts)), [len(one) for one in texts])
    return np.bincount(owner, lengths, len(texts)).astype(np.int64)


def _load(kind: str, uri: str | None, model: ModelReference | None, where: str) -> tuple[PreTrainedModel, Any]:
    """(the model, of this class of transformers, in evaluation mode on the GPU, if there is one, else the CPU; its folder)."""
    import transformers

    assert uri is not None or model is not None
    if uri is not None and not uri.startswith(("hf://", TINY)):
        check_model(uri, where)
    name, revision, dtype = (uri, None, "auto") if uri is not None else (model.base, model.revision, model.dtype)
    folder = base_folder(name, revision)
    try:
        loaded, report = getattr(transformers, kind).from_pretrained(
            folder, trust_remote_code=False, use_safetensors=True, dtype=torch_dtype(dtype), output_loading_info=True
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # transformers and safetensors pass on what their parsers raise
        raise InvalidInput(f"{where}: '{name}' cannot be loaded: {one_line(error)}") from error
    lacking = sorted(key for key in report["missing_keys"] if "pooler" not in key)  # poolers are not used
    if lacking:  # transformers would fill them with random numbers
        raise InvalidInput(
            f"{where}: the weights of '{name}' lack {lacking[0]} ({len(lacking)} such); give a model of this kind"
        )
    return loaded.eval().to("cuda" if torch.cuda.is_available() else "cpu"), folder


def _tokenizer(folder: Any, where: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers pass on what their parsers raise
        raise InvalidInput(f"{where}: there is no tokenizer that can be read: {one_line(error)}") from error


def _batches(lengths: Sequence[int], model: PreTrainedModel, logits: bool = True) -> Iterator[list[int]]:
    """Indices in batches of like length."""
    most = min(BATCH_TOKENS, BATCH_LOGITS // model.config.get_text_config().vocab_size) if logits else BATCH_TOKENS
    for group in split_rows([[i] for i in range(len(lengths))], list(lengths), most):
        yield [i for row in group for i in row]
