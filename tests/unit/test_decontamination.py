"""Decontamination: planted questions with known truth are found, everything else stays."""

from __future__ import annotations

import ast
import csv
import gzip
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plumbline.api.curation.decontamination import BenchmarkFilesSpec, DecontaminateSpec
from plumbline.builtin import skills
from plumbline.data.candidates import Candidates
from plumbline.data.card_page import _contamination
from plumbline.data.decontamination.benchmarks import BenchmarkFiles, load_benchmarks
from plumbline.data.decontamination.code import code_windows, programs, tokens
from plumbline.data.decontamination.findings import COLUMN, FILE, Findings, checks, write_report
from plumbline.data.decontamination.index import COMMON, HITS, Index, Question
from plumbline.data.row import Row
from plumbline.data.rows import Outcome, tabulate
from plumbline.errors import InvalidInput

SPEC = DecontaminateSpec()


def row(prompt: str, answer: str = "Yes.") -> Row:
    return Row({"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]})


def lines(path: Path) -> Iterator[dict[str, Any]]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as stream:
        yield from map(json.loads, stream)


def index(*texts: str, **fields: Any) -> Index:
    return Index.build([Question("b", str(i), (text,)) for i, text in enumerate(texts)], SPEC.model_copy(update=fields))


def found(of: Index, prompt: str, answer: str = "Yes.") -> list[int]:
    return [hit.item for hit in of.check(row(prompt, answer))]


@pytest.fixture(scope="module")
def gsm8k(shared: Path) -> list[str]:
    return [record["question"] for record in lines(shared / "gsm8k" / "test_shared.jsonl.gz")]


@pytest.fixture(scope="module")
def alpaca(shared: Path) -> list[Row]:
    records = list(lines(shared / "alpaca" / "alpaca_data_shared.jsonl.gz"))[:4000]
    return [row(f"{r['instruction']}\n\n{r['input']}".strip(), r["output"]) for r in records]


@pytest.fixture(scope="module")
def maths(gsm8k: list[str]) -> Index:
    return index(*gsm8k)


def edited(text: str, share: float, rng: random.Random) -> str:
    """The text with this share of its words replaced, one run of them."""
    words = text.split()
    count = round(share * len(words))
    start = rng.randrange(len(words) - count + 1)
    return " ".join([*words[:start], *["something"] * count, *words[start + count :]])


PLANTED: dict[str, tuple[Callable[[str, random.Random], str], float, float]] = {
    # how a question is planted, and the least and the greatest share that may be found
    "verbatim": (lambda text, rng: text, 1, 1),
    "within other words": (lambda text, rng: f"Here is a riddle for you.\n{text}\nAnswer in one line, please!", 1, 1),
    "case and punctuation": (lambda text, rng: re.sub(r"[.,?!]", " ;", text.upper()), 0.99, 1),
    "a fifth rewritten": (lambda text, rng: edited(text, 0.2, rng), 0.97, 1),
    "two words in different places": (lambda text, rng: edited(edited(text, 0.01, rng), 0.01, rng), 0.9, 1),
    "the first third only": (lambda text, rng: text[: len(text) // 3], 0, 0.02),
    "words in another order": (lambda text, rng: " ".join(sorted(text.split(), key=str.lower)), 0, 0),
}


@pytest.mark.parametrize("how", PLANTED)
def test_planted_questions_are_found_as_they_should_be(maths: Index, gsm8k: list[str], how: str) -> None:
    change, least, most = PLANTED[how]
    rng = random.Random(how)
    planted = [row(change(text, rng)) for text in gsm8k]
    hits = [[hit["item"] for hit in hits] for hits in maths.annotate(planted).to_pylist()]
    right = sum(i in items for i, items in enumerate(hits))
    assert least <= right / len(gsm8k) <= most
    assert sum(len(items) for items in hits) - right <= 0.01 * len(
        gsm8k
    )  # some of GSM8K's questions are variants of another


def test_what_is_no_question_of_a_benchmark_stays(maths: Index, alpaca: list[Row], shared: Path) -> None:
    assert not any(maths.annotate(alpaca).to_pylist())
    # GSM8K's own training questions are of the same making: none is a test question, some are variants of one.
    train = [row(record["question"]) for record in lines(shared / "gsm8k" / "train.jsonl.gz")][:3000]
    assert sum(map(bool, maths.annotate(train).to_pylist())) < 0.005 * len(train)


def test_answers_are_looked_into_only_when_asked() -> None:
    question = (
        "A train leaves the station at noon with forty people and nine of them get off at the first stop. How many stay?"
    )
    assert found(index(question), "Tell me a riddle.", f"Sure: {question}") == []
    assert found(index(question, turns="all"), "Tell me a riddle.", f"Sure: {question}") == [0]
    [hit] = index(question).check(Row({"text": f"Riddles. {question} More of them."}))  # plain text has no turns
    assert hit.cover == 1


def test_short_questions_must_be_a_turn_or_a_paragraph() -> None:
    short = index("Who wrote Hamlet, then?", "A?", "Compute 12 * 7.")
    assert found(short, "who wrote  Hamlet then") == [0]
    assert found(short, "Answer the question.\n\nWho wrote “Hamlet”, then?") == [0]
    assert found(short, "I wonder who wrote Hamlet, then, and why.") == []
    assert found(short, "a") == [1]
    assert found(short, "Read the letter.\n\nA") == []  # one word is no paragraph that tells anything
    assert found(short, "compute 12 * 7") == [2]
    assert found(short, "compute 12 + 7") == []


@pytest.mark.parametrize(
    "prompt",
    [
        "Question: What happens if you crack your knuckles a lot?\nAnswer:",
        "Please be brief. What happens if you crack your knuckles a lot? Thank you!",
        "1) What happens if you crack your knuckles a lot?\n2) Who was Ada Lovelace?",
        "- what happens if you\ncrack your knuckles a lot",
    ],
)
def test_a_short_question_is_found_among_other_sentences(prompt: str) -> None:
    of = index("What happens if you crack your knuckles a lot?", ngram=10)
    assert found(of, prompt) == [0]
    assert found(of, prompt.replace("a lot", "a lot at night")) == []
    assert found(of, prompt.replace("What", "Tell me what").replace("what", "Tell me what")) == []


def test_a_short_chinese_question_is_found_among_other_sentences() -> None:
    of = index("中国的首都是哪里？")
    assert found(of, "请回答：中国的首都是哪里？谢谢。") == [0]
    assert found(of, "问题:中国的首都是哪里\n答案:") == [0]
    assert found(of, "请问中国的首都是哪里有名？") == []


def test_what_looks_like_a_short_question_costs_no_more_than_its_length() -> None:
    of = index("Who wrote it, and when?")
    assert found(of, "Who wrote it, and" + " ,;" * 200_000 + " when then?") == []
    assert found(of, "Who wrote it, and" + " ,;" * 200_000 + " when?") == [0]


def test_a_common_phrase_is_not_a_question() -> None:
    of = index("Which of the following is an example of a duty?")
    assert found(of, "Which of the following is an example of a mammal? A cat, a bee or a newt?") == []
    assert found(of, "Which of the following is an example of a duty? Paying taxes or eating?") == [0]


def test_a_template_counts_for_nothing() -> None:
    template = "Read the passage below with great care and answer with exactly one word and nothing else: "
    names = [
        " ".join(
            f"{word}{i}"
            for word in [
                "a",
                "man",
                "in",
                "town",
                "bakes",
                "rolls",
                "near",
                "some",
                "river",
                "every",
                "day",
                "while",
                "it",
                "rains",
            ]
        )
        for i in range(COMMON + 1)
    ]
    prompt = template + "what colour is the sky over the sea on a fine summer evening in June?"
    assert found(index(*(template + name for name in names)), prompt) == []
    assert len(found(index(*(template + name for name in names[:COMMON])), prompt)) == COMMON
    assert found(index(*(template + name for name in names)), f"Say more: {names[3]} and {names[5]}.") == [3, 5]


def test_chinese_is_compared_by_characters(shared: Path) -> None:
    texts = []
    for path in sorted((shared / "ceval" / "val_shared").glob("*.csv"))[:12]:
        with path.open(encoding="utf-8") as stream:
            texts += [question["question"] for question in csv.DictReader(stream)]
    texts = [text for text in texts if len(re.findall(r"[\u4e00-\u9fff]", text)) > 30]
    assert len(texts) > 30
    of = index(*texts)
    assert all(i in found(of, f"请回答下面的问题：{text}谢谢。") for i, text in enumerate(texts))
    assert all(found(of, text[: len(text) // 4]) == [] for text in texts)
    chinese = [
        row(r["instruction"] + (r["input"] or "")) for r in lines(shared / "alpaca_zh" / "alpaca_zh_12345_15323.jsonl")
    ]
    assert len(chinese) > 500
    assert not any(of.annotate(chinese).to_pylist())


class Renaming(ast.NodeTransformer):
    """Gives other names to functions, arguments and variables; takes docstrings away. `ast.unparse` drops comments and layout."""

    def __init__(self, program: ast.AST, rng: random.Random) -> None:
        nodes = list(ast.walk(program))
        own = {n.name for n in nodes if isinstance(n, ast.FunctionDef)} | {n.arg for n in nodes if isinstance(n, ast.arg)}
        own |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        self.names = {name: f"{rng.choice(['item', 'x', 'total'])}_{i}" for i, name in enumerate(sorted(own))}

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.name = self.names[node.name]
        node.body = node.body[ast.get_docstring(node) is not None :]
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        self.generic_visit(node)
        node.arg = self.names[node.arg]
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self.names.get(node.id, node.id)
        return node


def renamed(program: str, rng: random.Random) -> str:
    """The same program as somebody would disguise it."""
    tree = ast.parse(program)
    return ast.unparse(Renaming(tree, rng).visit(tree))


def test_programs_are_found_under_other_names(shared: Path, alpaca: list[Row]) -> None:
    records = list(lines(shared / "humaneval" / "HumanEval_shared.jsonl"))
    of = Index.build(
        [Question("humaneval", r["task_id"], (r["prompt"],), r["prompt"] + r["canonical_solution"]) for r in records], SPEC
    )
    rng = random.Random(3)
    long = [i for i, r in enumerate(records) if len(tokens(r["prompt"] + r["canonical_solution"])) >= SPEC.code_tokens]
    assert len(long) > 60
    planted = [renamed(records[i]["prompt"] + records[i]["canonical_solution"], rng) for i in long]
    hits = [
        i in found(of, "Write it.", f"Here:\n```python\n{program}\n```") for i, program in zip(long, planted, strict=True)
    ]
    assert sum(hits) / len(hits) > 0.95
    assert all(i in found(of, records[i]["prompt"]) for i in range(len(records)))
    assert not any(of.annotate(alpaca).to_pylist())
    written = json.loads(gzip.decompress((shared / "instruct" / "code_alpaca_2k.json.gz").read_bytes()))
    code = [row(r["instruction"], r["output"]) for r in written]
    assert not any(of.annotate(code).to_pylist())


def test_a_short_program_is_compared_as_a_whole() -> None:
    program = "def unique(l: list):\n    return sorted(list(set(l)))\n"
    of = Index.build([Question("b", "0", ("Sorted unique elements of a list, please.",), program)], SPEC)

    def held(answer: str) -> list[int]:
        return found(of, "Write a function.", answer)

    assert held("```python\ndef uniq(items: list):  # no repeats\n    return sorted(list(set(items)))\n```") == [0]
    assert held("def uniq(items: list):\n    return sorted(list(items(set)))") == []
    assert held("def uniq(items: list):\n    print(items)\n    return sorted(list(set(items)))") == []
    tiny = Index.build([Question("b", "0", ("x",), "def f(x): return x")], SPEC)
    assert found(tiny, "Write a function.", "def g(y): return y") == []


def test_windows_of_programs_are_equal_under_renaming_only() -> None:
    def hashes(program: str) -> list[int]:
        return code_windows([tokens(program)], 10).hashes.tolist()

    first = "def add(a, b):  # adds\n    return a + b - a"
    assert hashes(first) == hashes('def plus(left, right):\n  """Add."""\n  return left + right - left') != []
    assert hashes(first) != hashes("def add(a, b):\n    return a + b - b")
    assert hashes("print(len(x.first), y, 1, x, y)") != hashes("print(len(x.last), y, 1, x, y)")
    assert programs("Look:\n```py\nx = 1\n```\nand ```\ny = 2") == ["x = 1\n", "y = 2"]
    assert programs("What is a class? Define it.") == []
    assert programs("def f(x):\n  return x") == ["def f(x):\n  return x"]


@pytest.mark.parametrize(
    "text",
    ["a" + "\n" * 100_000 + "b", "`" * 100_000, '```\n"' + '\\"' * 50_000, "```\n" + "/*" * 50_000],
    ids=["newlines", "backticks", "escapes", "comments"],
)
def test_programs_are_found_in_linear_time(text: str) -> None:
    began = time.process_time()
    found = [tokens(program) for program in programs(text)]
    assert time.process_time() - began < 5  # a quadratic search takes from half a minute to many
    assert all(found)


def test_strings_of_a_program_are_one_token() -> None:
    long = "word " * 200
    assert tokens(f"x = '{long}' + \"it\\'s\" /* {long} */ + 'a' // don't") == [
        *("x", "=", f'"{long}"', "+", '"it\\\'s"'), "/", "*", *long.split(), "*", "/", "+", '"a"', "/", "/", "don", "'", "t",
    ]  # fmt: skip


def test_the_result_does_not_depend_on_how_rows_are_grouped(maths: Index, gsm8k: list[str], alpaca: list[Row]) -> None:
    rows = [*alpaca[:50], *(row(text) for text in gsm8k[:50]), row(""), row("\ud800"), row("w " * 200_000)]
    random.Random(1).shuffle(rows)
    whole = maths.annotate(rows)
    assert whole.type == HITS
    assert whole.to_pylist() == [hit for one in rows for hit in maths.annotate([one]).to_pylist()]
    assert sum(map(bool, whole.to_pylist())) == 50
    assert maths.annotate([]).to_pylist() == Index.build([], SPEC).annotate([]).to_pylist() == []
    assert Index.build([], SPEC).check(rows[0]) == []


def test_skills_need_no_comparison_and_would_lose_no_row_to_it() -> None:
    """Every wording of a task has its own letters; held-out tasks are no reason to drop others."""
    heldout = [Question("skills", t.id, (t.prompt,)) for t in skills.tasks(400, split="heldout", seed=0)]
    rows = [row(task.prompt) for task in skills.tasks(2000, split="train", seed=1)]
    assert sum(map(bool, Index.build(heldout, SPEC).annotate(rows).to_pylist())) == 0


def test_findings_over_all_rows(tmp_path: Path) -> None:
    long = [f"{'abcdefgh'[i]}1 {' '.join(f'w{i}x{j}' for j in range(30))}" for i in range(4)]
    sets = [
        BenchmarkFiles("first", "gsm8k", "u1", "i1", tuple(Question("first", f"f:{i}", (long[i],)) for i in (0, 1))),
        BenchmarkFiles("second", None, "u2", "i2", tuple(Question("second", f"s:{i}", (long[i],)) for i in (2, 3))),
    ]
    column = checks(sets, SPEC)
    rows = [row("hello there"), row(long[1]), row(long[2] + long[1][:150]), row(long[1] + " " + long[3]), row(long[0])]
    outcomes = [Outcome("s", i, row=one) for i, one in enumerate(rows)]
    outcomes.insert(1, Outcome("s", 9, reason="broken"))
    tables = [
        *tabulate(outcomes[:4], "messages", 0, column),
        *tabulate(outcomes[4:], "messages", 1, column),
    ]
    tables += tabulate([Outcome("s", 0, row=row(long[2]))], "messages", 2, column)
    findings = Findings(sets, (table.select(["part", COLUMN]) for table in tables), own=2)
    by_set = {name: numbers.tolist() for name, numbers in findings.rows_by_set().items()}
    assert by_set == {"first": [2, 4, 5], "second": [3]}

    candidates = Candidates(tmp_path, "messages", [])
    for table in tables:
        candidates.add(table)
    candidates.seal()
    for name, numbers in findings.rows_by_set().items():
        candidates.drop(numbers[:2], f"contaminated: {name}")
    assert candidates.reasons == ["broken", "contaminated: first", "contaminated: second"]
    report = findings.report(SPEC, candidates.kept())
    first, second = report["benchmarks"]
    assert first["touchedItems"] == {
        "f:0": {"cover": 1.0, "rows": 1, "rowsLeft": 1},
        "f:1": {"cover": 1.0, "rows": 3, "rowsLeft": 0},
    }
    assert (first["items"], first["touched"], first["left"], first["rows"], first["rowsLeft"]) == (2, 2, 1, 4, 1)
    assert set(second["touchedItems"]) == {"s:2", "s:3"}  # the row of part 2 is in no dataset
    assert second["touchedItems"]["s:2"]["rows"] == 1
    assert report["rule"]["cover"] == 0.5
    json.dumps(report, allow_nan=False)
    shown = write_report(report, tmp_path)
    assert json.loads((tmp_path / FILE).read_text()) == report
    assert "touchedItems" not in json.dumps(shown)
    page = _contamination(shown)
    assert "<td>first</td><td class=n>2</td><td class=n>2</td><td class=n>1</td><td class=n>4</td><td class=n>1</td>" in page
    nothing = Findings(sets, [], own=2)
    assert not np.concatenate(list(nothing.rows_by_set().values())).size
    assert nothing.report(SPEC, np.arange(3))["benchmarks"][0]["touchedItems"] == {}


def test_benchmarks_are_read_without_their_instructions(shared: Path) -> None:
    uris = [("gsm8k", str(shared / "gsm8k" / "test_shared.jsonl.gz")), ("mmlu", str(shared / "mmlu" / "dev"))]
    uris += [("mmlu", str(shared / "mmlu" / "val_shared"))]
    against = BenchmarkFilesSpec.model_validate(
        {
            "name": "humaneval",
            "uri": str(shared / "humaneval" / "HumanEval_shared.jsonl"),
            "fields": ["prompt"],
            "code": ["prompt", "canonical_solution"],
        }
    )
    again = BenchmarkFilesSpec.model_validate({"name": "again", "uri": uris[0][1], "benchmark": "gsm8k"})
    identities = {uri: f"of {uri}" for _, uri in uris} | {against.uri: "h"}
    sets = load_benchmarks([*uris, uris[0]], [against, again], identities, "x.against")
    assert [(one.name, len(one.items)) for one in sets] == [
        ("gsm8k", 660), ("mmlu dev", 285), ("mmlu val_shared", len(sets[2].items)), ("humaneval", 83),
    ]  # fmt: skip
    assert all(one.identity == identities[one.uri] for one in sets)
    assert "####" not in sets[0].items[0].texts[0]
    assert not any("multiple choice question about" in text for item in sets[1].items for text in item.texts)
    assert sets[3].items[0].code.startswith("from typing import List")
    from plumbline.api.stages.evaluate import TaskSpec
    from plumbline.evaluation.benchmarks import BENCHMARKS

    task = TaskSpec.model_validate({"name": "t", "benchmark": "gsm8k", "uri": uris[0][1], "limit": 7, "seed": 2})
    assert {item.id for item in BENCHMARKS["gsm8k"].load(task)} < {item.id for item in sets[0].items}


def test_further_benchmarks_of_any_fields(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jsonl").write_text('{"q": ["one", {"t": "two"}], "n": 3, "none": null}\n')
    (tmp_path / "x.csv").write_text("q,n,none\nfive,4,\n")
    spec = {"name": "mine", "uri": str(tmp_path), "fields": ["q", "n", "none"]}
    [one] = load_benchmarks([], [BenchmarkFilesSpec.model_validate(spec)], {str(tmp_path): "i"}, "x")
    assert [(item.id, item.texts) for item in one.items] == [("a/x.jsonl:1", ("one\ntwo\n3",)), ("x.csv:2", ("five\n4\n",))]
    bad = BenchmarkFilesSpec.model_validate(spec | {"fields": ["question"]})
    with pytest.raises(InvalidInput, match=r"x\.jsonl:1: no field 'question'; there are: q, n, none"):
        load_benchmarks([], [bad], {str(tmp_path): "i"}, "x")


def test_further_benchmarks_of_the_hub_are_read_at_the_planned_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text('{"q": "one"}\n')
    asked = []

    def files(uri: str, split: str, where: str, planned: str | None) -> list[str]:
        asked.append((uri, split, where, planned))
        return [str(path)]

    monkeypatch.setattr("plumbline.data.decontamination.benchmarks.hub_files", files)
    uri = "hf://datasets/org/name"
    spec = BenchmarkFilesSpec.model_validate({"name": "mine", "uri": uri, "fields": ["q"]})
    [one] = load_benchmarks([], [spec], {uri: "commit:abc"}, "x.against")
    assert [(item.id, item.texts) for item in one.items] == [("test.jsonl:1", ("one",))]
    assert asked == [(uri, "test", "x.against[0].uri", "commit:abc")]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (
            {"enabled": False, "against": [{"name": "a", "uri": "x", "benchmark": "mmlu"}]},
            ("against", "nothing is compared"),
        ),
        ({"against": [{"name": "a", "uri": "x"}]}, ("against[0]", "either benchmark or fields")),
        (
            {"against": [{"name": "a", "uri": "x", "benchmark": "mmlu", "code": ["c"]}]},
            ("against[0].code", "goes with fields"),
        ),
        (
            {"against": [{"name": "a", "uri": "hf://datasets/a/b", "benchmark": "mmlu"}]},
            ("against[0].uri", "goes with fields"),
        ),
        ({"against": 2 * [{"name": "a", "uri": "x", "fields": ["q"]}]}, ("against[1].name", "names an earlier one")),
    ],
)
def test_contradictions(value: dict[str, Any], problem: tuple[str, str]) -> None:
    [(where, words)] = DecontaminateSpec.model_validate(value).problems()
    assert where == problem[0]
    assert problem[1] in words
    assert DecontaminateSpec().problems() == []
