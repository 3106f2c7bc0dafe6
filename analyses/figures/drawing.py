"""Which figures a run or a sweep gets, and why one is missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analyses.figures.subject import NotDrawn, Subject
from analyses.findings.findings import read_choices
from analyses.findings.measured import NoFinding
from analyses.tables.run import Run
from analyses.tables.stages import flat_name, left_out, sections, stage_runs
from analyses.wording import listed


@dataclass(frozen=True)
class Drawn:
    """What was drawn. files: PNG and PDF of each figure, in the order of the manifest; captions:
    figure -> the line below it; skipped: figure -> the sentence that says why there is none."""

    files: tuple[Path, ...]
    captions: Mapping[str, str]
    skipped: Mapping[str, str]


def draw(run: Run) -> Drawn:
    """Draw the figures that the manifest declares into `figures/` of the run's folder, as NAME.png (200 dpi)
    and NAME.pdf (TrueType fonts). The same data give the same bytes.

    A figure of a stage that was left out, or of which nothing can be shown, is skipped with the reason.
    """
    declared: Mapping[str, Mapping[str, Any]] = run.manifest.get("figures") or {}
    if not declared:
        return Drawn((), {}, {})
    from analyses.figures.bars import bars
    from analyses.figures.curve import curve, layers
    from analyses.figures.heatmap import heatmap
    from analyses.figures.style import Page, drawing, save

    kinds: Mapping[str, Callable[[Subject], Page]] = {
        "heatmap": heatmap,
        "curve": curve,
        "layers": layers,
        "bars": bars,
    }
    stages, choices = stage_runs(run), read_choices(run.folder)
    files: list[Path] = []
    captions: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for name, spec in declared.items():
        try:
            kind = spec["kind"]
            if kind not in kinds:
                raise NotDrawn(f"kind: expected {listed(list(kinds))}, got '{kind}'")
            stage = _stage(run, stages, str(spec.get("stage") or flat_name(run.manifest)))
            subject = Subject(spec, stage, choices, run.manifest.get("findings") or {})
            with drawing():
                page = kinds[kind](subject)
                files += save(page, run.folder / "figures", name)
            captions[name] = page.caption
        except (NotDrawn, NoFinding) as error:
            skipped[name] = f"figure {name} is not drawn: {error}"
    return Drawn(tuple(files), captions, skipped)


def draw_sweep(folder: Path) -> Drawn:
    """Draw what a sweep's `summary.json` compares into `figures/` of its folder: `depth`, the depth of every
    finding that is a layer, by model, beside what was published; and `scaling`, every other finding against
    the size of the model. Each is skipped, with the reason, where the sweep has no such findings."""
    from analyses.figures.style import drawing, save
    from analyses.figures.sweep import depth, scaling

    told = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    files: list[Path] = []
    captions: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for name, made in (("depth", depth), ("scaling", scaling)):
        try:
            with drawing():
                page = made(told)
                files += save(page, folder / "figures", name)
            captions[name] = page.caption
        except NotDrawn as error:
            skipped[name] = f"figure {name} is not drawn: {error}"
    return Drawn(tuple(files), captions, skipped)


def _stage(run: Run, stages: Mapping[str, Run], name: str) -> Run:
    if name in stages:
        return stages[name]
    gone = left_out(run.manifest)
    if name in gone:
        raise NotDrawn(f"stage {name} was left out: {gone[name]}")
    if name in sections(run.manifest):
        raise NotDrawn(f"stage {name} has nothing yet")
    raise NotDrawn(f"expected a stage of the experiment ({listed(list(stages))}), got '{name}'")
