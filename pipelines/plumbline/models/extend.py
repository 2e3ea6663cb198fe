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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
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
BATCH = 200_000  # characters encoded at a time: an encoding takes some hundred bytes a token

JOINERS = "\u200c\u200d"  # within words of Persian and Indic languages

_LETTERS = regex.compile(rf" ?[\p{{L}}\p{{M}}{JOINERS}]+")
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


def extend(
    definition: Mapping[str, Any],
    texts: Sequence[str],
    count: int,
    coverage: float,
    max_length: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Extension:
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
        progress: told how many steps are done, of how many.

    Raises:
        InvalidInput: this kind of tokenizer cannot be extended.
    """
    vocabulary = growing(definition)
    needed = _needed_characters(vocabulary, texts, coverage)
    _add_characters(vocabulary, needed, count)
    limits = sorted({min(len(vocabulary.parts), int(share * count)) for share in CHARACTER_SHARES})
    tokens: dict[int, int] = {}
    learn, measure = _sample(texts)
    for limit in limits if len(limits) > 1 else []:
        progress(len(tokens) + 1, len(limits) + 2)
        tokens[limit] = _tokens(_extended(definition, learn, count, needed, limit, max_length), measure)
    progress(len(limits) + 1, len(limits) + 2)
    limit = min(tokens, key=lambda limit: tokens[limit]) if tokens else limits[0]
    made = _extended(definition, texts, count, needed, limit, max_length)
    progress(len(limits) + 2, len(limits) + 2)
    return made


def _extended(
    definition: Mapping[str, Any],
    texts: Sequence[str],
    count: int,
    needed: Sequence[Characters],
    limit: int,
    max_length: int,
) -> Extension:
    vocabulary = growing(definition)
    _add_characters(vocabulary, needed, limit)
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
    encodings = (tokenizer.encode_batch(batch, add_special_tokens=False) for batch in batches(texts))
    return sum(len(encoding.ids) for batch in encodings for encoding in batch)


def batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in their order, some at a time."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + len(text) > BATCH:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


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
        merges = self.definition["model"]["merges"]  # older files have "left right"
        self.definition["model"]["merges"] = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
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


@dataclass(frozen=True)
class Characters:
    """What a text holds and the tokenizer has only in pieces: a character, or several where a piece ends within one.

    Attributes:
        text: the characters, as the model sees them.
        ids: the pieces.
        n: how often they occur.
    """

    text: str
    ids: tuple[int, ...]
    n: int


def _needed_characters(vocabulary: Vocabulary, texts: Sequence[str], coverage: float) -> list[Characters]:
    """Those to add so that single tokens cover the share `coverage` of all characters, most frequent first."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    wanted = {c: n for c, n in counts.items() if _is_wanted(c)}
    broken = _broken_runs(vocabulary, texts) if is_byte_level(vocabulary.definition) else _unknown(vocabulary, wanted)
    found = sorted(broken, key=lambda each: (-each.n, each.text, each.ids))
    missing = sum(each.n * len(each.text) for each in found) - (1 - coverage) * sum(wanted.values())
    for place, each in enumerate(found):
        if missing <= 0:
            return found[:place]
        missing -= each.n * len(each.text)
    return found


def _broken_runs(vocabulary: Vocabulary, texts: Sequence[str]) -> Iterator[Characters]:
    """Runs of byte-level pieces that begin and end with a character, and no part of which does.

    They are looked up where they stand: after a space, say, the first byte may belong to the space's piece.
    """
    decode = decoders.ByteLevel().decode
    inner = {c for c in pre_tokenizers.ByteLevel.alphabet() if len(decode(["Ã" + c])) == 1}  # bytes that go on after 0xC3
    special = {token["id"] for token in vocabulary.definition["added_tokens"]}
    opens = np.ones(max(vocabulary.names) + 1, bool)
    opens[[i for i, name in vocabulary.names.items() if name[:1] in inner and i not in special]] = False
    counts: Counter[str] = Counter()
    for symbols in _symbols(vocabulary.tokenizer(), texts, np.ones_like(opens), opens):
        counts.update(symbols.split(chr(BREAK)))
    for run, n in counts.items():
        ids = tuple(ord(symbol) - SYMBOLS for symbol in run)
        text = decode([vocabulary.names[i] for i in ids])
        if len(ids) > 1 and (_is_wanted(text.removeprefix(" ")) or _LETTERS.fullmatch(text)):
            yield Characters(text, ids, n)


def _unknown(vocabulary: Vocabulary, wanted: Mapping[str, int]) -> Iterator[Characters]:
    """Characters that are no token by themselves, under the names that the model sees."""
    tokenizer = vocabulary.tokenizer()
    for character, n in wanted.items():
        name = _in_model_space(tokenizer, character)
        ids = tuple(token.id for token in tokenizer.model.tokenize(name))
        if len(name) == 1 and ids and name not in vocabulary.ids:
            yield Characters(name, ids, n)


def _in_model_space(tokenizer: Tokenizer, character: str) -> str:
    """A character as the model sees it amid a text, where normalising may make others of it or none."""
    if tokenizer.normalizer is None:
        return character
    around = tokenizer.normalizer.normalize_str(f"a{character}a")
    return str(around[around.find("a") + 1 : around.rfind("a")])


def _is_wanted(text: str) -> bool:
    """Whether it is a character that can be seen, or a joiner."""
    return len(text) == 1 and (text in JOINERS or (text.isprintable() and not text.isspace()))


def _add_characters(vocabulary: Vocabulary, needed: Sequence[Characters], count: int) -> None:
    byte_level = is_byte_level(vocabulary.definition)
    for each in needed:
        room = count - len(vocabulary.parts)
        if not byte_level:
            if room and each.text not in vocabulary.ids:
                vocabulary.add_character(each.text, each.ids)
            continue
        beginnings = accumulate(vocabulary.names[i] for i in each.ids)
        if sum(name not in vocabulary.ids for name in beginnings) <= room:  # no beginnings without their character
            made: int | None = each.ids[0]
            for following in each.ids[1:]:
                made = vocabulary.join(made, following) if made is not None else None


def _add_words(vocabulary: Vocabulary, texts: Sequence[str], count: int, max_length: int) -> None:
    tokenizer = vocabulary.tokenizer()
    known = piece_texts(vocabulary.definition)
    size = max(vocabulary.names) + 1
    joins, opens, lengths = np.zeros(size, bool), np.zeros(size, bool), [0] * size
    for i, text in known.items():
        if text is not None and (text == " " or _LETTERS.fullmatch(text)):
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
    for batch in batches(texts):
        for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
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
