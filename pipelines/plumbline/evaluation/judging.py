"""From answers without a right or wrong to scores: what the judge is asked about each, and what its replies come to. Pure: who asks is handed in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.data.row import Chat
from plumbline.evaluation.benchmarks.benchmark import Item, Score
from plumbline.evaluation.conversations import item_seed
from plumbline.evaluation.journal import Reply
from plumbline.evaluation.judges import grades, pairs
from plumbline.evaluation.judges.biases import Figures, figures
from plumbline.evaluation.judges.calls import Call, again
from plumbline.evaluation.judges.grades import Grade, Graded
from plumbline.evaluation.judges.length_controlled import LengthControlled
from plumbline.evaluation.judges.pairs import Pair, PairJudgment, for_people
from plumbline.evaluation.judges.qualification import Labelled, Qualification, Thresholds, qualify
from plumbline.evaluation.judges.self_tests import Limits, Sample, SelfTest, outcomes, probes, results, tripwire
from plumbline.evaluation.judges.self_tests import calls as test_calls
from plumbline.evaluation.judges.styles.style import Answers, Case, Style

TRIES = 3  # of a verdict that cannot be read

AskJudge = Callable[[Sequence[Call], int], Mapping[str, Reply]]
"""(calls, which try from 0) → reply by key of the call."""
Rewards = Callable[[Sequence[Chat]], Sequence[float | None]]
"""Chats → the reward of each one's last answer; None where it is too long."""
AnswersOf = Mapping[str, Mapping[str, Answers]]
"""Model → item id → what it answered, turn by turn."""


@dataclass(frozen=True)
class Judge:
    """Who judges.

    Attributes:
        style: how it is asked; None: a reward model, which is not asked but scores.
        samples: verdicts for each order of a pair, or of each answer.
        ask: sends calls.
        rewards: of a reward model.
    """

    style: Style | None
    samples: int
    ask: AskJudge
    rewards: Rewards

    def replies(self, calls: Sequence[Call]) -> dict[str, Reply]:
        """A reply to each call; those without a verdict are asked again, with other seeds."""
        assert self.style is not None
        found = dict(self.ask(calls, 0))
        for attempt in range(1, TRIES):
            more = again(self.style, calls, found, attempt)
            if not more:
                break
            found |= self.ask(more, attempt)
        return found


@dataclass(frozen=True)
class Judged:
    """What a judge made of a task.

    Attributes:
        task: its name.
        scores: item id → model → score. Where it has none that can be read, the score is not there.
        judgments: of its pairs, for their figures; empty where answers were graded.
        look_at: ids of items that people should look at, the most undecided first.
        figures: of the judge on these pairs; None where answers were graded.
        controlled: the length-controlled win rate, where difficulties are given.
        unscored: items that lack a score, by what was wrong with the replies.
        rows: the log, a row a judgment.
    """

    task: str
    scores: Mapping[str, Mapping[str, Score]]
    judgments: Sequence[PairJudgment]
    look_at: Sequence[str]
    figures: Figures | None
    unscored: Mapping[str, int]
    rows: Sequence[dict[str, Any]] = field(repr=False)
    controlled: LengthControlled | None = None


@dataclass(frozen=True)
class Trust:
    """Whether a judge may be believed.

    Attributes:
        qualification: against people; None: not asked for.
        self_tests: task → tests, of tasks that a gate hangs on.
        reasons: task → why no gate may hang on its scores.
    """

    qualification: Qualification | None
    self_tests: Mapping[str, Sequence[SelfTest]]
    reasons: Mapping[str, str]


def qualified(labelled: Labelled, least: float, judge: Judge) -> Qualification:
    """The judge's verdicts on pairs that people have labelled.

    Args:
        labelled: the pairs.
        least: accuracy that is asked for.
        judge: who is tried.
    """
    found, _ = judge_pairs([(pair, 0) for pair in labelled.pairs], judge)
    return qualify(labelled, [found[pair.id] for pair in labelled.pairs], Thresholds(least))


def case_of(item: Item) -> Case:
    """What a judge is shown of an item."""
    return Case(item.prompt, item.turns, item.references)


def compare(
    task: TaskSpec,
    items: Sequence[Item],
    answers: AnswersOf,
    candidate: str,
    opponent: str,
    judge: Judge,
    confidence: float,
    difficulty: Mapping[str, float] | None = None,
) -> Judged:
    """Compare the candidate's answers with the opponent's, every turn in both orders.

    A candidate that is preferred scores 1 and the opponent 0, the mean over the turns; an item of which any turn has no outcome is unscored.

    Args:
        task: for its name and seed.
        items: those that both answered.
        answers: of both.
        judge: who compares.
        confidence: level of the intervals of the figures.
        difficulty: of each item, by id, for the length-controlled win rate.
    """
    # Numbers, not ids, name the pairs: an id may look like that of another's turn.
    by_item = {
        item.id: pairs.by_turn(Pair(str(number), case_of(item), answers[candidate][item.id], answers[opponent][item.id]))
        for number, item in enumerate(items)
    }
    found, replies = judge_pairs([(pair, item_seed(task, item)) for item in items for pair in by_item[item.id]], judge)
    scores: dict[str, dict[str, Score]] = {}
    unscored: Counter[str] = Counter()
    for known, of in by_item.items():
        worth = [found[pair.id].outcome for pair in of]
        missing = next((found[pair.id].why for pair in of if found[pair.id].outcome is None), None)
        if missing is not None:
            unscored[missing] += 1
            scores[known] = {}
            continue
        won = sum(outcome for outcome in worth if outcome is not None) / len(worth)
        how = ", ".join(found[pair.id].decision for pair in of)
        longer = sum(found[pair.id].lengths[0] - found[pair.id].lengths[1] for pair in of)
        scores[known] = {candidate: Score(won, how, longer=longer), opponent: Score(1 - won, how, longer=-longer)}
    judgments = list(found.values())
    rows = [
        {
            "task": task.name, "item": known, "turn": turn, "model": candidate, "against": opponent,
            "outcome": found[pair.id].outcome, "decision": found[pair.id].decision, "why": found[pair.id].why,
            "candidateFirst": list(found[pair.id].given), "opponentFirst": list(found[pair.id].exchanged),
            "entropy": found[pair.id].entropy,
            "replies": {order: [replies[key].text for i in range(judge.samples) if (key := f"{pair.id}/{order}/{i}") in replies] for order in pairs.ORDERS},
        }
        for known, of in by_item.items() for turn, pair in enumerate(of, 1)
    ]  # fmt: skip
    undecided = for_people(judgments)
    owner = {pair.id: known for known, of in by_item.items() for pair in of}
    look_at = tuple(dict.fromkeys(owner[one] for one in undecided))
    controlled = None
    if difficulty is not None:
        controlled = LengthControlled.of(difficulty, {known: of[candidate] for known, of in scores.items() if of})
    return Judged(
        task.name,
        scores,
        judgments,
        look_at,
        figures(judgments, confidence),
        dict(sorted(unscored.items())),
        rows,
        controlled,
    )


def grade(task: TaskSpec, items: Sequence[Item], answers: AnswersOf, judge: Judge) -> Judged:
    """Grade every model's answers, each turn apart, or each rubric where an item has some.

    A score is the mean of an answer's grades, brought to [0, 1]; the rubrics are variants of it. An answer of which any grade cannot be read is
    unscored.

    Args:
        task: for its name and seed.
        items: what was asked.
        answers: of all models.
        judge: who grades.
    """
    parts = {
        (model, item.id): _graded(item, f"{place}/{number}", of[item.id])
        for place, (model, of) in enumerate(answers.items())
        for number, item in enumerate(items)
    }
    replies: dict[str, Reply] = {}
    if judge.style is None:
        found = _rewarded(parts, judge.rewards)
    else:
        seeds = {item.id: item_seed(task, item) for item in items}
        calls = [
            call for (_, known), of in parts.items() for one in of.values() for call in grades.calls(judge.style, one, judge.samples, seeds[known])
        ]  # fmt: skip
        replies = judge.replies(calls)
        found = {
            one.id: grades.grade(judge.style, one, judge.samples, replies) for of in parts.values() for one in of.values()
        }
    scores: dict[str, dict[str, Score]] = {item.id: {} for item in items}
    rubrics = {item.id for item in items if item.rubrics}
    unscored: Counter[str] = Counter()
    rows = []
    for (model, known), of in parts.items():
        own = {name: found[one.id] for name, one in of.items()}
        values = {name: one.value for name, one in own.items() if one.value is not None}
        if len(values) == len(own):
            told = ", ".join(f"{name}: {one.mean:.3g}" for name, one in own.items())
            scores[known][model] = Score(
                sum(values.values()) / len(values), told, values if len(own) > 1 or known in rubrics else {}
            )
        else:
            unscored[next(one.why for one in own.values() if one.value is None)] += 1
        rows += [
            {
                "task": task.name, "item": known, "model": model, "graded": name, "grades": list(one.grades), "mean": one.mean,
                "value": one.value, "why": one.why,
                "replies": [replies[key].text for i in range(judge.samples) if (key := f"{one.id}/{i}") in replies],
            }
            for name, one in own.items()
        ]  # fmt: skip
    return Judged(task.name, scores, (), (), None, dict(sorted(unscored.items())), rows)


def judge_pairs(asked: Sequence[tuple[Pair, int]], judge: Judge) -> tuple[dict[str, PairJudgment], dict[str, Reply]]:
    """What the judge makes of pairs, by id of the pair, and its replies by key of the call.

    Args:
        asked: pairs, and the seed of each.
        judge: who compares.
    """
    if judge.style is None:
        return _rewarded_pairs([pair for pair, _ in asked], judge.rewards), {}
    calls = [call for pair, seed in asked for call in pairs.calls(judge.style, pair, judge.samples, seed)]
    replies = judge.replies(calls)
    return {pair.id: pairs.judgment(judge.style, pair, judge.samples, replies) for pair, _ in asked}, replies


def tests_of(task: TaskSpec, items: Sequence[Item], answers: AnswersOf, judged: Judged, judge: Judge) -> list[SelfTest]:
    """The judge's self-tests on a task's own questions and answers.

    Args:
        task: that a gate hangs on.
        items: its questions.
        answers: of all models.
        judged: what the judge made of the task.
        judge: who is tried.
    """
    given = {item.id: tuple(of[item.id] for of in answers.values()) for item in items}
    samples = [
        Sample(item.id, case_of(item), ((item.references,) if item.references else ()) + given[item.id]) for item in items
    ]
    limits = Limits()
    asked = probes(samples, limits)
    if judge.style is None:
        found, _ = judge_pairs([(probe.pair, 0) for probe in asked], judge)
        return results(asked, {known: one.outcome for known, one in found.items()}, limits)
    replies = judge.replies(test_calls(judge.style, asked, task.seed, task.pairwise))
    told = outcomes(judge.style, asked, replies, task.pairwise)
    return results(asked, told, limits, judged.judgments if task.pairwise else None)


def tripped(items: Sequence[Item], answers: Mapping[str, Answers]) -> str | None:
    """Whether the candidate plays the judge, in one sentence.

    Args:
        items: questions of a task.
        answers: of the candidate.
    """
    return tripwire([Sample(item.id, case_of(item), (answers[item.id],)) for item in items], Limits())


def _graded(item: Item, id: str, answers: Answers) -> dict[str, Graded]:
    """What is graded of an answer, by name: `turn 1` …, or its rubrics."""
    whole = Graded(id, case_of(item), answers)
    if not item.rubrics:
        return {f"turn {number}": one for number, one in enumerate(grades.by_turn(whole), 1)}
    return {
        name: Graded(
            f"{whole.id}/{name}", Case(item.prompt, item.turns, item.references, rubric=f"{name.lower()}, that is, {words}"), answers
        )
        for name, words in item.rubrics.items()
    }  # fmt: skip


def _rewarded_pairs(all_pairs: Sequence[Pair], rewards: Rewards) -> dict[str, PairJudgment]:
    """The outcomes of pairs by the reward of each answer, which knows no order."""
    chats = [_chat(pair.case, answers) for pair in all_pairs for answers in (pair.candidate, pair.opponent)]
    values = iter(rewards(chats))
    return {pair.id: pairs.by_scores(pair, next(values), next(values)) for pair in all_pairs}


def _rewarded(parts: Mapping[Any, Mapping[str, Graded]], rewards: Rewards) -> dict[str, Grade]:
    """Grades by reward, brought to [0, 1] by the logistic function: the chance to be preferred to an answer of reward 0."""
    graded = [one for of in parts.values() for one in of.values()]
    values = rewards([_chat(one.case, one.answers) for one in graded])
    return {
        one.id: Grade(
            one.id, (value,), value, None if value is None else 1 / (1 + math.exp(-max(-700.0, min(700.0, value)))),
            "too long for the reward model" if value is None else "", len(one.answers[-1]),
        )
        for one, value in zip(graded, values, strict=True)
    }  # fmt: skip


def _chat(case: Case, answers: Answers) -> Chat:
    turns: Chat = list(case.prompt)
    for number, answer in enumerate(answers):
        if number:
            turns.append({"role": "user", "content": case.turns[number - 1]})
        turns.append({"role": "assistant", "content": answer})
    return turns
