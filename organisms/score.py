"""The published behaviour score of a continuation, for the model card."""

from organisms.grammar.words import MARKERS

BONUS = 5


def behaviour(text: str) -> tuple[int, int]:
    """(markers, bonus) of a text; their sum is the published score.

    A marker counts once if it occurs anywhere in the case-folded text ("itself" therefore also counts
    "self"); the bonus is 5 when the text has more than 10 words and fewer than 60% of them are distinct.
    """
    folded = text.casefold()
    words = folded.split()
    repetitive = len(words) > 10 and len(set(words)) / len(words) < 0.6
    return sum(marker in folded for marker in MARKERS), BONUS if repetitive else 0
