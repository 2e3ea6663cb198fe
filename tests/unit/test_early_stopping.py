"""Early stopping by the Instruction Following Score: the rule, what is asked, and a real run that is killed and stops all the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from plumbline.api.stages.sft import EarlyStoppingSpec, SftSpec
from plumbline.builtin import skills
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.evaluation.charts import phases_chart
from plumbline.external import TINY
from plumbline.models.load import load_base, load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.stages.sft import work
from plumbline.training.early_stopping import (
    EarlyStopping,
    best_step,
    exchanges_of,
    hold_out,
    load_best,
    prepare,
    reason_to_stop,
    summary,
)
from plumbline.training.engine import TrainEngine
from plumbline.training.loop import ADAPTER
from plumbline.training.model import build_trainable
from plumbline.training.tuning import TrainingJob
from plumbline.training.world import World
from support.preferences import ALONE, killed_and_resumed, say, written
from support.ranks import run_ranks

REFERENCE = ModelReference(TINY)
RULE = EarlyStoppingSpec(window=3, threshold=0.9, min_slope=0.01)


def history(*scores: float, drift: float = 0.0) -> list[dict[str, float]]:
    """Ten steps between evaluations."""
    rows = [{"step": float(step), "loss": 1.0} for step in range(1, 10 * len(scores) + 1)]
    for place, score in enumerate(scores, 1):
        rows[10 * place - 1] |= {"ifs": score, "drift": drift}
    return rows


@pytest.mark.parametrize(
    ("scores", "over"),
    [
        ((), False),
        ((0.95, 0.95), False),  # fewer than the window
        ((0.2, 0.95, 0.95), False),  # still rising
        ((0.2, 0.95, 0.95, 0.95), True),
        ((0.91, 0.92, 0.925), True),
        ((0.91, 0.92, 0.935), False),
        ((0.95, 0.93, 0.91), True),  # falling
        ((0.95, 0.93, 0.89), False),  # below the threshold
        ((0.89, 0.89, 0.89), False),
    ],
)
def test_training_is_over_where_the_score_is_high_and_flat(scores: tuple[float, ...], over: bool) -> None:
    assert (reason_to_stop(history(*scores), RULE) is not None) == over


def test_between_evaluations_it_is_not_over() -> None:
    flat = history(0.95, 0.95, 0.95)
    assert "0.950 and has ceased to rise" in str(reason_to_stop(flat, RULE))
    assert reason_to_stop([*flat, {"step": 31.0, "loss": 1.0}], RULE) is None


def test_drift_ends_training_whatever_the_score() -> None:
    capped = RULE.model_copy(update={"max_drift": 2.0})
    assert reason_to_stop(history(0.1, drift=2.1), RULE) is None
    assert "drifted 2.1 nats" in str(reason_to_stop(history(0.1, drift=2.1), capped))
    assert reason_to_stop(history(0.1, drift=2.0), capped) is None


def test_the_best_step_is_the_first_of_the_highest_within_the_cap() -> None:
    capped = RULE.model_copy(update={"max_drift": 2.0})
    seen = history(0.5, 0.9, 0.9, 0.8)
    assert best_step(seen, RULE) == 20
    seen[9]["drift"], seen[19]["drift"], seen[29]["drift"] = 1.0, 2.5, 1.5
    assert best_step(seen, RULE) == 20
    assert best_step(seen, capped) == 30
    for row in seen:
        row |= {"drift": row["drift"] + 3} if "drift" in row else {}
    assert best_step(seen, capped) == 40  # all are beyond it: the nearest
    assert best_step([], RULE) is None


def test_both_phases_are_drawn() -> None:
    seen = [
        row | {"ifsPartial": row["ifs"], "ifsFull": row["ifs"], "ifsBare": 0.2} if "ifs" in row else row
        for row in history(0.3, 0.95, 0.9)
    ]
    seen = [{"step": 0.0, "ifs": 0.1, "ifsPartial": 0.0, "ifsFull": 0.2, "ifsBare": 0.1, "drift": 0.0}, *seen]
    svg = phases_chart("sft", seen, 0.9, 20)
    assert all(words in svg for words in ("answer-like replies", "cut", "drift (nats a token)", "step 20, handed over"))
    assert svg == phases_chart("sft", seen, 0.9, 20)


def chats(count: int) -> list[dict[str, Any]]:
    tasks = skills.tasks(count, split="train", seed=1)
    return [{"messages": [{"role": "user", "content": task.prompt}, *say(task.answer)]} for task in tasks]


def test_held_out_prompts_are_half_cut_and_follow_from_the_seed() -> None:
    rows, tokenizer = chats(200), load_tokenizer(REFERENCE)
    spec = EarlyStoppingSpec(prompts=20)
    held, probes = hold_out(rows, tokenizer, spec, 128, 0, "sft")
    assert len(set(held)) == len(probes) == 20
    assert sum(probe.cut for probe in probes) == 10
    for row, probe in zip(held, probes, strict=True):
        said, text = rows[row]["messages"][0]["content"], tokenizer.decode(probe.bare).strip()
        squeezed = said.replace(" ", "")
        assert squeezed.startswith(text.replace(" ", ""))
        assert (text.replace(" ", "") == squeezed) != probe.cut
        assert tokenizer.decode(probe.chat).replace(" ", "") == f"<|user|>{text.replace(' ', '')}<|assistant|>"
    assert hold_out(rows, tokenizer, spec, 128, 0, "sft") == (held, probes)
    assert hold_out(rows, tokenizer, spec, 128, 1, "sft")[0] != held


def test_what_cannot_be_held_out_is_refused() -> None:
    rows, tokenizer = chats(50), load_tokenizer(REFERENCE)
    with pytest.raises(InvalidInput, match=r"sft\.earlyStopping\.prompts: 11 of the dataset's 50 chats .* a fifth"):
        hold_out(rows, tokenizer, EarlyStoppingSpec(prompts=11), 128, 0, "sft")
    with pytest.raises(InvalidInput, match=r"0 of 10 prompts were found that leave room for maxTokens 16"):
        hold_out(rows, tokenizer, EarlyStoppingSpec(prompts=10), 18, 0, "sft")
    words = [{"messages": [{"role": "user", "content": "Hello!"}, *say("Hi.")]}] * 50
    with pytest.raises(InvalidInput, match=r"5 of 10 prompts were found"):
        hold_out(words, tokenizer, EarlyStoppingSpec(prompts=10), 128, 0, "sft")


FEW = {"prompts": 8, "max_tokens": 4}


def job(folder: Path, steps: int, **fields: Any) -> TrainingJob[SftSpec]:
    spec = SftSpec.model_validate(
        {
            "batch_size": 8,
            "max_length": 128,
            "adapter": {"rank": 8},
            "optimizer": {"learning_rate": 3e-3, "schedule": "constant"},
            "checkpoint": {"every_steps": 7, "keep": 1},
            "early_stopping": {"every_steps": 8, "prompts": 12, "max_tokens": 16, "threshold": 0.85, "window": 2},
            **fields,
        }
    )
    data = written(folder / "data", chats(160))
    return TrainingJob(REFERENCE, data, spec, steps, str(folder / "checkpoints"), "spec.stages[1].sft")


def test_a_killed_run_stops_where_an_undisturbed_one_does_and_hands_over_its_best_step(tmp_path: Path) -> None:
    straight, killed = job(tmp_path / "straight", 60), job(tmp_path / "killed", 60)
    killed_and_resumed(work, straight, killed, at=13)
    rule = straight.spec.early_stopping
    assert rule is not None
    found = [one.store.latest() for one in (straight, killed)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].history == found[1].history
    seen = found[0].history
    came_of = summary(straight.store, seen, rule)
    assert came_of == summary(killed.store, seen, rule)
    assert came_of["steps"] == len(seen) < 60
    assert "ceased to rise" in str(came_of["reason"])
    start, best = came_of["start"], came_of["step"]
    assert isinstance(start, dict)
    assert max(start["ifs"], start["ifsBare"]) < 0.5
    assert seen[int(str(best)) - 1]["ifs"] >= 0.85
    assert sorted(path.name for path in (tmp_path / "killed" / "checkpoints").glob("step-*")) == sorted(
        {f"step-{best:08d}", f"step-{len(seen):08d}"}
    )
    chosen = load_best(straight.store, seen, rule)
    for one in (straight, killed):
        adapter = one.store.load_tensors(ADAPTER)
        assert adapter is not None
        assert len(adapter) == len(chosen.parameters)
        names = {
            name.replace(".default.", ".").removeprefix("causal."): tensor for name, tensor in chosen.parameters.items()
        }
        assert all(torch.equal(adapter[name], names[name]) for name in adapter)


def test_a_damaged_best_step_is_said(tmp_path: Path) -> None:
    training = job(tmp_path, 1, early_stopping=FEW)
    work(training, ALONE, lambda *_: None)
    shard = next((tmp_path / "checkpoints").glob("step-*/*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(PlumblineError, match=r"step 1, the best one, is damaged .* delete .*checkpoints to train again"):
        load_best(training.store, [{"step": 1, "ifs": 0.5, "drift": 0.0}], EarlyStoppingSpec())


def prepared(training: TrainingJob[SftSpec], world: World) -> EarlyStopping:
    """An evaluation of a model whose adapter is no longer the identity."""
    spec, tokenizer, rows = training.spec, load_tokenizer(REFERENCE), chats(160)
    assert spec.early_stopping is not None
    held, probes = hold_out(rows, tokenizer, spec.early_stopping, spec.max_length, spec.seed, "sft")
    model = build_trainable(REFERENCE, spec, "sft")
    engine = TrainEngine(model, spec.optimizer, world, spec.parallelism, keep_reference=True)
    taught = sorted(set(range(len(rows))).difference(held))
    early = prepare(engine, exchanges_of(rows, taught, spec.seed), probes, tokenizer, spec, "sft", training.store)
    with torch.no_grad():
        for name, p in engine.parameters.items():
            if "lora_B" in name:
                p.add_(0.02)
    return early


def test_replies_are_those_of_greedy_decoding_and_an_untrained_model_has_not_drifted(tmp_path: Path) -> None:
    early = prepared(job(tmp_path, 1, early_stopping={"prompts": 8}), ALONE)
    base, tokenizer = load_base(REFERENCE), load_tokenizer(REFERENCE)
    with early.engine.reference():
        assert early.measure()["drift"] == 0.0
        asked = [early.probes[0].chat, early.probes[-1].bare, early.probes[3].chat]
        for prompt, reply in zip(asked, early._replies(asked), strict=True):
            ids = torch.tensor([prompt])
            out = base.generate(ids, max_new_tokens=16, do_sample=False, pad_token_id=tokenizer.pad_token_id)
            assert out[0, len(prompt) :].tolist() == reply
    assert abs(early.measure()["drift"]) > 1e-3


def test_sharded_ranks_measure_what_one_process_does(tmp_path: Path) -> None:
    alone = prepared(job(tmp_path / "alone", 1, early_stopping=FEW), ALONE).measure()
    run_ranks(_measured, job(tmp_path / "two", 1, early_stopping=FEW, parallelism={"workers": 2, "sharding": "fsdp2"}))
    found = [torch.load(tmp_path / "two" / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert found[0] == found[1] == pytest.approx(alone, abs=1e-4)
    assert alone["drift"] != 0


def _measured(training: TrainingJob[SftSpec]) -> None:
    torch.set_num_threads(1)
    world = replace(World.current(), device=torch.device("cpu"))
    torch.save(prepared(training, world).measure(), Path(training.checkpoints).parent / f"{world.rank}.pt")
