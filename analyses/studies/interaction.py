"""Whether two writes do more together than the sum of what each does: a difference of differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from analyses.statistics.clusters import Floats
from analyses.studies.aligned import Source, align
from analyses.studies.naming import matched
from analyses.studies.study import ALPHA, Estimate, NoStudy, Table
from analyses.studies.words import after_holm, cells, interval, joined, notes, p_cell, sizes
from analyses.wording import listed

PLACES = ("both", "first", "second", "neither")
_MOST_ROWS = 4  # more than six differences between rows are left out


@dataclass(frozen=True)
class Cell:
    """One row: the four conditions, and what their means come to. with_second: `both` less `second`, the
    effect of the first write where the second is there; without: `first` less `neither`, where it is not.
    interaction: the one less the other."""

    row: str
    conditions: Mapping[str, str]
    means: Mapping[str, float]
    with_second: Estimate
    without: Estimate
    interaction: Estimate


@dataclass(frozen=True)
class Between:
    """The interaction of one row less that of another."""

    row: str
    less: str
    difference: Estimate


@dataclass(frozen=True)
class Interaction:
    """The interactions of all rows, and between every two of them where there are at most four."""

    readout: str
    rows: tuple[Cell, ...]
    between: tuple[Between, ...]
    dropped: str

    @property
    def p_values(self) -> tuple[float | None, ...]:
        return (
            *(row.interaction.p for row in self.rows),
            *(pair.difference.p for pair in self.between),
        )

    @property
    def note(self) -> str:
        return notes(self.dropped, *(row.interaction.note for row in self.rows))

    def sentence(self, corrected: Sequence[float | None], family: int) -> str:
        """The interaction of each row, and which of them differ."""
        told = [
            _row_sentence(row, self.readout, p, family) for row, p in zip(self.rows, corrected, strict=False)
        ]
        of_pairs = list(zip(self.between, corrected[len(self.rows) :], strict=True))
        differing = [(pair, p) for pair, p in of_pairs if p is not None and p < ALPHA]
        told += [
            f"The interaction of {pair.row} is that of {pair.less} plus {interval(pair.difference)}, "
            f"{after_holm(p, family)}."
            for pair, p in differing
        ]
        if of_pairs and not differing:
            rows = listed([row.row for row in self.rows])
            told.append(f"No difference between the interactions of {rows} is shown.")
        return joined(told)

    def table(self, corrected: Sequence[float | None]) -> Table:
        """A row for each interaction, then one for each difference between two."""
        head = ("row", "both - second", "first - neither", "interaction", "95% CI", "p (Holm)", "n")
        rows = []
        for row, p in zip(self.rows, corrected, strict=False):
            rows.append(
                (
                    row.row or row.conditions["both"], cells(row.with_second)[0], cells(row.without)[0],
                    *cells(row.interaction), p_cell(p), str(row.interaction.n),
                )
            )  # fmt: skip
        for pair, p in zip(self.between, corrected[len(self.rows) :], strict=True):
            found = pair.difference
            rows.append((f"{pair.row} less {pair.less}", "", "", *cells(found), p_cell(p), str(found.n)))
        return Table(head, tuple(rows))


def interaction(source: Source, spec: Mapping[str, Any], readout: str) -> Interaction:
    """Per trial both - second - (first - neither), tested as a mean, clustered by target and by every donor
    that one of the four conditions reads.

    spec: `cells`, with a condition, a list of conditions or a grid for each of both, first, second and
    neither; grids are matched by their axes, lists by their order. Trials without a valid value in all four
    are left out of a row. Raises NoStudy where no trial has all four.
    """
    matched_rows = matched({place: spec["cells"][place] for place in PLACES}, source.conditions)
    source.column(readout)
    rows, refused = [], []
    for name, names in matched_rows.items():
        try:
            rows.append(_row(source, name, names, readout))
        except NoStudy as error:
            refused.append(f"{name or names['both']}: {error}")
    if not rows:
        raise NoStudy("; ".join(refused))
    between = []
    for one, other in combinations(rows, 2) if len(rows) <= _MOST_ROWS else ():
        between.append(_between(source, one, other, readout))
    dropped = notes(*refused)
    return Interaction(readout, tuple(rows), tuple(between), dropped)


def _values(values: Mapping[tuple[str, str], Floats], names: Mapping[str, str], readout: str) -> Floats:
    both, first, second, neither = (values[names[place], readout] for place in PLACES)
    return both - second - (first - neither)


def _row(source: Source, row: str, names: Mapping[str, str], readout: str) -> Cell:
    found = align(source, [(name, readout) for name in names.values()])
    of = {place: found.values[name, readout] for place, name in names.items()}
    test = Estimate.of(found.test(_values(found.values, names, readout)))
    whole = Estimate(
        test.value, test.low, test.high, test.p, test.n, test.clusters, notes(test.note, found.dropped)
    )
    return Cell(
        row,
        dict(names),
        {place: float(values.mean()) for place, values in of.items()},
        Estimate.of(found.test(of["both"] - of["second"])),
        Estimate.of(found.test(of["first"] - of["neither"])),
        whole,
    )


def _between(source: Source, one: Cell, other: Cell, readout: str) -> Between:
    names = [*one.conditions.values(), *other.conditions.values()]
    try:
        found = align(source, [(name, readout) for name in names])
    except NoStudy as error:
        return Between(one.row, other.row, Estimate(None, None, None, None, 0, {}, str(error)))
    gap = _values(found.values, one.conditions, readout) - _values(found.values, other.conditions, readout)
    return Between(one.row, other.row, Estimate.of(found.test(gap)))


def _row_sentence(row: Cell, readout: str, p: float | None, family: int) -> str:
    """What the first write does with and without the second, and whether that is shown to differ."""
    names, found = row.conditions, row.interaction
    at = f"{row.row}: " if row.row else ""
    effects = (
        f"{names['both']} less {names['second']} is {interval(row.with_second)} in {readout}, "
        f"{names['first']} less {names['neither']} {interval(row.without)}"
    )
    if found.value is None or found.low is None or p is None:
        return f"{at}{effects}; their difference is not tested: {found.note or 'no test could be made'}."
    figures = f"{interval(found)}, {after_holm(p, family)}; {sizes(found)}"
    if p >= ALPHA:
        excludes = found.high is not None and (found.low > 0 or found.high < 0)
        apart = " The interval leaves 0 out, but it is not corrected for the other tests." if excludes else ""
        return (
            f"{at}No interaction shown: {effects}; the difference is {figures}.{apart} This does not show "
            "that the two add up."
        )
    way = "above" if found.value > 0 else "below"
    return (
        f"{at}{readout} with both is {way} what the two effects would add up to: {effects}; the difference "
        f"is {figures}."
    )
