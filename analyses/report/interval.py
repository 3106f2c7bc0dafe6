"""A difference with its interval as a small picture in the cell of a table."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from analyses.statistics.clusters import ClusteredMean

_WIDTH, _HEIGHT, _EDGE = 160, 18, 4


def scale_of(tests: Sequence[ClusteredMean | None]) -> tuple[float, float] | None:
    """The least and the greatest value that the intervals of a column reach, 0 included; None where there is
    no interval."""
    ends = [
        end
        for test in tests
        if test is not None and test.ci_low is not None and test.ci_high is not None
        for end in (test.ci_low, test.ci_high)
    ]
    return (min(0.0, *ends), max(0.0, *ends)) if ends and max(map(abs, ends)) > 0 else None


def strip(test: ClusteredMean, scale: tuple[float, float] | None, shown: bool) -> Markup:
    """The interval of a test as inline SVG on a scale that the whole column shares, with a line at 0; empty
    where there is none. shown: whether the difference is significant, drawn in colour."""
    if scale is None or test.mean is None or test.ci_low is None or test.ci_high is None:
        return Markup("")
    low, high = scale

    def x(value: float) -> str:
        return f"{_EDGE + (value - low) / (high - low) * (_WIDTH - 2 * _EDGE):.1f}"

    colour = "var(--accent)" if shown else "var(--muted)"
    middle = _HEIGHT / 2
    return Markup(
        '<svg width="{w}" height="{h}" viewBox="0 0 {w} {h}" aria-hidden="true">'
        '<line x1="{zero}" x2="{zero}" y1="0" y2="{h}" stroke="var(--muted)" stroke-width="1" opacity="0.6"/>'
        '<line x1="{a}" x2="{b}" y1="{m}" y2="{m}" stroke="{c}" stroke-width="2"/>'
        '<circle cx="{at}" cy="{m}" r="3.5" fill="{c}"/></svg>'
    ).format(
        w=_WIDTH,
        h=_HEIGHT,
        zero=x(0.0),
        a=x(test.ci_low),
        b=x(test.ci_high),
        at=x(test.mean),
        m=f"{middle:g}",
        c=colour,
    )
