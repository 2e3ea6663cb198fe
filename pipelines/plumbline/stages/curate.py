"""`curate`: sources → canonical rows → exact deduplication → Parquet and a data card."""

from __future__ import annotations

import json
from typing import Any

from plumbline.api.base import ArtifactType
from plumbline.api.stages.curate import CurateSpec
from plumbline.data.card import Tally, render_html
from plumbline.data.dataset import DatasetWriter
from plumbline.data.deduplicate import FirstOccurrences, mark_duplicates
from plumbline.data.formats import Makes
from plumbline.data.ray import read_parallel
from plumbline.data.rows import dataset_schema
from plumbline.data.sources import Origin, find_parts
from plumbline.errors import InvalidInput
from plumbline.ray_environment import connect
from plumbline.stage import StageContext

MAKES: dict[ArtifactType, Makes] = {ArtifactType.DATASET: "messages", ArtifactType.PREFERENCE_DATASET: "pairs"}


def run(context: StageContext, spec: CurateSpec) -> None:
    """Curate one dataset.

    Raises:
        InvalidInput: a source is missing, broken or of the wrong format, or no row is left.
        PlumblineError: a source cannot be reached now.
    """
    makes, where = MAKES[spec.output_type()], _field_path(context)
    earlier = context.input("dataset")
    if earlier is not None and MAKES[earlier.type] != makes:
        raise InvalidInput(f"{where}.produces: a {earlier.type.value} as input cannot become {spec.produces}; set Dataset")

    origins, parts = find_parts(spec.sources, earlier, spec.seed, where)
    connect()
    context.report.say(f"reading {len(parts)} part{'s' if len(parts) > 1 else ''} of {', '.join(o.name for o in origins)}")
    tally = Tally(origins, [part.origin for part in parts], makes)
    seen, schema = FirstOccurrences(), dataset_schema(makes)
    with DatasetWriter(context.output.folder, schema) as writer:
        for table in read_parallel(parts, makes, spec.max_characters, spec.parallelism):
            if spec.deduplicate == "exact":
                table = mark_duplicates(table, seen)
            tally.add(table)
            writer.write(table.filter(table["reason"].is_null()).select(schema.names))
            context.report.step(table["part"][-1].as_py(), len(parts), {"rows": tally.rows})
    context.report.step(len(parts), len(parts), {"rows": tally.rows})

    card = tally.card()
    if not card["rows"]:
        raise InvalidInput(_nothing_left(where, card))
    (context.output.folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (context.output.folder / "card.html").write_text(render_html(card, context.node.name), encoding="utf-8")
    dropped = card["records"] - card["rows"]
    context.output.metrics.update(
        rows=card["rows"], dropped=dropped, sources=len(origins), characters=card["characters"]["total"]
    )
    context.output.details.update(rows=card["rows"], format=makes)
    context.output.sources.extend(_lineage(context, origins, tally, first=0 if earlier is None else 1))
    context.report.say(f"{card['rows']:,} rows kept, {dropped:,} dropped")


def _field_path(context: StageContext) -> str:
    names = [stage.name for stage in context.plan.run.spec.stages]
    return f"spec.stages[{names.index(context.node.name)}].curate"


def _nothing_left(where: str, card: dict[str, Any]) -> str:
    reason, count = next(iter(card["dropped"].items()))
    example = card["examples"][reason][0]
    return (
        f"{where}.sources: no row is left of {card['records']} records; most ({count}) were dropped as '{reason}', such as "
        f"record {example['record']} of {example['source']}: {example['excerpt'][:120]}; give sources with usable records"
    )


def _lineage(context: StageContext, origins: list[Origin], tally: Tally, first: int) -> list[dict[str, Any]]:
    """What the manifest says of the external sources; an earlier dataset is there as an input already."""
    return [
        {"uri": origin.uri, "identity": context.plan.identities[origin.uri], "rows": tally.rows_of(i)}
        for i, origin in enumerate(origins)
        if i >= first
    ]
