"""How well features tell two classes apart: penalised logistic regression, many fits at once, and the area
under the ROC curve."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from analyses.statistics.clusters import Floats

_STEPS = 12
_CLOSE = 1e-5
_FLAT = 1e-9  # a feature that varies less than this is constant
Bools = NDArray[np.bool_]


def fit(x: Floats, y: Floats, penalty: float = 1.0) -> Floats:
    """Coefficients of logistic regressions with an intercept, by Newton's method.

    x: (fits, n, features); y: (n,), 0 or 1; each fit minimises its own -log likelihood plus penalty / 2
    times the squared length of the coefficients without the intercept. Returns (fits, features + 1), the
    intercept first. Classes weigh the same, so that a rare one is not given up. The penalty keeps every
    solution finite, separated classes included.
    """
    fits, n, _ = x.shape
    design = np.concatenate([np.ones((fits, n, 1)), x], axis=2)
    ones = float(y.sum())
    weight = np.where(y > 0, n / (2 * ones), n / (2 * (n - ones)))
    ridge = np.full(design.shape[2], penalty)
    ridge[0] = 1e-6  # of the intercept: none to speak of
    beta = np.zeros((fits, design.shape[2]))
    turned = np.swapaxes(design, 1, 2)
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(np.einsum("fnp,fp->fn", design, beta), -30, 30)))
        slope = np.einsum("fpn,fn->fp", turned, weight * (y - chance)) - ridge * beta
        curve = turned @ (design * (weight * chance * (1 - chance))[:, :, None]) + np.diag(ridge)
        step = np.linalg.solve(curve, slope[:, :, None])[:, :, 0]
        beta += step
        if np.abs(step).max() < _CLOSE:
            break
    return beta


def predict(x: Floats, beta: Floats) -> Floats:
    """Log-odds, (fits, n)."""
    found: Floats = np.einsum("fnp,fp->fn", x, beta[:, 1:]) + beta[:, :1]
    return found


def standardised(train: Floats, test: Floats) -> tuple[Floats, Floats]:
    """Both with the mean and spread (over items, axis 1) of the first; constant features become 0."""
    centre = train.mean(axis=1, keepdims=True)
    spread = train.std(axis=1, keepdims=True)
    scale = np.where(spread > _FLAT * np.maximum(1.0, np.abs(centre)), spread, np.inf)
    return (train - centre) / scale, (test - centre) / scale


def concordant(scores: Floats, y: Floats) -> tuple[Floats, int]:
    """(concordant pairs of each row of scores, all pairs): over pairs of a 1 and a 0, those in which the 1
    has the higher score, ties by half. scores: (fits, n); the share of them is the area under the curve."""
    ones = y > 0
    high, low = int(ones.sum()), int((~ones).sum())
    ranks = rankdata(scores, axis=1)
    return ranks[:, ones].sum(axis=1) - high * (high + 1) / 2, high * low


def auc(values: Floats, y: Floats) -> float:
    """The area under the ROC curve of one feature: P(a 1 is above a 0), ties by half."""
    found, pairs = concordant(values[None, :], y)
    return float(found[0]) / pairs


def influence(values: Floats, y: Floats) -> Floats:
    """Values with the mean `auc`, one for each item, whose clustered variance is that of the area: the
    placement of each item among those of the other class.

    Sources: DeLong, DeLong and Clarke-Pearson (1988), "Comparing the areas under two or more correlated ROC
    curves"; Obuchowski (1997), "Nonparametric analysis of clustered ROC curve data".
    """
    ones = y > 0
    n, high, low = len(y), int(ones.sum()), int((~ones).sum())
    ranks = rankdata(values)
    own = np.empty(n)
    own[ones], own[~ones] = rankdata(values[ones]), rankdata(values[~ones])
    among = ranks - own  # how many of the other class lie below, ties by half
    placed = np.where(ones, among / low, 1 - among / high)
    area = auc(values, y)
    found: Floats = area + (placed - area) * np.where(ones, n / high, n / low)
    return found
