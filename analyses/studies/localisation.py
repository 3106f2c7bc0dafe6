"""At which depth an effect lies, and how sure that is: the best layer of a grid, over resampled prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.findings.cross_model import published
from analyses.statistics.clusters import Floats
from analyses.studies.aligned import Aligned, Source, align
from analyses.studies.folds import Codes
from analyses.studies.naming import matched
from analyses.studies.study import Estimate, NoStudy, Table
from analyses.studies.words import interval, notes, percent
from analyses.tables.cells import axis_named, cell_words, cells_of
from analyses.wording import count, figure, listed, plural

DRAWS, SEED = 2000, 0
_FEWEST = 3  # items
_FEWEST_DRAWS, _MOST_NUMBERS = 200, 20_000_000  # of draws x trials
_AT_ONCE = 2_000_000
_MOST_TOLD = 3  # layers that a sentence names beside the best
_TIE = 1e-12  # what rounding may put between equal means


@dataclass(frozen=True)
class Layer:
    """The best cell at one layer: its mean, over the trials that all cells share, and the share of resampled
    tables in which this layer has the best cell of all."""

    layer: int
    cell: str
    mean: float
    chosen: float


@dataclass(frozen=True)
class Localisation:
    """The layer of the best cell of a grid. tied: other layers with a cell of the same mean. low, high: the
    middle 95% of the layers that are best in resampled tables, of equal ones any. depth: layer /
    `of_layers`. at_best: the readout there, on the trials that chose it; held_out: on one half of the
    targets, at the layer that is best on the other half, both ways. published: what stands in the file of
    published figures for this model, and for the others."""

    grid: str
    against: str | None
    readout: str
    direction: str
    layer: int
    tied: tuple[int, ...]
    cell: str
    low: int
    high: int
    of_layers: int
    at_best: Estimate
    held_out: float | None
    rows: tuple[Layer, ...]
    draws: int
    published: Mapping[str, Any] | None
    remarks: str

    @property
    def p_values(self) -> tuple[float | None, ...]:
        return ()

    @property
    def note(self) -> str:
        return self.remarks

    @property
    def depth(self) -> float:
        return self.layer / self.of_layers

    def sentence(self, corrected: Sequence[float | None], family: int) -> str:
        """Layer, depth, how far it moves over resampled prompts, and what it comes to on other prompts."""
        best = next(row for row in self.rows if row.layer == self.layer)
        span = f"layer {self.low}" if self.low == self.high else f"layers {self.low} to {self.high}"
        others = sorted((row for row in self.rows if row is not best), key=lambda row: -row.chosen)
        beside = [f"{row.layer} in {percent(row.chosen)}" for row in others[:_MOST_TOLD] if row.chosen > 0]
        also = f"; layer {listed(beside)}" if beside else ""
        less = "" if self.against is None else f" less {self.against}"
        tied = ""
        if self.tied:
            has = "has" if len(self.tied) == 1 else "have"
            tied = f" (layer {listed(list(map(str, self.tied)))} {has} the same mean)"
        told = (
            f"{self.readout} of {self.grid}{less} is {self.direction} at layer {self.layer} of "
            f"{self.of_layers}{tied}, depth {percent(self.depth)} (95% of {count(self.draws)} resampled "
            f"tables: {span}; layer {self.layer} in {percent(best.chosen)}{also}). There it is "
            f"{interval(self.at_best)} on the trials that chose it"
        )
        if self.held_out is not None:
            told += f", {figure(self.held_out)} on targets that did not"
        return f"{told}.{self._published()}"

    def _published(self) -> str:
        if self.published is None:
            return ""
        mine, models = self.published["value"], self.published["models"]
        if mine is not None:
            return f" Published of this model: layer {mine}."
        told = [f"{name} {value}" for name, value in models.items()]
        return f" Published layers of other models: {listed(told)}." if told else ""

    def table(self, corrected: Sequence[float | None]) -> Table:
        """A row for each layer."""
        head = ("layer", "depth", "best cell", f"mean {self.readout}", "best in resampled tables")
        rows = [
            (
                f"{row.layer} ({self.direction})" if row.layer == self.layer else str(row.layer),
                percent(row.layer / self.of_layers), row.cell, figure(row.mean), percent(row.chosen),
            )
            for row in self.rows
        ]  # fmt: skip
        return Table(head, tuple(rows))


def localisation(source: Source, spec: Mapping[str, Any], readout: str) -> Localisation:
    """The layer of the cell with the highest (or lowest) mean, with an interval over resampled prompts.

    Donors and targets are drawn again with replacement, each by itself, and a trial counts as often as its
    donor times its target was drawn (the pigeonhole bootstrap, which is wide rather than narrow); the best
    cell is looked for anew in each of the tables. The mean at the best layer is the largest of many and so
    too good; `held_out` is not.

    spec: `of`, a grid; `axis`, that of the layers; `against`, a condition of which the readout is taken off,
    or a grid of which that of the same cell is; `best`, highest or lowest; `published`, a path of the file of
    published figures; `draws`, `seed`. Cells with less than half as many values as the fullest are left out.
    Raises NoStudy where there is no layer, and where all cells have the same values.

    Source: Owen (2007), "The pigeonhole bootstrap".
    """
    conditions = source.conditions
    cells = cells_of(conditions, str(spec["of"]))
    layers, axis = _layers(cells, str(spec["axis"]))
    against = None if spec.get("against") is None else str(spec["against"])
    kept, remarks = _filled(source, list(layers), readout)
    others = _others(kept, str(spec["of"]), against, conditions)
    found = align(source, [(name, readout) for name in (*kept, *others.values())])
    if found.n < _FEWEST:
        raise NoStudy(f"{plural(found.n, 'trial')} with a value in every cell: fewer than {_FEWEST}")
    values = np.stack([found.values[name, readout] for name in kept], axis=1)
    if others:
        values = values - np.stack([found.values[others[name], readout] for name in kept], axis=1)
    if (np.ptp(values, axis=1) == 0).all():
        raise NoStudy(f"every cell has the same {readout} in each of {plural(found.n, 'trial')}")
    lowest = spec.get("best", "highest") == "lowest"
    sign = -1.0 if lowest else 1.0
    at = np.array([layers[name] for name in kept])
    draws = int(spec.get("draws", DRAWS))
    if draws > (affordable := max(_FEWEST_DRAWS, _MOST_NUMBERS // found.n)):
        remarks = notes(remarks, f"{count(affordable)} draws instead of {count(draws)} of so many trials")
        draws = affordable
    seed = int(spec.get("seed", SEED))
    random = np.random.default_rng(seed)
    sums = np.concatenate([_weights(found, some, random) @ values for some in _portions(draws, found.n)])
    # Of equal cells the first one would always be chosen, and its layer look sure.
    chance = np.random.default_rng((seed, 1)).random(sums.shape)
    chosen = at[np.where(_greatest(sign * sums), chance, -1.0).argmax(axis=1)]
    low, high = np.quantile(chosen, [0.025, 0.975], method="nearest")
    means = values.mean(axis=0)
    tops = np.flatnonzero(_greatest(sign * means))
    best = int(tops[0])
    tied = tuple(sorted(set(at[tops].tolist()) - {int(at[best])}))
    rows = []
    for layer in sorted(set(at.tolist())):
        mine = [place for place in range(len(kept)) if at[place] == layer]
        top = max(mine, key=lambda place: sign * means[place])
        axes = {name: value for name, value in cells[kept[top]].items() if name != axis}
        rows.append(Layer(layer, cell_words(axes), float(means[top]), float((chosen == layer).mean())))
    reference = (source.manifest.get("config") or {}).get("reference_depth")
    of_layers = int(reference or source.manifest.get("model", {}).get("layers") or max(at) + 1)
    if reference:
        remarks = notes(remarks, f"layers are told on a scale of {reference}")
    told = None
    if spec.get("published") is not None:
        given = published(str(spec["published"]), source.manifest.get("model", {}).get("name"))
        told = {"value": given.value, "models": dict(given.models)}
    return Localisation(
        str(spec["of"]), against, readout, "lowest" if lowest else "highest", int(at[best]), tied,
        kept[best], int(low), int(high), of_layers, Estimate.of(found.test(values[:, best])),
        _held_out(values, sign, found), tuple(rows), draws, told, notes(remarks, found.dropped),
    )  # fmt: skip


def _greatest(sums: Floats) -> NDArray[np.bool_]:
    """Which entries of the last axis are its greatest, but for rounding."""
    top = sums.max(axis=-1, keepdims=True)
    found: NDArray[np.bool_] = sums >= top - _TIE * np.maximum(1.0, np.abs(top))
    return found


def _layers(cells: Mapping[str, Mapping[str, Any]], word: str) -> tuple[dict[str, int], str]:
    """The layer of each cell, and the axis in full."""
    axis = axis_named(word, list(next(iter(cells.values()), {})))
    if axis is None:
        raise NoStudy(f"the grid has no axis {word}")
    found = {}
    for name, axes in cells.items():
        value = axes[axis]
        if isinstance(value, bool) or not str(value).isdecimal():
            raise NoStudy(f"{axis} is {value} in a cell: expected a layer by its number")
        found[name] = int(value)
    if len(set(found.values())) < 2:
        raise NoStudy("the grid has one layer only")
    return found, axis


def _others(
    cells: Sequence[str], grid: str, against: str | None, conditions: Mapping[str, Any]
) -> dict[str, str]:
    """What each cell is held against; empty where nothing is."""
    if against is None:
        return {}
    rows = matched({"of": grid, "against": against}, conditions).values()
    found = {row["of"]: row["against"] for row in rows}
    return {name: found[name] for name in cells}


def _filled(source: Source, names: Sequence[str], readout: str) -> tuple[list[str], str]:
    """The cells that have values, and a sentence on those that do not."""
    values, by_condition = source.column(readout), source.lookup.by_condition
    numbers = {name: int(np.isfinite(values[by_condition.ok(name)]).sum()) for name in names}
    most = max(numbers.values())
    kept = [name for name, number in numbers.items() if number and 2 * number >= most]
    if not kept:
        raise NoStudy(f"no cell has a value of {readout}")
    lost = len(names) - len(kept)
    return kept, f"{plural(lost, 'cell')} with few valid trials left out" if lost else ""


def _portions(draws: int, n: int) -> list[int]:
    """Draws in portions that fit into memory."""
    most = max(1, _AT_ONCE // n)
    return [min(most, draws - start) for start in range(0, draws, most)]


def _coded(labels: pd.Series) -> Codes:
    coded, _ = pd.factorize(labels)
    lone = np.flatnonzero(coded < 0)
    coded[lone] = coded.max() + 1 + np.arange(len(lone))
    return np.asarray(coded, dtype=np.intp)


def _weights(found: Aligned, draws: int, random: np.random.Generator) -> Floats:
    """How often each trial counts in each resampled table, (draws, n)."""
    labels = [*found.donors.values(), *([found.target] if found.target.notna().any() else [])]
    weights = np.ones((draws, found.n))
    for coded in map(_coded, labels or [pd.Series(np.arange(found.n))]):
        clusters = int(coded.max()) + 1
        drawn = random.multinomial(clusters, np.full(clusters, 1 / clusters), size=draws)
        weights *= drawn[:, coded]
    empty = weights.sum(axis=1) == 0
    weights[empty] = 1.0
    return weights


def _held_out(values: Floats, sign: float, found: Aligned) -> float | None:
    """The mean at the cell that is best on the other half of the targets."""
    if not found.target.notna().any():
        return None
    side = _coded(found.target) % 2
    if not 0 < side.sum() < len(side):
        return None
    told = []
    for half in (0, 1):
        best = int((sign * values[side != half].mean(axis=0)).argmax())
        told.append(float(values[side == half, best].mean()))
    return float(np.mean(told))
