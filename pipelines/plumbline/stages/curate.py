"""`curate`: sources → rows → repairs and filters → deduplication → decontamination → selection → mix → Parquet and a data card."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from plumbline.api.curation.selection import TaggerSpec
from plumbline.api.stages.curate import CurateSpec, SourceSpec
from plumbline.data.appraise import Examples, appraise
from plumbline.data.candidates import Candidates
from plumbline.data.card import Tally, dropped_words
from plumbline.data.card_page import render_html
from plumbline.data.compose import Tag, mixed, select, token_card
from plumbline.data.dataset import DatasetWriter
from plumbline.data.decontamination.benchmarks import BenchmarkFiles, benchmarks_of
from plumbline.data.decontamination.findings import COLUMN, checks, write_report
from plumbline.data.filters.judge import Answer, judge_calls
from plumbline.data.measured import Measure
from plumbline.data.preparation import BORDER, Preparation
from plumbline.data.ray import measure_chunks, tables_of_parts
from plumbline.data.refine import decontaminate, deduplicate
from plumbline.data.row import Row
from plumbline.data.rows import dataset_schema
from plumbline.data.scoring import MODEL_METHODS, embedder, make_scorer
from plumbline.data.selection.tagger import tag_rows
from plumbline.data.sources import Origin, check_unchanged, find_parts, read_part
from plumbline.errors import InvalidInput
from plumbline.evaluation.journal import REPLIES
from plumbline.external import SKILLS, pinned
from plumbline.models.load import load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.ray_environment import connect
from plumbline.stage import StageContext

WRITTEN_ROWS = 10_000


def run(context: StageContext, spec: CurateSpec) -> None:
    """Curate one dataset.

    Raises:
        InvalidInput: a source is missing, broken or of the wrong format, shares cannot be met, or no row is left.
        PlumblineError: a source cannot be reached now, or changed meanwhile.
    """
    spec = pinned(spec, context.plan.identities)
    benchmarks = benchmarks_of(context.plan, spec.decontaminate, f"{context.where}.decontaminate")
    preparation, origins = _prepare(context, spec, benchmarks)
    where, own, model, say = preparation.where, preparation.own, preparation.model, context.report.say
    connect()
    say(f"reading {own} part{'s' if own > 1 else ''} of {', '.join(o.name for o in origins)}")
    with tempfile.TemporaryDirectory(prefix="rows-", dir=context.output.folder) as scratch:
        candidates = _read(context, preparation, Path(scratch))
        some_left = partial(_check_some_left, candidates, preparation, origins)
        some_left()
        embed, step = _embed(spec, preparation), context.report.step
        found: dict[str, Any] = {
            "deduplication": deduplicate(
                candidates, spec.deduplicate, own, spec.seed, embed, say, step, f"{where}.deduplicate"
            )
        }
        candidates.drop(_compared_only(candidates, own), "compared only")
        contamination = decontaminate(candidates, spec.decontaminate, benchmarks, own)
        some_left()
        with _judges(context, spec, where) as (rating, tagger):
            examples = _examples(context, spec, preparation)
            found |= appraise(candidates, spec.filters, examples, rating, f"{where}.filters", say, step)
            some_left()
            tokenizer, hard = load_tokenizer(model), None
            if spec.select is not None:
                say(f"selecting by {spec.select.method}")
                measure = _measure(spec, preparation)
                chosen = select(candidates, spec.select, tokenizer, spec.seed, measure, _tag(tagger), Path(scratch), step)
                found["selection"], hard = chosen.card, chosen.difficulty
                some_left()
        order = None
        if spec.mix is not None:
            say("mixing")
            origin_of = np.array([part.origin for part in preparation.parts])
            names = [origin.name for origin in origins]
            mixture = mixed(candidates, spec.mix, origin_of, names, tokenizer, spec.seed, hard, f"{where}.mix")
            order, found["mix"] = mixture.rows, mixture.card
        say("writing rows and the data card")
        tally, rows = _write(context, candidates, preparation, origins, order)
        card = tally.card() | found
        card["droppedBy"] = {reason: by for reason, by in candidates.dropped_by.items() if reason in card["dropped"]}
        card["tokens"] = token_card(candidates, candidates.kept() if order is None else order, tokenizer, spec.seed)
        if spec.decontaminate.enabled:
            report = contamination.report(spec.decontaminate, candidates.kept())
            card["contamination"] = write_report(report, context.output.folder)
    check_unchanged(spec.sources, context.plan.identities)
    _publish(context, spec, card, origins, tally, rows)


def _prepare(context: StageContext, spec: CurateSpec, benchmarks: list[BenchmarkFiles]) -> tuple[Preparation, list[Origin]]:
    where, identities = context.where, context.plan.identities
    earlier = context.input("dataset")
    if earlier is not None and earlier.type != spec.output_type():
        raise InvalidInput(
            f"{where}.produces: a {earlier.type.value} as input cannot become {spec.produces}; set {earlier.type.value}"
        )
    paths = [f"{where}.sources[{i}]" for i in range(len(spec.sources))]
    context.report.say("finding the sources' files, and counting the lines of big ones in MiB")
    step = context.report.step
    origins, parts = find_parts(spec.sources, earlier, spec.seed, paths, identities, step)
    others = [SourceSpec(uri=uri) for uri in spec.deduplicate.against]
    paths = [f"{where}.deduplicate.against[{i}]" for i in range(len(others))]
    _, against = find_parts(others, None, spec.seed, paths, identities, step)
    model = ModelReference.of(context.plan, None)
    checked = checks(benchmarks, spec.decontaminate)
    return Preparation((*parts, *against), len(parts), spec.rows_hold, spec, where, model, checked), origins


def _read(context: StageContext, preparation: Preparation, folder: Path) -> Candidates:
    parts = preparation.parts
    names = [annotation.field.name for annotation in preparation.annotations]
    facts = [name for name in names if name not in (COLUMN, BORDER)]
    candidates = Candidates(folder, preparation.form, facts)
    for table in tables_of_parts(len(parts), preparation.tables, preparation.schema, preparation.spec.parallelism):
        candidates.add(table)
        context.report.step(table["part"][-1].as_py(), len(parts), {"rows": len(candidates)})
    context.report.step(len(parts), len(parts), {"rows": len(candidates)})
    return candidates.seal()


def _compared_only(candidates: Candidates, own: int) -> np.ndarray:
    kept = candidates.kept()
    return kept[candidates.fact("part")[kept] >= own]


def _embed(spec: CurateSpec, preparation: Preparation) -> Measure | None:
    block = spec.deduplicate.semantic
    if block is None:
        return None
    where = f"{preparation.where}.deduplicate.semantic"
    make = partial(embedder, block, preparation.model, where, spec.deduplicate.key)
    return partial(measure_chunks, make=make, workers=spec.parallelism)


def _measure(spec: CurateSpec, preparation: Preparation) -> Measure | None:
    if spec.select is None or spec.select.method not in MODEL_METHODS:
        return None
    make = partial(make_scorer, spec.select, preparation.model, f"{preparation.where}.select")
    return partial(measure_chunks, make=make, workers=spec.parallelism)


def _examples(context: StageContext, spec: CurateSpec, preparation: Preparation) -> Examples | None:
    """Rows of the files that the textbook classifier learns from."""
    block = spec.filters.textbook
    if block is None or block.positive is None or block.negative is None:
        return None

    def rows(uri: str, name: str) -> Iterator[Row]:
        path = f"{preparation.where}.filters.textbook.{name}"
        _, parts = find_parts([SourceSpec(uri=uri)], None, spec.seed, [path], context.plan.identities)
        outcomes = (outcome for part in parts for outcome in read_part(part, preparation.form))
        return (outcome.row for outcome in outcomes if outcome.row is not None)

    return rows(block.positive, "positive"), rows(block.negative, "negative")


@contextmanager
def _judges(context: StageContext, spec: CurateSpec, where: str) -> Iterator[tuple[Answer | None, Answer | None]]:
    """Who rates rows, and who names tags."""
    judge = spec.filters.judge
    tagger = spec.select.tags.tagger if spec.select is not None and spec.select.tags is not None else None
    journal = f"{context.plan.workspace.uri}/{REPLIES}"
    with ExitStack() as stack:
        rating = stack.enter_context(judge_calls(judge, journal, f"{where}.filters.judge")) if judge else None
        tags = stack.enter_context(judge_calls(tagger, journal, f"{where}.select.tags.tagger")) if tagger else None
        yield rating.ask if rating else None, tags.ask if tags else None


def _tag(answer: Answer | None) -> Tag:
    def tag(rows: Sequence[Row], spec: TaggerSpec) -> tuple[np.ndarray, Counter[str]]:
        assert answer is not None, "there is a tagger where there is a spec of it"
        return tag_rows(rows, spec, answer)

    return tag


def _write(
    context: StageContext, candidates: Candidates, preparation: Preparation, origins: list[Origin], order: np.ndarray | None
) -> tuple[Tally, int]:
    """Count all rows, and write those that stay: as they came, or in the order of the mix."""
    tally = Tally(origins, [part.origin for part in preparation.parts], preparation.form)
    schema = dataset_schema(preparation.form)
    with DatasetWriter(context.output.folder, schema) as writer:
        for table in candidates.tables():
            own = table.filter(np.asarray(table["part"]) < preparation.own)
            tally.add(own)
            if order is None:
                writer.write(own.filter(own["reason"].is_null()).select(schema.names))
        if order is not None:
            for start in range(0, len(order), WRITTEN_ROWS):
                writer.write(candidates.take(order[start : start + WRITTEN_ROWS], schema.names))
    return tally, tally.rows if order is None else len(order)


def _publish(
    context: StageContext, spec: CurateSpec, card: dict[str, Any], origins: list[Origin], tally: Tally, rows: int
) -> None:
    output = context.output
    (output.folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (output.folder / "card.html").write_text(render_html(card, context.node.name), encoding="utf-8")
    dropped = card["records"] - card["rows"]
    output.metrics.update(rows=rows, dropped=dropped, sources=len(origins), characters=card["characters"]["total"])
    output.details.update(rows=rows, format=card["form"])
    output.sources.extend(_lineage(context, spec, origins, tally))
    context.report.say(f"{rows:,} rows written, {dropped_words(card, 'records')}")


def _check_some_left(candidates: Candidates, preparation: Preparation, origins: list[Origin]) -> None:
    """What has no rows can neither be deduplicated nor selected from.

    Raises:
        InvalidInput: no row of the sources is left; says what took them.
    """
    if (candidates.fact("part")[candidates.kept()] < preparation.own).any():
        return
    tally = Tally(origins, [part.origin for part in preparation.parts], preparation.form)
    for table in candidates.tables():
        tally.add(table.filter(np.asarray(table["part"]) < preparation.own))
    card, where, by = tally.card(), preparation.where, candidates.dropped_by
    if not card["dropped"]:
        raise InvalidInput(f"{where}.sources: there is no record in {', '.join(o.uri for o in origins)}; give others")
    (reason, count), *others = card["dropped"].items()
    example = card["examples"][reason][0]
    more = ", ".join(f"{n:,} as '{word}' ({by.get(word, 'sources')})" for word, n in others)
    advice = f"change {by[reason]}, or " if reason in by else ""
    raise InvalidInput(
        f"{where}.{by.get(reason, 'sources')}: no row is left of {card['records']:,} records; most ({count:,}) were dropped "
        f"as '{reason}', such as record {example['record']} of {example['source']}: {' '.join(example['excerpt'].split())[:120]}"
        f"{f'; {more}' if more else ''}; {advice}give sources with usable records"
    )


def _lineage(context: StageContext, spec: CurateSpec, origins: list[Origin], tally: Tally) -> list[dict[str, Any]]:
    """What the manifest says of the external sources; an earlier dataset is there as an input already."""
    first = 0 if context.input("dataset") is None else 1
    return [
        {"uri": origin.uri, "identity": context.plan.identities[origin.uri], "rows": tally.rows_of(i)}
        | ({"split": spec.sources[i - first].split} if origin.uri == SKILLS else {})
        for i, origin in enumerate(origins)
        if i >= first
    ]
