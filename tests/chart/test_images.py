"""What the images are made of. They are built where there is a container engine; here, what would make that fail."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
NOT_IN_THE_OPERATOR = [
    "accelerate", "fastapi", "fsspec", "grpc", "matplotlib", "numpy", "pandas", "peft", "pyarrow", "ray", "rich", "s3fs",
    "safetensors", "scipy", "torch", "transformers",
]  # fmt: skip
IMPORT_EVERYTHING = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(f"the operator's image has no {name}")

sys.meta_path.insert(0, Blocked())
import plumbline_operator
for module in pkgutil.walk_packages(plumbline_operator.__path__, "plumbline_operator."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def test_the_operator_imports_without_what_its_image_lacks() -> None:
    command = [sys.executable, "-c", IMPORT_EVERYTHING, *NOT_IN_THE_OPERATOR]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_images_run_as_a_numeric_user_and_are_reproducible(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"^USER (\d+):\1$", text, re.MULTILINE), "runAsNonRoot needs a number"
    assert "ADD " not in text
    assert ":latest" not in text
    for line in re.findall(r"pip install (?!--upgrade|--no-deps)(.*)", text):
        assert "--constraint constraints.txt" in line


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_everything_copied_exists_and_is_in_the_context(path: Path) -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    context = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        name for line in re.findall(r"^COPY (?!--from)(.*)", path.read_text(), re.MULTILINE) for name in line.split()[:-1]
    }
    assert copied <= context
    assert all((ROOT / name).exists() for name in copied)


def test_the_operator_installs_a_group_without_ray_or_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = {re.split(r"[^\w-]", requirement)[0] for requirement in project["dependency-groups"]["operator"]}
    assert not names & set(NOT_IN_THE_OPERATOR)
    assert "--group operator" in (ROOT / "docker" / "operator.Dockerfile").read_text()
