"""What a judge's verdicts on many pairs say of the judge: places, lengths, kinship (Zheng et al. 2023, arXiv 2306.05685, section 3.3)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from plumbline.evaluation import statistics
from plumbline.evaluation.judges.pairs import PairJudgment
from plumbline.evaluation.ratings import length_control
from plumbline.evaluation.ratings.battles import Floats
from plumbline.evaluation.statistics import Estimate

FAMILIES: dict[str, tuple[str, ...]] = {
    "GPT": ("gpt", "chatgpt", "davinci", "openai", "o1", "o3", "o4"),
    "Claude": ("claude", "anthropic"),
    "Gemini": ("gemini", "gemma", "palm", "bard"),
    "Llama": ("llama", "vicuna", "alpaca", "pandalm"),
    "Qwen": ("qwen", "qwq"),
    "Mistral": ("mistral", "mixtral", "zephyr", "ministral"),
    "DeepSeek": ("deepseek",),
    "Phi": ("phi",),
    "GLM": ("glm", "chatglm"),
    "InternLM": ("internlm",),
    "Yi": ("yi",),
    "Pythia": ("pythia",),
    "OPT": ("opt",),
    "BLOOM": ("bloom", "bloomz"),
    "Falcon": ("falcon",),
}
"""Words of model names, by family: models of one maker, or tuned from one base, whose style a judge takes for its own."""


@dataclass(frozen=True)
class Length:
    """What length does to verdicts.

    Attributes:
        longer: of the decided pairs with answers of different lengths, how often the longer one is preferred; None without any.
        coefficient: of tanh(Δ / sd Δ), Δ the candidate's characters less the opponent's, in a logistic regression of the outcome with an
            intercept and a ridge of 1; above 0 the longer answer gains. None where it cannot be fitted.
    """

    longer: Estimate | None
    coefficient: float | None


@dataclass(frozen=True)
class Figures:
    """A judge's verdicts on the pairs of a task.

    Attributes:
        n: pairs.
        scored: of them with an outcome.
        identical: of those, pairs of one and the same answer, which no judge was asked about.
        unscored: pairs without an outcome, by what was wrong with the replies.
        consistency: of the pairs with a verdict in both orders, those with the same one; None without any.
        first: of the verdicts that name an answer, those that name the one shown first; ½ is fair. None without any.
        ties: of the verdicts, those that are ties; None without any.
        length: what length does.
    """

    n: int
    scored: int
    identical: int
    unscored: dict[str, int]
    consistency: Estimate | None
    first: Estimate | None
    ties: Estimate | None
    length: Length


def figures(judgments: Sequence[PairJudgment], confidence: float) -> Figures:
    """All figures, with Wilson intervals; those of single verdicts take the verdicts on one pair for independent.

    Args:
        judgments: of one candidate against one opponent.
        confidence: of the intervals.
    """
    scored = [one for one in judgments if one.outcome is not None]
    both = [one.consistent for one in judgments if one.consistent is not None]
    # Told of places: a candidate shown second that wins names the second place.
    places = [verdict == "1" for one in judgments for verdict in one.given if verdict in ("1", "2")]
    places += [verdict == "2" for one in judgments for verdict in one.exchanged if verdict in ("1", "2")]
    verdicts = [verdict for one in judgments for verdict in (*one.given, *one.exchanged) if verdict is not None]
    return Figures(
        n=len(judgments),
        scored=len(scored),
        identical=sum(one.decision == "identical" for one in judgments),
        unscored=dict(sorted(Counter(one.why for one in judgments if one.outcome is None).items())),
        consistency=_share(both, confidence),
        first=_share(places, confidence),
        ties=_share([verdict == "Tie" for verdict in verdicts], confidence),
        length=_length(scored, confidence),
    )


def _length(scored: Sequence[PairJudgment], confidence: float) -> Length:
    decided = [
        (one.lengths[0] > one.lengths[1]) == (one.outcome > 0.5)
        for one in scored
        if one.outcome not in (None, 0.5) and one.lengths[0] != one.lengths[1]
    ]
    longer = _share(decided, confidence)
    preference = np.array([one.outcome for one in scored], dtype=np.float64)
    gain = np.array([one.lengths[0] - one.lengths[1] for one in scored], dtype=np.float64)
    if len(scored) < length_control.FOLDS or not gain.std(ddof=1):
        return Length(longer, None)
    return Length(longer, _coefficient(preference, gain))


def _coefficient(preference: Floats, gain: Floats) -> float:
    from sklearn.linear_model import LogisticRegression  # a second that only a fit is worth

    feature = np.tanh(gain / gain.std(ddof=1))[:, None]
    rows, label = np.concatenate((feature, feature)), np.repeat((1, 0), len(gain))
    fitted = LogisticRegression().fit(rows, label, sample_weight=np.concatenate((preference, 1 - preference)))
    return float(fitted.coef_[0, 0])


def _share(found: Sequence[bool], confidence: float) -> Estimate | None:
    return statistics.wilson(sum(found), len(found), confidence) if found else None


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, as far as is known.

    Attributes:
        name: for people.
        fingerprints: of the artifacts that it is or was made from.
        names: of models that it is or was made from: bases, and its own name at an endpoint.
    """

    name: str
    fingerprints: Collection[str] = frozenset()
    names: Collection[str] = frozenset()

    @property
    def families(self) -> set[str]:
        """The families that its names tell."""
        return {family for name in (self.name, *self.names) if (family := family_of(name)) is not None}


def family_of(name: str) -> str | None:
    """The family that a model's name tells, such as `Llama` of `meta-llama/Meta-Llama-3-8B`; None where it tells none."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    for word in reversed(words):
        for family, starts in FAMILIES.items():
            if (
                word in starts
                or word.rstrip("0123456789") in starts
                or word.startswith(tuple(s for s in starts if len(s) > 3))
            ):
                return family
    return None


def related(judge: Origin, candidate: Origin, teachers: Sequence[Origin] = ()) -> str | None:
    """Why a judge may favour a candidate as its own: one sentence, None where nothing is known to connect them.

    For scale: with itself as candidate GPT-4 gave a 10 % higher win rate than people, Claude-v1 a 25 % higher one (Zheng et al. 2023).

    Args:
        teachers: models that wrote the candidate's training data.
    """
    for model, what in ((candidate, "the candidate"), *((teacher, "a teacher of the candidate") for teacher in teachers)):
        if shared := set(judge.fingerprints) & set(model.fingerprints):
            same = f"artifact {min(shared)[:12]} is part of both"
        elif shared := {_plain(n) for n in (judge.name, *judge.names)} & {_plain(n) for n in (model.name, *model.names)}:
            same = f"both are or come from {min(shared)}"
        elif families := judge.families & model.families:
            same = f"both are of the {min(families)} family"
        else:
            continue
        return (
            f"judge {judge.name} is related to {what}, {model.name}: {same}; it may favour what it would have written itself"
        )
    return None


def _plain(name: str) -> str:
    """A model's name without what only says where it is found."""
    return name.rstrip("/").rsplit("/", 1)[-1].lower()
