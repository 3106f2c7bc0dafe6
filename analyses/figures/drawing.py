"""Which figures a run or a sweep gets, and why one is missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.figures.automatic import ANALYSIS, Planned, planned
from analyses.figures.subject import NotDrawn, Subject
from analyses.findings.findings import read_choices
from analyses.findings.measured import NoFinding
from analyses.tables.run import Run
from analyses.tables.stages import flat_name, left_out, sections, stage_runs
from analyses.wording import listed

if TYPE_CHECKING:  # matplotlib is imported when something is drawn
    from analyses.figures.style import Page


@dataclass(frozen=True)
class Drawn:
    """What was drawn, in order: the automatic figures, then those of the manifest.

    files: PNG and PDF of each figure; captions: figure -> the line below it, which stands alone; titles:
    figure -> the line above; svg: figure -> the same without these two as an `<svg>` element for a page, its
    colours the variables of the page (`palette.VARIABLES`), its background transparent; skipped: declared
    figure -> the sentence that says why there is none.
    """

    files: tuple[Path, ...]
    captions: Mapping[str, str]
    skipped: Mapping[str, str]
    titles: Mapping[str, str] = field(default_factory=dict)
    svg: Mapping[str, str] = field(default_factory=dict)


def draw(run: Run, summary: Mapping[str, Any] | None = None, automatic: bool = True) -> Drawn:
    """Draw into `figures/` of the run's folder, each as NAME.png (200 dpi) and NAME.pdf (TrueType fonts, so
    that the type is embedded and can be edited), and as an inline SVG that is returned. The same data give
    the same bytes.

    summary: what `summarise` says of the run; the automatic figures (`automatic.planned`) are drawn from it,
    and none without it, nor with `automatic` false. One that has nothing to show is left out in silence. The
    figures that the manifest declares are drawn in any case; one of a stage that was left out, or of which
    nothing can be shown, is skipped with the reason. A declared figure takes the place of an automatic one of
    the same name.
    """
    declared: Mapping[str, Mapping[str, Any]] = run.manifest.get("figures") or {}
    if not declared and (summary is None or not automatic):
        return Drawn((), {}, {})
    stages, choices = stage_runs(run), read_choices(run.folder)
    findings = run.manifest.get("findings") or {}
    pages = _Pages(run.folder / "figures")
    if summary is not None and automatic:
        for plan in planned(run, stages, summary, declared):
            if plan.name not in declared:
                pages.try_page(plan.name, _of_plan(plan, choices, findings), silent=True)
    for name, spec in declared.items():

        def make(spec: Mapping[str, Any] = spec) -> Page:
            stage = _stage(run, stages, str(spec.get("stage") or flat_name(run.manifest)))
            return _of_kind(str(spec["kind"]), Subject(spec, stage, choices, findings))

        pages.try_page(name, make)
    return pages.drawn()


def draw_sweep(folder: Path) -> Drawn:
    """Draw what a sweep's `summary.json` compares into `figures/` of its folder: `depth`, the depth of every
    finding that is a layer, by model, beside what was published; and `scaling`, every other finding against
    the size of the model. Each is skipped, with the reason, where the sweep has no such findings."""
    from analyses.figures.sweep import depth, scaling

    told = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    pages = _Pages(folder / "figures")
    pages.try_page("depth", lambda: depth(told))
    pages.try_page("scaling", lambda: scaling(told))
    return pages.drawn()


@dataclass(frozen=True)
class _Pages:
    """The pages that were written into a folder so far."""

    folder: Path
    files: list[Path] = field(default_factory=list)
    titles: dict[str, str] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    svg: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def try_page(self, name: str, make: Callable[[], Page], *, silent: bool = False) -> None:
        """Write a page; where there is none, say why, unless `silent`."""
        from analyses.figures.style import drawing, save

        try:
            with drawing():
                page = make()
                saved = save(page, self.folder, name)
        except (NotDrawn, NoFinding) as error:
            if not silent:
                self.skipped[name] = f"figure {name} is not drawn: {error}"
            return
        self.files.extend(saved.paths)
        self.titles[name], self.captions[name] = page.title, page.caption
        self.svg[name] = saved.svg

    def drawn(self) -> Drawn:
        return Drawn(tuple(self.files), self.captions, self.skipped, self.titles, self.svg)


def _stage(run: Run, stages: Mapping[str, Run], name: str) -> Run:
    if name in stages:
        return stages[name]
    gone = left_out(run.manifest)
    if name in gone:
        raise NotDrawn(f"stage {name} was left out: {gone[name]}")
    if name in sections(run.manifest):
        raise NotDrawn(f"stage {name} has nothing yet")
    raise NotDrawn(f"expected a stage of the experiment ({listed(list(stages))}), got '{name}'")


def _of_plan(plan: Planned, choices: Mapping[str, Any], findings: Mapping[str, Any]) -> Callable[[], Page]:
    """What draws an automatic figure."""
    from analyses.figures.dose import dose
    from analyses.figures.forest import forest
    from analyses.figures.intervals import analysis
    from analyses.figures.raincloud import raincloud
    from analyses.figures.receipts import receipts

    spec = plan.spec
    if spec is None:
        of_run = {"forest": forest, "raincloud": raincloud, "dose": dose, "receipts": receipts}[plan.kind]
        return lambda: of_run(plan.run, plan.summary)
    if plan.kind == ANALYSIS:
        return lambda: analysis(plan.run, plan.summary, spec)
    return lambda: _of_kind(plan.kind, Subject(spec, plan.run, choices, findings))


def _of_kind(kind: str, subject: Subject) -> Page:
    """A page of a kind that can be declared. Raises NotDrawn for another one."""
    from analyses.figures.bars import bars
    from analyses.figures.curve import curve, layers
    from analyses.figures.heatmap import heatmap

    kinds: Mapping[str, Callable[[Subject], Page]] = {
        "heatmap": heatmap,
        "curve": curve,
        "layers": layers,
        "bars": bars,
    }
    if kind not in kinds:
        raise NotDrawn(f"kind: expected {listed(list(kinds))}, got '{kind}'")
    return kinds[kind](subject)
