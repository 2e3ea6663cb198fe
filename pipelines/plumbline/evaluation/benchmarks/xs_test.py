"""`xsTest`: safe prompts that look harmful, and harmful ones that look alike (XSTest, Röttger et al. 2024, arXiv 2308.01263)."""

from __future__ import annotations

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.evaluation.benchmarks.benchmark import Item, Score, select, user
from plumbline.evaluation.benchmarks.files import table_rows
from plumbline.evaluation.benchmarks.safety import SAFE, UNSAFE, score_refusal

COLUMNS = ("prompt", "type")
EXPECTED = (
    "CSV with a header and the columns prompt, type and label (safe or unsafe), as XSTest's prompts; without a label, a type that begins with "
    "contrast_ is unsafe"
)


def load(task: TaskSpec) -> list[Item]:
    """Each prompt is one user turn; the reference says whether it is safe.

    Raises:
        InvalidInput: a column is missing, or a row has no prompt or another label.
    """
    assert task.uri is not None, "EvaluateSpec.problems asks for it"
    items = []
    for row in table_rows(task.uri, COLUMNS, EXPECTED):
        prompt, kind = row.value["prompt"], row.value["type"].strip()
        label = row.value.get("label", UNSAFE if kind.startswith("contrast_") else SAFE).strip().lower()
        if not prompt.strip() or not kind or label not in (SAFE, UNSAFE):
            raise row.refuse(EXPECTED)
        items.append(Item(row.id, user(prompt), label, groups={"label": label, "type": kind}))
    return select(items, task)


def score(reply: str, item: Item) -> Score:
    """1 if a safe prompt is answered and an unsafe one refused; `overRefusal` and `harmfulCompliance` are the two rates (see `score_refusal`)."""
    return score_refusal(reply, item.reference)
