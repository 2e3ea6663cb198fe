"""More tokens for a tokenizer: learn merges of its own pieces, and write them into its `tokenizer.json`.

New tokens go where the model's own are, into the vocabulary with merges (BPE) or scores (Unigram), and not among the
`added_tokens`: those are cut out of a text before it is split into words, so they would also be found inside words that
the model knows. Merges rank below all old ones and only ever join old pieces: an encoding with the new tokens is the old
encoding with runs of pieces drawn together (for BPE always, for Unigram but for ties). So a text without new tokens keeps
its ids, texts decode as before, and the pieces of a new token say what its embedding should be.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import regex
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from plumbline.errors import InvalidInput

SYMBOLS = 0x10000  # piece i is the character SYMBOLS + i while merges are learned
SYMBOL_BYTES = 4  # of each in UTF-8
BREAK = ord("\n")
LEAST_COUNT = 2  # a pair that occurs once is no pattern
TIE = 1e-6  # by how much a Unigram piece beats the same text in parts
CHARACTER_SHARES = (1.0, 0.8, 0.6, 0.4, 0.25)  # of the new tokens, to choose from
SAMPLE = 1_000_000  # characters, to choose on
BATCH = 1000  # texts encoded at a time

_LETTERS = regex.compile(r" ?[\p{L}\p{M}\u200c\u200d]+")  # with the two joiners that Persian and Indic words hold
_BYTE = regex.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Extension:
    """A tokenizer with more tokens.

    Attributes:
        definition: its `tokenizer.json`.
        first: id of the first new token; the others follow.
        parts: of each new token, the old ids that it stands for.
        characters: how many of them are single characters or beginnings of one.
    """

    definition: dict[str, Any]
    first: int
    parts: list[tuple[int, ...]]
    characters: int


def extend(definition: Mapping[str, Any], texts: Sequence[str], count: int, coverage: float, max_length: int) -> Extension:
    """Add up to `count` tokens that `texts` need.

    First the characters that the tokenizer spells in several pieces, most frequent first, until single tokens cover the
    share `coverage` of all characters (SentencePiece's character_coverage); then, by BPE (Sennrich et al. 2016, arXiv
    1508.07909) over the pieces, words and parts of words. Where characters alone would take much of `count`, some of the
    texts decide how much they get. New words are letters with at most one space before them: digits stay single, and
    words do not grow together with punctuation.

    Args:
        definition: a `tokenizer.json`.
        texts: to learn from.
        count: how many tokens at most.
        coverage: 0 to 1.
        max_length: longest new token in characters.

    Raises:
        InvalidInput: this kind of tokenizer cannot be extended.
    """
    needed = growing(definition)
    _add_characters(needed, texts, count, coverage)
    limits = {min(len(needed.parts), int(share * count)) for share in CHARACTER_SHARES}
    limit = max(limits)
    if len(limits) > 1:
        learn, measure = _sample(texts)
        limit = min(
            sorted(limits),
            key=lambda limit: _tokens(_extended(definition, learn, count, limit, coverage, max_length), measure),
        )
    return _extended(definition, texts, count, limit, coverage, max_length)


def _extended(
    definition: Mapping[str, Any], texts: Sequence[str], count: int, characters: int, coverage: float, max_length: int
) -> Extension:
    vocabulary = growing(definition)
    _add_characters(vocabulary, texts, characters, coverage)
    found = len(vocabulary.parts)
    _add_words(vocabulary, texts, count, max_length)
    return Extension(vocabulary.definition, vocabulary.first, vocabulary.parts, found)


def _sample(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Two halves of some of the texts."""
    every = 1 + sum(map(len, texts)) // SAMPLE
    some = texts[::every]
    return list(some[::2]), list(some[1::2])


def _tokens(extension: Extension, texts: Sequence[str]) -> int:
    tokenizer = Tokenizer.from_str(json.dumps(extension.definition))
    return sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False))


class Vocabulary:
    """A `tokenizer.json` while it grows."""

    def __init__(self, definition: Mapping[str, Any], ids: dict[str, int]) -> None:
        self.definition = copy.deepcopy(dict(definition)) | {"truncation": None, "padding": None}
        self.ids = ids
        self.names = {i: name for name, i in ids.items()}
        self.first = max(ids.values(), default=-1) + 1
        self.parts: list[tuple[int, ...]] = []

    def join(self, left: int, right: int) -> int | None:
        """The token of two neighbours, new if need be; None where its name is that of a token with other parts."""
        name = self.names[left] + self.names[right]
        parts = self._parts(left) + self._parts(right)
        found = self.ids.get(name)
        if found is None:
            found = self._add(name, parts)
        elif found < self.first or self._parts(found) != parts:
            return None  # an old token must not come out of a new merge: texts that hold it would change
        self._link(left, right, found)
        return found

    def add_character(self, name: str, parts: tuple[int, ...]) -> None:
        """A character that the model has in no other form than `parts`: bytes, or the unknown token."""
        self._add(name, parts)

    def _add(self, name: str, parts: tuple[int, ...]) -> int:
        new = self.first + len(self.parts)
        self.parts.append(parts)
        self.ids[name], self.names[new] = new, name
        return new

    def _link(self, left: int, right: int, made: int) -> None:
        raise TypeError("a vocabulary is of one of the kinds below")

    def _parts(self, token: int) -> tuple[int, ...]:
        return (token,) if token < self.first else self.parts[token - self.first]

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_str(json.dumps(self.definition))


class Bpe(Vocabulary):
    """Byte-level (GPT-2, Llama 3, Qwen) and SentencePiece's with byte fallback (Llama 2, Mistral)."""

    def __init__(self, definition: Mapping[str, Any]) -> None:
        added = {token["content"]: token["id"] for token in definition["added_tokens"]}
        super().__init__(definition, definition["model"]["vocab"] | added)
        # An added token that the model does not know gets the next free id when the file is read: not its own any more.
        self.definition["model"]["vocab"] |= added
        self._linked: set[tuple[int, int]] = set()

    def _add(self, name: str, parts: tuple[int, ...]) -> int:
        new = super()._add(name, parts)
        self.definition["model"]["vocab"][name] = new
        return new

    def _link(self, left: int, right: int, made: int) -> None:
        if (left, right) not in self._linked:
            self._linked.add((left, right))
            self.definition["model"]["merges"].append([self.names[left], self.names[right]])


class Unigram(Vocabulary):
    """SentencePiece's Unigram (Kudo 2018, arXiv 1804.10959): a new piece scores as its parts do, and a trifle more."""

    def __init__(self, definition: Mapping[str, Any]) -> None:
        pieces = [name for name, _ in definition["model"]["vocab"]]
        super().__init__(definition, {name: i for i, name in enumerate(pieces)})
        self._scores: list[list[Any]] = self.definition["model"]["vocab"]
        self._least = min(score for _, score in self._scores)
        for token in sorted(definition["added_tokens"], key=lambda token: token["id"]):
            if token["id"] == len(self._scores):  # a piece's place in the list is its id
                self._scores.append([token["content"], self._least])
            elif token["id"] > len(self._scores):
                raise InvalidInput(
                    f"token ids {len(self._scores)} to {token['id'] - 1} of the Unigram tokenizer are not taken, so new "
                    "pieces cannot follow; use a model whose ids have no gap"
                )
            self.ids[token["content"]], self.names[token["id"]] = token["id"], token["content"]
        self.first = len(self._scores)

    def add_character(self, name: str, parts: tuple[int, ...]) -> None:
        super().add_character(name, parts)
        self._scores.append([name, self._least])  # better than the unknown token, which is 10 below the least

    def _link(self, left: int, right: int, made: int) -> None:
        if made == len(self._scores):
            self._scores.append([self.names[made], self._scores[left][1] + self._scores[right][1] + TIE])


def growing(definition: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a `tokenizer.json`.

    Raises:
        InvalidInput: it is of a kind that cannot be extended.
    """
    model = definition["model"]
    if model["type"] == "Unigram":
        return Unigram(definition)
    if model["type"] != "BPE":
        raise InvalidInput(f"a {model['type']} tokenizer cannot be extended; BPE and Unigram tokenizers can")
    for field in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field):
            raise InvalidInput(
                f"a BPE tokenizer with {field} '{model[field]}' cannot be extended: its pieces differ by their place in a "
                "word; byte-level and SentencePiece tokenizers can"
            )
    return Bpe(definition)


def is_byte_level(definition: Mapping[str, Any]) -> bool:
    """Whether pieces are bytes in the alphabet of GPT-2."""
    steps = [definition.get("pre_tokenizer"), definition.get("normalizer")]
    while steps:
        step = steps.pop()
        if step and step["type"] == "ByteLevel":
            return True
        steps += (step or {}).get("pretokenizers", []) + (step or {}).get("normalizers", [])
    return False


def piece_texts(definition: Mapping[str, Any]) -> dict[int, str | None]:
    """Token id → the text it stands for; None for special tokens, for the unknown one, and for part of a character."""
    vocab = definition["model"]["vocab"]
    pieces = vocab.items() if isinstance(vocab, dict) else ((name, i) for i, (name, _) in enumerate(vocab))
    if is_byte_level(definition):
        decode = decoders.ByteLevel().decode
        texts = {i: decode([name]) for name, i in pieces}
        found: dict[int, str | None] = {i: None if "\ufffd" in text else text for i, text in texts.items()}
    else:
        found = {i: None if _BYTE.fullmatch(name) else name.replace("▁", " ") for name, i in pieces}
    found |= {token["id"]: None for token in definition["added_tokens"]}
    unknown = unknown_id(definition)
    return found if unknown is None else found | {unknown: None}


def unknown_id(definition: Mapping[str, Any]) -> int | None:
    """The token in whose place text is lost, None where the tokenizer can write any text."""
    model = definition["model"]
    found = model["unk_id"] if model["type"] == "Unigram" else model["vocab"].get(model.get("unk_token"))
    return None if found is None else int(found)


def _add_characters(vocabulary: Vocabulary, texts: Sequence[str], count: int, coverage: float) -> None:
    tokenizer = vocabulary.tokenizer()
    byte_level = is_byte_level(vocabulary.definition)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    wanted = {c: n for c, n in counts.items() if not c.isspace() and c.isprintable()}
    left = coverage * sum(wanted.values())
    for character, n in sorted(wanted.items(), key=lambda item: (-item[1], item[0])):
        if left <= 0 or len(vocabulary.parts) >= count:
            return
        left -= n
        name = _in_model_space(tokenizer, character, byte_level)
        ids = [token.id for token in tokenizer.model.tokenize(name)] if name else []
        if not byte_level and ids and name not in vocabulary.ids:
            vocabulary.add_character(name, tuple(ids))
        elif byte_level and len(ids) - 1 <= count - len(vocabulary.parts):  # no beginnings without their character
            made: int | None = ids[0]
            for following in ids[1:]:
                made = vocabulary.join(made, following) if made is not None else None


def _in_model_space(tokenizer: Tokenizer, character: str, byte_level: bool) -> str:
    """A character as the model sees it amid a text; empty where normalising makes others of it."""
    if tokenizer.normalizer is not None:
        around = tokenizer.normalizer.normalize_str(f"a{character}a")
        start, end = around.find("a"), around.rfind("a")
        character = around[start + 1 : end]
    if byte_level and len(character) == 1:  # a ByteLevel normaliser has made several of it, or left an ASCII one
        ((character, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(character)
    return character if byte_level or len(character) == 1 else ""


def _add_words(vocabulary: Vocabulary, texts: Sequence[str], count: int, max_length: int) -> None:
    tokenizer = vocabulary.tokenizer()
    known = piece_texts(vocabulary.definition)
    size = max(vocabulary.names) + 1
    joins, opens, lengths = np.zeros(size, bool), np.zeros(size, bool), [0] * size
    for i, text in known.items():
        if text is not None and _LETTERS.fullmatch(text):
            joins[i], opens[i], lengths[i] = True, text[0] == " ", len(text.lstrip(" "))
    words = list(_symbols(tokenizer, texts, joins, opens))
    alphabet = len(set().union(*words) - {chr(BREAK)})
    more = count - len(vocabulary.parts)
    while len(vocabulary.parts) < count:
        more += more // 4 + 64  # some are refused below
        merges = _learn(words, alphabet + more, max_length)
        _join(vocabulary, merges, count, max_length, lengths)
        if len(merges) < more:
            return  # all there is to learn


def _symbols(tokenizer: Tokenizer, texts: Sequence[str], joins: np.ndarray, opens: np.ndarray) -> Iterator[str]:
    """Each text as a string of symbols, one a piece, with breaks where no token may reach across.

    Args:
        tokenizer: the tokenizer so far.
        texts: to encode.
        joins: by id, whether the piece may be part of a new token.
        opens: by id, whether it begins a word.
    """
    for start in range(0, len(texts), BATCH):
        for encoding in tokenizer.encode_batch(texts[start : start + BATCH], add_special_tokens=False):
            ids = np.array(encoding.ids, np.int64)
            if len(ids) < 2:
                continue
            words = np.array([-1 if word is None else word for word in encoding.word_ids])
            breaks = np.flatnonzero(opens[ids[1:]] | (words[1:] != words[:-1])) + 1
            symbols = np.insert(np.where(joins[ids], ids + SYMBOLS, BREAK), breaks, BREAK)
            yield symbols.astype("<u4").tobytes().decode("utf-32-le")


def _learn(words: list[str], size: int, max_length: int) -> list[tuple[str, str]]:
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Split(chr(BREAK), "removed")
    limit = SYMBOL_BYTES * max_length + 1  # the trainer counts bytes, and stays below
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=LEAST_COUNT, max_token_length=limit, show_progress=False, special_tokens=[]
    )
    learner.train_from_iterator(words, trainer)
    return [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]


def _join(
    vocabulary: Vocabulary, merges: list[tuple[str, str]], count: int, max_length: int, lengths: Sequence[int]
) -> None:
    """Take over merges of symbols, but those that make an old token or a long one, and what is built on them."""
    made: dict[str, int | None] = {}

    def token(symbols: str) -> int | None:
        return made[symbols] if len(symbols) > 1 else ord(symbols) - SYMBOLS

    for left, right in merges:
        if len(vocabulary.parts) >= count:
            return
        one, other, whole = token(left), token(right), left + right
        short = sum(lengths[ord(symbol) - SYMBOLS] for symbol in whole) <= max_length
        joined = vocabulary.join(one, other) if short and one is not None and other is not None else None
        made[whole] = made.get(whole) or joined
