"""Synthesis: methods as pure generator programs, and what answers their requests.

A method is one file and one line here. `endpoint.py` is the only file that speaks HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from plumbline.api.stages.synthesize import SynthesizeSpec
from plumbline.data.row import Row
from plumbline.data.synthesis.alpaca import alpaca
from plumbline.data.synthesis.answers import distill, explain
from plumbline.data.synthesis.book import Book
from plumbline.data.synthesis.evol_instruct import evol_instruct
from plumbline.data.synthesis.program import Program
from plumbline.data.synthesis.self_improve import self_improve
from plumbline.data.synthesis.self_instruct import self_instruct
from plumbline.data.synthesis.textbook import textbook

METHODS: dict[str, Callable[[SynthesizeSpec, Sequence[Row], Book], Program]] = {
    "selfInstruct": self_instruct,
    "alpaca": alpaca,
    "evolInstruct": evol_instruct,
    "explain": explain,
    "distill": distill,
    "textbook": textbook,
    "selfImprove": self_improve,
}
