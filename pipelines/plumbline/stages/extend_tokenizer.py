"""`extendTokenizer`: texts → new tokens → a model with a larger vocabulary, and what that saves on texts held out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from plumbline.api.stages.extend_tokenizer import ExtendTokenizerSpec
from plumbline.data.dataset import part_names
from plumbline.data.read import PARQUET_ROWS, read_records
from plumbline.data.records import Broken
from plumbline.data.rows import to_row
from plumbline.errors import InvalidInput
from plumbline.external import expand
from plumbline.models.corpus import Texts, gather
from plumbline.models.embeddings import Embeddings, check_growable, with_new_rows
from plumbline.models.extend import Extension, extend, piece_texts, unknown_id
from plumbline.models.fertility import fertility, page, total
from plumbline.models.load import load_base, load_embeddings, load_tokenizer
from plumbline.models.reference import EMBEDDINGS, ModelReference
from plumbline.progress import Reporter
from plumbline.stage import StageContext

EXAMPLES = 200  # new tokens that the report shows


def run(context: StageContext, spec: ExtendTokenizerSpec) -> None:
    """Extend the tokenizer and the embeddings, and hand both over as a Model.

    Raises:
        InvalidInput: this tokenizer or this model cannot be extended, or the texts hold nothing to learn.
        PlumblineError: a text cannot be reached now.
    """
    where = context.where
    reference = ModelReference.of(context.plan, context.input("model"))
    context.report.say("reading texts")
    lines = _counted(_lines(context, spec, where), context.report)
    learn, held_out = gather(lines, spec.held_out, spec.max_characters)
    if not held_out:
        raise InvalidInput(f"{where}.heldOut: no text is held out to measure on; give more texts or raise heldOut")

    context.report.say("learning tokens")
    old = load_tokenizer(reference)
    before = _backend(old, where)
    texts = [text for name in sorted(learn) for text in learn[name]]
    definition = json.loads(before.to_str())
    extension = extend(definition, texts, spec.tokens, spec.character_coverage, spec.max_token_length, context.report.step)
    if not extension.parts:
        raise InvalidInput(
            f"{where}: the texts hold nothing that the tokenizer lacks; give more texts, or in its weak language"
        )

    context.report.say("writing the tokenizer and the rows of its tokens")
    folder = context.output.folder
    old.save_pretrained(str(folder / "tokenizer"))
    (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps(extension.definition, ensure_ascii=False), "utf-8")
    after = _read_back(folder / "tokenizer", before, extension, held_out, where)
    _embeddings(reference, extension, where).save(folder / EMBEDDINGS)
    adapter = reference.adapter_folder()
    if adapter is not None:
        shutil.copytree(adapter, folder / "adapter")
    report = _report(spec, before, after, extension, held_out)
    report["unmeasured"] = sorted(set(learn) - set(held_out))
    (folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (folder / "report.html").write_text(page(report, context.node.name), "utf-8")
    _publish(context, reference, report)


def _lines(context: StageContext, spec: ExtendTokenizerSpec, where: str) -> Iterator[tuple[str, str]]:
    """(source, line) of the texts, then of the dataset's rows."""
    for i, uri in enumerate(spec.texts or []):
        for path in expand(uri, f"{where}.texts[{i}]"):
            for _, line, record in read_records(path, "skip"):
                if isinstance(record, Broken):
                    raise InvalidInput(
                        f"{where}.texts[{i}]: {path}:{line}: {record.reason}: {record.excerpt or '(nothing)'}; mend the line, or "
                        "curate the file with badRecords: skip and name that stage as the dataset input"
                    )
                text = record.get("text")
                if not isinstance(text, str):
                    raise InvalidInput(
                        f"{where}.texts[{i}]: {path}:{line}: the record has no `text`; give plain text (.txt), or curate the "
                        "file and name that stage as the dataset input"
                    )
                yield from ((uri, part) for part in text.splitlines() if part)
    dataset = context.input("dataset")
    if dataset is not None:
        folder = dataset.local()
        for name in part_names(dataset):
            for batch in pq.ParquetFile(folder / name).iter_batches(batch_size=PARQUET_ROWS):
                for values in batch.to_pylist():
                    row = to_row(values, dataset.details["format"])
                    yield from ((values["source"], part) for text in row.texts for part in text.splitlines() if part)


def _counted(lines: Iterator[tuple[str, str]], report: Reporter) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines, 1):
        if number % 1000 == 0:
            report.step(number)
        yield line


def _backend(tokenizer: Any, where: str) -> Tokenizer:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise InvalidInput(
            f"{where}: {type(tokenizer).__name__} has no tokenizer.json, so it cannot be extended; use a model with one"
        )
    return backend


def _read_back(folder: Path, before: Tokenizer, extension: Extension, held_out: Texts, where: str) -> Tokenizer:
    """The tokenizer as later stages will load it.

    Raises:
        InvalidInput: it is not what was written, or texts do not decode as before (but for what was unknown then).
    """
    unknown = unknown_id(extension.definition)
    after = _backend(AutoTokenizer.from_pretrained(folder, trust_remote_code=False), where)
    written = Tokenizer.from_str(json.dumps(extension.definition))
    for text in (text for texts in held_out.values() for text in texts):
        ids = after.encode(text, add_special_tokens=False).ids
        same = ids == written.encode(text, add_special_tokens=False).ids
        then = before.encode(text, add_special_tokens=False).ids
        if not same or (unknown not in then and after.decode(ids) != before.decode(then)):
            raise InvalidInput(
                f"{where}: this tokenizer cannot be extended: afterwards it {'decodes' if same else 'encodes'} texts in another "
                f"way, such as {text[:80]!r}; use another base model"
            )
    return after


def _embeddings(reference: ModelReference, extension: Extension, where: str) -> Embeddings:
    model = load_base(reference)
    check_growable(model, where)
    rows = model.get_input_embeddings().weight.shape[0]
    if extension.first > rows:
        raise InvalidInput(
            f"{where}: the tokenizer has {extension.first} tokens and the model only {rows} rows; use a model whose tokenizer fits"
        )
    return with_new_rows(model, load_embeddings(reference), extension.first, extension.parts)


def _report(
    spec: ExtendTokenizerSpec, before: Tokenizer, after: Tokenizer, extension: Extension, held_out: Texts
) -> dict[str, Any]:
    measured = {name: fertility(before, after, extension.first, held_out[name]) for name in sorted(held_out)}
    if len(measured) > 1:
        measured["all"] = total(list(measured.values()))
    texts = piece_texts(extension.definition)
    words = [texts[extension.first + i] for i in range(extension.characters, len(extension.parts))]
    added = len(extension.parts)
    return {
        "tokens": {
            "before": extension.first,
            "asked": spec.tokens,
            "added": added,
            "characters": extension.characters,
            "words": added - extension.characters,
        },
        "sources": {name: part.report() for name, part in measured.items()},
        "examples": [word.strip() for word in words[:EXAMPLES] if word],
    }


def _publish(context: StageContext, reference: ModelReference, report: dict[str, Any]) -> None:
    tokens, measured = report["tokens"], list(report["sources"].values())[-1]
    rate = measured["tokensPerCharacter"]
    context.output.metrics.update(
        tokensAdded=tokens["added"],
        tokensPerCharacterBefore=rate["before"],
        tokensPerCharacterAfter=rate["after"],
        tokensLeft=measured["tokensLeft"],
    )
    context.output.details.update(
        base=reference.base,
        revision=reference.revision,
        baseIdentity=context.plan.identities[reference.base],
        tokens=tokens["before"] + tokens["added"],
        **reference.inherited(),
    )
    context.report.say(
        f"{tokens['added']:,} of {tokens['asked']:,} tokens added; {rate['before']:.2f} → {rate['after']:.2f} tokens a character on texts held out"
    )
