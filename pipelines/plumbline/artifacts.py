"""Typed artifacts in a workspace. A manifest exists exactly when its artifact is whole.

WORKSPACE/artifacts/KIND/FINGERPRINT/…, manifest.json     results
WORKSPACE/checkpoints/FINGERPRINT/…                       what a stage resumes from
WORKSPACE/replies/FOLDER/…                                what teachers answered: paid once, kept until deleted by hand
WORKSPACE/leases/FINGERPRINT.json                         which attempt may write the artifact
WORKSPACE/runs/NAME/…                                     plans, logs and progress of the drivers
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from plumbline import __version__
from plumbline.api.base import ArtifactType
from plumbline.errors import InvalidInput, PlumblineError

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
MANIFEST_FIELDS = frozenset({"type", "kind", "stage", "lineage", "metrics", "details", "files"})


class ArtifactCorrupt(PlumblineError):
    """A file of an artifact is missing or is not what its manifest says."""


class Fenced(PlumblineError):
    """A later attempt has taken over; this one must not write."""


def absolute_uri(uri: str) -> str:
    """The URI with a local path made absolute; other URIs as they are."""
    if "://" not in uri:
        return str(Path(uri).expanduser().absolute())
    if uri.startswith("file://"):
        return str(Path(uri.removeprefix("file://")).absolute())
    return uri


def cache_folder(*parts: str) -> Path:
    """A folder below the user's cache, where copies of remote things lie; made by who fills it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().joinpath("plumbline", *parts)


def fetch(uri: str, folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Copy a remote folder; `folder` appears as a whole or not at all. One that is there already is kept.

    Args:
        uri: remote folder.
        folder: where its copy is to lie.
        wanted: which files to take, by path.
    """
    filesystem, path = fsspec.core.url_to_fs(uri)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    partial.mkdir(parents=True)
    try:
        names = [name for name in filesystem.find(path) if wanted(name)]
        filesystem.get(names, [str(partial / name[len(path) :].lstrip("/")) for name in names])
        partial.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@dataclass(frozen=True)
class Artifact:
    """A whole artifact: where it is and what its manifest says.

    Attributes:
        uri: folder of the artifact.
        manifest: type, schemaVersion, kind, fingerprint, stage, created, plumbline, lineage, metrics, details, files.
    """

    uri: str
    manifest: dict[str, Any]

    @property
    def type(self) -> ArtifactType:
        return ArtifactType(self.manifest["type"])

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def details(self) -> dict[str, Any]:
        """What this artifact type tells its readers, such as a model's base."""
        return dict(self.manifest["details"])

    @property
    def metrics(self) -> dict[str, Any]:
        return dict(self.manifest["metrics"])

    def local(self) -> Path:
        """A local folder with the artifact's files, checked against the manifest.

        Remote ones are fetched once; a copy that is damaged is fetched again.

        Raises:
            ArtifactCorrupt: a file is missing or differs.
        """
        filesystem, path = fsspec.core.url_to_fs(self.uri)
        if isinstance(filesystem, LocalFileSystem):
            folder = Path(path)
            damage = self._damage(folder)
        else:
            folder = cache_folder("artifacts", self.manifest["kind"], self.fingerprint)
            damage = self._damage(folder)
            if damage:
                shutil.rmtree(folder, ignore_errors=True)
                fetch(self.uri, folder)
                damage = self._damage(folder)
        if damage:
            raise ArtifactCorrupt(f"{self.uri}/{damage}; delete {self.uri} and run again")
        return folder

    def _damage(self, folder: Path) -> str | None:
        """The first thing in which a folder differs from the manifest."""
        for name, facts in self.manifest["files"].items():
            if not (folder / name).is_file():
                return f"{name} is missing, although {MANIFEST} lists it"
            if file_digest(folder / name) != facts["sha256"]:
                return f"{name} does not have the checksum in {MANIFEST}"
        return None if folder.is_dir() else f"{MANIFEST} is missing"


@dataclass
class ArtifactWriter:
    """An artifact in the making: write files below `folder`, fill `metrics` and `details`; `Workspace.create` commits."""

    folder: Path
    metrics: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    sources: list[dict[str, Any]] = field(default_factory=list)


class Workspace:
    """A folder, local or any fsspec URI, that holds the artifacts of any number of runs.

    Raises:
        InvalidInput: the URI names no known file system.
    """

    def __init__(self, uri: str) -> None:
        self.uri = re.sub(r"(?<=[^/:])/+$", "", absolute_uri(uri))  # `/` and `memory://` keep theirs
        try:
            self.filesystem, self.root = fsspec.core.url_to_fs(self.uri)
        except (ValueError, ImportError, OSError) as error:
            raise InvalidInput(f"spec.workspace.uri: '{uri}' cannot be opened: {error}") from error

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, LocalFileSystem)

    def check_writable(self) -> None:
        """Refuse a place that cannot be written to; a local folder is not made for this.

        Raises:
            InvalidInput: naming what stands in the way.
        """
        if not self.is_local:
            if "memory" in self.filesystem.protocol:
                raise InvalidInput(
                    f"spec.workspace.uri: '{self.uri}' is gone when a stage ends; give a folder or an object store"
                )
            probe = {"written": datetime.now(UTC).isoformat()}
            try:
                self.write_json(probe, ".writable")
                readable = self.read_json(".writable") == probe
            except Exception as error:  # each store has errors of its own
                raise PlumblineError(f"spec.workspace.uri: '{self.uri}' cannot be written to: {error}") from error
            if not readable:
                raise PlumblineError(
                    f"spec.workspace.uri: '{self.uri}' does not give back what was written; use another store"
                )
            return
        folder = Path(self.root)
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        problem = (
            f"{folder} is no folder"
            if not folder.is_dir()
            else f"{folder} is read-only"
            if not os.access(folder, os.W_OK | os.X_OK)
            else None
        )
        if problem:
            raise InvalidInput(f"spec.workspace.uri: '{self.uri}' cannot be written to: {problem}; give another folder")

    def path(self, *parts: str) -> str:
        return "/".join((self.root, *parts))

    def artifact_uri(self, kind: str, fingerprint: str) -> str:
        return f"{self.uri}/artifacts/{kind}/{fingerprint}"

    def find(self, kind: str, fingerprint: str) -> Artifact | None:
        """The artifact, if it is whole."""
        manifest = self.read_json("artifacts", kind, fingerprint, MANIFEST)
        if manifest is None:
            return None
        known = manifest.get("schemaVersion") == SCHEMA_VERSION and manifest.keys() >= MANIFEST_FIELDS
        if not known or manifest.get("fingerprint") != fingerprint:
            raise ArtifactCorrupt(
                f"{self.artifact_uri(kind, fingerprint)}/{MANIFEST} is not a manifest of this version; delete that folder"
            )
        return Artifact(self.artifact_uri(kind, fingerprint), manifest)

    def read_json(self, *parts: str) -> dict[str, Any] | None:
        """A JSON object, or None where there is no such file."""
        try:
            with self.filesystem.open(self.path(*parts), "rb") as stream:
                value = json.load(stream)
        except FileNotFoundError:
            return None
        except (NotADirectoryError, PermissionError) as error:
            raise InvalidInput(
                f"spec.workspace.uri: '{self.uri}' cannot be read: {error.strerror} ({self.path(*parts)}); give another folder"
            ) from error
        except ValueError as error:
            raise ArtifactCorrupt(f"{self.path(*parts)} is not JSON ({error}); delete it and run again") from error
        if not isinstance(value, dict):
            raise ArtifactCorrupt(f"{self.path(*parts)} does not hold a JSON object; delete it and run again")
        return value

    def write_json(self, value: dict[str, Any], *parts: str) -> None:
        """Write atomically: readers see the old object or the new one."""
        text = json.dumps(value, indent=1, sort_keys=True).encode()
        if self.is_local:
            _write_atomically(Path(self.path(*parts)), text)
        else:
            self.filesystem.pipe_file(self.path(*parts), text)  # one PUT is atomic

    def acquire(self, fingerprint: str, holder: str, attempt: int | None = None, run: str | None = None) -> int:
        """Take the right to write an artifact: higher attempts of a run fence lower ones.

        Args:
            fingerprint: of the artifact.
            holder: who asks; a unique word.
            attempt: the driver's attempt number; None takes the next one.
            run: UID of the run that counts these attempts. Numbers of another run, such as one of the same name that was
                deleted, say nothing about the order: who comes later takes over.

        Raises:
            Fenced: a later attempt holds it.
        """
        lease = self.read_json("leases", f"{fingerprint}.json") or {"attempt": 0}
        attempt = attempt or lease["attempt"] + 1
        if lease["attempt"] > attempt and lease.get("run") == run:
            raise Fenced(f"attempt {attempt} of {fingerprint} gives way to attempt {lease['attempt']}")
        self.write_json({"attempt": attempt, "holder": holder, "run": run}, "leases", f"{fingerprint}.json")
        return attempt

    @contextmanager
    def exclusive(self, fingerprint: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Keep other processes of this machine from making the same artifact meanwhile; they wait, then find it there.

        Args:
            fingerprint: of the artifact.
            waiting: called once when another process holds it.
        """
        if not self.is_local:
            yield  # attempts on other machines are told apart by the lease
            return
        path = Path(self.path("leases", f"{fingerprint}.lock"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def remove(self, *parts: str) -> None:
        """Delete a folder with all that is in it, if it exists."""
        if self.filesystem.exists(self.path(*parts)):
            self.filesystem.rm(self.path(*parts), recursive=True)

    @contextmanager
    def create(
        self, *, kind: str, fingerprint: str, stage: str, type: ArtifactType, inputs: dict[str, list[Artifact]], holder: str
    ) -> Iterator[ArtifactWriter]:
        """Make an artifact: yields a writer; when the block ends well, everything becomes visible at once.

        An artifact that another attempt completed meanwhile is kept as it is: somebody may read it already.

        Raises:
            Fenced: another attempt took the lease meanwhile; nothing is written.
        """
        final = self.path("artifacts", kind, fingerprint)
        if self.is_local:
            parent = Path(final).parent
            parent.mkdir(parents=True, exist_ok=True)
            for leftover in parent.glob(f".{fingerprint}.*"):
                shutil.rmtree(leftover, ignore_errors=True)
            staging = parent / f".{fingerprint}.{uuid.uuid4().hex}"
            staging.mkdir()
        else:
            staging = Path(tempfile.mkdtemp(prefix="plumbline-"))
        writer = ArtifactWriter(staging)
        try:
            try:
                yield writer
            except Exception:
                self._check_lease(fingerprint, holder)  # the later attempt cleared our files away: that is no error of ours
                raise
            manifest = {
                "type": type.value,
                "schemaVersion": SCHEMA_VERSION,
                "kind": kind,
                "fingerprint": fingerprint,
                "stage": stage,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "plumbline": __version__,
                "lineage": {
                    "inputs": {
                        role: [{"uri": a.uri, "type": a.type.value, "fingerprint": a.fingerprint} for a in artifacts]
                        for role, artifacts in inputs.items()
                    },
                    "sources": writer.sources,
                },
                "metrics": writer.metrics,
                "details": writer.details,
                "files": {
                    str(path.relative_to(staging)): {"sha256": file_digest(path), "bytes": path.stat().st_size}
                    for path in sorted(staging.rglob("*"))
                    if path.is_file()
                },
            }
            self._check_lease(fingerprint, holder)
            if self.find(kind, fingerprint) is not None:
                return
            if self.is_local:
                _write_atomically(staging / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
                shutil.rmtree(final, ignore_errors=True)  # only ever a folder without a manifest
                staging.rename(final)
            else:
                if self.filesystem.exists(final):
                    self.filesystem.rm(final, recursive=True)
                self.filesystem.put(f"{staging}/", final + "/", recursive=True)
                self._check_lease(fingerprint, holder)  # an upload takes long
                self.write_json(manifest, "artifacts", kind, fingerprint, MANIFEST)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _check_lease(self, fingerprint: str, holder: str) -> None:
        lease = self.read_json("leases", f"{fingerprint}.json") or {}
        if lease.get("holder") != holder:
            raise Fenced(f"another attempt has taken over artifact {fingerprint}; this one leaves it alone")


def _write_atomically(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
