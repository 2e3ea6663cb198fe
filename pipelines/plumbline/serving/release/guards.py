"""Is the new model worse than the one that serves? Two-sample comparisons of figures. Pure.

Each guard says how many standard errors the difference lies beyond its bound. They are looked at again and again while a step
lasts, and the more often one looks, the more often chance alone passes a limit: hence `BREACH` of three standard errors (for one guard
whose difference lies exactly on its bound, looked at from 20 to 2,000 requests on, about 3 % by the boundary-crossing approximation of
Siegmund 1985), and far below that for a model that is not worse at all. What is beyond `DOUBT` is not let on until more requests tell.
"""

from __future__ import annotations

import math

from plumbline.api.stages.release import ReleaseSpec
from plumbline.serving.release.figures import Figures, Window

FEWEST = 20
"""Requests of each model, below which nothing is compared."""
DOUBT, BREACH = 1.645, 3.0
"""Standard errors beyond the bound: not let on, and rolled back."""
QUANTILE = 0.95


def breach(window: Window, rules: ReleaseSpec) -> str | None:
    """The first guard that trips, in words; None where none does."""
    return _beyond(window, rules, BREACH)


def doubt(window: Window, rules: ReleaseSpec) -> str | None:
    """The first guard that might be about to trip, in words."""
    return _beyond(window, rules, DOUBT)


def _beyond(window: Window, rules: ReleaseSpec, z: float) -> str | None:
    stable, candidate = window.stable, window.candidate
    if min(stable.requests, candidate.requests) < FEWEST:
        return _all_fail(candidate)
    bad = (candidate.errors, candidate.requests), (stable.errors, stable.requests)
    if _least_difference(*bad, z) > rules.max_error_rate_increase:
        return f"errors: {_percent(*bad[0])} against {_percent(*bad[1])} before"
    if min(stable.answers, candidate.answers) < FEWEST:
        return None
    if rules.judge is not None and candidate.judged >= min(FEWEST, rules.judge.min_verdicts):
        share, _, high = _wilson(candidate.wins, candidate.judged, z)
        if high < rules.judge.min_win_rate:
            return f"judge: {100 * share:.1f} % wins, ties as half, of {candidate.judged} verdicts"
    refused = (candidate.refusals, candidate.answers), (stable.refusals, stable.answers)
    if _least_difference(*refused, z) > rules.max_refusal_increase:
        return f"refusals: {_percent(*refused[0])} against {_percent(*refused[1])} before"
    for longer, shorter, word in ((candidate, stable, "longer"), (stable, candidate, "shorter")):
        if _is_longer(longer, shorter, rules.max_length_ratio, z):
            return f"{word} answers: {candidate.mean_tokens:.1f} tokens in the mean against {stable.mean_tokens:.1f} before"
    if _is_slower(candidate, stable, rules.max_latency_ratio, z):
        now, before = (figures.latency(QUANTILE) for figures in (candidate, stable))
        return f"latency: {now:.3g} s at the 95th percentile against {before:.3g} s before"
    return None


def _all_fail(candidate: Figures) -> str | None:
    """A model that has never answered needs no comparison."""
    if candidate.errors >= FEWEST // 2 and not candidate.answers:
        return f"errors: each of its {candidate.errors} requests failed"
    return None


def _least_difference(first: tuple[int, int], second: tuple[int, int], z: float) -> float:
    """Lower end of Newcombe's interval (1998, method 10) for the difference of two shares, each (count, of)."""
    (p, low, _), (q, _, high) = _wilson(*first, z), _wilson(*second, z)
    return p - q - math.hypot(p - low, high - q)


def _wilson(count: float, n: int, z: float) -> tuple[float, float, float]:
    """A share and its score interval."""
    p = count / n
    centre, width = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return p, (centre - width) / scale, (centre + width) / scale


def _is_longer(one: Figures, other: Figures, ratio: float, z: float) -> bool:
    """Whether the mean of one is more than `ratio` times the other's (Welch's standard error)."""
    error = math.sqrt(one.variance_of_mean_tokens + ratio**2 * other.variance_of_mean_tokens)
    return one.mean_tokens - ratio * other.mean_tokens > z * error


def _is_slower(candidate: Figures, stable: Figures, ratio: float, z: float) -> bool:
    """Whether more of the candidate's answers than the quantile allows take longer than `ratio` times the stable one's quantile.

    That quantile is known from so many answers only: the upper end of its interval is taken.
    """
    n = sum(stable.latencies.values())
    limit = ratio * stable.latency(min(1.0, QUANTILE + z * math.sqrt(QUANTILE * (1 - QUANTILE) / n)))
    _, low, _ = _wilson(candidate.slower_than(limit), sum(candidate.latencies.values()), z)
    return low > 1 - QUANTILE


def _percent(count: int, n: int) -> str:
    return f"{100 * count / n:.1f} %"
