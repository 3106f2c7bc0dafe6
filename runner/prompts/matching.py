"""Pairs of which each side is used at most once: as many as there can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def maximum_matching(fitting: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Who goes with whom, for as many of the first as can be had: a maximum matching.

    fitting: of each, in the order in which they choose, those of the other side that fit, the preferred
    first. One that chooses later moves earlier ones to another partner where it would find none, and leaves
    none of them without. Ids by ids; who finds none is not among the keys.
    """
    held: dict[str, str] = {}
    owner: dict[str, str] = {}
    for one in fitting:
        _find(one, fitting, held, owner)
    return held


def _find(
    one: str, fitting: Mapping[str, Sequence[str]], held: dict[str, str], owner: dict[str, str]
) -> None:
    """Find a partner for one along the shortest chain of others who change theirs (an augmenting path)."""
    reached: dict[str, str] = {}  # partner -> who came to it
    waiting = [one]
    for seeker in waiting:  # which grows
        for partner in fitting[seeker]:
            if partner in reached:
                continue
            reached[partner] = seeker
            if partner in owner:
                waiting.append(owner[partner])
                continue
            while True:
                taker = reached[partner]
                left = held.get(taker)
                held[taker], owner[partner] = partner, taker
                if left is None:
                    return
                partner = left
