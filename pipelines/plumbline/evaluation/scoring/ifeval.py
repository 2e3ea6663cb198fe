"""IFEval from stored replies: prompt- and instruction-level, strict and loose (rules: `scoring.instructions`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plumbline.evaluation.scoring.instructions import KINDS, follows
from plumbline.evaluation.scoring.records import Record, read_records
from plumbline.evaluation.scoring.scored import Sample, Scored, once, refuse_unmatched, reply, share
from plumbline.evaluation.shown import shown
from plumbline.evaluation.statistics import Estimate, mean

OUTPUTS = "records with prompt and response"
PROBLEMS = "records with key, prompt, instruction_id_list and kwargs"
RELATIONS = ("less than", "at least")


@dataclass(frozen=True)
class Instruction:
    """One instruction of a prompt: a name of `KINDS` and its arguments."""

    kind: str
    arguments: dict[str, Any]


def score_ifeval(outputs: str, problems: str | None = None) -> list[Scored]:
    """The four accuracies, and the strict one by kind of instruction.

    Args:
        outputs: file of the replies.
        problems: file of the prompts with their instructions, where the outputs do not hold them.

    Raises:
        InvalidInput: a file cannot be read, a prompt stands twice in it, or an instruction is unknown or lacks an argument.
    """
    records = read_records(outputs, OUTPUTS)
    if problems is None and "kwargs" not in records[0].value:
        raise records[0].refuse("has no kwargs, the arguments of its instructions; give the prompts' file by --problems")
    known = _problems(records if problems is None else read_records(problems, PROBLEMS))
    answered: dict[Any, Record] = {}
    for record in records:
        once(answered, record.text("prompt"), record, "the prompt")
    samples, strict_kinds, loose = [], {}, []  # type: tuple[list[Sample], dict[str, list[float]], list[list[bool]]]
    strict: list[list[bool]] = []
    for prompt, record in answered.items():
        if prompt not in known:
            continue
        item, instructions = known[prompt]
        text = reply(record)
        strict.append([follows(one.kind, one.arguments, text) for one in instructions])
        loose.append([follows(one.kind, one.arguments, text, loose=True) for one in instructions])
        for one, followed in zip(instructions, strict[-1], strict=True):
            strict_kinds.setdefault(one.kind, []).append(float(followed))
        missed = [one.kind for one, followed in zip(instructions, strict[-1], strict=True) if not followed]
        reason = "" if not missed else "empty reply" if not text.strip() else "not followed: " + ", ".join(missed)
        kinds = [one.kind for one in instructions]
        variants = {"instructions": kinds, "strict": strict[-1], "loose": loose[-1]}
        samples.append(Sample(item, float(not missed), None, reason, variants, _flags(record, len(instructions))))
    if not samples:
        raise refuse_unmatched(outputs, problems, "prompt")
    metrics = {
        "prompt-level strict": share([float(all(one)) for one in strict]),
        "instruction-level strict": clustered(strict),
        "prompt-level loose": share([float(all(one)) for one in loose]),
        "instruction-level loose": clustered(loose),
    }
    counts = {
        "prompts": len(samples),
        "instructions": sum(map(len, strict)),
        "empty replies": sum(s.reason == "empty reply" for s in samples),
    }
    flagged = [(one.stored, one.variants) for one in samples if isinstance(one.stored, list)]
    if flagged:
        counts["stored flags"] = sum(len(flags) for flags, _ in flagged)
        for rule in ("strict", "loose"):
            pairs = [pair for flags, variants in flagged for pair in zip(flags, variants[rule], strict=True)]
            counts[f"stored flags that {rule} agrees with"] = sum(stored == followed for stored, followed in pairs)
    if len(samples) < len(answered):
        counts["outputs without a problem, not scored"] = len(answered) - len(samples)
    if len(samples) < len(known):
        counts["problems without an output, not scored"] = len(known) - len(samples)
    return [Scored("", metrics, counts, {kind: share(values) for kind, values in sorted(strict_kinds.items())}, samples)]


def _flags(record: Record, count: int) -> list[bool] | None:
    """What the file itself says of each instruction."""
    flags = record.value.get("follow_instruction_list")
    return flags if isinstance(flags, list) and len(flags) == count and all(isinstance(one, bool) for one in flags) else None


def clustered(followed: Sequence[Sequence[bool]]) -> Estimate:
    """Share of instructions that were followed, with an interval that knows that those of one prompt are not independent: of the
    ratio of two means over prompts (Cochran 1977, section 6.4)."""
    total = sum(map(len, followed))
    value = sum(map(sum, followed)) / total
    n = len(followed)
    if n < 2:
        return Estimate(value, 0.0, 1.0, total)
    residuals = [sum(one) - value * len(one) for one in followed]
    if not any(residuals):  # all followed, or none: as wide as that of the prompts
        interval = share([value] * n) if value in (0.0, 1.0) else mean([value] * n, 0.95)
        return Estimate(value, interval.low, interval.high, total)
    error = math.sqrt(sum(one * one for one in residuals) * n / (n - 1)) / total
    return Estimate(value, max(0.0, value - 1.959964 * error), min(1.0, value + 1.959964 * error), total)


def _problems(records: Sequence[Record]) -> dict[str, tuple[str, list[Instruction]]]:
    """Number and instructions of each prompt."""
    seen: dict[Any, Record] = {}
    found = {}
    for record in records:
        prompt = record.text("prompt")
        once(seen, prompt, record, "the prompt")
        found[prompt] = str(record.value.get("key", record.place)), instructions_of(record)
    return found


def instructions_of(record: Record) -> list[Instruction]:
    """The instructions of a prompt's record.

    Raises:
        InvalidInput: it has none, or one is unknown or lacks an argument.
    """
    names, arguments = record.value.get("instruction_id_list"), record.value.get("kwargs")
    if not isinstance(names, list) or not names or not isinstance(arguments, list) or len(arguments) != len(names):
        raise record.refuse(
            f"instruction_id_list and kwargs are no two lists of one length, at least one; expected {PROBLEMS}"
        )
    return [_instruction(record, *one) for one in zip(names, arguments, strict=True)]


def _instruction(record: Record, name: Any, arguments: Any) -> Instruction:
    kind = name.removeprefix("en:") if isinstance(name, str) else name
    if not isinstance(kind, str) or kind not in KINDS:
        raise record.refuse(
            f"instruction {shown(name)} is not one of the {len(KINDS)} of IFEval: {', '.join(sorted(KINDS))}"
        )
    if arguments is not None and not isinstance(arguments, dict):
        raise record.refuse(f"kwargs of {kind} are {shown(arguments)}; expected an object")
    given = {key: value for key, value in (arguments or {}).items() if value is not None}  # some copies fill up with nulls
    for key, wanted in KINDS[kind].arguments.items():
        value = given.get(key)
        words = isinstance(value, list) and value and all(isinstance(word, str) for word in value)
        number = isinstance(value, float) and not math.isfinite(value)
        if not isinstance(value, wanted) or isinstance(value, bool) or number or (wanted is list and not words):
            raise record.refuse(f"argument '{key}' of {kind} is {shown(value)}; expected {_type_name(wanted)}")
        if key.endswith("relation") and value not in RELATIONS:
            raise record.refuse(f"argument '{key}' of {kind} is {shown(value)}; expected {' or '.join(RELATIONS)}")
    return Instruction(kind, given)


def _type_name(wanted: Any) -> str:
    return {str: "text", list: "a list of texts"}.get(wanted, "a number")
