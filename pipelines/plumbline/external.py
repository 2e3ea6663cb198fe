"""Inputs from outside a run: finding their files and telling when their content changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec

from plumbline import hub
from plumbline.api.base import SpecModel, StageSpec
from plumbline.artifacts import absolute_uri, file_digest
from plumbline.errors import InvalidInput, PlumblineError, one_line

TINY = "builtin://tiny"
SKILLS = "builtin://skills"

Block = TypeVar("Block", bound=StageSpec)


def tiny_folder() -> Path:
    """Where the built-in model lies."""
    return Path(str(resources.files("plumbline.builtin") / "tiny"))


def expand(uri: str, where: str = "") -> list[str]:
    """The files behind a path, glob or folder, sorted.

    Raises:
        InvalidInput: there is none; the message begins with `where`, a field path.
    """
    prefix = f"{where}: " if where else ""
    uri = absolute_uri(uri)
    with reaching(uri, prefix):
        filesystem, path = fsspec.core.url_to_fs(uri)
        filesystem.invalidate_cache()
        # To a web server a file is a folder too, if there are links in it: they would be read for it.
        if uri.startswith(("http://", "https://")) and not uri.endswith("/") and filesystem.isfile(path):
            found = [path]
        elif filesystem.isdir(path):
            found = [name for name in filesystem.find(path) if not _hidden(name[len(path) :])]
        elif filesystem.exists(path):  # a name may hold glob characters
            found = [path]
        elif any(c in path for c in "*?["):
            found = [name for name in filesystem.glob(path) if not filesystem.isdir(name)]
        else:
            found = []
    if not found:
        raise InvalidInput(f"{prefix}no file matches '{uri}'; give an existing file, folder or glob")
    link, chained, rest = uri.partition("::")
    within = f"::{rest}" if chained and "://" in link else ""  # such as an archive's file
    return sorted(filesystem.unstrip_protocol(name).removeprefix("file://") + within for name in found)


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(path).parts)


@contextmanager
def reaching(uri: str, prefix: str) -> Iterator[None]:
    """Errors of a file system in plain words."""
    try:
        yield
    except PlumblineError:
        raise
    except (ValueError, ImportError) as error:
        raise InvalidInput(f"{prefix}'{uri}' cannot be opened: {one_line(error)}") from error
    except Exception as error:  # clients of remote file systems pass on whatever their transport raises
        raise PlumblineError(f"{prefix}'{uri}' cannot be reached: {one_line(error)}") from error


def identity(uri: str, where: str = "") -> str:
    """What tells one content of data from another: etag, size and time, or a version of our own.

    Raises:
        InvalidInput: nothing is there.
        PlumblineError: it cannot be reached now.
    """
    prefix = f"{where}: " if where else ""
    if uri == SKILLS:
        from plumbline.builtin import skills

        return f"skills:{skills.VERSION}"
    if uri.startswith("builtin://"):
        raise _not_built_in(uri, prefix)
    if uri.startswith("hf://"):
        return f"commit:{hub.dataset(uri, prefix).commit(prefix)}"
    return _files_identity(expand(uri, where), uri, prefix)


def model_identity(base: str, revision: str | None = None, where: str = "spec.model.base") -> str:
    """What tells one base model from another: a commit of the hub, or size and time of its files.

    Raises:
        InvalidInput: there is none, or `check_model` refuses it.
        PlumblineError: it cannot be reached now.
    """
    prefix = f"{where}: "
    if base == TINY:
        digests = [file_digest(path) for path in sorted(tiny_folder().iterdir()) if path.suffix != ".md"]
        return "sha256:" + hashlib.sha256("".join(digests).encode()).hexdigest()
    if base.startswith("builtin://"):
        raise _not_built_in(base, prefix)
    if base.startswith("hf://"):
        return f"commit:{hub.commit('model', base.removeprefix('hf://'), revision, prefix)}"
    check_model(base, where)
    return _files_identity(expand(base, where), base, prefix)


def pinned(spec: Block, identities: Mapping[str, str]) -> Block:
    """A stage's block whose models on the hub are named with the commits that were planned: `hf://ORG/NAME@COMMIT`."""
    hub_models = {uri for uri in spec.external_models().values() if uri.startswith("hf://")}
    commits = {
        uri: identities[uri].removeprefix("commit:") for uri in hub_models if identities.get(uri, "").startswith("commit:")
    }

    def value(old: Any) -> Any:
        if isinstance(old, SpecModel):
            changed = {
                name: new for name in old.model_fields_set if (new := value(before := getattr(old, name))) is not before
            }
            return old.model_copy(update=changed) if changed else old
        return f"{old}@{commits[old]}" if isinstance(old, str) and old in commits else old

    pinned_spec: Block = value(spec)
    return pinned_spec


def _not_built_in(uri: str, prefix: str) -> InvalidInput:
    return InvalidInput(f"{prefix}'{uri}' is not built in; there are {TINY} (a model) and {SKILLS} (data)")


@dataclass(frozen=True)
class Stamp:
    """What tells one content of a file from another without reading it: its size, and its etag, version or time."""

    size: int
    mark: str


def stamp_of(uri: str, fresh: bool = True) -> Stamp:
    """The file's stamp; errors are the file system's own.

    Args:
        uri: local path or fsspec URI.
        fresh: ask anew; otherwise what a listing has just told will do.
    """
    filesystem, path = fsspec.core.url_to_fs(uri)
    if fresh:
        filesystem.invalidate_cache(path)
    info: dict[str, Any] = filesystem.info(path)
    marks = ("ETag", "mtime", "LastModified", "last_modified", "blob_id", "created")
    return Stamp(info.get("size") or 0, str(next((info[mark] for mark in marks if info.get(mark)), None)))


def _files_identity(names: list[str], uri: str, prefix: str) -> str:
    with reaching(uri, prefix):
        stamps = [(Path(name).name, stamp_of(name, fresh=False)) for name in names]
    facts = [[name, stamp.size, stamp.mark] for name, stamp in stamps]
    return "files:" + hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def check_model(base: str, where: str = "spec.model.base") -> None:
    """Refuse at once what is no model folder, local or remote. Cheap: it reads file names, config.json and headers.

    Raises:
        InvalidInput: `config.json` or whole safetensors weights are missing.
        PlumblineError: the file system cannot be reached.
    """
    prefix = f"{where}: "
    with reaching(base, prefix):
        filesystem, path = fsspec.core.url_to_fs(absolute_uri(base))
        problem = _model_problem(filesystem, path)
    if problem:
        raise InvalidInput(f"{prefix}'{base}' {problem}; give a folder in Hugging Face form, hf://ORG/NAME or {TINY}")


def _model_problem(filesystem: Any, path: str) -> str | None:
    if not filesystem.isdir(path):
        return "is no folder"
    files = {PurePosixPath(name).name: name for name in filesystem.ls(path, detail=False)}
    if "config.json" not in files:
        return "has no config.json"
    try:
        config = json.loads(filesystem.cat_file(files["config.json"]))
    except ValueError as error:
        return f"has a config.json that is not JSON ({error})"
    if not isinstance(config, dict) or "model_type" not in config:
        return "has a config.json without model_type"
    weights = [name for name in files if name.endswith(".safetensors")]
    if not weights:
        return "has no *.safetensors weights (other formats are refused: they can run code)"
    index = "model.safetensors.index.json"
    if index in files:
        try:
            lost = set(json.loads(filesystem.cat_file(files[index]))["weight_map"].values()) - set(weights)
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"has an {index} that cannot be read"
        if lost:
            return f"lacks {min(lost)}, which its {index} lists"
    for name in sorted(weights):
        if not _whole_safetensors(filesystem, files[name]):
            return f"has a {name} that is cut off or no safetensors file (a Git LFS pointer?)"
    return None


def _whole_safetensors(filesystem: Any, path: str) -> bool:
    """Whether a file is as long as its header says (8 bytes of length, JSON, tensors)."""
    size = filesystem.info(path)["size"]
    length = int.from_bytes(filesystem.cat_file(path, start=0, end=8), "little") if size >= 8 else size
    if 8 + length > size:
        return False
    try:
        header = json.loads(filesystem.cat_file(path, start=8, end=8 + length))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return False
    return bool(8 + length + max(ends, default=0) == size)
