"""Loading models: whole ones only, without their code, and adapters that merge to the same numbers."""

from __future__ import annotations

import ast
import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import plumbline
from plumbline.api.base import ArtifactType
from plumbline.api.run import AlignmentRun
from plumbline.artifacts import Artifact
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.external import TINY, tiny_folder
from plumbline.models.load import base_folder, load_base, load_merged, load_tokenizer, torch_dtype
from plumbline.models.reference import ModelReference
from plumbline.plan import Plan, make_plan

FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the built-in model, to be broken."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in FILES:
        shutil.copyfile(tiny_folder() / name, folder / name)
    return folder


def edit(folder: Path, name: str, **values: object) -> None:
    """Set fields of a JSON file; None removes one."""
    content = json.loads((folder / name).read_text()) | values
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_the_built_in_model_answers() -> None:
    tokenizer, model = load_tokenizer(ModelReference(TINY)), load_base(ModelReference(TINY, dtype="float32"))
    text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|assistant|>")
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(ids).logits
    assert logits.shape == (1, ids.shape[1], len(tokenizer))
    assert logits.isfinite().all()
    assert not model.training
    assert tokenizer.pad_token_id is not None


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_weights_have_the_type_that_was_asked_for(name: str) -> None:
    assert load_base(ModelReference(TINY, dtype=name)).dtype == torch_dtype(name)


Break = Callable[[Path], object]
TOKENIZERS: dict[str, tuple[Break, str]] = {
    "none": (lambda f: [(f / n).unlink() for n in FILES if n.startswith("tokenizer")], "has no tokenizer that can be read"),
    "broken": (lambda f: (f / "tokenizer.json").write_text('{"a":'), "has no tokenizer that can be read"),
    "of another shape": (lambda f: (f / "tokenizer.json").write_text('{"a": 1}'), "has no tokenizer that can be read"),
    "no template": (lambda f: (f / "chat_template.jinja").unlink(), "has no chat template; add chat_template.jinja"),
    "broken template": (lambda f: (f / "chat_template.jinja").write_text("{% if"), "has a chat template that does not work"),
    "template that refuses": (
        lambda f: (f / "chat_template.jinja").write_text("{{ raise_exception('never') }}"),
        "has a chat template that does not work: never",
    ),
    "no end": (lambda f: edit(f, "tokenizer_config.json", eos_token=None), "has no end-of-text token"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_does_not_do_is_one_sentence(model: Path, name: str) -> None:
    change, words = TOKENIZERS[name]
    change(model)
    with pytest.raises(InvalidInput, match=rf"^spec.model.base: '{model}' {words}") as error:
        load_tokenizer(ModelReference(str(model)))
    assert "\n" not in str(error.value)


def test_without_a_padding_token_the_end_of_text_pads(model: Path) -> None:
    edit(model, "tokenizer_config.json", pad_token=None)
    tokenizer = load_tokenizer(ModelReference(str(model)))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def _remote_code(folder: Path) -> None:
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Config: ...\nclass Tokenizer: ...\n")
    edit(folder, "config.json", model_type="own", auto_map={"AutoConfig": "code.Config"})
    edit(
        folder,
        "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": ["code.Tokenizer", None]},
    )


WEIGHTS: dict[str, tuple[Break, str]] = {
    "a layer more": (
        lambda f: edit(f, "config.json", num_hidden_layers=5),
        r"the weights of '.*' do not fit its config.json: model.layers.4.input_layernorm.weight is missing \(9 such\)",
    ),
    "another width": (
        lambda f: edit(f, "config.json", hidden_size=96),
        r"the weights of '.*' do not fit its config.json: lm_head.weight has another shape",
    ),
    "unknown type": (lambda f: edit(f, "config.json", model_type="nosuch"), r"'.*' cannot be loaded: .*`nosuch`"),
    "wrong value": (
        lambda f: edit(f, "config.json", hidden_size="x"),
        r"'.*' cannot be loaded: .*'hidden_size' expected int",
    ),
    "impossible value": (
        lambda f: edit(f, "config.json", num_attention_heads=5),
        r"'.*' cannot be loaded: .*not a multiple",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "'.*' has no .*safetensors weights"),
    "code": (_remote_code, r"'.*' cannot be loaded: .*custom code"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_model_that_does_not_load_is_one_sentence(model: Path, name: str) -> None:
    change, words = WEIGHTS[name]
    change(model)
    with pytest.raises(InvalidInput, match=rf"^spec.model.base: {words}") as error:
        load_base(ModelReference(str(model)))
    assert "\n" not in str(error.value)


def test_code_of_a_model_never_runs(model: Path) -> None:
    _remote_code(model)
    for load in (load_base, load_tokenizer):
        with pytest.raises(InvalidInput):
            load(ModelReference(str(model)))
    assert not (model / "ran").exists()


def test_no_call_trusts_remote_code() -> None:
    found = []
    for path in Path(str(plumbline.__file__)).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                found.append((path.name, ast.unparse(node.value)))
    assert {value for _, value in found} == {"False"}
    assert ("load.py", "False") in found


def test_a_remote_model_is_fetched_once_and_again_when_it_changes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    uri = f"memory://{uuid.uuid4().hex}/model"
    filesystem, path = fsspec.core.url_to_fs(uri)
    for file in (*model.iterdir(),):
        filesystem.pipe_file(f"{path}/{file.name}", file.read_bytes())
    filesystem.pipe_file(f"{path}/pytorch_model.bin", b"pickle")
    folder = base_folder(uri)
    assert {file.name for file in folder.iterdir()} == set(FILES)
    assert folder.is_relative_to(tmp_path / "cache")
    assert base_folder(uri) == folder
    assert base_folder(uri, weights=False) == folder, "what is there with its weights will do"
    assert load_tokenizer(ModelReference(uri)).chat_template
    filesystem.pipe_file(f"{path}/generation_config.json", b"{} ")
    assert base_folder(uri) != folder


def test_a_tokenizer_needs_no_weights(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    uri = f"memory://{uuid.uuid4().hex}/model"
    filesystem, path = fsspec.core.url_to_fs(uri)
    for file in model.iterdir():
        filesystem.pipe_file(f"{path}/{file.name}", file.read_bytes())
    assert load_tokenizer(ModelReference(uri)).chat_template
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert load_base(ModelReference(uri)).num_parameters() > 0


@pytest.fixture
def tuned(tmp_path: Path) -> tuple[Plan, Artifact]:
    """A Model artifact: a random adapter on the built-in model, with a tokenizer of its own."""
    value = {
        "apiVersion": "plumbline.dev/v1alpha1",
        "kind": "AlignmentRun",
        "metadata": {"name": "models"},
        "spec": {
            "model": {"base": TINY, "dtype": "float32"},
            "workspace": {"uri": str(tmp_path / "workspace")},
            "stages": [{"name": "data", "curate": {"sources": [{"uri": "builtin://skills"}]}}, {"name": "sft", "sft": {}}],
        },
    }
    plan = make_plan(AlignmentRun.model_validate(value, by_name=False, by_alias=True))
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(load_base(ModelReference(TINY, dtype="float32")), config)
    tokenizer = load_tokenizer(ModelReference(TINY))
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    fingerprint = plan.fingerprints["sft"]
    plan.workspace.acquire(fingerprint, "test")
    with plan.workspace.create(
        kind="sft", fingerprint=fingerprint, stage="sft", type=ArtifactType.MODEL, inputs={}, holder="test"
    ) as writer:
        adapted.save_pretrained(writer.folder / "adapter")
        tokenizer.save_pretrained(writer.folder / "tokenizer")
    artifact = plan.artifact("sft")
    assert artifact is not None
    return plan, artifact


def test_merged_and_unmerged_give_the_same_logits(tuned: tuple[Plan, Artifact]) -> None:
    plan, artifact = tuned
    reference = ModelReference.of(plan, artifact)
    folder = reference.adapter_folder()
    assert folder is not None
    assert [path.name for path in folder.glob("adapter_model.*")] == ["adapter_model.safetensors"]
    ids = torch.arange(40).reshape(2, 20)
    bare = load_base(reference)
    with torch.no_grad():
        before = bare(ids).logits
        unmerged = PeftModel.from_pretrained(bare, folder).eval()(ids).logits
        merged = load_merged(reference)
        after = merged(ids).logits
    assert not isinstance(merged, PeftModel)
    torch.testing.assert_close(after, unmerged, atol=1e-4, rtol=1e-4)
    assert (after - before).abs().max() > 0.1, "this adapter changes the model"


def test_the_type_of_the_base_stays_after_merging(tuned: tuple[Plan, Artifact]) -> None:
    plan, artifact = tuned
    merged = load_merged(ModelReference(TINY, None, "bfloat16", plan.workspace_uri, "sft", artifact.fingerprint))
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    assert not merged.training


def test_the_bare_base_has_no_adapter(tuned: tuple[Plan, Artifact]) -> None:
    plan, _ = tuned
    reference = ModelReference.of(plan, None)
    assert (reference.adapter_folder(), reference.tokenizer_folder(), reference.artifact()) == (None, None, None)
    assert type(load_merged(reference)) is type(load_base(reference))


def test_the_tokenizer_is_the_one_that_was_trained_with(tuned: tuple[Plan, Artifact]) -> None:
    plan, artifact = tuned
    assert load_tokenizer(ModelReference.of(plan, artifact)).chat_template == "{{ messages[0]['content'] }}"
    assert load_tokenizer(ModelReference.of(plan, None)).chat_template != "{{ messages[0]['content'] }}"


def test_a_model_that_was_deleted_meanwhile_is_named(tuned: tuple[Plan, Artifact]) -> None:
    plan, artifact = tuned
    reference = ModelReference.of(plan, artifact)
    shutil.rmtree(artifact.uri)
    with pytest.raises(PlumblineError, match=rf"the model sft/{artifact.fingerprint} is gone from .*; run its stage again"):
        load_merged(reference)
