"""Typed artifacts in a workspace. A manifest exists exactly when its artifact is whole.

WORKSPACE/artifacts/KIND/FINGERPRINT/…, manifest.json     results
WORKSPACE/checkpoints/FINGERPRINT/…                       what a stage resumes from
WORKSPACE/leases/FINGERPRINT.json                         which attempt may write the artifact
WORKSPACE/runs/NAME/…                                     plans, logs and progress of the drivers
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
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
        """A local folder with the artifact's files, checked against the manifest; remote ones are fetched once.

        Raises:
            ArtifactCorrupt: a file is missing or differs.
        """
        filesystem, path = fsspec.core.url_to_fs(self.uri)
        if isinstance(filesystem, LocalFileSystem):
            folder = Path(path)
        else:
            cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "plumbline" / "artifacts"
            folder = cache / self.manifest["kind"] / self.fingerprint
            if not (folder / MANIFEST).exists():
                partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
                filesystem.get(path.rstrip("/") + "/", str(partial), recursive=True)
                folder.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
        for name, facts in self.manifest["files"].items():
            if not (folder / name).exists():
                raise ArtifactCorrupt(
                    f"{folder / name} is missing, although {MANIFEST} lists it; delete {self.uri} and run again"
                )
            if file_digest(folder / name) != facts["sha256"]:
                raise ArtifactCorrupt(
                    f"{folder / name} does not have the checksum in {MANIFEST}; delete {self.uri} and run again"
                )
        return folder


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
        self.uri = absolute_uri(uri).rstrip("/")
        try:
            self.filesystem, self.root = fsspec.core.url_to_fs(self.uri)
        except (ValueError, ImportError) as error:
            raise InvalidInput(f"spec.workspace.uri: '{uri}' cannot be opened: {error}") from error

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, LocalFileSystem)

    def path(self, *parts: str) -> str:
        return "/".join((self.root, *parts))

    def artifact_uri(self, kind: str, fingerprint: str) -> str:
        return f"{self.uri}/artifacts/{kind}/{fingerprint}"

    def find(self, kind: str, fingerprint: str) -> Artifact | None:
        """The artifact, if it is whole."""
        manifest = self.read_json("artifacts", kind, fingerprint, MANIFEST)
        if manifest is None:
            return None
        if manifest.get("schemaVersion") != SCHEMA_VERSION or manifest.get("fingerprint") != fingerprint:
            raise ArtifactCorrupt(
                f"{self.artifact_uri(kind, fingerprint)}/{MANIFEST} is not a manifest of this version; delete that folder"
            )
        return Artifact(self.artifact_uri(kind, fingerprint), manifest)

    def read_json(self, *parts: str) -> dict[str, Any] | None:
        """A JSON object, or None where there is no such file."""
        try:
            with self.filesystem.open(self.path(*parts), "rb") as stream:
                return dict(json.load(stream))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ArtifactCorrupt(f"{self.path(*parts)} is not JSON ({error}); delete it and run again") from error

    def write_json(self, value: dict[str, Any], *parts: str) -> None:
        """Write atomically: readers see the old object or the new one."""
        text = json.dumps(value, indent=1, sort_keys=True).encode()
        target = self.path(*parts)
        if not self.is_local:
            self.filesystem.pipe_file(target, text)  # one PUT is atomic
            return
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        partial = f"{target}.{uuid.uuid4().hex}"
        try:
            with open(partial, "wb") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            Path(partial).replace(target)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise

    def acquire(self, fingerprint: str, holder: str, attempt: int | None = None) -> int:
        """Take the right to write an artifact: higher attempts fence lower ones.

        Args:
            fingerprint: of the artifact.
            holder: who asks; a unique word.
            attempt: the driver's attempt number; None takes the next one.

        Raises:
            Fenced: a later attempt holds it.
        """
        lease = self.read_json("leases", f"{fingerprint}.json") or {"attempt": 0}
        attempt = attempt or lease["attempt"] + 1
        if lease["attempt"] > attempt:
            raise Fenced(f"attempt {attempt} of {fingerprint} gives way to attempt {lease['attempt']}")
        self.write_json({"attempt": attempt, "holder": holder}, "leases", f"{fingerprint}.json")
        return attempt

    @contextmanager
    def create(
        self, *, kind: str, fingerprint: str, stage: str, type: ArtifactType, inputs: dict[str, list[Artifact]], holder: str
    ) -> Iterator[ArtifactWriter]:
        """Make an artifact: yields a writer; when the block ends well, everything becomes visible at once.

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
            yield writer
            lease = self.read_json("leases", f"{fingerprint}.json") or {}
            if lease.get("holder") != holder:
                raise Fenced(f"another attempt has taken over artifact {fingerprint}; this one leaves it alone")
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
            if self.is_local:
                (staging / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
                shutil.rmtree(final, ignore_errors=True)  # only ever a folder without a manifest
                staging.rename(final)
            else:
                self.filesystem.put(f"{staging}/", final + "/", recursive=True)
                self.write_json(manifest, "artifacts", kind, fingerprint, MANIFEST)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
