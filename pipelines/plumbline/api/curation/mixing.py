"""`mix` of `curate`: how much of what, and in which order."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from plumbline.api.base import WHOLE, NonNegativeFloat, PositiveInt, Share, SpecModel, validated_by
from plumbline.api.curation.selection import SelectSpec


class MixSpec(SpecModel):
    """Shares of sources and of programming. What is left over is dropped; what is scarce may be repeated."""

    model_config = validated_by(
        ("!has(self.weights) || self.weights.exists(name, self.weights[name] > 0)", "one weight at least must be above 0"),
    )

    weights: dict[str, NonNegativeFloat] | None = Field(default=None, min_length=1, max_length=64)
    """Share of each source, by name, as weights of any sum; 0 leaves a source out. Names all sources. Unset: sources
    stand as they come."""
    programming: Share | None = None
    """Share of rows about programming (0.5 left conversation unchanged and improved reasoning: Muennighoff et al.,
    arXiv 2305.16264), met within one percentage point; where a dataset of few rows cannot, as near as whole rows come, and
    the data card says so. Unset: as they come."""
    unit: Literal["rows", "tokens"] = "rows"
    """What shares and `total` are of; tokens as the run's tokenizer and chat template count."""
    total: PositiveInt | None = None
    """How much to make, in `unit`; the stage fails if the shares do not allow it. Default: as much as they allow,
    repeating no row of what is plentiful."""
    max_epochs: Annotated[int, Field(ge=1, le=100), WHOLE] = 1
    """How often at most a row may stand in the dataset, so that what is scarce reaches its share. 1: never repeated (4
    is nearly as good as new data: Muennighoff et al.)."""
    order: Literal["source", "shuffled", "shortest", "easiest"] = "source"
    """`source`: as rows came, repeats at the end. `shuffled`. For a curriculum `shortest` first, or `easiest` first by
    what `select` measured: IFD, DEITA's complexity, or the number of tags. Training keeps to it with
    `shuffle: false`."""

    def problems(self, select: SelectSpec | None) -> list[tuple[str, str]]:
        """Contradictions, also with the stage's `select`, by field path below the block."""
        found = []
        if self.weights is not None and not any(self.weights.values()):
            found.append(("weights", "all are 0, so no row could stay; give one above 0"))
        if self.order == "easiest" and not (select and select.tells_difficulty):
            found.append(
                (
                    "order",
                    "'easiest' needs a measure of difficulty: select by ifd, tags or deita.complexity, or take shortest",
                )
            )
        return found
