"""Questions without right answers, in the files of MT-Bench, Vicuna-80, AlpacaEval, FLASK, Arena-Hard, or your own; a judge scores the replies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.errors import InvalidInput
from plumbline.evaluation.benchmarks.benchmark import Item, select, user
from plumbline.evaluation.judges.skills import SKILLS
from plumbline.evaluation.scoring.records import Record, read_records
from plumbline.evaluation.shown import shown

IDS = ("question_id", "uid", "id", "idx")
TEXTS = ("turns", "prompt", "instruction", "Instruction", "question", "conversations")
ANSWERS = ("choices", "output", "text", "response", "reply", "answer")
TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""Of the answers to MT-Bench, by category; 0 in all others (FastChat)."""
EXPECTED = "questions: `prompt`, `instruction` (with `input` or `instances`), `question` or `turns`"

Facts = Callable[[Record], dict[str, str]]


@dataclass(frozen=True)
class OpenQuestions:
    """A set of questions.

    Attributes:
        groups: what a record belongs to.
        turns: how many turns each question has; None: any number.
        reference: field of a record with its reference answer, if there is one.
        rubrics: what a record is graded for apart.
    """

    groups: Facts
    turns: int | None = None
    reference: str | None = None
    rubrics: Facts = lambda record: {}

    def load(self, task: TaskSpec) -> list[Item]:
        """Each question is a user turn, or several; an item's id is the file's own, else `file:place`.

        Raises:
            InvalidInput: a record is no such question, stands there twice, or a reference answer belongs to none.
        """
        assert task.uri is not None, "TaskSpec.problems asks for it"
        items: dict[str, Item] = {}
        for number, record in enumerate(read_records(task.uri, EXPECTED)):
            first, *further = turns = _turns(record)
            if self.turns is not None and len(turns) != self.turns:
                raise record.refuse(f"has {len(turns)} turns; {task.benchmark} has {self.turns} a question")
            known = identity(record)
            if known in items:
                raise record.refuse(f"question {known} stands there twice; keep one")
            groups, own = self.groups(record), record.value.get(self.reference or "")
            references = (own,) if isinstance(own, str) and own.strip() else ()
            items[known] = Item(
                known,
                user(first),
                "\n\n".join(references),
                ("\n".join(turns),),
                turns=tuple(further),
                references=references,
                rubrics=self.rubrics(record),
                groups=groups,
                temperature=TEMPERATURES.get(groups.get("category", ""), 0.0) if task.benchmark == "mtBench" else None,
                number=number,
            )
        if task.references is not None:
            stored = stored_answers(task.references, list(items.values()), "references")
            items = {known: _with_reference(item, stored.get(known, ())) for known, item in items.items()}
        return select(list(items.values()), task)


def stored_answers(uri: str, items: Sequence[Item], field: str) -> dict[str, tuple[str, ...]]:
    """Answers of a file to these items, turn by turn, by item id.

    They belong to a question by its text, as AlpacaEval's outputs do, else by its id. Answers to other questions are passed over: files often
    hold those of a whole set.

    Args:
        uri: FastChat's answers (`choices[0].turns`, `text`), AlpacaEval's outputs (`instruction`, `output`), or alike.
        items: of one task.
        field: whose URI it is, for messages.

    Raises:
        InvalidInput: a record holds no answer, one question has two, or none of the answers belongs to an item.
    """
    ids, texts = {item.id for item in items}, {item.prompt[0]["content"].strip(): item.id for item in items}
    found: dict[str, tuple[str, ...]] = {}
    for record in read_records(uri, "answers: `question_id` or `instruction`, and `choices`, `output` or `text`"):
        # By its text where it holds one: numbers of another list would give answers to other questions.
        known = texts.get(_turns(record)[0].strip(), "") if any(name in record.value for name in TEXTS) else identity(record)
        known = known if known in ids else ""
        if not known:
            continue
        if known in found:
            raise record.refuse(f"question {known} has an answer already; {field} holds one answer a question")
        found[known] = _answer(record)
    if not found:
        raise InvalidInput(
            f"{field}: no answer in '{uri}' belongs to a question of the task; they belong by the text of instruction or prompt, else by question_id or id"
        )
    return found


def identity(record: Record) -> str:
    """The id of a question: its own, else where it stands."""
    for name in IDS:
        value = record.value.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value):
            return str(value)
    return f"{record.file.rsplit('/', 1)[-1]}:{record.place.rsplit(' ', 1)[-1]}"


def _turns(record: Record) -> list[str]:
    value = next((record.value[name] for name in TEXTS if name in record.value), None)
    turns: list[Any] = value if isinstance(value, list) else [value]
    turns = [
        turn["content"] if isinstance(turn, dict) and "content" in turn else turn for turn in turns
    ]  # Arena-Hard's first form
    if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise record.refuse(f"is no question: {shown(record.value)}; expected {EXPECTED}")
    return [turns[0] + _input(record.value), *turns[1:]]


def _input(value: Mapping[str, Any]) -> str:
    """What an instruction is about, where it stands in a field of its own (Self-Instruct's)."""
    instances = value.get("instances")
    inner = instances[0] if isinstance(instances, list) and instances and isinstance(instances[0], dict) else value
    text = inner.get("input")
    return f"\n\n{text}" if isinstance(text, str) and text.strip() else ""


def _answer(record: Record) -> tuple[str, ...]:
    value: Any = next((record.value[name] for name in ANSWERS if name in record.value), None)
    if isinstance(value, list) and value and isinstance(value[0], dict):  # FastChat's choices: the first is taken, as there
        value = value[0].get("turns")
    turns = value if isinstance(value, list) else [value]
    if not turns or not all(isinstance(turn, str) for turn in turns):
        raise record.refuse(f"holds no answer: {shown(record.value)}; expected one of {', '.join(ANSWERS)}")
    return tuple(turns)


def _with_reference(item: Item, answers: tuple[str, ...]) -> Item:
    if answers and len(answers) != 1 + len(item.turns):
        raise InvalidInput(f"question {item.id} has {1 + len(item.turns)} turns, and its reference {len(answers)}")
    return replace(item, reference="\n\n".join(answers), references=answers) if answers else item


def _field(name: str, field: str | None = None) -> Facts:
    def groups(record: Record) -> dict[str, str]:
        value = record.value.get(field or name)
        return {name: str(value)} if isinstance(value, str | int) and str(value) else {}

    return groups


def _flask(record: Record) -> dict[str, str]:
    """Domain and difficulty of a FLASK item (Ye et al. 2023, arXiv 2307.10928)."""
    domains = record.value.get("domain")
    found = {
        "domain": domains[0] if isinstance(domains, list) and domains else domains,
        "difficulty": record.value.get("difficulty"),
    }
    return {name: value for name, value in found.items() if isinstance(value, str) and value}


def _skills(record: Record) -> dict[str, str]:
    """The skills that a FLASK item is graded for, and what each means."""
    skills = record.value.get("skill")
    if not isinstance(skills, list) or not skills or not all(skill in SKILLS for skill in skills):
        raise record.refuse(f"field 'skill' is {shown(skills)}; expected a list of {', '.join(SKILLS)}")
    return {skill: SKILLS[skill] for skill in skills}


MT_BENCH = OpenQuestions(_field("category"), turns=2)
VICUNA = OpenQuestions(_field("category"), turns=1)
ALPACA_EVAL = OpenQuestions(_field("dataset"), turns=1)
ARENA_HARD = OpenQuestions(_field("cluster"), turns=1)
FLASK = OpenQuestions(_flask, turns=1, reference="answer", rubrics=_skills)
PROMPTS = OpenQuestions(_field("category"))
