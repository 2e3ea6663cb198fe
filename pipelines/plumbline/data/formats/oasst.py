"""Message trees of OpenAssistant (Köpf et al. 2023): `prompt` with nested `replies`, or the root message itself.

A prompter's message has the assistant's answers as replies, ranked by people (`rank` 0 is the best); an answer has what
prompters said next.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from plumbline.data.chat import Turns, build_chat, build_prompt
from plumbline.data.formats.options import Options
from plumbline.data.formats.rankings import number, ranking
from plumbline.data.row import Reject, Row

FIELDS = "prompt {text, role, replies} (a message tree), or text, role, replies"

MAX_DEPTH = 100  # oasst1 is at most some ten messages deep
FLAGGED = 0.5
"""Share of reviewers who said so: the majority."""

Message = dict[str, Any]


def recognise(record: dict[str, Any]) -> bool:
    """Whether the record is a message tree in either spelling."""
    root = record.get("prompt", record)
    return isinstance(root, dict) and {"text", "role", "replies"} <= root.keys()


def convert(record: dict[str, Any], options: Options) -> Iterator[Row | Reject]:
    """Chats along the tree, or a ranking for every prompt with two ranked answers or more.

    `options.paths` best: from each prompt to its best answer, and on to a next prompt that was answered. All: one chat for
    each answer that nothing answered follows. Messages that are deleted, failed review or were flagged by most as spam or
    as another language are left out with all that follows them; each is a reject.

    Raises:
        Reject: no tree, a tree that is not ready for export, or nothing in it is usable.
    """
    root = record.get("prompt", record)
    if not recognise(record):
        raise Reject("no tree", "text, role and replies are expected")
    state = record.get("tree_state", "ready_for_export")
    if state != "ready_for_export":
        raise Reject("tree is not ready", f"tree_state: {state}")
    rejects: list[Reject] = []
    tree = _pruned(root, rejects)
    yield from rejects
    if tree is None:
        return
    language = root["lang"] if isinstance(root.get("lang"), str) else None
    if options.form == "messages":
        paths = _all_paths(tree, []) if options.paths == "all" else iter([_best_path(tree)])
        made = (_chat(path, language) for path in paths if path)
    else:
        made = (row for path in _prompts(tree, []) if (row := _ranking(path, language)))
    found = False
    for row in made:
        found = True
        yield row
    if not found and not rejects:
        raise Reject("no answer" if options.form == "messages" else "fewer than two answers")


def _pruned(message: Any, rejects: list[Reject], depth: int = 0) -> Message | None:
    """The usable part of a tree, replies in order of rank."""
    problem = _problem(message, depth)
    if problem:
        rejects.append(Reject(problem, str(message.get("message_id", "")) if isinstance(message, dict) else ""))
        return None
    replies = [_pruned(reply, rejects, depth + 1) for reply in message.get("replies") or []]
    kept = [reply for reply in replies if reply is not None]
    return {**message, "replies": sorted(kept, key=lambda reply: (_rank(reply) is None, _rank(reply) or 0))}


def _problem(message: Any, depth: int) -> str | None:
    if not isinstance(message, dict) or depth > MAX_DEPTH:
        return "malformed tree"
    if not all(isinstance(message.get(name), str) for name in ("text", "role")):
        return "malformed tree"
    if not isinstance(message.get("replies") or [], list):
        return "malformed tree"
    if message.get("deleted"):
        return "message deleted"
    if message.get("review_result") is False:
        return "message failed review"
    for label, reason in (("spam", "message is spam"), ("lang_mismatch", "message in another language")):
        if (_label(message, label) or 0) >= FLAGGED:
            return reason
    return None


def _label(message: Message, name: str) -> float | None:
    labels = message.get("labels")
    value = labels.get(name) if isinstance(labels, dict) else None
    value = value.get("value") if isinstance(value, dict) else None
    return number(value)


def _rank(message: Message) -> float | None:
    """From 0, the best; tables that hold nulls have it as a float."""
    return number(message.get("rank"))


def _is_answer(message: Message) -> bool:
    return bool(message["role"] == "assistant")


def _best_path(tree: Message) -> list[Message]:
    """Messages to the best answer of each prompt; replies are in order of rank, so among answers the first is the best."""
    path, message = [tree], tree
    while message["replies"]:
        # Of what prompters said next, only what was answered goes on.
        goes_on = [reply for reply in message["replies"] if _is_answer(reply) or reply["replies"]]
        if not goes_on:
            break
        message = goes_on[0]
        path.append(message)
    return path if _is_answer(path[-1]) else []


def _all_paths(message: Message, before: list[Message]) -> Iterator[list[Message]]:
    path = [*before, message]
    goes_on = [reply for reply in message["replies"] if _is_answer(reply) or reply["replies"]]
    for reply in goes_on:
        yield from _all_paths(reply, path)
    if not goes_on and _is_answer(message):
        yield path


def _prompts(message: Message, before: list[Message]) -> Iterator[list[Message]]:
    """Paths that end with a prompt."""
    path = [*before, message]
    if not _is_answer(message):
        yield path
    for reply in message["replies"]:
        yield from _prompts(reply, path)


def _turns(path: list[Message]) -> Turns:
    return [(message["role"], message["text"]) for message in path]


def _chat(path: list[Message], language: str | None) -> Row | Reject:
    last = path[-1]
    try:
        chat = build_chat(_turns(path))
    except Reject as reject:
        return reject
    teacher = last.get("model_name") if last.get("synthetic") else None
    return Row(
        {"messages": chat},
        record_id=last.get("message_id"),
        language=language,
        teacher=teacher if isinstance(teacher, str) else None,
        score=_label(last, "quality"),
    )


def _ranking(path: list[Message], language: str | None) -> Row | Reject | None:
    """The ranked answers to the last message of a path; None where there are not two."""
    ranks = [(answer["text"], rank) for answer in path[-1]["replies"] if (rank := _rank(answer)) is not None]
    if len(ranks) < 2:
        return None
    try:
        row = ranking(build_prompt(_turns(path)), [(text, -rank) for text, rank in ranks])
    except Reject as reject:
        return reject
    return Row(row.content, record_id=path[-1].get("message_id"), language=language)
