"""What the words of an analysis stand for: conditions, cells of grids, features. Nothing heavy is imported
here: the door reads them as well."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from analyses.studies.study import NoStudy
from analyses.tables.axes import axis_key, cell_words, cells_of
from analyses.wording import listed

Word = str | Sequence[str]
GROUP, DONOR_LENGTH = "group", "donor_length"
DERIVED = (GROUP, DONOR_LENGTH)  # features that are no column as they stand


def expanded(word: Word, conditions: Mapping[str, Any]) -> list[str]:
    """The conditions that a word means, grids by their cells, in their order. Raises NoStudy for a name that
    the run does not have."""
    found: list[str] = []
    for name in (word,) if isinstance(word, str) else word:
        cells = cells_of(conditions, name)
        if not cells:
            raise NoStudy(f"the run has no condition {name}")
        found += cells
    return list(dict.fromkeys(found))


def alone(name: str, conditions: Mapping[str, Any]) -> str:
    """A condition by its name. Raises NoStudy for a grid of several cells and for an unknown name."""
    found = expanded(name, conditions)
    if len(found) > 1:
        raise NoStudy(f"{name} is a grid of {len(found)} cells; expected one condition")
    return found[0]


def matched(words: Mapping[str, Word], conditions: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Rows of conditions, one of each place: {"layers 5": {"both": ..., "first": ...}, ...}.

    Grids are matched by the values of their axes (by the last parts of the axes' names), lists by their
    order; a single condition stands in every row. Raises NoStudy where grids or lists do not fit together.
    """
    lists = {place: expanded(word, conditions) for place, word in words.items()}
    several = {place: names for place, names in lists.items() if len(names) > 1}
    if not several:
        return {"": {place: names[0] for place, names in lists.items()}}
    keys = {place: [_key(name, conditions) for name in names] for place, names in several.items()}
    first = next(iter(keys.values()))
    if all(set(found) == set(first) and all(found) for found in keys.values()):
        at = {place: dict(zip(keys[place], names, strict=True)) for place, names in several.items()}
        return {
            key: {place: at[place][key] if place in at else names[0] for place, names in lists.items()}
            for key in first
        }
    if len({len(names) for names in several.values()}) > 1:
        told = [f"{place} has {len(names)}" for place, names in several.items()]
        raise NoStudy(f"rows cannot be matched: {listed(told)}")
    leading = next(iter(several.values()))
    return {
        name: {place: several[place][row] if place in several else names[0] for place, names in lists.items()}
        for row, name in enumerate(leading)
    }


def _key(name: str, conditions: Mapping[str, Any]) -> str:
    """The cell that a condition is, in words that cells of other grids with like axes share; empty for a
    condition without a grid."""
    axes = conditions.get(name, {}).get("grid") or {}
    return cell_words({axis.rpartition(".")[2]: axis_key(value) for axis, value in axes.items()})


def named(word: str, conditions: Iterable[str]) -> tuple[str, str] | None:
    """The condition and the column that "CONDITION.COLUMN" names, None where no condition begins it."""
    fitting = [name for name in conditions if word.startswith(f"{name}.")]
    if not fitting:
        return None
    longest = max(fitting, key=len)
    return longest, word.removeprefix(f"{longest}.")
