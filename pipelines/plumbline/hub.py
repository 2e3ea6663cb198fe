"""The Hugging Face hub: which commit a name means, and which files of a data set hold a split."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote

import yaml

from plumbline.errors import InvalidInput, PlumblineError, one_line

DATASETS = "hf://datasets/"
SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
"""Files that hold records, plain or as .gz or .zst."""
METADATA = frozenset({"dataset_infos.json", "dataset_dict.json", "dataset_info.json", "state.json", "config.json"})
SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")
"""Words by which the hub tells splits in file names."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


def commit(kind: Literal["model", "dataset"], name: str, revision: str | None, prefix: str) -> str:
    """The commit that a revision is now; a full commit stays what it is, without the hub being asked.

    Args:
        kind: what is meant.
        name: ORG/NAME.
        revision: branch, tag or commit; None for main.
        prefix: beginning of messages.

    Raises:
        InvalidInput: there is none, or none that the token may read.
        PlumblineError: the hub cannot be reached now.
    """
    if revision and _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
    written = f"hf://{name}" if kind == "model" else f"{DATASETS}{name}"
    try:
        return str(ask(name, revision=revision, timeout=20).sha)
    except HFValidationError as error:
        form = "hf://ORG/NAME" if kind == "model" else f"{DATASETS}ORG/NAME"
        raise InvalidInput(f"{prefix}'{written}' is no name of a {kind}; write {form}") from error
    except GatedRepoError as error:
        raise InvalidInput(f"{prefix}the hub gives '{name}' only with a token that was granted access (HF_TOKEN)") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise InvalidInput(
            f"{prefix}the hub has no {kind} '{name}' at revision '{revision or 'main'}', or none that this token may read"
        ) from error
    except Exception as error:  # the hub's client passes on whatever its transport raises
        pin = "pin `revision` to a full commit" if kind == "model" else f"write {written}@COMMIT with a full commit"
        raise PlumblineError(
            f"{prefix}the hub cannot be reached to resolve '{name}' ({type(error).__name__}: {one_line(error)}); "
            f"{pin} to run without it"
        ) from error


@dataclass(frozen=True)
class HubDataset:
    """A data set on the hub as a URI names it.

    Attributes:
        name: ORG/NAME.
        revision: after `@`; None for main.
        path: file, folder or glob within it; empty for all of it.
    """

    name: str
    revision: str | None
    path: str

    def commit(self, prefix: str) -> str:
        """See `commit`."""
        return commit("dataset", self.name, self.revision, prefix)

    def at(self, revision: str) -> HubDataset:
        """The same at another revision."""
        return replace(self, revision=revision)

    @property
    def root(self) -> str:
        """Its folder for fsspec's `hf`."""
        revision = f"@{self.revision.replace('/', '%2F')}" if self.revision else ""
        return f"datasets/{self.name}{revision}"


def dataset(uri: str, prefix: str) -> HubDataset:
    """What `hf://datasets/ORG/NAME[@REVISION][/PATH]` names.

    Raises:
        InvalidInput: it is written otherwise.
    """
    parts = uri.removeprefix(DATASETS).strip("/").split("/", 2)
    if not uri.startswith(DATASETS) or len(parts) < 2 or not all(parts):
        raise InvalidInput(
            f"{prefix}'{uri}' is no data set of the hub; write {DATASETS}ORG/NAME, then @REVISION or /PATH if needed"
        )
    last, _, revision = parts[1].partition("@")
    return HubDataset(f"{parts[0]}/{last}", unquote(revision) or None, parts[2] if len(parts) > 2 else "")


def dataset_files(filesystem: Any, named: HubDataset, split: str, prefix: str) -> list[str]:
    """URIs of the files that hold a split, sorted. Nothing is loaded and no script of the data set is run.

    A path to a file or a glob means just that. For a folder, or the whole data set, the hub's own rules hold: the
    README's `configs` say which files a split has; without them file or folder names do (`train-00000-of-00001.parquet`,
    `test/…`); where no name tells, all files are `train`.

    Args:
        filesystem: fsspec's `hf`.
        named: what the URI names.
        split: such as `train`.
        prefix: beginning of messages.

    Raises:
        InvalidInput: no such file or split, several configurations to choose from, or no data file.
    """
    root = named.root
    where = f"{root}/{named.path}".rstrip("/")
    if any(c in named.path for c in "*?[") and not filesystem.exists(where):
        found = [path for path in filesystem.glob(where) if _is_data(path)]
    elif filesystem.isfile(where):
        found = [where]
    else:
        names = [path.removeprefix(f"{root}/") for path in filesystem.find(where)]
        below = [name for name in names if _is_data(name)]
        configured = None if named.path else _configured(filesystem, root, below, split, prefix)
        found = [f"{root}/{name}" for name in configured or _of_split(below, named.path, split, prefix)]
    if not found:
        raise InvalidInput(
            f"{prefix}'hf://{where}' has no data file ({', '.join(SUFFIXES)}); scripts that make data sets are not run"
        )
    return sorted(f"hf://{path}" for path in found)


def _is_data(path: str) -> bool:
    name = re.sub(r"\.(gz|zst)$", "", PurePosixPath(path).name)
    hidden = any(part.startswith(".") for part in PurePosixPath(path).parts)
    return name.endswith(SUFFIXES) and name not in METADATA and not hidden


def _configured(filesystem: Any, root: str, names: list[str], split: str, prefix: str) -> list[str] | None:
    """Files by the README's `configs`; None where it has none."""
    if not filesystem.exists(f"{root}/README.md"):
        return None
    front = re.match(
        r"---\s*\n(.*?)\n---\s*(\n|$)", filesystem.cat_file(f"{root}/README.md").decode(errors="replace"), re.DOTALL
    )
    try:
        configs = (yaml.safe_load(front[1]) or {}).get("configs") if front else None
        listed = [(config, _patterns(config["data_files"])) for config in configs or [] if "data_files" in config]
    except (yaml.YAMLError, AttributeError, TypeError, KeyError):
        return None
    if not listed:
        return None
    default = [item for item in listed if item[0].get("default") or item[0].get("config_name") == "default"] or listed
    if len(default) > 1:
        folders = ", ".join(str(config.get("config_name")) for config, _ in listed)
        raise InvalidInput(f"{prefix}'hf://{root}' has several configurations ({folders}); add the path of one to the URI")
    patterns = default[0][1]
    if split not in patterns:
        raise InvalidInput(f"{prefix}'hf://{root}' has no split '{split}'; its splits: {', '.join(patterns)}")
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns[split])]


def _patterns(files: Any) -> dict[str, list[str]]:
    """Split → globs, of the three ways to write `data_files`."""
    if isinstance(files, str) or all(isinstance(item, str) for item in files):
        return {"train": [files] if isinstance(files, str) else list(files)}
    return {item["split"]: [item["path"]] if isinstance(item["path"], str) else list(item["path"]) for item in files}


def _of_split(names: list[str], folder: str, split: str, prefix: str) -> list[str]:
    """Files by their names below the folder."""
    below = {name: name.removeprefix(folder).lower() for name in names}
    shards = [
        name for name, path in below.items() if re.search(rf"(^|/){re.escape(split.lower())}-\d{{5}}-of-\d{{5}}", path)
    ]
    found = shards or [name for name, path in below.items() if _word(split).search(path)]
    if found:
        return found
    told = [word for word in SPLITS if any(_word(word).search(path) for path in below.values())]
    if told or split != "train":
        raise InvalidInput(f"{prefix}no file has the split '{split}' in its name; splits seen: {', '.join(told) or 'none'}")
    return names


def _word(word: str) -> re.Pattern[str]:
    return re.compile(rf"(^|[^a-z0-9]){re.escape(word.lower())}($|[^a-z])")
