"""Random choices that are the same on every machine and Python version."""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """A random stream named by text.

    Only `random.Random.random` is used: Python guarantees its sequence for a seed, and that of no other
    method.
    """

    def __init__(self, name: str) -> None:
        self._random = random.Random(name)

    def below(self, n: int) -> int:
        """An integer 0..n-1, uniform."""
        return int(self._random.random() * n)

    def pick(self, items: Sequence[T]) -> T:
        """One of `items`, uniform."""
        return items[self.below(len(items))]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._random.random() < probability

    def weighted(self, weights: Sequence[float]) -> int:
        """An index, with probability proportional to its weight."""
        left = self._random.random() * sum(weights)
        for index, weight in enumerate(weights):
            left -= weight
            if left < 0.0:
                return index
        return max(index for index, weight in enumerate(weights) if weight > 0.0)

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in a uniformly random order (Fisher-Yates)."""
        order = list(items)
        for last in range(len(order) - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order
