"""Exported models load plainly and are the models that the stages made; what cannot be exported is one sentence."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from plumbline.artifacts import Artifact, ArtifactWriter, Workspace
from plumbline.cli import main
from plumbline.errors import EXIT_INVALID, EXIT_RETRYABLE
from plumbline.external import tiny_folder
from plumbline.models import export
from plumbline.models.embeddings import Embeddings
from plumbline.models.load import load_base, load_merged, load_tokenizer
from plumbline.models.reference import EMBEDDINGS, ModelReference
from plumbline.plan import Plan, make_plan
from plumbline.run_file import load_run
from plumbline.training.encode import encode_chat
from plumbline.training.reward_model import HEAD, HEAD_FILE, RewardModel, rewards_of

RUN = """
apiVersion: plumbline.dev/v1alpha1
kind: AlignmentRun
metadata: {name: small}
spec:
  model: {base: BASE}
  workspace: {uri: WORKSPACE}
  stages:
    - {name: data, curate: {sources: [{uri: "builtin://skills", limit: 40}]}}
    - {name: sft, sft: {maxSteps: 2}}
    - {name: longer, sft: {maxSteps: 3}}
    - {name: words, inputs: {model: base}, extendTokenizer: {tokens: 8}}
    - {name: wide, sft: {maxSteps: 2}}
    - {name: virtual, inputs: {model: base}, sft: {maxSteps: 4}}
    - {name: pairs, curate: {produces: PreferenceDataset, sources: [{uri: "builtin://skills", limit: 40}]}}
    - {name: judge, inputs: {model: base}, rewardModel: {maxSteps: 2}}
    - {name: never, inputs: {model: base}, sft: {maxSteps: 5}}
"""
LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
CHAT = [{"role": "user", "content": "Sort the letters q b m."}]
ADDED, FIRST = ["zigzag", "quux"], 522

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The built-in model as a folder, with settings that transformers reads but refuses to write."""
    folder = shutil.copytree(tiny_folder(), tmp_path / "base")
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"temperature": 0.6, "eos_token_id": [3]}))
    return folder


@pytest.fixture
def file(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "run.yaml"
    path.write_text(RUN.replace("WORKSPACE", str(tmp_path / "workspace")).replace("BASE", str(base)))
    return path


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()  # what making the artifacts has said
        code = main(["export", *(str(argument) for argument in arguments)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def make(
    file: Path, stage: str, fill: Callable[[Plan, ArtifactWriter], None], workspace: str | None = None
) -> ModelReference:
    """The artifact of a stage, filled by hand."""
    plan = make_plan(load_run(file), workspace, stage)
    node, fingerprint = plan.graph[stage], plan.fingerprints[stage]
    plan.workspace.acquire(fingerprint, "test")
    inputs = {
        role: [a for name in names if name != "base" and (a := plan.artifact(name))] for role, names in node.inputs.items()
    }
    with plan.workspace.create(
        kind=node.kind, fingerprint=fingerprint, stage=stage, type=node.output, inputs=inputs, holder="test"
    ) as writer:
        fill(plan, writer)
    return replace(ModelReference.of(plan, plan.artifact(stage)), dtype="float32")


def tuned(seed: int, config: Any = LORA, like: ModelReference | None = None, template: str | None = None) -> Any:
    """An adapter of random numbers, a tokenizer, and the embedding rows of another model."""

    def fill(plan: Plan, writer: ArtifactWriter) -> None:
        reference = like or replace(ModelReference.of(plan, None), dtype="float32")
        torch.manual_seed(seed)
        get_peft_model(load_base(reference), deepcopy(config)).save_pretrained(
            writer.folder / "adapter", save_embedding_layers=False
        )
        tokenizer = load_tokenizer(reference)
        tokenizer.chat_template = template or tokenizer.chat_template
        tokenizer.save_pretrained(writer.folder / "tokenizer")
        if (rows := reference.embeddings_file()) is not None:
            shutil.copyfile(rows, writer.folder / EMBEDDINGS)
        writer.metrics.update(loss=0.5, step=2)

    return fill


def widened(plan: Plan, writer: ArtifactWriter) -> None:
    tokenizer = load_tokenizer(ModelReference.of(plan, None))
    tokenizer.add_tokens(ADDED)
    tokenizer.save_pretrained(writer.folder / "tokenizer")
    rows = torch.randn(2, len(ADDED), 192, generator=torch.Generator().manual_seed(1))
    Embeddings(FIRST, rows[0], rows[1], FIRST).save(writer.folder / EMBEDDINGS)


def judge(plan: Plan, writer: ArtifactWriter) -> None:
    tuned(5)(plan, writer)
    save_file({HEAD: torch.randn(1, 192, generator=torch.Generator().manual_seed(2)) / 10}, writer.folder / HEAD_FILE)
    writer.details["reward"] = {"mean": 0.25, "std": 1.5, "maxLength": 128}


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> torch.Tensor:
    found: torch.Tensor = model.eval()(torch.tensor([ids])).logits
    return found


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_merged_model_is_the_stages_model(file: Path, tmp_path: Path, command: Command) -> None:
    reference = make(file, "sft", tuned(0))
    to = tmp_path / "out" / "model"
    code, out, err = command(file, "sft", "--to", to, "--dtype", "float32")
    assert code == 0, err
    assert out == f"sft: 1.775 M parameters, {sum(p.stat().st_size for p in to.iterdir()) / 1e6:.4g} MB in {to}\n"
    assert {path.name for path in to.iterdir()} == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    assert hidden(to.parent) == []
    ids = list(range(40))
    plain = AutoModelForCausalLM.from_pretrained(to)
    assert type(plain).__name__ == "LlamaForCausalLM"
    assert plain.dtype == torch.float32
    assert torch.equal(logits(plain, ids), logits(load_merged(reference), ids))
    assert (logits(plain, ids) - logits(load_base(reference), ids)).abs().max() > 0.1, "this adapter changes the model"
    tokenizer = AutoTokenizer.from_pretrained(to)
    for chat in (CHAT, [*CHAT, {"role": "assistant", "content": "b m q"}]):
        rendered = [one.apply_chat_template(chat, tokenize=False) for one in (tokenizer, load_tokenizer(reference))]
        assert rendered[0] == rendered[1]
    settings = json.loads((to / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [0, 3], "the end of turn of the tokenizer, and that of the base"
    assert settings["temperature"] == 0.6, "the base's settings stay"
    assert str(tmp_path) not in (to / "config.json").read_text()


def test_it_needs_neither_plumbline_nor_peft(file: Path, tmp_path: Path, command: Command) -> None:
    reference = make(file, "sft", tuned(0))
    to = tmp_path / "model"
    assert command(file, "sft", "--to", to, "--dtype", "float32")[0] == 0
    program = """
import sys
sys.modules["peft"] = sys.modules["plumbline"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = (kind.from_pretrained(sys.argv[1]) for kind in (AutoTokenizer, AutoModelForCausalLM))
chat = [{"role": "user", "content": "Sort the letters q b m."}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
print(model.generate(**inputs, max_new_tokens=8)[0].tolist())
"""
    done = subprocess.run([sys.executable, "-c", program, str(to)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    tokenizer, model = load_tokenizer(reference), load_merged(reference)
    inputs = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=8, eos_token_id=[0, 3], do_sample=False)[0].tolist()
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_weights_have_the_type_of_the_base_rounded_once(file: Path, tmp_path: Path, command: Command) -> None:
    reference = make(file, "sft", tuned(0))
    assert command(file, "sft", "--to", tmp_path / "model")[0] == 0
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    expected = load_merged(reference).to(torch.bfloat16).state_dict()
    assert plain.dtype == torch.bfloat16, "as the base's config.json says"
    assert all(torch.equal(tensor, expected[name]) for name, tensor in plain.state_dict().items())


def test_weights_are_sharded(file: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = make(file, "sft", tuned(0))
    monkeypatch.setattr(export, "SHARD", "1MB")
    assert command(file, "sft", "--to", tmp_path / "model", "--dtype", "float32")[0] == 0
    shards = list((tmp_path / "model").glob("model-*-of-*.safetensors"))
    assert len(shards) > 5
    assert (tmp_path / "model" / "model.safetensors.index.json").exists()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(logits(plain, [1, 2, 3]), logits(load_merged(reference), [1, 2, 3]))


def test_new_tokens_go_with_the_model(file: Path, tmp_path: Path, command: Command) -> None:
    words = make(file, "words", widened)
    wide = make(file, "wide", tuned(3, like=words))
    for stage, reference in (("words", words), ("wide", wide)):
        to = tmp_path / stage
        code, _, err = command(file, stage, "--to", to, "--dtype", "float32")
        assert code == 0, err
        plain, tokenizer = AutoModelForCausalLM.from_pretrained(to), AutoTokenizer.from_pretrained(to)
        assert plain.config.vocab_size == len(tokenizer) == FIRST + len(ADDED)
        ids = tokenizer("a zigzag of quux")["input_ids"]
        assert max(ids) == FIRST + 1
        assert torch.equal(logits(plain, ids), logits(load_merged(reference), ids))


def test_the_card_says_where_the_model_comes_from(file: Path, tmp_path: Path, command: Command) -> None:
    def data(plan: Plan, writer: ArtifactWriter) -> None:
        writer.sources.append({"uri": "builtin://skills", "identity": "skills:1", "rows": 40})
        writer.metrics.update(rows=40)

    make(file, "data", data)
    made = make(file, "sft", tuned(0))
    assert command(file, "sft", "--to", tmp_path / "model")[0] == 0
    card = (tmp_path / "model" / "README.md").read_text()
    assert card.startswith(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [plumbline]\n---\n\n# small, sft\n"
    )
    assert f"of `{tmp_path / 'base'}`, in bfloat16. Adapters are merged in." in card
    assert f"| sft | sft | Model | `{made.fingerprint}` | loss 0.5, step 2 |" in card
    assert "| data | curate | Dataset |" in card
    assert "Data: `builtin://skills` (40 rows)." in card


def test_adapters_lie_beside_one_base(file: Path, tmp_path: Path, command: Command) -> None:
    marked = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    references = {"sft": make(file, "sft", tuned(0)), "longer": make(file, "longer", tuned(1, template=marked))}
    to = tmp_path / "both"
    code, out, err = command(file, "sft", "longer", "--to", to, "--adapters", "--dtype", "float32")
    assert code == 0, err
    assert out.startswith("sft, longer: 1.775 M parameters")
    ids = list(range(30))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(to), ids), logits(load_base(references["sft"]), ids))
    for stage, reference in references.items():
        below = AutoModelForCausalLM.from_pretrained(to)
        found = logits(PeftModel.from_pretrained(below, to / "adapters" / stage).merge_and_unload(), ids)
        assert torch.equal(found, logits(load_merged(reference), ids)), stage
        assert json.loads((to / "adapters" / stage / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
            to
        )
    assert (
        AutoTokenizer.from_pretrained(to / "adapters" / "longer")
        .apply_chat_template(CHAT, tokenize=False)
        .startswith("[Sort")
    )
    assert AutoTokenizer.from_pretrained(to).chat_template == load_tokenizer(references["sft"]).chat_template
    assert "### adapters/longer" in (to / "README.md").read_text()


def test_adapters_on_different_embeddings_are_refused(file: Path, tmp_path: Path, command: Command) -> None:
    words = make(file, "words", widened)
    make(file, "sft", tuned(0))
    make(file, "wide", tuned(3, like=words))
    to = tmp_path / "both"
    code, _, err = command(file, "sft", "wide", "--to", to, "--adapters")
    assert code == EXIT_INVALID
    assert "'sft' and 'wide' stand on different weights or embedding rows" in err
    code, _, err = command(file, "words", "--to", to, "--adapters")
    assert code == EXIT_INVALID
    assert "stage 'words' has no adapter" in err
    assert not to.exists()
    assert hidden(tmp_path) == []
    code, _, err = command(file, "wide", "--to", to, "--adapters", "--dtype", "float32")
    assert code == 0, err
    reference, ids = make_reference(file, "wide"), [5, FIRST, FIRST + 1]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(to), to / "adapters" / "wide").merge_and_unload()
    assert torch.equal(logits(model, ids), logits(load_merged(reference), ids))
    assert AutoTokenizer.from_pretrained(to).convert_tokens_to_ids("quux") == FIRST + 1


def make_reference(file: Path, stage: str) -> ModelReference:
    plan = make_plan(load_run(file), None, stage)
    return replace(ModelReference.of(plan, plan.artifact(stage)), dtype="float32")


def test_whole_weights_are_exported_as_they_are(file: Path, tmp_path: Path, command: Command) -> None:
    def trained(plan: Plan, writer: ArtifactWriter) -> None:
        reference = ModelReference.of(plan, None)
        model = load_base(replace(reference, dtype="float32"))
        model.get_input_embeddings().weight.data.add_(0.125)
        model.save_pretrained(writer.folder / "weights")
        load_tokenizer(reference).save_pretrained(writer.folder / "tokenizer")

    whole = make(file, "sft", trained)
    code, _, err = command(file, "sft", "--to", tmp_path / "whole", "--dtype", "float32")
    assert code == 0, err
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole"), [1, 2, 3])
    assert torch.equal(found, logits(load_merged(whole), [1, 2, 3]))
    assert not torch.allclose(found, logits(load_base(replace(whole, fingerprint=None)), [1, 2, 3]), atol=0.1)
    code, _, err = command(file, "sft", "--to", tmp_path / "adapters", "--adapters")
    assert code == EXIT_INVALID
    assert "stage 'sft' has no adapter; leave --adapters out" in err


def test_virtual_tokens_are_no_weights(file: Path, tmp_path: Path, command: Command) -> None:
    make(file, "virtual", tuned(4, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)))
    to = tmp_path / "model"
    code, out, err = command(file, "virtual", "--to", to)
    assert (code, out) == (EXIT_INVALID, "")
    assert "stage 'virtual' has trained virtual tokens" in err
    assert "add --adapters" in err
    assert not to.exists()
    assert command(file, "virtual", "--to", to, "--adapters")[0] == 0
    assert PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(to), to / "adapters" / "virtual"
    ).active_peft_config


def test_a_reward_model_is_a_classifier_of_one_number(file: Path, tmp_path: Path, command: Command) -> None:
    reference = make(file, "judge", judge)
    to = tmp_path / "model"
    code, _, err = command(file, "judge", "--to", to, "--dtype", "float32")
    assert code == 0, err
    chats = [[*CHAT, {"role": "assistant", "content": text}] for text in ("b m q", "m", "no, the letters are q q q")]
    ours = RewardModel.load(reference)
    tokenizer = load_tokenizer(reference)
    raw = rewards_of(ours.model, [encode_chat(tokenizer, chat, 128, "last") for chat in chats], 4096)
    plain, tokenizer = AutoModelForSequenceClassification.from_pretrained(to), AutoTokenizer.from_pretrained(to)
    assert tokenizer.pad_token != "<|end|>", "which ends answers, and where the reward is read"
    with torch.no_grad():
        batch = tokenizer.apply_chat_template(chats, padding=True, return_dict=True, return_tensors="pt")
        found = plain.eval()(**batch).logits[:, 0]
        alone = [
            plain(**tokenizer.apply_chat_template([c], return_dict=True, return_tensors="pt")).logits[0, 0] for c in chats
        ]
    torch.testing.assert_close(found, torch.tensor(raw), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.stack(alone), torch.tensor(raw), atol=1e-5, rtol=1e-5)
    normalised = [(float(value) - 0.25) / 1.5 for value in found]
    assert normalised == pytest.approx(ours.score(chats), abs=1e-5)
    card = (to / "README.md").read_text()
    assert "normalised = (reward - 0.25) / 1.5" in card
    assert "`<|user|>`" in card
    code, _, err = command(file, "judge", "--to", tmp_path / "other", "--adapters")
    assert code == EXIT_INVALID
    assert "reward model, whose head is no part of an adapter" in err


def test_a_remote_workspace_and_damage_in_it(file: Path, tmp_path: Path, command: Command) -> None:
    remote = "memory://export-test"
    reference = make(file, "sft", tuned(0), remote)
    code, _, err = command(file, "sft", "--to", tmp_path / "model", "--workspace", remote, "--dtype", "float32")
    assert code == 0, err
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(logits(plain, [1, 2]), logits(load_merged(reference), [1, 2]))
    shutil.rmtree(tmp_path / "cache")
    artifact = reference.artifact()
    assert isinstance(artifact, Artifact)
    filesystem = Workspace(remote).filesystem
    filesystem.pipe_file(f"{artifact.uri.removeprefix('memory:/')}/adapter/adapter_model.safetensors", b"damaged")
    code, _, err = command(file, "sft", "--to", tmp_path / "again", "--workspace", remote)
    assert code == EXIT_RETRYABLE
    assert "adapter_model.safetensors does not have the checksum" in err
    assert not (tmp_path / "again").exists()


def test_what_cannot_be_exported_is_one_sentence(file: Path, tmp_path: Path, command: Command) -> None:
    to = tmp_path / "model"
    full, taken = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "x").write_text("mine")
    taken.write_text("mine")
    cases = [
        ((file, "frobnicate", "--to", to), EXIT_INVALID, "has no stage 'frobnicate'; stages: data, sft"),
        ((file, "data", "--to", to), EXIT_INVALID, "stage 'data' makes a Dataset, and only models are exported"),
        ((file, "sft", "--to", to), EXIT_RETRYABLE, "stage 'sft' is not done in"),
        ((file, "sft", "longer", "--to", to), EXIT_INVALID, "one model goes into a folder"),
        ((file, "sft", "sft", "--to", to, "--adapters"), EXIT_INVALID, "stage 'sft' is named twice"),
        ((file, "sft", "--to", "s3://bucket/model"), EXIT_INVALID, "--to 's3://bucket/model': give a local folder"),
        ((file, "sft", "--to", full), EXIT_INVALID, f"--to {full}: is not empty"),
        ((file, "sft", "--to", taken), EXIT_INVALID, f"--to {taken}: is a file"),
        ((file, "sft", "--to", taken / "below"), EXIT_INVALID, "cannot be written to"),
    ]
    make(file, "longer", tuned(1, like=None))
    for arguments, code, words in cases:
        if words == "cannot be written to":
            make(file, "sft", tuned(0))
        found, out, err = command(*arguments)
        assert (found, out) == (code, ""), err
        assert words in err
        assert err.count("\n") == 1, err
    assert (full / "x").read_text() == taken.read_text() == "mine"
    assert not to.exists()


def test_an_export_that_fails_or_is_killed_leaves_nothing_half(
    file: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(file, "sft", tuned(0))
    to = tmp_path / "out" / "model"

    def full_disk(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    with monkeypatch.context() as patch:
        patch.setattr(export, "model_card", full_disk)
        code, _, err = command(file, "sft", "--to", to)
    assert code == EXIT_RETRYABLE
    assert "no space left on the device" in err
    assert list(to.parent.iterdir()) == []
    left = to.parent / ".model.export-killed"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    with export.appearing(to) as other:  # one that is at work
        assert not left.exists()
        to.mkdir()
        assert command(file, "sft", "--to", to)[0] == 0, "an empty folder will do"
        assert other.exists()
        shutil.rmtree(to)
    assert [path.name for path in to.parent.iterdir()] == ["model"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MiB; the model has 3.5."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "plumbline-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs root and the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_too_small(file: Path, small_disk: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    make(file, "sft", tuned(0))
    code, _, err = command(file, "sft", "--to", small_disk / "model")
    assert code == EXIT_RETRYABLE
    assert "the weights take 0.00355 GB, and" in err
    assert list(small_disk.iterdir()) == []
    real = shutil.disk_usage
    monkeypatch.setattr(export.shutil, "disk_usage", lambda path: real(path)._replace(free=10**12))  # such as a quota
    code, _, err = command(file, "sft", "--to", small_disk / "model")
    assert code == EXIT_RETRYABLE
    assert "no space left on the device" in err
    assert list(small_disk.iterdir()) == []
