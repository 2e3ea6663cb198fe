"""Record formats: what each makes of good, odd and broken records."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from plumbline.api.stages.curate import SourceSpec
from plumbline.data.chat import build_chat
from plumbline.data.formats import FORMATS, choose
from plumbline.data.formats.options import Options
from plumbline.data.forms import REACHES, reform
from plumbline.data.row import COLUMNS, Form, Reject, Row
from plumbline.errors import InvalidInput


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def rows_of(format: str, record: dict[str, Any], form: Form | None = None, **options: Any) -> list[Row | Reject]:
    """Rows in the format's native form, or in `form`."""
    native = sorted(FORMATS[format].native)[0]
    return list(FORMATS[format].rows(record, Options(form or native, **options)))


def row_of(format: str, record: dict[str, Any], form: Form | None = None, **options: Any) -> Row:
    (row,) = rows_of(format, record, form, **options)
    assert isinstance(row, Row)
    return row


def chat_of(format: str, record: dict[str, Any]) -> list[dict[str, str]]:
    return row_of(format, record).content["messages"]  # type: ignore[no-any-return]


def reason_of(format: str, record: dict[str, Any], form: Form | None = None) -> str:
    with pytest.raises(Reject) as caught:
        rows_of(format, record, form)
    return caught.value.reason


def test_the_spec_names_every_format() -> None:
    assert set(get_args(SourceSpec.model_fields["format"].annotation)) == {"auto", *FORMATS}


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
        ([("human", "a"), ("function_call", "b")], "tool call"),
        ([("human", "a"), ("gpt", "b"), ("observation", "c")], "tool call"),
        ([("human", "a"), ("narrator", "b")], "unknown role"),
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


def test_alpaca_input_goes_below_a_blank_line_and_the_bare_instruction_is_kept() -> None:
    row = row_of("alpaca", {"instruction": "Add. ", "input": "1 2", "output": "3"})
    assert row.content == {"messages": [user("Add.\n\n1 2"), assistant("3")]}
    assert row.instruction == "Add."


@pytest.mark.parametrize(
    "nothing", ["", None, "No input", "<noinput>", "Noinput", '"<noinput>"', "< no input >.", "No input required."]
)
def test_alpaca_no_input_in_words(nothing: str | None) -> None:
    assert chat_of("alpaca", {"instruction": "Go.", "input": nothing, "output": "ok"})[0] == user("Go.")


def test_alpaca_keeps_an_input_that_only_mentions_no_input() -> None:
    chat = chat_of("alpaca", {"instruction": "Fill.", "input": "He was <noinput>", "output": "ok"})
    assert chat[0] == user("Fill.\n\nHe was <noinput>")


def test_alpaca_history_and_system() -> None:
    record = {"instruction": "c", "output": "d", "history": [["a", "b"]], "system": "s"}
    assert chat_of("alpaca", record) == [system("s"), user("a"), assistant("b"), user("c"), assistant("d")]
    assert chat_of("alpaca", record | {"history": ""})[1] == user("c")
    assert reason_of("alpaca", record | {"history": ["ab"]}) == "malformed history"


def test_alpaca_rejects() -> None:
    assert reason_of("alpaca", {"instruction": "a", "output": ""}) == "empty answer"
    assert reason_of("alpaca", {"instruction": " ", "input": "", "output": "b"}) == "empty prompt"
    assert reason_of("alpaca", {"instruction": "a", "output": ["b", "c"]}) == "not text"
    assert reason_of("alpaca", {"instruction": "a"}) == "missing field"


def test_dolly_keeps_the_category_and_strips_citations_that_the_context_has() -> None:
    context = "Norman[1] counts[12], later kings,[a] ruled.[citation needed] See [the map]."
    record = {"instruction": "Who?", "context": context, "response": "Norman[1] counts; x[3]", "category": "closed_qa"}
    row = row_of("dolly", record)
    assert [turn["content"] for turn in row.content["messages"]] == [
        "Who?\n\nNorman counts, later kings, ruled. See [the map].",
        "Norman counts; x[3]",
    ]
    assert (row.category, row.operations) == ("closed_qa", ("citations",))


def test_dolly_leaves_code_alone() -> None:
    row = row_of("dolly", {"instruction": "First?", "context": None, "response": "words[0] or a[1]"})
    assert (row.content["messages"][1]["content"], row.operations) == ("words[0] or a[1]", ())
    assert reason_of("dolly", {"instruction": "When?"}) == "missing field"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("human", "gpt"), None),
        (("Human ", " ChatGPT"), None),
        (("user", "model"), None),
        (("USER", "CHATBOT"), None),
        (("user", "AI"), None),
        (("user", "claude"), None),
        (("user", "function-call"), "tool call"),
        (("user", "tool_response"), "tool call"),
        (("user", "narrator"), "unknown role"),
    ],
)
def test_names_of_roles(names: tuple[str, str], expected: str | None) -> None:
    record = {"conversations": [{"from": name, "value": text} for name, text in zip(names, "ab", strict=True)]}
    if expected:
        assert reason_of("sharegpt", record) == expected
    else:
        assert chat_of("sharegpt", record) == [user("a"), assistant("b")]
    developer = {"messages": [{"role": "developer", "content": "s"}, user("a"), assistant("b")]}
    assert chat_of("messages", developer)[0] == system("s")


def test_a_chat_that_lost_turns_says_so() -> None:
    turns = [assistant("hello"), user("a"), assistant("b"), user("bye")]
    row = row_of("messages", {"messages": turns})
    assert (row.content["messages"], row.operations) == (turns[1:3], ("turns",))
    assert row_of("messages", {"messages": turns[1:3]}).operations == ()


@pytest.mark.parametrize("history", [5, {"a": 1}, "text", [["only a prompt"]]])
def test_a_malformed_history_is_a_reject(history: Any) -> None:
    assert reason_of("alpaca", {"instruction": "a", "output": "b", "history": history}) == "malformed history"


def test_messages_with_text_parts_and_what_it_rejects() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "value": "b"}]
    weighted = {"role": "user", "content": parts, "loss_weight": 0.0}
    assert chat_of("messages", {"messages": [weighted, assistant("c")]})[0] == user("ab")
    image = [{"type": "image_url", "image_url": {}}]
    assert reason_of("messages", {"messages": [{"role": "user", "content": image}, assistant("c")]}) == "not text"
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert reason_of("messages", {"messages": [user("a"), call]}) == "tool call"
    assert reason_of("messages", {"messages": "a"}) == "no turns"


def test_turns_as_json_text_as_csv_and_some_parquet_columns_have_them() -> None:
    record = {"messages": json.dumps([user("a"), assistant("b")])}
    assert choose("auto", [record], "f:1", "messages").name == "messages"
    assert chat_of("messages", record) == [user("a"), assistant("b")]
    data = '[{"price": 3}]'
    assert chat_of("completion", {"prompt": data, "completion": "3"})[0] == user(data)


def test_sharegpt_html_answers_become_markdown() -> None:
    page = (
        '<div class="markdown prose"><p>Use <strong>this</strong> &amp; a_b:</p><pre><div class="bg-black"><div><span>python'
        '</span><button>Copy code</button></div><div><code class="hljs language-python"><span>def</span> f(x):\n'
        "    return x &lt; 1\n</code></div></div></pre><ol><li><p>one</p></li><li><p>two</p></li></ol></div>"
    )
    turns = [{"from": "human", "value": "<p>how?</p>"}, {"from": "gpt", "value": page}]
    row = row_of("sharegpt", {"conversations": turns})
    asked, answer = (turn["content"] for turn in row.content["messages"])
    assert asked == "<p>how?</p>"
    assert "```python\ndef f(x):\n    return x < 1\n```" in answer
    assert answer.startswith("Use **this** & a_b:")
    assert "Copy code" not in answer
    assert row.operations == ("html",)


@pytest.mark.parametrize(
    "answer",
    [
        "Write <p>text</p> like this.",
        "```html\n<p>text</p>\n```",
        "<html><body><p>a page</p></body></html>",
        '<div><form action="/"><input name="a"></form></div>',
        "<p>a paragraph</p> and more",
    ],
)
def test_sharegpt_answers_that_only_hold_html_stay(answer: str) -> None:
    row = row_of("sharegpt", {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": answer}]})
    assert (row.content["messages"][1]["content"], row.operations) == (answer, ())


def test_html_nested_beyond_reason_is_a_reject() -> None:
    deep = "<div>" * 5000 + "x" + "</div>" * 5000
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": deep}]
    assert reason_of("sharegpt", {"conversations": turns}) == "HTML nested too deeply"


PAIR = {"prompt": [user("p")], "chosen": [assistant("good")], "rejected": [assistant("bad")]}


@pytest.mark.parametrize(
    ("record", "format"),
    [
        ({"prompt": "p", "chosen": "good", "rejected": "bad"}, "pairs"),
        ({"prompt": [user("p")], "chosen": [assistant("good")], "rejected": [assistant("bad")]}, "pairs"),
        ({"prompt": "p", "chosen": [user("p"), assistant("good")], "rejected": [user("p"), assistant("bad")]}, "pairs"),
        ({"chosen": [user("p"), assistant("good")], "rejected": [user("p"), assistant("bad")]}, "pairs"),
        ({"chosen_messages": [user("p"), assistant("good")], "rejected_messages": [user("p"), assistant("bad")]}, "pairs"),
        ({"question": "p", "response_j": "good", "response_k": "bad"}, "pairs"),
        ({"chosen": "\n\nHuman: p\n\nAssistant: good", "rejected": "\n\nHuman: p\n\nAssistant: bad"}, "hh"),
        ({"instruction": "p", "output": ["good", "", "so so", "bad"]}, "rankings"),
        ({"prompt": "p", "completions": ["so so", "bad", "good"], "scores": [2, 1.5, 3]}, "rankings"),
        (
            {
                "conversations": [{"from": "human", "value": "p"}],
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            },
            "pairs",
        ),
    ],
)
def test_pairs_in_every_spelling(record: dict[str, Any], format: str) -> None:
    chosen = choose("auto", [record], "f:1", "pairs")
    assert chosen.name == format
    assert row_of(format, record, "pairs").content == PAIR


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


def test_hh_with_other_newlines_and_a_name_within_the_text() -> None:
    record = {
        "chosen": "\r\n\r\nHuman: Who says\nHuman: hi?\r\n\r\nAssistant: I.",
        "rejected": "Human: Who says\nHuman: hi?\n\nAssistant: You.\n",
    }
    assert choose("auto", [record], "f:1", "pairs").name == "hh"
    content = row_of("hh", record).content
    assert content["prompt"] == [user("Who says\nHuman: hi?")]
    assert (content["chosen"], content["rejected"]) == ([assistant("I.")], [assistant("You.")])


def test_hh_rejects_what_is_no_transcript() -> None:
    assert reason_of("hh", {"chosen": "\n\nHuman: p\n\nAssistant: a", "rejected": "b"}) == "not a transcript"
    assert reason_of("hh", {"chosen": "\n\nHuman: p\n\nAssistant: a"}) == "missing field"


def rated(response: str, **scores: Any) -> dict[str, Any]:
    return {"response": response, "model": "m"} | {
        name.replace("_grained", "-grained"): score for name, score in scores.items()
    }


def test_ultrafeedback_prefers_the_mean_of_aspects_to_the_overall_score() -> None:
    aspects = {
        name: {"Rating": rating} for name, rating in (("helpfulness", "4"), ("honesty", "N/A"), ("truthfulness", "2"))
    }
    completions = [
        rated("overall", overall_score=2.0),
        rated("aspects", overall_score=10, annotations=aspects),
        rated("fine", overall_score=1, fine_grained_score=4.5),
        rated("unknown", overall_score="N/A"),
    ]
    row = row_of("rankings", {"instruction": "p", "completions": completions}, "rankings")
    assert row.content == {
        "prompt": [user("p")],
        "completions": [[assistant("fine")], [assistant("aspects")], [assistant("overall")]],
        "scores": [4.5, 3.0, 2.0],
    }
    assert row.instruction == "p"


def test_rankings_reject() -> None:
    assert reason_of("rankings", {"instruction": "p", "output": ["a", "a", ""]}) == "fewer than two answers"
    assert reason_of("rankings", {"prompt": "p", "completions": ["a", "b"], "scores": [1]}) == "ragged ranking"
    equal = {"prompt": "p", "completions": ["a", "b"], "scores": [1, 1]}
    assert reason_of("rankings", equal, "pairs") == "answers are equally good"
    assert len(rows_of("rankings", equal, "rankings")) == 1
    nan = {"prompt": "p", "completions": ["a", "b"], "scores": [1, float("nan")]}
    assert reason_of("rankings", nan) == "fewer than two answers"


VOTED = {"instruction": "p", "input": "", "response1": "one", "response2": "two"}


@pytest.mark.parametrize(
    ("votes", "answers", "scores"),
    [
        ((1, 1, 2), ["one", "two"], [1.0, 0.0]),
        ((2, 2, 0), ["two", "one"], [1.0, 0.0]),
        (("0", "2", "Tie"), ["one", "two"], [0.5, 0.5]),
        ((2,), ["two", "one"], [1.0, 0.0]),
        (("1", "", None), ["one", "two"], [1.0, 0.0]),
    ],
)
def test_pandalms_votes_by_majority(votes: tuple[Any, ...], answers: list[str], scores: list[float]) -> None:
    record = VOTED | {f"annotator{i}": vote for i, vote in enumerate(votes, 1)}
    assert choose("auto", [record], "f:1", "rankings").name == "pandalm"
    content = row_of("pandalm", record, "rankings").content
    assert content == {"prompt": [user("p")], "completions": [[assistant(x)] for x in answers], "scores": scores}


@pytest.mark.parametrize(
    ("change", "form", "reason"),
    [
        ({}, "rankings", "annotators disagree"),
        ({"annotator3": 3}, "rankings", "no verdict"),
        ({"annotator1": None, "annotator2": None, "annotator3": None}, "rankings", "no verdict"),
        ({"annotator3": 0}, "pairs", "answers are equally good"),
        ({"annotator3": 0, "response2": "one"}, "rankings", "fewer than two answers"),
        ({"annotator3": 0, "instruction": ""}, "rankings", "empty prompt"),
    ],
)
def test_pandalm_rejects(change: dict[str, Any], form: Form, reason: str) -> None:
    record = VOTED | {"annotator1": 0, "annotator2": 1, "annotator3": 2} | change
    assert reason_of("pandalm", record, form) == reason


@pytest.mark.parametrize("label", [True, False, "True", "false"])
@pytest.mark.parametrize(
    "record",
    [
        {"messages": [user("p"), assistant("a")]},
        {"prompt": "p", "completion": "a"},
        {"prompt": [user("p")], "completion": [assistant("a")]},
    ],
)
def test_kto_labels(record: dict[str, Any], label: bool | str) -> None:
    record = record | {"label": label}
    good = label in (True, "True")
    assert choose("auto", [record], "f:1", "labels").name == "kto"
    assert row_of("kto", record).content == {"prompt": [user("p")], "completion": [assistant("a")], "label": good}
    if good:
        assert row_of("kto", record, "messages").content == {"messages": [user("p"), assistant("a")]}
    else:
        assert reason_of("kto", record, "messages") == "labelled as bad"


@pytest.mark.parametrize("good", [1, 1.0, "1"])
def test_numbers_are_verdicts_where_labels_are_asked_for(good: Any) -> None:
    record = {"prompt": "p", "completion": "a", "label": good}
    assert choose("auto", [record], "f:1", "labels").name == "kto"
    assert choose("kto", [record], "f:1", "messages").name == "kto"
    assert row_of("kto", record).content["label"] is True
    assert row_of("kto", record | {"label": type(good)(0)}).content["label"] is False
    assert reason_of("kto", record | {"label": 2}) == "no verdict"


def test_a_class_number_is_no_verdict() -> None:
    assert choose("auto", [{"prompt": "p", "completion": "a", "label": 1}], "f:1", "messages").name == "completion"
    assert reason_of("kto", {"prompt": "p", "completion": "a", "label": None}) == "no verdict"


def test_completion_without_its_end_markers() -> None:
    record = {"prompt": "p", "completion": " a</s> <|endoftext|>\n"}
    assert chat_of("completion", record) == [user("p"), assistant("a")]
    assert reason_of("completion", record | {"completion": "<|endoftext|>"}) == "empty answer"


def test_self_instruct_seeds_give_a_row_an_instance() -> None:
    instances = [{"input": "x", "output": "1"}, {"input": "", "output": ""}, 3, {"input": "<noinput>", "output": "2"}]
    record = {"instruction": "Do.", "instances": instances, "is_classification": True}
    rows = rows_of("selfInstruct", record)
    assert [row.reason if isinstance(row, Reject) else row.content["messages"][0]["content"] for row in rows] == [
        "Do.\n\nx",
        "empty answer",
        "not an instance",
        "Do.",
    ]
    assert isinstance(rows[0], Row)
    assert (rows[0].instruction, rows[0].category) == ("Do.", "classification")
    assert reason_of("selfInstruct", record | {"instances": []}) == "missing field"


TASK = {
    "Definition": ["Answer the question."],
    "Categories": ["Question Answering"],
    "Output_language": ["French"],
    "Instance License": ["CC BY-NC 4.0"],
    "Instances": [{"id": f"t-{i}", "input": f"q{i}", "output": [f"a{i}", "other"]} for i in range(10)],
}


def test_super_natural_instructions_are_capped_evenly_and_keep_what_the_task_says() -> None:
    rows = rows_of("superNaturalInstructions", TASK, per_task=3)
    assert [row.record_id for row in rows if isinstance(row, Row)] == ["t-0", "t-3", "t-6"]
    first = rows[0]
    assert isinstance(first, Row)
    assert first.content["messages"] == [user("Answer the question.\n\nq0"), assistant("a0")]
    assert (first.category, first.language, first.licence) == ("Question Answering", "fr", "CC BY-NC 4.0")
    assert first.instruction == "Answer the question."
    assert len(rows_of("superNaturalInstructions", TASK)) == 10


def test_super_natural_instructions_rejects() -> None:
    assert reason_of("superNaturalInstructions", TASK | {"Definition": []}) == "task without a definition"
    assert reason_of("superNaturalInstructions", TASK | {"Instances": []}) == "task without instances"
    odd = TASK | {"Instances": [{"input": "q", "output": []}, "q", {"input": "q", "output": "a"}]}
    rows = rows_of("superNaturalInstructions", odd)
    assert [row.reason if isinstance(row, Reject) else None for row in rows] == ["empty answer", "not an instance", None]


def message(text: str, role: str, *replies: dict[str, Any], **facts: Any) -> dict[str, Any]:
    return {"message_id": text, "text": text, "role": role, "lang": "en", "replies": list(replies)} | facts


def tree() -> dict[str, Any]:
    return message(
        "q",
        "prompter",
        message("second", "assistant", rank=1, labels={"quality": {"value": 0.4, "count": 3}}),
        message(
            "best",
            "assistant",
            message("unanswered", "prompter"),
            message(
                "more?",
                "prompter",
                message("no rank", "assistant"),
                message("more!", "assistant", rank=0, synthetic=True, model_name="m", labels={"quality": {"value": 0.9}}),
            ),
            rank=0,
        ),
        message("worst", "assistant", rank=2),
    )


@pytest.mark.parametrize("record", [tree(), {"message_tree_id": "1", "tree_state": "ready_for_export", "prompt": tree()}])
def test_oasst_best_path_all_paths_and_rankings_in_both_spellings(record: dict[str, Any]) -> None:
    assert choose("auto", [record], "f:1", "messages").name == "oasst"
    best = row_of("oasst", record)
    assert best.content["messages"] == [user("q"), assistant("best"), user("more?"), assistant("more!")]
    assert (best.record_id, best.language, best.teacher, best.score) == ("more!", "en", "m", 0.9)
    paths = [row.record_id for row in rows_of("oasst", record, "messages", paths="all") if isinstance(row, Row)]
    assert paths == ["more!", "no rank", "second", "worst"]
    ranking = row_of("oasst", record, "rankings")
    assert ranking.content["scores"] == [0.0, -1.0, -2.0]
    assert [answer[0]["content"] for answer in ranking.content["completions"]] == ["best", "second", "worst"]
    pair = row_of("oasst", record, "pairs")
    assert pair.content == {"prompt": [user("q")], "chosen": [assistant("best")], "rejected": [assistant("worst")]}


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"deleted": True}, "message deleted"),
        ({"review_result": False}, "message failed review"),
        ({"labels": {"spam": {"value": 0.5, "count": 2}}}, "message is spam"),
        ({"labels": {"lang_mismatch": {"value": 1.0, "count": 2}}}, "message in another language"),
    ],
)
def test_oasst_leaves_out_bad_messages_and_what_follows_them(facts: dict[str, Any], reason: str) -> None:
    record = tree()
    record["replies"][1] |= facts
    reject, row = rows_of("oasst", record)
    assert isinstance(reject, Reject)
    assert (reject.reason, reject.detail) == (reason, "best")
    assert isinstance(row, Row)
    assert row.content["messages"] == [user("q"), assistant("second")]
    (only,) = rows_of("oasst", tree() | facts)
    assert isinstance(only, Reject)


@pytest.mark.parametrize(
    "broken",
    [
        1,
        {"text": "a"},
        {"role": "assistant"},
        {"text": 1, "role": "assistant"},
        {"text": "a", "role": "assistant", "replies": 3},
    ],
)
def test_oasst_malformed_messages_are_rejects(broken: Any) -> None:
    for form in ("messages", "rankings"):
        found = rows_of("oasst", message("q", "prompter", broken, message("a", "assistant", rank=0)), form)  # type: ignore[arg-type]
        assert isinstance(found[0], Reject)
        assert found[0].reason == "malformed tree"
        assert form != "messages" or isinstance(found[1], Row)


def test_oasst_ranks_and_labels_of_any_number() -> None:
    huge = {"quality": {"value": 10**400}}
    record = message("q", "prompter", message("a", "assistant", rank=1.0), message("b", "assistant", rank=0.0, labels=huge))
    best = row_of("oasst", record)
    assert (best.content["messages"][1], best.score) == (assistant("b"), None)
    assert row_of("oasst", record, "rankings").content["scores"] == [0.0, -1.0]


def test_oasst_trees_that_are_not_ready_or_have_no_answer() -> None:
    assert reason_of("oasst", {"tree_state": "aborted_low_grade", "prompt": tree()}) == "tree is not ready"
    assert reason_of("oasst", message("q", "prompter")) == "no answer"
    assert (
        reason_of("oasst", message("q", "prompter", message("a", "assistant", rank=0)), "rankings")
        == "fewer than two answers"
    )
    endless = message("end", "prompter")
    for i in range(200):
        endless = message(f"{i}", "assistant" if i % 2 else "prompter", endless)
    assert [row.reason for row in rows_of("oasst", endless) if isinstance(row, Reject)] == ["malformed tree"]


def test_text() -> None:
    assert row_of("text", {"text": " a\r\nb "}).content == {"text": "a\nb"}
    assert reason_of("text", {"text": "\n"}) == "empty text"


EXAMPLES: dict[Form, Row] = {
    "messages": Row({"messages": [user("p"), assistant("a")]}),
    "pairs": Row(PAIR, record_id="7"),
    "rankings": Row({"prompt": [user("p")], "completions": [[assistant(x)] for x in "abc"], "scores": [1.0, 3.0, 2.0]}),
    "labels": Row({"prompt": [user("p")], "completion": [assistant("a")], "label": True}),
    "text": Row({"text": "a"}),
}


@pytest.mark.parametrize(("own", "form"), [(own, form) for own in EXAMPLES for form in sorted(REACHES[own])])
def test_every_form_that_is_reached(own: Form, form: Form) -> None:
    rows = list(reform(EXAMPLES[own], form))
    assert [set(row.content) for row in rows] == [set(COLUMNS[form])] * len(rows)
    assert {row.record_id for row in rows} == {EXAMPLES[own].record_id}


def test_what_a_pair_and_a_ranking_become() -> None:
    good, bad = reform(EXAMPLES["pairs"], "labels")
    assert (good.content["completion"], good.content["label"]) == (PAIR["chosen"], True)
    assert (bad.content["completion"], bad.content["label"]) == (PAIR["rejected"], False)
    (ranking,) = reform(EXAMPLES["pairs"], "rankings")
    assert (ranking.content["completions"], ranking.content["scores"]) == ([PAIR["chosen"], PAIR["rejected"]], [1.0, 0.0])
    (best,) = reform(EXAMPLES["rankings"], "messages")
    assert best.content == {"messages": [user("p"), assistant("b")]}
    assert best.operations == ("best and worst", "best answer")


def test_most_of_the_first_records_decide() -> None:
    odd: list[dict[str, Any]] = [{"instruction": "a"}, {"text": "a"}]
    alpaca = [{"instruction": "a", "output": "b"}] * 5
    assert choose("auto", odd + alpaca, "f:1", "messages").name == "alpaca"
    assert choose("alpaca", odd + alpaca, "f:1", "messages").name == "alpaca"


def test_a_record_of_several_formats_is_read_as_the_form_that_is_asked_for() -> None:
    record = {"instruction": "a", "output": "b", "text": "a b"}
    assert choose("auto", [record], "f:1", "messages").name == "alpaca"
    assert choose("auto", [record], "f:1", "text").name == "text"


def test_unknown_fields_list_what_was_seen_and_what_is_known() -> None:
    with pytest.raises(InvalidInput, match=r"^f:1: .*'body', 'meta'; known formats: .*sharegpt \(.*messages \(.*alpaca \("):
        choose("auto", [{"body": 1, "meta": 2}], "f:1", "messages")


def test_wrong_forced_format_says_which_it_looks_like() -> None:
    with pytest.raises(
        InvalidInput,
        match=r"f:1: format 'dolly' needs .* fields 'instruction', 'output'; it looks like 'alpaca': set format",
    ):
        choose("dolly", [{"instruction": 1, "output": 2}], "f:1", "messages")


def test_chats_do_not_make_preferences() -> None:
    with pytest.raises(
        InvalidInput, match=r"f:1: 'alpaca' records cannot become pairs, only messages; .*: hh, pairs, rankings"
    ):
        choose("auto", [{"instruction": "p", "output": "a"}], "f:1", "pairs")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"prompt": "p", "answer1": "a", "answer2": "b"}, r"answers side by side \(answer1, answer2\)"),
        ({"prompt": "p", "response 1": "a", "response 2": "b", "label": 1}, "answers side by side"),
        ({"id": 1, "prompt": "p"}, "prompts without answers"),
        ({"idx": 1, "Instruction": "p"}, "prompts without answers"),
        ({"conversations": "p"}, "prompts without answers"),
        ({"instruction": "p", "response": "a", "target": "b"}, "rename the one to train on"),
        ({"message_id": "1", "parent_id": None, "text": "a", "role": "prompter", "labels": {}}, r"trees\.jsonl\.gz"),
    ],
)
def test_what_lacks_something_says_what(record: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        choose("auto", [record], "f:1", "messages")


JUDGED = {"instruction": "Add.", "input": "1 + 1", "output": "3", "judgment": "It is 2.", "label": False}


def test_judged_answers() -> None:
    assert choose("auto", [JUDGED], "f:1", "judgments").name == "judgments"
    row = row_of("judgments", JUDGED, "judgments")
    expected = {"prompt": [user("Add.\n\n1 + 1")], "completion": [assistant("3")], "label": False, "judgment": "It is 2."}
    assert row.content == expected
    assert row.instruction == "Add."
    assert "It is 2." in row.texts, "filters read it, and redact it"
    assert row.mapped(str.upper)["judgment"] == "IT IS 2."
    assert "judgment" not in row_of("judgments", JUDGED, "labels").content
    assert reason_of("judgments", JUDGED, "messages") == "labelled as bad"
    good = {"prompt": "1 + 1?", "completion": "2", "critique": "Right.", "label": 1}
    assert row_of("judgments", good, "judgments").content["judgment"] == "Right."
    assert row_of("judgments", good, "messages").content == {"messages": [user("1 + 1?"), assistant("2")]}
    assert reason_of("judgments", JUDGED | {"judgment": " "}, "judgments") == "no judgment"
    assert reason_of("judgments", JUDGED | {"label": "perhaps"}, "judgments") == "no verdict"


def test_what_is_judged_is_told_from_labels_and_classes() -> None:
    answered = {"prompt": "1 + 1?", "completion": "2", "label": True}
    assert choose("auto", [answered | {"feedback": ""}], "f:1", "labels").name == "kto"
    assert choose("auto", [answered | {"feedback": "Right."}], "f:1", "judgments").name == "judgments"
    classified = {"instruction": "1 + 1?", "output": "2", "label": "maths", "feedback": "Right."}
    assert choose("auto", [classified], "f:1", "messages").name == "alpaca"
