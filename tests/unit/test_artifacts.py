"""The workspace: a manifest exists exactly when its artifact is whole, whatever happens in between."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from plumbline.api.base import ArtifactType
from plumbline.artifacts import MANIFEST, Artifact, ArtifactCorrupt, ArtifactWriter, Fenced, Workspace, absolute_uri
from plumbline.errors import EXIT_RETRYABLE, InvalidInput, sentence

PRINT = "0123456789abcdef0123"
ABOUT: dict[str, Any] = {"kind": "curate", "fingerprint": PRINT, "stage": "data", "type": ArtifactType.DATASET, "inputs": {}}


@pytest.fixture(params=["local", "memory"])
def workspace(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """An empty workspace; `memory` is remote, as far as the code can tell."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "local":
        yield Workspace(str(tmp_path / "workspace"))
        return
    found = Workspace(f"memory://{uuid.uuid4().hex}/workspace")
    yield found
    if found.filesystem.exists(found.root):
        found.filesystem.rm(found.root, recursive=True)


def attempt(workspace: Workspace, work: Callable[[ArtifactWriter], object], holder: str = "me", **about: Any) -> None:
    """Make the artifact by `work`; the lease is the caller's affair."""
    with workspace.create(**(ABOUT | about), holder=holder) as writer:
        work(writer)


def make(workspace: Workspace, files: dict[str, bytes], holder: str = "me", **about: Any) -> Artifact:
    def work(writer: ArtifactWriter) -> None:
        for name, content in files.items():
            (writer.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (writer.folder / name).write_bytes(content)
        writer.metrics["rows"] = 2
        writer.details["columns"] = ["messages"]

    workspace.acquire(PRINT, holder)
    attempt(workspace, work, holder, **about)
    artifact = workspace.find("curate", PRINT)
    assert artifact is not None
    return artifact


def names(workspace: Workspace) -> set[str]:
    """All files below the workspace, relative to it."""
    return {name[len(workspace.root) :].lstrip("/") for name in workspace.filesystem.find(workspace.root)}


def overwrite(workspace: Workspace, content: bytes, *parts: str) -> None:
    workspace.filesystem.pipe_file(workspace.path(*parts), content)


def test_what_was_written_is_found_with_its_manifest_and_its_files(workspace: Workspace) -> None:
    assert workspace.find("curate", PRINT) is None
    parent = Artifact("elsewhere", {"type": "Dataset", "fingerprint": "p"})
    artifact = make(workspace, {"rows.parquet": b"rows", "deep/card.json": b"{}"}, inputs={"dataset": [parent]})
    assert artifact.type == ArtifactType.DATASET
    assert (artifact.fingerprint, artifact.metrics, artifact.details) == (PRINT, {"rows": 2}, {"columns": ["messages"]})
    assert artifact.manifest["lineage"]["inputs"] == {
        "dataset": [{"uri": "elsewhere", "type": "Dataset", "fingerprint": "p"}]
    }
    assert {name: facts["bytes"] for name, facts in artifact.manifest["files"].items()} == {
        "rows.parquet": 4,
        "deep/card.json": 2,
    }
    folder = artifact.local()
    assert (folder / "rows.parquet").read_bytes() == b"rows"
    assert (folder / "deep" / "card.json").read_bytes() == b"{}"
    assert workspace.find("sft", PRINT) is None


def test_an_error_in_the_block_leaves_nothing_but_the_lease(workspace: Workspace) -> None:
    folders = []

    def work(writer: ArtifactWriter) -> None:
        folders.append(writer.folder)
        (writer.folder / "rows").write_bytes(b"half")
        assert workspace.find("curate", PRINT) is None
        raise ZeroDivisionError

    workspace.acquire(PRINT, "me")
    with pytest.raises(ZeroDivisionError):
        attempt(workspace, work)
    assert workspace.find("curate", PRINT) is None
    assert names(workspace) == {f"leases/{PRINT}.json"}
    assert not folders[0].exists()


KILLED = """
import sys, time
from pathlib import Path
from plumbline.api.base import ArtifactType
from plumbline.artifacts import Workspace
workspace = Workspace(sys.argv[1])
workspace.acquire(sys.argv[2], "first")
with workspace.create(kind="curate", fingerprint=sys.argv[2], stage="data", type=ArtifactType.DATASET, inputs={},
                      holder="first") as writer:
    (writer.folder / "rows").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(600)
"""


def test_a_killed_attempt_leaves_nothing_trusted_and_the_next_clears_it_away(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), PRINT], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert workspace.find("curate", PRINT) is None
    assert any(name.endswith("/rows") for name in names(workspace)), "the kill should have left its half"
    make(workspace, {"all": b"all"}, holder="second")
    assert names(workspace) == {f"leases/{PRINT}.json", *(f"artifacts/curate/{PRINT}/{name}" for name in ("all", MANIFEST))}


def test_an_upload_that_broke_off_is_not_trusted_and_is_replaced() -> None:
    workspace = Workspace(f"memory://{uuid.uuid4().hex}")
    overwrite(workspace, b"half", "artifacts", "curate", PRINT, "shard-7")
    assert workspace.find("curate", PRINT) is None
    make(workspace, {"shard-0": b"all"})
    assert f"artifacts/curate/{PRINT}/shard-7" not in names(workspace)


def test_a_later_attempt_fences_the_earlier(workspace: Workspace) -> None:
    def work(writer: ArtifactWriter) -> None:
        (writer.folder / "rows").write_bytes(b"old")
        workspace.acquire(PRINT, "later", 2)

    workspace.acquire(PRINT, "earlier", 1)
    with pytest.raises(Fenced, match="another attempt has taken over"):
        attempt(workspace, work, "earlier")
    assert workspace.find("curate", PRINT) is None
    with pytest.raises(Fenced, match=r"attempt 1 of .* gives way to attempt 2"):
        workspace.acquire(PRINT, "earlier", 1)


def test_attempts_of_another_run_fence_nobody(workspace: Workspace) -> None:
    """A run that was deleted and applied anew counts its attempts from 1 again."""
    workspace.acquire(PRINT, "before", 4, run="uid-1")
    with pytest.raises(Fenced):
        workspace.acquire(PRINT, "late", 3, run="uid-1")
    assert workspace.acquire(PRINT, "anew", 1, run="uid-2") == 1


def test_the_earlier_attempt_fails_as_fenced_when_the_later_cleared_its_files_away(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path))

    def work(writer: ArtifactWriter) -> None:
        make(workspace, {"rows": b"new"}, holder="later")
        (writer.folder / "rows").write_bytes(b"old")  # FileNotFoundError, by itself a riddle

    workspace.acquire(PRINT, "earlier")
    with pytest.raises(Fenced):
        attempt(workspace, work, "earlier")
    found = workspace.find("curate", PRINT)
    assert found is not None
    assert (found.local() / "rows").read_bytes() == b"new"


def test_an_artifact_that_is_whole_already_stays_as_it_is(workspace: Workspace) -> None:
    make(workspace, {"rows": b"first"})
    kept = make(workspace, {"rows": b"second"}, holder="other")
    assert (kept.local() / "rows").read_bytes() == b"first"


def test_attempts_count_up_by_themselves(workspace: Workspace) -> None:
    assert [workspace.acquire(PRINT, "a"), workspace.acquire(PRINT, "b"), workspace.acquire(PRINT, "c", 7)] == [1, 2, 7]


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_damaged_files_are_named(workspace: Workspace, damage: str) -> None:
    artifact = make(workspace, {"deep/rows": b"rows", "card": b"{}"})
    if damage == "gone":
        workspace.filesystem.rm_file(workspace.path("artifacts", "curate", PRINT, "deep/rows"))
    else:
        overwrite(workspace, b"rowz", "artifacts", "curate", PRINT, "deep/rows")
    words = "is missing, although" if damage == "gone" else "does not have the checksum"
    with pytest.raises(ArtifactCorrupt, match=rf"{PRINT}/deep/rows {words} .*; delete .*{PRINT} and run again"):
        artifact.local()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b"\xff",
        b"{}",
        b'{"schemaVersion": 2}',
        f'{{"schemaVersion": 1, "fingerprint": "{PRINT}"}}'.encode(),
    ],
)
def test_a_broken_manifest_is_named_and_not_taken_for_none(workspace: Workspace, content: bytes) -> None:
    make(workspace, {"rows": b"rows"})
    overwrite(workspace, content, "artifacts", "curate", PRINT, MANIFEST)
    with pytest.raises(ArtifactCorrupt, match=rf"{PRINT}.*{MANIFEST}.*delete"):
        workspace.find("curate", PRINT)


def test_a_remote_artifact_is_fetched_once_and_again_when_its_copy_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    workspace = Workspace(f"memory://{uuid.uuid4().hex}/")
    artifact = make(workspace, {"rows": b"rows"})
    copy = artifact.local()
    assert copy.is_relative_to(tmp_path)
    stamp = (copy / "rows").stat().st_mtime_ns
    assert artifact.local() == copy
    assert (copy / "rows").stat().st_mtime_ns == stamp
    (copy / "rows").write_bytes(b"rowz")
    assert (artifact.local() / "rows").read_bytes() == b"rows"
    assert [path.name for path in copy.parent.iterdir()] == [PRINT], "no half copies stay"


def test_two_workspaces_with_the_same_fingerprint_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for content in (b"one", b"two"):
        artifact = make(Workspace(f"memory://{uuid.uuid4().hex}"), {"rows": content})
        assert (artifact.local() / "rows").read_bytes() == content


def test_json_is_written_as_a_whole_or_not_at_all(workspace: Workspace) -> None:
    workspace.write_json({"a": 1}, "runs", "x.json")
    with pytest.raises(TypeError):
        workspace.write_json({"a": object()}, "runs", "x.json")
    assert workspace.read_json("runs", "x.json") == {"a": 1}
    assert workspace.read_json("runs", "y.json") is None
    assert names(workspace) == {"runs/x.json"}


READER = """
import json, sys
from plumbline.artifacts import Workspace
workspace = Workspace(sys.argv[1])
print("reading", flush=True)
for _ in range(300):
    value = workspace.read_json("x.json")
    assert value["a"] == value["z"] and len(value["filling"]) == 20000, value["a"]
"""


def test_readers_never_see_half_a_json_file(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path))
    workspace.write_json({"a": 0, "filling": "x" * 20000, "z": 0}, "x.json")
    process = subprocess.Popen([sys.executable, "-c", READER, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    number = 0
    while process.poll() is None:
        number += 1
        workspace.write_json({"a": number, "filling": "x" * 20000, "z": number}, "x.json")
    process.stdout.close()
    assert process.returncode == 0
    assert names(workspace) == {"x.json"}


def test_unknown_file_systems_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"spec.workspace.uri: 'nosuch://bucket/x' cannot be opened"):
        Workspace("nosuch://bucket/x")


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        ("x/y/", "{cwd}/x/y"),
        ("file:///a/b/", "/a/b"),
        ("/", "/"),
        ("memory://", "memory://"),
        ("memory://a/b//", "memory://a/b"),
    ],
)
def test_workspace_uris_are_absolute_without_a_slash_at_the_end(
    uri: str, absolute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Workspace(uri).uri == absolute.format(cwd=tmp_path)
    assert absolute_uri("~/x") == str(Path("~/x").expanduser())


def test_a_workspace_that_cannot_be_written_to_is_refused_without_being_made(tmp_path: Path) -> None:
    Workspace(str(tmp_path / "a" / "b")).check_writable()
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "file"
    file.write_text("")
    below = Workspace(str(file / "a" / "workspace"))
    with pytest.raises(InvalidInput, match=rf"spec.workspace.uri: .* cannot be written to: {file} is no folder"):
        below.check_writable()
    with pytest.raises(InvalidInput, match="cannot be read: Not a directory"):
        below.find("curate", PRINT)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "plumbline-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs root and the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _plain(path: Path, size: int) -> None:
    path.write_bytes(bytes(size))


def _parquet(path: Path, size: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = np.random.default_rng(0).bytes(size)
    pq.write_table(pa.table({"x": [content]}), path, compression="none")


def _safetensors(path: Path, size: int) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(size, dtype=np.uint8)}, path)


@pytest.mark.parametrize("write", [_plain, _parquet, _safetensors], ids=["plain", "parquet", "safetensors"])
def test_a_full_disk_is_one_sentence_and_the_same_again_succeeds_once_there_is_room(small_disk: Path, write: Any) -> None:
    def work(writer: ArtifactWriter) -> None:
        (writer.folder / "small").write_bytes(b"fits")
        write(writer.folder / "large", 36_000)

    workspace = Workspace(str(small_disk / "workspace"))
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(40_000))
    workspace.acquire(PRINT, "me")
    with pytest.raises(Exception, match=r"No space left|os error 28") as error:
        attempt(workspace, work)
    words, code = sentence(error.value)
    assert words.startswith("no space left on the device")
    assert words.endswith("make room and run again, finished stages are kept")
    assert code == EXIT_RETRYABLE
    assert workspace.find("curate", PRINT) is None
    assert names(workspace) == {f"leases/{PRINT}.json"}, "the half is cleared away at once: it only takes room"
    ballast.unlink()
    attempt(workspace, work)
    found = workspace.find("curate", PRINT)
    assert found is not None
    assert found.local().joinpath("large").stat().st_size >= 36_000


def test_no_room_for_the_manifest_leaves_nothing_trusted(small_disk: Path) -> None:
    def work(writer: ArtifactWriter) -> None:
        with contextlib.suppress(OSError), (writer.folder / "filling").open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(1024))

    workspace = Workspace(str(small_disk))
    workspace.acquire(PRINT, "me")
    with pytest.raises(OSError, match="No space left"):
        attempt(workspace, work)
    assert workspace.find("curate", PRINT) is None


def test_a_full_disk_behind_other_errors_is_still_told_as_such() -> None:
    wrapped = RuntimeError("worker failed")
    wrapped.__cause__ = OSError(28, "No space left on device", "/data/x")
    assert sentence(wrapped)[0].startswith("no space left on the device at /data/x;")
    quota = OSError(122, "Disk quota exceeded")
    assert sentence(quota)[0].startswith("no space left on the device;")


def test_manifests_are_plain_json_for_other_programs(workspace: Workspace) -> None:
    artifact = make(workspace, {"rows": b"rows"})
    with fsspec.open(f"{artifact.uri}/{MANIFEST}", "rb") as stream:
        assert json.load(stream) == artifact.manifest
