"""How p values are corrected over a declared family."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction over a declared family, in the given order.

    A test that could not be made (None) stays None but still counts: what was declared does not shrink
    because of how the data fell. Source: Holm (1979). Raises ValueError for a p outside 0..1.
    """
    for p in p_values:
        if p is not None and not 0 <= p <= 1:
            raise ValueError(f"expected p values in 0..1, got {p}")
    order = sorted((i for i, p in enumerate(p_values) if p is not None), key=lambda i: _known(p_values[i]))
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * _known(p_values[i])))
        corrected[i] = highest
    return corrected


def _known(p: float | None) -> float:
    assert p is not None
    return p
