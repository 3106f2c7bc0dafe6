"""What tells items with a high score from items with a low one: features, cross-validated, against a null."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analyses.statistics.clusters import Floats, clustered_mean
from analyses.statistics.corrections import holm
from analyses.studies.aligned import Source
from analyses.studies.features import features
from analyses.studies.folds import Codes, blocks, shuffled
from analyses.studies.logistic import auc, concordant, fit, influence, predict, standardised
from analyses.studies.naming import alone
from analyses.studies.study import ALPHA, NoStudy, Table
from analyses.studies.words import notes, p_cell
from analyses.wording import count, figure, in_column, listed, p_value, plural

FOLDS, DRAWS, PENALTY, SEED = 4, 500, 1.0, 0
_PARTITIONS = 2  # ways of dealing few items into folds, of which the area is the mean; many are dealt once
_FEW = 500
_MOST = 1_000  # items of both classes beyond which some are drawn
_FEWEST = 5  # items of a class below which nothing is fitted
_POWER = 0.8416  # standard deviations above the critical value that are passed with 80% power
_AT_ONCE = 2_000_000  # numbers of shuffled features that are held at a time


@dataclass(frozen=True)
class Feature:
    """One feature by itself: its means in both classes, and the area under its ROC curve (0.5: it tells
    nothing; below, it is lower in the high class), with the clustered interval and the p of null draws."""

    name: str
    high: float
    low: float
    area: float
    ci_low: float | None
    ci_high: float | None
    p: float
    p_holm: float | None


@dataclass(frozen=True)
class Predictors:
    """What all features tell together. area: that under the ROC curve, cross-validated; p: the share of null
    draws that come to as much; chance: the middle 95% of the draws; detectable: an area that would have been
    told from chance with 80% power. n_between: items that are in neither class."""

    condition: str
    readout: str
    high: float
    low: float
    n_high: int
    n_low: int
    n_between: int
    clusters: dict[str, int]
    folds: int
    draws: int
    area: float | None
    p: float | None
    chance: tuple[float, float] | None
    detectable: float | None
    features: tuple[Feature, ...]
    remarks: str

    @property
    def p_values(self) -> tuple[float | None, ...]:
        return (self.p,)

    @property
    def note(self) -> str:
        return self.remarks

    def sentence(self, corrected: Sequence[float | None], family: int) -> str:
        """Whether anything separates the classes, and what."""
        classes = (
            f"{count(self.n_high)} trials of {self.condition} with {self.readout} >= {self.high:g} and "
            f"{count(self.n_low)} with at most {self.low:g}"
        )
        between = f" ({plural(self.n_between, 'trial')} between are left out)" if self.n_between else ""
        if self.area is None or self.chance is None or self.detectable is None:
            return f"What separates {classes}{between} is not asked: {self.remarks}."
        low, high = self.chance
        figures = (
            f"cross-validated AUC {figure(self.area)}, {p_value(self.p)}; by chance {figure(low)} to "
            f"{figure(high)} in 95% of {count(self.draws)} draws; {listed(self._counted())}"
        )
        single = [each for each in self.features if each.p_holm is not None and each.p_holm < ALPHA]
        told = [
            f"{each.name} ({'higher' if each.area > 0.5 else 'lower'} in the high ones, AUC "
            f"{figure(each.area)}, {p_value(each.p_holm)} after Holm)"
            for each in single
        ]
        alone_ = f" By itself: {listed(told)}." if told else " No feature by itself is shown to."
        power = f" An AUC of {figure(self.detectable)} would have been told from chance with 80% power."
        if self.detectable >= 1:
            power = " With so few, no AUC below 1 would have been told from chance with 80% power."
        if self.p is not None and self.p < ALPHA:
            return f"The features together separate {classes}{between}: {figures}.{alone_}{power}"
        return f"Nothing is shown to separate {classes}{between} beyond chance: {figures}.{alone_}{power}"

    def _counted(self) -> list[str]:
        return [plural(number, name) for name, number in self.clusters.items()]

    def table(self, corrected: Sequence[float | None]) -> Table:
        """A row for each feature, then all together."""
        at = f"{self.readout} >= {self.high:g}", f"{self.readout} <= {self.low:g}"
        head = ("feature", f"mean at {at[0]}", f"mean at {at[1]}", "AUC", "95% CI", "p (Holm)")
        rows = []
        for each in self.features:
            means = in_column([each.high, each.low])
            interval = "-" if each.ci_low is None else f"{figure(each.ci_low)} to {figure(each.ci_high)}"
            rows.append((each.name, *means, figure(each.area), interval, p_cell(each.p_holm)))
        if self.area is not None:
            rows.append(("all, cross-validated", "", "", figure(self.area), "", p_cell(self.p)))
        return Table(head, tuple(rows))


def predictors(source: Source, spec: Mapping[str, Any], readout: str) -> Predictors:
    """What separates the trials of a condition with readout >= high from those with readout <= low.

    Logistic regression with an L2 penalty on standardised features, both classes weighing the same, is
    cross-validated so that a test item shares neither donor nor target with the items that it is predicted
    from (`folds.blocks`). The area under the ROC curve counts pairs of items of the same test block, since
    fits differ in their intercepts. The null shuffles the features, donors' among donors and targets' among
    targets (`folds.shuffled`), and goes the whole way again, standardisation and folds included. p = (1 +
    draws that come to as much) / (1 + draws). Each feature by itself has its area, with the clustered
    interval of DeLong and Obuchowski, and a two-sided p of the same draws, Holm over the features.

    spec: `condition`, `high`, `low`, `features`, `folds`, `draws`, `penalty`, `seed`. Items without a value
    of a feature, and those between low and high, are left out and counted. Raises NoStudy for a feature
    that the table lacks and where no trial is left.
    """
    condition = alone(str(spec["condition"]), source.conditions)
    place = source.place(condition)
    rows = place[np.unique(source.lookup.units.codes[source.ok(condition)])]
    scores = source.column(readout)[rows]
    table = features(source, rows, spec["features"])
    whole = table.notna().all(axis=1).to_numpy() & np.isfinite(scores)
    if not whole.any():
        raise NoStudy(f"no trial of {condition} has a value of {readout} and of every feature")
    high, low = float(spec["high"]), float(spec["low"])
    extreme = whole & ((scores >= high) | (scores <= low))
    between = int((whole & ~extreme).sum())
    remarks = []
    if not whole.all():
        lacking = [str(name) for name in table.columns if table[name].isna().any()] or [readout]
        left = f"{count(int((~whole).sum()))} of {plural(len(rows), 'trial')}"
        remarks.append(f"{left} left out, without {listed(lacking)}")
    told = int(extreme.sum())
    if told > _MOST:
        drawn = np.random.default_rng(int(spec.get("seed", SEED))).choice(
            np.flatnonzero(extreme), _MOST, False
        )
        extreme = np.isin(np.arange(len(rows)), drawn)
        remarks.append(f"{count(_MOST)} of the {count(told)} trials in the classes, drawn at random")
    y: Floats = (scores[extreme] >= high).astype(np.float64)
    x = table[extreme]
    target = pd.Series(source.lookup.target(rows[extreme]), dtype=object)
    labels = {**source.donors([condition], [rows[extreme]]), "target": target}
    varying = [name for name in x.columns if len(x) and np.ptp(x[name].to_numpy()) > 0]
    constant = [str(name) for name in x.columns if name not in varying]
    if constant:
        remarks.append(f"{listed(constant)} {'is' if len(constant) == 1 else 'are'} the same in all items")
    ones = int(y.sum())
    opened = _Open(condition, readout, high, low, ones, len(y) - ones, between, tuple(remarks))
    if min(ones, len(y) - ones) < _FEWEST:
        return opened.nothing(f"a class has fewer than {_FEWEST} items")
    if not varying:
        return opened.nothing("no feature varies")
    return _judged(opened, spec, x[varying], y, labels)


@dataclass(frozen=True)
class _Open:
    """The classes, before anything is fitted."""

    condition: str
    readout: str
    high: float
    low: float
    n_high: int
    n_low: int
    n_between: int
    remarks: tuple[str, ...]

    def nothing(self, why: str) -> Predictors:
        return Predictors(
            self.condition, self.readout, self.high, self.low, self.n_high, self.n_low, self.n_between, {}, 0,
            0, None, None, None, None, (), notes(why, *self.remarks),
        )  # fmt: skip


def _judged(
    opened: _Open, spec: Mapping[str, Any], x: pd.DataFrame, y: Floats, labels: Mapping[str, pd.Series]
) -> Predictors:
    known = {name: given for name, given in labels.items() if given.notna().any()}
    # Folds and draws know one donor of a trial: the first that the condition reads, its own where it does.
    donor = next((given for name, given in known.items() if name != "target"), None)
    whole = np.zeros(len(y), dtype=np.intp)
    codes = {"donor": whole if donor is None else _codes(donor), "target": _codes(labels["target"])}
    folds, draws = int(spec.get("folds", FOLDS)), int(spec.get("draws", DRAWS))
    seed, penalty = int(spec.get("seed", SEED)), float(spec.get("penalty", PENALTY))
    random = np.random.default_rng(seed)
    values = x.to_numpy(dtype=float)
    partitions = [
        list(blocks(codes["donor"], codes["target"], folds, random))
        for _ in range(_PARTITIONS if len(y) <= _FEW else 1)
    ]
    own = _areas(values[None], y, partitions, penalty)
    if own is None:
        return opened.nothing("no fold has items of both classes to fit and to test on")
    null, single = [], []
    at_once = max(1, _AT_ONCE // values.size)
    for start in range(0, draws, at_once):
        drawn = shuffled(values, codes["donor"], codes["target"], min(at_once, draws - start), random)
        found = _areas(drawn, y, partitions, penalty)
        assert found is not None
        null.append(found)
        single.append(
            np.stack([concordant(drawn[:, :, place], y)[0] for place in range(values.shape[1])], axis=1)
        )
    areas = np.concatenate(null)
    pairs = opened.n_high * opened.n_low
    apart = _features(x, y, np.concatenate(single) / pairs, known)
    low, high = np.quantile(areas, [0.025, 0.975])
    critical = float(np.quantile(areas, 1 - ALPHA))
    return Predictors(
        opened.condition, opened.readout, opened.high, opened.low, opened.n_high, opened.n_low,
        opened.n_between, {name: int(given.nunique()) for name, given in known.items()}, folds, draws,
        float(own[0]), _p(areas >= own[0] - 1e-12), (float(low), float(high)),
        min(1.0, critical + _POWER * float(areas.std(ddof=1))) if draws > 1 else None, apart,
        notes(*opened.remarks),
    )  # fmt: skip


def _areas(
    x: Floats, y: Floats, partitions: Sequence[Sequence[tuple[Any, Any]]], penalty: float
) -> Floats | None:
    """The cross-validated area for each of many versions of the features, (fits,); None where no block has
    both classes on both sides."""
    won, pairs = np.zeros(len(x)), 0
    for partition in partitions:
        for train, test in partition:
            if len(np.unique(y[train])) < 2 or len(np.unique(y[test])) < 2:
                continue
            inside, outside = standardised(x[:, train], x[:, test])
            scores = predict(outside, fit(inside, y[train], penalty))
            found, of = concordant(scores, y[test])
            won += found
            pairs += of
    return None if pairs == 0 else won / pairs


def _features(
    x: pd.DataFrame, y: Floats, null: Floats, labels: Mapping[str, pd.Series]
) -> tuple[Feature, ...]:
    """Each feature by itself. null: its areas in every draw, (draws, features)."""
    found = []
    for place, name in enumerate(x.columns):
        values = x[name].to_numpy(dtype=float)
        area = auc(values, y)
        donors = {key: given for key, given in labels.items() if key != "target"}
        test = clustered_mean(influence(values, y), donor=donors or None, target=labels.get("target"))
        p = _p(np.abs(null[:, place] - 0.5) >= abs(area - 0.5) - 1e-12)
        low, high = (None if end is None else min(1.0, max(0.0, end)) for end in (test.ci_low, test.ci_high))
        means = float(values[y > 0].mean()), float(values[y == 0].mean())
        found.append((str(name), *means, area, low, high, p))
    corrected = holm([each[-1] for each in found])
    return tuple(Feature(*each, p_holm) for each, p_holm in zip(found, corrected, strict=True))


def _p(as_much: Any) -> float:
    return (1 + int(np.count_nonzero(as_much))) / (1 + len(as_much))


def _codes(labels: pd.Series) -> Codes:
    """Labels as 0..G-1; one without a label is a cluster of its own, all without one are a single one."""
    if not labels.notna().any():
        return np.zeros(len(labels), dtype=np.intp)
    coded, _ = pd.factorize(labels)
    lone = np.flatnonzero(coded < 0)
    coded[lone] = coded.max() + 1 + np.arange(len(lone))
    return np.asarray(coded, dtype=np.intp)
