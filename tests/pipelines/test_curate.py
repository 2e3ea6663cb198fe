"""The `curate` stage on a real local Ray, as a driver runs it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plumbline.api.run import AlignmentRun
from plumbline.artifacts import Artifact
from plumbline.data.dataset import load_rows, part_names
from plumbline.data.ray import measure_chunks
from plumbline.data.row import Row
from plumbline.errors import InvalidInput
from plumbline.plan import Plan, make_plan
from plumbline.progress import Event, Reporter
from plumbline.stage import run_stage
from support.teacher import Teacher, prompt_of

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def curate(
    tmp_path: Path,
    *blocks: dict[str, Any],
    workspace: str = "ws",
    events: list[Event] | None = None,
    more: list[dict[str, Any]] | None = None,
) -> Artifact:
    """Run `curate` stages d0, d1, …; each after the first reads the one before it. Returns the last artifact.

    `more` stages of the run are not run.
    """
    stages: list[dict[str, Any]] = [{"name": f"d{i}", "curate": block} for i, block in enumerate(blocks)]
    for i, stage in enumerate(stages[1:]):
        stage["inputs"] = {"dataset": f"d{i}"}
    plan = plan_of(tmp_path, stages + (more or []), workspace)
    sink = (events if events is not None else []).append
    return [run_stage(plan, stage["name"], Reporter(stage["name"], sink)) for stage in stages][-1]


def plan_of(tmp_path: Path, stages: list[dict[str, Any]], workspace: str = "ws") -> Plan:
    document = {
        "apiVersion": "plumbline.dev/v1alpha1",
        "kind": "AlignmentRun",
        "metadata": {"name": "test"},
        "spec": {
            "model": {"base": "builtin://tiny"},
            "workspace": {"uri": str(tmp_path / workspace)},
            "stages": stages,
        },
    }
    return make_plan(AlignmentRun.model_validate(document, by_name=False, by_alias=True))


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
    assert rows.column_names[:5] == ["messages", "source", "record", "format", "record_id"]
    assert rows["record_id"].to_pylist()[:2] == ["r0-0", "r0-1"]
    assert rows["format"].to_pylist()[-9:] == ["sharegpt"] + ["skills"] * 8
    assert artifact.details == {"rows": 3024, "format": "messages"}
    assert {k: artifact.metrics[k] for k in ("rows", "dropped", "sources")} == {"rows": 3024, "dropped": 0, "sources": 3}
    lineage = artifact.manifest["lineage"]["sources"]
    assert [(s["uri"], s["rows"]) for s in lineage] == [(str(folder), 3015), (extra, 1), ("builtin://skills", 8)]
    assert lineage[2]["identity"] == "skills:1"
    read = [event for event in events if event.step is not None][-1]
    assert (read.step, read.total, read.metrics) == (8, 8, {"rows": 3024})


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
    kept = curate(tmp_path, {"sources": [{"uri": a}, {"uri": c}], "deduplicate": {"exact": False}})
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


@pytest.mark.parametrize(
    ("block", "where", "words"),
    [
        ({"filters": {"language": {"keep": ["de"]}}, "mix": {"programming": 0.5}}, "filters.language", "unwanted language"),
        ({"filters": {"length": {"answerWords": {"min": 99}}}, "select": {"rows": 2, "ifd": {}}}, "filters.length", "short"),
        ({"maxCharacters": 5, "deduplicate": {"semantic": {}}}, "maxCharacters", "'too long'"),
        ({"select": {"tokens": 2, "longest": {}}}, "select.tokens", "'not selected'"),
        ({"select": {"rows": 2, "tags": {}}}, "select.tags", "'no tag'"),
    ],
)
def test_no_row_left_names_the_filter_that_took_them(
    ray_session: str, tmp_path: Path, block: dict[str, Any], where: str, words: str
) -> None:
    records = [alpaca(f"Tell me something about number {i}, please.", f"Number {i} is a fine number.") for i in range(9)]
    path = write_lines(tmp_path / "a.jsonl", [*records, alpaca("nothing", "")])
    with pytest.raises(InvalidInput) as caught:
        curate(tmp_path, {"sources": [{"uri": path}], **block})
    message = str(caught.value)
    assert message.startswith(f"spec.stages[0].curate.{where}: no row is left of 10 records; most (9) were dropped as '")
    assert words in message
    assert f"1 as 'empty answer' (sources); change {where}, or" in message
    assert not list((tmp_path / "ws" / "artifacts").rglob("*.*")), "no scratch is left behind"


def test_personal_data_is_in_no_example(ray_session: str, tmp_path: Path) -> None:
    mail = "jane.roe@corp-mail.net"
    records = [
        alpaca(f"Ask {mail} for the invoice of last month.", f"{mail} has answered already."),
        alpaca(f"Mail {mail}", ""),
        alpaca(f"Mail {mail} now, please", "x" * 900),
        {"instruction": mail, "output": 3},
        alpaca(f"A lone surrogate \ud800 to {mail}", "ok"),
    ]
    path = write_lines(tmp_path / "a.jsonl", [*records, *records[:1]])
    for pii, dropped in (({}, 5), ({"redact": [], "drop": ["email"]}, 6)):
        block = {"sources": [{"uri": path}, {"uri": "builtin://skills", "limit": 3}], "maxCharacters": 500}
        artifact = curate(tmp_path, block | {"filters": {"pii": pii}})
        card = card_of(artifact)
        assert sum(map(len, card["examples"].values())) == dropped
        assert "[email]" in json.dumps(card)
        assert not [data for data in data_of(artifact) if mail.encode() in data]
        assert card["droppedBy"]["too long"] == "maxCharacters"


def test_training_keeps_to_a_curriculum_that_is_not_shuffled(ray_session: str, tmp_path: Path) -> None:
    records = [alpaca(f"Say {i} times", "ha " * (5 if i % 2 else 60) + str(i)) for i in range(24)]
    path = write_lines(tmp_path / "a.jsonl", records)
    stages = [
        {"name": "data", "curate": {"sources": [{"uri": path}], "mix": {"order": "shortest"}}},
        *(
            {
                "name": name,
                "sft": {"shuffle": shuffle, "batchSize": 4, "epochs": 2.0, "maxLength": 64},
                "inputs": {"dataset": "data", "model": "base"},
            }
            for name, shuffle in (("ordered", False), ("shuffled", True))
        ),
    ]
    plan = plan_of(tmp_path, stages)
    run_stage(plan, "data", Reporter("data", lambda event: None))
    cut = {}
    for name in ("ordered", "shuffled"):
        artifact = run_stage(plan, name, Reporter(name, lambda event: None))
        lines = (artifact.local() / "metrics.jsonl").read_text().splitlines()
        cut[name] = [json.loads(line)["cut"] for line in lines]
    assert cut["ordered"] == [0, 0, 0, 4, 4, 4] * 2, "the long answers come last in each epoch"
    assert sum(cut["shuffled"]) == 24 != cut["shuffled"][3] * 6


def test_chunks_are_measured_a_few_ahead_and_in_order(ray_session: str) -> None:
    made: list[int] = []

    def chunks() -> Iterator[list[Row]]:
        for i in range(40):
            made.append(i)
            yield [Row({"text": "x" * i})]

    def make() -> Callable[[list[Row]], dict[str, np.ndarray]]:
        return lambda rows: {"length": np.array([len(row.texts[0]) for row in rows])}

    found = measure_chunks(chunks(), make, 2)
    assert next(found)["length"].tolist() == [0]
    assert len(made) <= 5, "not all rows are in memory at once"
    assert [one["length"][0] for one in found] == list(range(1, 40))


def test_a_dataset_cannot_become_pairs(ray_session: str, tmp_path: Path) -> None:
    a = write_lines(tmp_path / "a.jsonl", [alpaca("one")])
    with pytest.raises(InvalidInput, match=r"spec\.stages\[1\]\.curate\.produces: "):
        curate(tmp_path, {"sources": [{"uri": a}]}, {"sources": [{"uri": a}], "produces": "PreferenceDataset"})


def test_near_duplicates_and_what_another_set_has_are_dropped(ray_session: str, tmp_path: Path) -> None:
    words = "the quick brown fox jumps over a lazy dog while seven wizards quietly box in the old town hall before supper"
    texts = [f"{words} number {i} {' '.join(str(i * j) for j in range(12))}" for i in range(30)]
    a = write_lines(tmp_path / "a.jsonl", [*map(alpaca, texts), alpaca(f"{texts[3]} today", "a longer answer than ok")])
    b = write_lines(tmp_path / "b.jsonl", [alpaca(f"well, {texts[5]}", "another answer"), alpaca("say something", "else")])
    block = {"key": "prompt", "keep": "longest", "minhash": {"similarity": 0.7}, "against": [b]}
    artifact = curate(tmp_path, {"sources": [{"uri": a}], "deduplicate": block})
    records = load_rows(artifact)["record"].to_pylist()
    assert records == [i for i in range(31) if i not in (3, 5)], (
        "the longer of two stays; what B has goes, and B is not in it"
    )
    card = card_of(artifact)
    assert (card["records"], card["dropped"]) == (31, {"near-duplicate": 2})
    assert card["deduplication"]["minhash"]["clusters"] == {"2": 2}
    assert [source["name"] for source in card["sources"]] == ["a.jsonl"]
    again = curate(tmp_path, {"sources": [{"uri": a}], "deduplicate": block, "parallelism": 1}, workspace="again")
    assert data_of(again) == data_of(artifact)


def test_a_redacted_row_is_found_in_a_set_that_is_not(ray_session: str, tmp_path: Path) -> None:
    a = write_lines(tmp_path / "a.jsonl", [alpaca("Write to ann@corp.io today"), alpaca("Write to nobody")])
    b = write_lines(tmp_path / "b.jsonl", [alpaca("Write to ann@corp.io today")])
    artifact = curate(tmp_path, {"sources": [{"uri": a}], "filters": {"pii": {}}, "deduplicate": {"against": [b]}})
    assert load_rows(artifact)["record"].to_pylist() == [1]
    assert "ann@corp.io" not in json.dumps(card_of(artifact))


def test_filters_change_and_drop_rows_and_the_card_tells(ray_session: str, tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "a.jsonl",
        [
            alpaca("Whom do I ask about the invoice?", "Write to jane.roe@corp-mail.net, she answers within a day."),
            alpaca("Sing a song.", "As an AI language model, I cannot sing."),
            alpaca("Say {{name}}", "no"),
            alpaca("Name a fruit of summer.", "A peach, or a cherry."),
        ],
    )
    block = {"sources": [{"uri": path, "licence": "MIT"}], "filters": {"pii": {}, "refusals": {}, "language": {}}}
    artifact = curate(tmp_path, block)
    rows = load_rows(artifact).to_pylist()
    assert [row["record"] for row in rows] == [0, 3]
    assert "[email]" in rows[0]["messages"][1]["content"]
    assert "redact:email" in rows[0]["operations"]
    assert {row["language"] for row in rows} == {"en"}
    card = card_of(artifact)
    assert sum(card["dropped"].values()) == 2
    assert (card["languages"], card["licences"], card["operations"]["redact:email"]) == ({"en": 2}, {"MIT": 2}, 1)


@pytest.mark.parametrize("action", ["drop", "report"])
def test_questions_of_benchmarks_are_found_by_default(ray_session: str, tmp_path: Path, action: str) -> None:
    question = "A baker sells forty two loaves on Monday and half as many on Tuesday. How many loaves does she sell in all?"
    held = write_lines(
        tmp_path / "gsm.jsonl", [{"question": question, "answer": "#### 63"}, {"question": "?", "answer": "#### 1"}]
    )
    path = write_lines(tmp_path / "a.jsonl", [alpaca("Something else."), alpaca(f"Solve this. {question.upper()}", "63")])
    curated = {"sources": [{"uri": path}], "decontaminate": {"action": action}}
    evaluated = {"name": "check", "evaluate": {"tasks": [{"name": "sums", "benchmark": "gsm8k", "uri": held}]}}
    artifact = curate(tmp_path, curated, more=[evaluated])
    card = card_of(artifact)
    assert card["dropped"] == ({"contaminated: gsm8k": 1} if action == "drop" else {})
    report = json.loads((artifact.local() / "contamination.json").read_text())
    found = report["benchmarks"][0]
    assert (found["name"], found["items"], found["touched"], found["left"]) == ("gsm8k", 2, 1, int(action == "report"))
    assert "touchedItems" not in card["contamination"]["benchmarks"][0]


@pytest.mark.parametrize(
    ("form", "columns"),
    [("rankings", ["prompt", "completions", "scores"]), ("labels", ["prompt", "completion", "label"])],
)
def test_preferences_in_every_form(ray_session: str, tmp_path: Path, form: str, columns: list[str]) -> None:
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": f"p {i}", "chosen": "a", "rejected": "b"} for i in range(3)])
    artifact = curate(tmp_path, {"sources": [{"uri": path}], "produces": "PreferenceDataset", "form": form})
    assert artifact.details["format"] == form
    assert load_rows(artifact).column_names[:3] == columns
    assert load_rows(artifact).num_rows == (6 if form == "labels" else 3)


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


def test_a_budget_by_what_the_model_says(ray_session: str, tmp_path: Path, shared: Path) -> None:
    source = {"uri": str(shared / "alpaca/alpaca_data_sample_100.json")}
    artifact = curate(tmp_path, {"sources": [source], "select": {"rows": 20, "ifd": {"maxRatio": 10}}})
    rows, card = load_rows(artifact), card_of(artifact)
    assert rows.num_rows == 20
    assert (
        card["dropped"]["not selected"]
        + card["rows"]
        + sum(count for reason, count in card["dropped"].items() if reason != "not selected")
        == card["records"]
    )
    lines = {line["method"]: line for line in card["selection"]["comparison"]}
    assert {name: line["rows"] for name, line in lines.items()} == {"random": 20, "longest": 20, "ifd": 20}
    assert lines["longest"]["answerTokens"] >= max(lines["random"]["answerTokens"], lines["ifd"]["answerTokens"])
    again = curate(
        tmp_path, {"sources": [source], "select": {"rows": 20, "ifd": {"maxRatio": 10}}, "parallelism": 1}, workspace="b"
    )
    assert load_rows(again).equals(rows)


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_a_share_of_programming_is_met(ray_session: str, tmp_path: Path, shared: Path, share: float) -> None:
    sources = [
        {"uri": str(shared / "alpaca/alpaca_en_demo.json.gz"), "name": "talk"},
        {"uri": str(shared / "instruct/code_alpaca_2k.json.gz"), "name": "code"},
    ]
    artifact = curate(tmp_path, {"sources": sources, "mix": {"programming": share, "order": "shortest"}})
    rows, card = load_rows(artifact), card_of(artifact)
    achieved = np.mean([category == "programming" for category in rows["category"].to_pylist()])
    assert abs(achieved - share) <= 0.01
    assert card["mix"]["programming"]["share"] == pytest.approx(achieved)
    lengths = [sum(len(turn["content"]) for turn in messages) for messages in rows["messages"].to_pylist()]
    first, last = np.array_split(np.array(lengths), 2)
    assert first.mean() < last.mean() / 2, "the shortest come first"


def test_what_is_scarce_is_repeated_as_often_as_is_allowed(ray_session: str, tmp_path: Path) -> None:
    few = write_lines(tmp_path / "few.jsonl", [alpaca(f"few {i}") for i in range(10)])
    many = write_lines(tmp_path / "many.jsonl", [alpaca(f"many {i}") for i in range(200)])
    sources = [{"uri": few, "name": "few"}, {"uri": many, "name": "many"}]
    mix = {"weights": {"few": 1, "many": 3}, "maxEpochs": 3}
    artifact = curate(tmp_path, {"sources": sources, "mix": mix})
    found = load_rows(artifact)["source"].to_pylist()
    assert artifact.details["rows"] == len(found) == 120
    assert found.count("few") == 30
    with pytest.raises(InvalidInput, match=r"spec\.stages\[0\]\.curate\.mix\.total: .*1,000"):
        curate(tmp_path, {"sources": sources, "mix": mix | {"total": 1000}})


def test_a_judge_rates_rows_and_is_paid_once(ray_session: str, tmp_path: Path) -> None:
    teacher = Teacher(lambda body: "It holds.\nRating: 5" if "colour" in prompt_of(body) else "Wrong.\nRating: 2")
    try:
        path = write_lines(tmp_path / "a.jsonl", [alpaca("Name a colour", "red"), alpaca("Add 2 and 2", "5")])
        judge = {"endpoint": teacher.url, "model": "judge"}
        block = {"sources": [{"uri": path}], "filters": {"judge": judge, "rating": {"minScore": 4}}}
        artifact = curate(tmp_path, block)
        rows = load_rows(artifact)
        assert (rows["record"].to_pylist(), rows["score"].to_pylist()) == ([0], [5.0])
        assert card_of(artifact)["dropped"] == {"rated low by the judge": 1}
        curate(tmp_path, block | {"maxCharacters": 5000})
        assert len(teacher.bodies) == 2, "an edited stage asks nothing again"
    finally:
        teacher.close()


def test_rows_that_mean_the_same(ray_session: str, tmp_path: Path) -> None:
    texts = ["Name a colour of the rainbow.", "Sort the letters q b m.", "Name a colour of the rainbow!"]
    path = write_lines(tmp_path / "a.jsonl", [alpaca(text) for text in texts])
    block = {"key": "prompt", "semantic": {"similarity": 0.98}}
    artifact = curate(tmp_path, {"sources": [{"uri": path}], "deduplicate": block})
    assert load_rows(artifact)["record"].to_pylist() == [0, 1]
    assert card_of(artifact)["deduplication"]["semantic"]["dropped"] == 1


def test_a_classifier_learns_from_examples_what_is_worth_reading(ray_session: str, tmp_path: Path) -> None:
    good = [
        alpaca(f"Explain step {i} of the proof", f"First we show lemma {i}, because the sum of terms converges.")
        for i in range(80)
    ]
    poor = [alpaca(f"lol {i}", f"buy now cheap offer {i} click here") for i in range(80)]
    names = {name: write_lines(tmp_path / f"{name}.jsonl", rows) for name, rows in (("positive", good), ("negative", poor))}
    path = write_lines(
        tmp_path / "a.jsonl",
        [alpaca("Explain the limit", "We show that the sum of terms converges."), alpaca("lol", "click here, buy now")],
    )
    artifact = curate(tmp_path, {"sources": [{"uri": path}], "filters": {"textbook": names}})
    assert load_rows(artifact)["record"].to_pylist() == [0]
    assert card_of(artifact)["textbook"]["accuracy"] > 0.9
    with pytest.raises(InvalidInput, match=r"filters\.textbook"):
        curate(tmp_path, {"sources": [{"uri": path}], "filters": {"textbook": names | {"positive": names["negative"]}}})
