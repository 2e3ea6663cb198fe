"""Models to serve, and the web application over them on a port of this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plumbline.external import TINY, tiny_folder
from plumbline.models.load import load_tokenizer
from plumbline.models.reference import ModelReference
from plumbline.serving.chat import ChatModel, ServedModel
from plumbline.serving.http import create_app
from plumbline.serving.models import Models
from support.web import listening

ENDLESS = 150_000
"""Tokens: minutes of work."""


def endless_model(folder: Path) -> ModelReference:
    """The tiny model with a long context and an end token that it never draws."""
    shutil.copytree(tiny_folder(), folder)
    changes = {
        "config.json": {"max_position_embeddings": ENDLESS + 1000, "eos_token_id": 3},
        "generation_config.json": {"eos_token_id": 3},
        "tokenizer_config.json": {"eos_token": "<|system|>"},
    }
    for name, change in changes.items():
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert load_tokenizer(ModelReference(str(folder))).eos_token_id == 3
    return ModelReference(str(folder))


@contextmanager
def two_models(folder: Path, first: str, second: str) -> Iterator[str]:
    """A tiny model that gives at most 16 tokens and one that may go on for minutes, both at one address."""
    served = [
        ServedModel(first, ModelReference(TINY), 16),
        ServedModel(second, endless_model(folder / "endless"), ENDLESS),
    ]
    models = Models.of({model.name: ChatModel.load(model, slots=4) for model in served})
    try:
        with listening(create_app(models)) as address:
            yield address
    finally:
        models.close()
