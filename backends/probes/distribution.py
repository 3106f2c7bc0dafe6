"""The next-token distribution: probability of token sets, their log-odds, and the divergence of two."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """log p [..., vocabulary] in nats, in float64, of logits [..., vocabulary] read as float32.

    No temperature and no truncation: the model's own distribution, whatever the row samples with.
    """
    read = np.asarray(logits, dtype=np.float32).astype(np.float64)
    shifted = read - read.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def log_probability(logits: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """log of the summed probability of a token set [...], in nats; a token that is listed twice counts once.

    Raises ValueError for an empty set: it has no probability to speak of.
    """
    return np.asarray(np.logaddexp.reduce(log_softmax(logits)[..., distinct(tokens)], axis=-1))


def next_token(logits: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """Summed probability [...] of a token set as the next token, in [0, 1].

    logits: [..., vocabulary]. Exact, not estimated by sampling.
    INVARIANT under a constant added to all logits, and under any change that only moves probability between
    tokens of the set, or between tokens outside it.
    """
    return np.asarray(np.exp(log_probability(logits, tokens)))


def log_odds(logits: np.ndarray, tokens: Sequence[int], against: Sequence[int] = ()) -> np.ndarray:
    """log sum p(tokens) - log sum p(against) [...], in nats; against nothing named, all other tokens, so that
    it is log p / (1 - p).

    Source: the refusal metric of Arditi et al. (arXiv 2406.11717, appendix B), whose set of refusal tokens
    stands against all others. The probability of the others is summed, not taken as 1 - p, which has no
    digits left where p is near 1.
    INVARIANT under a constant added to all logits; with `against` also under any change of all other tokens'
    logits: both sets can vanish from the distribution without it moving. Read it beside next_token.
    """
    chosen = distinct(tokens)
    others = distinct(against) if against else np.setdiff1d(np.arange(logits.shape[-1]), chosen)
    named = np.asarray(logits, dtype=np.float32).astype(np.float64)
    ours = np.logaddexp.reduce(named[..., chosen], axis=-1)
    return np.asarray(ours - np.logaddexp.reduce(named[..., others], axis=-1, initial=-np.inf))


def kl(clean: np.ndarray, written: np.ndarray) -> np.ndarray:
    """KL(clean | written) = sum over tokens of p log(p / q) [...], in nats: p the next-token distribution of
    the same prompt without the row's writes, q that with them.

    clean, written: logits [..., vocabulary]. Summed as p (q/p - 1 - log(q/p)), which is the same because both
    distributions sum to 1, and of which no term is negative: it is never below 0, and exactly 0 for equal
    logits. Infinite where q is 0 for a token that p allows.
    Source: the selection of directions of Arditi et al. (arXiv 2406.11717, appendix C), KL of the last
    token's distribution on harmless prompts.
    INVARIANT under a constant added to all logits of either side. Not symmetric: tokens that only the written
    model expects count little.
    """
    log_p, log_q = log_softmax(clean), log_softmax(written)
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):  # -inf - -inf, of tokens that neither allows
        step = log_q - log_p
        terms = np.where(p > 0, p * np.maximum(np.expm1(step) - step, 0), np.exp(log_q))
    return np.asarray(terms.sum(axis=-1))


def distinct(tokens: Sequence[int]) -> np.ndarray:
    """The ids of a token set, each once. Raises ValueError for an empty one."""
    if not len(tokens):
        raise ValueError("a token set needs at least one token")
    return np.unique(np.asarray(tokens, dtype=np.int64))
