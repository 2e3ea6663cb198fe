"""What a release does next. Pure: a record in, a record out; who calls says what time it is."""

from __future__ import annotations

from typing import Any

from plumbline.api.report import Rollback
from plumbline.api.stages.release import ReleaseSpec
from plumbline.serving.release.figures import Window
from plumbline.serving.release.guards import breach, doubt
from plumbline.serving.release.record import MAX_HISTORY, MAX_REFUSED, MAX_SUPERSEDED, Change, Phase, Record, Version


def begin(record: Record | None, version: Version, rules: ReleaseSpec | None, holder: str, now: float) -> Record:
    """What a new application does, which is to serve `version`.

    Without rules, and where nothing has served yet, that is stable at once: nobody is served by this application meanwhile.
    """
    if record is None:
        return _told(Record(holder=holder, stable=version, since=now), now)
    if holder != record.holder:
        superseded = [one for one in [*record.superseded, record.holder] if one != holder][-MAX_SUPERSEDED:]
        record = record.model_copy(update={"holder": holder, "superseded": superseded})
    if rules is None and version.fingerprint not in {record.stable.fingerprint, *record.refused}:
        return _stable(record, version, "replaced when the endpoint started", now)
    return propose(record, version, rules, now)


def propose(record: Record, version: Version, rules: ReleaseSpec | None, now: float) -> Record:
    """What it does when the run's stage becomes `version`."""
    new = version.fingerprint
    if new == record.stable.fingerprint:
        record = record.model_copy(update={"stable": version})
        return _step(record, "full", 0, "the run went back to it", now) if record.phase != "full" else record
    if new in record.refused:
        if record.phase == "rolledBack" and record.candidate is not None and new == record.candidate.fingerprint:
            return record
        return _step(record.model_copy(update={"candidate": version}), "rolledBack", 0, record.refused[new], now)
    if record.releasing and record.candidate is not None and new == record.candidate.fingerprint:
        return record.model_copy(update={"candidate": version, "rules": rules})
    if not _told_apart(version, record.stable):
        rules = None
    return _step(record.model_copy(update={"candidate": version, "rules": rules}), "loading", 0, "", now)


def loaded(record: Record, now: float) -> Record:
    """The candidate is loaded in every replica and has answered a token."""
    if record.phase != "loading":
        return record
    if record.rules is None:
        return _promoted(record, "it is loaded and answers", now)
    if record.rules.shadow.percent:
        return _step(record, "shadow", 0, "", now)
    return _step(record, "canary", steps(record.rules)[0], "", now) if steps(record.rules) else _promoted(record, "", now)


def advance(record: Record, window: Window, now: float) -> Record:
    """One look at the figures of this step.

    A guard that trips rolls back. Otherwise the next step follows once this one has lasted long enough, with enough requests, and no
    guard is in doubt.
    """
    rules = record.rules
    if record.phase not in ("shadow", "canary") or rules is None:
        return record
    record = record.model_copy(update={"window": window})
    worse = breach(window, rules)
    if worse is not None:
        return roll_back(record, worse, now)
    wanted = rules.shadow.min_requests if record.phase == "shadow" else rules.min_requests
    if now - record.since < rules.hold_seconds or window.candidate.requests < wanted or doubt(window, rules) is not None:
        return record
    if record.phase == "shadow" and rules.judge is not None and window.candidate.judged < rules.judge.min_verdicts:
        return record
    after = next((percent for percent in steps(rules) if percent > record.percent), None)
    return _promoted(record, "every guard held", now) if after is None else _step(record, "canary", after, "", now)


def steps(rules: ReleaseSpec) -> list[int]:
    """Percentages of the canary, those below 100."""
    return sorted({percent for percent in rules.steps if percent < 100})


def roll_back(record: Record, reason: str, now: float) -> Record:
    """The candidate gets nothing more, and is not tried again."""
    assert record.candidate is not None
    return _step(_refuse(record, record.candidate.fingerprint, reason), "rolledBack", 0, reason, now)


def not_loaded(record: Record, reason: str, now: float) -> Record:
    """The candidate cannot be loaded here. It may be elsewhere, or later: it is not refused for ever."""
    return _step(record, "rolledBack", 0, f"it cannot be loaded: {reason}", now)


def obey(record: Record, asked: Rollback, now: float) -> Record:
    """What somebody asked for who knows better than figures do. Asked once, it is done once."""
    if asked.id <= record.obeyed:
        return record
    record = record.model_copy(update={"obeyed": asked.id})
    if asked.to is None and record.releasing and record.stable.fingerprint not in record.refused:
        return roll_back(record, "by hand", now)
    wanted = target(record, asked.to)
    if wanted is None:
        return record
    if wanted.fingerprint == record.stable.fingerprint:
        return roll_back(record, "by hand", now) if record.releasing else record
    if asked.to is None:
        record = _refuse(record, record.stable.fingerprint, "by hand")
    kept = {fingerprint: why for fingerprint, why in record.refused.items() if fingerprint != wanted.fingerprint}
    changes = {"candidate": wanted, "rules": None, "refused": kept}
    return _step(record.model_copy(update=changes), "loading", 0, "asked for by hand", now)


def target(record: Record, to: str | None) -> Version | None:
    """What `plumbline rollback` would lead to; None where the record does not know it.

    Args:
        record: the present one.
        to: fingerprint of the stage or of its model; None: what served before, unless that was rolled back itself: who asks twice, or
            just after a guard has tripped, means the same.
    """
    if to is None and record.phase != "full" and record.stable.fingerprint not in record.refused:
        return record.stable
    if to is None:
        good = record.previous is not None and record.previous.fingerprint not in record.refused
        return record.previous if good else None
    known = [version for version in (record.stable, record.previous, record.candidate) if version is not None]
    return next((version for version in known if to in (version.fingerprint, version.answers_as)), None)


def _told_apart(one: Version, other: Version) -> bool:
    """Whether figures of both can be told apart; else, as where only a limit differs, there is nothing to compare."""
    return one.name == other.name and one.answers_as != other.answers_as


def _refuse(record: Record, fingerprint: str, reason: str) -> Record:
    refused = {**{k: v for k, v in record.refused.items() if k != fingerprint}, fingerprint: reason}
    return record.model_copy(update={"refused": dict(list(refused.items())[-MAX_REFUSED:])})


def _promoted(record: Record, reason: str, now: float) -> Record:
    assert record.candidate is not None
    return _stable(record, record.candidate, reason, now)


def _stable(record: Record, version: Version, reason: str, now: float) -> Record:
    changes: dict[str, Any] = {"stable": version, "previous": record.stable, "candidate": None, "rules": None}
    return _step(record.model_copy(update=changes), "full", 0, reason, now)


def _step(record: Record, phase: Phase, percent: int, reason: str, now: float) -> Record:
    if phase == "full" and record.candidate is not None:
        record = record.model_copy(update={"candidate": None, "rules": None})
    changes = {"phase": phase, "percent": percent, "since": now, "window": Window(), "reason": reason}
    if phase == "rolledBack":
        del changes["window"]  # what it was rolled back for
    return _told(record.model_copy(update=changes), now)


def _told(record: Record, now: float) -> Record:
    candidate = record.candidate.fingerprint if record.candidate else None
    line = Change(
        time=now,
        phase=record.phase,
        percent=record.percent,
        stable=record.stable.fingerprint,
        candidate=candidate,
        reason=record.reason,
    )
    return record.model_copy(update={"history": [*record.history, line][-MAX_HISTORY:]})
