"""Whether a readout rises with a dose: one slope over conditions in order, from the same items at every
dose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analyses.statistics.clusters import cluster_variance, in_words
from analyses.statistics.corrections import holm
from analyses.statistics.samples import scaled
from analyses.tables.lookup import OWN
from analyses.tables.pairs import donor_labels, roles_read
from analyses.tables.run import ok_rows
from analyses.wording import count, listed, p_value, plural, together

ALPHA = 0.05
_KEY = ["stage", "item", "repeat"]


@dataclass(frozen=True)
class Trend:
    """The slope of a readout over `conditions`, which have the doses `doses`, in units of the readout for one
    unit of dose. `means` are over the n blocks (item and repeat) that are complete. `clusters` counts the
    donors really used and the targets. `p_holm` is corrected over all declared trends. What could not be
    computed is None, and then `note` says why."""

    conditions: tuple[str, ...]
    doses: tuple[float, ...]
    readout: str
    n: int
    means: tuple[float, ...]
    slope: float | None
    clusters: dict[str, int]
    note: str
    sentence: str = ""
    se: float | None = None
    df: int | None = None
    p: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p_holm: float | None = None


def trends(trials: pd.DataFrame, manifest: Mapping[str, Any]) -> list[Trend]:
    """Every declared trend on the primary readout; doses are the numbers of a grid's one axis, else 1, 2, 3
    and so on in the declared order. Their p is corrected by Holm, as a family of their own."""
    options = manifest.get("contrasts", {})
    primary = options.get("primary", "score")
    found = [_trend(trials, manifest, names, primary) for names in options.get("trends") or ()]
    corrected = holm([each.p for each in found])
    return [_told(each, p) for each, p in zip(found, corrected, strict=True)]


def slope(
    values: np.ndarray[Any, np.dtype[np.float64]],
    doses: Sequence[float],
    donor: Sequence[Sequence[object]],
    target: Sequence[object],
) -> tuple[float, float, dict[str, int], str]:
    """(slope, standard error, clusters, note) of a readout over doses within blocks.

    values: (blocks, doses); donor: the donor used, per block and dose; target: per block. The slope b is that
    of least squares; with every dose in every block it is the same with a level for each block. Its variance
    is two-way clustered by donor and target, from the scores (d_j - dbar) e_ij, with G/(G-1) for each number
    of clusters. Raises ValueError for fewer than 2 blocks or equal doses.

    Source: Cameron, Gelbach and Miller (2011), "Robust inference with multiway clustering", section 2.2.
    """
    blocks, many = values.shape
    centred = np.asarray(doses, dtype=np.float64) - float(np.mean(doses))
    squares = float((centred**2).sum())
    if blocks < 2 or squares == 0:
        raise ValueError(f"expected 2 blocks or more and doses that differ, got {blocks} and {list(doses)}")
    values, unit = scaled(values)
    b = float((values * centred).sum() / (blocks * squares))
    # Residuals of the line, not within the item: taking out an item's mean would take a share of its donors'
    # levels with it. What items have in common drops out of the sums by target. Scaled so that the variance
    # of their mean is that of the slope.
    scores = centred * (values - values.mean() - b * centred) * many / squares
    variance, clusters, note = cluster_variance(
        scores.ravel(),
        donor=[name for row in donor for name in row],
        target=[name for name in target for _ in range(many)],
    )
    return b * unit, variance**0.5 * unit, clusters, note


def _trend(trials: pd.DataFrame, manifest: Mapping[str, Any], names: Sequence[str], primary: str) -> Trend:
    declared = manifest.get("conditions", {})
    doses = _doses([declared.get(name, {}).get("grid") or {} for name in names])

    def untested(why: str, n: int = 0, means: Sequence[float] = ()) -> Trend:
        return Trend(tuple(names), doses, primary, n, tuple(means), None, {}, why)

    if primary not in trials.columns:
        return untested(f"the table has no column {primary}")
    sides, several = [], []
    for name in names:
        rows = ok_rows(trials, name)
        rows = rows[rows[primary].notna()].set_index(_KEY)
        read = roles_read(declared.get(name, {}))
        if len(read) > 1:
            several.append(f"{name} reads {count(len(read))} donors: clustered by the item's own")
        donors = donor_labels(rows, read[0] if len(read) == 1 else OWN)
        sides.append(pd.DataFrame({"value": rows[primary], "donor": donors, "target": rows["target"]}))
    whole = pd.concat(sides, axis=1, join="inner", keys=range(len(names))).sort_index()
    places = range(len(names))
    if len(whole) < 3:
        return untested(f"{plural(len(whole), 'item')} with a value at every dose: fewer than 3", len(whole))
    values = np.column_stack([whole[place, "value"].to_numpy(dtype=np.float64) for place in places])
    means = values.mean(axis=0)
    donor = list(zip(*(whole[place, "donor"] for place in places), strict=True))
    b, se, clusters, note = slope(values, doses, donor, list(whole[0, "target"]))
    # Values on a straight line leave only rounding for a spread.
    if not se > 1e-9 * max(1.0, abs(b)) or not clusters:
        return untested("no spread between donors and targets to test against", len(whole), means.tolist())
    df = min(clusters.values()) - 1
    half = float(stats.t.ppf(0.5 + (1 - ALPHA) / 2, df)) * se
    return Trend(
        conditions=tuple(names),
        doses=doses,
        readout=primary,
        n=len(whole),
        means=tuple(means.tolist()),
        slope=b,
        clusters=clusters,
        note="; ".join([*several, *([note] if note else [])]),
        se=se,
        df=df,
        p=float(2 * stats.t.sf(abs(b) / se, df)),
        ci_low=b - half,
        ci_high=b + half,
    )


def _doses(cells: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    numbered = [value for cell in cells for value in cell.values() if _is_number(value)]
    if len(numbered) == len(cells) and all(len(cell) == 1 for cell in cells):
        return tuple(float(value) for value in numbered)
    return tuple(float(place) for place in range(1, len(cells) + 1))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _told(trend: Trend, p_holm: float | None) -> Trend:
    fields = {**trend.__dict__, "p_holm": p_holm}
    over = f"over {listed(trend.conditions)} (dose {', '.join(f'{d:g}' for d in trend.doses)})"
    if trend.slope is None or trend.ci_low is None:
        return Trend(**fields | {"sentence": f"No trend of {trend.readout} {over}: {trend.note}."})
    slope, low, high = together(trend.slope, trend.ci_low, trend.ci_high)
    figures = (
        f"95% CI {low} to {high}, {p_value(p_holm)} after Holm over the "
        f"trends; {plural(trend.n, 'item')} at every dose, {in_words(trend.clusters)}"
    )
    if p_holm is not None and p_holm < ALPHA:
        verb = "rises" if trend.slope > 0 else "falls"
        # The family that has verdicts is that of the contrasts.
        by = f"{trend.readout} {verb} by {slope.removeprefix('-')}"
        told = f"Exploratory trend: {by} for each step {over} ({figures})."
    else:
        told = f"No trend of {trend.readout} shown {over}: {slope} for each step ({figures})."
    return Trend(**fields | {"sentence": told})
