"""Inputs from outside: which files are meant, when their content is another, and what is refused before anything starts."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from plumbline.api.stages.curate import CurateSpec
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.external import SKILLS, TINY, check_model, expand, identity, model_identity, pinned, tiny_folder
from plumbline.models.load import base_folder


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """a.jsonl, b.json, deep/c.jsonl and what nobody means."""
    for name in ("b.json", "a.jsonl", "deep/c.jsonl", ".hidden", ".git/config", "deep/.x/y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("a.jsonl", ["a.jsonl"]),
        ("", ["a.jsonl", "b.json", "deep/c.jsonl"]),
        ("*.json*", ["a.jsonl", "b.json"]),
        ("**/*.jsonl", ["a.jsonl", "deep/c.jsonl"]),
        ("[b].json", ["b.json"]),
        ("de*", None),
        ("none*", None),
        ("none", None),
        ("a.jsonl/x", None),
    ],
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_files_behind_a_uri(files: Path, uri: str, found: list[str] | None, scheme: str) -> None:
    where = f"{scheme}{files}/{uri}".rstrip("/")
    if found is not None:
        assert expand(where) == [f"{files}/{name}" for name in found]
        return
    with pytest.raises(InvalidInput) as error:
        expand(where, "spec.x")
    assert str(error.value) == f"spec.x: no file matches '{files}/{uri}'; give an existing file, folder or glob"


def test_a_file_whose_name_holds_glob_characters_is_meant_itself(tmp_path: Path) -> None:
    for name in ("data[1].json", "data1.json"):
        (tmp_path / name).write_text("{}")
    assert expand(str(tmp_path / "data[1].json")) == [str(tmp_path / "data[1].json")]


def test_remote_files_keep_their_scheme() -> None:
    bucket = uuid.uuid4().hex
    with fsspec.open(f"memory://{bucket}/x/a.json", "w") as stream:
        stream.write("{}")
    assert expand(f"memory://{bucket}/x") == [f"memory:///{bucket}/x/a.json"]
    before = identity(f"memory://{bucket}/x")
    assert identity(f"memory://{bucket}/x") == before
    with fsspec.open(f"memory://{bucket}/x/a.json", "w") as stream:
        stream.write("{ }")
    assert identity(f"memory://{bucket}/x") != before


def test_files_of_an_archive_keep_the_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.json", "{}")
        archive.writestr("b.json", "{}")
    assert expand(f"zip://*.json::{tmp_path}/x.zip") == [f"zip://{name}.json::{tmp_path}/x.zip" for name in "ab"]
    with fsspec.open(expand(f"zip://a.json::{tmp_path}/x.zip")[0]) as stream:
        assert stream.read() == b"{}"


def test_a_relative_path_lies_below_the_current_folder(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    assert expand("b.json") == [str(files / "b.json")]


def _grow(folder: Path) -> None:
    (folder / "a.jsonl").write_text("{}{}")


def _touch(folder: Path) -> None:
    stamp = (folder / "a.jsonl").stat().st_mtime
    os.utime(folder / "a.jsonl", (stamp + 1, stamp + 1))


def _rename(folder: Path) -> None:
    (folder / "a.jsonl").rename(folder / "0.jsonl")


def _remove(folder: Path) -> None:
    (folder / "b.json").unlink()


@pytest.mark.parametrize("change", [_grow, _touch, _rename, _remove])
def test_another_content_is_another_identity(files: Path, change: Callable[[Path], None]) -> None:
    before = identity(str(files))
    assert identity(str(files)) == before
    change(files)
    assert identity(str(files)) != before


def test_hidden_files_and_the_folder_itself_do_not_count(files: Path, tmp_path: Path) -> None:
    before = identity(str(files))
    (files / ".hidden").write_text("other")
    assert identity(str(files)) == before


def test_built_in_things_have_the_identity_of_their_version() -> None:
    assert identity(SKILLS) == "skills:1"
    assert model_identity(TINY).startswith("sha256:")
    assert model_identity(TINY) == model_identity(TINY)
    expected = r"^where: '{}' is not built in; there are builtin://tiny \(a model\) and builtin://skills \(data\)$"
    with pytest.raises(InvalidInput, match=expected.format("builtin://none")):
        identity("builtin://none", "where")
    with pytest.raises(InvalidInput, match=expected.format(TINY)):
        identity(TINY, "where")
    with pytest.raises(InvalidInput, match=expected.format(SKILLS)):
        model_identity(SKILLS, where="where")


def test_unknown_schemes_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"^where: 'nosuch://x/y' cannot be opened: Protocol not known: nosuch$"):
        expand("nosuch://x/y", "where")


MODEL_FILES = ("config.json", "model.safetensors")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The smallest folder that passes as a model."""
    folder = tmp_path / "model [v1]"
    folder.mkdir()
    for name in MODEL_FILES:
        (folder / name).write_bytes((tiny_folder() / name).read_bytes())
    return folder


def _replace(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def _cut(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1])


def _other_format(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _all(folder: Path) -> None:
    for name in MODEL_FILES:
        (folder / name).unlink()
    folder.rmdir()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
INDEX = "model.safetensors.index.json"
BROKEN_MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing there": (_all, "is no folder"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "broken config": (_replace("config.json", b"{'a'"), "has a config.json that is not JSON"),
    "config of another kind": (_replace("config.json", b"[]"), "has a config.json without model_type"),
    "config without type": (_replace("config.json", b"{}"), "has a config.json without model_type"),
    "no safetensors": (_other_format, "has no .*safetensors weights"),
    "cut off": (_cut, "has a model.safetensors that is cut off"),
    "empty": (_replace("model.safetensors", b""), "has a model.safetensors that is cut off"),
    "LFS pointer": (_replace("model.safetensors", LFS), "has a model.safetensors that is .*Git LFS pointer"),
    "no header": (_replace("model.safetensors", b"\2\0\0\0\0\0\0\0[]"), "has a model.safetensors that is cut off"),
    "lost shard": (
        _replace(INDEX, json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}).encode()),
        f"lacks model-2.safetensors, which its {INDEX} lists",
    ),
    "broken index": (_replace(INDEX, b"[]"), f"has an {INDEX} that cannot be read"),
}


@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
@pytest.mark.parametrize("name", BROKEN_MODELS)
def test_what_is_no_model_is_refused(model: Path, name: str, remote: bool) -> None:
    change, words = BROKEN_MODELS[name]
    change(model)
    uri = str(model)
    if remote:
        uri = f"memory://{uuid.uuid4().hex}/model"
        if model.is_dir():
            filesystem, path = fsspec.core.url_to_fs(uri)
            for file in model.iterdir():
                filesystem.pipe_file(f"{path}/{file.name}", file.read_bytes())
    expected = rf"^spec.model.base: '{uri}' ".replace("[", r"\[").replace("]", r"\]") + words
    with pytest.raises(InvalidInput, match=rf"{expected}.*; give a folder in Hugging Face form, hf://ORG/NAME or {TINY}$"):
        model_identity(uri)


def test_a_whole_model_passes_and_is_told_from_its_next_version(model: Path) -> None:
    check_model(str(model))
    check_model(f"file://{model}")
    before = model_identity(str(model))
    (model / "tokenizer.json").write_text("{}")
    assert model_identity(str(model)) != before


# The hub is asked in a process of its own: its client reads HF_ENDPOINT once.
ASK = """
import sys
from plumbline.errors import PlumblineError
from plumbline.external import model_identity
try:
    print(model_identity(sys.argv[1], sys.argv[2] or None))
except PlumblineError as error:
    print(error.exit_code, error)
"""


def ask_hub(endpoint: str, name: str = "hf://org/name", revision: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-c", ASK, name, revision],
        env=os.environ | {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "none"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.count("\n") == 1, "one sentence in one line"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    """A local server that answers as the hub does: https://huggingface.co/docs/hub/api."""

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, _, revision = self.path.removeprefix("/api/models/").partition("/revision/")
            code, word = {"org/gone": (404, "RepoNotFound"), "org/gated": (403, "GatedRepo"), "org/busy": (503, "")}.get(
                name, (404, "RevisionNotFound") if revision else (200, "")
            )
            body = json.dumps({"id": name, "sha": "5" * 40} if code == 200 else {"error": "no"}).encode()
            self.send_response(code)
            if word:
                self.send_header("X-Error-Code", word)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "revision", "answer"),
    [
        ("hf://org/name", "", "commit:" + "5" * 40),
        ("hf://org/gone", "", "2 spec.model.base: the hub has no model 'org/gone' at revision 'main', or none that"),
        ("hf://org/name", "v9", "2 spec.model.base: the hub has no model 'org/name' at revision 'v9'"),
        ("hf://org/gated", "", "2 spec.model.base: the hub gives 'org/gated' only with a token"),
        ("hf://org/busy", "", "1 spec.model.base: the hub cannot be reached to resolve 'org/busy'"),
    ],
)
def test_what_the_hub_answers(hub: str, name: str, revision: str, answer: str) -> None:
    assert ask_hub(hub, name, revision).startswith(answer)


def test_without_the_hub_a_full_commit_still_resolves_and_a_branch_is_one_sentence() -> None:
    assert ask_hub("http://127.0.0.1:9", revision="a" * 40) == "commit:" + "a" * 40
    words = ask_hub("http://127.0.0.1:9", revision="main")
    assert words.startswith("1 spec.model.base: the hub cannot be reached to resolve 'org/name'")
    assert words.endswith("pin `revision` to a full commit to run without it")


@pytest.mark.parametrize("name", ["hf://", "hf://a/b/c", "hf://datasets/a/b"])
def test_what_is_no_name_of_a_model_is_refused_without_the_hub(name: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^spec.model.base: '{name}' is no name of a model; write hf://ORG/NAME$"):
        model_identity(name)


def test_a_place_that_cannot_be_reached_is_worth_another_attempt() -> None:
    with pytest.raises(PlumblineError, match=r"^where: 'sftp://127.0.0.1:9/x' cannot be (reached|opened)"):
        expand("sftp://127.0.0.1:9/x", "where")


def test_models_of_a_stage_are_read_at_the_planned_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    semantic = {"model": "hf://org/embedder", "similarity": 0.9}
    spec = CurateSpec.model_validate(
        {"sources": [{"uri": "hf://datasets/org/set"}], "deduplicate": {"semantic": semantic}}, by_name=False, by_alias=True
    )
    found = pinned(spec, {"hf://org/embedder": "commit:abc", "hf://datasets/org/set": "commit:def"})
    assert found.deduplicate.semantic is not None
    assert found.deduplicate.semantic.model == "hf://org/embedder@abc"
    assert found.sources == spec.sources  # those are read at their commit by other means
    assert pinned(spec, {}) is spec

    asked = []

    def snapshot(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    base_folder("hf://org/embedder@abc")
    base_folder("hf://org/embedder", "xyz")
    assert asked == [("org/embedder", "abc"), ("org/embedder", "xyz")]
