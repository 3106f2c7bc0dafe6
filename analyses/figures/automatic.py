"""Which figures a run gets of itself, beside those that its experiment declares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analyses.figures.subject import is_number
from analyses.summary.folding import large_grids
from analyses.tables.by_condition import numbers
from analyses.tables.cells import axis_key, grids_of
from analyses.tables.run import Run
from analyses.tables.stages import flat_name

_MOST_GRIDS = 3  # grids of one stage that are drawn without being declared
_MOST_BARS = 16
ANALYSIS = "analysis"
LAYERS = ("layers", "layer", "from_layer")


@dataclass(frozen=True)
class Planned:
    """A figure of a run or stage. spec: of a kind that can be declared; for `analysis` its entry in the
    summary; the others are of the run and its summary alone."""

    name: str
    kind: str
    run: Run
    summary: Mapping[str, Any]
    spec: Mapping[str, Any] | None = None


def planned(
    whole: Run,
    stages: Mapping[str, Run],
    summary: Mapping[str, Any],
    declared: Mapping[str, Mapping[str, Any]],
) -> Iterator[Planned]:
    """The figures that have something to say: `receipts` of the whole run where anything is written; of each
    stage `forest` and `raincloud` where contrasts are declared, `shares` in place of the latter for a readout
    of 0 and 1, `dose` where trends are, and `grid_NAME` for each large grid that no declared figure shows; in
    a run with stages these names begin with that of the stage. `analysis_NAME` is of a declared analysis.

    stages: those of `whole`, as `stage_runs` has them; summary: of the whole run.
    """
    parts = summary.get("stages")
    for stage, run in stages.items():
        part = summary if parts is None else parts.get(stage)
        if part is None:
            continue
        before = "" if parts is None else f"{stage}_"
        contrasts = part.get("contrasts") or ()
        cloud = () if _binary(run, str(part.get("primary"))) else contrasts
        for kind, wanted in (("forest", contrasts), ("raincloud", cloud), ("dose", part.get("trends"))):
            if wanted:
                yield Planned(f"{before}{kind}", kind, run, part)
        mine = [spec for spec in declared.values() if str(spec.get("stage") or stage) == stage]
        for name, spec in _of_table(run, part, mine):
            yield Planned(f"{before}{name}", str(spec["kind"]), run, part, spec)
    for told in summary.get("analyses") or ():
        stage = told.get("stage") or flat_name(whole.manifest)
        if stage in stages and told.get("result") is not None:
            part = summary if parts is None else parts.get(stage, {})
            yield Planned(f"analysis_{told['name']}", ANALYSIS, stages[stage], part, told)
    if summary.get("receipts"):
        yield Planned("receipts", "receipts", whole, summary)


def _of_table(
    run: Run, summary: Mapping[str, Any], declared: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What the kinds that can be declared show of conditions that no declared figure has."""
    shown = {str(name) for spec in declared for name in spec.get("of") or ()}
    conditions, primary = summary.get("conditions") or {}, str(summary.get("primary"))
    large = large_grids(list(conditions))
    single = [name for name in conditions if "[" not in name]
    if primary not in run.trials.columns:
        return
    if (
        _binary(run, primary)
        and 1 < len(single) <= _MOST_BARS
        and summary.get("contrasts")
        and not shown & set(single)
    ):
        yield "shares", {"kind": "bars", "of": single, "readout": primary, "title": f"{primary} by condition"}
    grids = grids_of(run.manifest.get("conditions", {}))
    left = [name for name in grids if name in large and name not in shown][:_MOST_GRIDS]
    for name in left:
        spec = _of_grid(name, grids[name], primary, summary)
        if spec is not None:
            yield f"grid_{name}", spec


def _binary(run: Run, readout: str) -> bool:
    """Whether a readout is 0 or 1 in every trial that has it."""
    values = numbers(run.trials, readout)
    known = np.empty(0) if values is None else values[np.isfinite(values)]
    return bool(len(known)) and bool(np.isin(known, (0.0, 1.0)).all())


def _of_grid(
    name: str, cells: Mapping[str, Mapping[str, Any]], readout: str, summary: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """A curve over the one axis of a grid that varies, a heat map over two; of more, over the layers and the
    longest other axis."""
    values: dict[str, dict[str, Any]] = {}
    for cell in cells.values():
        for axis, value in cell.items():
            values.setdefault(axis, {})[axis_key(value)] = value
    varied = sorted((axis for axis in values if len(values[axis]) > 1), key=lambda axis: -len(values[axis]))
    if not varied:
        return None
    baseline = str(summary.get("baseline"))
    against = {"against": baseline} if baseline in (summary.get("conditions") or {}) else {}
    title = {"title": f"{readout} over the cells of {name}"}
    if len(varied) == 1:
        return {"kind": "curve", "of": [name], "readout": readout, "x": varied[0], **against, **title}
    layered = [axis for axis in varied if axis.rpartition(".")[2] in LAYERS]
    first = layered[0] if layered else varied[0]
    second = next(axis for axis in (*layered[1:], *varied) if axis != first)
    across = second if all(is_number(v) for v in values[second].values()) or first in layered else first
    up = first if across == second else second
    return {"kind": "heatmap", "of": [name], "readout": readout, "x": across, "y": up, **against, **title}
