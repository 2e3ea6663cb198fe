"""Two answers side by side with annotators' votes (PandaLM's test set, Wang et al. 2023, arXiv 2306.05087)."""

from __future__ import annotations

from collections import Counter
from typing import Any

from plumbline.data.chat import build_prompt, instruction_prompt, text_of
from plumbline.data.formats.rankings import ranking
from plumbline.data.row import Reject, Row

FIELDS = "instruction, response1, response2, annotator1, annotator2, … (0 for a tie, 1 or 2), optional input"

_SCORES = {"0": (0.5, 0.5), "tie": (0.5, 0.5), "1": (1.0, 0.0), "2": (0.0, 1.0)}
"""Vote → scores of the two answers."""


def recognise(record: dict[str, Any]) -> bool:
    """Whether the record has two answers and a vote."""
    return {"instruction", "response1", "response2", "annotator1"} <= record.keys()


def convert(record: dict[str, Any]) -> Row:
    """The ranking of the two answers by the votes of more than half of the annotators; a tie gives both the same score.

    Raises:
        Reject: an empty prompt or answer, equal answers, no vote, a vote of another kind, no majority.
    """
    if "instruction" not in record:
        raise Reject("missing field", "instruction")
    scores = _SCORES[_majority(record)]
    prompt = build_prompt([("user", instruction_prompt(record["instruction"], record.get("input")))])
    answers = zip((record.get("response1"), record.get("response2")), scores, strict=True)
    return ranking(prompt, answers, text_of(record["instruction"]))


def _majority(record: dict[str, Any]) -> str:
    votes = [
        str(vote).strip().lower() for name, vote in record.items() if name.startswith("annotator") and vote not in (None, "")
    ]
    strange = next((vote for vote in votes if vote not in _SCORES), None)
    if strange is not None or not votes:
        raise Reject("no verdict", f"vote: {strange!r}"[:40] if votes else "no annotator has voted")
    vote, count = Counter("0" if vote == "tie" else vote for vote in votes).most_common(1)[0]
    if 2 * count <= len(votes):
        raise Reject("annotators disagree", f"votes: {', '.join(votes)}")
    return vote
