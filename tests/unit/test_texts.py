"""Training on plain text: every token is learned once, whatever the length of a document; rows stay on disk."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from plumbline.api.stages.sft import SftSpec
from plumbline.api.stages.training import AdapterSpec, CheckpointSpec
from plumbline.artifacts import Artifact, ArtifactCorrupt, file_digest
from plumbline.data.dataset import DatasetWriter, load_rows, open_rows
from plumbline.data.mapped import mapped
from plumbline.data.row import COLUMNS
from plumbline.errors import InvalidInput
from plumbline.external import TINY
from plumbline.models.load import load_base, load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.stages.sft import work
from plumbline.training import texts as module
from plumbline.training.encode import encode_texts
from plumbline.training.texts import measure, text_sequences
from plumbline.training.tuning import TrainingJob
from support.preferences import ALONE, dataset, killed_and_resumed

REFERENCE = ModelReference(TINY)
DOCUMENTS = ["a b c", "", "one two three " * 40, "d", "the last one, of some length " * 3, "<|user|> is text here"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "plumbline" / "rows"


def of_texts(folder: Path, texts: list[str]) -> Artifact:
    names = ("text", "source", "format")
    table = pa.table([texts, [""] * len(texts), [""] * len(texts)], names=names)
    with DatasetWriter(folder, table.schema) as writer:
        writer.write(table)
    files = {
        str(path.relative_to(folder)): {"sha256": file_digest(path), "bytes": path.stat().st_size}
        for path in folder.rglob("*.parquet")
    }
    return Artifact(str(folder), {"files": files, "stage": "data", "kind": "curate", "details": {"rows": len(texts)}})


def job(folder: Path, texts: list[str] = DOCUMENTS, steps: int = 7, **fields: Any) -> TrainingJob[SftSpec]:
    spec = SftSpec.model_validate(
        {
            "batch_size": 4,
            "adapter": AdapterSpec(rank=4),
            "optimizer": {"learning_rate": 5e-3, "schedule": "constant", "warmup_ratio": 0.0},
            "checkpoint": CheckpointSpec(every_steps=3),
            "max_length": 32,
            **fields,
        }
    )
    return TrainingJob(
        REFERENCE, of_texts(folder / "data", texts), spec, steps, str(folder / "checkpoints"), "spec.stages[1].sft"
    )


@pytest.mark.parametrize("length", [2, 3, 7, 32, 1000])
def test_every_token_is_a_target_of_one_sequence(length: int) -> None:
    tokenizer = load_tokenizer(REFERENCE)
    end = tokenizer.eos_token_id
    for text, parts in zip(DOCUMENTS, encode_texts(tokenizer, DOCUMENTS, length), strict=True):
        whole = [*tokenizer(text, split_special_tokens=True)["input_ids"], end]
        assert [token for ids in parts for token in ids[1:]] == whole[1:], (
            "what follows the first token, in order, each once"
        )
        assert all(2 <= len(ids) <= length for ids in parts)
        assert all(before[-1] == after[0] for before, after in pairwise(parts)), "each goes on from the one before"
        assert not parts or parts[0][0] == whole[0]
    assert encode_texts(tokenizer, [""], 8) == [[]]


def test_special_tokens_within_a_text_are_text() -> None:
    tokenizer = load_tokenizer(REFERENCE)
    (parts,) = encode_texts(tokenizer, ["<|user|> <|end|>"], 100)
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    assert user not in parts[0]
    assert parts[0].count(tokenizer.eos_token_id) == 1
    assert tokenizer(["<|user|> <|end|>"])["input_ids"][0].count(user) == 1, "chats after that read markers as before"


def test_a_first_token_and_an_end_that_the_tokenizer_puts_itself_are_kept() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(REFERENCE)
    plain = tokenizer("a b")["input_ids"]
    marks = [("<|system|>", 3), ("<|end|>", 0)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|system|> $A <|end|>", None, marks)
    assert encode_texts(tokenizer, ["a b"], 100) == [[[3, *plain, 0]]]


def test_sequences_lie_on_disk_and_are_counted(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(REFERENCE)
    training = job(tmp_path)
    rows = text_sequences(training.dataset, tokenizer, 32)
    parts = encode_texts(tokenizer, DOCUMENTS, 32)
    assert [row["ids"] for row in rows] == [ids for one in parts for ids in one]
    assert [row["document"] for row in rows] == [number for number, one in enumerate(parts) for _ in one]
    assert measure(rows, len(DOCUMENTS)) == {
        "documents": 6,
        "split": sum(len(one) > 1 for one in parts),
        "leftOut": 1,
        "sequences": len(rows),
        "targets": sum(len(ids) - 1 for one in parts for ids in one),
    }
    monkeypatch.setattr(module, "DOCUMENTS", 2)
    in_groups = text_sequences(of_texts(tmp_path / "again", [*DOCUMENTS, "x"]), tokenizer, 32)
    assert in_groups.table.slice(0, len(rows)).to_pylist() == list(rows)
    monkeypatch.setattr(module, "encode_texts", None)  # tokenised already
    assert list(text_sequences(training.dataset, tokenizer, 32)) == list(rows)
    assert len(list(cache.glob("*.arrow"))) == 2
    tokenizer.add_tokens(["qqq"])
    with pytest.raises(TypeError):  # another tokenizer makes other sequences
        text_sequences(training.dataset, tokenizer, 32)


def test_the_first_loss_is_that_of_the_plain_model(tmp_path: Path) -> None:
    seen: list[float] = []
    parts = encode_texts(load_tokenizer(REFERENCE), DOCUMENTS, 64)
    sequences = [torch.tensor([ids]) for one in parts for ids in one]
    epoch = job(tmp_path, steps=1, batch_size=len(sequences), max_length=64)
    work(epoch, ALONE, lambda step, total, metrics: seen.append(metrics["loss"]))
    model = load_base(REFERENCE)
    with torch.no_grad():
        lost = [-model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]) for ids in sequences]
    assert seen == [pytest.approx(float(torch.cat(lost).mean()), abs=1e-5)]


def test_it_learns_and_an_interrupted_run_ends_bit_equal(tmp_path: Path) -> None:
    straight, killed = (job(tmp_path / name) for name in ("straight", "killed"))
    assert killed_and_resumed(work, straight, killed)
    done = straight.store.latest()
    assert done is not None
    assert done.history[-1]["loss"] < done.history[0]["loss"]
    assert all(row["cut"] == row["leftOut"] == 0 for row in done.history)


def test_other_rows_are_refused(tmp_path: Path) -> None:
    training = job(tmp_path)
    pairs = dataset(tmp_path / "pairs", "pairs")
    wrong = TrainingJob(REFERENCE, pairs, training.spec, 1, training.checkpoints, training.where)
    with pytest.raises(
        InvalidInput, match=r"stage 'data' holds pairs, and messages or text are needed here; set form: messages"
    ):
        work(wrong, ALONE, lambda *_: None)


@pytest.mark.parametrize("form", ["pairs", "rankings", "labels", "judgments"])
def test_rows_from_disk_are_those_of_the_table(form: Any, tmp_path: Path) -> None:
    artifact = dataset(tmp_path, form, 30)
    rows = open_rows(artifact, form)
    assert list(rows) == load_rows(artifact, form).select(list(COLUMNS[form])).to_pylist()
    assert rows[29] == rows[-1]
    with pytest.raises(IndexError):
        rows[30]


def test_a_damaged_dataset_is_found(tmp_path: Path) -> None:
    artifact = of_texts(tmp_path, DOCUMENTS)
    part = tmp_path / "data" / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[40] ^= 1
    part.write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match=r"part-00000.parquet does not have the checksum"):
        text_sequences(artifact, load_tokenizer(REFERENCE), 8)


def test_files_that_nobody_reads_go_when_another_is_written(cache: Path) -> None:
    def make(value: int) -> pa.RecordBatchReader:
        return pa.table({"x": [value]}).to_reader()

    def unused() -> pa.RecordBatchReader:
        raise AssertionError("it is there already")

    def broken() -> pa.RecordBatchReader:
        schema = pa.schema([("x", pa.int64())])

        def batches() -> Any:
            yield pa.record_batch([[1]], schema=schema)
            raise OSError(28, "No space left on device")

        return pa.RecordBatchReader.from_batches(schema, batches())

    read = mapped("read", lambda: make(1))
    left = mapped("left", lambda: make(2))
    assert mapped("read", unused)[0] == read[0] == {"x": 1}
    del left
    (cache / "killed.part").write_bytes(b"half")
    with pytest.raises(OSError, match="No space left"):
        mapped("new", broken)
    assert [path.name for path in sorted(cache.iterdir())] == ["lock", "read.arrow"]
    assert mapped("new", lambda: make(3))[0] == {"x": 3}
    assert read[0] == {"x": 1}
