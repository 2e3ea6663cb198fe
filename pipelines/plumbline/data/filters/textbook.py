"""Educational value, by a classifier that is trained in the stage (after Phi-1, Gunasekar et al. 2023, arXiv 2306.11644).

Phi-1 trained a random forest on a code model's embeddings of samples that GPT-4 had rated. Here: hashed words and pairs of
words, TF-IDF, logistic regression, which need no other model and read a million rows on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from plumbline.api.curation.filters import TextbookSpec
from plumbline.data.filters.words import UNSPACED
from plumbline.data.row import Reject, Row
from plumbline.errors import InvalidInput

if TYPE_CHECKING:  # scikit-learn is imported where it is used: every task that reads rows imports this file
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import HashingVectorizer

FEATURES = 2**18
ASIDE = 0.2  # of the examples, for the accuracy that is reported
FEWEST = 50  # examples of each class: 10 are kept aside, and the accuracy of fewer says nothing


@dataclass(frozen=True)
class TextbookModel:
    """A trained classifier: plain arrays, so that it can be sent to workers.

    Attributes:
        idf: (FEATURES,) float32 weights of features.
        coefficients: (FEATURES,) float32.
        intercept: of the decision function.
        accuracy: on the examples kept aside, the mean over both classes; of the classifier that never saw them.
        examples: (negative, positive) that it was trained on.
    """

    idf: np.ndarray
    coefficients: np.ndarray
    intercept: float
    accuracy: float
    examples: tuple[int, int]

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """(n,) probabilities of being positive."""
        if not texts:
            return np.zeros(0)
        margins = _weighted(_words().transform(texts), self.idf) @ self.coefficients + self.intercept
        return np.asarray(1 / (1 + np.exp(-margins.astype(np.float64))))


def train(texts: Sequence[str], positive: Sequence[bool], spec: TextbookSpec, where: str) -> TextbookModel:
    """Train on four fifths, measure on the rest, then train on all.

    Args:
        texts: examples; equal ones count once, so that none stands on both sides.
        positive: for each whether it is one of those to keep.
        spec: `minAccuracy` and the seed.
        where: field path of the block, for messages.

    Raises:
        InvalidInput: too few examples of a class, or the classifier does not reach `minAccuracy`.
    """
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import train_test_split

    labelled = dict(zip(texts, map(bool, positive), strict=True))
    labels = np.array(list(labelled.values()), bool)
    counts = (int((~labels).sum()), int(labels.sum()))
    if min(counts) < FEWEST:
        raise InvalidInput(
            f"{where}: {counts[1]} different positive and {counts[0]} negative examples; give at least {FEWEST} of each"
        )
    features = _words().transform(list(labelled))
    seen, aside = train_test_split(np.arange(len(labels)), test_size=ASIDE, random_state=spec.seed, stratify=labels)
    tried = _fit(features[seen], labels[seen])
    guesses = _weighted(features[aside], tried[0]) @ tried[1] + tried[2] > 0
    accuracy = float(balanced_accuracy_score(labels[aside], guesses))
    if accuracy < spec.min_accuracy:
        raise InvalidInput(
            f"{where}.minAccuracy: the classifier tells {accuracy:.1%} of the examples kept aside rightly, and "
            f"{spec.min_accuracy:.1%} is asked "
            "for; give more or clearer examples, or a lower bound"
        )
    return TextbookModel(*_fit(features, labels), accuracy=accuracy, examples=counts)


def filter_textbook(rows: Sequence[Row], spec: TextbookSpec, model: TextbookModel) -> list[Row | Reject]:
    """Each row, or why it is dropped."""
    scores = model.scores([text_of(row) for row in rows])
    return [
        Reject("little educational value", f"{score:.3f}") if score < spec.min_score else row
        for row, score in zip(rows, scores, strict=True)
    ]


def text_of(row: Row) -> str:
    """What the classifier reads of a row: all of its texts."""
    return "\n".join(row.texts)


@cache
def _words() -> HashingVectorizer:
    """Counts words and pairs of words."""
    from sklearn.feature_extraction.text import HashingVectorizer

    pattern = rf"[{UNSPACED}]|[^\W{UNSPACED}]+"
    return HashingVectorizer(n_features=FEATURES, ngram_range=(1, 2), alternate_sign=False, norm=None, token_pattern=pattern)


def _fit(counts: csr_matrix, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """(idf, coefficients, intercept) of a logistic regression in which both classes weigh the same."""
    from sklearn.linear_model import LogisticRegression

    documents = np.bincount(counts.indices, minlength=FEATURES)
    idf = (np.log((1 + counts.shape[0]) / (1 + documents)) + 1).astype(np.float32)
    model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000).fit(_weighted(counts, idf), labels)
    return idf, model.coef_[0].astype(np.float32), float(model.intercept_[0])


def _weighted(counts: csr_matrix, idf: np.ndarray) -> csr_matrix:
    """TF-IDF with sublinear counts, rows of length one."""
    from sklearn.preprocessing import normalize

    weighted = counts.astype(np.float32)
    weighted.data = (1 + np.log(weighted.data)) * idf[weighted.indices]
    unit: csr_matrix = normalize(weighted, copy=False)
    return unit
