"""Evol-Instruct (Xu et al. 2023, arXiv 2304.12244): instructions are rewritten to be harder or rarer; what fails goes back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from plumbline.api.stages.synthesize import SynthesizeSpec
from plumbline.data.normalise import fold
from plumbline.data.row import Reject, Row
from plumbline.data.synthesis.book import Book
from plumbline.data.synthesis.program import Program, Sampling, ask, random_of, seed_of, text_of
from plumbline.data.synthesis.seeds import batches, name_of

DEEPER = """\
Rewrite the instruction below so that it is somewhat harder for a capable language model, and still sensible, self-contained and \
answerable. {how} Add about 10 to 20 words, not more. Keep its language, and keep tables, code and other data that it holds. \
Reply with the new instruction only.

Instruction:
{instruction}"""

BROADER = """\
Take the instruction below as a hint, and write a quite different one from the same field: on a rarer matter, of about the same length \
and difficulty, self-contained and answerable. Keep its language. Reply with the new instruction only.

Instruction:
{instruction}"""

CODE = """\
Make the programming task below somewhat harder. {how} Add about 10 words, not more. Keep its language, and keep code that it holds. \
Reply with the new task only.

Task:
{instruction}"""

OPERATIONS = {
    "general": {
        "constrain": DEEPER.replace("{how}", "Add one more constraint or requirement."),
        "deepen": DEEPER.replace("{how}", "Where it asks about something, ask about it in greater depth and breadth."),
        "concretise": DEEPER.replace("{how}", "Replace general notions by more specific ones."),
        "reason": DEEPER.replace("{how}", "If it can be answered in a few steps of thought, make it need several."),
        "complicate": DEEPER.replace(
            "{how}", "Add input to work on, such as a table, a snippet of code, a formula or a document."
        ),
        "broaden": BROADER,
    },
    "code": {
        "constrain": CODE.replace("{how}", "Add one more constraint or requirement."),
        "rarer": CODE.replace("{how}", "Replace a common requirement by a less common, more specific one."),
        "reason": CODE.replace("{how}", "If a few logical steps solve it, make it need more."),
        "mislead": CODE.replace("{how}", "Add a short piece of wrong code as a distraction."),
        "complexity": CODE.replace("{how}", "Ask for a bound on time or memory that the plain solution breaks."),
    },
}
"""Operations by domain; one is drawn for each instruction and round, all with the same probability (the papers')."""

COMPARE = """\
Two instructions for a language model follow. Do they ask for the same thing: the same constraints, with the same depth and breadth? \
Reply with Equal or Different only.

First:
{first}

Second:
{second}"""

_LEAK = re.compile(
    r"\b(given|rewritten|created|new|original)\s+(prompt|instruction|task)\b|#(given|rewritten|created|new)\b", re.IGNORECASE
)
_APOLOGY = re.compile(r"\bsorry\b", re.IGNORECASE)
APOLOGY_WORDS = 80  # a longer answer that says sorry is an answer (the paper's)
# NLTK's English ones but for what stands behind an apostrophe, which is cut off, and three like them.
_STOP_WORDS = frozenset(
    """
    i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it
    its itself they them their theirs themselves what which who whom this that these those am is are was were be been
    being have has had having do does did doing a an the and but if or because as until while of at by for with about
    against between into through during before after above below to from up down in out on off over under again
    further then once here there when where why how all any both each few more most other some such no nor not only
    own same so than too very can will just don should now ain aren couldn didn doesn hadn hasn haven isn ma mightn
    mustn needn shan shouldn wasn weren won wouldn also could us
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Instruction:
    """An instruction in the pool and the row that it comes from."""

    text: str
    row: Row


def evol_instruct(spec: SynthesizeSpec, rows: Sequence[Row], book: Book) -> Program:
    """Evolve every instruction of the pool once a round; each success is a row and takes its parent's place."""
    method = spec.evol_instruct
    assert method is not None
    operations = OPERATIONS[method.domain]
    for batch in batches(rows, book, children=method.rounds):
        pool = [Instruction(row.prompts[0], row) for row in batch if row.prompts]
        for number in range(1, method.rounds + 1):
            drawn = [random_of(spec.seed, "evolve", number, one.text).choice(sorted(operations)) for one in pool]
            sampling = Sampling(method.temperature, method.max_tokens, seed_of(spec.seed, number), method.top_p)
            replies = yield [
                ask(operations[name].format(instruction=one.text), sampling) for name, one in zip(drawn, pool, strict=True)
            ]
            evolved: dict[int, str] = {}
            for i, reply in enumerate(replies):
                with book.dropping(pool[i].text):
                    evolved[i] = _not_leaking(text_of(reply), pool[i].text)

            verdict = Sampling(0.0, method.max_tokens, spec.seed)
            replies = yield [ask(_comparison(pool[i].text, text), verdict) for i, text in evolved.items()]
            gained: dict[int, str] = {}
            for (i, text), reply in zip(evolved.items(), replies, strict=True):
                with book.dropping(text):
                    if not differ(text_of(reply)):
                        raise Reject("no information gain")
                    gained[i] = text

            replies = yield [ask(text, sampling) for text in gained.values()]
            for (i, text), reply in zip(gained.items(), replies, strict=True):
                with book.dropping(text):
                    answer = _answered(text_of(reply))
                    pool[i] = Instruction(text, book.keep(_row(text, answer, pool[i].row, f"evolve:{drawn[i]}:{number}")))


def differ(verdict: str) -> bool:
    """Whether the verdict says that two instructions differ.

    Raises:
        Reject: it says neither.
    """
    word = re.match(r"\W*(equal|different|not equal)\b", verdict, re.IGNORECASE)
    if word is None:
        raise Reject("unreadable verdict", verdict[:80])
    return word[1].lower() != "equal"


def _not_leaking(text: str, parent: str) -> str:
    leak = _LEAK.search(text)
    if leak and not _LEAK.search(parent):
        raise Reject("repeats words of our prompt", leak[0])
    if fold(text) == fold(parent):
        raise Reject("no information gain", "unchanged")
    return text


def _answered(text: str) -> str:
    words = re.findall(r"[^\W_]+", re.sub(r"['’]\w+", "", text.lower()))
    if _APOLOGY.search(text) and len(words) < APOLOGY_WORDS:
        raise Reject("the teacher is sorry", text)
    if _STOP_WORDS.issuperset(words):
        raise Reject("answer without content", text)
    return text


def _comparison(first: str, second: str) -> str:
    return COMPARE.format(first=first, second=second)


def _row(instruction: str, answer: str, parent: Row, operation: str) -> Row:
    chat = [{"role": "user", "content": instruction}, {"role": "assistant", "content": answer}]
    return Row(
        {"messages": chat},
        licence=parent.licence,
        language=parent.language,
        category=parent.category,
        operations=(*(one for one in parent.operations if one.startswith("evolve:")), operation),
        parents=(name_of(parent),),
    )
