"""How much of the spread of paired differences lies between donors and between targets."""

from __future__ import annotations

import numpy as np

from analyses.statistics.samples import all_equal, scaled
from analyses.tables.pairs import Paired


def correlations(paired: Paired) -> dict[str, float]:
    """The intra-cluster correlation of the differences, by dimension (`donor`, `target`, ...).

    With u_i the residuals of the mean, n pairs and s^2 their variance (ddof 1), the mean product u_i u_j over
    the ordered pairs i, j of one cluster, plus s^2 / n for what the mean takes away, in units of s^2; within
    0..1. A dimension in which no prompt recurs has none, nor have fewer than 3 pairs or equal differences.
    """
    difference, _ = scaled(paired.difference)
    if len(difference) < 3 or all_equal(difference):
        return {}
    u = difference - difference.mean()
    variance = float(u @ u) / (len(u) - 1)
    found = {}
    for name, labels in (*paired.prompts.donors.items(), ("target", paired.prompts.target)):
        known = ~np.isnan(labels)
        codes = labels[known].astype(np.intp)
        sums, sizes = np.bincount(codes, weights=u[known]), np.bincount(codes)
        ordered = float((sizes.astype(float) ** 2 - sizes).sum())
        if ordered > 0:
            shared = float((sums**2).sum() - (u[known] ** 2).sum()) / ordered
            found[name] = min(1.0, max(0.0, shared / variance + 1 / len(u)))
    return found
