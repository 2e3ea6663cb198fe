"""What a report says of its judge: how its verdicts came about, whether it may be believed, what it cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from plumbline.evaluation.judging import Judged, Trust
from plumbline.evaluation.statistics import Estimate

LOOKED_AT = 20  # ids of undecided pairs that the page lists

Table = Callable[[Sequence[str], Sequence[Sequence[str]], set[int]], str]


@dataclass(frozen=True)
class JudgeReport:
    """A stage's judge.

    Attributes:
        name, style, samples: who judged and how.
        identity: what tells its content from another's: its fingerprint, or its endpoint and name there.
        temperature, max_tokens: of its verdicts.
        judged: its tasks.
        trust: whether it may be believed.
    """

    name: str
    style: str
    samples: int
    identity: str
    temperature: float
    max_tokens: int
    judged: Sequence[Judged]
    trust: Trust

    def to_json(self) -> dict[str, Any]:
        """Plain values, for report.json."""
        found = self.trust.qualification
        return {
            "name": self.name,
            "style": self.style,
            "samples": self.samples,
            "identity": self.identity,
            "temperature": self.temperature,
            "maxTokens": self.max_tokens,
            "tasks": [
                {
                    "task": one.task,
                    "unscored": dict(one.unscored),
                    "figures": asdict(one.figures) if one.figures else None,
                    "forPeople": list(one.look_at),
                    "selfTests": [asdict(test) for test in self.trust.self_tests.get(one.task, ())],
                    "notTrusted": self.trust.reasons.get(one.task),
                }
                for one in self.judged
            ],
            "qualification": None
            if found is None
            else {
                "qualified": found.qualified,
                "reason": found.reason,
                "accuracy": asdict(found.accuracy),
                "macroF1": found.agreement.f1,
                "kappa": found.agreement.kappa,
                "unscored": found.agreement.unscored,
                "consistency": found.consistency.share,
            },
        }

    def said(self, task: str) -> dict[str, list[tuple[str, str]]]:
        """Item id → what came of each judgment of it, and the judge's own words."""
        found: dict[str, list[tuple[str, str]]] = {}
        for row in (row for one in self.judged if one.task == task for row in one.rows):
            if "decision" in row:
                worth = "unscored" if row["outcome"] is None else f"{row['outcome']:g} to {row['model']}"
                told = (
                    f"{row['decision']}: {worth}",
                    "\n\n".join(f"({order}) {text}" for order, texts in row["replies"].items() for text in texts),
                )
            else:
                mean = "unscored" if row["mean"] is None else f"{row['mean']:.3g}"
                told = f"{row['model']}, {row['graded']}: {mean}", "\n\n".join(row["replies"])
            found.setdefault(row["item"], []).append(told)
        return found

    def html(self, table: Table) -> str:
        """The section of the page."""
        parts = [
            f"<h2>Judge</h2><p class='about'>{escape(self.name)}, style {escape(self.style)}, "
            f"{self.samples} verdict{'s' if self.samples > 1 else ''} for each order or answer.</p>"
        ]
        if self.trust.qualification is not None:
            parts.append(f"<p>{escape(self.trust.qualification.reason)}</p>")
        pairs = [one for one in self.judged if one.figures is not None]
        if pairs:
            head = [
                "task",
                "pairs",
                "unscored",
                "same in both orders",
                "the first preferred",
                "ties",
                "the longer preferred",
            ]
            parts.append(table(head, [_figures(one) for one in pairs], {1, 2, 3, 4, 5, 6}))
        grades = [[escape(one.task), _counts(one.unscored)] for one in self.judged if one.figures is None]
        if grades:
            parts.append(table(["task", "answers without a grade"], grades, set()))
        tests = [
            [escape(task), test.name, "passed" if test.passed else "not passed", escape(test.reason)]
            for task, of in self.trust.self_tests.items()
            for test in of
        ]
        if tests:
            parts.append(f"<h3>Self-tests</h3>{table(['task', 'test', '', 'why'], tests, set())}")
        for one in self.judged:
            undecided = one.look_at[:LOOKED_AT]
            if undecided:
                parts.append(
                    f"<p>{escape(one.task)}, for people to look at, the most undecided first: {escape(', '.join(undecided))}</p>"
                )
        return "\n".join(parts)


def cost_table(cost: Mapping[str, Mapping[str, int]], table: Table) -> str:
    """Calls and tokens of everybody who was asked. What a killed attempt had asked already counts too.

    Args:
        cost: who → calls, prompt tokens and answer tokens.
        table: renders it.
    """
    columns = ("calls", "prompt tokens", "answer tokens")
    rows = [[escape(who), *(f"{of[what]:,}" for what in columns)] for who, of in cost.items()]
    return f"<h2>Cost</h2>{table(['asked', *columns], rows, {1, 2, 3})}" if rows else ""


def _figures(one: Judged) -> list[str]:
    found = one.figures
    assert found is not None
    return [
        escape(one.task),
        f"{found.n}",
        _counts(found.unscored),
        *(_share(share) for share in (found.consistency, found.first, found.ties, found.length.longer)),
    ]


def _counts(found: Mapping[str, int]) -> str:
    return escape(", ".join(f"{count} {why}" for why, count in found.items())) or "0"


def _share(found: Estimate | None) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]" if found else "–"
