"""The benchmarks. A new one is one file with `load` and `score`, and one line here.

A figure that is no mean over items, such as a bias score, is told by an optional `figures(items, scores) -> dict[str, float]`.
"""

from __future__ import annotations

from plumbline.evaluation.benchmarks import (
    adv_bench,
    bbq,
    ceval,
    cmmlu,
    gsm8k,
    halueval,
    humaneval,
    ifeval,
    mmlu,
    prompt_answer,
    skills,
    super_natural_instructions,
    supported_facts,
    truthfulqa,
    xs_test,
)
from plumbline.evaluation.benchmarks.benchmark import Benchmark, Source
from plumbline.evaluation.benchmarks.open_questions import ALPACA_EVAL, ARENA_HARD, FLASK, MT_BENCH, PROMPTS, VICUNA

BENCHMARKS: dict[str, Benchmark] = {
    "skills": skills,
    "gsm8k": gsm8k,
    "mmlu": mmlu,
    "humaneval": humaneval,
    "ifeval": ifeval,
    "promptAnswer": prompt_answer,
    "ceval": ceval.EXAM,
    "cmmlu": cmmlu.EXAM,
    "truthfulqa": truthfulqa,
    "bbq": bbq,
    "superNaturalInstructions": super_natural_instructions,
    "haluEval": halueval,
    "supportedFacts": supported_facts,
    "advBench": adv_bench,
    "xsTest": xs_test,
}
"""By their name in `TaskSpec.benchmark`."""

QUESTIONS: dict[str, Source] = {
    **BENCHMARKS,
    "mtBench": MT_BENCH,
    "vicuna80": VICUNA,
    "alpacaEval": ALPACA_EVAL,
    "flask": FLASK,
    "arenaHard": ARENA_HARD,
    "prompts": PROMPTS,
}
"""Those, and the ones whose replies a judge scores."""
