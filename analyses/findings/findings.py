"""What an experiment is for, figure by figure: each declared finding with its interval, beside what was
published."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from analyses.findings.cross_model import published
from analyses.findings.finding import Depth, Finding, Part
from analyses.findings.measured import Estimate, NoFinding, fixed_words, measure
from analyses.findings.words import in_a_sentence
from analyses.statistics.corrections import holm
from analyses.tables.cells import axis_key, axis_named, cell_words
from analyses.tables.run import Run
from analyses.tables.stages import MEASURE, flat_name, left_out, sections, stage_runs, staged
from analyses.wording import figure, listed, plural

_POSITIONS = ("position", "from_positions", "positions")
_LAYERS = ("layer", "from_layer", "layers")


def findings(run: Run) -> list[Finding]:
    """The findings that the manifest declares, in its order. Empty where there is none.

    Shares have Wilson's interval and differences of shares Newcombe's, with the effective n where trials
    share prompts; other figures the clustered t interval. Differences of shares are tested by McNemar's exact
    test. Holm corrects the p values over all findings. Figures of a stage that was left out are None, with
    the reason; so is everything that the run does not have.
    """
    declared: Mapping[str, Mapping[str, Any]] = run.manifest.get("findings") or {}
    if not declared:
        return []
    source = _Source(run, stage_runs(run), read_choices(run.folder))
    found = [source.finding(name, spec) for name, spec in declared.items()]
    # A declared comparison that could not be made counts too: the family does not shrink with the data.
    declared_tests = [each for each in found if each.kind == "difference"]
    corrected = iter(holm([each.p for each in declared_tests]))
    tested = [
        replace(each, p_holm=next(corrected), family=len(declared_tests))
        if each.kind == "difference"
        else each
        for each in found
    ]
    return [replace(each, sentence=in_a_sentence(each)) for each in tested]


def read_choices(folder: Path) -> dict[str, dict[str, Any]]:
    """The choices of a run, by name, in the order of their files' names."""
    return _read(folder / "choices")


def read_artefacts(folder: Path) -> dict[str, dict[str, Any]]:
    """The artefacts of a run in words, by name: what stands beside each file of vectors."""
    return _read(folder / "artefacts")


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.json"))
        if not path.name.startswith(".")
    }


@dataclass(frozen=True)
class _Source:
    """What findings are taken from."""

    run: Run
    stages: Mapping[str, Run]
    choices: Mapping[str, Mapping[str, Any]]

    def finding(self, name: str, spec: Mapping[str, Any]) -> Finding:
        kinds: dict[str, Callable[[Finding, Mapping[str, Any]], Finding]] = {
            "choice": self._choice,
            "artefact": self._artefact,
            "mean": self._measured,
            "difference": self._measured,
        }
        kind = "difference" if spec.get("against") is not None else "mean"
        if spec.get("of") is None:
            kind = "choice" if spec.get("artefact") is None else "artefact"
        found = Finding(name, str(spec.get("label") or name), kind, _what(spec, kind), _readout(spec))
        notes = []
        if spec.get("published") is not None:
            try:
                told = published(str(spec["published"]), self.run.manifest.get("model", {}).get("name"))
                found = replace(found, published=told)
            except KeyError as error:
                notes.append(f"published: {error.args[0]}")
        try:
            found = kinds[kind](found, spec)
        except NoFinding as error:
            notes.append(str(error))
            by = tuple(_part(key, estimate) for key, estimate in error.by)
            found = replace(found, by=by, by_axis=str(spec.get("by") or ""))
        return replace(found, note="; ".join([*filter(None, [found.note]), *notes]))

    def _measured(self, found: Finding, spec: Mapping[str, Any]) -> Finding:
        name = self._stage(spec)
        section = sections(self.run.manifest).get(name, {})
        found = replace(found, stage=name, in_sample=str(section.get("in_sample") or ""))
        if name not in self.stages:
            self._missing(name)
        measured = measure(spec, self.stages[name], self.choices)
        first = measured.estimate
        return replace(
            found,
            value=first.value,
            low=first.low,
            high=first.high,
            n=first.n,
            items=first.items,
            unit="share" if first.share else "",
            p=first.p,
            mcnemar=first.mcnemar,
            method=first.method,
            sides=first.sides,
            by=tuple(_part(key, estimate) for key, estimate in measured.by),
            by_axis=str(spec.get("by") or ""),
            fixed=tuple(_part(fixed_words(each), each.estimate) for each in measured.fixed),
            note="; ".join([*filter(None, [first.note]), *measured.notes]),
        )

    def _stage(self, spec: Mapping[str, Any]) -> str:
        """The stage that a finding is of: the one that it names, or the only one that measures."""
        if spec.get("stage") is not None:
            return str(spec["stage"])
        if not staged(self.run.manifest):
            return flat_name(self.run.manifest)
        measuring = list(sections(self.run.manifest, MEASURE))
        if len(measuring) != 1:
            raise NoFinding(f"expected the stage that it is of: {listed(measuring)}")
        return measuring[0]

    def _missing(self, name: str) -> None:
        """Raise with the reason why a stage, a choice or an artefact has nothing."""
        gone = left_out(self.run.manifest)
        if name in gone:
            raise NoFinding(f"stage {name} was left out: {gone[name]}")
        if name in sections(self.run.manifest):
            raise NoFinding(f"stage {name} has nothing yet")
        known = list(sections(self.run.manifest) or self.stages)
        raise NoFinding(f"expected a stage of the experiment ({listed(known)}), got '{name}'")

    def _chosen(self, name: str) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
        """A choice and its cells, of which there is at least one, or items."""
        if name not in self.choices:
            self._missing(name)
        choice = self.choices[name]
        cells = list(choice.get("chosen") or ())
        if not cells and not choice.get("items"):
            raise NoFinding(f"choice {name} is empty: {choice.get('sentence')}")
        return choice, cells

    def _choice(self, found: Finding, spec: Mapping[str, Any]) -> Finding:
        """The value of an axis of the chosen cell (a list, of several), or the number of items kept."""
        choice, cells = self._chosen(str(spec["choice"]))
        found = replace(
            found, stage=str(choice.get("name", spec["choice"])), n=int(choice.get("n_items") or 0)
        )
        if not cells:
            kept, whole = len(choice["items"]), int(choice.get("n_cells") or len(choice.get("table") or ()))
            return replace(found, value=kept, n=whole, note=f"of {plural(whole, 'item')}")
        axis = spec.get("axis")
        if axis is None:
            words = [cell_words(cell) for cell in cells]
            return replace(found, value=words[0] if len(words) == 1 else words)
        named = [axis_named(str(axis), list(cell)) for cell in cells]
        if None in named:
            raise NoFinding(f"expected an axis of {spec['choice']} ({listed(list(cells[0]))}), got '{axis}'")
        values = [cell[str(name)] for cell, name in zip(cells, named, strict=True)]
        value = values[0] if len(values) == 1 else values
        return replace(found, value=value, depth=self._depth(str(axis), value))

    def _depth(self, axis: str, value: object) -> Depth | None:
        layers = self.run.manifest.get("model", {}).get("layers")
        if (self.run.manifest.get("config") or {}).get("reference_depth") is not None:
            return None  # the layer is told on another scale
        if axis.rpartition(".")[2] not in _LAYERS or not layers:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            return None
        try:
            return Depth(int(value), int(layers))
        except ValueError:
            return None

    def _artefact(self, found: Finding, spec: Mapping[str, Any]) -> Finding:
        """A column of an artefact's table, at the cell of a choice or as the mean of its rows."""
        name, column = str(spec["artefact"]), str(spec.get("column") or "norm")
        artefacts = read_artefacts(self.run.folder)
        if name not in artefacts:
            self._missing(name)
        table: list[Mapping[str, Any]] = list(artefacts[name].get("table") or ())
        if not table or column not in table[0]:
            columns = list(table[0]) if table else []
            raise NoFinding(f"expected a column of the table of {name} ({listed(columns)}), got '{column}'")
        found, depth = replace(found, stage=name), None
        if spec.get("choice") is not None:
            _, cells = self._chosen(str(spec["choice"]))
            table = [row for row in table if any(_is_at(row, cell) for cell in cells)]
            if not table:
                raise NoFinding(f"{name} has no row at {' or '.join(cell_words(cell) for cell in cells)}")
            layers = {row["layer"] for row in table if row.get("layer") is not None}
            depth = self._depth("layer", layers.pop()) if len(layers) == 1 else None
        values = [float(row[column]) for row in table if row[column] is not None]
        if not values:
            raise NoFinding(f"{column} of {name} is undefined there")
        note = ""
        if len(values) > 1:
            note = (
                f"mean of {plural(len(values), 'row')}, from {figure(min(values))} to {figure(max(values))}"
            )
        parts: tuple[Part, ...] = ()
        by = spec.get("by")
        if by is not None:
            parts = _rows_by(table, column, str(by))
        value = sum(values) / len(values)
        return replace(
            found, value=value, n=len(values), depth=depth, by=parts, by_axis=str(by or ""), note=note
        )


def _what(spec: Mapping[str, Any], kind: str) -> str:
    """What a finding is of, in words."""
    if kind == "choice":
        return f"{spec.get('axis') or 'choice'} of {spec['choice']}" if spec.get("choice") else "nothing"
    if kind == "artefact":
        at = f" at {spec['choice']}" if spec.get("choice") is not None else ""
        return f"{spec.get('column') or 'norm'} of {spec['artefact']}{at}"
    less = f" less that of {spec['against']}" if kind == "difference" else ""
    return f"{_readout(spec)} of {spec['of']}{less}"


def _readout(spec: Mapping[str, Any]) -> str:
    best = "largest " if spec.get("reduce") == "any" else ""
    return f"{best}{spec['readout']}" if spec.get("readout") is not None else ""


def _is_at(row: Mapping[str, Any], cell: Mapping[str, Any]) -> bool:
    """Whether a row of an artefact's table is at a chosen cell, in the axes that both have."""
    told = {axis.rpartition(".")[2]: value for axis, value in cell.items()}
    shared = []
    for own, names in (
        ("layer", _LAYERS),
        ("position", _POSITIONS),
        ("group", ("group",)),
        ("head", ("head", "heads")),
    ):
        value = next((told[name] for name in names if name in told), None)
        if value is not None and row.get(own) is not None:
            shared.append(_index(value) == _index(row[own]))
    return bool(shared) and all(shared)


def _index(value: object) -> str:
    """ "index:-1" and -1 are one position."""
    return axis_key(value).removeprefix("index:")


def _rows_by(table: Sequence[Mapping[str, Any]], column: str, by: str) -> tuple[Part, ...]:
    axis = axis_named(by, [name for name in table[0] if name != column])
    if axis is None:
        raise NoFinding(f"by: expected a column of the table ({listed(list(table[0]))}), got '{by}'")
    apart: dict[str, list[float]] = {}
    for row in table:
        held = apart.setdefault(str(row[axis]), [])
        held += [] if row[column] is None else [float(row[column])]
    return tuple(
        Part(key, sum(held) / len(held) if held else None, n=len(held)) for key, held in apart.items()
    )


def _part(key: str, estimate: Estimate | None) -> Part:
    if estimate is None:
        return Part(key, None, note="no value")
    ones = estimate.sides[0].ones if len(estimate.sides) == 1 else None
    return Part(key, estimate.value, estimate.low, estimate.high, estimate.n, ones, estimate.note)
