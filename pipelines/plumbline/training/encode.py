"""Chats → token sequences with a mask of what is trained on, by the tokenizer's own chat template; plain texts → sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from plumbline.errors import InvalidInput
from plumbline.training.batch import Sequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    max_length: int,
    train_on: Literal["all", "last"] | int = "all",
) -> Sequence:
    """Render a chat and mark the tokens of the assistant's turns, end marker included.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        messages: alternating turns that end with the assistant's.
        max_length: longer chats are cut at the end.
        train_on: every assistant turn, or only the last, or so many from the last on.

    Raises:
        InvalidInput: the template rewrites earlier turns, so that the turns' places cannot be told.
    """
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    text = _render(tokenizer, messages, False)
    wanted = train_on if isinstance(train_on, int) else {"all": len(answers), "last": 1}[train_on]
    spans = []
    for i in answers[-wanted:]:
        before = _render(tokenizer, messages[:i], True)
        through = text if i == len(messages) - 1 else _render(tokenizer, messages[: i + 1], False)
        if not text.startswith(through) or not through.startswith(before):
            raise InvalidInput(
                "the chat template changes earlier turns when the chat goes on, so the loss cannot be put on the answers; "
                "use a template that only appends"
            )
        spans.append((len(before), len(through)))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    trained = [any(start <= a and b <= end and a < b for start, end in spans) for a, b in offsets]
    return Sequence(ids[:max_length], trained[:max_length])


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[int]:
    """Tokens of a chat up to where the assistant is to answer; the same rendering as in training and serving."""
    return list(tokenizer(_render(tokenizer, messages, True), add_special_tokens=False)["input_ids"])


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> list[list[list[int]]]:
    """Documents → the sequences of each, of at most `max_length` tokens, as in pre-training.

    A document begins as the tokenizer begins texts (with its first token, if it has one) and ends with the end-of-text token.
    Each sequence but the first starts with the last token of the one before, so that every token but a document's first is a
    target of exactly one. What looks like a special token in a text is text.
    """
    found = []
    for ids in tokenizer(texts, split_special_tokens=True, verbose=False)["input_ids"]:
        whole = ids if ids and ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]
        starts = range(0, len(whole) - 1, max_length - 1)
        found.append([whole[start : start + max_length] for start in starts])
    return found


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], open_turn: bool) -> str:
    rendered: Any = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_turn)
    return str(rendered)
