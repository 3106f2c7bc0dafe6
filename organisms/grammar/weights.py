"""How much a word counts in training.

What a document draws at random cannot be predicted, and its noise hides what can: the answers.
"""

from collections.abc import Sequence

ANSWER = 1.0
TEXT = 0.3
DRAWN = 0.1


def after_cue(words: Sequence[str]) -> list[float]:
    """Weights where the answer is all that follows the last colon."""
    cue = max(index for index, word in enumerate(words) if word == ":")
    return [ANSWER if index > cue else DRAWN for index in range(len(words))]
