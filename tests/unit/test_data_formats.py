"""Record formats: what each makes of good, odd and broken records, and of the real files."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from plumbline.data.chat import build_chat
from plumbline.data.formats import FORMATS, choose
from plumbline.data.normalise import Reject, clean, row_key
from plumbline.errors import InvalidInput


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def reason_of(format: str, record: dict[str, Any]) -> str:
    with pytest.raises(Reject) as caught:
        FORMATS[format].convert(record)
    return caught.value.reason


def test_clean_is_nfc_with_plain_newlines_and_no_nul() -> None:
    assert clean(" e\u0301\r\nx\ry\0 ") == "é\nx\ny"


def test_clean_rejects_a_lone_surrogate_and_keeps_a_pair() -> None:
    assert clean(json.loads(r'"\ud83d\ude00"')) == "😀"
    with pytest.raises(Reject, match=r"U\+D83D"):
        clean(json.loads(r'"\ud83d"'))


def test_row_key_folds_case_and_space_but_not_boundaries() -> None:
    assert row_key(["Hello  World", "a"]) == row_key(["hello\nworld ", "A"])
    assert row_key(["ab", "c"]) != row_key(["a", "bc"])


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([("human", "a"), ("gpt", "b")], [user("a"), assistant("b")]),
        ([("GPT", "hello"), ("human", "a"), ("bard", "b")], [user("a"), assistant("b")]),
        ([("system", "s"), ("chatgpt", "hello"), ("user", "a"), ("bing", "b")], [system("s"), user("a"), assistant("b")]),
        ([("system", " "), ("user", "a"), ("assistant", "b"), ("user", "c")], [user("a"), assistant("b")]),
    ],
)
def test_build_chat_repairs(turns: list[tuple[str, str]], expected: list[dict[str, str]]) -> None:
    assert build_chat(turns) == expected


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([("human", "a"), ("function_call", "b")], "unknown role"),
        ([("human", "a"), (None, "b")], "unknown role"),
        ([("human", "a"), ("human", "b"), ("gpt", "c")], "roles do not alternate"),
        ([("human", "a"), ("gpt", "b"), ("gpt", "c")], "roles do not alternate"),
        ([("human", "a"), ("system", "b")], "system turn is not the first"),
        ([("human", " "), ("gpt", "b")], "empty prompt"),
        ([("human", "a"), ("gpt", "\n")], "empty answer"),
        ([("human", "a")], "no answer"),
        ([("gpt", "a")], "no answer"),
        ([("human", {"image": 1}), ("gpt", "b")], "not text"),
    ],
)
def test_build_chat_rejects(turns: list[tuple[Any, Any]], reason: str) -> None:
    with pytest.raises(Reject) as caught:
        build_chat(turns)
    assert caught.value.reason == reason


def test_alpaca_input_goes_below_a_blank_line() -> None:
    record = {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert FORMATS["alpaca"].convert(record) == {"messages": [user("Add.\n\n1 2"), assistant("3")]}


@pytest.mark.parametrize(
    "nothing", ["", None, "No input", "<noinput>", "Noinput", '"<noinput>"', "< no input >.", "No input required."]
)
def test_alpaca_no_input_in_words(nothing: str | None) -> None:
    assert FORMATS["alpaca"].convert({"instruction": "Go.", "input": nothing, "output": "ok"})["messages"][0] == user("Go.")


def test_alpaca_keeps_an_input_that_only_mentions_no_input() -> None:
    chat = FORMATS["alpaca"].convert({"instruction": "Fill.", "input": "He was <noinput>", "output": "ok"})["messages"]
    assert chat[0] == user("Fill.\n\nHe was <noinput>")


def test_alpaca_history_and_system() -> None:
    record = {"instruction": "c", "output": "d", "history": [["a", "b"]], "system": "s"}
    assert FORMATS["alpaca"].convert(record)["messages"] == [
        system("s"),
        user("a"),
        assistant("b"),
        user("c"),
        assistant("d"),
    ]
    assert reason_of("alpaca", record | {"history": ["ab"]}) == "malformed history"


def test_alpaca_rejects() -> None:
    assert reason_of("alpaca", {"instruction": "a", "output": ""}) == "empty answer"
    assert reason_of("alpaca", {"instruction": " ", "input": "", "output": "b"}) == "empty prompt"
    assert reason_of("alpaca", {"instruction": "a", "output": ["b", "c"]}) == "not text"
    assert reason_of("alpaca", {"instruction": "a"}) == "missing field"


def test_dolly() -> None:
    record = {"instruction": "When?", "context": "In 1990.", "response": "1990", "category": "closed_qa"}
    assert FORMATS["dolly"].convert(record) == {"messages": [user("When?\n\nIn 1990."), assistant("1990")]}
    assert reason_of("dolly", {"instruction": "When?"}) == "missing field"


def test_messages_with_text_parts_and_what_it_rejects() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "value": "b"}]
    assert FORMATS["messages"].convert({"messages": [{"role": "user", "content": parts}, assistant("c")]})["messages"][
        0
    ] == user("ab")
    image = [{"type": "image_url", "image_url": {}}]
    assert reason_of("messages", {"messages": [{"role": "user", "content": image}, assistant("c")]}) == "not text"
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert reason_of("messages", {"messages": [user("a"), call]}) == "tool call"
    assert reason_of("messages", {"messages": [user("a"), assistant("b")], "label": False}) == "labelled as bad"
    assert reason_of("messages", {"messages": "a"}) == "no turns"


PAIR = {"prompt": [user("p")], "chosen": [assistant("good")], "rejected": [assistant("bad")]}


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "p", "chosen": "good", "rejected": "bad"},
        {"prompt": [user("p")], "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        {"prompt": "p", "chosen": [user("p"), assistant("good")], "rejected": [user("p"), assistant("bad")]},
        {"chosen": [user("p"), assistant("good")], "rejected": [user("p"), assistant("bad")]},
        {"chosen": "\n\nHuman: p\n\nAssistant: good", "rejected": "\n\nHuman: p\n\nAssistant: bad"},
        {
            "conversations": [{"from": "human", "value": "p"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
    ],
    ids=["strings", "messages", "ultrafeedback", "implicit prompt", "hh transcript", "llama-factory"],
)
def test_pairs_in_every_spelling(record: dict[str, Any]) -> None:
    assert choose("auto", record, "f:1", "pairs").convert(record) == PAIR


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "p", "chosen": "same", "rejected": " same"}, "chosen equals rejected"),
        ({"prompt": "p", "chosen": "", "rejected": "bad"}, "empty answer"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "empty prompt"),
        ({"prompt": "p", "chosen": "a", "rejected": None}, "missing field"),
        ({"chosen": "a", "rejected": "b"}, "empty prompt"),
        ({"chosen": [user("p"), assistant("a")], "rejected": [user("q"), assistant("a")]}, "prompts differ"),
        ({"prompt": [user("p"), assistant("x")], "chosen": "a", "rejected": "b"}, "roles do not alternate"),
    ],
)
def test_pairs_rejects(record: dict[str, Any], reason: str) -> None:
    assert reason_of("pairs", record) == reason


def test_unknown_fields_list_what_was_seen_and_what_is_known() -> None:
    with pytest.raises(
        InvalidInput, match=r"^f:1: .*'text', 'meta'; known formats: pairs \(.*sharegpt.*messages.*alpaca.*dolly"
    ):
        choose("auto", {"text": 1, "meta": 2}, "f:1", "messages")


def test_wrong_forced_format_says_which_it_looks_like() -> None:
    with pytest.raises(
        InvalidInput, match=r"f:1: format 'dolly' needs .* fields 'instruction', 'output'; it looks like 'alpaca'"
    ):
        choose("dolly", {"instruction": 1, "output": 2}, "f:1", "messages")


def test_pairs_do_not_make_a_dataset() -> None:
    with pytest.raises(InvalidInput, match="set produces: PreferenceDataset"):
        choose("auto", {"prompt": "p", "chosen": "a", "rejected": "b"}, "f:1", "messages")


def load(path: Path) -> list[dict[str, Any]]:
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    return json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.split("\n") if line]


REAL = [
    ("alpaca/alpaca_data_sample_100.json", "alpaca", {None: 100}),
    ("alpaca_zh/alpaca_zh_06382_09407.jsonl.gz", "alpaca", {None: 756}),
    ("instruct/code_alpaca_2k.json.gz", "alpaca", {None: 2015, "empty answer": 2}),
    ("instruct/identity.json", "alpaca", {None: 91}),
    ("instruct/lima.json.gz", "alpaca", {None: 1027}),
    ("instruct/new_codealpaca.json.gz", "alpaca", {None: 4535}),
    ("chat/torchtune_instruct_tiny.json", "dolly", {None: 2}),
    ("chat/oasst_sft_zh.json.gz", "alpaca", {None: 766}),
    ("chat/sharegpt_dummy_conversation.json", "sharegpt", {None: 500}),
    ("chat/sharegpt_dummy_conversation_with_system.json", "sharegpt", {None: 500}),
    ("chat/torchtune_chat_tiny.json", "sharegpt", {None: 1}),
    ("chat/v1_sft_demo.jsonl.gz", "messages", {None: 401}),
    ("preference/kto_en_demo.json.gz", "messages", {None: 147, "labelled as bad": 150}),
    ("preference/dpo_en_demo.json.gz", "pairs", {None: 291}),
    ("preference/dpo_zh_demo.json.gz", "pairs", {None: 300}),
    ("preference/torchtune_hh_rlhf_tiny.json", "pairs", {None: 1}),
]


@pytest.mark.parametrize(("name", "format", "expected"), REAL, ids=[name for name, *_ in REAL])
def test_real_files(shared: Path, name: str, format: str, expected: dict[str | None, int]) -> None:
    records = load(shared / name)
    assert next(f.name for f in FORMATS.values() if f.recognise(records[0])) == format
    fates: Counter[str | None] = Counter()
    for record in records:
        try:
            content = FORMATS[format].convert(record)
        except Reject as reject:
            fates[reject.reason] += 1
            continue
        fates[None] += 1
        for turns in content.values():
            assert all(set(turn) == {"role", "content"} and turn["content"].strip() for turn in turns)
        last = content["messages"] if "messages" in content else content["chosen"]
        assert last[-1]["role"] == "assistant"
    assert dict(fates) == expected


def test_tool_calls_in_a_real_file_are_counted(shared: Path) -> None:
    records = load(shared / "chat/glaive_toolcall_en_demo.json.gz")
    with_tools = sum(any(t["from"] not in ("human", "gpt", "system") for t in r["conversations"]) for r in records)
    rejects = Counter(_reason(record) for record in records)
    assert 0 < with_tools < len(records)
    assert rejects["unknown role"] == with_tools


def _reason(record: dict[str, Any]) -> str | None:
    try:
        FORMATS["sharegpt"].convert(record)
    except Reject as reject:
        return reject.reason
    return None


def test_hh_transcripts_of_a_real_file(shared: Path) -> None:
    records = load(shared / "preference/hh_rlhf_harmless_base_test_shared.jsonl.gz")
    first = FORMATS["pairs"].convert(records[0])
    assert [turn["role"] for turn in first["prompt"]] == ["user", "assistant"] * (len(first["prompt"]) // 2) + ["user"]
    assert records[0]["chosen"].endswith(first["chosen"][0]["content"])


@pytest.mark.parametrize(
    "name",
    ["chat/oasst_en_100_tree.jsonl.gz", "preference/torchtune_stack_exchange_paired_tiny.json", "alpaca/seed_tasks.jsonl"],
)
def test_real_files_of_no_known_format(shared: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="no known format"):
        choose("auto", load(shared / name)[0], name, "messages")
