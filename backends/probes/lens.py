"""Reading a residual state in the vocabulary: logit lens and patchscope, one reading per layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backends.probes.distribution import next_token
from backends.probes.ranking import rank, top_k


@dataclass(frozen=True)
class Readings:
    """What states say, layer by layer: rank and summed probability of the token set, and the best token's
    id, each [..., layers]."""

    rank: np.ndarray
    prob: np.ndarray
    top: np.ndarray


def readings(logits: np.ndarray, tokens: Sequence[int]) -> Readings:
    """A logit lens or a patchscope, of logits [..., layers, vocabulary].

    lens: the row's resid_post at a position and layer, through the model's final norm, unembedding, scale and
    soft-capping. At the last layer it is the model's own next-token distribution, unless the logits
    themselves are written. Source: nostalgebraist (2020), "interpreting GPT: the logit lens".
    patchscope: the logits at the last token of a fixed prompt into one of whose positions that state was
    written (resid_post of the layer that it came from, or of a fixed one). Source: Ghandeharioun et al.
    (arXiv 2401.06102, section 3).
    INVARIANT (lens) under scaling of the state where the final norm is an RMS norm, and besides under a
    constant added to its columns where it is a layer norm: the lens reads directions, not lengths. A
    patchscope is not, because later blocks add to the state what does not scale with it; one whose state is
    written into the last layer at any but the last position cannot move at all.
    """
    return Readings(rank(logits, tokens), next_token(logits, tokens), top_k(logits, 1)[0][..., 0])
