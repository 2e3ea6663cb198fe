"""The `curate` stage on a real local Ray, as a driver runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plumbline.api.run import AlignmentRun
from plumbline.artifacts import Artifact
from plumbline.data.dataset import load_rows, part_names
from plumbline.errors import InvalidInput
from plumbline.plan import make_plan
from plumbline.progress import Event, Reporter
from plumbline.stage import run_stage

pytestmark = pytest.mark.ray


def curate(tmp_path: Path, *blocks: dict[str, Any], workspace: str = "ws", events: list[Event] | None = None) -> Artifact:
    """Run `curate` stages d0, d1, …; each after the first reads the one before it. Returns the last artifact."""
    stages: list[dict[str, Any]] = [{"name": f"d{i}", "curate": block} for i, block in enumerate(blocks)]
    for i, stage in enumerate(stages[1:]):
        stage["inputs"] = {"dataset": f"d{i}"}
    document = {
        "apiVersion": "plumbline.dev/v1alpha1",
        "kind": "AlignmentRun",
        "metadata": {"name": "test"},
        "spec": {"model": {"base": "builtin://tiny"}, "workspace": {"uri": str(tmp_path / workspace)}, "stages": stages},
    }
    plan = make_plan(AlignmentRun.model_validate(document, by_name=False, by_alias=True))
    sink = (events if events is not None else []).append
    return [run_stage(plan, stage["name"], Reporter(stage["name"], sink)) for stage in stages][-1]


def write_lines(path: Path, records: list[Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def alpaca(prompt: str, answer: str = "ok") -> dict[str, str]:
    return {"instruction": prompt, "output": answer}


def card_of(artifact: Artifact) -> dict[str, Any]:
    return dict(json.loads((artifact.local() / "card.json").read_text()))


def data_of(artifact: Artifact) -> list[bytes]:
    names = [*part_names(artifact), "card.json", "card.html"]
    return [(artifact.local() / name).read_bytes() for name in names]


def test_rows_come_in_source_order_with_provenance_metrics_and_lineage(ray_session: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(6):  # the first files are the longest: they end last
        write_lines(folder / f"{i}.jsonl", [alpaca(f"{i} {j}") | {"id": f"r{i}-{j}"} for j in range(3000 if i == 0 else 3)])
    extra = write_lines(
        tmp_path / "chat.jsonl", [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}]
    )
    events: list[Event] = []
    sources = [{"uri": str(folder), "name": "six"}, {"uri": extra}, {"uri": "builtin://skills", "limit": 8}]
    artifact = curate(tmp_path, {"sources": sources, "parallelism": 4}, events=events)

    rows = load_rows(artifact)
    expected = [(f"six/{i}.jsonl", j) for i in range(6) for j in range(3000 if i == 0 else 3)]
    expected += [("chat.jsonl", 0)] + [("skills", j) for j in range(8)]
    assert list(zip(rows["source"].to_pylist(), rows["record"].to_pylist(), strict=True)) == expected
    assert rows.column_names == ["messages", "source", "record", "format", "record_id"]
    assert rows["record_id"].to_pylist()[:2] == ["r0-0", "r0-1"]
    assert rows["format"].to_pylist()[-9:] == ["sharegpt"] + ["skills"] * 8
    assert artifact.details == {"rows": 3024, "format": "messages"}
    assert {k: artifact.metrics[k] for k in ("rows", "dropped", "sources")} == {"rows": 3024, "dropped": 0, "sources": 3}
    lineage = artifact.manifest["lineage"]["sources"]
    assert [(s["uri"], s["rows"]) for s in lineage] == [(str(folder), 3015), (extra, 1), ("builtin://skills", 8)]
    assert lineage[2]["identity"] == "skills:1"
    assert (events[-2].step, events[-2].total, events[-2].metrics) == (8, 8, {"rows": 3024})


def test_two_runs_are_byte_identical_whatever_the_parallelism(ray_session: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(5):
        write_lines(
            folder / f"{i}.jsonl", [alpaca(f"p {j % 400}", f"a {i % 2}") for j in range(900 - 100 * i)] + [alpaca("", "x")]
        )
    block = {"sources": [{"uri": f"{folder}/*.jsonl"}, {"uri": "builtin://skills", "limit": 300}]}
    one = curate(tmp_path, block | {"parallelism": 1}, workspace="one")
    two = curate(tmp_path, block | {"parallelism": 4}, workspace="two")
    assert one.fingerprint == two.fingerprint
    assert data_of(one) == data_of(two)
    assert card_of(one)["dropped"]["duplicate"] > 0


def test_duplicates_across_sources_keep_the_first(ray_session: str, tmp_path: Path) -> None:
    a = write_lines(tmp_path / "a.jsonl", [alpaca("Say hi"), alpaca("a only")])
    b = write_lines(tmp_path / "b.jsonl", [alpaca("b only"), {"instruction": "say  HI", "context": "", "response": "OK"}])
    c = write_lines(tmp_path / "c.jsonl", [{"instruction": "say  HI", "context": "", "response": "OK"}])
    artifact = curate(tmp_path, {"sources": [{"uri": a}, {"uri": b}, {"uri": c}, {"uri": "builtin://skills", "limit": 1}]})
    rows = load_rows(artifact)
    assert rows["source"].to_pylist() == ["a.jsonl", "a.jsonl", "b.jsonl", "skills"]
    assert [s["dropped"] for s in card_of(artifact)["sources"]] == [{}, {"missing field": 1}, {"duplicate": 1}, {}]
    kept = curate(tmp_path, {"sources": [{"uri": a}, {"uri": c}], "deduplicate": "none"})
    assert load_rows(kept)["source"].to_pylist() == ["a.jsonl", "a.jsonl", "c.jsonl"]


def test_an_earlier_dataset_comes_first_and_keeps_its_provenance(ray_session: str, tmp_path: Path) -> None:
    a = write_lines(tmp_path / "a.jsonl", [alpaca("one"), alpaca("two")])
    b = write_lines(tmp_path / "b.jsonl", [alpaca("two"), alpaca("three")])
    artifact = curate(tmp_path, {"sources": [{"uri": a}]}, {"sources": [{"uri": b}]})
    rows = load_rows(artifact)
    assert [(r["source"], r["record"], r["format"]) for r in rows.to_pylist()] == [
        ("a.jsonl", 0, "alpaca"),
        ("a.jsonl", 1, "alpaca"),
        ("b.jsonl", 1, "alpaca"),
    ]
    assert [source["name"] for source in card_of(artifact)["sources"]] == ["d0", "b.jsonl"]
    assert [source["uri"] for source in artifact.manifest["lineage"]["sources"]] == [b]


def test_pairs_have_their_own_columns(ray_session: str, tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "p.jsonl",
        [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "p", "chosen": "a", "rejected": "a"}],
    )
    block = {"sources": [{"uri": path}, {"uri": "builtin://skills", "limit": 20}], "produces": "PreferenceDataset"}
    artifact = curate(tmp_path, block)
    assert artifact.type == "PreferenceDataset"
    assert artifact.details == {"rows": 21, "format": "pairs"}
    rows = load_rows(artifact)
    assert rows.column_names[:3] == ["prompt", "chosen", "rejected"]
    assert rows["chosen"].to_pylist()[0] == [{"role": "assistant", "content": "a"}]
    assert card_of(artifact)["dropped"] == {"chosen equals rejected": 1}


def test_skipped_lines_are_counted(ray_session: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(alpaca("a")).encode() + b"\n{\n\n17\n\xff\n" + json.dumps(alpaca("b")).encode() + b"\n\n")
    artifact = curate(tmp_path, {"sources": [{"uri": str(path), "badRecords": "skip"}]})
    assert load_rows(artifact)["record"].to_pylist() == [0, 5]
    assert card_of(artifact)["dropped"] == {"blank line": 1, "broken JSON": 1, "invalid UTF-8": 1, "not an object": 1}
    assert card_of(artifact)["examples"]["not an object"] == [{"source": "a.jsonl", "record": 3, "excerpt": "line 4: 17"}]


def test_the_first_broken_source_in_order_is_named_and_nothing_is_left_behind(ray_session: str, tmp_path: Path) -> None:
    slow = write_lines(tmp_path / "slow.jsonl", [*(alpaca(f"{i}") for i in range(5000)), 17])
    fast = write_lines(tmp_path / "fast.jsonl", [17])
    with pytest.raises(InvalidInput, match=r"slow\.jsonl:5001: not an object: 17; .* set badRecords: skip"):
        curate(tmp_path, {"sources": [{"uri": slow}, {"uri": fast}]})
    assert not list((tmp_path / "ws" / "artifacts").rglob("*.parquet"))


def test_no_row_left_names_the_main_reason(ray_session: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [alpaca("a", ""), alpaca("b", " "), alpaca("", "c")])
    with pytest.raises(
        InvalidInput, match=r"spec\.stages\[0\]\.curate\.sources: no row is left of 3 .* \(2\) .* 'empty answer'"
    ):
        curate(tmp_path, {"sources": [{"uri": path}]})


def test_a_dataset_cannot_become_pairs(ray_session: str, tmp_path: Path) -> None:
    a = write_lines(tmp_path / "a.jsonl", [alpaca("one")])
    with pytest.raises(InvalidInput, match=r"spec\.stages\[1\]\.curate\.produces: "):
        curate(tmp_path, {"sources": [{"uri": a}]}, {"sources": [{"uri": a}], "produces": "PreferenceDataset"})


def test_alpaca_in_full(ray_session: str, tmp_path: Path, shared: Path) -> None:
    artifact = curate(tmp_path, {"sources": [{"uri": str(shared / "alpaca/alpaca_data_shared.jsonl.gz")}]})
    card = card_of(artifact)
    assert (card["records"], card["dropped"]["empty answer"]) == (42_000, 23)
    assert card["rows"] + sum(card["dropped"].values()) == 42_000
    assert load_rows(artifact).num_rows == card["rows"]
    assert load_rows(artifact)["record"].to_pylist() == sorted(load_rows(artifact)["record"].to_pylist())


def test_sharegpt_files_that_repeat_each_other(ray_session: str, tmp_path: Path, shared: Path) -> None:
    artifact = curate(tmp_path, {"sources": [{"uri": str(shared / "chat/sharegpt_dummy_*.json")}]})
    assert artifact.metrics["rows"] == 506  # the second file differs in its six records with a system text
    assert card_of(artifact)["roles"]["system"] == 6
