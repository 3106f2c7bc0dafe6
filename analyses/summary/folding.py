"""What a reader sees of a large grid: one row for all of its cells, with the lowest and the highest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analyses.comparisons.contrast import ALPHA, HOLM, corrected, correction_name
from analyses.tables.cells import axis_words, grid_name
from analyses.wording import count, plural, small, together

MOST_CELLS = 12  # a grid of more is told as a whole
MOST_OF_A_STAGE = 4  # the same, where a stage is one of several
_MOST_ALIKE = 2  # gates of one kind on cells of one grid, in full


@dataclass(frozen=True)
class Folded:
    """A grid as a whole. n: trials of a cell, fewest and most; mean: of the cells' means; lowest, highest:
    cell and mean, None where no cell has one."""

    name: str
    cells: tuple[str, ...]
    n: tuple[int, int]
    mean: float | None
    lowest: tuple[str, float] | None
    highest: tuple[str, float] | None


def large_grids(names: Sequence[str], most: int = MOST_CELLS) -> dict[str, list[str]]:
    """The grids of more than `most` cells, with their cells."""
    apart: dict[str, list[str]] = {}
    for name in names:
        if "[" in name:
            apart.setdefault(grid_name(name), []).append(name)
    return {grid: cells for grid, cells in apart.items() if len(cells) > most}


def without_cells(conditions: Mapping[str, Any], most: int = MOST_CELLS) -> dict[str, Any]:
    """The conditions that are told one by one."""
    large = large_grids(list(conditions), most)
    return {name: each for name, each in conditions.items() if not is_folded(name, large)}


def is_folded(name: str, large: Mapping[str, Sequence[str]]) -> bool:
    """Whether a condition is a cell of a grid that is told as a whole."""
    return "[" in name and grid_name(name) in large


def fold(conditions: Mapping[str, Any], readout: str, most: int = MOST_CELLS) -> list[Folded]:
    """The large grids among the conditions of a summary, by a readout."""
    found = []
    for grid, cells in large_grids(list(conditions), most).items():
        means = {
            name: mean
            for name in cells
            if (mean := conditions[name]["readouts"].get(readout, {}).get("mean")) is not None
        }
        sizes = [conditions[name]["n"] for name in cells]
        low = min(means, key=lambda name: means[name], default=None)
        high = max(means, key=lambda name: means[name], default=None)
        found.append(
            Folded(
                grid,
                tuple(cells),
                (min(sizes), max(sizes)),
                sum(means.values()) / len(means) if means else None,
                None if low is None else (cell_of(low), means[low]),
                None if high is None else (cell_of(high), means[high]),
            )
        )
    return found


def cell_of(name: str) -> str:
    """What stands in the brackets of a cell's name, axes by their last part: "from_layer=4"."""
    inside = name.partition("[")[2].removesuffix("]")
    parts = [part.partition("=") for part in inside.split(",")]
    return ", ".join(f"{axis.rpartition('.')[2]}{sign}{axis_words(value)}" for axis, sign, value in parts)


def fold_contrasts(
    summary: Mapping[str, Any], most: int = MOST_CELLS
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The contrasts that are told one by one, and a sentence for each grid of which a cell is compared in all
    others: how many of its differences stand when corrected, and the largest."""
    large = large_grids(list(summary["conditions"]), most)
    single: list[Mapping[str, Any]] = []
    apart: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for each in summary["contrasts"]:
        folded = [name for name in (each["condition"], each["against"]) if is_folded(name, large)]
        if folded:
            key = tuple(grid_name(each[side]) for side in ("condition", "against"))
            apart.setdefault((*key, each["kind"]), []).append(each)
        else:
            single.append(each)
    sentences = []
    for (one, other, _), members in apart.items():
        decided = [corrected(each) for each in members]
        stand = [p for p in decided if p is not None and p < ALPHA]
        after = correction_name(members[0].get("correction", HOLM))
        known = [each for each in members if each["difference"] is not None]
        whole = plural(len(members), "comparison")
        told = f"{one} - {other} in {summary['primary']}: {count(len(stand))} of {whole} stand after {after}"
        if known:
            largest = max(known, key=lambda each: abs(each["difference"]))
            value, low, high = together(largest["difference"], largest["ci_low"], largest["ci_high"])
            interval = "" if largest["ci_low"] is None else f", 95% CI {low} to {high}, uncorrected"
            at = cell_of(
                next(name for name in (largest["condition"], largest["against"]) if is_folded(name, large))
            )
            told += f"; the largest difference is {value} at {at} ({plural(largest['n'], 'pair')}{interval})"
        sentences.append(f"{told}.")
    return single, sentences


def fold_gates(gates: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Gates with those of one kind on many cells of a grid told once: the first, and how many more."""
    apart: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for gate in gates:
        at = gate["condition"]
        grid = grid_name(at) if "[" in at else at
        key = (
            gate.get("stage") or "",
            gate["verdict"],
            gate["gate"],
            grid,
            "" if "[" in at else gate["sentence"],
        )
        apart.setdefault(key, []).append(dict(gate))
    found = []
    for (_, _, _, grid, _), members in apart.items():
        if len(members) <= _MOST_ALIKE:
            found += members
            continue
        cells = len({gate["condition"] for gate in members})
        more = f" The same kind of gate stands for {plural(cells, 'cell')} of {grid}; summary.json has each."
        found.append(members[0] | {"sentence": members[0]["sentence"] + more})
    return found


def fold_receipts(receipts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Receipts with those of one write in all cells of a large grid as one: positions summed, relative
    changes as the words "0.1 to 0.4"."""
    large = large_grids(list(dict.fromkeys(each["condition"] for each in receipts)))
    apart: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for each in receipts:
        at = each["condition"]
        apart.setdefault((grid_name(at) if is_folded(at, large) else at, each["write"]), []).append(each)
    found = []
    for (name, _), members in apart.items():
        if name not in large:
            found += [dict(each) for each in members]
            continue
        changes = [each["relative_change"] for each in members if each["relative_change"] is not None]
        summed = {
            key: {phase: sum(each[key][phase] for each in members) for phase in members[0][key]}
            for key in ("asked", "written", "shadowed")
        }
        span = "undefined" if not changes else f"{small(min(changes))} to {small(max(changes))}"
        told = f"{name} ({plural(len(members), 'cell')})"
        found.append(dict(members[0]) | summed | {"condition": told, "relative_change": span})
    return found
