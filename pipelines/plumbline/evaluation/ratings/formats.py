"""Files of stored judgments: AlpacaEval's annotations, arena battles, MT-Bench's judgments, Vicuna's reviews."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from plumbline.data.records import excerpt
from plumbline.errors import InvalidInput
from plumbline.evaluation.ratings.battles import Battle, Judgments, Preference, Score, Unscored
from plumbline.evaluation.ratings.record import FAILED, FIELDS, SHOWN, Record, records
from plumbline.evaluation.shown import shown
from plumbline.external import expand

TIE_DELTA = 0.1
"""Two grades in one reply that differ by no more are a tie, as in MT-Bench (Zheng et al. 2023)."""
LONGEST = 1e9
"""Characters of an answer that is believed."""
DECISIVE = 3
"""How often Arena-Hard counts `A>>B`."""

MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
"""Categories of questions 81 to 160, ten each."""
VICUNA = {
    "generic": 10, "knowledge": 20, "roleplay": 30, "common-sense": 40, "fermi": 50, "counterfactual": 60, "coding": 67, "math": 70,
    "writing": 80,
}  # fmt: skip
"""Categories of questions 1 to 80, by their last question."""

_ARENA_HARD = {"A>>B": (1.0, DECISIVE), "A>B": (1.0, 1), "A=B": (0.5, 1), "B>A": (0.0, 1), "B>>A": (0.0, DECISIVE)}
_ARENA_HARD |= {"A<<B": (0.0, DECISIVE), "A<B": (0.0, 1), "B=A": (0.5, 1), "B<A": (1.0, 1), "B<<A": (1.0, DECISIVE)}
_REVIEW = re.compile(r"review_([^_]+)_([^_]+)")


def read_judgments(format: str, files: Sequence[str], baseline: str | None = None) -> Judgments:
    """All judgments of the files.

    Args:
        format: a key of `FIELDS`.
        files: paths, globs, folders or URIs; JSON lines, a JSON array, CSV with a header or Parquet, also compressed.
        baseline: the model that Arena-Hard's judgments compare with, if they do not say it.

    Raises:
        InvalidInput: FILE:LINE, what is wrong there, and what would be accepted; or a file is given twice, or holds nothing.
    """
    names = [name for file in files for name in expand(file)]
    for name, count in Counter(names).items():
        if count > 1:
            raise InvalidInput(f"{name} is given {count} times, so its judgments would count {count} times; give it once")
    into = Judgments()
    seen: set[bytes] = set()
    judges: set[str] = set()
    for name in names:
        read = _READERS[format](into, name, baseline)
        for record in records(name, format):
            read(record)
            key = hashlib.sha256(json.dumps(record.value, sort_keys=True, default=str).encode(errors="replace")).digest()
            into.repeated += key in seen
            seen.add(key)
            judge = record.value.get("annotator", record.value.get("judge"))
            judges.add(str(judge[0] if isinstance(judge, list) and judge else judge))
    if format == "battles":
        into.repeated = 0  # the same row may well be two battles, and every voter is a judge
    elif len(judges) > 1:
        into.notes.append(
            f"judgments of {len(judges)} judges are taken together: {excerpt(', '.join(sorted(judges)), SHOWN)}"
        )
    if into.repeated:
        into.notes.append(f"{into.repeated:,} judgments are there more than once, word for word; every copy counts")
    return into


def alpaca_eval(into: Judgments, file: str, baseline: str | None) -> Callable[[Record], None]:
    """AlpacaEval's annotations: `preference` in [1, 2] of `generator_2` over `generator_1`; 0 and 1.5 are draws."""

    def read(record: Record) -> None:
        model = record.text("generator_2", "model")
        against = record.text("generator_1", "baseline") if {"generator_1", "baseline"} & set(record.value) else "baseline"
        if "preference" not in record.value:
            raise record.missing(("preference",))
        said = record.number("preference", "1 to 2 (2: the model's answer is preferred), 0 or 1.5 for a draw, or null")
        value = None if said is None else 0.5 if said == 0 else said - 1
        if value is None or not 0 <= value <= 1:
            reason = "no preference could be read" if value is None else f"the preference {said:g} is not within 1 to 2"
            into.unscored.append(Unscored(record.where, (model, against), reason))
            value = None
        instruction = record.value.get("instruction")
        controlled = record.number("glm_preference", "0 to 1, or null")
        if controlled is not None and not 0 <= controlled <= 1:
            raise record.refuse("glm_preference", "0 to 1, or null")
        into.preferences.append(
            Preference(
                model, against, value, record.whole("index", "item"), instruction if isinstance(instruction, str) else None,
                _length(record, "output_2", "characters_model"), _length(record, "output_1", "characters_baseline"), controlled,
            )
        )  # fmt: skip

    return read


def battles(into: Judgments, file: str, baseline: str | None) -> Callable[[Record], None]:
    """Chatbot Arena's battles, or Arena-Hard's judgments of two games in which the answers change places."""

    def read(record: Record) -> None:
        if "games" in record.value:
            _arena_hard(into, record, baseline)
            return
        first, second = record.text("model_a"), record.text("model_b")
        if "winner" not in record.value:
            raise record.missing(("winner",))
        winner = record.value["winner"]
        accepted = "model_a, model_b, tie, tie (bothbad), or null where the judge's reply could not be read"
        if winner is None or (isinstance(winner, str) and winner.strip().lower() in FAILED):
            into.unscored.append(Unscored(record.where, (first, second), "no winner could be read"))
            return
        outcome = _winner(winner, {"model_a": 1.0, "model_b": 0.0, first: 1.0, second: 0.0})
        if outcome is None:
            raise record.refuse("winner", accepted)
        if first == second:
            into.unscored.append(Unscored(record.where, (first,), "a model against itself"))
            return
        into.battles.append(Battle(first, second, outcome))

    return read


def _arena_hard(into: Judgments, record: Record, baseline: str | None) -> None:
    """Two games: the baseline is A in the first and B in the second; decisive verdicts count three times."""
    model, question = record.text("model"), record.question()
    against = record.value.get("baseline") or baseline
    games = record.value["games"]
    if not isinstance(against, str):
        raise InvalidInput(
            f"{record.where}: Arena-Hard's judgments do not say which model theirs was compared with; give --baseline"
        )
    if not isinstance(games, list) or len(games) != 2:
        raise record.refuse("games", "a list of two games")
    if model == against:
        into.unscored.append(Unscored(record.where, (model,), "a model against itself"))
        return
    for turn, game in enumerate(games):
        said = game.get("score") if isinstance(game, dict) else None
        if said is not None and said not in _ARENA_HARD:
            raise InvalidInput(
                f"{record.where}: games[{turn}].score is {shown(said)}; accepted: {', '.join(_ARENA_HARD)}, or null"
            )
        if said is None:
            into.unscored.append(Unscored(record.where, (model, against), "no verdict could be read"))
            continue
        outcome, weight = _ARENA_HARD[said]
        first, second = (against, model) if turn == 0 else (model, against)
        into.shown[question, first, second] = outcome
        into.battles.append(Battle(first, second, outcome, weight))


def mt_bench(into: Judgments, file: str, baseline: str | None) -> Callable[[Record], None]:
    """MT-Bench's judgments: grades of 1 to 10 by turn, or pairs in both orders, where a disagreement is a tie."""

    def read(record: Record) -> None:
        if "g1_winner" in record.value or "model_1" in record.value:
            _pair(into, record)
            return
        model, question = record.text("model"), record.question()
        if "score" not in record.value:
            raise record.missing(("score",))
        said = record.number("score", "a grade of 0 to 10, or -1 or null where none could be read")
        if said is None or not 0 <= said <= 10:
            reason = "no grade could be read" if said in (None, -1) else f"the grade {said:g} is not within 0 to 10"
            into.unscored.append(Unscored(record.where, (model,), reason))
            return
        into.scores.append(Score(model, said, question, record.whole("turn"), _category(record, question, 81)))

    return read


def _pair(into: Judgments, record: Record) -> None:
    first, second = record.text("model_1"), record.text("model_2")
    question = f"{record.question()} {record.value.get('turn')} {record.value.get('judge')}"
    places = {"model_1": 1.0, "model_2": 0.0, first: 1.0, second: 0.0}
    outcomes: list[float | None] = []
    for name in ("g1_winner", "g2_winner"):
        if name not in record.value:
            raise record.missing((name,))
        said = record.value[name]
        failed = said is None or (isinstance(said, str) and said.strip().lower() in FAILED)
        outcomes.append(None if failed else _winner(said, places))
        if not failed and outcomes[-1] is None:
            raise record.refuse(name, "model_1, model_2, tie, or error where the judge's reply could not be read")
    if first == second:
        into.unscored.append(Unscored(record.where, (first,), "a model against itself"))
        return
    if outcomes[0] is not None:
        into.shown[question, first, second] = outcomes[0]
    if outcomes[1] is not None:
        into.shown[question, second, first] = 1 - outcomes[1]
    if outcomes[0] is None or outcomes[1] is None:
        into.unscored.append(Unscored(record.where, (first, second), "no verdict could be read in one of the orders"))
        return
    into.battles.append(Battle(first, second, outcomes[0] if outcomes[0] == outcomes[1] else 0.5))


def vicuna_review(into: Judgments, file: str, baseline: str | None) -> Callable[[Record], None]:
    """Reviews of two answers with a grade of 1 to 10 each. Models are named by the records or by `review_FIRST_SECOND.jsonl`."""
    named = _REVIEW.fullmatch(re.sub(r"(\.(jsonl?|gz|gzip|zst|zstd|csv|parquet))+$", "", PurePosixPath(file).name))
    default = (named[1], named[2]) if named else ("answer 1", "answer 2")

    def read(record: Record) -> None:
        first, second = (
            record.text(*(name for name in names if name in record.value)) if set(names) & set(record.value) else fallback
            for names, fallback in zip((("model1", "model_1"), ("model2", "model_2")), default, strict=True)
        )
        question = record.question()
        if "score" not in record.value:
            raise record.missing(("score",))
        accepted = "two grades of 0 to 10, such as [8, 9], or [-1, -1] where none could be read"
        said = record.value["score"]
        if said is not None and not (
            isinstance(said, list)
            and len(said) == 2
            and all(one is None or (isinstance(one, int | float) and not isinstance(one, bool)) for one in said)
        ):
            raise record.refuse("score", accepted)
        if (first, second) == ("answer 1", "answer 2") and not into.notes:
            into.notes.append(
                f"{file} does not name its models; a name like review_FIRST_SECOND.jsonl, or the fields model1 and model2, would"
            )
        if first == second:
            into.unscored.append(Unscored(record.where, (first,), "a model against itself"))
            return
        grades = [one for one in said or () if one is not None and 0 <= one <= 10]
        if len(grades) != 2:
            into.unscored.append(Unscored(record.where, (first, second), "no two grades of 0 to 10 could be read"))
            return
        category = _category(record, question, 1)
        for model, grade in zip((first, second), grades, strict=True):
            into.scores.append(Score(model, float(grade), question, None, category))
        outcome = 0.5 if abs(grades[0] - grades[1]) < TIE_DELTA + 1e-9 else float(grades[0] > grades[1])
        into.battles.append(Battle(first, second, outcome))
        into.shown[question, first, second] = outcome

    return read


def _winner(said: Any, places: Mapping[str, float]) -> float | None:
    """The first model's outcome; None for what is no winner."""
    if not isinstance(said, str):
        return None
    return 0.5 if said.strip().lower().startswith("tie") or said == "bothbad" else places.get(said)


def _category(record: Record, question: str, first: int) -> str | None:
    """The record's category, else that of MT-Bench's (`first` 81) or Vicuna's (1) question of this number."""
    named = record.value.get("category")
    if isinstance(named, str) and named:
        return named.encode(errors="replace").decode()
    number = int(question) if question.isdecimal() and len(question) < 4 else 0
    if not first <= number < first + 80:
        return None
    if first == 1:
        return next(name for name, last in VICUNA.items() if number <= last)
    return MT_BENCH[(number - first) // 10]


def _length(record: Record, answer: str, characters: str) -> float | None:
    """Characters of an answer that is there, or the number of them."""
    text = record.value.get(answer)
    if isinstance(text, str):
        return float(len(text))
    found = record.number(characters, "a number of characters")
    if found is not None and not 0 <= found <= LONGEST:
        raise record.refuse(characters, "a number of characters")
    return found


_READERS: dict[str, Callable[[Judgments, str, str | None], Callable[[Record], None]]] = {
    "alpaca_eval": alpaca_eval,
    "battles": battles,
    "mt_bench": mt_bench,
    "vicuna_review": vicuna_review,
}
FORMATS = tuple(FIELDS)
