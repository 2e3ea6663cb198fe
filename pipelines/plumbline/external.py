"""Inputs from outside a run: finding their files and telling when their content changed."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import fsspec

from plumbline.artifacts import absolute_uri, file_digest
from plumbline.errors import InvalidInput, PlumblineError

TINY = "builtin://tiny"
SKILLS = "builtin://skills"


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
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
        if any(c in path for c in "*?["):
            found = [name for name in filesystem.glob(path) if not filesystem.isdir(name)]
        elif filesystem.isdir(path):
            found = [name for name in filesystem.find(path) if not Path(name).name.startswith(".")]
        else:
            found = [path] if filesystem.exists(path) else []
    except (ValueError, ImportError) as error:
        raise InvalidInput(f"{prefix}'{uri}' cannot be opened: {error}") from error
    except OSError as error:
        raise PlumblineError(f"{prefix}'{uri}' cannot be reached: {error}") from error
    if not found:
        raise InvalidInput(f"{prefix}no file matches '{uri}'; give an existing file, folder or glob")
    return sorted(filesystem.unstrip_protocol(name).removeprefix("file://") for name in found)


def identity(uri: str, revision: str | None = None, where: str = "") -> str:
    """What tells one content of `uri` from another: etag, size and time, a commit, or a version of our own.

    Raises:
        InvalidInput: nothing is there.
        PlumblineError: it cannot be reached now.
    """
    prefix = f"{where}: " if where else ""
    if uri == TINY:
        return "sha256:" + file_digest(tiny_folder() / "model.safetensors")
    if uri == SKILLS:
        from plumbline.builtin import skills

        return f"skills:{skills.VERSION}"
    if uri.startswith("builtin://"):
        raise InvalidInput(f"{prefix}'{uri}' is not built in; there are {TINY} (a model) and {SKILLS} (data)")
    if uri.startswith("hf://"):
        return _hub_commit(uri.removeprefix("hf://"), revision, prefix)
    facts = []
    for name in expand(uri, where):
        filesystem, path = fsspec.core.url_to_fs(name)
        info: dict[str, Any] = filesystem.info(path)
        stamp = info.get("ETag") or info.get("mtime") or info.get("LastModified") or info.get("last_modified")
        facts.append([Path(path).name, info.get("size"), str(stamp)])
    return "files:" + hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _hub_commit(name: str, revision: str | None, prefix: str) -> str:
    if revision and len(revision) == 40 and set(revision) <= set("0123456789abcdef"):
        return f"commit:{revision}"
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return f"commit:{HfApi().model_info(name, revision=revision, timeout=20).sha}"
    except HfHubHTTPError as error:
        raise InvalidInput(f"{prefix}the hub has no model '{name}' at revision '{revision or 'main'}': {error}") from error
    except Exception as error:  # the hub's client passes on whatever its transport raises
        raise PlumblineError(
            f"{prefix}the hub cannot be reached to resolve '{name}' ({type(error).__name__}); "
            "pin `revision` to a full commit to run without it"
        ) from error
