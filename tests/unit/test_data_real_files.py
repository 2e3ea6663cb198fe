"""Every real file of training data either loads with `format: auto`, with these counts, or is refused in these words."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from plumbline.api.curation.normalisation import NormaliseSpec
from plumbline.api.stages.curate import SourceSpec
from plumbline.data.formats import FORMATS
from plumbline.data.formats.options import Options
from plumbline.data.normalise import make_normaliser
from plumbline.data.row import COLUMNS, Form, Reject, Row
from plumbline.data.rows import Outcome
from plumbline.data.sources import find_parts, read_part
from plumbline.errors import InvalidInput
from plumbline.evaluation.judges.pairwise import verdict_of

Counts = dict[str | None, int]

FOLDERS = (
    "alpaca", "alpaca_zh", "chat", "instruct", "preference", "self_instruct", "super_natural_instructions",
    "classification_tasks_sni_format", "t0_templates", "text", "wizardlm", "prompt_sets", "pandalm",
)  # fmt: skip

LOADED: dict[str, tuple[Form, str, Counts]] = {
    "alpaca/alpaca_data_cleaned_1000.json.gz": ("messages", "alpaca", {None: 829}),
    "alpaca/alpaca_data_sample_100.json": ("messages", "alpaca", {None: 100}),
    "alpaca/alpaca_data_shared.jsonl.gz": ("messages", "alpaca", {None: 41977, "empty answer": 23}),
    "alpaca/alpaca_en_demo.json.gz": ("messages", "alpaca", {None: 776}),
    "alpaca/seed_tasks.jsonl": ("messages", "selfInstruct", {None: 175}),
    "alpaca_zh/alpaca_zh_00000_03252.jsonl.gz": ("messages", "alpaca", {None: 810, "empty answer": 2}),
    "alpaca_zh/alpaca_zh_03252_06382.jsonl.gz": ("messages", "alpaca", {None: 746}),
    "alpaca_zh/alpaca_zh_06382_09407.jsonl.gz": ("messages", "alpaca", {None: 756}),
    "alpaca_zh/alpaca_zh_12345_15323.jsonl": ("messages", "alpaca", {None: 613}),
    "alpaca_zh/alpaca_zh_15323_18280.jsonl.gz": ("messages", "alpaca", {None: 740}),
    "alpaca_zh/alpaca_zh_18280_21320.jsonl": ("messages", "alpaca", {None: 533}),
    "alpaca_zh/alpaca_zh_demo.json.gz": ("messages", "alpaca", {None: 1000}),
    "alpaca_zh/code_questions_zh.jsonl.gz": ("messages", "alpaca", {None: 2265}),
    "chat/glaive_toolcall_en_demo.json.gz": ("messages", "sharegpt", {None: 145, "tool call": 153}),
    "chat/glaive_toolcall_zh_demo.json.gz": ("messages", "sharegpt", {None: 141, "tool call": 159}),
    "chat/oasst_en_100_message.jsonl.gz": ("messages", "oasst", {None: 97}),
    "chat/oasst_en_100_tree.jsonl.gz": ("messages", "oasst", {None: 97}),
    "chat/oasst_sft_zh.json.gz": ("messages", "alpaca", {None: 766}),
    "chat/sharegpt_dummy_conversation.json": ("messages", "sharegpt", {None: 500}),
    "chat/sharegpt_dummy_conversation_with_system.json": ("messages", "sharegpt", {None: 500}),
    "chat/torchtune_chat_tiny.json": ("messages", "sharegpt", {None: 1}),
    "chat/torchtune_instruct_tiny.json": ("messages", "dolly", {None: 2}),
    "chat/v1_sft_demo.jsonl.gz": ("messages", "messages", {None: 401}),
    "instruct/code_alpaca_2k.json.gz": ("messages", "alpaca", {None: 2015, "empty answer": 2}),
    "instruct/codealpaca_seed_tasks.jsonl": ("messages", "selfInstruct", {None: 21}),
    "instruct/identity.json": ("messages", "alpaca", {None: 91}),
    "instruct/lima.json.gz": ("messages", "alpaca", {None: 1027}),
    "instruct/new_codealpaca.json.gz": ("messages", "alpaca", {None: 4535}),
    "pandalm/testset-v1_example.json": ("rankings", "pandalm", {None: 5}),
    "preference/dpo_en_demo.json.gz": ("pairs", "pairs", {None: 291}),
    "preference/dpo_zh_demo.json.gz": ("pairs", "pairs", {None: 300}),
    "preference/hh_rlhf_harmless_base_test_shared.jsonl.gz": (
        "pairs", "hh", {None: 1149, "roles do not alternate": 5, "empty answer": 2},
    ),
    "preference/kto_en_demo.json.gz": ("labels", "kto", {None: 297}),
    "preference/oasst_rm_zh.json.gz": ("rankings", "rankings", {None: 772, "fewer than two answers": 3}),
    "preference/torchtune_hh_rlhf_tiny.json": ("pairs", "pairs", {None: 1}),
    "preference/torchtune_stack_exchange_paired_tiny.json": ("pairs", "pairs", {None: 25}),
    "preference/v1_dpo_demo.jsonl": ("pairs", "pairs", {None: 10}),
    "self_instruct/user_oriented_instructions_shared.jsonl": ("messages", "selfInstruct", {None: 126}),
    "text/c4_demo.jsonl.gz": ("text", "text", {None: 300}),
    "text/data_juicer_alpaca_cot.jsonl": ("messages", "alpaca", {None: 10, "empty answer": 1}),
    "text/data_juicer_demo_dataset_chatml.jsonl": ("messages", "messages", {None: 4}),
    "text/data_juicer_demo_dataset_deduplication.jsonl": ("text", "text", {None: 14}),
    "text/data_juicer_redpajama_c4_refined.jsonl": ("text", "text", {None: 10}),
    "text/data_juicer_redpajama_cc_2023_06_refined.jsonl": ("text", "text", {None: 10}),
    "text/data_juicer_redpajama_pile_stackexchange_refined.jsonl": ("text", "text", {None: 10}),
    "text/data_juicer_stack_exchange.jsonl.gz": ("text", "text", {None: 70}),
    "text/data_juicer_tool_dataset_splitting_by_language_demo_dataset.jsonl": ("text", "text", {None: 11}),
    "text/wiki_demo.txt.gz": ("text", "text", {None: 30}),
}  # fmt: skip

# Of these folders every file not named above or below; one has another count.
OF_FOLDER: dict[str, tuple[Form, str, Counts]] = {
    "super_natural_instructions": ("messages", "superNaturalInstructions", {None: 100}),
    "classification_tasks_sni_format": ("messages", "superNaturalInstructions", {None: 60}),
    "t0_templates": ("messages", "completion", {None: 50}),
}
LOADED |= {
    "super_natural_instructions/task511_reddit_tifu_long_text_summarization.json": (
        "messages", "superNaturalInstructions", {None: 99, "empty answer": 1},
    ),
    "classification_tasks_sni_format/copa.json": (
        "messages", "superNaturalInstructions", {"task without a definition": 1},
    ),
    "t0_templates/wiki_qa_Direct_Answer_to_Question.jsonl": ("messages", "completion", {None: 8}),
    "t0_templates/trec_fine_grained_open_context_first.jsonl": ("messages", "completion", {"empty answer": 50}),
}  # fmt: skip

REFUSED: dict[str, tuple[Form, str]] = {
    "pandalm/golden_labels.csv": ("rankings", "no known format has this record; .*'annotator1'"),
    "pandalm/gpt-3.5-turbo-testset-v1_example.json": ("rankings", "no known format has this record; .*'gpt_reason'"),
    "pandalm/pandalm-7b-testset-v1_example.json": ("rankings", "no known format has this record; .*'pandalm_reason'"),
    "pandalm/testset-inference-v1_shared.json": ("rankings", "prompts without answers"),
    "preference/autoj_single_traindata.jsonl.gz": ("pairs", "no known format has this record; .*'usrmsg', 'target_output'"),
    "preference/autoj_testdata_pairwise_example.jsonl": ("pairs", r"answers side by side \(response 1, response 2\)"),
    "preference/gpt4llm_cmp_data_scores.json.gz": ("rankings", "no known format has this record; .*'text-davinci-003'"),
    "self_instruct/davinci-self-instruct_predictions_shared.jsonl": ("messages", "beside reference answers"),
    "self_instruct/text-davinci-003_predictions_shared.jsonl": ("messages", "beside reference answers"),
    "text/data_juicer_data_visualization_diversity_demo_dataset.json": ("messages", "'text' records cannot become messages"),
    "text/data_juicer_demo_dataset_annotation_human_preference.jsonl": ("pairs", "answers side by side"),
    "wizardlm/WizardLM_testset_shared.jsonl": ("messages", "prompts without answers"),
    "prompt_sets/koala_test_set_shared.jsonl": ("messages", "prompts without answers"),
    "prompt_sets/lima_test_set_shared.jsonl": ("messages", "prompts without answers"),
    "prompt_sets/pairwise_reviews_both_orders_example.json": ("messages", "no known format has this record; .*'Meta_Info'"),
}


def outcomes_of(path: Path, form: Form) -> list[Outcome]:
    _, parts = find_parts([SourceSpec(uri=str(path))], None, 0, ["spec.sources[0]"])
    return [outcome for part in parts for outcome in read_part(part, form)]


def test_no_file_is_forgotten(shared: Path) -> None:
    there = {f"{folder}/{path.name}" for folder in FOLDERS for path in (shared / folder).iterdir()}
    named = {*LOADED, *REFUSED, *(name for name in there if name.partition("/")[0] in OF_FOLDER)}
    assert there == named


def check(path: Path, form: Form, format: str, counts: Counts) -> None:
    outcomes = outcomes_of(path, form)
    assert {outcome.format for outcome in outcomes} == {format}
    assert Counter(outcome.reason for outcome in outcomes) == counts
    for row in (outcome.row for outcome in outcomes if outcome.row is not None):
        assert set(row.content) == set(COLUMNS[form])
        assert all(text == text.strip() != "" for text in row.texts)


@pytest.mark.parametrize("name", LOADED)
def test_loads(shared: Path, name: str) -> None:
    check(shared / name, *LOADED[name])


@pytest.mark.parametrize("folder", OF_FOLDER)
def test_every_file_of_the_folder_loads(shared: Path, folder: str) -> None:
    for path in (shared / folder).iterdir():
        if f"{folder}/{path.name}" not in LOADED:
            check(path, *OF_FOLDER[folder])


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_in_plain_words(shared: Path, name: str) -> None:
    form, words = REFUSED[name]
    with pytest.raises(InvalidInput, match=words):
        outcomes_of(shared / name, form)


OTHER_FORMS: list[tuple[str, Form, Counts]] = [
    ("preference/kto_en_demo.json.gz", "messages", {None: 147, "labelled as bad": 150}),
    ("preference/oasst_rm_zh.json.gz", "pairs", {None: 772, "fewer than two answers": 3}),
    ("preference/oasst_rm_zh.json.gz", "messages", {None: 772, "fewer than two answers": 3}),
    ("preference/dpo_en_demo.json.gz", "labels", {None: 582}),
    ("preference/dpo_zh_demo.json.gz", "rankings", {None: 300}),
    ("chat/oasst_en_100_tree.jsonl.gz", "rankings", {None: 204}),
    ("chat/oasst_en_100_message.jsonl.gz", "pairs", {None: 204}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "form", "counts"), OTHER_FORMS)
def test_other_forms(shared: Path, name: str, form: Form, counts: Counts) -> None:
    outcomes = outcomes_of(shared / name, form)
    assert Counter(outcome.reason for outcome in outcomes) == counts


def test_majorities_of_pandalms_annotators(shared: Path) -> None:
    """The votes of all 999 items (here without their texts) have the published majorities: 422 for the first, 472, 105 ties."""
    with (shared / "pandalm" / "golden_labels.csv").open(newline="") as stream:
        votes = list(csv.DictReader(stream))
    verdicts: Counter[str] = Counter()
    for vote in votes:
        texts = {"instruction": "Compare.", "response1": "one", "response2": "two"}
        (row,) = FORMATS["pandalm"].rows(texts | vote, Options("rankings"))
        assert isinstance(row, Row)
        scores = dict(zip(row.answers, row.content["scores"], strict=True))
        verdicts[verdict_of(scores["one"], scores["two"])] += 1
    assert verdicts == {"1": 422, "2": 472, "Tie": 105}


def test_both_spellings_of_openassistant_trees_give_the_same_rows(shared: Path) -> None:
    forms: tuple[Form, ...] = ("messages", "rankings")
    for form in forms:
        rows = [
            [o.row for o in outcomes_of(shared / f"chat/oasst_en_100_{kind}.jsonl.gz", form)] for kind in ("tree", "message")
        ]
        assert rows[0] == rows[1]


def test_t0_completions_lose_their_end_marker_and_tasks_keep_their_ids(shared: Path) -> None:
    t0 = outcomes_of(shared / "t0_templates/gigaword_TLDR.jsonl", "messages")
    assert not any("<|endoftext|>" in text for outcome in t0 if outcome.row for text in outcome.row.texts)
    task = [
        o.row for o in outcomes_of(shared / "super_natural_instructions/task591_sciq_answer_generation.json", "messages")
    ]
    assert {(row.category, row.language, row.licence) for row in task if row} == {
        ("Question Answering", "en", "CC BY-NC 3.0")
    }
    assert all(row.record_id and row.record_id.startswith("task591-") for row in task if row)


NORMALISED: list[tuple[str, Form, Counts]] = [
    # 13 and 21 more: every answer that has "N. Instruction:" on a line of its own
    ("alpaca/alpaca_data_shared.jsonl.gz", "messages", {"cut:run-on": 34, "cut off": 11}),
    ("instruct/lima.json.gz", "messages", {"cut off": 2}),
    ("instruct/new_codealpaca.json.gz", "messages", {}),
    ("instruct/identity.json", "messages", {"unfilled template": 85}),
    ("alpaca/alpaca_en_demo.json.gz", "messages", {"cut off": 5}),
    ("chat/v1_sft_demo.jsonl.gz", "messages", {"unfilled template": 50, "cut off": 2}),
    ("preference/dpo_en_demo.json.gz", "pairs", {"cut off": 2}),
]


@pytest.mark.parametrize(("name", "form", "counts"), NORMALISED)
def test_what_normalising_finds(shared: Path, name: str, form: Form, counts: Counts) -> None:
    normalise = make_normaliser(NormaliseSpec())
    found: Counter[str | None] = Counter()
    for outcome in outcomes_of(shared / name, form):
        for row in normalise(outcome.row) if outcome.row else ():
            found.update([row.reason] if isinstance(row, Reject) else row.operations)
    assert found == counts
