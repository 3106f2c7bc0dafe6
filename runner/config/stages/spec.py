"""The shape of an experiment with stages: what is extracted, what is chosen, and what is found in the end."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PositiveInt

from backends.writes import Site
from runner.config.spec import LayersWord, Names, Prompt, Strict

Bound = float | str  # a number, or a depth such as 80% where layers are compared


class Aliased(Strict):
    """A mapping with a key that is no name in Python (`from`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class CriterionSpec(Strict):
    """What must hold: of the mean of a readout in a condition (of an item: of its own value), less that of
    another condition where `minus` is given; or of the value of an axis. Exactly one bound. In a grid, `of`
    and `minus` name the grid, and each cell is held against the same cell of the other."""

    of: str | None = None
    readout: str | None = None
    minus: str | None = None
    axis: str | None = None
    above: Bound | None = None
    at_least: Bound | None = None
    below: Bound | None = None
    at_most: Bound | None = None
    equals: Bound | None = None


class ObjectiveSpec(Strict):
    """What is made lowest or highest: the mean of a readout of a condition or grid, less that of `minus`.
    absolute: its size whatever its sign. Of an artefact's own table, a column (`separation`) without `of`."""

    readout: str
    of: str | None = None
    minus: str | None = None
    absolute: bool = False


class MeasureStageSpec(Strict):
    """Conditions x items x repeats. What it does not say is as at the top level."""

    kind: Literal["measure"]
    question: str = ""
    conditions: dict[str, Any]
    prompts: dict[str, Any] = Field(default_factory=dict)
    split: str | None = None
    items: str | None = None
    n: PositiveInt | Literal["all"] | None = None
    repeats: PositiveInt | None = None
    sampling: dict[str, Any] = Field(default_factory=dict)
    readouts: Names | None = None
    contrasts: dict[str, Any] = Field(default_factory=dict)
    in_sample: bool = False


class ExtractStageSpec(Aliased):
    """An artefact: mean activations of the prompts `of` the items, less those of `minus`, at a site; or what
    another artefact (`from`) gives when chosen heads of it go through their output projection and are summed.

    each_position: keep the positions apart, as index -P to -1 from the last, instead of their mean. by:
    `group` keeps a mean for each group of items. norm: `unit` scales every vector to length 1.
    """

    kind: Literal["extract"]
    question: str = ""
    prompts: dict[str, Any] = Field(default_factory=dict)
    split: str | None = None
    items: str | None = None
    n: PositiveInt | Literal["all"] | None = None
    of: Prompt = "target"
    minus: Prompt | None = None
    site: Site = "resid_post"
    layers: LayersWord = "all"
    positions: str = "index:-1"
    each_position: bool = False
    by: Literal["group"] | None = None
    norm: Literal["raw", "unit"] = "raw"
    from_: str | None = Field(default=None, alias="from")
    heads: str | None = None
    through: Literal["o_proj"] | None = None


class SelectStageSpec(Aliased):
    """A choice over the table of an earlier stage: cells of a grid (`over` its axes), or items.

    where: what a cell must satisfy. lowest, highest: what decides between those that do. top: how many are
    taken. draw: so many at random instead (seed), without those of the choice `but`. items: what must hold of
    an item that is kept.
    """

    kind: Literal["select"]
    question: str = ""
    from_: str = Field(alias="from")
    over: Names = ()
    where: Annotated[tuple[CriterionSpec, ...], Field(strict=False)] = ()
    lowest: ObjectiveSpec | None = None
    highest: ObjectiveSpec | None = None
    top: PositiveInt = 1
    draw: PositiveInt | None = None
    but: str | None = None
    seed: int = 42
    items: Annotated[tuple[CriterionSpec, ...], Field(strict=False)] = ()


AnyStage = Annotated[MeasureStageSpec | ExtractStageSpec | SelectStageSpec, Field(discriminator="kind")]


class FindingSpec(Strict):
    """One figure that the experiment is for, with its interval, beside the published one where there is one.

    Of a measurement: the mean of `readout` in the condition or grid `of` of a stage, less that of `against`
    (paired; McNemar where both are 0 or 1). reduce: `any` takes an item's largest value over the cells of a
    grid. by: `group` or an axis gives one figure for each of its values. items: only items of which these
    hold. Of a choice: the value of its axis, with the depth where that is a layer. Of an artefact: a column
    of its table (norm, separation, consistency), at the cell of `choice`.
    """

    label: str = ""
    stage: str | None = None
    of: str | None = None
    readout: str | None = None
    against: str | None = None
    reduce: Literal["mean", "any"] = "mean"
    by: str | None = None
    items: Annotated[tuple[CriterionSpec, ...], Field(strict=False)] = ()
    choice: str | None = None
    axis: str | None = None
    artefact: str | None = None
    column: str | None = None
    published: str | None = None


class FigureSpec(Strict):
    """One figure. heatmap: a grid over x and y, the mean of `readout` less that of `against`. curve:
    `readout` along the axis x, a line for each grid or condition of `of` (and each value of `by`). layers: a
    list readout along the layers, a line for each condition. bars: means of conditions, by group."""

    kind: Literal["heatmap", "curve", "layers", "bars"]
    stage: str
    of: Names
    readout: str
    x: str | None = None
    y: str | None = None
    against: str | None = None
    by: str | None = None
    title: str = ""
