"""Which of two answers a judge prefers: always asked in both orders, read together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Literal

from plumbline.evaluation.judges.calls import SEEDS, Call, Replies, read_verdict
from plumbline.evaluation.judges.pairwise import SWAPPED, Verdict, verdict_of
from plumbline.evaluation.judges.styles.style import Answers, Case, Style

ORDERS = ("given", "exchanged")
POINTS: dict[Verdict, float] = {"1": 1.0, "Tie": 0.5, "2": 0.0}
"""What a verdict is worth to the first answer."""
GRADE_TIE = 0.1
"""Grades from 1 to 10 that differ by less are a tie (FastChat)."""

Decision = Literal["identical", "agreed", "inconsistent", "averaged", "scored", "unscored"]
Verdicts = tuple[Verdict | None, ...]


@dataclass(frozen=True)
class Pair:
    """Two answers to one case. Of a conversation the last turn is judged; `by_turn` makes a pair of every turn.

    Attributes:
        id: tells it from all others of its list.
    """

    id: str
    case: Case
    candidate: Answers
    opponent: Answers

    @property
    def identical(self) -> bool:
        """Whether both answered the same, apart from white space around it."""
        return [text.strip() for text in self.candidate] == [text.strip() for text in self.opponent]


@dataclass(frozen=True)
class PairJudgment:
    """What a judge said of a pair.

    Attributes:
        id: of the pair.
        given: a verdict for each sample with the candidate shown first; `1` means the candidate; None cannot be read.
        exchanged: the same with the opponent shown first; `1` means the candidate here too.
        decision: how the outcome came about.
        outcome: 1 the candidate is preferred, 0 the opponent, ½ neither; between, where several samples were averaged; None: unscored.
        why: of an unscored pair, what was wrong with the replies.
        share: the candidate's calibrated score (`calibrated`), verdicts being worth their `POINTS`; None without verdicts.
        entropy: of win, tie and loss over all readable verdicts, in nats; None without any.
        lengths: characters of the candidate's and the opponent's last answer.
    """

    id: str
    given: Verdicts
    exchanged: Verdicts
    decision: Decision
    outcome: float | None
    why: str
    share: float | None
    entropy: float | None
    lengths: tuple[int, int]

    @property
    def orders(self) -> tuple[Verdict | None, Verdict | None]:
        """The verdict of each order, which is that of most of its samples; None where none can be read."""
        return _verdict(self.given), _verdict(self.exchanged)

    @property
    def consistent(self) -> bool | None:
        """Whether both orders say the same; None where one says nothing."""
        given, exchanged = self.orders
        return None if given is None or exchanged is None else given == exchanged


def by_turn(pair: Pair) -> list[Pair]:
    """A pair for every turn of a conversation, as MT-Bench judges them: `ID/1`, `ID/2` …; a pair of one turn stays as it is."""
    if not pair.case.turns:
        return [pair]
    return [
        Pair(f"{pair.id}/{turn}", pair.case.through(turn), pair.candidate[:turn], pair.opponent[:turn])
        for turn in range(1, len(pair.case.turns) + 2)
    ]


def calls(style: Style, pair: Pair, samples: int, seed: int) -> list[Call]:
    """Both orders, `samples` times each; nothing where the answers are the same.

    The seeds depend on which text is shown first and not on which of the two is the candidate: exchanging candidate and opponent asks the
    same questions.

    Args:
        seed: of the item.

    Raises:
        ValueError: a side has not one answer a turn.
    """
    if pair.identical:
        return []
    shown = {"given": (pair.candidate, pair.opponent), "exchanged": (pair.opponent, pair.candidate)}
    return [
        Call(
            f"{pair.id}/{order}/{sample}",
            style.compare(pair.case, first, second),
            (seed + 2 * sample + (first > second)) % SEEDS,
            compares=True,
        )
        for order, (first, second) in shown.items()
        for sample in range(samples)
    ]


def judgment(style: Style, pair: Pair, samples: int, replies: Replies) -> PairJudgment:
    """What the replies to `calls` come to.

    - The same answer twice is ½ and was never asked about (AlpacaEval).
    - An order without a single readable verdict leaves the pair unscored: the other order alone would be position bias.
    - One sample an order: 1, 0 or ½ where both orders say so; ½, "inconsistent", where they do not (Zheng et al. 2023).
    - Several samples: the calibrated share of verdicts (Wang et al. 2023, arXiv 2305.17926: MEC and BPC).
    """
    lengths = len(pair.candidate[-1]), len(pair.opponent[-1])
    if pair.identical:
        return PairJudgment(pair.id, (), (), "identical", 0.5, "", None, None, lengths)
    read = {
        order: [read_verdict(style, replies.get(f"{pair.id}/{order}/{sample}")) for sample in range(samples)]
        for order in ORDERS
    }
    given = tuple(verdict for verdict, _ in read["given"])
    exchanged = tuple(None if verdict is None else SWAPPED[verdict] for verdict, _ in read["exchanged"])
    known = [verdict for verdict in (*given, *exchanged) if verdict is not None]
    share = calibrated([_points(verdict) for verdict in given], [_points(verdict) for verdict in exchanged])
    decision: Decision
    outcome: float | None
    why = ""
    if share is None:
        silent = next(order for order in ORDERS if all(verdict is None for verdict, _ in read[order]))
        decision, outcome = "unscored", None
        why = Counter(reason for _, reason in read[silent]).most_common(1)[0][0]
    elif samples > 1:
        decision, outcome = "averaged", share[0]
    elif given == exchanged:
        decision, outcome = "agreed", share[0]
    else:
        decision, outcome = "inconsistent", 0.5
    return PairJudgment(
        pair.id, given, exchanged, decision, outcome, why, share[0] if share else None, entropy(known), lengths
    )


def by_scores(pair: Pair, candidate: float | None, opponent: float | None, tie: float = 0.0) -> PairJudgment:
    """The judgment of a pair by the score of each answer, such as a reward model's or a mean grade: there are no places and no verdicts.

    Args:
        candidate, opponent: scores; None: that answer has none.
        tie: scores that differ by less are a tie; equal ones always are.
    """
    lengths = len(pair.candidate[-1]), len(pair.opponent[-1])
    outcome = 0.5 if pair.identical else outcome_of_scores(candidate, opponent, tie)
    decision: Decision = "identical" if pair.identical else "unscored" if outcome is None else "scored"
    return PairJudgment(pair.id, (), (), decision, outcome, "no score" if outcome is None else "", None, None, lengths)


def calibrated(
    given: Sequence[tuple[float, float] | None], exchanged: Sequence[tuple[float, float] | None]
) -> tuple[float, float] | None:
    """Each answer's score averaged over both places: CS_r = Σ_i (S_i(r first) + S'_i(r second)) / 2k (Wang et al. 2023).

    Samples that cannot be read are left out of the mean of their order, and both orders count the same; None where an order has none.

    Args:
        given: (candidate's, opponent's) score of each sample with the candidate shown first.
        exchanged: (candidate's, opponent's) with the opponent shown first.
    """
    orders = [[scores for scores in order if scores is not None] for order in (given, exchanged)]
    if not all(orders):
        return None
    means = [[sum(scores[side] for scores in order) / len(order) for order in orders] for side in (0, 1)]
    return sum(means[0]) / 2, sum(means[1]) / 2


def entropy(verdicts: Sequence[Verdict]) -> float | None:
    """−Σ p·ln p over win, tie and loss: how undecided a judge is about a pair (BPDE, Wang et al. 2023); None without verdicts."""
    shares = [count / len(verdicts) for count in Counter(verdicts).values()]
    return sum(-share * log(share) for share in shares if share < 1) if verdicts else None


def for_people(judgments: Sequence[PairJudgment], share: float = 0.2) -> list[str]:
    """Ids of the pairs that people should look at: unscored ones, then those on which the verdicts differ most.

    Args:
        share: of all pairs, at most; 20 % is what Wang et al. 2023 send to people.
    """
    ranked = sorted(judgments, key=lambda one: (one.outcome is not None, -(one.entropy or 0.0)))
    return [one.id for one in ranked if one.outcome is None or one.entropy][: round(share * len(judgments))]


def outcome_of_scores(candidate: float | None, opponent: float | None, tie: float = 0.0) -> float | None:
    """1, ½ or 0 as the candidate's score is higher, the same or lower; None where one is missing.

    Args:
        tie: scores that differ by less are a tie; equal ones always are.
    """
    if candidate is None or opponent is None:
        return None
    return 0.5 if abs(candidate - opponent) < tie else POINTS[verdict_of(candidate, opponent)]


def _points(verdict: Verdict | None) -> tuple[float, float] | None:
    return None if verdict is None else (POINTS[verdict], 1 - POINTS[verdict])


def _verdict(verdicts: Verdicts) -> Verdict | None:
    """The verdict that an order's samples come to: by their points, of which ½ is a tie."""
    points = [POINTS[verdict] for verdict in verdicts if verdict is not None]
    return verdict_of(sum(points), len(points) / 2) if points else None
