"""How well given tokens are predicted: cross-entropy of the prompt, log-probability and perplexity of a
continuation. All are teacher-forced, and all are of tokens, so that they compare only texts of one
tokenizer."""

from __future__ import annotations

import numpy as np

from backends.probes.distribution import log_softmax


def token_log_probabilities(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """log p [..., n] in nats of each token, of the logits [..., n, vocabulary] that predict it. tokens: ids
    [..., n]."""
    return np.asarray(np.take_along_axis(log_softmax(logits), np.asarray(tokens)[..., None], axis=-1)[..., 0])


def cross_entropy(logps: np.ndarray) -> float | None:
    """Mean nats per token of a prompt's tokens 1..T-1, each given those before it, under the row's prefill
    writes.

    logps: [T - 1], log p of each. None for a prompt of one token, which predicts nothing of itself.
    INVARIANT under everything that comes after the prediction of token T-1: writes to the last prompt token,
    kv_cache writes, decode writes.
    """
    return None if len(logps) == 0 else float(-np.asarray(logps, dtype=np.float64).mean())


def logprob(logps: np.ndarray) -> float | None:
    """Sum of log p in nats of a fixed continuation, given the prompt and its own earlier tokens, under all
    the row's writes: kv_cache and decode writes act as if the model had generated it.

    logps: [n], log p of each token. None for an empty continuation. Longer continuations have lower sums:
    compare one continuation across conditions, or divide by n.
    INVARIANT under the row's sampling settings and stream: nothing is drawn.
    """
    return None if len(logps) == 0 else float(np.asarray(logps, dtype=np.float64).sum())


def perplexity(logps: np.ndarray) -> float | None:
    """exp of the mean negative log p of a continuation, under the unpatched model: 1 is certainty.

    logps: [n], log p of each token in nats. None for an empty continuation. Low for repetition, so read it
    beside the score. INVARIANT under every write of the row: it judges the text, not the run that wrote it.
    """
    return None if len(logps) == 0 else float(np.exp(-np.asarray(logps, dtype=np.float64).mean()))
