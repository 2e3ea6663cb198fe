"""Tuning from preferences and reward models, as the run's stages do it: on two workers of Ray Train, and handed over."""

from __future__ import annotations

import json

import pytest

from plumbline.builtin import skills
from plumbline.models.load import load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.training.encode import encode_prompt
from plumbline.training.reward_model import RewardModel
from support.embedded import Runs, reference

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RUN = """
apiVersion: plumbline.dev/v1alpha1
kind: AlignmentRun
metadata: {name: preferences}
spec:
  model: {base: "builtin://tiny"}
  workspace: {uri: WORKSPACE}
  stages:
    - name: answers
      curate: {produces: PreferenceDataset, form: labels, sources: [{uri: "builtin://skills", limit: 64}]}
    - name: marked
      preference: {objective: crlft, goodMarker: "Answer well.", maxSteps: 4, batchSize: 8, maxLength: 128}
    - name: kto
      preference:
        objective: kto
        maxSteps: 4
        batchSize: 8
        maxLength: 128
        parallelism: {workers: 2, sharding: replicate}
    - name: pairs
      curate: {produces: PreferenceDataset, sources: [{uri: "builtin://skills", limit: 200}]}
    - name: reward
      rewardModel:
        maxSteps: 40
        batchSize: 16
        maxLength: 128
        optimizer: {learningRate: 3.0e-3}
        parallelism: {workers: 2, sharding: fsdp2}
    - name: prompts
      curate: {sources: [{uri: "builtin://skills", limit: 64}]}
    - name: aligned
      inputs: {model: base}
      rlhf:
        algorithm: ppo
        steps: 2
        promptsPerStep: 8
        maxLength: 128
        sampling: {maxTokens: 12}
        rewards: [{type: rewardModel}]
        rollout: {placement: colocated}
"""


def test_answers_pairs_and_rewards(runs: Runs) -> None:
    code, _, errors = runs.run(runs.file(RUN))
    assert code == 0, errors
    workspace = runs.folder / "workspace"

    plain = load_tokenizer(ModelReference("builtin://tiny"))
    marked = load_tokenizer(reference(workspace, "preference", "marked")[0])
    asked = encode_prompt(marked, [{"role": "user", "content": "Sort b a."}])
    assert asked == encode_prompt(plain, [{"role": "user", "content": "Sort b a.\nAnswer well."}])
    folder = reference(workspace, "preference", "kto")[2]
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history] == [1, 2, 3, 4]
    assert all("kl" in row and "rewardChosen" in row for row in history)

    folder = reference(workspace, "rlhf", "aligned")[2]
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row["reward"] != 0 and row["valueLoss"] > 0 for row in history)
    assert len(history) == 2

    model = RewardModel.load(reference(workspace, "rewardModel", "reward")[0])
    chats = [
        [
            [{"role": "user", "content": task.prompt}, {"role": "assistant", "content": answer}]
            for answer in (task.answer, "no")
        ]
        for task in skills.tasks(40, split="heldout", seed=5)
    ]
    assert model.fits(chats[0][0])
    assert not model.fits([*chats[0][0][:1], {"role": "assistant", "content": "far too much " * 60}])
    good, bad = (model.score([pair[side] for pair in chats]) for side in (0, 1))  # type: ignore[misc]
    assert sum(g > b for g, b in zip(good, bad, strict=True)) > 0.8 * len(good)
