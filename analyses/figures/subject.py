"""What a figure shows, as plain data: cells, their axes, means and intervals. Nothing is drawn here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import pandas as pd

from analyses.figures.labels import range_words
from analyses.findings.cross_model import published
from analyses.findings.measured import Estimate, NoFinding, measure
from analyses.tables.cells import Axes, axis_key, axis_named, cells_of, grids_of
from analyses.tables.columns import RECEIPTS
from analyses.tables.run import Run
from analyses.wording import listed, plural

Role = Literal["treatment", "control", "reference"]
_NOISE = ("random", "orthogonal", "shuffled_window", "shuffled_sequence")


class NotDrawn(Exception):
    """Why there is no figure; the message is a sentence."""


@dataclass(frozen=True)
class Shown:
    """A condition or grid of a figure. label: in words; role: what writes noise or nothing new is a control,
    what writes nothing a reference."""

    name: str
    label: str
    role: Role
    cells: Mapping[str, Axes]

    @property
    def axes(self) -> list[str]:
        return list(dict.fromkeys(axis for cell in self.cells.values() for axis in cell))


@dataclass(frozen=True)
class Chosen:
    """Cells that a choice took from the stage that a figure is of, and those that passed its criteria or
    failed them."""

    choice: str
    cells: tuple[Axes, ...]
    passed: tuple[Axes, ...]
    failed: tuple[Axes, ...]


@dataclass(frozen=True)
class Subject:
    """One figure's specification (plain data) with the run of its stage, the run's choices and the declared
    findings, of which the published values are taken."""

    spec: Mapping[str, Any]
    run: Run
    choices: Mapping[str, Mapping[str, Any]]
    findings: Mapping[str, Mapping[str, Any]]

    @property
    def readout(self) -> str:
        return str(self.spec["readout"])

    @property
    def title(self) -> str:
        return str(self.spec.get("title") or "")

    @property
    def layers(self) -> int | None:
        """L of the model."""
        found = self.run.manifest.get("model", {}).get("layers")
        return None if found is None else int(found)

    @property
    def conditions(self) -> Mapping[str, Mapping[str, Any]]:
        found: Mapping[str, Mapping[str, Any]] = self.run.manifest.get("conditions", {})
        return found

    @cached_property
    def shown(self) -> list[Shown]:
        """What `of` names."""
        return [self.member(str(name)) for name in self.spec["of"]]

    @cached_property
    def against(self) -> Shown | None:
        name = self.spec.get("against")
        return None if name is None else self.member(str(name))

    def member(self, name: str) -> Shown:
        """A condition or a grid by name. Raises NotDrawn, with what there is, for an unknown one."""
        cells = cells_of(self.conditions, name)
        if not cells:
            known = list(dict.fromkeys((*grids_of(self.conditions), *self.conditions)))
            raise NotDrawn(f"expected a condition or grid of the stage ({listed(known)}), got '{name}'")
        body = self.conditions[next(iter(cells))]
        label = str(body.get("label") or name)
        if name not in self.conditions:
            label = label.partition("[")[0].strip() or name
        return Shown(name, label, role_of(body), cells)

    def axis(self, word: str, shown: Shown) -> str | None:
        """The axis of a grid that a word means; None where it has none."""
        return axis_named(word, shown.axes)

    def values(self, word: str) -> list[Any]:
        """The values of an axis over all that is shown, each once: numbers and lists sorted, words in the
        order of the grids. Raises NotDrawn where nothing shown has the axis."""
        found: dict[str, Any] = {}
        for values in sorted(self._sequences(word), key=len, reverse=True):
            for value in values:
                found.setdefault(axis_key(value), value)
        if not found:
            offered = dict.fromkeys(axis for shown in self.shown for axis in shown.axes)
            raise NotDrawn(f"expected an axis of {listed([s.name for s in self.shown])} "
                           f"({listed(list(offered)) or 'none'}), got '{word}'")  # fmt: skip
        values = list(found.values())
        ordered = all(is_number(value) for value in values) or all(isinstance(v, list) for v in values)
        return sorted(values) if ordered else values

    def _sequences(self, word: str) -> list[list[Any]]:
        """The values of an axis, in their order, at each place on the other axes of each grid: where cells
        are left out of a grid, the longest sequence has the order of the axis."""
        found: dict[tuple[str, ...], list[Any]] = {}
        for shown in self.shown:
            axis = self.axis(word, shown)
            for cell in shown.cells.values():
                if axis is not None:
                    others = (f"{name}={axis_key(value)}" for name, value in cell.items() if name != axis)
                    found.setdefault((shown.name, *others), []).append(cell[axis])
        return list(found.values())

    def groups(self) -> list[str]:
        """The groups of the items, in the order of the table."""
        return [str(group) for group in self.run.trials["group"].dropna().drop_duplicates()]

    def averaged(self) -> str:
        """The axes of the grids that the figure does not show, in a sentence; empty where it shows all."""
        words = [str(self.spec[key]) for key in ("x", "y", "by") if self.spec.get(key) is not None]
        found: dict[str, None] = {}
        for shown in self.shown:
            told = {self.axis(word, shown) for word in words}
            values: dict[tuple[str, ...], set[str]] = {}
            for axis in (axis for axis in shown.axes if axis not in told):
                for cell in shown.cells.values():
                    place = (axis, *(axis_key(cell[name]) for name in cell if name in told))
                    values.setdefault(place, set()).add(axis_key(cell[axis]))
            # An axis that follows from those that are shown (`only: a == b`) is not averaged over.
            found |= dict.fromkeys(place[0] for place, held in values.items() if len(held) > 1)
        return f"Mean over {listed(list(found))}." if found else ""

    def at(self, shown: Shown, word: str, value: Any) -> Shown:
        """The cells of a grid with this value of an axis; all of them where it does not have the axis."""
        axis = self.axis(word, shown)
        if axis is None:
            return shown
        key = axis_key(value)
        return replace(
            shown, cells={name: cell for name, cell in shown.cells.items() if axis_key(cell[axis]) == key}
        )

    def of_group(self, group: str) -> Subject:
        """The same figure, of the items of one group."""
        trials = self.run.trials
        return replace(self, run=replace(self.run, trials=trials[trials["group"] == group]))

    def estimate(self, shown: Shown, readout: str | None = None) -> Estimate | None:
        """The mean over the cells with its 95% interval, as a finding has it; None where no trial has a
        value. readout: in place of the figure's own."""
        bodies = {name: self.conditions[name] for name in shown.cells}
        frames = [self._apart[name] for name in bodies if name in self._apart]
        if not frames:
            return None
        trials = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
        run = Run(trials, {**self.run.manifest, "conditions": bodies}, self.run.folder)
        name = next(iter(bodies)) if len(bodies) == 1 else shown.name
        try:
            return measure({"of": name, "readout": readout or self.readout}, run, {}).estimate
        except NoFinding:
            return None

    @cached_property
    def _apart(self) -> dict[str, pd.DataFrame]:
        """The trials of each condition, without what no mean is taken of."""
        kept = [name for name in self.run.trials.columns if not _unread(str(name))]
        return {str(name): rows for name, rows in self.run.trials[kept].groupby("condition", observed=True)}

    def chosen(self) -> list[Chosen]:
        """The choices that were made on the stage of the figure; random draws are none of them."""
        stage = self.run.manifest.get("experiment", {}).get("stage")
        found = []
        for name, choice in self.choices.items():
            drawn = (choice.get("rule") or {}).get("draw") is not None
            if choice.get("from") != stage or drawn or not choice.get("chosen"):
                continue
            axes = list(choice["chosen"][0])
            cells = [({axis: row[axis] for axis in axes}, row["passes"]) for row in choice["table"]]
            passed, failed = (
                tuple(cell for cell, passes in cells if passes is side) for side in (True, False)
            )
            found.append(Chosen(name, tuple(choice["chosen"]), passed, failed))
        return found

    def published_at(self, word: str) -> dict[str, float]:
        """Published values of an axis that was chosen on this stage, for this model: finding -> value."""
        stage = self.run.manifest.get("experiment", {}).get("stage")
        found = {}
        for name, finding in self.findings.items():
            choice = self.choices.get(str(finding.get("choice")))
            axis = str(finding.get("axis"))
            if choice is None or choice.get("from") != stage or axis_named(word, [axis]) is None:
                continue
            value = self._published(finding)
            if value is not None:
                found[name] = value
        return found

    def published_of(self, shown: Shown) -> float | None:
        """The published mean of a condition, for this model; of a share, percentages become shares."""
        stage = self.run.manifest.get("experiment", {}).get("stage")
        for finding in self.findings.values():
            same = (finding.get("of"), finding.get("readout")) == (shown.name, self.readout)
            if same and finding.get("stage") in (None, stage) and finding.get("against") is None:
                return self._published(finding)
        return None

    def _published(self, finding: Mapping[str, Any]) -> float | None:
        if finding.get("published") is None:
            return None
        try:
            value = published(str(finding["published"]), self.run.manifest.get("model", {}).get("name")).value
        except KeyError:  # the finding itself says so
            return None
        return float(value) if is_number(value) else None

    def caption(self, estimates: Iterable[Estimate | None], *more: str) -> str:
        """The line below a figure: how many items, which model, which stage, what is drawn how."""
        known = [each for each in estimates if each is not None]
        return self.caption_of([(each.items, each.n) for each in known], *more)

    def caption_of(self, numbers: Sequence[tuple[int, int]], *more: str) -> str:
        """The same from (items, trials) of each mean."""
        items, trials = ([pair[place] for pair in numbers] for place in (0, 1))
        if not items:
            raise NotDrawn(f"no valid trial of {listed([s.name for s in self.shown])} has a value")
        told = f"n = {range_words(items)} items"
        if max(trials) > max(items):
            told += f", {range_words(trials)} trials"
        manifest = self.run.manifest
        model = f"{manifest.get('model', {}).get('name')} ({plural(self.layers or 0, 'layer')})"
        stage = manifest.get("experiment", {}).get("stage")
        where = f"; stage {stage}" if stage else ""
        parts = [f"{told}; {model}{where}.", *more, self.averaged(), str(manifest.get("in_sample") or "")]
        return " ".join(part for part in parts if part)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def same_cell(cell: Axes, other: Axes) -> bool:
    """Whether two cells agree in the axes that both have, of which there is at least one."""
    shared = [(axis_named(axis, list(other)), value) for axis, value in cell.items()]
    known = [(name, value) for name, value in shared if name is not None]
    return bool(known) and all(axis_key(other[name]) == axis_key(value) for name, value in known)


def _unread(column: str) -> bool:
    return column in ("key", "target_ids", "output_ids", "text") or column.rpartition(".")[2] in RECEIPTS


def role_of(body: Mapping[str, Any]) -> Role:
    """What a condition of a manifest is, by what it writes."""
    writes = list((body.get("writes") or {}).values())
    if not writes:
        return "treatment" if body.get("weights") else "reference"
    noise = any(_kind(write.get("value")) in _NOISE for write in writes)
    return "control" if noise or all(write.get("expect") for write in writes) else "treatment"


def _kind(value: object) -> str:
    return str(value.get("kind")) if isinstance(value, Mapping) else str(value)
