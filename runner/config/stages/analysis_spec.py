"""The shape of a declared analysis: what each kind asks, beyond the differences of two conditions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from runner.config.spec import Finite, Names, Pair, Strict
from runner.config.stages.spec import Aliased

OneOrMore = str | Names  # a condition, a grid, or a list of conditions


class CellsSpec(Strict):
    """The four conditions of an interaction: two writes together, each alone, and none. Grids stand for their
    cells, matched by their axes; lists are matched by their order."""

    both: OneOrMore
    first: OneOrMore
    second: OneOrMore
    neither: OneOrMore


class InteractionSpec(Strict):
    """Whether two writes do more together than the sum of each: both - second - (first - neither)."""

    kind: Literal["interaction"]
    label: str = ""
    stage: str | None = None
    readout: str | None = None
    cells: CellsSpec


class ShareSpec(Aliased):
    """How much of the effect of the condition `in` the conditions `of` have, both less `against` (null: the
    baseline)."""

    kind: Literal["share"]
    label: str = ""
    stage: str | None = None
    readout: str | None = None
    of: OneOrMore
    in_: str = Field(alias="in")
    against: str | None = None


class SpecificitySpec(Strict):
    """Whether the treatment passes the condition `against` (null: the baseline) and every control. beside:
    columns whose medians stand beside."""

    kind: Literal["specificity"]
    label: str = ""
    stage: str | None = None
    readout: str | None = None
    treatment: str
    controls: OneOrMore
    against: str | None = None
    beside: Names = ()


class DecompositionSpec(Strict):
    """Which part of the column `of` carries each contrast: `into` are the columns that sum to it. contrasts:
    pairs of conditions; none: those that the stage declares."""

    kind: Literal["decomposition"]
    label: str = ""
    stage: str | None = None
    of: str
    into: Annotated[Names, Field(min_length=2)]
    beside: Names = ()
    contrasts: Annotated[tuple[Pair, ...], Field(strict=False)] = ()


class PredictorsSpec(Strict):
    """What separates the trials of a condition with a readout of at least `high` from those with at most
    `low`: columns of it, CONDITION.COLUMN of another one, `donor_length`, `group`."""

    kind: Literal["predictors"]
    label: str = ""
    stage: str | None = None
    readout: str | None = None
    condition: str
    high: Finite
    low: Finite
    features: Annotated[Names, Field(min_length=1)]
    folds: Annotated[int, Field(ge=2)] = 4
    draws: Annotated[int, Field(ge=100)] = 500
    penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    seed: int = 0


class VarianceSpec(Strict):
    """Where the spread of a readout lies: donors, targets, pairs, repeats, or within an item. conditions:
    null for all; against: their differences from this one."""

    kind: Literal["variance"]
    label: str = ""
    stage: str | None = None
    readout: str | None = None
    conditions: OneOrMore | None = None
    against: str | None = None


class LocalisationSpec(Strict):
    """The layer of the best cell of the grid `of` along `axis`, with an interval over resampled prompts.
    against: a condition, or a grid whose cell of the same axes is taken off."""

    kind: Literal["localisation"]
    label: str = ""
    stage: str | None = None
    readout: str | None = None
    of: str
    axis: str
    against: str | None = None
    best: Literal["highest", "lowest"] = "highest"
    published: str | None = None
    draws: PositiveInt = 2000
    seed: int = 0


AnalysisSpec = (
    InteractionSpec
    | ShareSpec
    | SpecificitySpec
    | DecompositionSpec
    | PredictorsSpec
    | VarianceSpec
    | LocalisationSpec
)
ANALYSES: Mapping[str, type[AnalysisSpec]] = {
    "interaction": InteractionSpec,
    "share": ShareSpec,
    "specificity": SpecificitySpec,
    "decomposition": DecompositionSpec,
    "predictors": PredictorsSpec,
    "variance": VarianceSpec,
    "localisation": LocalisationSpec,
}
