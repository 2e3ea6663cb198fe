"""Sequences → micro-batches of tensors: packed rows or buckets of like length. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch

BUCKET_RATIO, BUCKET_SLACK = 1.25, 4  # a bucket's longest row may exceed its shortest by this


@dataclass
class Sequence:
    """One tokenised text.

    Attributes:
        ids: tokens.
        trained: for each token, whether it is a target. The first token can never be one.
        values: numbers that the objective needs: a float for the sequence, or a list with one per target.
        inputs: what the model reads in the place of `ids`, where it is not to see them all.
        row: number of its row in the dataset, -1 if it is of none.
        shared: how many of its first tokens are those of the last sequence before it in its unit that shares none; they are
            computed once, there.
    """

    ids: list[int]
    trained: list[bool]
    values: dict[str, float | list[float]] = field(default_factory=dict)
    inputs: list[int] | None = None
    row: int = -1
    shared: int = 0

    @property
    def targets(self) -> int:
        return sum(self.trained[1:])

    @property
    def read(self) -> list[int]:
        """What the model reads."""
        return self.inputs or self.ids

    @property
    def places(self) -> int:
        """How many tokens are computed for it."""
        return len(self.ids) - self.shared

    def cut(self, length: int) -> Sequence:
        """The first `length` tokens."""
        return replace(
            self, ids=self.ids[:length], trained=self.trained[:length], inputs=self.inputs[:length] if self.inputs else None,
            shared=min(self.shared, length),
        )  # fmt: skip


@dataclass
class MicroBatch:
    """What one forward pass needs. R rows of T tokens hold S sequences with N targets in all.

    Attributes:
        input_ids, position_ids: [R, T]. Positions restart at each sequence of a row, which is what tells attention
            to keep them apart; one that starts at p > 0 goes on from the first p tokens of the last that started at 0.
        predict_at: [N] flat indices into R·T: the positions whose next token is a target; several may follow a shared one.
        targets: [N] those tokens.
        sequence: [N] which of the S sequences each target belongs to.
        size: S.
        per_sequence: name → [S];  per_target: name → [N].
        per_step: numbers of the whole optimizer step over all ranks, which no micro-batch can know of itself.
        rows: for each sequence, the number of its row in the dataset, -1 if it is of none.
        tokens, pairs: what is computed, without padding: tokens, shared ones once, and pairs of a token with itself or an
            earlier one of its sequence.
        shares: whether any sequence shares tokens with another.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    predict_at: torch.Tensor
    targets: torch.Tensor
    sequence: torch.Tensor
    size: int
    per_sequence: dict[str, torch.Tensor] = field(default_factory=dict)
    per_target: dict[str, torch.Tensor] = field(default_factory=dict)
    per_step: dict[str, float] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)
    tokens: int = 0
    pairs: int = 0
    shares: bool = False

    def summed(self, logps: torch.Tensor) -> torch.Tensor:
        """[S] sums of per-target numbers [N] over each sequence."""
        return torch.zeros(self.size, dtype=logps.dtype, device=logps.device).index_add(0, self.sequence, logps)

    def lengths(self) -> torch.Tensor:
        """[S] numbers of targets, at least 1."""
        return self.summed(torch.ones(len(self.sequence), device=self.sequence.device)).clamp(min=1)

    def averaged(self, logps: torch.Tensor) -> torch.Tensor:
        """[S] means of per-target numbers [N] over each sequence."""
        return self.summed(logps) / self.lengths()

    def to(self, device: torch.device) -> MicroBatch:
        """The same on `device`."""
        return MicroBatch(
            *(getattr(self, name).to(device) for name in ("input_ids", "position_ids", "predict_at", "targets", "sequence")),
            self.size,
            {name: tensor.to(device) for name, tensor in self.per_sequence.items()},
            {name: tensor.to(device) for name, tensor in self.per_target.items()},
            self.per_step,
            self.rows,
            self.tokens,
            self.pairs,
            shares=self.shares,
        )

    @classmethod
    def empty(cls) -> MicroBatch:
        """One token and no target: lets a rank keep step with ranks that have more to do."""
        none = torch.zeros(0, dtype=torch.long)
        one = torch.zeros(1, 1, dtype=torch.long)
        return cls(one, one.clone(), none, none.clone(), none.clone(), 0)


Rows = list[list[int]]


def pack(lengths: list[int], row_tokens: int) -> Rows:
    """First-fit decreasing: indices of sequences for each row of at most `row_tokens` (or one longer sequence)."""
    rows: Rows = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for row, left in enumerate(room):
            if lengths[i] <= left:
                rows[row].append(i)
                room[row] -= lengths[i]
                break
        else:
            rows.append([i])
            room.append(max(0, row_tokens - lengths[i]))
    return rows


def split_rows(rows: Rows, lengths: list[int], micro_batch_tokens: int) -> list[Rows]:
    """Group rows of like length so that rows × longest row stays within `micro_batch_tokens`."""
    sized = sorted(((sum(lengths[i] for i in row), row) for row in rows), key=lambda pair: (pair[0], pair[1]))
    groups: list[Rows] = []
    shortest = 0
    for size, row in sized:
        fits = groups and (len(groups[-1]) + 1) * size <= micro_batch_tokens
        if not fits or size > shortest * BUCKET_RATIO + BUCKET_SLACK:
            groups.append([])
            shortest = size
        groups[-1].append(row)
    return groups


def micro_batches(
    units: Iterable[list[Sequence]], *, micro_batch_tokens: int, row_tokens: int | None = None
) -> list[MicroBatch]:
    """Lay out one optimizer step's sequences.

    Args:
        units: sequences that must share a micro-batch, such as the two answers of a pair; mostly single ones.
        micro_batch_tokens: bound on R·T, padding included; a single longer unit goes alone.
        row_tokens: pack units, each whole, into rows of this many tokens; None: one sequence a row, unless some share tokens, which
            must then lie in one row: those are packed, with all others, into rows of `micro_batch_tokens`.
    """
    units = list(units)
    if row_tokens is None and any(sequence.shared for unit in units for sequence in unit):
        row_tokens = micro_batch_tokens
    if row_tokens is not None:
        lengths = [sum(sequence.places for sequence in unit) for unit in units]
        groups = split_rows(pack(lengths, row_tokens), lengths, micro_batch_tokens)
        return [collate([[sequence for i in row for sequence in units[i]] for row in group]) for group in groups]
    longest = [max(len(sequence.ids) for sequence in unit) for unit in units]
    width = max((len(unit) for unit in units), default=1)
    groups = split_rows([[i] for i in range(len(units))], longest, max(1, micro_batch_tokens // width))
    return [collate([[sequence] for row in group for i in row for sequence in units[i]]) for group in groups]


def share(group: list[Sequence], tokens: int, most: int) -> list[list[Sequence]]:
    """Lay the first tokens of a group out once: units for `micro_batches`, for a model that shares prompts.

    Args:
        group: sequences that begin alike, such as the answers to one prompt. In order they are the sequences of the units.
        tokens: how many first tokens they have in common.
        most: tokens of a unit; what does not fit starts another, with these first tokens again.
    """
    units: list[list[Sequence]] = []
    room = 0
    for sequence in group:
        if not units or len(sequence.ids) - tokens > room:
            units.append([replace(sequence, shared=0)])
            room = most - len(sequence.ids)
        else:
            units[-1].append(replace(sequence, shared=tokens))
            room -= len(sequence.ids) - tokens
    return units


def without_sharing(units: Iterable[list[Sequence]]) -> list[list[Sequence]]:
    """The same units with every sequence laid out whole."""
    return [[replace(sequence, shared=0) for sequence in unit] for unit in units]


def ask_in_order(
    sequences: list[Sequence], ask: Callable[[list[MicroBatch]], list[torch.Tensor]], *, micro_batch_tokens: int
) -> list[float]:
    """One number for each sequence, in order, whatever the layout.

    Args:
        sequences: whose `values` are free to be replaced.
        ask: micro-batches → [S] numbers of the sequences of each; called also with none, as ranks must keep step.
        micro_batch_tokens: bound on R·T.
    """
    for place, sequence in enumerate(sequences):
        sequence.values = {"place": float(place)}
    found = [0.0] * len(sequences)
    batches = micro_batches([[sequence] for sequence in sequences], micro_batch_tokens=micro_batch_tokens)
    for batch, numbers in zip(batches, ask(batches), strict=True):
        for place, number in zip(batch.per_sequence["place"].tolist(), numbers.tolist(), strict=True):
            found[int(place)] = number
    return found


def collate(rows: list[list[Sequence]]) -> MicroBatch:
    """Rows of sequences → tensors, padded on the right; padding is a segment of its own without targets.

    Raises:
        ValueError: a sequence shares tokens that are not those of the one before it in its row.
    """
    width = max(sum(sequence.places for sequence in row) for row in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    position_ids = torch.zeros(len(rows), width, dtype=torch.long)
    predict_at: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    sequences = [sequence for row in rows for sequence in row]
    number = 0
    for r, row in enumerate(rows):
        start, first, first_start = 0, row[0], 0  # `first` is the one whose tokens are shared
        for sequence in row:
            length, shared, end = len(sequence.ids), sequence.shared, start + sequence.places
            if not shared:
                first, first_start = sequence, start
            elif first is sequence or sequence.read[:shared] != first.read[:shared]:
                raise ValueError(f"sequence {number} shares {shared} tokens that are not those before it in its row")
            input_ids[r, start:end] = torch.tensor(sequence.read[shared:], dtype=torch.long)
            position_ids[r, start:end] = torch.arange(shared, length)
            for t in range(1, length):
                if sequence.trained[t]:
                    before = first_start + t - 1 if t <= shared else start + t - 1 - shared
                    predict_at.append(r * width + before)
                    targets.append(sequence.ids[t])
                    owner.append(number)
            start = end
            number += 1
        if len(row) == 1:  # one sequence: positions go on, so that attention sees a plain causal row
            position_ids[r, start:] = torch.arange(start, width)
        else:
            position_ids[r, start:] = torch.arange(width - start)
    batch = MicroBatch(
        input_ids, position_ids, torch.tensor(predict_at, dtype=torch.long), torch.tensor(targets, dtype=torch.long),
        torch.tensor(owner, dtype=torch.long), len(sequences), rows=[sequence.row for sequence in sequences],
        tokens=sum(s.places for s in sequences), pairs=sum(s.places * (len(s.ids) + s.shared + 1) // 2 for s in sequences),
        shares=any(s.shared for s in sequences),
    )  # fmt: skip
    for name, value in sequences[0].values.items():
        if isinstance(value, list):
            batch.per_target[name] = torch.tensor([x for s in sequences for x in s.values[name]])  # type: ignore[union-attr]
        else:
            batch.per_sequence[name] = torch.tensor([s.values[name] for s in sequences])
    return batch
