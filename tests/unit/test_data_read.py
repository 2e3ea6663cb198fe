"""Reading files of every container, and every way in which one can be broken."""

from __future__ import annotations

import bz2
import csv
import gzip
import http.server
import io
import json
import os
import pickle
import random
import tarfile
import threading
import tracemalloc
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, pairwise, repeat
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plumbline.api.stages.curate import CurateSpec, SourceSpec
from plumbline.builtin import skills
from plumbline.data import inflate, json_stream, lines, rows, sources
from plumbline.data import read as reading
from plumbline.data.preparation import Preparation
from plumbline.data.read import read_records, spans_of_file
from plumbline.data.records import MAX_RECORD, Broken, Item
from plumbline.data.row import Row
from plumbline.data.rows import Outcome
from plumbline.data.sources import check_unchanged, find_parts, read_part
from plumbline.data.spans import spans_of
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.external import identity, stamp_of
from plumbline.models.reference import ModelReference

RECORDS = [{"instruction": f"Say {i}.", "output": f"{i} é"} for i in range(5)]
LINES = [json.dumps(record) for record in RECORDS]


def write(path: Path, data: bytes | str) -> str:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def read(path: str, bad_records: str = "fail") -> list[Item]:
    return list(read_records(path, bad_records))  # type: ignore[arg-type]


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


def containers() -> dict[str, bytes]:
    lines, array = ("\n".join(LINES) + "\n").encode(), json.dumps(RECORDS, indent=1, ensure_ascii=False).encode()
    table = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(RECORDS), table)
    return {
        "lines": lines,
        "lines without a newline at the end": lines.rstrip(),
        "lines with newlines at the end": lines + b"\n\n",
        "windows lines": lines.replace(b"\n", b"\r\n"),
        "lines with a byte order mark": b"\xef\xbb\xbf" + lines,
        "gzipped lines": gzip.compress(lines, mtime=0),
        "array": array,
        "array with a byte order mark": b"\xef\xbb\xbf \n" + array,
        "gzipped array": gzip.compress(array, mtime=0),
        "gzip in members": gzip.compress(lines[:70], mtime=0) + gzip.compress(lines[70:], mtime=0),
        "zstd lines": zstd(lines),
        "zstd in frames": zstd(lines[:70]) + zstd(lines[70:]),
        "zstd array": zstd(array),
        "zstd after a frame to skip": b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstd(lines),
        "array in an object": b'{"version": "1 \\" [", "n": 3.5, "data": ' + array + b', "more": [{}], "last": null}\n',
        "blank lines before an object over several lines": b"\n\n"
        + b"".join(json.dumps(r, indent=2).encode() + b"\n" for r in RECORDS),
        "one object over several lines each": b"".join(json.dumps(r, indent=2).encode() + b"\n" for r in RECORDS),
        "parquet": table.getvalue().to_pybytes(),
    }


def archived() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.jsonl"))
    return buffer.getvalue()


def columns_twice() -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]), buffer)
    return bytes(buffer.getvalue().to_pybytes())


@pytest.mark.parametrize("name", containers())
def test_containers_are_told_apart_by_content(tmp_path: Path, name: str) -> None:
    items = read(write(tmp_path / "data.bin", containers()[name]))
    assert [(index, value) for index, _, value in items] == list(enumerate(RECORDS))


def test_any_fsspec_uri() -> None:
    with fsspec.open("memory://bucket/rows.jsonl.gz", "wb") as stream:
        stream.write(containers()["gzipped lines"])
    assert [value for _, _, value in read("memory://bucket/rows.jsonl.gz")] == RECORDS


def test_line_numbers_of_an_array(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps(RECORDS, indent=1))
    assert [line for _, line, _ in read(path)] == [2, 6, 10, 14, 18]


def zipped() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("a.jsonl", "{}")
    return held.getvalue()


BROKEN_LINES = {
    "broken": (b'{"instruction": "a",', "broken JSON"),
    "blank": (b"", "blank line"),
    "list": (b'["a"]', "not an object"),
    "number": (b"17", "not an object"),
    "deep": (b"[" * 100_000, "broken JSON"),
}
BROKEN_LINES["latin-1"] = ('{"instruction": "é"}'.encode("latin-1"), "invalid UTF-8")


@pytest.mark.parametrize("name", BROKEN_LINES)
def test_broken_line_fails_with_its_place_or_is_skipped_and_counted(tmp_path: Path, name: str) -> None:
    line, reason = BROKEN_LINES[name]
    path = write(tmp_path / "a.jsonl", b"\n".join([LINES[0].encode(), LINES[1].encode(), line, LINES[2].encode()]))
    with pytest.raises(InvalidInput, match=rf"a\.jsonl:3: {reason}.*set badRecords: skip"):
        read(path)
    items = read(path, "skip")
    assert [(index, number) for index, number, _ in items] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert [value for *_, value in items if not isinstance(value, Broken)] == RECORDS[:3]
    broken = items[2][2]
    assert isinstance(broken, Broken)
    assert broken.reason == reason


def test_broken_elements_of_an_array(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.json",
        b"[" + b",\n".join([LINES[0].encode(), b"3", '{"a": "é"}'.encode("latin-1"), LINES[1].encode()]) + b"]",
    )
    with pytest.raises(InvalidInput, match=r"a\.json:2: not an object: 3"):
        read(path)
    reasons = [value.reason if isinstance(value, Broken) else None for *_, value in read(path, "skip")]
    assert reasons == [None, "not an object", "invalid UTF-8", None]


def test_where_all_lines_are_broken_the_first_is_shown(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInput, match=r"holds no record, only broken ones: line 1: not an object: 41; give a file with at"
    ):
        read(write(tmp_path / "a.jsonl", "41\n42\n"), "skip")


@pytest.mark.parametrize("bad_records", ["fail", "skip"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no record"),
        (b"\n \n", "holds no record"),
        (b"[]", "holds no record"),
        (containers()["gzipped lines"][:-20], r"gzip data end or break .*fetch it again"),
        (containers()["gzipped lines"][:6], r"gzip data end or break"),
        (gzip.compress(b"x" * 9, mtime=0)[:12] + b"rubbish!", r"gzip data end or break"),
        (containers()["zstd lines"][:-9], r"zstd data end or break .*fetch it again"),
        (containers()["zstd lines"] + b"rubbish", r"zstd data end or break"),
        (containers()["array"][:-9], r":\d+: broken JSON \("),
        (containers()["array"].rstrip(b"]"), r":\d+: broken JSON \("),
        (containers()["array"] + b"[]", "text after the closing"),
        (b'[{"a": 1} {"a": 2}]', "a comma or ] is expected"),
        (b'[{"a": 1}, ]', "a value is expected after the comma"),
        (b'[{"a": 1}, {"a": 12', r"broken JSON \("),
        (b'{\n "a": 1\n}\n{\n "a": ', r":5: broken JSON \("),
        ('[{"a": 1}]'.encode("utf-16"), "is UTF-16 text; only UTF-8"),
        ('{"a": 1}'.encode("utf-32"), "is UTF-32 text"),
        (gzip.compress('{"a": 1}'.encode("utf-16"), mtime=0), "is UTF-16 text"),
        (bz2.compress(b"{}"), "is bzip2 data"),
        (zipped(), "is a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (containers()["parquet"][:-9], "Parquet that cannot be read"),
        (containers()["parquet"][:40], "Parquet that cannot be read"),
        (gzip.compress(containers()["parquet"], mtime=0), "is Parquet within gzip data; unpack it once"),
        (zstd(containers()["gzipped lines"]), "is gzip within zstd data"),
        (b"PARE" + containers()["parquet"][4:], "is an encrypted Parquet file"),
        (columns_twice(), "has several columns of the name 'a'"),
        (archived(), "is a tar archive"),
        (gzip.compress(archived(), mtime=0), "is a tar archive"),
        (pickle.dumps({"a": 1}, protocol=2), "is a Python pickle, which can run code"),
        (pickle.dumps({"a": 1}), "is a Python pickle, which can run code"),
        (b"SQLite format 3\0....", "is an SQLite database"),
        (b"%PDF-1.4\n", "is a PDF document"),
        (b"\xff\xff\xff\xffxx", "is an Arrow stream"),
        ('{"a": 1}'.encode("utf-16-le"), r"is UTF-16 \(it has no byte order mark\) text; .*iconv -f UTF-16LE"),
        ('{"a": 1}'.encode("utf-16-be"), "iconv -f UTF-16BE"),
        (b'{"version": 1, "data": [{"a": 1}], "more": 2', "} is expected"),
        (b'{"data": [{"a": 1}]}\n{"data": []}', "text after the closing }"),
        (b"a,b\n1,2\n", "looks like CSV: let its name end in .csv"),
        (b"<!DOCTYPE html>\n<p>", "looks like an HTML page"),
        (b"<?xml version='1.0'?>", "looks like XML"),
        (b"- a: 1\n  b: 2\n", "looks like YAML"),
        (b"{'a': None}\n{'a': 1}\n", "looks like Python literals"),
        (b"Once upon a time.\n", "looks like plain text"),
        (b'{"a": 1}\r{"a": 2}\r', "looks like lines that end in a carriage return only"),
        (b'{"a": 1},\n{"a": 2},\n', "looks like the elements of a JSON array without its brackets"),
    ],
)
def test_damaged_files_always_fail(tmp_path: Path, data: bytes, message: str, bad_records: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read(write(tmp_path / "damaged", data), bad_records)


def test_truncated_gzip_names_the_last_good_line(tmp_path: Path) -> None:
    lines = "".join(f'{{"n": {i}, "text": "{hash(i)}"}}\n' for i in range(5000)).encode()
    path = write(tmp_path / "cut.jsonl.gz", gzip.compress(lines, mtime=0)[:-3000])
    good: list[int] = []
    with pytest.raises(InvalidInput) as caught:
        good.extend(line for _, line, _ in read_records(path, "skip"))
    assert len(good) > 1000
    assert good == list(range(1, len(good) + 1))
    assert f"cut.jsonl.gz:{good[-1]}:" in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.jsonl does not exist"):
        read(str(tmp_path / "none.jsonl"))
    with pytest.raises(InvalidInput, match=r"spec\.x\.sources\[0\]\.uri: no file matches"):
        find_parts([SourceSpec(uri=str(tmp_path / "none.jsonl"))], None, 0, ["spec.x.sources[0]"])


def test_parquet_without_the_right_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"], "score": [1.0]}), tmp_path / "a.parquet")
    with pytest.raises(InvalidInput, match=r"a\.parquet:1: no known format has this record; .* fields 'body', 'score'"):
        outcomes(SourceSpec(uri=str(tmp_path / "a.parquet")))


def test_parquet_of_messages(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    pq.write_table(pa.Table.from_pylist([{"messages": chat, "id": 7, "license": "MIT"}]), tmp_path / "a.parquet")
    (outcome,) = outcomes(SourceSpec(uri=str(tmp_path / "a.parquet"), licence="other"))
    assert (outcome.row.content, outcome.row.record_id, outcome.format) == ({"messages": chat}, "7", "messages")
    assert outcome.row.licence == "MIT"


def test_a_value_of_parquet_that_cannot_be_read_is_one_broken_row(tmp_path: Path) -> None:
    offsets, text = pa.array([0, 1, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xe9b")
    texts = pa.Array.from_buffers(pa.string(), 3, [None, offsets, text])
    times = pa.array([0, 0, 2**62], pa.timestamp("us"))
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"instruction": texts, "output": ["x"] * 3, "at": times}), path)
    with pytest.raises(InvalidInput, match=r"a\.parquet:2: invalid UTF-8: .*0xe9"):
        read(path)
    items = read(path, "skip")
    assert [value.reason if isinstance(value, Broken) else value["instruction"] for *_, value in items] == [
        "a",
        "invalid UTF-8",
        "unreadable value",
    ]
    assert [line for _, line, _ in items] == [1, 2, 3]


def test_chats_of_parquet_in_every_layout(tmp_path: Path) -> None:
    fields = ["role", "content", "from", "value"]
    turn = pa.struct([(name, pa.string()) for name in fields])
    both = [
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
    ]
    mapped = pa.list_(pa.map_(pa.string(), pa.large_string()))
    for name, column in {
        "both spellings": pa.array(both, pa.list_(turn)),
        "maps": pa.array([[list(turn.items()) for turn in both[0]]], mapped),
        "fixed": pa.array(both[:1], pa.list_(turn, 2)),
        "large": pa.array(both[:1], pa.large_list(turn)),
    }.items():
        pq.write_table(pa.table({"conversations": column}), tmp_path / f"{name}.parquet")
        found = outcomes(SourceSpec(uri=str(tmp_path / f"{name}.parquet")))
        assert [[turn["content"] for turn in o.row.content["messages"]] for o in found] == [["q", "a"]] * len(column), name
    coded = pa.table(
        {"instruction": pa.array(["q", "q"]).dictionary_encode(), "output": pa.array(["a", None], pa.string_view())}
    )
    pq.write_table(coded, tmp_path / "coded.parquet")
    assert [o.reason for o in outcomes(SourceSpec(uri=str(tmp_path / "coded.parquet")))] == [None, "not text"]


def test_tables_are_bounded_by_characters_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "TABLE_CHARACTERS", 100)
    found = [Outcome("s", i, row=Row({"text": "x" * 30})) if i % 2 else Outcome("s", i, reason="r") for i in range(20)]
    tables = list(rows.tabulate(found, "text", 0))
    assert [table.num_rows for table in tables] == [8, 8, 4]
    assert pa.concat_tables(tables)["record"].to_pylist() == list(range(20))


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "a", "response": "b", "category": "x\ud800"},
        {"instruction": "a", "output": "b", "id": "\ud800"},
        {"text": "q", "role": "prompter", "replies": [{"text": "a", "role": "assistant", "message_id": "\ud800"}]},
        {"text": "q", "role": "prompter", "replies": [{"text": "a", "role": "assistant"}], "tree_state": "\ud800"},
    ],
)
def test_what_a_record_says_of_itself_never_stops_the_stage(tmp_path: Path, record: dict[str, Any]) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps(record))
    found = outcomes(SourceSpec(uri=path))
    assert [outcome.row for outcome in found] == [None]
    assert next(rows.tabulate(found, "messages", 0)).num_rows == 1


def test_files_that_tell_about_the_data_are_left_out_beside_them(tmp_path: Path) -> None:
    for name in ("README.md", "LICENSE", "dataset_infos.json", "_SUCCESS"):
        write(tmp_path / name, "about")
    write(tmp_path / "a.jsonl", LINES[0])
    assert [outcome.source for outcome in outcomes(SourceSpec(uri=str(tmp_path)))] == [f"{tmp_path.name}/a.jsonl"]
    with pytest.raises(InvalidInput, match=r"README\.md:1: broken JSON"):
        outcomes(SourceSpec(uri=str(tmp_path / "README.md")))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The address of the folder on a server that sends files only whole."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_files_of_a_web_server_without_ranges(tmp_path: Path, web: str) -> None:
    text = "".join(json.dumps({"instruction": f"{web}/a.jsonl/{i} {'x' * 1000}", "output": "b"}) + "\n" for i in range(8000))
    write(tmp_path / "a.jsonl", text)  # more than a block; its links must not make it a folder
    found = outcomes(SourceSpec(uri=f"{web}/a.jsonl"))
    assert [outcome.reason for outcome in found] == [None] * 8000
    write(tmp_path / "a.csv", "instruction,output\na,b\n")
    assert [o.row.prompts for o in outcomes(SourceSpec(uri=f"{web}/a.csv?signature=1.x"))] == [["a"]]


def test_errors_of_a_remote_file_system_are_worth_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"memory://{os.urandom(8).hex()}/a.jsonl"
    with fsspec.open(path, "w") as stream:
        stream.write("\n".join(LINES))

    def lost(*_: Any) -> None:
        raise EOFError("payload is not complete")

    monkeypatch.setattr(reading, "check_kind", lost)
    with pytest.raises(PlumblineError, match=r"a\.jsonl cannot be read now: payload is not complete") as caught:
        read(path)
    assert not isinstance(caught.value, InvalidInput)


def outcomes(source: SourceSpec, makes: str = "messages") -> list[Any]:
    _, parts = find_parts([source], None, 0, ["spec.sources[0]"])
    return [outcome for part in parts for outcome in read_part(part, makes)]  # type: ignore[arg-type]


def test_limit_spans_the_files_and_does_not_look_beyond(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "\n".join(LINES[:3]))
    write(tmp_path / "b.jsonl", LINES[3] + "\nbroken")
    found = outcomes(SourceSpec(uri=str(tmp_path), limit=4, name="n"))
    assert [(o.source, o.record) for o in found] == [("n/a.jsonl", 0), ("n/a.jsonl", 1), ("n/a.jsonl", 2), ("n/b.jsonl", 0)]


def test_provenance_of_folders_globs_and_equal_names(tmp_path: Path) -> None:
    for name in ("x/train.jsonl", "y/train.jsonl"):
        (tmp_path / name).parent.mkdir()
        write(tmp_path / name, LINES[0])
    assert [o.source for o in outcomes(SourceSpec(uri=f"{tmp_path}/*/train.jsonl"))] == [
        "train.jsonl/x/train.jsonl",
        "train.jsonl/y/train.jsonl",
    ]
    origins, _ = find_parts(
        [SourceSpec(uri=f"{tmp_path}/{d}/train.jsonl") for d in "xy"], None, 0, [f"spec.sources[{i}]" for i in range(2)]
    )
    assert [origin.name for origin in origins] == ["train.jsonl", "train.jsonl (2)"]


def test_rejects_keep_an_excerpt_and_bad_text_does_not_stop_the_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", LINES[0] + '\n{"instruction": "\\ud800", "output": "b"}\n{"instruction": "a", "output": ""}\n'
    )
    good, surrogate, empty = outcomes(SourceSpec(uri=path))
    assert good.reason is None
    assert (surrogate.reason, empty.reason) == ("invalid Unicode", "empty answer")
    assert surrogate.excerpt.encode()
    assert '"output": ""' in empty.excerpt


@pytest.mark.parametrize(
    "line",
    [
        '{"instruction": "%s jane.doe@acme-widgets.org", "output": ""}' % ("x" * 265),  # a record that is none
        '{"instruction": "%s jane.doe@acme-widgets.org' % ("x" * 50),  # broken, and noted by its beginning
        '["%s jane.doe@acme-widgets.org"]' % ("x" * 70),  # no object
        '{"instruction": "Call\\n+49 30 901820 or\\t+49 30 901820", "output": ""}',  # escapes before numbers
        '{"instruction": "Who?", "output": "I cannot help with that. %s jane.doe@acme-widgets.org"}' % ("x" * 125),
        '{"instruction": "Who?", "output": "%s jane.doe@acme-widgets.org"}' % ("§" * 49),
    ],
)
def test_examples_of_drops_show_no_half_of_personal_data(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "a.jsonl", f"{LINES[0]}\n{line}\n")
    source = SourceSpec(uri=path, bad_records="skip")
    filters = {"pii": {}, "symbols": {}, "refusals": {"drop": ["unsafe", "unable"]}}
    spec = CurateSpec.model_validate({"sources": [{"uri": path}], "filters": filters})
    _, parts = find_parts([source], None, 0, ["spec.sources[0]"])
    preparation = Preparation(tuple(parts), 1, "messages", spec, "spec", ModelReference("builtin://tiny"))
    _, dropped = [row for table in preparation.tables(0) for row in table.to_pylist()]
    assert dropped["reason"]
    for half in ("jan", "acme", "+49", "9018"):
        assert half not in dropped["excerpt"]
    assert "x" * 50 in dropped["excerpt"] or "[phone" in dropped["excerpt"] or "§" * 49 in dropped["excerpt"]


def test_skills_parts_are_disjoint_and_need_no_file() -> None:
    train = outcomes(SourceSpec(uri="builtin://skills", limit=400))
    heldout = outcomes(SourceSpec(uri="builtin://skills", limit=400, split="heldout"))
    arguments = [
        {o.row.record_id.split("/", 2)[0] + o.row.record_id.split("/", 2)[2] for o in part} for part in (train, heldout)
    ]
    assert arguments[0]
    assert not arguments[0] & arguments[1]
    prompts = [{o.row.content["messages"][0]["content"] for o in part} for part in (train, heldout)]
    assert not prompts[0] & prompts[1]
    assert [o.record for o in train] == list(range(400))


def test_skills_pairs_have_a_wrong_answer() -> None:
    for outcome in outcomes(SourceSpec(uri="builtin://skills", limit=200), "pairs"):
        assert outcome.row.content["chosen"] != outcome.row.content["rejected"]
        assert [turn["role"] for name in ("prompt", "chosen", "rejected") for turn in outcome.row.content[name]] == [
            "user",
            "assistant",
            "assistant",
        ]


def test_more_skills_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(skills.SKILLS["add"], sample=lambda rng: (str(rng.randint(0, 9)), "1"))
    monkeypatch.setattr(skills, "SKILLS", {"add": few})
    with pytest.raises(InvalidInput, match=r"spec\.sources\[0\]\.limit: 100 is not accepted: .*fewer than 100 distinct"):
        outcomes(SourceSpec(uri="builtin://skills", limit=100))


def test_the_split_of_the_skills_is_checked() -> None:
    with pytest.raises(InvalidInput, match=r"spec\.sources\[0\]\.split: 'test' is not accepted .*use train or heldout"):
        outcomes(SourceSpec(uri="builtin://skills", split="test"))


# Text and CSV


def csv_text(rows: list[list[str]], delimiter: str = ",") -> str:
    held = io.StringIO()
    csv.writer(held, delimiter=delimiter).writerows(rows)
    return held.getvalue()


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t")])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_csv_with_a_header(tmp_path: Path, name: str, delimiter: str, pack: Any) -> None:
    rows = [["instruction", "input", "output"], ['Say\nit, 5" long.', "", "é"], ["b", "x", "y"]]
    suffix = {bytes: "", gzip.compress: ".gz", zstd: ".zst"}[pack]
    path = write(tmp_path / (name + suffix), pack(b"\xef\xbb\xbf" + csv_text(rows, delimiter).encode()))
    assert read(path) == [
        (0, 2, {"instruction": 'Say\nit, 5" long.', "input": "", "output": "é"}),
        (1, 4, {"instruction": "b", "input": "x", "output": "y"}),
    ]
    found = outcomes(SourceSpec(uri=path))
    assert [o.format for o in found] == ["alpaca", "alpaca"]


def test_csv_of_chats_and_of_labels(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = write(tmp_path / "a.csv", csv_text([["messages"], [json.dumps(turns)]]))
    assert [o.row.content for o in outcomes(SourceSpec(uri=path))] == [{"messages": turns}]
    path = write(tmp_path / "b.csv", csv_text([["prompt", "completion", "label"], ["p", "a", "True"], ["p", "b", "False"]]))
    assert [o.row.content["label"] for o in outcomes(SourceSpec(uri=path), "labels")] == [True, False]


def test_ragged_blank_and_undecodable_rows_of_a_csv(tmp_path: Path) -> None:
    data = b"instruction,output\na,b\n\nc\nd,e,f\n\xff,h\ni,j\n"
    path = write(tmp_path / "a.csv", data)
    with pytest.raises(InvalidInput, match=r"a\.csv:3: blank line: .*as many fields as the header has"):
        read(path)
    items = read(path, "skip")
    assert [value.reason if isinstance(value, Broken) else None for *_, value in items] == [
        None, "blank line", "ragged row", "ragged row", "invalid UTF-8", None,
    ]  # fmt: skip
    assert [line for _, line, _ in items] == [2, 3, 4, 5, 6, 7]
    assert isinstance(items[4][2], Broken)
    assert f"byte {data.index(0xFF)} of the file" in items[4][2].excerpt


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a,b\n1,2\n"3,4\n5,6\n', r"a\.csv:4: broken CSV"),
        ("a,a\n1,2\n", "repeated or several empty names"),
        (",a, \n1,2,3\n", "repeated or several empty names"),
        ("a,b\r1,2\r3,4\r", r"broken CSV \(new-line .*tr '\\r' '\\n'"),
        ("a,b\n", "holds no record"),
        ("", "holds no record"),
    ],
)
def test_broken_csv_always_fails(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read(write(tmp_path / "a.csv", text), "skip")


@pytest.mark.parametrize(
    ("text", "record"),
    [
        ("instruction;output\na, b;c\n", {"instruction": "a, b", "output": "c"}),
        ("instruction\toutput\na\tb\n", {"instruction": "a", "output": "b"}),
        (",instruction,output\n0,a;,b\n", {"": "0", "instruction": "a;", "output": "b"}),
        ("\n\ninstruction,output\na,b\n", {"instruction": "a", "output": "b"}),
        ('{"instruction": "a", "output": "b"}\n', {"instruction": "a", "output": "b"}),
        (' [\n{"instruction": "a", "output": "b"}]', {"instruction": "a", "output": "b"}),
    ],
    ids=["semicolons", "tabs", "the index of pandas", "blank lines", "JSON lines", "JSON array"],
)
def test_what_is_called_csv(tmp_path: Path, text: str, record: dict[str, str]) -> None:
    assert [value for *_, value in read(write(tmp_path / "a.csv", text))] == [record]


def test_a_header_that_is_not_utf8_is_not_blamed_on_the_first_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "instruction,output,pr\xe9nom\na,b,c\n".encode("latin-1"))
    with pytest.raises(InvalidInput, match=r"a\.csv:1: the header has invalid UTF-8 \(byte 0xe9 at byte 21"):
        read(path, "skip")


@pytest.mark.parametrize("text", ['{"a": NaN, "b": [-Infinity, 1]}\n', '[{"a": NaN, "b": [-Infinity, 1]}]'])
def test_what_is_not_a_number_is_nothing(tmp_path: Path, text: str) -> None:
    assert [value for *_, value in read(write(tmp_path / "a.json", text))] == [{"a": None, "b": [None, 1]}]


def test_one_bad_line_does_not_make_the_file_another(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "# a comment\n" + LINES[0] + "\n")
    assert [value for *_, value in read(path, "skip")][1:] == RECORDS[:1]
    later = write(tmp_path / "b.jsonl", LINES[0] + "\na,b\n")
    with pytest.raises(InvalidInput, match=r"b\.jsonl:2: broken JSON: .*set badRecords: skip"):
        read(later)


def test_json_lines_that_are_called_text_are_not_taken_for_text(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"a\.txt:1: the text is JSON; let the file's name end in \.jsonl"):
        outcomes(SourceSpec(uri=write(tmp_path / "a.txt", "\n".join(LINES))))


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("line", [(0, 1, "one"), (1, 2, "two"), (4, 5, "three")]),
        ("paragraph", [(0, 1, "one\ntwo"), (1, 5, "three")]),
        ("document", [(0, 1, "one\ntwo\n\n\nthree")]),
    ],
)
def test_units_of_a_text(tmp_path: Path, unit: Any, expected: list[tuple[int, int, str]]) -> None:
    path = write(tmp_path / "a.txt", "one\ntwo\n\n\nthree\n")
    items = list(read_records(path, "fail", text_unit=unit))
    assert [(index, line, value["text"].strip()) for index, line, value in items if isinstance(value, dict)] == expected
    rows = [outcome.row.content["text"] for outcome in outcomes(SourceSpec(uri=path, text_unit=unit), "text")]
    assert rows == [text for *_, text in expected]


def test_undecodable_text_is_counted_with_its_place(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"good\nb\xe9d\nmore\n")
    with pytest.raises(
        InvalidInput, match=r"a\.txt:2: invalid UTF-8: byte 0xe9 at byte 6 of the file; UTF-8 text is accepted"
    ):
        read(path)
    assert [value.reason if isinstance(value, Broken) else value["text"].strip() for *_, value in read(path, "skip")] == [
        "good",
        "invalid UTF-8",
        "more",
    ]


def test_a_text_unit_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_RECORD", 100)
    path = write(tmp_path / "a.txt", "some words\n" * 20)
    assert len(read(path)) == 20
    with pytest.raises(InvalidInput, match=r"a\.txt:1: a document of more than .* set textUnit: line"):
        list(read_records(path, "skip", text_unit="document"))


# Places in the file


def test_invalid_utf8_says_its_byte_in_the_file(tmp_path: Path) -> None:
    line = '{"instruction": "é"}'.encode("latin-1")
    before = (LINES[0] + "\n").encode()
    for data in (before + line, b"[" + before.strip() + b",\n" + line + b"]", gzip.compress(before + line, mtime=0)):
        (broken,) = (v for *_, v in read(write(tmp_path / "a.json", data), "skip") if isinstance(v, Broken))
        plain = gzip.decompress(data) if data[:1] == b"\x1f" else data
        assert f"byte 0xe9 at byte {plain.index(0xE9)} of the file" in broken.excerpt


@pytest.mark.parametrize("seed", range(6))
def test_an_array_is_the_same_however_it_is_cut_into_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    texts = ["é" * rng.randint(0, 40), "}],[{", '"\\', "\n\t", "𝄞", "x" * rng.randint(0, 300)]
    records = [
        {"n": rng.choice([rng.randint(-(10**9), 10**9), rng.random(), 1e-30]), "t": rng.choice(texts), "l": [True, None, {}]}
        for _ in range(50)
    ]
    path = write(tmp_path / "a.json", json.dumps(records, indent=rng.choice([None, 1]), ensure_ascii=rng.random() < 0.5))
    whole = read(path)
    assert [value for *_, value in whole] == records
    for chunk in (1, 2, 7, rng.randint(8, 400)):
        monkeypatch.setattr(json_stream, "CHUNK", chunk)
        assert read(path) == whole


# Files too big for memory, or for belief


class Endless(io.RawIOBase):
    """Bytes that are made as they are read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._left = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._left = self._left or next(self._pieces, b"")
        data, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


def test_a_line_of_100_megabytes_is_counted_and_not_held(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write((LINES[0] + '\n{"instruction": "').encode())
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(('"}\n' + LINES[1]).encode())
    with pytest.raises(InvalidInput, match=r"a\.jsonl:2: line too long: 100,000,0\d\d bytes, of at most 67,108,864"):
        read(str(path))
    tracemalloc.start()
    items = read(str(path), "skip")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(line, getattr(value, "reason", None)) for _, line, value in items] == [
        (1, None),
        (2, "line too long"),
        (3, None),
    ]
    assert peak < 2 * MAX_RECORD + (8 << 20)  # the reader joins what it has; the line itself would take 200 MB that way


def test_an_array_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("w") as file:
        file.write("[")
        for i in range(3000):
            file.write(("," if i else "") + json.dumps({"instruction": f"{i}", "output": "x" * 10_000}))
        file.write("]")
    tracemalloc.start()
    count = sum(1 for _ in read_records(str(path), "fail"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 3000
    assert peak < 12 << 20 < path.stat().st_size


def test_an_element_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "MAX_RECORD", 3 << 20)
    stream = io.BufferedReader(Endless(chain([b'[{"a": "'], repeat(b"x" * 65536))))
    with pytest.raises(InvalidInput, match="an element of more than 3 MiB"):
        list(json_stream.elements(stream, "a.json", "array"))


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
@pytest.mark.parametrize("form", ["one line", "lines", "array"])
def test_a_bomb_is_refused_before_it_has_grown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Any, form: str
) -> None:
    monkeypatch.setattr(inflate, "RATIO_FROM", 4 << 20)
    line = b'{"instruction": "a", "output": "a"}'
    data = {"one line": b" " * (64 << 20), "lines": (line + b"\n") * (1 << 21), "array": b"[" + (line + b",") * (1 << 21)}[
        form
    ]
    path = write(tmp_path / "a", pack(data))
    with pytest.raises(InvalidInput, match=r"have grown to [\d,]+ and go on; at most 200 times .*bomb"):
        read(path, "skip")


def test_a_file_that_grows_beyond_the_total_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflate, "RATIO_FROM", 1000)
    monkeypatch.setattr(inflate, "MAX_INFLATED", 200_000)
    path = write(
        tmp_path / "a.jsonl.gz", gzip.compress("".join(f'{{"n": {random.random()}}}\n' for _ in range(10_000)).encode())
    )
    with pytest.raises(InvalidInput, match="have grown to"):
        read(path)


def test_real_text_of_any_size_is_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflate, "RATIO_FROM", 1000)
    records = "".join(f'{{"instruction": "Say {i}.", "input": "", "output": "It is {i % 7}."}}\n' for i in range(20_000))
    assert len(read(write(tmp_path / "a.jsonl.zst", zstd(records.encode())))) == 20_000


# Files that change


def grow(path: Path) -> None:
    with path.open("a") as file:
        file.write(LINES[0] + "\n")


def cut(path: Path) -> None:
    os.truncate(path, 200)


def rewrite(path: Path) -> None:
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"Say", b"Yas"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))


@pytest.mark.parametrize("change", [grow, cut, rewrite])
@pytest.mark.parametrize("kind", ["lines", "array", "parquet"])
def test_a_file_that_changes_under_way_is_worth_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, kind: str
) -> None:
    monkeypatch.setattr(reading, "BUFFER", 100)
    monkeypatch.setattr(json_stream, "CHUNK", 100)
    monkeypatch.setattr(reading, "PARQUET_ROWS", 1)
    path = tmp_path / "a"
    path.write_bytes(containers()[kind] if kind != "lines" else containers()["lines"] * 3)
    items = read_records(str(path), "fail")
    next(items)
    change(path)
    with pytest.raises(PlumblineError, match=r"a changed while it was read .* run again") as caught:
        list(items)
    assert not isinstance(caught.value, InvalidInput)


def test_a_file_that_changed_since_the_stage_began(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, "\n".join(LINES))
    _, (part,) = find_parts([SourceSpec(uri=str(path))], None, 0, ["spec.sources[0]"])
    grow(path)
    with pytest.raises(PlumblineError, match="changed while it was read"):
        list(read_part(part, "messages"))


def test_a_source_that_changed_since_it_was_planned(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    uri = write(path, "\n".join(LINES))
    planned = {uri: identity(uri), "builtin://skills": identity("builtin://skills")}
    specs = [SourceSpec(uri=uri), SourceSpec(uri="builtin://skills"), SourceSpec(uri="hf://datasets/org/name")]
    check_unchanged(specs, planned | {"hf://datasets/org/name": "commit:1"})
    grow(path)
    with pytest.raises(PlumblineError, match=r"a\.jsonl has changed since the run was planned"):
        check_unchanged(specs, planned)


# Big files that several tasks share


def big(path: Path, seed: int, suffix: str = "") -> list[Any]:
    """JSON lines of very different lengths with blank and broken ones; the items that reading it in one go gives."""
    rng = random.Random(seed)
    with path.open("wb") as file:
        for i in range(2000):
            kind = rng.random()
            text = "x" * (rng.randint(3000, 9000) if kind > 0.98 else rng.randint(0, 60))
            line = json.dumps({"instruction": f"Say {i}.", "output": text + "é"}, ensure_ascii=False).encode()
            file.write({0: b"", 1: b"{", 2: b"\xff"}.get(rng.randint(0, 99), line) + b"\n")
        file.write(b'{"instruction": "last", "output": "no newline"}')
    return read(str(path), "skip")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("target", [500, 4096, 70_000])
def test_spans_together_are_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, target: int) -> None:
    monkeypatch.setattr("plumbline.data.spans._CHUNK", 300)
    path = tmp_path / "a.jsonl"
    whole = big(path, seed)
    spans = spans_of(str(path), path.stat().st_size, target)
    assert (spans[0].start, spans[-1].end) == (0, path.stat().st_size)
    assert all(before.end == after.start for before, after in pairwise(spans))
    assert all(span.end - span.start >= target for span in spans[:-1])
    assert len(spans) > 1
    told: list[tuple[int, int]] = []
    monkeypatch.setattr("plumbline.data.spans.MIB", 1)
    spans_of(str(path), path.stat().st_size, target, lambda done, total: told.append((done, total)))
    assert told == [(span.end, path.stat().st_size) for span in spans]
    pieces = [item for span in spans for item in read_records(str(path), "skip", span=span)]
    assert pieces == whole


def test_parts_of_a_big_file_give_the_rows_that_one_part_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    big(path, 9)
    source = SourceSpec(uri=str(path), bad_records="skip")
    one = outcomes(source)
    for module in (sources, reading):
        monkeypatch.setattr(module, "SPAN_BYTES", 10_000)
    monkeypatch.setattr(reading, "spans_of", lambda path, size, progress: spans_of(path, size, 10_000, progress))
    monkeypatch.setattr("plumbline.data.spans._CHUNK", 1000)
    _, parts = find_parts([source], None, 0, ["spec.sources[0]"])
    assert len(parts) > 5
    many: list[Outcome] = [outcome for part in parts for outcome in read_part(part, "messages")]
    assert many == one
    _, limited = find_parts([source.model_copy(update={"limit": 1500})], None, 0, ["spec.sources[0]"])
    assert len(limited) == 1
    assert [o for part in limited for o in read_part(part, "messages")] == one[:1500]


def test_all_spans_are_read_in_the_format_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    record = {"instruction": "a", "output": "b"}
    lines_of = [json.dumps(record)] * 300 + [json.dumps({"instruction": "a", "response": "b"})] * 300
    write(path, "\n".join(lines_of))
    for module in (sources, reading):
        monkeypatch.setattr(module, "SPAN_BYTES", 2000)
    monkeypatch.setattr(reading, "spans_of", lambda path, size, progress: spans_of(path, size, 2000, progress))
    monkeypatch.setattr("plumbline.data.spans._CHUNK", 300)
    found = outcomes(SourceSpec(uri=str(path)))
    assert {o.format for o in found} == {"alpaca"}
    assert [o.reason for o in found] == [None] * 300 + ["missing field"] * 300


@pytest.mark.parametrize("target", [1, 3000, 10_000])
def test_row_groups_of_a_parquet_file_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: int) -> None:
    path = tmp_path / "a.parquet"
    values = [{"instruction": f"Say {random.Random(i).random()}.", "output": f"{i}"} for i in range(1000)]
    pq.write_table(pa.Table.from_pylist(values), path, row_group_size=70, compression="none")
    source = SourceSpec(uri=str(path))
    (one,) = find_parts([source], None, 0, ["spec.sources[0]"])[1]
    for module in (sources, reading):
        monkeypatch.setattr(module, "SPAN_BYTES", target)
    _, parts = find_parts([source], None, 0, ["spec.sources[0]"])
    assert len(parts) > (14 if target == 1 else 2)
    assert [outcome for part in parts for outcome in read_part(part, "messages")] == list(read_part(one, "messages"))
    spans = spans_of_file(str(path), "line")
    items = [item for span in spans for item in read_records(str(path), "fail", span=span)]
    assert items == [(i, i + 1, value) for i, value in enumerate(values)]


def test_white_space_before_csv_takes_no_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "\n" * 900_000 + "instruction,output\na,b\n")  # a quadratic search would take an hour
    assert [value for _, _, value in read(path)] == [{"instruction": "a", "output": "b"}]


@pytest.mark.parametrize(
    ("name", "shared"),
    [("a.jsonl", True), ("a.txt", True), ("a.csv", False), ("a.json", False), ("a.jsonl.gz", False), ("a.parquet", False)],
)
def test_which_files_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, shared: bool) -> None:
    monkeypatch.setattr(reading, "SPAN_BYTES", 10)
    data = {
        "a.csv": b"instruction,output\na,b\n" * 3,
        "a.json": containers()["array"],
        "a.jsonl.gz": containers()["gzipped lines"],
        "a.parquet": containers()["parquet"],
    }.get(name, containers()["lines"])
    assert bool(spans_of_file(write(tmp_path / name, data), "line")) == shared
    assert not spans_of_file(write(tmp_path / name, data), "document") or name == "a.jsonl"


def test_a_stamp_tells_a_rewritten_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(path, "abc")
    before = stamp_of(str(path))
    assert stamp_of(str(path)) == before
    rewrite(path)
    assert stamp_of(str(path)) != before
