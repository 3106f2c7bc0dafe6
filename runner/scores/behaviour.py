"""Self-referential behaviour in a continuation: the published score, its two components apart, and a strict
one."""

from __future__ import annotations

import re
from dataclasses import dataclass

VERSION = 1

MARKERS = (
    "itself",
    "self",
    "recursive",
    "recursion",
    "loop",
    "observe",
    "observing",
    "awareness",
    "conscious",
    "process",
    "attention",
    "reflect",
    "mirror",
    "eigen",
    "fixed point",
    "paradox",
    "infinite",
    "regress",
    "meta",
    "within",
    "strange",
)
REPETITION_BONUS = 5
BONUS_WORDS = 10  # the bonus needs more words than this
BONUS_RATIO = 0.6  # ... and a smaller share of distinct words than this

_WHOLE = {marker: re.compile(rf"\b{re.escape(marker)}\b") for marker in MARKERS}


@dataclass(frozen=True)
class Behaviour:
    """score = markers + bonus (the published rule); strict counts whole words only and has no bonus."""

    score: int
    markers: int
    bonus: int
    strict: int


def behaviour(text: str) -> Behaviour:
    """Score a continuation (never the prompt with it).

    markers: how many of the 21 markers occur as substrings of the case-folded text, once each ("itself"
    counts for "self" too, as published). bonus: 5 where the text has more than 10 words of which less than
    60% are distinct: it rewards repetition, so read it apart. strict: markers that occur as whole words.
    Invariant under word order within the text except for "fixed point".
    """
    folded = text.casefold()
    words = folded.split()
    repetitive = len(words) > BONUS_WORDS and len(set(words)) / len(words) < BONUS_RATIO
    markers = sum(marker in folded for marker in MARKERS)
    bonus = REPETITION_BONUS if repetitive else 0
    return Behaviour(markers + bonus, markers, bonus, sum(bool(p.search(folded)) for p in _WHOLE.values()))
