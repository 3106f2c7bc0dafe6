"""Whether a generated text only repeats itself, as a model does that a write has broken."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

N = 3  # words that are compared together
FEWEST = N  # words: with fewer there is no n-gram, and nothing to say


@dataclass(frozen=True)
class Degenerate:
    """repeated: the share of trigrams that have occurred before, None for a text of fewer than 3 words. run:
    the longest run of one and the same word, None for a text without words."""

    repeated: float | None
    run: int | None


def degenerate(text: str) -> Degenerate:
    """How much a continuation (never the prompt with it) repeats itself.

    Its words w_1..w_m are what white space separates, case-folded, with their punctuation. The m - 2 trigrams
    are (w_i, w_i+1, w_i+2); repeated = 1 - distinct trigrams / trigrams, which is the share of trigrams that
    have occurred earlier in the text: 0 where none recurs, near 1 for a loop. run is 1 where no word follows
    itself. A text in a script without spaces is one word, and is not judged (None).

    Source: seq-rep-n of Welleck et al. (2020), arXiv 1908.04319, section 6, with n = 3, on words.
    """
    words = text.casefold().split()
    run = max((len(list(same)) for _, same in groupby(words)), default=None)
    if len(words) < FEWEST:
        return Degenerate(None, run)
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return Degenerate(1 - len(set(trigrams)) / len(trigrams), run)
