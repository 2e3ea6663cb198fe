"""`supportedFacts`: how much of what a reply states stands in the text that it was given, without a judge (after FActScore, Min et al. 2023,
arXiv 2305.14251, which asks a model for each claim)."""

from __future__ import annotations

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.evaluation.benchmarks.benchmark import Item, Score, select, user
from plumbline.evaluation.benchmarks.files import json_rows
from plumbline.evaluation.metrics.support import supported_facts

EXPECTED = (
    'one JSON object a line: {"prompt": "…", "source": "…"}; the source is shown below the prompt unless that holds it'
)


def load(task: TaskSpec) -> list[Item]:
    """Each prompt with its source is one user turn.

    Raises:
        InvalidInput: a row has not the two fields, or one of them is empty.
    """
    assert task.uri is not None, "TaskSpec.problems asks for it"
    items = []
    for row in json_rows(task.uri, EXPECTED):
        prompt, source = row.value.get("prompt"), row.value.get("source")
        if not isinstance(prompt, str) or not isinstance(source, str) or not prompt.strip() or not source.strip():
            raise row.refuse(EXPECTED)
        text = prompt if source in prompt else f"{prompt}\n\n{source}"
        items.append(Item(row.id, user(text), source, (source,)))
    return select(items, task)


def score(reply: str, item: Item) -> Score:
    """The share of the reply's claims that the source supports. A reply that states nothing is unparseable: silence is not faithful."""
    found = supported_facts(reply, item.reference)
    return Score(
        found.share or 0.0, None if found.share is None else "; ".join(c.text for c in found.claims if not c.supported)
    )
