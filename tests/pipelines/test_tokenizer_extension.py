"""A tokenizer is extended, and every stage after it works with the larger vocabulary."""

from __future__ import annotations

import gzip
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from plumbline.models.load import load_base, load_merged, load_tokenizer
from plumbline.models.reference import EMBEDDINGS, ModelReference
from support.embedded import Runs, reference

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RUN = """
apiVersion: plumbline.dev/v1alpha1
kind: AlignmentRun
metadata: {name: chinese}
spec:
  model: {base: "builtin://tiny"}
  workspace: {uri: WORKSPACE}
  stages:
    - name: data
      curate: {sources: [{uri: RECORDS}]}
    - name: words
      extendTokenizer: {tokens: 200, texts: [TEXTS], heldOut: 0.2}
    - name: rows
      sft: {embeddings: {alone: true}, maxSteps: 3, batchSize: 8, maxLength: 96, optimizer: {learningRate: 5.0e-3}}
    - name: sft
      sft:
        embeddings: {rows: new}
        maxSteps: 3
        batchSize: 8
        maxLength: 96
        optimizer: {learningRate: 5.0e-3}
        parallelism: {workers: 2, sharding: fsdp2}
    - name: align
      rlhf:
        steps: 2
        promptsPerStep: 4
        groupSize: 2
        maxLength: 96
        sampling: {maxTokens: 8}
        klCoefficient: 0.1  # else equal rewards would leave nothing to compare engine and trainer on
    - name: check
      inputs: {model: align, baselines: [base]}
      evaluate:
        tasks: [{name: skills, benchmark: skills, limit: 10, maxTokens: 4}]
    - name: live
      serve: {ungated: true}
"""


@pytest.fixture
def file(runs: Runs, shared: Path) -> Path:
    with gzip.open(shared / "alpaca_zh" / "alpaca_zh_00000_03252.jsonl.gz", "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines][:400]
    short = [record for record in records if len(record["instruction"] + record["input"]) < 20]
    rows, texts = runs.folder / "records.jsonl", runs.folder / "texts.txt"
    rows.write_text("".join(json.dumps(record) + "\n" for record in short))
    texts.write_text("\n".join(record["output"] for record in records))
    return runs.file(RUN.replace("RECORDS", str(rows)).replace("TEXTS", str(texts)))


@torch.no_grad()
def test_every_later_stage_works_with_the_new_tokens(runs: Runs, file: Path) -> None:
    code, events, err = runs.run(file)
    endpoint = next((event for event in events if event["event"] == "endpoint"), None)
    try:
        assert code == 0, err
        assert endpoint is not None
        workspace = runs.folder / "workspace"
        words, manifest, folder = reference(workspace, "extendTokenizer", "words")
        report = json.loads((folder / "report.json").read_text())
        assert manifest["metrics"]["tokensAdded"] == report["tokens"]["added"] == 200
        assert manifest["metrics"]["tokensPerCharacterAfter"] < 0.75 * manifest["metrics"]["tokensPerCharacterBefore"]
        assert len(report["sources"]) == 3, "the file, the dataset's source, and both"
        assert "texts.txt" in (folder / "report.html").read_text()
        assert not (folder / "adapter").exists()

        bare = ModelReference("builtin://tiny")
        before, after = load_tokenizer(bare), load_tokenizer(words)
        question = [{"role": "user", "content": "请写一个句子，描述你的家庭。"}]
        ids = after.apply_chat_template(question, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert max(ids) >= 522
        assert len(ids) < len(
            before.apply_chat_template(question, add_generation_prompt=True, tokenize=True, return_dict=False)
        )
        old = torch.tensor([before.encode("Reverse the letters a b c.")])
        assert old.tolist() == [after.encode("Reverse the letters a b c.")]
        torch.testing.assert_close(load_base(words)(old).logits[..., :522], load_base(bare)(old).logits)

        # What others load: one plain folder.
        merged, plain = load_merged(words), str(runs.folder / "plain")
        merged.save_pretrained(plain)
        after.save_pretrained(plain)
        reread = AutoModelForCausalLM.from_pretrained(plain), AutoTokenizer.from_pretrained(plain)
        assert list((runs.folder / "plain").glob("*.bin")) == []
        assert reread[1].encode(question[0]["content"]) == after.encode(question[0]["content"])
        assert reread[1].decode(ids) == after.decode(ids)
        assert len(reread[0].get_input_embeddings().weight) == len(reread[1]) == reread[0].config.vocab_size == 722
        torch.testing.assert_close(reread[0](torch.tensor([ids])).logits, merged(torch.tensor([ids])).logits)

        # Stage 1 leaves the model as it is and moves rows; stage 2 moves both; what follows brings the rows along.
        rows, _, rows_folder = reference(workspace, "sft", "rows")
        assert not (rows_folder / "adapter").exists()
        tuned, _, tuned_folder = reference(workspace, "sft", "sft")
        aligned, _, aligned_folder = reference(workspace, "rlhf", "align")
        assert (tuned_folder / EMBEDDINGS).read_bytes() == (aligned_folder / EMBEDDINGS).read_bytes()
        tables = [load_base(each).get_input_embeddings().weight for each in (words, rows, tuned)]
        assert all(torch.equal(table[:522], tables[0][:522]) for table in tables)
        assert not torch.equal(tables[0], tables[1])
        assert not torch.equal(tables[1], tables[2])
        assert not torch.equal(load_merged(tuned)(old).logits, load_base(tuned)(old).logits)

        client = openai.OpenAI(base_url=endpoint["url"], api_key="none", max_retries=0)
        messages: Any = question
        given = client.chat.completions.create(
            model=client.models.list().data[0].id, messages=messages, temperature=0, max_tokens=8
        )
        assert given.usage is not None
        assert given.usage.prompt_tokens == len(ids)
        model, tokenizer = load_merged(aligned), load_tokenizer(aligned)
        expected = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=0)[0, len(ids) :]
        assert given.choices[0].message.content == tokenizer.decode(expected, skip_special_tokens=True)
    finally:
        if endpoint is not None:
            os.kill(endpoint["pid"], signal.SIGTERM)
            while Path(f"/proc/{endpoint['pid']}").exists():
                time.sleep(0.2)


def test_texts_without_text_are_refused(runs: Runs, file: Path) -> None:
    text = file.read_text().replace("texts.txt", "records.jsonl")
    code, _, err = runs.run(runs.file(text, "wrong.yaml"), "--until", "words")
    assert code != 0
    assert "spec.stages[1].extendTokenizer.texts[0]:" in err
    assert "the record has no `text`" in err
