"""One call for each prompt of the dataset: distillation, and answers that explain."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from plumbline.api.stages.synthesize import SynthesizeSpec
from plumbline.api.synthesis.methods import DistillSpec, ExplainSpec
from plumbline.data.row import Chat, Row
from plumbline.data.synthesis.book import Book
from plumbline.data.synthesis.program import Program, Request, Sampling, random_of, text_of
from plumbline.data.synthesis.seeds import batches, context_of, name_of

# Ways to ask for reasons, sixteen as in Orca (arXiv 2306.02707); the words are our own.
SYSTEM_PROMPTS = (
    "Work through the task one step at a time, and let the reader follow each step to the answer.",
    "Answer the task, then explain why the answer is right and what would have made it wrong.",
    "You explain things to somebody who meets the subject for the first time. Use plain words and a small example.",
    "Give a thorough answer. Name the facts that it rests on before you draw the conclusion.",
    "First restate in a sentence what is asked for. Then solve it, and justify every choice you make.",
    "You are a patient tutor. Lead the learner to the answer, and say what rule or idea each step uses.",
    "Answer as an expert who writes for colleagues: precise, complete, with the reasoning laid open.",
    "Think about which parts the task has, deal with them in order, and close with the answer on its own.",
    "Explain how you reach the answer so that someone could check it without knowing the subject.",
    "Give the answer together with the evidence for it. Where something is uncertain, say so and why.",
    "Describe the approach first, carry it out second, and verify the result at the end.",
    "Break the task into the questions that it hides, answer each, and join the answers into one.",
    "Tell the reader what you know, what you infer from it and what you assume, and then what follows.",
    "Solve the task, then name a mistake that is easily made here and how one would notice it.",
    "Compare the answers that come to mind, give the one that holds, and say what speaks against the others.",
    "Answer briefly if the task is simple, in detail if it is not; in either case say what makes the answer hold.",
)


def distill(spec: SynthesizeSpec, rows: Sequence[Row], book: Book) -> Program:
    """The teacher's answers in place of the dataset's last ones."""
    method = spec.distill
    assert method is not None

    def shown(row: Row) -> tuple[Chat, Chat, str]:
        own = context_of(row)
        return _with_system(own, method.system_prompt) if method.system_prompt else own, own, "distill"

    yield from _answer(method, spec.seed, rows, book, shown)


def explain(spec: SynthesizeSpec, rows: Sequence[Row], book: Book) -> Program:
    """Answers with reasons: each prompt gets a system prompt that asks for them, and the row keeps it."""
    method = spec.explain
    assert method is not None
    prompts = method.system_prompts or SYSTEM_PROMPTS

    def shown(row: Row) -> tuple[Chat, Chat, str]:
        number = random_of(spec.seed, "system", name_of(row)).randrange(len(prompts))
        chat = _with_system(context_of(row), prompts[number])
        return chat, chat, f"explain:{number}"

    yield from _answer(method, spec.seed, rows, book, shown)


def _answer(
    method: DistillSpec | ExplainSpec,
    seed: int,
    rows: Sequence[Row],
    book: Book,
    shown: Callable[[Row], tuple[Chat, Chat, str]],
) -> Program:
    """Ask for the answer of each row.

    Args:
        method: how to sample.
        seed: of sampling. Equal prompts are one call.
        rows: whose prompts are answered.
        book: where the new rows go.
        shown: row → (the chat that the teacher sees, the chat that the new row keeps, the operation's name).
    """
    sampling = Sampling(method.temperature, method.max_tokens, seed)
    for batch in batches(rows, book):
        asked = [shown(row) for row in batch]
        replies = yield [Request(seen, sampling) for seen, _, _ in asked]
        for row, (_, kept, operation), reply in zip(batch, asked, replies, strict=True):
            with book.dropping(kept[-1]["content"]):
                answer: Chat = [{"role": "assistant", "content": text_of(reply)}]
                book.keep(
                    Row(
                        {"messages": [*kept, *answer]},
                        licence=row.licence,
                        language=row.language,
                        category=row.category,
                        operations=(*row.operations, operation),
                        parents=(name_of(row),),
                    )
                )


def _with_system(chat: Chat, prompt: str) -> Chat:
    rest = chat[1:] if chat and chat[0]["role"] == "system" else chat
    return [{"role": "system", "content": prompt}, *rest]
