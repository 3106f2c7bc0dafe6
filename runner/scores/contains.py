"""Whether a generated text says one of several things: how papers count right answers, and refusals."""

from __future__ import annotations

from collections.abc import Sequence

SHORTEST = 2  # a label of one character is in nearly every text


def labels_that_count(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels without the white space around them, of which those of a single character are left out."""
    stripped = (label.strip() for label in labels)
    return tuple(dict.fromkeys(label for label in stripped if len(label) >= SHORTEST))


def contains(text: str, labels: Sequence[str]) -> float:
    """1 if any label that counts occurs in the text (never the prompt with it), else 0.

    Both are case-folded; a label may stand anywhere, within a word too ("art" is in "start"). Invariant under
    case, and under the order and repetition of labels; can only rise with more text or more labels.

    Source: Biran et al. (2024), arXiv 2406.12775, which counts an answer as right where any label or alias
    longer than one character is a case-folded substring of the generation.
    """
    folded = text.casefold()
    return float(any(label.casefold() in folded for label in labels_that_count(labels)))
