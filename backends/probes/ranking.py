"""The order of the logits: the rank of a token set, whether it is right, and the best tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backends.probes.distribution import distinct, log_softmax


def rank(logits: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """How many tokens have a larger logit than the best of the set [...]: 0 <=> the argmax is in the set,
    absent ties.

    logits: [..., vocabulary], read as float32. Tokens that tie with the best of the set do not count.
    INVARIANT under every increasing function of the logits: temperature, soft-capping, a shift. So it says
    nothing of how sure the model is.
    """
    read = np.asarray(logits, dtype=np.float32)
    best = read[..., distinct(tokens)].max(axis=-1, keepdims=True)
    return np.asarray((read > best).sum(axis=-1))


def accuracy(logits: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """Whether the most probable next token is in a token set [...]: 1.0 where its rank is 0, else 0.0.

    logits: [..., vocabulary], read as float32. A token of the set that ties with the argmax counts as right,
    as it has rank 0. The mean over items is the top-1 accuracy.
    Source: the accuracy of Todd et al. (arXiv 2310.15213, section 2), of the first answer token.
    INVARIANT as rank is, and under every change that leaves the argmax in the set, or outside it.
    """
    return np.asarray((rank(logits, tokens) == 0).astype(np.float64))


def top_k(logits: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` most probable next tokens, best first, and their probabilities, both [..., count].

    Of tokens with equal logits the smaller id comes first. Probabilities are of the whole vocabulary, not
    renormalised over those shown.
    INVARIANT (the ids) under every increasing function of the logits.
    """
    read = np.asarray(logits, dtype=np.float32)
    ids = np.argsort(-read, axis=-1, kind="stable")[..., :count]
    return ids, np.exp(np.take_along_axis(log_softmax(read), ids, axis=-1))
