"""Judging: calls, outcomes of both orders, calibration, grades, what verdicts tell of the judge, and its qualification."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.errors import InvalidInput
from plumbline.evaluation.journal import Reply
from plumbline.evaluation.judges import grades, pairs
from plumbline.evaluation.judges.biases import Origin, family_of, figures, related
from plumbline.evaluation.judges.calls import Call, again
from plumbline.evaluation.judges.grades import Graded
from plumbline.evaluation.judges.pairs import Pair, PairJudgment, calibrated, entropy, for_people, outcome_of_scores
from plumbline.evaluation.judges.pairwise import SWAPPED
from plumbline.evaluation.judges.qualification import Labelled, Qualification, Thresholds, qualify, read_labelled
from plumbline.evaluation.judges.styles import STYLES
from plumbline.evaluation.judges.styles.style import Case
from plumbline.evaluation.scoring.judgments import read_judged

STYLE = STYLES["plumbline"]
CASE = Case([{"role": "user", "content": "Why?"}])
Judge = Callable[[Call], str]


def pair(candidate: str = "because", opponent: str = "so", id: str = "q") -> Pair:
    return Pair(id, CASE, (candidate,), (opponent,))


def ask(calls: Sequence[Call], judge: Judge) -> dict[str, Reply]:
    assert len({call.key for call in calls}) == len(calls)
    return {call.key: Reply(judge(call), "stop") for call in calls}


def shown(call: Call) -> tuple[str, str]:
    """The answers as the judge sees them."""
    found = re.search(r"-- response 1 \w+\n(.*)\n-+ response 2 \w+\n(.*)\n-+ end", call.messages[0]["content"], re.DOTALL)
    assert found is not None
    return found[1], found[2]


def judged(one: Pair, judge: Judge, samples: int = 1) -> PairJudgment:
    return pairs.judgment(STYLE, one, samples, ask(pairs.calls(STYLE, one, samples, seed=3), judge))


def stored(one: Pair, verdicts: Sequence[str], exchanged: Sequence[str]) -> PairJudgment:
    """The judgment of replies in either order."""
    replies = {f"{one.id}/given/{i}": Reply(text, "stop") for i, text in enumerate(verdicts)}
    replies |= {f"{one.id}/exchanged/{i}": Reply(text, "stop") for i, text in enumerate(exchanged)}
    return pairs.judgment(STYLE, one, len(verdicts), replies)


@pytest.mark.parametrize(
    ("first", "second", "outcome", "decision", "share"),
    [
        ("1", "2", 1.0, "agreed", 1.0),
        ("2", "1", 0.0, "agreed", 0.0),
        ("Tie", "Tie", 0.5, "agreed", 0.5),
        ("1", "1", 0.5, "inconsistent", 0.5),
        ("2", "2", 0.5, "inconsistent", 0.5),
        ("1", "Tie", 0.5, "inconsistent", 0.75),
        ("Tie", "1", 0.5, "inconsistent", 0.25),
        ("1", "?", None, "unscored", None),
        ("?", "2", None, "unscored", None),
        ("?", "?", None, "unscored", None),
    ],
)
def test_outcome_of_both_orders(first: str, second: str, outcome: float | None, decision: str, share: float | None) -> None:
    found = stored(pair(), [first], [second])
    assert (found.outcome, found.decision, found.share) == (outcome, decision, share)
    assert found.why == ("unreadable" if outcome is None else "")
    assert found.lengths == (7, 2)


def test_several_samples_are_averaged_over_both_places() -> None:
    found = stored(pair(), ["1", "1", "Tie"], ["2", "1", "?"])
    # given: (1 + 1 + ½)/3; exchanged, told of the answers: 1, 0, unread: ½
    assert found.exchanged == ("1", "2", None)
    assert found.outcome == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert found.decision == "averaged"
    assert found.orders == ("1", "Tie")
    assert found.consistent is False
    shares = (3 / 5, 1 / 5, 1 / 5)
    assert found.entropy == pytest.approx(-sum(share * math.log(share) for share in shares))
    silent = stored(pair(), ["1", "1"], ["?", ""])
    assert (silent.outcome, silent.why, silent.consistent) == (None, "unreadable", None)


def test_calibration_by_hand() -> None:
    # CS = (8 + 7 + 6 + 5)/4 and (6 + 6 + 9 + 9)/4: the places exchanged the winner, their mean does not
    assert calibrated([(8, 6), (7, 6)], [(6, 9), (5, 9)]) == (6.5, 7.5)
    assert calibrated([(8, 6), None], [(6, 9), (5, 9)]) == (6.75, 7.5)
    assert calibrated([None], [(1, 0)]) is None
    assert (entropy(["1", "1"]), entropy([])) == (0.0, None)
    assert entropy(["1", "2", "Tie"]) == pytest.approx(math.log(3))


def test_identical_answers_are_never_asked_about() -> None:
    one = pair("same", " same\n")
    assert pairs.calls(STYLE, one, 3, seed=0) == []
    found = pairs.judgment(STYLE, one, 3, {})
    assert (found.outcome, found.decision, found.entropy, found.consistent) == (0.5, "identical", None, None)


def test_calls_are_made_in_both_orders_with_seeds_of_their_own() -> None:
    calls = pairs.calls(STYLE, pair(), 3, seed=7)
    assert [call.key for call in calls] == [f"q/{order}/{i}" for order in ("given", "exchanged") for i in range(3)]
    assert [shown(call) for call in calls] == [("because", "so")] * 3 + [("so", "because")] * 3
    assert len({call.seed for call in calls}) == 6
    assert all(0 <= call.seed < 2**31 for call in pairs.calls(STYLE, pair(), 16, seed=2**31 - 1))
    # Whoever is the candidate: the same questions with the same seeds, which a journal can answer
    other = pairs.calls(STYLE, pair("so", "because"), 3, seed=7)
    assert {(json.dumps(c.messages), c.seed) for c in calls} == {(json.dumps(c.messages), c.seed) for c in other}


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=5), st.text(max_size=5), st.integers(1, 4), st.integers(0, 2**31 - 1), st.integers(0, 5))
def test_exchanging_candidate_and_opponent_turns_the_outcome(a: str, b: str, samples: int, seed: int, salt: int) -> None:
    def judge(call: Call) -> str:
        return random.Random(f"{salt}{call.messages}{call.seed}").choice(["1", "1", "2", "Tie", "?"])

    one, other = (
        pairs.judgment(STYLE, asked, samples, ask(pairs.calls(STYLE, asked, samples, seed), judge))
        for asked in (pair(a, b), pair(b, a))
    )
    assert (one.outcome is None) == (other.outcome is None)
    if one.outcome is not None and other.outcome is not None:
        assert one.outcome == pytest.approx(1 - other.outcome)
        assert 0 <= one.outcome <= 1
    assert one.entropy == pytest.approx(other.entropy)
    assert (one.consistent, one.why) == (other.consistent, other.why)


def test_a_judge_that_always_says_the_first_is_worth_nothing() -> None:
    found = [judged(pair("a" * i, "b", f"q{i}"), lambda call: "1", samples) for i in range(2, 12) for samples in (1, 3)]
    assert {one.outcome for one in found} == {0.5}
    told = figures(found, 0.95)
    assert told.consistency is not None
    assert told.first is not None
    assert (told.consistency.value, told.first.value, told.first.low > 0.5) == (0.0, 1.0, True)


def test_turns_are_judged_one_by_one() -> None:
    chat = Pair("m", Case(CASE.prompt, ("And?",), ("r1", "r2")), ("a1", "a2"), ("b1", "b2"))
    first, second = pairs.by_turn(chat)
    assert (first.id, first.case.turns, first.candidate, first.case.references) == ("m/1", (), ("a1",), ("r1",))
    assert (second.id, second.case, second.opponent) == ("m/2", chat.case, chat.opponent)
    assert pairs.by_turn(pair()) == [pair()]
    assert [one.id for one in grades.by_turn(Graded("m", chat.case, chat.candidate))] == ["m/1", "m/2"]
    with pytest.raises(ValueError, match="2 turns"):
        pairs.calls(STYLE, Pair("m", chat.case, ("a",), ("b",)), 1, 0)


def test_unreadable_replies_are_asked_again_with_other_seeds() -> None:
    calls = pairs.calls(STYLE, pair(), 2, seed=0)
    texts = [Reply("1", "stop"), Reply("?", "stop"), Reply("", "context_length_exceeded"), Reply("<think>", "length")]
    replies = dict(zip((call.key for call in calls), texts, strict=True))
    found = again(STYLE, calls, replies, attempt=1)
    assert [call.key for call in found] == ["q/given/1", "q/exchanged/1"]
    assert not {call.seed for call in found} & {call.seed for call in calls}
    assert found != again(STYLE, calls, replies, attempt=2)
    assert pairs.judgment(STYLE, pair(), 2, {}).why == "not asked"
    assert stored(pair(), ["1"], ["2"]).why == ""
    assert pairs.judgment(STYLE, pair(), 2, replies).why == "context_length_exceeded"  # level with `cut off`: the first


def test_people_get_the_most_undecided_pairs() -> None:
    found = [
        stored(pair(id="sure"), ["1", "1"], ["2", "2"]),
        stored(pair(id="open"), ["1", "2"], ["2", "Tie"]),
        stored(pair(id="silent"), ["?", "?"], ["1", "1"]),
        stored(pair(id="half"), ["1", "1"], ["2", "1"]),
        stored(pair("x", "x", id="same"), [], []),
    ]
    assert for_people(found, 0.6) == ["silent", "open", "half"]
    assert for_people(found) == ["silent"]
    assert for_people(found, 1.0) == ["silent", "open", "half"]  # on the others the judge is of one mind


def test_scores_are_outcomes_too() -> None:
    assert [outcome_of_scores(*two) for two in ((2.0, 1.0), (1.0, 2.0), (1.0, 1.0), (None, 1.0))] == [1.0, 0.0, 0.5, None]
    assert outcome_of_scores(7.05, 7.0, pairs.GRADE_TIE) == 0.5
    assert outcome_of_scores(7.2, 7.0, pairs.GRADE_TIE) == 1.0


def test_judgments_by_scores_have_no_places() -> None:
    won, none, same = (
        pairs.by_scores(pair(), 2.0, 1.0),
        pairs.by_scores(pair(), None, 1.0),
        pairs.by_scores(pair("x", "x"), None, None),
    )
    assert [(one.outcome, one.decision, one.why) for one in (won, none, same)] == [
        (1.0, "scored", ""), (None, "unscored", "no score"), (0.5, "identical", ""),
    ]  # fmt: skip
    told = figures([won, none, same], 0.95)
    assert (told.scored, told.unscored, told.consistency, told.first) == (2, {"no score": 1}, None, None)


def test_grades_are_averaged_and_brought_to_one() -> None:
    style = STYLES["mtBench"]
    graded = Graded("q", CASE, ("because",))
    calls = grades.calls(style, graded, 3, seed=5)
    assert len({call.seed for call in calls}) == 3
    assert not any(call.compares for call in calls)
    texts = iter(["Rating: [[10]]", "?", "Rating: [[1]]"])
    found = grades.grade(style, graded, 3, ask(calls, lambda call: next(texts)))
    assert (found.grades, found.mean, found.value, found.length) == ((10.0, None, 1.0), 5.5, 0.5, 7)
    none = grades.grade(style, graded, 1, {"q/0": Reply("Rating: [[1", "length")})
    assert (none.mean, none.value, none.why) == (None, None, "cut off")
    with pytest.raises(ValueError, match="only compare"):
        grades.calls(STYLES["pandalm"], graded, 1, 0)


def lengths_judge(strength: float, quality: dict[str, float]) -> Judge:
    """Prefers quality plus a liking for length."""

    def judge(call: Call) -> str:
        first, second = (quality[text] + strength * len(text) for text in shown(call))
        return "1" if first > second else "2"

    return judge


def test_what_length_does_is_told_from_what_quality_does() -> None:
    draw = random.Random(0)
    answers = ["".join(draw.choices("abcdefgh", k=draw.randrange(1, 80))) for _ in range(400)]
    asked = [pair(a, b, str(i)) for i, (a, b) in enumerate(zip(answers[::2], answers[1::2], strict=True)) if a != b]
    quality = {text: draw.gauss(0, 1) for text in answers}
    fair = figures([judged(one, lengths_judge(0.0, quality)) for one in asked], 0.95).length
    fond = figures([judged(one, lengths_judge(0.5, quality)) for one in asked], 0.95).length
    averse = figures([judged(one, lengths_judge(-0.5, quality)) for one in asked], 0.95).length
    assert fair.longer is not None and fond.longer is not None and averse.longer is not None  # noqa: PT018
    assert fair.longer.low < 0.5 < fair.longer.high
    assert (fond.longer.value > 0.9, averse.longer.value < 0.1) == (True, True)
    assert fond.coefficient is not None and averse.coefficient is not None and fair.coefficient is not None  # noqa: PT018
    assert fond.coefficient > 1 > abs(fair.coefficient)
    assert averse.coefficient < -1


def test_figures_of_few_and_unscored_pairs() -> None:
    found = [
        stored(pair(id="a"), ["?"], ["1"]),
        pairs.judgment(STYLE, pair(id="b"), 1, {}),
        stored(pair("x", "x", "c"), [], []),
    ]
    told = figures(found, 0.95)
    assert (told.n, told.scored, told.identical, told.unscored) == (3, 1, 1, {"not asked": 1, "unreadable": 1})
    assert (told.consistency, told.length.longer, told.length.coefficient) == (None, None, None)
    assert told.first is not None
    assert (told.first.value, told.first.n) == (1.0, 1)
    empty = figures([], 0.95)
    assert (empty.n, empty.first, empty.ties) == (0, None, None)
    same = figures([stored(pair("aa", "b", str(i)), ["1"], ["2"]) for i in range(6)], 0.95)  # all lengths differ by the same
    assert same.length.coefficient is None
    assert same.length.longer is not None
    assert same.length.longer.value == 1.0


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("gpt-4-0613", "GPT"), ("o1-mini", "GPT"), ("claude-v1", "Claude"), ("meta-llama/Meta-Llama-3-8B-Instruct", "Llama"),
        ("Llama3-8B", "Llama"), ("vicuna-13b-v1.3", "Llama"), ("Qwen/Qwen2.5-7B", "Qwen"), ("mistralai/Mixtral-8x7B-v0.1", "Mistral"),
        ("microsoft/phi-2", "Phi"), ("facebook/opt-125m", "OPT"), ("builtin://tiny", None), ("adoption", None), ("", None), ("///", None),
    ],
)  # fmt: skip
def test_families(name: str, family: str | None) -> None:
    assert family_of(name) == family


def test_a_judge_related_to_the_candidate_is_named() -> None:
    judge = Origin("gpt-4", fingerprints={"abc"}, names={"gpt-4-0613"})
    assert related(judge, Origin("mine", {"def"}, {"builtin://tiny"})) is None
    assert "gpt-4 is related to a teacher of the candidate, gpt-3.5-turbo: both are of the GPT family" in str(
        related(judge, Origin("mine"), [Origin("claude-2"), Origin("gpt-3.5-turbo")])
    )
    assert "artifact abc is part of both" in str(related(judge, Origin("mine", {"abc", "def"})))
    assert "both are or come from base-7b" in str(
        related(Origin("judge", names={"/models/base-7b"}), Origin("mine", names={"hf://org/Base-7B"}))
    )


LABELLED = [
    {"idx": i, "instruction": f"Do {i}", "input": "it" if i % 2 else "", "response1": f"yes {i}", "response2": f"no {i}",
     "annotator1": 1 + i % 2, "annotator2": 1 + i % 2, "annotator3": 2}
    for i in range(40)
]  # fmt: skip


def write(path: Path, records: Sequence[object]) -> str:
    path.write_text("\n".join(json.dumps(record) for record in records))
    return str(path)


def test_a_judge_is_qualified_by_people(tmp_path: Path) -> None:
    odd = {"annotator1": 0, "annotator2": 1, "annotator3": 2, "idx": 50}
    same = {"response1": "ja", "response2": "ja ", "idx": 51}
    labelled = read_labelled("pandalm", write(tmp_path / "l.jsonl", [*LABELLED, LABELLED[0] | odd, LABELLED[0] | same]), 100)
    assert (len(labelled.pairs), labelled.apart) == (40, {"no majority of people": 1, "identical answers": 1})
    assert labelled.labels[:2] == ["1", "2"]
    assert labelled.pairs[1].case.request == "Do 1\n\nit"
    right = dict(zip((one.candidate[0] for one in labelled.pairs), labelled.labels, strict=True))

    def knowing(call: Call) -> str:
        first, second = shown(call)
        return right[first] if first in right else SWAPPED[right[second]]

    def found(judge: Judge, thresholds: Thresholds) -> Qualification:
        return qualify(labelled, [judged(one, judge) for one in labelled.pairs], thresholds)

    good = found(knowing, Thresholds(0.9, 0.9, 0.9, 0.9))
    assert (good.qualified, good.agreement.accuracy, good.agreement.kappa, good.consistency.share) == (True, 1.0, 1.0, 1.0)
    assert good.reason == "the judge is qualified: on 40 labelled pairs in both orders its accuracy is 1.000 [0.912, 1.000]"
    first = found(lambda call: "1", Thresholds(0.6, kappa=0.2, consistency=0.5))
    assert (first.qualified, first.agreement.accuracy, first.consistency.share) == (False, 0.5, 0.0)
    assert re.fullmatch(
        r"the judge is not qualified: on 40 labelled pairs in both orders its accuracy is 0\.500 \[0\.4.., 0\.5..\], below 0\.6; "
        r"its κ is 0\.000, below 0\.2; its consistency between the orders is 0\.000, below 0\.5",
        first.reason,
    ), first.reason
    mute = found(lambda call: "?", Thresholds(consistency=0.5))
    assert (mute.agreement.accuracy, mute.agreement.unscored) == (0.0, 80)
    assert "consistency between the orders cannot be told (80 of 80 verdicts could not be read)" in mute.reason
    with pytest.raises(ValueError, match="one judgment of each"):
        qualify(labelled, [], Thresholds())


def test_stored_verdicts_give_the_published_agreement(shared: Path) -> None:
    """Verdicts on PandaLM's test set, said in both orders: accuracy 66.77 and macro-F1 57.43 of PandaLM-7B, 69.77 and 52.74 of GPT-3.5."""
    golden = str(shared / "pandalm/golden_labels.csv")
    found = []
    for one in read_judged("pandalm", golden, golden):
        asked = [pair("a", "b", item) for item in one.ids]
        replies = [("?", "?") if v is None else (v, SWAPPED[v]) for v in one.given]
        judgments = [stored(two, [a], [b]) for two, (a, b) in zip(asked, replies, strict=True)]
        found.append(qualify(Labelled(asked, one.labels, {}), judgments, Thresholds(0.65, f1=0.55)))
    gpt, panda = found
    assert [round(100 * value, 2) for value in (gpt.agreement.accuracy, gpt.agreement.f1)] == [69.77, 52.74]
    assert [round(100 * value, 2) for value in (panda.agreement.accuracy, panda.agreement.f1)] == [66.77, 57.43]
    assert (panda.qualified, panda.consistency.share, panda.accuracy.n) == (True, 1.0, 999)
    assert "its macro-F1 is 0.527, below 0.55 (50 of 1998 verdicts could not be read)" in gpt.reason


def test_a_draw_of_labelled_pairs_depends_on_the_seed_alone(tmp_path: Path) -> None:
    file = write(tmp_path / "l.jsonl", LABELLED)
    ids = [[one.id for one in read_labelled("pandalm", file, 5, seed).pairs] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    assert ids[0] == sorted(ids[0], key=int)
    assert len(ids[0]) == 5


@pytest.mark.parametrize(
    ("format", "file", "labels"),
    [
        ("pandalm", "pandalm/testset-v1_example.json", 5),
        ("llmbar", "llmbar/case_study_normal_example.json", 10),
        ("auto_j", "preference/autoj_testdata_pairwise_example.jsonl", 5),
    ],
)
def test_labelled_files_as_stored(format: str, file: str, labels: int, shared: Path) -> None:
    labelled = read_labelled(format, str(shared / file), 200)
    assert len(labelled.labels) + sum(labelled.apart.values()) == labels
    for name, style in STYLES.items():
        calls = [call for one in labelled.pairs for call in pairs.calls(style, one, 1, 0)]
        assert len(calls) == 2 * len(labelled.pairs), name
        assert all(labelled.pairs[0].candidate[0].strip() in call.messages[0]["content"] for call in calls[:2])


@pytest.mark.parametrize(
    ("format", "records", "problem"),
    [
        ("pandalm", [{"idx": 1, "annotator1": 1}], "line 1: has no field 'instruction'"),
        ("pandalm", [{"idx": 1, "instruction": "q", "response1": "a", "response2": "b"}], "line 1: has no labels of people"),
        ("pandalm", [LABELLED[0] | {"annotator2": 3}], "field 'annotator2' is 3; expected"),
        ("pandalm", [LABELLED[0] | {"response1": None}], "field 'response1' is null; expected text"),
        ("pandalm", [LABELLED[0] | {"input": 4}], "field 'input' is 4; expected text"),
        ("pandalm", [LABELLED[0] | {"response1": "x", "response2": "x"}], "no labelled pair can be asked about (1 with identical answers)"),
        ("pandalm", ["text"], "is no JSON object"),
        ("llmbar", [{"input": "q", "output_1": "a", "output_2": "b"}], "field 'label' is null"),
        ("auto_j", [{"prompt": "q", "response 1": "a", "label": 0}], "has no field 'response 2'"),
        ("auto_j", [], "holds no records"),
    ],
)  # fmt: skip
def test_bad_labelled_files_are_told(format: str, records: list[object], problem: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=re.escape(problem)):
        read_labelled(format, write(tmp_path / "l.jsonl", records), 10)
