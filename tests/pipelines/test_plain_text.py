"""Continued pre-training on plain text, as the run's stages do it, and the model handed over as a plain folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from plumbline.builtin import skills
from plumbline.models.load import load_merged
from support.embedded import Runs, reference

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RUN = """
apiVersion: plumbline.dev/v1alpha1
kind: AlignmentRun
metadata: {name: texts}
spec:
  model: {base: "builtin://tiny"}
  workspace: {uri: WORKSPACE}
  stages:
    - {name: data, curate: {form: text, sources: [{uri: TEXTS, textUnit: paragraph}]}}
    - name: continued
      sft:
        maxSteps: 6
        batchSize: 8
        maxLength: 48
        optimizer: {learningRate: 2.0e-3}
        parallelism: {workers: 2, sharding: replicate}
"""


def test_texts_are_learned_and_the_model_is_exported(runs: Runs) -> None:
    tasks = [f"{task.prompt} {task.answer}" for task in skills.tasks(60, split="train", seed=4)]
    texts = runs.folder / "texts.txt"
    texts.write_text("\n\n".join([*tasks, " ".join(tasks[:20])]))  # the last is long
    file = runs.file(RUN.replace("TEXTS", str(texts)))
    code, events, errors = runs.run(file)
    assert code == 0, errors
    assert any("are longer than 48 tokens and go on in another sequence" in str(event) for event in events)
    found, manifest, folder = reference(runs.folder / "workspace", "sft", "continued")
    counted = manifest["details"]["texts"]
    assert counted["documents"] == 61
    assert counted["split"] >= 1
    assert counted["leftOut"] == 0
    assert counted["sequences"] > 61
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert history[-1]["loss"] < history[0]["loss"]
    assert all(row["cut"] == row["leftOut"] == 0 for row in history)

    to = runs.folder / "model"
    export = [sys.executable, "-m", "plumbline.cli", "export", str(file), "continued", "--to", str(to), "--dtype", "float32"]
    done = subprocess.run(export, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    ids = torch.tensor([AutoTokenizer.from_pretrained(to)(tasks[0])["input_ids"]])
    with torch.no_grad():
        plain, ours = (model.eval()(ids).logits for model in (AutoModelForCausalLM.from_pretrained(to), load_merged(found)))
    assert torch.equal(plain, ours)

    code, _, errors = runs.run(file, "--set", "stages.continued.sft.trainOn=last")
    assert code == 2
    assert "spec.stages[1].sft.trainOn: plain text has no turns" in errors
