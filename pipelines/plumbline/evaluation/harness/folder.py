"""A folder of somebody's own harness tasks, as data: whoever evaluates with it runs none of its code."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import yaml

from plumbline.artifacts import absolute_uri
from plumbline.errors import InvalidInput, one_line
from plumbline.external import reaching

FORMATS = ("json", "csv", "text", "parquet", "arrow")
"""What data files may be read as. Others of the `datasets` library, such as pandas', unpickle what they read."""

HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@contextmanager
def plain_tasks(uri: str, where: str) -> Iterator[Path]:
    """A temporary folder with the tasks' YAML files: `include` is resolved, and data files are named by whole paths.

    Args:
        uri: folder, local or any fsspec URI.
        where: field path.

    Raises:
        InvalidInput: there is no task, one holds code, or names something outside of the folder.
        PlumblineError: the folder cannot be reached.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder, plain = _local(uri, Path(temporary) / "copy", where), Path(temporary) / "plain"
        plain.mkdir()
        found = sorted(path for path in folder.rglob("*.yaml") if not path.name.startswith("."))
        if not found:
            raise InvalidInput(f"{where}: '{uri}' holds no YAML file; give a folder with tasks of lm-evaluation-harness")
        for number, path in enumerate(found):
            config = _config(path, folder, where)
            (plain / f"{number:04d}.yaml").write_text(
                yaml.safe_dump(config, allow_unicode=True, sort_keys=False), encoding="utf-8"
            )
        yield plain


def _local(uri: str, copy: Path, where: str) -> Path:
    with reaching(uri, f"{where}: "):
        filesystem, path = fsspec.core.url_to_fs(absolute_uri(uri))
        if not filesystem.isdir(path):
            raise InvalidInput(f"{where}: '{uri}' is no folder; give one with tasks of lm-evaluation-harness")
        if "file" in filesystem.protocol:
            return Path(path).resolve()
        filesystem.get(f"{path.rstrip('/')}/", f"{copy}/", recursive=True)
    return copy.resolve()


def _config(path: Path, folder: Path, where: str, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file with what it includes, its own keys first."""
    name = path.relative_to(folder)
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidInput(f"{where}: {above[-1].name} includes '{name}', which is not there") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"{where}: {name} cannot be read: {one_line(error)}; a task of your own is plain YAML in UTF-8, without tags such as !function"
        ) from error
    if not isinstance(config, dict):
        raise InvalidInput(f"{where}: {name} holds {type(config).__name__}, not the fields of a task")
    merged: dict[str, Any] = {}
    includes = config.pop("include", [])
    for include in includes if isinstance(includes, list) else [includes]:
        inner = (path.parent / str(include)).resolve()
        if not inner.is_relative_to(folder) or inner in (path, *above):
            raise InvalidInput(
                f"{where}: {name} includes '{include}'; include other files of the folder, and none that includes this one"
            )
        merged |= {key: value for key, value in _config(inner, folder, where, (*above, path)).items() if key != "task_list"}
    merged |= config
    if not above:
        _check(merged, path, folder, where)
    return merged


def _check(config: dict[str, Any], path: Path, folder: Path, where: str) -> None:
    """Refuse what would fetch or run code; name data files by whole paths."""
    name, members = path.relative_to(folder), config.get("task")
    for member in members if isinstance(members, list) else []:  # of a group, which may define tasks itself
        if isinstance(member, dict):
            _check(member, path, folder, where)
    listed = config.get("metric_list")
    metrics = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    # What is no metric of the harness goes to `evaluate`, which runs the program that lies at a path.
    fetched = any(one.get("hf_evaluate") or not re.fullmatch(r"\w+", str(one.get("metric"))) for one in metrics)
    if config.get("use_prompt") or config.get("unsafe_code") or fetched:
        raise InvalidInput(
            f"{where}: {name} asks for code from elsewhere (use_prompt, unsafe_code or hf_evaluate); use the harness's own metrics and templates"
        )
    data, kwargs = config.get("dataset_path"), config.get("dataset_kwargs")
    if isinstance(data, str) and data not in FORMATS and not HUB.fullmatch(data):
        raise InvalidInput(
            f"{where}: {name} reads its data as '{data}'; accepted: {', '.join(FORMATS)}, or a dataset ORG/NAME of the hub"
        )
    for field in ("data_files", "data_dir") if isinstance(kwargs, dict) else ():
        of_hub = field == "data_dir" and isinstance(data, str) and HUB.fullmatch(data)  # a folder there
        if field in kwargs and not of_hub:
            kwargs[field] = _absolute(kwargs[field], path.parent, folder, f"{where}: {name}")


def _absolute(files: Any, beside: Path, folder: Path, where: str) -> Any:
    if isinstance(files, dict):
        return {split: _absolute(of, beside, folder, where) for split, of in files.items()}
    if isinstance(files, list):
        return [_absolute(of, beside, folder, where) for of in files]
    found = (beside / str(files)).resolve()
    if "://" in str(files) or not found.is_relative_to(folder):
        raise InvalidInput(f"{where} reads '{files}', which lies outside of the folder; put data files beside the tasks")
    return str(found)
