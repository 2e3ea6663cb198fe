"""Data sets of the hub: which commit a name means, which files hold a split. The hub is played by a folder, once by a server."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import RepositoryNotFoundError

from plumbline import hub
from plumbline.api.stages.curate import SourceSpec
from plumbline.data.sources import find_parts, read_part
from plumbline.errors import InvalidInput, PlumblineError
from plumbline.external import identity

SHA = "0123456789abcdef0123456789abcdef01234567"
Put = Callable[..., None]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Put]:
    """Puts files into the data set `org/name` at the commit `SHA`."""

    class Folder(DirFileSystem):  # type: ignore[misc]
        protocol = "hf"
        cachable = False

        def __init__(self, **_: Any) -> None:
            super().__init__(path=str(tmp_path), fs=LocalFileSystem())

    fsspec.register_implementation("hf", Folder, clobber=True)
    monkeypatch.setattr(HfApi, "dataset_info", lambda self, name, revision, timeout: SimpleNamespace(sha=SHA))

    def write(*names: str, **texts: str) -> None:
        for name in (*names, *texts):
            path = tmp_path / f"datasets/org/name@{SHA}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(texts.get(name, json.dumps({"instruction": name, "output": "a"})))

    yield write
    fsspec.register_implementation("hf", HfFileSystem, clobber=True)


def files(uri: str = "hf://datasets/org/name", split: str = "train") -> list[str]:
    _, parts = find_parts([SourceSpec(uri=uri, split=split)], None, 0, ["spec.sources[0]"])
    found = [file for part in parts for file in part.files]  # type: ignore[union-attr]
    prefix = f"hf://datasets/org/name@{SHA}/"
    assert all(file.path.startswith(prefix) for file in found)
    return [file.path.removeprefix(prefix) for file in found]


SHARDS = ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet")


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (SHARDS, "train", SHARDS[:2]),
        (SHARDS, "test", SHARDS[2:]),
        (
            ("data/train_sft-00000-of-00001.parquet", "data/train_gen-00000-of-00001.parquet"),
            "train_sft",
            ["data/train_sft-00000-of-00001.parquet"],
        ),
        (("train.jsonl", "test.jsonl", "validation.json"), "train", ["train.jsonl"]),
        (("train/a.jsonl.gz", "train/b.csv", "test/a.jsonl.gz"), "train", ["train/a.jsonl.gz", "train/b.csv"]),
        (("name_train_v2.json", "trainer_state.txt", "name_test_v2.json"), "train", ["name_train_v2.json"]),
        (
            ("alpaca_data.json", "README.md", "dataset_infos.json", ".gitattributes", "load.py"),
            "train",
            ["alpaca_data.json"],
        ),
    ],
)
def test_files_of_a_split_by_their_names(put: Put, names: tuple[str, ...], split: str, expected: list[str]) -> None:
    put(*names)
    assert files(split=split) == list(expected)


def readme(*configs: str) -> dict[str, str]:
    return {"README.md": "---\nlicense: mit\nconfigs:\n" + "".join(configs) + "---\n# Name\n"}


DEFAULT = """- config_name: default
  data_files:
  - split: train
    path: all/part-*.jsonl
  - split: test
    path: [all/last.jsonl]
"""
OTHER = """- config_name: other
  data_files: other/*.jsonl
"""


def test_files_of_a_split_by_the_readme(put: Put) -> None:
    put("all/part-1.jsonl", "all/part-2.jsonl", "all/last.jsonl", "other/train.jsonl", **readme(DEFAULT, OTHER))
    assert files() == ["all/part-1.jsonl", "all/part-2.jsonl"]
    assert files(split="test") == ["all/last.jsonl"]
    assert files("hf://datasets/org/name/other") == ["other/train.jsonl"]
    with pytest.raises(InvalidInput, match="has no split 'validation'; its splits: train, test"):
        files(split="validation")


def test_several_configurations_must_be_chosen_from(put: Put) -> None:
    put("other/train.jsonl", **readme(OTHER, OTHER.replace("other", "more")))
    with pytest.raises(InvalidInput, match=r"several configurations \(other, more\); add the path of one to the URI"):
        files()


def test_a_readme_that_is_broken_or_says_nothing_does_not_matter(put: Put) -> None:
    for text in ("---\nconfigs: [\n---\n", "---\nconfigs: 3\n---\n", "no front matter", "---\nconfigs:\n- a\n---\n"):
        put("train.jsonl", **{"README.md": text})
        assert files() == ["train.jsonl"]


def test_a_path_means_just_that(put: Put) -> None:
    put("train.jsonl", "x/test-1.jsonl", "x/test-2.jsonl", "x/odd.bin")
    assert files("hf://datasets/org/name/x/odd.bin") == ["x/odd.bin"]
    assert files("hf://datasets/org/name/x/*.jsonl") == ["x/test-1.jsonl", "x/test-2.jsonl"]


def test_what_cannot_be_found_is_said(put: Put) -> None:
    put("test.jsonl", "validation.jsonl")
    with pytest.raises(InvalidInput, match=r"spec\.sources\[0\]\.uri: .*no file has the split 'train' .* validation, test"):
        files()
    with pytest.raises(InvalidInput, match="the split 'other'"):
        files(split="other")
    with pytest.raises(InvalidInput, match=r"has no data file .* not run"):
        files("hf://datasets/org/name/*.parquet")


@pytest.mark.parametrize("uri", ["hf://org/name", "hf://datasets/name", "hf://datasets//name", "hf://datasets/"])
def test_other_spellings_are_refused(uri: str) -> None:
    with pytest.raises(InvalidInput, match=r"is no data set of the hub; write hf://datasets/ORG/NAME"):
        find_parts([SourceSpec(uri=uri)], None, 0, ["spec.sources[0]"])
    with pytest.raises(InvalidInput, match="is no data set of the hub"):
        identity(uri)


def test_rows_are_read_at_the_planned_commit(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    put("train.jsonl")
    uri = "hf://datasets/org/name"
    assert identity(uri) == f"commit:{SHA}"
    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha="f" * 40))  # the branch has moved on
    origins, parts = find_parts([SourceSpec(uri=uri)], None, 0, ["spec.sources[0]"], {uri: f"commit:{SHA}"})
    (outcome,) = (outcome for part in parts for outcome in read_part(part, "messages"))
    assert outcome.row is not None
    assert outcome.row.prompts == ["train.jsonl"]
    assert (origins[0].name, origins[0].uri) == ("name", uri)


def test_a_full_commit_needs_no_hub(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> Any:
        raise ConnectionError("offline")

    put("train.jsonl")
    monkeypatch.setattr(HfApi, "dataset_info", offline)
    assert identity(f"hf://datasets/org/name@{SHA}") == f"commit:{SHA}"
    assert files(f"hf://datasets/org/name@{SHA}") == ["train.jsonl"]
    with pytest.raises(PlumblineError, match=r"cannot be reached .*write hf://datasets/org/name@COMMIT") as caught:
        identity("hf://datasets/org/name")
    assert not isinstance(caught.value, InvalidInput)


def test_a_data_set_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    monkeypatch.setattr(HfApi, "dataset_info", missing)
    with pytest.raises(InvalidInput, match=r"the hub has no dataset 'org/none' at revision 'v1'"):
        identity("hf://datasets/org/none@v1")


def test_revisions_with_a_slash() -> None:
    named = hub.dataset("hf://datasets/org/name@refs%2Fpr%2F1/data", "")
    assert (named.name, named.revision, named.path) == ("org/name", "refs/pr/1", "data")
    assert named.root == "datasets/org/name@refs%2Fpr%2F1"


class Hub(http.server.BaseHTTPRequestHandler):
    """The hub's own answers about one data set, for its real client."""

    protocol_version = "HTTP/1.1"
    files: ClassVar[dict[str, bytes]] = {}
    below = f"/api/datasets/org/name/tree/{SHA}"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith(self.below):
            self._answer(json.dumps(self._tree(path.removeprefix(self.below).strip("/"))).encode())
        elif path.startswith("/api/datasets/org/name"):
            self._answer(json.dumps({"id": "org/name", "sha": SHA}).encode())
        elif path.startswith(f"/datasets/org/name/resolve/{SHA}/"):
            data = self.files[path.removeprefix(f"/datasets/org/name/resolve/{SHA}/")]
            first, _, last = self.headers.get("Range", f"bytes=0-{len(data) - 1}").removeprefix("bytes=").partition("-")
            self._answer(data[int(first) : int(last) + 1], 206)
        else:
            self._answer(b"", 404)

    def _tree(self, folder: str) -> list[dict[str, Any]]:
        if "recursive=true" in self.path:
            return [self._entry(name) for name in self.files]
        inside = [name for name in self.files if name.rpartition("/")[0] == folder]
        folders = {name.rpartition("/")[0] for name in self.files if "/" in name and not folder}
        return [
            *({"type": "directory", "oid": "1" * 40, "path": name} for name in sorted(folders)),
            *map(self._entry, inside),
        ]

    def _entry(self, name: str) -> dict[str, Any]:
        return {
            "type": "file",
            "oid": hashlib.sha1(self.files[name]).hexdigest(),
            "size": len(self.files[name]),
            "path": name,
        }

    def _answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def test_the_real_client_against_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"instruction": f"Say {i}.", "output": "x"} for i in range(30)]
    table = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records[:20]), table)
    lines = "".join(json.dumps(record) + "\n" for record in records[20:]).encode()
    monkeypatch.setattr(
        Hub,
        "files",
        {
            "README.md": b"---\nlicense: mit\n---\n# Data",
            "data/test-00000-of-00001.parquet": b"never read",
            "data/train-00000-of-00002.parquet": table.getvalue().to_pybytes(),
            "data/train-00001-of-00002.jsonl.gz": gzip.compress(lines),
        },
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    HfFileSystem.clear_instance_cache()
    try:
        for uri in ("hf://datasets/org/name", "hf://datasets/org/name@v1/data/train*", "hf://datasets/org/name/data"):
            assert identity(uri) == f"commit:{SHA}"
            _, parts = find_parts([SourceSpec(uri=uri)], None, 0, ["spec.sources[0]"])
            rows = [outcome.row for part in parts for outcome in read_part(part, "messages")]
            assert [row and row.prompts for row in rows] == [[record["instruction"]] for record in records]
        with pytest.raises(InvalidInput, match="the hub has no dataset 'org/none'"):
            identity("hf://datasets/org/none")
    finally:
        HfFileSystem.clear_instance_cache()
        server.shutdown()
        server.server_close()
