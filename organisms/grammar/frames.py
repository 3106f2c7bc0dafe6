"""Sentence frames: weighted templates with slots, to draw sentences from, with their exact probability."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from organisms.grammar.draw import Draw

STOP = "."


def sentences_of(words: Sequence[str]) -> list[list[str]]:
    """Splits words after each full stop. Raises ValueError if the last sentence has none."""
    sentences: list[list[str]] = [[]]
    for word in words:
        sentences[-1].append(word)
        if word == STOP:
            sentences.append([])
    if sentences.pop():
        raise ValueError(f"the last sentence has no {STOP!r}: {' '.join(words[-8:])!r}")
    return sentences


def log_share(probability: float) -> float:
    """Natural logarithm of a probability, -inf for 0."""
    return math.log(probability) if probability > 0.0 else -math.inf


@dataclass(frozen=True)
class Frame:
    """A sentence template; `choices[i]` are the words that may stand at place i, all equally likely."""

    choices: tuple[tuple[str, ...], ...]
    probability: float

    def sentence(self, draw: Draw) -> list[str]:
        return [place[0] if len(place) == 1 else draw.pick(place) for place in self.choices]


class FrameSet:
    """Weighted frames of one kind of sentence.

    Raises ValueError if a frame names a slot that does not exist or does not end in a full stop.
    """

    def __init__(self, frames: Sequence[tuple[str, float]], slots: Mapping[str, tuple[str, ...]]) -> None:
        total = sum(weight for _, weight in frames)
        built = []
        for text, weight in frames:
            places: list[tuple[str, ...]] = []
            for word in text.split():
                if not word.startswith("{"):
                    places.append((word,))
                    continue
                name = word.strip("{}")
                if name not in slots:
                    raise ValueError(
                        f"frame {text!r}: unknown slot {name!r}; known: {', '.join(sorted(slots))}"
                    )
                places.append(slots[name])
            if places[-1] != (STOP,):
                raise ValueError(f"frame {text!r}: must end in {STOP!r}")
            built.append(Frame(tuple(places), weight / total))
        self.frames: tuple[Frame, ...] = tuple(built)
        self._members = tuple(tuple(frozenset(place) for place in frame.choices) for frame in self.frames)

    def sentence(self, draw: Draw) -> list[str]:
        """One sentence, its full stop included."""
        return self.frames[draw.weighted([frame.probability for frame in self.frames])].sentence(draw)

    def probability(self, sentence: Sequence[str]) -> float:
        """Exact probability of this sentence, summed over the frames that can produce it."""
        total = 0.0
        for frame, members in zip(self.frames, self._members, strict=True):
            if len(members) != len(sentence):
                continue
            if all(word in place for word, place in zip(sentence, members, strict=True)):
                share = frame.probability
                for place in frame.choices:
                    share /= len(place)
                total += share
        return total

    def words(self) -> list[str]:
        """All words, in order of first appearance."""
        return list(dict.fromkeys(word for frame in self.frames for place in frame.choices for word in place))

    def openers(self) -> frozenset[str]:
        """The words that a sentence can open with."""
        return frozenset(word for frame in self.frames for word in frame.choices[0])
