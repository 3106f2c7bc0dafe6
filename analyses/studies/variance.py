"""Where the spread of a readout lies: between donors, targets, pairs or repeats, or within an item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analyses.statistics.clusters import Floats
from analyses.statistics.samples import scaled
from analyses.studies.aligned import Source, align
from analyses.studies.folds import Codes
from analyses.studies.naming import alone, expanded
from analyses.studies.study import NoStudy, Table
from analyses.studies.words import notes, percent
from analyses.tables.lookup import OWN
from analyses.tables.pairs import roles_read
from analyses.wording import figure, listed, plural, small, together

_CALLED = {
    "donor": "donors",
    "target": "targets",
    "pair": "pairs beyond both",
    "repeat": "repeats",
    "residual": "draws of one item",
}
_FEWEST = 5  # items
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Components:
    """Variance components of one condition's values, or of its differences from another condition.

    estimates: source -> variance as estimated, which may be below 0; shares: of their sum, those below 0
    taken for 0; a source that the design cannot tell is missing from both. icc: the share of an item, which
    is the correlation of two repeats of it, with the interval low to high; reliability: of an item's mean
    over all repeats. seed_sd: how far the mean over all items moves from one repeat to the next, by the
    components; None with one repeat.
    """

    name: str
    n_items: int
    repeats: int
    mean: float
    clusters: Mapping[str, int]
    estimates: Mapping[str, float]
    shares: Mapping[str, float]
    icc: float | None
    icc_low: float | None
    icc_high: float | None
    reliability: float | None
    seed_sd: float | None
    lowest: float
    highest: float
    note: str


@dataclass(frozen=True)
class Variance:
    """The components of every condition that was asked for."""

    readout: str
    parts: tuple[Components, ...]
    refused: str

    @property
    def p_values(self) -> tuple[float | None, ...]:
        return ()

    @property
    def note(self) -> str:
        return notes(self.refused, *(f"{part.name}: {part.note}" for part in self.parts if part.note))

    def sentence(self, corrected: Sequence[float | None], family: int) -> str:
        """The shares of each condition, and what another seed would change."""
        return " ".join(self._told(part) for part in self.parts)

    def _told(self, part: Components) -> str:
        head = f"{part.name}, {self.readout}"
        size = f"{plural(part.n_items, 'item')} x {plural(part.repeats, 'repeat')}"
        if not part.shares:
            return f"{head}: {part.note} ({size})."
        shares = [f"{_where(source, part)} {percent(share)}" for source, share in part.shares.items()]
        told = f"{head}: of the variance, {listed(shares)} ({size})."
        if part.icc is not None and part.icc_low is not None and part.icc_high is not None:
            value, low, high = together(part.icc, part.icc_low, part.icc_high)
            told += f" Two repeats of an item correlate by {value} (95% CI {low} to {high})."
        elif part.icc is not None:
            told += f" Two repeats of an item correlate by {figure(part.icc)}."
        if part.seed_sd is not None:
            low, high = together(part.lowest, part.highest)
            told += (
                f" From seed to seed the mean over all items has an sd of {figure(part.seed_sd)} "
                f"(means of the repeats: {low} to {high})."
            )
        if part.repeats < 2:
            told += " With one repeat, what is of the pair and what is of the draw cannot be told apart."
        return told

    def table(self, corrected: Sequence[float | None]) -> Table:
        """A row for each condition and source."""
        head = ("condition", "source", "variance", "share")
        rows = []
        for part in self.parts:
            name = part.name
            for source, value in part.estimates.items():
                rows.append((name, _where(source, part), small(value), percent(part.shares.get(source))))
                name = ""
        return Table(head, tuple(rows))


def variance(source: Source, spec: Mapping[str, Any], readout: str) -> Variance:
    """Variance components of a readout over items and repeats (seeds).

    With y_ir the value of item i in repeat r, over the n items that have all R repeats: the mean squares of
    items, repeats and the rest give the components repeat = (MS_repeat - MS_rest) / n and residual = MS_rest
    (two-way analysis of variance without replication). An item's component, (MS_item - MS_rest) / R, is
    split by symmetric sums over pairs of different items: half the mean squared difference of their means is
    smaller by the donor's component where they share the donor only, and by the target's where they share
    the target only. What remains is of the pair. The interval of the correlation is by jackknife over
    targets, or over donors, whichever is wider.

    spec: `conditions`, by default all; `against`: their differences from this condition instead. Raises
    NoStudy where no condition has enough items.

    Sources: Searle, Casella and McCulloch (1992), "Variance Components", chapter 4; Koch (1967), "A general
    approach to the estimation of variance components".
    """
    conditions = source.conditions
    against = None if spec.get("against") is None else alone(str(spec["against"]), conditions)
    names = expanded(spec.get("conditions") or list(conditions), conditions)
    parts, refused = [], []
    for name in names:
        if name == against:
            continue
        try:
            parts.append(_components(source, name, against, readout))
        except NoStudy as error:
            refused.append(f"{name}: {error}")
    if not parts:
        raise NoStudy("; ".join(dict.fromkeys(refused)) or "no condition is left")
    return Variance(readout, tuple(parts), "; ".join(refused))


def _components(source: Source, name: str, against: str | None, readout: str) -> Components:
    cells = [(each, readout) for each in (name, against) if each is not None]
    found = align(source, cells)
    values = found.values[name, readout] - (0.0 if against is None else found.values[against, readout])
    frame = source.trials.iloc[found.rows][["item", "repeat"]].reset_index(drop=True)
    frame["value"] = values
    frame["target"] = found.target.to_numpy()
    # Where no condition reads a donor, the item's own stands for nothing in the values.
    read = any(roles_read(source.conditions.get(each, {})) for each, _ in cells)
    frame["donor"] = next(iter(found.donors.values())).to_numpy() if read and found.donors else None
    wide = frame.pivot_table(index="item", columns="repeat", values="value", sort=True)
    whole = wide.dropna()
    told = name if against is None else f"{name} - {against}"
    lost = len(wide) - len(whole)
    remarks = [f"{plural(lost, 'item')} without a value in every repeat left out"] if lost else []
    if read and len(found.donors) > 1:
        remarks.append(f"donors are those of {next(iter(found.donors)).removeprefix(f'{OWN}:')}")
    y = whole.to_numpy(dtype=float)
    n, repeats = y.shape
    if n < _FEWEST:
        raise NoStudy(f"{plural(n, 'item')} with a value in every repeat: fewer than {_FEWEST}")
    if scaled(y)[1] != 1:
        raise NoStudy("values beyond 1e100, whose squares are no numbers")
    first = frame.drop_duplicates("item").set_index("item").loc[whole.index]
    labels = {key: first[key] for key in ("donor", "target") if first[key].notna().any()}
    codes = {key: pd.factorize(given, use_na_sentinel=False)[0] for key, given in labels.items()}
    means = y.mean(axis=0)
    base: dict[str, Any] = {
        "name": told,
        "n_items": n,
        "repeats": repeats,
        "mean": float(y.mean()),
        "clusters": {key: int(coded.max()) + 1 for key, coded in codes.items()},
        "lowest": float(means.min()),
        "highest": float(means.max()),
    }
    if np.ptp(y) <= _ROUNDING * max(1.0, float(np.abs(y).max())):
        note = notes(*remarks, f"all values are {figure(float(y[0, 0]))}, so that there is no variance")
        return Components(**base, **_NOTHING, note=note)
    estimates = _estimates(y, codes)
    missing = [key for key in labels if key not in estimates]
    if missing:
        remarks.append(
            f"{listed(missing)} cannot be told apart from the pair: none recurs, or only one is there"
        )
    below = [key for key, value in estimates.items() if value < 0]
    if below:
        remarks.append(f"estimated below 0 and taken for 0: {listed(below)}")
    kept = _kept(estimates)
    total = sum(kept.values())
    shares = {key: value / total for key, value in kept.items()}
    icc = reliability = seed = low = high = None
    if repeats > 1:
        icc = _icc(y)
        interval = _jackknife(y, codes, icc)
        if interval is None:
            remarks.append("fewer than 3 clusters to leave out: the correlation of repeats has no interval")
        else:
            low, high = interval
        item = icc * total
        reliability = item / (item + kept["residual"] / repeats) if item > 0 else 0.0
        seed = (kept["repeat"] + kept["residual"] / n) ** 0.5
    return Components(
        **base, estimates=estimates, shares=shares, icc=icc, icc_low=low, icc_high=high,
        reliability=reliability, seed_sd=seed, note=notes(*remarks),
    )  # fmt: skip


_NOTHING: Mapping[str, Any] = {
    "estimates": {},
    "shares": {},
    "icc": None,
    "icc_low": None,
    "icc_high": None,
    "reliability": None,
    "seed_sd": None,
}


def _squares(y: Floats) -> tuple[float, float, float]:
    """(item, repeat, residual) components as estimated."""
    n, repeats = y.shape
    if repeats < 2:
        return float(y.var(ddof=1)), 0.0, 0.0
    mean, items, times = y.mean(), y.mean(axis=1), y.mean(axis=0)
    rest = float(((y - items[:, None] - times + mean) ** 2).sum() / ((n - 1) * (repeats - 1)))
    of_items = float(repeats * items.var(ddof=1))
    of_times = float(n * times.var(ddof=1))
    return (of_items - rest) / repeats, (of_times - rest) / n, rest


def _estimates(y: Floats, codes: Mapping[str, Codes]) -> dict[str, float]:
    """Variance by source."""
    item, repeat, rest = _squares(y)
    apart = _between(y.mean(axis=1), codes)
    found = dict(apart)
    found["pair"] = item - sum(apart.values())
    if y.shape[1] > 1:
        found |= {"repeat": repeat, "residual": rest}
    return found


def _kept(estimates: Mapping[str, float]) -> dict[str, float]:
    """Estimates without those below 0. What donors and targets have beyond the whole of an item goes, from
    both alike."""
    kept = {key: max(0.0, value) for key, value in estimates.items()}
    of_item = [key for key in ("donor", "target", "pair") if key in estimates]
    item = max(0.0, sum(estimates[key] for key in of_item))
    above = sum(kept[key] for key in of_item)
    return kept | {key: kept[key] * item / above for key in of_item if above > 0}


def _between(x: Floats, codes: Mapping[str, Codes]) -> dict[str, float]:
    """The components of donors and of targets in values of items, where pairs of items tell them."""
    whole = _half_squares(x, np.zeros(len(x), dtype=np.intp))
    sums = {key: _half_squares(x, coded) for key, coded in codes.items()}
    both = (0.0, 0.0)
    if len(codes) == 2:
        donor, target = codes.values()
        both = _half_squares(x, np.unique(donor * (int(target.max()) + 1) + target, return_inverse=True)[1])
    alone_ = {key: (total - both[0], pairs - both[1]) for key, (total, pairs) in sums.items()}
    rest = tuple(
        whole[place] - both[place] - sum(found[place] for found in alone_.values()) for place in (0, 1)
    )
    if rest[1] <= 0:
        return {}
    return {key: rest[0] / rest[1] - total / pairs for key, (total, pairs) in alone_.items() if pairs > 0}


def _half_squares(x: Floats, coded: Codes) -> tuple[float, float]:
    """(sum of (x_i - x_j)^2 / 2, number) over the pairs within clusters."""
    sizes = np.bincount(coded)
    sums, squares = np.bincount(coded, weights=x), np.bincount(coded, weights=x**2)
    return float((sizes * squares - sums**2).sum() / 2), float((sizes * (sizes - 1)).sum() / 2)


def _icc(y: Floats) -> float:
    """The share of an item in the variance of one value, from 0 to 1."""
    item, repeat, rest = (max(0.0, each) for each in _squares(y))
    total = item + repeat + rest
    return item / total if total > 0 else 0.0


def _jackknife(y: Floats, codes: Mapping[str, Codes], value: float) -> tuple[float, float] | None:
    """A 95% interval of the correlation: each cluster left out in turn, of the dimension that moves it more;
    on Fisher's scale of z, so that it stays below 1. None where no dimension has 3 clusters."""
    scale = _fisher(value)
    widest: float | None = None
    df = 1
    for coded in codes.values() or (np.arange(len(y)),):
        clusters = np.unique(coded)
        if len(clusters) < 3:
            continue
        held = np.array([_fisher(_icc(y[coded != one])) for one in clusters])
        found = float((len(held) - 1) / len(held) * ((held - held.mean()) ** 2).sum()) ** 0.5
        if widest is None or found >= widest:
            widest, df = found, len(held) - 1
    if widest is None:
        return None
    half = float(stats.t.ppf(0.975, df)) * widest
    return max(0.0, float(np.tanh(scale - half))), float(np.tanh(scale + half))


def _fisher(value: float) -> float:
    return float(np.arctanh(min(value, 1 - 1e-9)))


def _where(source: str, part: Components) -> str:
    if part.repeats < 2 and source == "pair":
        return "pairs and draws"
    return _CALLED[source]
