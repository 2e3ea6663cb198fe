"""Rows made by hand, and rows of real files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from plumbline.data.formats import FORMATS
from plumbline.data.formats.options import Options
from plumbline.data.row import Form, Reject, Row


def chat(prompt: str, answer: str, **fields: Any) -> Row:
    return Row({"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}, **fields)


def pair(chosen: str, rejected: str) -> Row:
    prompt = [{"role": "user", "content": "Say something."}]
    answers = {name: [{"role": "assistant", "content": text}] for name, text in (("chosen", chosen), ("rejected", rejected))}
    return Row({"prompt": prompt, **answers})


def read(path: Path, format: str = "alpaca", form: Form = "messages") -> list[Row]:
    """The rows of a gzipped file of JSON or JSON lines; records that are no rows are left out."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        text = stream.read()
    records = [json.loads(line) for line in text.splitlines()] if ".jsonl" in path.name else json.loads(text)
    rows = []
    for record in records:
        try:
            rows += [row for row in FORMATS[format].rows(record, Options(form)) if isinstance(row, Row)]
        except Reject:
            continue
    return rows
