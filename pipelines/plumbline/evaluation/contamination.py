"""Which questions of a benchmark the training data held, and what the scores are without them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import fsspec

from plumbline.api.base import ArtifactType
from plumbline.api.stages.evaluate import HARNESS, TaskSpec
from plumbline.artifacts import Artifact, Workspace
from plumbline.data.decontamination.findings import FILE
from plumbline.evaluation import statistics
from plumbline.evaluation.lineage import Member, family
from plumbline.evaluation.statistics import Estimate
from plumbline.external import SKILLS

DATASETS = (ArtifactType.DATASET, ArtifactType.PREFERENCE_DATASET)


@dataclass(frozen=True)
class Exposure:
    """What is known of a task's questions in the data of the evaluated models. Of the base model's own nothing is known.

    Attributes:
        unchecked: names of the datasets that models were trained on and that nobody compared with the questions.
        touched: ids of the questions that occurred in a row, also in one that was dropped: other wordings may have stayed.
        left: those of them that occurred in rows of a dataset.
        disjoint: the questions are generated, and all data are of the generator's other part.
    """

    unchecked: tuple[str, ...] = ()
    touched: frozenset[str] = frozenset()
    left: frozenset[str] = frozenset()
    disjoint: bool = False

    @property
    def status(self) -> Literal["disjoint", "checked", "not checked"]:
        """In two words."""
        return "disjoint" if self.disjoint else "not checked" if self.unchecked else "checked"


@dataclass(frozen=True)
class CleanScore:
    """One model's score with and without the questions that were touched.

    Attributes:
        model: its name.
        all: on all questions.
        clean: on those that were not touched; None where there are none.
        difference: all − clean; None where one of the sides has no question.
    """

    model: str
    all: Estimate
    clean: Estimate | None
    difference: Estimate | None


@dataclass(frozen=True)
class Cleanliness:
    """One task, with and without the questions that were touched.

    Attributes:
        task: its name.
        exposure: of the questions that were asked.
        items: how many were asked.
        scores: of each model.
    """

    task: str
    exposure: Exposure
    items: int
    scores: tuple[CleanScore, ...]

    def warning(self, candidate: str) -> str | None:
        """What a reader of the score must know, in one sentence; None where there is nothing."""
        parts = []
        if self.exposure.unchecked:
            parts.append(f"nobody compared it with the data of {', '.join(self.exposure.unchecked)}")
        if self.exposure.touched:
            mine = next((score for score in self.scores if score.model == candidate), None)
            told = f"{len(self.exposure.touched)} of {self.items} questions occurred in training sources"
            told += (
                f", {len(self.exposure.left)} are left in the data" if self.exposure.left else ", in rows that were dropped"
            )
            if mine is not None and mine.clean is not None:
                told += f"; {candidate} scores {mine.all.value:.3f} on all and {mine.clean.value:.3f} on the others"
            parts.append(told)
        return f"{self.task}: {'; '.join(parts)}" if parts else None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "task": self.task,
            "status": self.exposure.status,
            "unchecked": list(self.exposure.unchecked),
            "items": self.items,
            "touched": sorted(self.exposure.touched),
            "left": sorted(self.exposure.left),
            "scores": [
                {"model": s.model, "all": _json(s.all), "clean": _json(s.clean), "difference": _json(s.difference)}
                for s in self.scores
            ],
        }


def _json(estimate: Estimate | None) -> dict[str, float] | None:
    return (
        None if estimate is None else {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}
    )


def exposures(
    tasks: Sequence[TaskSpec], identities: Mapping[str, str], models: Sequence[Artifact], workspace: Workspace
) -> dict[str, Exposure]:
    """What the datasets that the models come from say of each task.

    Args:
        tasks: of the evaluation.
        identities: of the tasks' files, by URI.
        models: the candidate and its baselines; without those that are the bare base.
        workspace: where their ancestors lie.
    """
    datasets = [one for one in family(models, workspace) if one.type in DATASETS]
    reports = [(one, _report(one.artifact)) for one in datasets]
    return {task.name: _exposure(task, identities, reports) for task in tasks}


def _report(dataset: Artifact | None) -> dict[str, Any]:
    if dataset is None or FILE not in dataset.manifest["files"]:
        return {"benchmarks": []}
    with fsspec.open(f"{dataset.uri}/{FILE}", "rb") as stream:
        found: dict[str, Any] = json.load(stream)
    return found


def _exposure(task: TaskSpec, identities: Mapping[str, str], reports: Sequence[tuple[Member, dict[str, Any]]]) -> Exposure:
    unchecked: list[str] = []
    if task.uri is None:  # skills, which are generated, or tasks of the harness, which nobody compares with data
        generated = task.benchmark != HARNESS
        unchecked = [_name(dataset) for dataset, _ in reports if not generated or not _is_disjoint(dataset)]
        return Exposure(tuple(dict.fromkeys(unchecked)), disjoint=generated and not unchecked)
    items: dict[str, bool] = {}
    for dataset, report in reports:
        found = [
            one
            for one in report["benchmarks"]
            if (one["benchmark"], one["identity"]) == (task.benchmark, identities[task.uri])
        ]
        # A dataset that went into another one only is judged by that.
        if not found and dataset.read_by - set(DATASETS):
            unchecked.append(_name(dataset))
        for one in found:
            for item, facts in one["touchedItems"].items():
                items[item] = items.get(item, False) or facts["rowsLeft"] > 0
    left = frozenset(item for item, stays in items.items() if stays)
    return Exposure(tuple(dict.fromkeys(unchecked)), frozenset(items), left)


def _is_disjoint(dataset: Member) -> bool:
    """Whether all that is from outside of the run is `builtin://skills`, and that of its `train` part, which shares no task
    with the part that is evaluated. A teacher could write anything."""
    if dataset.artifact is None or dataset.kind != "curate":
        return False
    sources = dataset.artifact.manifest["lineage"]["sources"]
    return all((source["uri"], source.get("split")) == (SKILLS, "train") for source in sources)


def _name(dataset: Member) -> str:
    return dataset.artifact.manifest["stage"] if dataset.artifact else f"{dataset.fingerprint} (lost)"


def cleanliness(
    task: str,
    exposure: Exposure,
    items: Sequence[str],
    scores: Mapping[str, Sequence[float | None]],
    confidence: float,
    clusters: Sequence[str] = (),
) -> Cleanliness:
    """Scores with and without the questions that were touched.

    Args:
        task: its name.
        exposure: of its questions.
        items: ids of the questions that were asked.
        scores: model → score of each of them, in [0, 1]; None where there is none. A model without any is left out.
        confidence: level of the intervals.
        clusters: of each question; that of the difference takes questions for independent.
    """
    asked = frozenset(items)
    narrowed = replace(exposure, touched=exposure.touched & asked, left=exposure.left & asked)
    found = []
    for model, values in scores.items():
        known = [number for number, value in enumerate(values) if value is not None]
        clean = [number for number in known if items[number] not in narrowed.touched]
        dirty = [number for number in known if items[number] in narrowed.touched]
        if not known:
            continue
        found.append(
            CleanScore(
                model,
                _score(values, known, confidence, clusters),
                _score(values, clean, confidence, clusters) if clean else None,
                _difference(_at(values, dirty), _at(values, clean), confidence) if clean and dirty else None,
            )
        )
    return Cleanliness(task, narrowed, len(items), tuple(found))


def _score(values: Sequence[float | None], numbers: Sequence[int], confidence: float, clusters: Sequence[str]) -> Estimate:
    return statistics.score(_at(values, numbers), confidence, [clusters[i] for i in numbers] if clusters else ())


def _at(values: Sequence[float | None], numbers: Sequence[int]) -> list[float]:
    return [value for number in numbers if (value := values[number]) is not None]


def _difference(dirty: Sequence[float], clean: Sequence[float], confidence: float) -> Estimate:
    """all − clean = share touched · (touched − clean), whose sides are different questions."""
    share = len(dirty) / (len(dirty) + len(clean))
    apart = statistics.independent_difference(dirty, clean, confidence)
    return Estimate(share * apart.value, share * apart.low, share * apart.high, apart.n)
