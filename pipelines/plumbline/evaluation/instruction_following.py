"""Does a model answer, or does it go on writing the instruction? The Instruction Following Score (AlShikh et al. 2023, arXiv
2307.03692) and the tone classifier that it needs. Pure.

The paper's classifier is BERT on single texts. Here: logistic regression on hashed features of a text's beginning, trained on the
run's own chats, which needs no other model. On 800 to 3,200 exchanges of Alpaca, LIMA and Code Alpaca it is right in 94 to 97 of 100
cases (the paper's: 97); in scripts without capital letters, such as Chinese, in 70 to 81.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression

from plumbline.data.filters.words import UNSPACED
from plumbline.errors import InvalidInput

FEATURES = 2**17
CHARACTERS = 60
"""Of a text that are looked at: tone shows at its beginning."""
MOST, FEWEST = 4000, 100
"""Exchanges that a classifier is trained on."""
ASIDE = 0.2
"""Share of the exchanges on which its accuracy is measured."""
_TOKEN = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]|\n")
_NO_SPACE = re.compile(rf"(?<=[{UNSPACED}])(?=[{UNSPACED}])")
_SPACE = re.compile(r"(?<=[^\W_]|[,'\")]) (?=\S)")


def cut_instruction(text: str, draw: np.random.Generator) -> tuple[str, str] | None:
    """The instruction cut within a sentence, between two words of its middle three fifths: beginning and rest.

    None where it cannot be cut so.
    """
    places = [match.start() for match in _SPACE.finditer(text)] or [match.start() for match in _NO_SPACE.finditer(text)]
    inside = [place for place in places if 0.2 * len(text) <= place <= 0.8 * len(text)]
    if not inside:
        return None
    place = inside[draw.integers(len(inside))]
    return text[:place].rstrip(), text[place:].strip()


@dataclass(frozen=True)
class ToneClassifier:
    """Tells answers from continuations.

    Attributes:
        weights: [FEATURES] float32.
        intercept: of the decision.
        accuracy: on exchanges kept aside.
    """

    weights: np.ndarray
    intercept: float
    accuracy: float

    def answer_like(self, texts: Sequence[str]) -> np.ndarray:
        """[n] whether each text reads like an answer. An empty one does not."""
        if not texts:
            return np.zeros(0, bool)
        said = np.array([bool(text.strip()) for text in texts])
        return said & (_FEATURES.transform(texts) @ self.weights + self.intercept > 0)


def train_tone(exchanges: Iterable[tuple[str, str]], min_accuracy: float, seed: int, where: str) -> ToneClassifier:
    """A classifier of what (instruction, answer) exchanges show: answers on the one side, rests of cut instructions, half of them
    with the answer behind, on the other.

    Args:
        exchanges: those that no score is taken of, in a random order; no more are read than are needed.
        min_accuracy: share of fragments kept aside that it must tell rightly.
        seed: of the cuts.
        where: field path of the block, for messages.

    Raises:
        InvalidInput: too few instructions can be cut, or the accuracy is not reached.
    """
    draw = np.random.default_rng([seed, 1])
    fragments: list[tuple[str, str]] = []
    for instruction, answer in exchanges:
        cut = cut_instruction(instruction, draw)
        if cut is not None and answer.strip():
            fragments.append((answer, cut[1] if draw.random() < 0.5 else f"{cut[1]} {answer}"))
        if len(fragments) == MOST:
            break
    if len(fragments) < FEWEST:
        raise InvalidInput(
            f"{where}: the dataset has {len(fragments)} instructions that can be cut in the middle of a sentence, and a tone "
            f"classifier needs {FEWEST}; give more rows, or leave earlyStopping out"
        )
    aside = round(ASIDE * len(fragments))
    tried = _fit(fragments[aside:])
    texts, labels = _labelled(fragments[:aside])
    accuracy = float((ToneClassifier(*tried, 0.0).answer_like(texts) == labels).mean())
    if accuracy < min_accuracy:
        raise InvalidInput(
            f"{where}.minAccuracy: a tone classifier of this dataset tells {accuracy:.1%} of answers and continuations kept aside "
            f"rightly, and {min_accuracy:.1%} is asked for; no score can be built on it: leave earlyStopping out"
        )
    return ToneClassifier(*_fit(fragments), accuracy)


def _labelled(fragments: Sequence[tuple[str, str]]) -> tuple[list[str], np.ndarray]:
    texts = [answer for answer, _ in fragments] + [rest for _, rest in fragments]
    return texts, np.repeat([True, False], len(fragments))


def _fit(fragments: Sequence[tuple[str, str]]) -> tuple[np.ndarray, float]:
    texts, labels = _labelled(fragments)
    model = LogisticRegression(C=10.0, max_iter=1000).fit(_FEATURES.transform(texts), labels)
    return model.coef_[0].astype(np.float32), float(model.intercept_[0])


def _features(text: str) -> Iterator[str]:
    """The first words by their place, in pairs and triples, and by the kind of letter that they begin with; the first characters; words
    and pairs of words anywhere."""
    text = text.strip()[:CHARACTERS]
    words = _TOKEN.findall(text)
    for place, word in enumerate(words[:6]):
        yield f"at {place}: {word}"
    for size in (2, 3):
        yield "begins " + " ".join(words[:size])
    for size in (1, 3):
        yield "kinds " + " ".join(unicodedata.category(word[0]) for word in words[:size])
    for size in range(2, 10):
        yield f"characters {text[:size]}"
    for size in (1, 2):
        for place in range(len(words) - size + 1):
            yield "words " + " ".join(words[place : place + size])


_FEATURES = HashingVectorizer(analyzer=_features, n_features=FEATURES, alternate_sign=False, binary=True, dtype=np.float32)
