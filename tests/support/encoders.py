"""A small encoder with random weights, the same each time."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

WORDS = "the a cat dog sat on mat is was hat big small ##s ##ing run blue sky green grass . , !".split()  # noqa: SIM905
LONGEST = 24


def encoder_folder(path: Path) -> Path:
    """BERT of 4 layers, 32 wide, that reads `LONGEST` tokens, in a folder."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=LONGEST,
    )
    BertModel(config).save_pretrained(path)
    BertTokenizerFast(vocab={token: i for i, token in enumerate(tokens)}).save_pretrained(path)
    return path
