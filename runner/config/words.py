"""A condition in sentences, told from what it resolves to and never from what it is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from backends.rows import Sampling
from backends.writes import Constant, Write
from runner.config.writes.words import write_in_words


class Describable(Protocol):
    """What of a condition is told. Its name and label are not."""

    @property
    def prompt(self) -> tuple[str, ...]: ...
    @property
    def writes(self) -> tuple[Write, ...]: ...
    @property
    def expects(self) -> Mapping[str, str]: ...
    @property
    def sampling(self) -> Sampling: ...
    @property
    def replay_last_token(self) -> bool: ...
    @property
    def recompute(self) -> bool: ...
    @property
    def weights(self) -> Constant | None: ...


_EXPECTED = {
    "noop": "{write} is expected to fire and to change nothing.",
    "inert": "{write} is expected never to act.",
}


def _prompt(parts: tuple[str, ...]) -> str:
    if parts == ("target",):
        return "The prompt is the target."
    kind, _, role = parts[0].partition(":")
    donor = f"the {role} {kind}" if role else f"the {kind}"
    if len(parts) == 1:
        return f"The prompt is {donor}; the target is not seen."
    return f"The prompt is {donor}'s text followed by the target's."


def describe(condition: Describable, depth: int, usual: Sampling) -> tuple[str, ...]:
    """Sentences that say what a condition does, in a model of `depth` layers.

    usual: the sampling of the experiment; the condition's own is told where it differs. Neither the
    condition's name and label nor the names of its writes have a part in it: a write is called by its site.
    """
    sentences = [_prompt(condition.prompt)]
    if condition.weights is not None:
        sentences.append(
            f"The direction of {condition.weights.name} is taken out of the model's weights: out of "
            "everything that they add to the residual stream, embeddings and attention and MLP outputs of "
            "all layers."
        )
    elif not condition.writes:
        sentences.append("Nothing is written into the model.")
    numbered = len({write.site for write in condition.writes}) < len(condition.writes)
    for index, write in enumerate(condition.writes, start=1):
        subject = f"Write {index} ({write.site})" if numbered else write.site
        sentences += write_in_words(subject, write, depth, replayed=condition.replay_last_token)
        expected = condition.expects.get(write.name)
        if expected is not None:
            sentences.append(_EXPECTED[expected].format(write=subject))
    if condition.replay_last_token:
        sentences.append(
            "The last prompt token is fed a second time, after the whole prompt, at the next position."
        )
    if condition.recompute:
        sentences.append("No cache is kept: every new token is computed from the whole context.")
    if condition.sampling != usual:
        sentences.append(f"Sampling differs from the experiment's: {_sampling(condition.sampling, usual)}.")
    return tuple(sentences)


def _sampling(own: Sampling, usual: Sampling) -> str:
    parts = []
    if own.temperature != usual.temperature:
        parts.append("greedy" if own.temperature == 0 else f"temperature {own.temperature:g}")
    if own.top_k != usual.top_k:
        parts.append(f"top-k {own.top_k}" if own.top_k > 0 else "no top-k")
    if own.top_p != usual.top_p:
        parts.append(f"top-p {own.top_p:g}" if own.top_p < 1 else "no top-p")
    if own.max_new_tokens != usual.max_new_tokens:
        parts.append(f"up to {own.max_new_tokens} new tokens")
    return ", ".join(parts)
