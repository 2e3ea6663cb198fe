"""Files that a benchmark refuses, and how."""

from __future__ import annotations

from pathlib import Path

import pytest

from plumbline.api.stages.evaluate import TaskSpec
from plumbline.errors import InvalidInput
from plumbline.evaluation.benchmarks import BENCHMARKS


def check_refusal(path: Path, benchmark: str, content: str, line: int, expected: str) -> None:
    """A benchmark's file with this content is refused in one sentence that names the line and what is expected."""
    path.write_text(content)
    with pytest.raises(InvalidInput) as caught:
        BENCHMARKS[benchmark].load(TaskSpec.model_validate({"name": "t", "benchmark": benchmark, "uri": str(path)}))
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
