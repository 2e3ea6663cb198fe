"""Textbook lessons and exercises, after Phi-1 (Gunasekar et al. 2023, arXiv 2306.11644): diversity comes from what is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from plumbline.api.stages.synthesize import SynthesizeSpec
from plumbline.data.normalise import fold
from plumbline.data.row import Reject, Row
from plumbline.data.synthesis.book import Book
from plumbline.data.synthesis.program import Program, Sampling, ask, random_of, seed_of, text_of
from plumbline.data.synthesis.replies import items, parts

DIVIDE = """\
Divide the topic "{topic}" into {count} subtopics, from the elementary to the advanced, each of the size of one lesson. \
Reply with a numbered list of their titles and nothing else."""

LESSON = """\
Write a section of a textbook on "{subtopic}" (from: {topic}) for {audience}. Explain the idea, why it matters and how it works, with a worked \
example, in clear prose that needs no other source. Begin with the text itself."""

EXERCISE = """\
Write one exercise on "{subtopic}" (from: {topic}) for {audience}, and its solution with every step. The exercise must be complete in \
itself and have a checkable result. Use exactly this form:

Exercise: (the exercise)
Solution: (the solution)"""

REQUEST = "Explain {subtopic} (from: {topic}) to {audience}, with a worked example."


def textbook(spec: SynthesizeSpec, rows: Sequence[Row], book: Book) -> Program:
    """Divide topics into subtopics, then write for each audience and style, in a seeded order."""
    method = spec.textbook
    assert method is not None
    topics = list(dict.fromkeys(method.topics))
    replies = yield [
        ask(
            DIVIDE.format(topic=topic, count=method.subtopics),
            Sampling(method.temperature, method.max_tokens, seed_of(spec.seed, "divide", topic)),
        )
        for topic in topics
    ]
    subjects: list[tuple[str, str]] = []
    for topic, reply in zip(topics, replies, strict=True):
        with book.dropping(topic):
            found = items(text_of(reply, whole=False), cut=reply.finish_reason == "length")
            titles = {fold(title): title for title in found if title}
            subjects += [(topic, title) for title in list(titles.values())[: method.subtopics]]
    plan = list(product(subjects, dict.fromkeys(method.audiences), dict.fromkeys(method.styles)))
    random_of(spec.seed, "order").shuffle(plan)

    while plan and book.left > 0:
        chosen, plan = plan[: book.left], plan[book.left :]
        prompts = [
            (EXERCISE if style == "exercise" else LESSON).format(subtopic=subtopic, topic=topic, audience=audience)
            for (topic, subtopic), audience, style in chosen
        ]
        replies = yield [
            ask(prompt, Sampling(method.temperature, method.max_tokens, seed_of(spec.seed, prompt))) for prompt in prompts
        ]
        for ((topic, subtopic), audience, style), reply in zip(chosen, replies, strict=True):
            with book.dropping(f"{style}: {subtopic} for {audience}"):
                text = text_of(reply)
                prompt, answer = (
                    exercise(text)
                    if style == "exercise"
                    else (REQUEST.format(subtopic=subtopic, topic=topic, audience=audience), text)
                )
                chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
                book.keep(Row({"messages": chat}, category=topic, operations=(f"textbook:{style}",)))


def exercise(text: str) -> tuple[str, str]:
    """Exercise and solution.

    Raises:
        Reject: the text has another form.
    """
    found = parts(text, "exercise", "solution")
    if [label for label, _ in found] != ["exercise", "solution"] or not all(value for _, value in found):
        raise Reject("no exercise in the form asked for", text[:80])
    return found[0][1], found[1][1]
