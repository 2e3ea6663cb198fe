"""`synthesize`: a method asks a teacher, round by round; what it keeps becomes a dataset with a data card."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from plumbline.api.stages.synthesize import SynthesizeSpec
from plumbline.api.synthesis.teacher import JUDGE_KEY, TEACHER_KEY, TeacherSpec
from plumbline.data.candidates import Candidates
from plumbline.data.card import Tally, dropped_words
from plumbline.data.card_page import render_html
from plumbline.data.dataset import DatasetWriter, load_rows
from plumbline.data.decontamination.benchmarks import benchmarks_of
from plumbline.data.decontamination.findings import checks, write_report
from plumbline.data.refine import decontaminate
from plumbline.data.row import Form, Row
from plumbline.data.rows import dataset_schema, tabulate
from plumbline.data.sources import Origin
from plumbline.data.synthesis import METHODS
from plumbline.data.synthesis.book import Book
from plumbline.data.synthesis.budget import Budget
from plumbline.data.synthesis.calls import Calls
from plumbline.data.synthesis.endpoint import FAILED, NO_COMPLETION, Endpoint, key_of
from plumbline.data.synthesis.pace import Pace
from plumbline.data.synthesis.program import drive
from plumbline.data.synthesis.seeds import SeedRows
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.evaluation.journal import REPLIES, Journal
from plumbline.models.reference import ModelReference
from plumbline.stage import StageContext


def run(context: StageContext, spec: SynthesizeSpec) -> None:
    """Write the dataset.

    Raises:
        InvalidInput: the endpoint refuses us for good, a key is missing, or no row came out.
        PlumblineError: the endpoint does not answer now; every answer so far is kept.
    """
    form: Form = "pairs" if spec.produces == "PreferenceDataset" else "messages"
    rows = _seeds(context, spec)
    book = Book(context.node.name, spec.method, spec.rows, spec.teacher.model or _own_name(context))
    context.report.say(f"{spec.method} with {spec.teacher.model or _own_name(context)}")
    with (
        _journal(context, spec) as journal,
        _calls(context, spec, journal, book) as calls,
    ):
        drive(METHODS[spec.method](spec, rows, book), calls.ask)
    card = _write(context, spec, form, book)
    card["calls"] = dict(sorted(calls.counts.items()))
    card["scores"] = scores = _scores(book)
    if not card["rows"]:
        raise _nothing_made(context.where, card)
    folder = context.output.folder
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (folder / "card.html").write_text(render_html(card, context.node.name), encoding="utf-8")
    dropped = card["records"] - card["rows"]
    context.output.metrics.update(
        rows=card["rows"], dropped=dropped, tokens=calls.budget.spent, characters=card["characters"]["total"], **scores
    )
    context.output.details.update(rows=card["rows"], format=form)
    context.report.say(
        f"{card['rows']:,} of {spec.rows:,} rows made, {dropped_words(card, 'drafts')}, {calls.budget.spent:,} tokens"
    )


def _seeds(context: StageContext, spec: SynthesizeSpec) -> Sequence[Row]:
    dataset = context.input("dataset")
    if dataset is None:
        return []
    return SeedRows(load_rows(dataset, "messages"), spec.seed)


@contextmanager
def _calls(context: StageContext, spec: SynthesizeSpec, journal: Journal, book: Book) -> Iterator[Calls]:
    """The calls of a stage. The run's own model is served only once a call has to be sent."""
    judge = _judge(spec)
    identities = _identity(context, spec.teacher), _identity(context, judge)
    with ExitStack() as stack:
        endpoints: dict[bool, Endpoint] = {}

        def endpoint(of_judge: bool) -> Endpoint:
            of_judge = of_judge and judge is not spec.teacher
            if of_judge not in endpoints:
                endpoints[of_judge] = _endpoint(context, spec, judge if of_judge else spec.teacher, of_judge, stack)
            return endpoints[of_judge]

        def shown() -> None:
            asked = sum(count for what, count in calls.counts.items() if what.endswith(" calls"))
            context.report.step(book.rows, spec.rows, {"calls": asked, "tokens": calls.budget.spent})

        with Calls(endpoint, identities, journal, Budget(spec.token_budget), spec.calls.concurrency, shown) as calls:
            yield calls


def _endpoint(
    context: StageContext, spec: SynthesizeSpec, teacher: TeacherSpec, of_judge: bool, stack: ExitStack
) -> Endpoint:
    where = f"{context.where}.{'selfImprove.judge' if of_judge else 'teacher'}"
    if teacher.endpoint is None or teacher.model is None:
        url, name, key = _serve(context, spec, stack), _own_name(context), None
    else:
        url, name = teacher.endpoint, teacher.model
        key = key_of(teacher.key_secret, JUDGE_KEY if of_judge else TEACHER_KEY, where)
    pace = Pace(spec.calls.requests_per_minute, spec.calls.tokens_per_minute)
    return Endpoint(
        url, name, where=where, key=key, pace=pace, timeout=spec.calls.timeout_seconds, remote=teacher.endpoint is not None
    )


def _serve(context: StageContext, spec: SynthesizeSpec, stack: ExitStack) -> str:
    """Serve the model input through the same application as production; gives its base URL."""
    from plumbline.ray_environment import connect
    from plumbline.serving.chat import ServedModel
    from plumbline.serving.local import deployment

    connect()
    name = _own_name(context)
    context.report.say(f"deploying {name}")
    reference = ModelReference.of(context.plan, context.input("model"))
    url = stack.enter_context(
        deployment(
            [ServedModel(name, reference, _LONGEST)],
            application=f"synthesize-{context.plan.name}-{context.node.name}",
            port=None,
            replicas=1,
            max_ongoing_requests=spec.calls.concurrency,
        )
    )
    context.report.say(f"{spec.method} with {name}")
    return url


_LONGEST = 2**20
"""Tokens that the served model lets a call ask for: the method's limit and the model's context decide."""


def _journal(context: StageContext, spec: SynthesizeSpec) -> Journal:
    """What this teacher answered to this method on this dataset, also to stages that wanted fewer rows or had a smaller budget."""
    dataset = context.input("dataset")
    facts = [spec.method, _identity(context, spec.teacher), dataset.fingerprint if dataset else None, spec.seed]
    folder = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]
    return Journal(f"{context.plan.workspace.uri}/{REPLIES}/{folder}")


def _judge(spec: SynthesizeSpec) -> TeacherSpec:
    """Who judges: the teacher, unless the judge has an endpoint of its own."""
    return spec.judge if spec.judge is not None and spec.judge.endpoint else spec.teacher


def _identity(context: StageContext, teacher: TeacherSpec) -> str:
    """What tells a teacher's content from another's."""
    if teacher.endpoint is not None:
        return f"{teacher.endpoint} {teacher.model}"
    model = context.input("model")
    if model is not None:
        return model.fingerprint
    base = context.plan.run.spec.model
    return f"{context.plan.identities[base.base]} {base.dtype}"


def _own_name(context: StageContext) -> str:
    (name,) = context.node.inputs["model"]
    return name


def _write(context: StageContext, spec: SynthesizeSpec, form: Form, book: Book) -> dict[str, Any]:
    """Write the rows that hold no question of a benchmark, and count them and the drops; gives the data card."""
    tally, schema, folder = Tally([Origin(context.node.name, "")], [0], form), dataset_schema(form), context.output.folder
    block = spec.decontaminate
    sets = benchmarks_of(context.plan, block, f"{context.where}.decontaminate")
    card: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="rows-", dir=folder) as scratch, DatasetWriter(folder, schema) as writer:
        candidates = Candidates(Path(scratch), form, [])
        for table in tabulate(book.outcomes, form, 0, checks(sets, block)):
            candidates.add(table)
        candidates.seal()
        found = decontaminate(candidates, block, sets, own=1)
        for table in candidates.tables():
            tally.add(table)
            writer.write(table.filter(table["reason"].is_null()).select(schema.names))
        if block.enabled:
            card["contamination"] = write_report(found.report(block, candidates.kept()), folder)
    return tally.card() | card


def _scores(book: Book) -> dict[str, float]:
    """Mean score of the answers that were drawn and of those that were kept: whether choosing among them was worth it (RAFT)."""
    if not book.scores:
        return {}
    kept = [outcome.row.score for outcome in book.outcomes if outcome.row is not None and outcome.row.score is not None]
    return {"meanScoreDrawn": fmean(book.scores), **({"meanScoreKept": fmean(kept)} if kept else {})}


def _nothing_made(where: str, card: dict[str, Any]) -> PlumblineError:
    if not card["dropped"]:
        return InvalidInput(f"{where}: no row was made: the dataset has no prompt, or tokenBudget no room for one call")
    reason, count = next(iter(card["dropped"].items()))
    excerpt = card["examples"][reason][0]["excerpt"]
    kind = PlumblineError if reason.endswith((FAILED, NO_COMPLETION)) else InvalidInput  # the teacher's, or a judge's
    return kind(
        f"{where}: no row was made; {count} of {card['records']} drafts were dropped as '{reason}', such as: {excerpt[:200]}"
    )
