"""Which positions' logits a write can reach, computed from the shape of a decoder alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backends.contract import ModelInfo
from backends.writes import Site

_INTO_THE_BLOCK: tuple[Site, ...] = ("embed", "resid_pre")


def reached(info: ModelInfo, site: Site, layer: int, position: int, length: int) -> np.ndarray:
    """Bool [length]: whose logits a write at (site, layer, position) of a prompt can change.

    A write that enters a block reaches later positions through the attention of that block and of those
    above; one behind the attention of its block, through those above only. Attention of layer l lets position
    r see the latest windows[l] positions. A query has no effect where it sees a single key, nor has that key:
    a softmax over one score is 1. Holds for sequential and for parallel blocks.
    """
    hot = np.zeros(length, dtype=bool)
    if site == "logits":
        hot[position] = True
        return hot
    if site in _INTO_THE_BLOCK:
        hot[position] = True
        return _onward(info, hot, layer)
    sees = visible(info, layer, length)
    if site == "q_proj":
        hot[position] = sees[position].sum() > 1
    elif site == "k_proj":
        hot = sees[:, position] & (sees.sum(axis=1) > 1)
    elif site == "v_proj":
        hot = sees[:, position]
    else:
        hot[position] = True
    return _onward(info, hot, layer + 1)


def reached_by_cut(
    info: ModelInfo, layer: int, queries: Sequence[int], keys: Sequence[int], length: int
) -> np.ndarray:
    """Bool [length]: whose logits change when the queries no longer see the keys at a layer."""
    sees = visible(info, layer, length)
    hot = np.zeros(length, dtype=bool)
    for query in queries:
        hot[query] = bool(sees[query, list(keys)].any())
    return _onward(info, hot, layer + 1)


def visible(info: ModelInfo, layer: int, length: int) -> np.ndarray:
    """Bool [queries, keys]: what the attention of a layer sees."""
    position = np.arange(length)
    back = position[:, None] - position[None, :]
    sees: np.ndarray = back >= 0
    window = info.windows[layer] if info.windows else None
    return sees if window is None else sees & (back < window)


def _onward(info: ModelInfo, hot: np.ndarray, layer: int) -> np.ndarray:
    """Positions that differ behind the last block, given those that differ in front of block `layer`."""
    for above in range(layer, info.layers):
        hot = hot | (visible(info, above, len(hot)) & hot[None, :]).any(axis=1)
    return hot
