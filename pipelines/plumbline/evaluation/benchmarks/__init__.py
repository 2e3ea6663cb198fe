"""The benchmarks. A new one is one file with `load` and `score`, and one line here."""

from __future__ import annotations

from plumbline.evaluation.benchmarks import gsm8k, humaneval, ifeval, mmlu, prompt_answer, skills
from plumbline.evaluation.benchmarks.benchmark import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    "skills": skills,
    "gsm8k": gsm8k,
    "mmlu": mmlu,
    "humaneval": humaneval,
    "ifeval": ifeval,
    "promptAnswer": prompt_answer,
}
"""By their name in `TaskSpec.benchmark`."""
