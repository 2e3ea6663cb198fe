"""Reward models: they learn which answers are better, score as they were trained, and say what they are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from plumbline.api.stages.reward_model import RewardModelSpec
from plumbline.api.stages.training import AdapterSpec, CheckpointSpec
from plumbline.data.dataset import open_rows
from plumbline.errors import InvalidInput
from plumbline.external import TINY
from plumbline.models.load import load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.stages import reward_model as stage
from plumbline.stages.reward_model import STATISTICS, work
from plumbline.training.batch import collate
from plumbline.training.encode import encode_chat
from plumbline.training.model import build_trainable
from plumbline.training.reward_model import HEAD, RewardModel, Rewards, rewards_of
from plumbline.training.tuning import TrainingJob
from plumbline.training.world import World
from support.preferences import ALONE, dataset, killed_and_resumed, rows
from support.ranks import run_ranks

REFERENCE = ModelReference(TINY)


def job(tmp_path: Path, learn_from: str = "pairs", steps: int = 12, **fields: object) -> TrainingJob[RewardModelSpec]:
    spec = RewardModelSpec.model_validate(
        {
            "learn_from": learn_from,
            "batch_size": 8,
            "adapter": AdapterSpec(rank=8),
            "optimizer": {"learning_rate": 3e-3, "schedule": "constant", "warmup_ratio": 0.0},
            "checkpoint": CheckpointSpec(every_steps=3),
            "max_length": 128,
            **fields,
        }
    )
    data = dataset(tmp_path / "data", learn_from)
    return TrainingJob(REFERENCE, data, spec, steps, str(tmp_path / "checkpoints"), "spec.stages[1].rewardModel")


@pytest.mark.parametrize("learn_from", ["pairs", "rankings"])
def test_it_learns_which_answers_are_better(learn_from: str, tmp_path: Path) -> None:
    training = job(tmp_path, learn_from, steps=30)
    work(training, ALONE, lambda *_: None)
    done = training.store.latest()
    assert done is not None
    assert done.history[-1]["rewardAccuracy"] > 0.9
    assert done.history[-1]["loss"] < done.history[0]["loss"]

    model = Rewards(build_trainable(REFERENCE, training.spec, "rewardModel").causal)
    named = dict(model.trainable())
    with torch.no_grad():
        for name, tensor in done.parameters.items():
            named[name].copy_(tensor)
    measured = training.store.load_tensors(STATISTICS)
    assert measured is not None
    finished = RewardModel(model.eval(), REFERENCE, float(measured["mean"]), float(measured["std"]), 128)
    seen = rows("pairs", 24)
    good, bad = ([row["prompt"] + row[side] for row in seen] for side in ("chosen", "rejected"))
    scores = torch.tensor([finished.score(good), finished.score(bad)])
    assert (scores[0] > scores[1]).float().mean() > 0.9
    if learn_from == "pairs":  # the very answers that were measured
        assert scores.mean() == pytest.approx(0.0, abs=1e-3)
        assert scores.std(correction=0) == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(InvalidInput, match=r"chat 0 has more than the 128 tokens"):
        finished.score([[{"role": "user", "content": "x " * 200}, *good[0][1:]]])
    with pytest.raises(InvalidInput, match=r"chat 1 does not end with an assistant turn"):
        finished.score([good[0], good[0][:-1]])


def test_a_score_does_not_depend_on_company_or_padding() -> None:
    tokenizer = load_tokenizer(REFERENCE)
    model = Rewards(build_trainable(REFERENCE, RewardModelSpec(max_length=128), "rewardModel").causal).eval()
    seen = rows("pairs", 6)
    sequences = [
        encode_chat(tokenizer, row["prompt"] + row[side], 128, "last") for row in seen for side in ("chosen", "rejected")
    ]
    with torch.no_grad():
        together = rewards_of(model, sequences, 4096)
        alone = [float(model(collate([[sequence]]))) for sequence in sequences]
        ended = []
        for sequence in sequences:  # the head reads the last token that is an answer's
            states = model.hidden(collate([[sequence]]), torch.arange(len(sequence.ids)))
            last = max(i for i, trained in enumerate(sequence.trained) if trained)
            ended.append(float(model.head(states[last])))
    torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.tensor(ended), torch.tensor(alone), atol=1e-6, rtol=1e-5)


def test_interrupted_training_ends_bit_equal_with_the_same_statistics(tmp_path: Path) -> None:
    straight, killed = (job(tmp_path / name, steps=7) for name in ("straight", "killed"))
    assert HEAD in killed_and_resumed(work, straight, killed)
    kept = [one.store.load_tensors(STATISTICS) for one in (straight, killed)]
    assert kept[0] == kept[1]
    (tmp_path / "killed" / "checkpoints" / f"{STATISTICS}.tensors").unlink()  # killed after the last checkpoint
    work(killed, ALONE, lambda *_: None)
    assert killed.store.load_tensors(STATISTICS) == kept[0]


def test_rewards_are_measured_on_comparisons_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = job(tmp_path, steps=1)
    table = list(open_rows(training.dataset, "pairs"))
    for row in table[:20]:
        row["prompt"] = [{"role": "user", "content": "x " * 200}]
    monkeypatch.setattr(stage, "MEASURED", 4)
    monkeypatch.setattr(stage, "open_rows", lambda *_: table)
    work(training, ALONE, lambda *_: None)
    kept = training.store.load_tensors(STATISTICS)
    assert kept is not None
    assert float(kept["std"]) > 1e-6


def test_comparisons_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"rewardModel\.maxLength: no comparison fits into 4 tokens"):
        work(job(tmp_path, max_length=4), ALONE, lambda *_: None)


def _train(training: TrainingJob[RewardModelSpec]) -> None:
    work(training, World.current(), lambda *_: None)


@pytest.mark.parametrize("sharding", ["fsdp2", "replicate"])
def test_two_ranks_train_what_one_does(sharding: str, tmp_path: Path) -> None:
    """One comparison a step: the second rank has none, and nothing of the head's single row either."""
    fields = {"batch_size": 1, "parallelism": {"sharding": sharding}}
    alone, together = (job(tmp_path / name, "rankings", steps=2, **fields) for name in ("alone", "together"))
    work(alone, ALONE, lambda *_: None)
    run_ranks(_train, together)
    ends = [one.store.latest() for one in (alone, together)]
    assert ends[0] is not None
    assert ends[1] is not None
    for one, two in zip(ends[0].history, ends[1].history, strict=True):
        assert {name: two[name] for name in ("loss", "gradNorm", "tokens")} == pytest.approx(
            {name: one[name] for name in ("loss", "gradNorm", "tokens")}, rel=1e-2
        )
    torch.testing.assert_close(ends[1].parameters[HEAD], ends[0].parameters[HEAD], atol=1e-3, rtol=1e-2)
    kept = [one.store.load_tensors(STATISTICS) for one in (alone, together)]
    torch.testing.assert_close(kept[1], kept[0], atol=1e-2, rtol=1e-2)
