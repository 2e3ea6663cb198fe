"""Mixing: how much of each source and of programming, which rows, how often, in which order. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plumbline.api.curation.mixing import MixSpec
from plumbline.data.selection.budget import Budget
from plumbline.errors import InvalidInput

TOLERANCE = 0.01
"""How far an achieved share may be from its target, of all."""
KINDS = ("what is not programming", "programming")
FEW_ROWS = 100
"""So few may not make up a share within the tolerance: one row is too much of them."""
ROUNDING = 1 - 1e-12
"""A third of three million is one million."""


@dataclass(frozen=True)
class Mixture:
    """What comes out.

    Attributes:
        rows: (m,) row numbers in output order; one that is repeated stands there several times.
        card: achieved shares, in plain values.
    """

    rows: np.ndarray
    card: dict[str, Any]


@dataclass(frozen=True)
class Targets:
    """Shares of groups × kinds, and what there is to fill them. A dimension without a target has one group or kind of
    share 1.

    Attributes:
        once: (g, k) amount of all rows.
        groups: (g,) share of each group.
        kinds: (k,) share of each kind.
        epochs: how often a row may be taken.
    """

    once: np.ndarray
    groups: np.ndarray
    kinds: np.ndarray
    epochs: int

    @property
    def most(self) -> np.ndarray:
        """(g, k) amount with all repeats."""
        return self.once * self.epochs

    def allows(self, total: float) -> bool:
        """Whether shares of `total` can be filled: each group has its part, and the groups together have each kind's
        part."""
        parts = self.groups * total
        enough = parts * ROUNDING <= self.most.sum(axis=1)
        given = np.minimum(parts[:, None], self.most).sum(axis=0) >= self.kinds * total * ROUNDING
        return bool(enough.all() and given.all())

    def largest(self) -> int:
        """The largest total that is allowed. Smaller ones are allowed too: a filling can be scaled down."""
        low, high = 0, int(self.most.sum())
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.allows(middle) else (low, middle - 1)
        return low

    def nearest(self, most: int, one_more: bool) -> int:
        """The total, at most `most`, at which whole rows come within the tolerance of all shares, or else nearest to them;
        the first of equals. The tolerance may allow `one_more`, where that repeats nothing plentiful."""
        found, least = most, np.inf
        for total in (most, *(most + 1,) * one_more, *range(most - 1, 0, -1)):
            amounts = allocate(self, total)
            if not amounts.any() or (amounts > self.most).any():
                continue
            shares = amounts / amounts.sum()
            off = max(abs(shares.sum(axis=1) - self.groups).max(), abs(shares.sum(axis=0) - self.kinds).max())
            if off <= TOLERANCE:
                return total
            if off < least:
                found, least = total, off
        return found

    def plenty(self) -> int:
        """The total at which what is most plentiful of all that has a target would be used up once."""
        dimensions = ((self.once.sum(axis=1), self.groups), (self.once.sum(axis=0), self.kinds))
        totals = [
            max(amount / share for amount, share in zip(amounts.tolist(), shares.tolist(), strict=True) if share > 0)
            for amounts, shares in dimensions
            if len(shares) > 1
        ]
        return int(min(*totals, self.most.sum())) if totals else int(self.once.sum())


def mix(
    source: np.ndarray,
    programming: np.ndarray,
    tokens: np.ndarray,
    spec: MixSpec,
    names: Sequence[str],
    seed: int,
    difficulty: np.ndarray | None = None,
    where: str = "mix",
) -> Mixture:
    """Choose rows so that shares are met within one percentage point, and put them in order.

    Which rows of a source and kind are taken is a seeded draw of its own, of which a larger share takes more, so that
    runs with other shares differ as little as can be.

    Args:
        source: (n,) of each row, place in `names`.
        programming: (n,) whether a row is about programming.
        tokens: (n,) of each row.
        spec: the stage's `mix` block.
        names: of the sources; those of one name count as one.
        seed: of the draws and of `shuffled`.
        difficulty: (n,) for the order `easiest`.
        where: field path of the block, for messages.

    Raises:
        InvalidInput: the shares cannot be met; says what is possible.
    """
    size = np.asarray(tokens, np.int64) if spec.unit == "tokens" else np.ones(len(tokens), np.int64)
    group, shares = _groups(source, spec, names, where)
    kind = programming.astype(np.int64) if spec.programming is not None else np.zeros(len(size), np.int64)
    kinds = np.array([1.0] if spec.programming is None else [1 - spec.programming, spec.programming])
    once = np.zeros((len(shares), len(kinds)), np.int64)
    np.add.at(once, (group, kind), size)
    once[shares == 0] = 0
    targets = Targets(once, shares, kinds, spec.max_epochs)
    total, bound = _total(targets, spec, sorted(set(names)), where)
    amounts = allocate(targets, total)
    picked = [
        _draw(np.flatnonzero((group == g) & (kind == k)), size, int(amounts[g, k]), np.random.default_rng([seed, g, k]))
        for g, k in np.argwhere(amounts).tolist()
    ]
    rows, copies = (np.concatenate([one[i] for one in picked]) for i in (0, 1))
    if not len(rows):
        raise InvalidInput(
            f"{where}.total: no row fits into {total:,} {spec.unit}; raise it, the shortest has {int(size.min()):,}"
        )
    card = _card(rows, source, programming, tokens, spec, names) | {"bound": bound}
    card["missed"] = _check(card, spec, where)
    return Mixture(_ordered(rows, copies, tokens, spec, seed, difficulty), card)


def allocate(targets: Targets, total: int) -> np.ndarray:
    """Whole amounts of each group and kind, by largest remainder; at most `total`, less where rounding allows no more.

    Between the least and the most of the second kind that each group can give, all groups stand at the same point.

    Returns:
        (g, k) int64.
    """
    while total > 0:
        parts = largest_remainder(targets.groups * total, total)
        if len(targets.kinds) == 1:
            return parts[:, None]
        low = np.maximum(0, parts - targets.most[:, 0])
        high = np.minimum(parts, targets.most[:, 1])
        wanted = round(targets.kinds[1] * total)
        reached = int(np.clip(wanted, low.sum(), high.sum()))
        if (low <= high).all() and abs(reached - wanted) <= max(1, TOLERANCE * total / 2):
            point = (reached - low.sum()) / max(1, (high - low).sum())
            second = largest_remainder(low + point * (high - low), reached)
            return np.stack([parts - second, second], axis=1)
        total -= 1
    return np.zeros_like(targets.once)


def largest_remainder(amounts: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers that sum to `total`, each next to its amount; of equal remainders the first is rounded up."""
    amounts = np.round(amounts, 6)  # 2.9999999996 is 3
    whole = np.floor(amounts).astype(np.int64)
    up = np.argsort(-(amounts - whole), kind="stable")[: total - int(whole.sum())]
    whole[up] += 1
    return whole


def _groups(source: np.ndarray, spec: MixSpec, names: Sequence[str], where: str) -> tuple[np.ndarray, np.ndarray]:
    """((n,) group of each row, (g,) share of each group)."""
    if spec.weights is None:
        return np.zeros(len(source), np.int64), np.ones(1)
    known = sorted(set(names))
    for name in spec.weights:
        if name not in known:
            raise InvalidInput(f"{where}.weights: '{name}' is no source; sources are {', '.join(known)}")
    for name in known:
        if name not in spec.weights:
            raise InvalidInput(f"{where}.weights: the source '{name}' has none; give one, 0 leaves it out")
    return np.array([known.index(name) for name in names], np.int64)[source], np.array(_shares(spec.weights, known))


def _shares(weights: Mapping[str, float], names: Sequence[str]) -> list[float]:
    """Of sum 1, for weights of any sum."""
    largest = max(weights.values())  # the sum of weights may be too large for a number
    scaled = [weights[name] / largest for name in names]
    return [one / sum(scaled) for one in scaled]


def _total(targets: Targets, spec: MixSpec, groups: Sequence[str], where: str) -> tuple[int, str]:
    """(how much to make, what bounds it in words)."""
    possible, plenty = targets.largest(), targets.plenty()
    scarcest = _scarcest(targets, possible, spec, groups)
    if possible == 0:
        raise InvalidInput(f"{where}: nothing can be mixed in these shares: {scarcest}; change them or the sources")
    if spec.total is None:
        total, bound = (possible, scarcest) if possible < plenty else (plenty, "what is plentiful is used up")
        if spec.unit == "rows" and total < FEW_ROWS:
            total = targets.nearest(total, one_more=possible < plenty)
        return total, bound
    if spec.total > possible:
        raise InvalidInput(
            f"{where}.total: {spec.total:,} {spec.unit} are not there, at most {possible:,}: {scarcest}, and maxEpochs is "
            f"{spec.max_epochs}; lower total, raise maxEpochs or change the shares"
        )
    return spec.total, "total"


def _scarcest(targets: Targets, possible: int, spec: MixSpec, groups: Sequence[str]) -> str:
    """What allows no more, in words."""
    dimensions = (
        ([f"the source '{name}'" for name in groups], targets.once.sum(axis=1), targets.groups),
        (KINDS, targets.once.sum(axis=0), targets.kinds),
    )
    bounds = [
        (amount / share, f"{label} has {amount:,} {spec.unit} for a share of {share:.1%}")
        for labels, amounts, shares in dimensions
        if len(shares) > 1
        for label, amount, share in zip(labels, amounts.tolist(), shares.tolist(), strict=True)
        if share > 0
    ]
    if not bounds:
        return f"there are {int(targets.once.sum()):,} {spec.unit}"
    least, words = min(bounds)
    together = least * targets.epochs >= possible + 1
    return "programming is spread over the sources too unevenly for both shares" if together else words


def _draw(cell: np.ndarray, size: np.ndarray, amount: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one cell that make up the amount, and of each which copy it is. All rows as often as can be, then some
    once more."""
    whole, rest = divmod(amount, int(size[cell].sum()))
    extra = Budget(tokens=rest).take(random.permutation(cell), size) if rest else cell[:0]
    copies = np.repeat(np.arange(whole + 1), [len(cell)] * whole + [len(extra)])
    return np.concatenate([np.tile(cell, whole), extra]), copies


def _ordered(
    rows: np.ndarray,
    copies: np.ndarray,
    tokens: np.ndarray,
    spec: MixSpec,
    seed: int,
    difficulty: np.ndarray | None,
) -> np.ndarray:
    rows = rows[np.lexsort((rows, copies))]
    match spec.order:
        case "source":
            return rows
        case "shuffled":
            return np.random.default_rng(seed).permutation(rows)
        case "shortest":
            return rows[np.lexsort((rows, np.asarray(tokens)[rows]))]
        case "easiest":
            assert difficulty is not None, "MixSpec.problems refuses this"
            return rows[np.lexsort((rows, difficulty[rows]))]


def _card(
    rows: np.ndarray, source: np.ndarray, programming: np.ndarray, tokens: np.ndarray, spec: MixSpec, names: Sequence[str]
) -> dict[str, Any]:
    counts = np.bincount(rows, minlength=len(source))
    size = np.asarray(tokens, np.int64)
    unit = counts * size if spec.unit == "tokens" else counts
    known = sorted(set(names))
    shares = _shares(spec.weights, known) if spec.weights else [None] * len(known)

    def line(chosen: np.ndarray, target: float | None) -> dict[str, Any]:
        return {
            "rows": int(counts[chosen].sum()),
            "tokens": int((counts * size)[chosen].sum()),
            "share": float(unit[chosen].sum() / unit.sum()),
            "target": target,
            "distinct": int(np.count_nonzero(counts[chosen])),
            "maxEpochs": int(counts[chosen].max(initial=0)),
        }

    numbers = np.array([known.index(name) for name in names])[source]
    return {
        "unit": spec.unit,
        "rows": len(rows),
        "tokens": int((counts * size).sum()),
        "leftOut": int(np.count_nonzero(counts == 0)),
        "order": spec.order,
        "programming": line(programming.astype(bool), spec.programming),
        "sources": [
            {"name": name} | line(numbers == number, share)
            for number, (name, share) in enumerate(zip(known, shares, strict=True))
        ],
    }


def _check(card: dict[str, Any], spec: MixSpec, where: str) -> list[str]:
    """Whole rows may not add up to a share: one that is off by more than the tolerance, and than a row, is not what was
    asked for. The fields of those that are off by more than the tolerance alone, for want of rows."""
    missed = []
    allowed = max(TOLERANCE, 1 / card["rows"])
    lines = [("programming", card["programming"]), *((f"weights['{line['name']}']", line) for line in card["sources"])]
    for name, line in lines:
        off = 0.0 if line["target"] is None else abs(line["share"] - line["target"])
        if off > allowed:
            raise InvalidInput(
                f"{where}.{name}: {line['target']:.1%} of the {spec.unit} was asked for, and whole rows make "
                f"{line['share']:.1%}: rows are too long for so small a total; set unit: rows, or raise total"
            )
        if off > TOLERANCE:
            missed.append(name)
    return missed
