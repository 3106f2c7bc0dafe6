"""How many dimensions a window of activations fills: participation ratio, and R_V, its ratio between two
layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def participation_ratio(rows: np.ndarray) -> np.ndarray:
    """PR = (sum s^2)^2 / sum s^4 over the singular values s of rows [..., window, width] -> [...], between 1
    (all rows parallel) and min(window, width) (orthogonal rows of equal length). NaN for rows that are all
    zero or not finite.

    Uncentred: the mean row is left in, and mostly sets the first singular value. Rows are read as float32, as
    published; sums over s^2 and s^4 are taken as traces of the Gram matrix and of its square, in float64.
    Source: the definition in published/transfer.yaml (`geometry`).
    INVARIANT under permutation of the rows, a change of sign of any row, a rotation or permutation of the
    columns, and scaling of all rows by one factor. So a shuffled window cannot move it: the control that
    shuffles it can never fail, and one that is written at this same site and these positions merely measures
    what was written.
    """
    read = np.asarray(rows, dtype=np.float32).astype(np.float64)
    short = read if read.shape[-2] <= read.shape[-1] else read.swapaxes(-1, -2)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        # Scale does not matter, but its fourth power must not overflow.
        scaled = short / np.abs(short).max(axis=(-2, -1), keepdims=True)
        gram = scaled @ scaled.swapaxes(-1, -2)
        total = np.trace(gram, axis1=-2, axis2=-1)
        return np.asarray(total**2 / (gram**2).sum(axis=(-2, -1)))


@dataclass(frozen=True)
class Geometry:
    """Participation ratios of one window at an early and a late layer, and R_V = late / early, each [...];
    NaN where undefined."""

    early: np.ndarray
    late: np.ndarray

    @property
    def r_v(self) -> np.ndarray:
        """R_V: below 1 where the late layer's window is the narrower."""
        return np.asarray(self.late / self.early)


def geometry(early: np.ndarray, late: np.ndarray, window: int) -> Geometry:
    """Both ratios of the last `window` rows of a prompt. early, late: rows of the site at two layers [...,
    positions, width].

    INVARIANT as participation_ratio is, at each layer apart. Not invariant under the length of the prompt: a
    window that holds all of a short prompt, its first token included, is another thing than the end of a
    long one. Compare prompts of different lengths only with their length beside it.
    Raises ValueError for fewer positions than the window: it never shrinks.
    """
    if min(early.shape[-2], late.shape[-2]) < window:
        raise ValueError(short_prompt(window, min(early.shape[-2], late.shape[-2])))
    return Geometry(participation_ratio(early[..., -window:, :]), participation_ratio(late[..., -window:, :]))


def short_prompt(window: int, tokens: int) -> str:
    """Why a prompt has no value."""
    return f"a window of {window} is longer than a prompt of {tokens} tokens"
