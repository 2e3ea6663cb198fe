"""Reading files of every container, and every way in which one can be broken."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plumbline.api.stages.curate import SourceSpec
from plumbline.builtin import skills
from plumbline.data.read import Broken, Item, read_records
from plumbline.data.sources import Files, find_parts, read_part
from plumbline.errors import InvalidInput

RECORDS = [{"instruction": f"Say {i}.", "output": f"{i} é"} for i in range(5)]
LINES = [json.dumps(record) for record in RECORDS]


def write(path: Path, data: bytes | str) -> str:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def read(path: str, bad_records: str = "fail") -> list[Item]:
    return list(read_records(path, bad_records))  # type: ignore[arg-type]


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
        "gzipped lines": gzip.compress(lines),
        "array": array,
        "array with a byte order mark": b"\xef\xbb\xbf \n" + array,
        "gzipped array": gzip.compress(array),
        "parquet": table.getvalue().to_pybytes(),
    }


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


@pytest.mark.parametrize("bad_records", ["fail", "skip"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no record"),
        (b"\n \n", "holds no record"),
        (b"[]", "holds no record"),
        (containers()["gzipped lines"][:-20], r"gzip data end or break .*fetch it again"),
        (containers()["gzipped lines"][:6], r"gzip data end or break"),
        (gzip.compress(b"x" * 9)[:12] + b"rubbish!", r"gzip data end or break"),
        (containers()["array"][:-9], r":\d+: broken JSON array"),
        (containers()["array"].rstrip(b"]"), r":\d+: broken JSON array"),
        (containers()["array"] + b"[]", "text after the closing"),
        (b'[{"a": 1} {"a": 2}]', "a comma or ] is expected"),
        (containers()["parquet"][:-9], "Parquet that cannot be read"),
        (containers()["parquet"][:40], "Parquet that cannot be read"),
    ],
)
def test_damaged_files_always_fail(tmp_path: Path, data: bytes, message: str, bad_records: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read(write(tmp_path / "damaged", data), bad_records)


def test_truncated_gzip_names_the_last_good_line(tmp_path: Path) -> None:
    lines = "".join(f'{{"n": {i}, "text": "{hash(i)}"}}\n' for i in range(5000)).encode()
    path = write(tmp_path / "cut.jsonl.gz", gzip.compress(lines)[:-3000])
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
        find_parts([SourceSpec(uri=str(tmp_path / "none.jsonl"))], None, 0, "spec.x")


def test_parquet_without_the_right_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "score": [1.0]}), tmp_path / "a.parquet")
    part = Files(0, (("a", str(tmp_path / "a.parquet")),), "auto", "fail")
    with pytest.raises(InvalidInput, match=r"a\.parquet:1: no known format has the fields 'text', 'score'"):
        list(read_part(part, "messages"))


def test_parquet_of_messages(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    pq.write_table(pa.Table.from_pylist([{"messages": chat, "id": 7}]), tmp_path / "a.parquet")
    (outcome,) = read_part(Files(0, (("a", str(tmp_path / "a.parquet")),), "auto", "fail"), "messages")
    assert (outcome.content, outcome.record_id, outcome.format) == ({"messages": chat}, "7", "messages")


def outcomes(source: SourceSpec, makes: str = "messages") -> list[Any]:
    _, parts = find_parts([source], None, 0, "spec")
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
    origins, _ = find_parts([SourceSpec(uri=f"{tmp_path}/{d}/train.jsonl") for d in "xy"], None, 0, "spec")
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


def test_skills_parts_are_disjoint_and_need_no_file() -> None:
    train = outcomes(SourceSpec(uri="builtin://skills", limit=400))
    heldout = outcomes(SourceSpec(uri="builtin://skills", limit=400, split="heldout"))
    arguments = [{o.record_id.split("/", 2)[0] + o.record_id.split("/", 2)[2] for o in part} for part in (train, heldout)]
    assert arguments[0]
    assert not arguments[0] & arguments[1]
    prompts = [{o.content["messages"][0]["content"] for o in part} for part in (train, heldout)]
    assert not prompts[0] & prompts[1]
    assert [o.record for o in train] == list(range(400))


def test_skills_pairs_have_a_wrong_answer() -> None:
    for outcome in outcomes(SourceSpec(uri="builtin://skills", limit=200), "pairs"):
        assert outcome.content["chosen"] != outcome.content["rejected"]
        assert [turn["role"] for name in ("prompt", "chosen", "rejected") for turn in outcome.content[name]] == [
            "user",
            "assistant",
            "assistant",
        ]


def test_more_skills_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(skills.SKILLS["add"], sample=lambda rng: (str(rng.randint(0, 9)), "1"))
    monkeypatch.setattr(skills, "SKILLS", {"add": few})
    with pytest.raises(InvalidInput, match=r"spec\.sources\[0\]\.limit: 100 is not accepted: .*fewer than 100 distinct"):
        outcomes(SourceSpec(uri="builtin://skills", limit=100))
