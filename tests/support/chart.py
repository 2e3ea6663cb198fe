"""The chart as Helm renders it, offline."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

CHART = Path(__file__).resolve().parents[2] / "charts" / "plumbline"
RELEASE, NAMESPACE = "plumbline", "plumbline-system"
Object = dict[str, Any]


def helm() -> ModuleType:
    """Helm as a library; where it has none for this platform, the test is skipped."""
    try:
        import helm_python
    except (ImportError, OSError) as error:
        pytest.skip(f"needs helm-python-sdk, which has no Helm for this platform: {error}")
    return helm_python


def files(values: Object | None = None, name: str = RELEASE, namespace: str = NAMESPACE) -> dict[str, str]:
    """Rendered templates by file name."""
    with helm().Chart.load(CHART) as chart:
        rendered: dict[str, str] = chart.render(values or {}, name=name, namespace=namespace)
    return {Path(path).name: text for path, text in rendered.items()}


def render(values: Object | None = None, name: str = RELEASE, namespace: str = NAMESPACE) -> list[Object]:
    """Every object that a release has with these values."""
    texts = files(values, name, namespace)
    return [value for path, text in texts.items() if path.endswith(".yaml") for value in yaml.safe_load_all(text) if value]


def one(objects: list[Object], kind: str, name: str | None = None) -> Object:
    """The only object of a kind, or the one of that name."""
    found = [value for value in objects if value["kind"] == kind and name in (None, value["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} objects of kind {kind} and name {name}"
    return found[0]
