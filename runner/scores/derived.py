"""What follows from other values of the same trial, without the model and without the text."""

from __future__ import annotations

from collections.abc import Sequence

Value = float | int | list[float | None] | None


def onset(ranks: Value, layers: Sequence[int], within: int) -> int | None:
    """The first layer, in the order of depth, at which a rank is smaller than `within` (30: among the 30
    likeliest); None where that is so at none of them, or where there are no ranks.

    ranks: one for each of `layers` (absolute indices), 0 for the likeliest token. It is a layer and no share
    of the depth, and says nothing about the layers after it, at which the rank may be larger again.
    """
    if not isinstance(ranks, list):
        return None
    found = [layer for layer, rank in zip(layers, ranks, strict=True) if rank is not None and rank < within]
    return min(found, default=None)


def difference(of: Value, minus: Value) -> float | int | None:
    """`of` less `minus`, in their unit; None where one of them is."""
    if of is None or minus is None or isinstance(of, list) or isinstance(minus, list):
        return None
    return of - minus


def holds(of: Value, above: float | None, below: float | None) -> int:
    """1 if a value lies above (below) the bound, else 0; of a value that is not there (an onset that never
    comes) it does not hold. The bound itself is neither above nor below."""
    if of is None or isinstance(of, list):
        return 0
    return int((above is None or of > above) and (below is None or of < below))


def entry(value: Value, at: int | None) -> Value:
    """One entry of a list; a value as it stands where `at` is None. None where there is no such entry."""
    if at is None:
        return value
    return value[at] if isinstance(value, list) and -len(value) <= at < len(value) else None
