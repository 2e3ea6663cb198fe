"""Every preference method on real rows: it learns what it is shown, is resumable, and refuses what it cannot read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from plumbline.api.stages.preference import OPTIONS, PreferenceSpec
from plumbline.api.stages.training import AdapterSpec, CheckpointSpec
from plumbline.errors import InvalidInput
from plumbline.evaluation.judges.pairwise import pairwise_prompt, read_verdict
from plumbline.external import TINY
from plumbline.models.load import load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.stages.preference import work
from plumbline.training.batch import Sequence
from plumbline.training.encode import encode_prompt
from plumbline.training.preferences import METHODS, Encoder, marked, marking, unmarked
from plumbline.training.tuning import TrainingJob
from plumbline.training.world import World
from support.preferences import ALONE, dataset, killed_and_resumed, rows, say
from support.ranks import run_ranks

REFERENCE = ModelReference(TINY)


def job(
    tmp_path: Path, objective: str, steps: int = 12, form: str | None = None, **fields: Any
) -> TrainingJob[PreferenceSpec]:
    spec = PreferenceSpec.model_validate(
        {
            "objective": objective,
            "batch_size": 8,
            "adapter": AdapterSpec(rank=8),
            "optimizer": {"learning_rate": 1e-2, "schedule": "constant", "warmup_ratio": 0.0},
            "checkpoint": CheckpointSpec(every_steps=3),
            "max_length": 128,
            **fields,
        }
    )
    data = dataset(tmp_path / f"data-{form or objective}", form or METHODS[objective].form)
    return TrainingJob(REFERENCE, data, spec, steps, str(tmp_path / "checkpoints"), "spec.stages[1].preference")


def history(training: TrainingJob[PreferenceSpec]) -> list[dict[str, float]]:
    work(training, ALONE, lambda *_: None)
    checkpoint = training.store.latest()
    assert checkpoint is not None
    return checkpoint.history


@pytest.mark.parametrize("objective", OPTIONS)
def test_every_objective_learns_its_rows(objective: str, tmp_path: Path) -> None:
    rate = 2e-3 if objective == "ipo" else 1e-2  # squares of what other losses saturate in
    fields: dict[str, Any] = {"optimizer": {"learning_rate": rate, "schedule": "constant", "warmup_ratio": 0.0}}
    if objective == "judge":  # prompts of two answers
        fields |= {"max_length": 512, "batch_size": 1}
    seen = history(job(tmp_path, objective, **fields))
    assert len(seen) == 12
    assert sum(row["loss"] for row in seen[-3:]) < sum(row["loss"] for row in seen[:3])
    if objective in {"dpo", "rpo", "ipo", "simpo", "cpo", "slic", "orpo", "rrhf", "pro"}:
        assert seen[-1]["rewardAccuracy"] > 0.8
    if objective in {"dpo", "kto", "rpo", "ipo"}:  # the first step's policy is its own reference
        assert seen[0]["rewardChosen"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("objective", ["dpo", "kto", "coh"])
def test_interrupted_tuning_ends_bit_equal(objective: str, tmp_path: Path) -> None:
    killed_and_resumed(work, *(job(tmp_path / name, objective, steps=8) for name in ("straight", "killed")))


def test_damaged_reference_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    history(first := job(tmp_path, "dpo", steps=3))
    (kept,) = (tmp_path / "checkpoints").glob("reference*")
    good = kept.read_bytes()
    kept.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    history(TrainingJob(**{**vars(first), "steps": 6}))
    assert "damaged" in caplog.text
    assert kept.read_bytes() == good


def test_rows_of_another_form_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"holds labels, and rankings are needed here"):
        history(job(tmp_path, "pro", form="labels"))


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"preference\.maxLength: no row fits into 4 tokens"):
        history(job(tmp_path, "dpo", max_length=4))


def test_ktos_baseline_is_of_other_prompts() -> None:
    encoder = Encoder(load_tokenizer(REFERENCE), 128)
    pair = rows("pairs", 2)
    labelled = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in pair
        for side in ("chosen", "rejected")
    ]
    spec = PreferenceSpec(objective="kto")
    _, unrelated = METHODS["kto"].encode(encoder, labelled, 0, spec)
    expected = encoder.answer(pair[0]["prompt"], pair[1]["chosen"])
    assert unrelated.ids == expected.ids
    labelled[2]["completion"] = say("x " * 200)
    own, unrelated = METHODS["kto"].encode(encoder, labelled, 0, spec)
    assert encoder.fits([own, unrelated]), "a row is not left out for its neighbour's length"
    assert len(unrelated.ids) == 128


LATER = [*rows("pairs", 1)[0]["prompt"], *say("An earlier answer."), {"role": "user", "content": "And then?"}]


@pytest.mark.parametrize("side", [0, 1])
def test_hindsight_teaches_the_two_answers_and_no_earlier_turn(side: int) -> None:
    encoder = Encoder(load_tokenizer(REFERENCE), 512)
    row = rows("pairs", 1)[0] | {"prompt": LATER}
    sequence = METHODS["coh"].encode(encoder, [row], 0, PreferenceSpec(objective="coh", forget=1.0))[side]
    answers = [row["rejected"], row["chosen"]][:: 1 - 2 * side]

    def taught(one: Sequence) -> list[int]:
        return [token for token, trained in zip(one.ids, one.trained, strict=True) if trained]

    assert taught(sequence) == [token for answer in answers for token in taught(encoder.answer(LATER, answer))]


def test_a_judgment_is_told_with_the_last_question_only() -> None:
    encoder = Encoder(load_tokenizer(REFERENCE), 512)
    row = rows("judgments", 1)[0] | {"prompt": LATER}
    informed, plain = METHODS["cut"].encode(encoder, [row], 0, PreferenceSpec(objective="cut"))
    told = [encoder.tokenizer.decode(sequence.ids).count("Judgment:") for sequence in (informed, plain)]
    assert told == [1, 0]
    before = encode_prompt(encoder.tokenizer, LATER[:1])
    assert informed.ids[: len(before)] == before


def test_a_judge_is_shown_every_two_answers_in_both_orders() -> None:
    tokenizer = load_tokenizer(REFERENCE)
    (row,) = rows("rankings", 1)
    wrong, right, half = (answer[0]["content"] for answer in row["completions"])
    row["scores"] = [0.0, 2.0, 2.0]
    unit = METHODS["judge"].encode(Encoder(tokenizer, 512), [row], 0, PreferenceSpec(objective="judge"))
    wanted = [
        (wrong, right, "2"),
        (right, wrong, "1"),
        (wrong, half, "2"),
        (half, wrong, "1"),
        (right, half, "Tie"),
        (half, right, "Tie"),
    ]
    assert len(unit) == len(wanted)
    for sequence, (first, second, verdict) in zip(unit, wanted, strict=True):
        asked = encode_prompt(
            tokenizer, [{"role": "user", "content": pairwise_prompt(row["prompt"][0]["content"], first, second)}]
        )
        assert sequence.ids[: len(asked)] == asked
        assert not any(sequence.trained[: len(asked)])
        assert all(sequence.trained[len(asked) :])
        said = tokenizer.decode(sequence.ids[len(asked) :], skip_special_tokens=True)
        assert read_verdict(said) == said.strip() == verdict


def test_references_are_shared_and_kept(tmp_path: Path) -> None:
    """Two ranks, the second of which has no row of the last step; a resumed run on one rank reads what they left."""
    training = job(tmp_path, "dpo", steps=3, batch_size=1)
    run_ranks(_train, training)
    kept = training.store.load_tensors("reference")
    assert kept is not None
    done = training.store.latest()
    assert done is not None
    assert done.history[0]["rewardChosen"] == pytest.approx(0.0, abs=1e-4)
    alone = job(tmp_path / "alone", "dpo", steps=3, batch_size=1)
    history(alone)
    torch.testing.assert_close(kept, alone.store.load_tensors("reference"))
    assert (kept["reference"] != 0).all(dim=1).sum() == 3, "only what is trained on"
    path = next((tmp_path / "checkpoints").glob("reference*"))
    before = path.read_bytes()
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000003")
    assert len(history(training)) == 3
    assert path.read_bytes() == before


def _train(training: TrainingJob[PreferenceSpec]) -> None:
    work(training, World.current(), lambda *_: None)


def test_hindsight_hides_earlier_tokens_from_the_model_only() -> None:
    encoder = Encoder(load_tokenizer(REFERENCE), 256)
    spec = PreferenceSpec(objective="coh", forget=0.5)
    unit = METHODS["coh"].encode(encoder, rows("pairs", 3), 1, spec)
    assert len(unit) == 2
    for sequence in unit:
        assert sequence.inputs is not None
        differ = [a != b for a, b in zip(sequence.ids, sequence.inputs, strict=True)]
        assert any(differ)
        assert all(trained for trained, other in zip(sequence.trained, differ, strict=True) if other)
    text = encoder.tokenizer.decode(unit[0].ids)
    assert text.index("Give a bad answer.") < text.index("Give a good answer.")
    whole = METHODS["coh"].encode(encoder, rows("pairs", 3), 1, PreferenceSpec(objective="coh", forget=0.0))
    assert whole[0].inputs == whole[0].ids == unit[0].ids


def test_the_models_template_asks_for_good_answers() -> None:
    tokenizer = load_tokenizer(REFERENCE)
    marker = 'Be "good" – don\'t {{ cheat }}, 好.'
    chat = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    expected = encode_prompt(tokenizer, marked(chat, marker))  # type: ignore[arg-type]
    own = str(tokenizer.chat_template)
    tokenizer.chat_template = marking(marking(own, "Another marker, of an earlier stage."), marker)
    assert encode_prompt(tokenizer, chat) == expected
    assert unmarked(tokenizer.chat_template) == unmarked(own) == own
