"""What the stages of an experiment are and what flows between them: `patchbay graph`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from analyses.choices.criteria import read_criterion, read_objective
from runner import status
from runner.config.check import Experiment, Stage, check_experiment
from runner.config.compose import compose
from runner.config.errors import ConfigurationError, Problem, listed, suggestion
from runner.config.folders import config_folders, options
from runner.config.spec import Spec
from runner.config.stages.spec import ExtractStageSpec, SelectStageSpec
from runner.config.stages.stand_ins import grid_cells, grid_names

FORMATS = ("terminal", "mermaid")
_GAP = 2  # columns between what stands side by side


@dataclass(frozen=True)
class Node:
    """A stage as it is drawn: what it does and what it gives, in words."""

    name: str
    kind: str
    what: str
    gives: str
    needs: tuple[str, ...]


def graph(words: Sequence[str], config_dir: Path | None, console: Console) -> int:
    """Print the stages of `EXPERIMENT [overrides] [format=mermaid]`. Raises ConfigurationError."""
    overrides, form = [], "terminal"
    for word in words:
        if word.startswith("format="):
            form = word.removeprefix("format=")
        else:
            overrides.append(word)
    if form not in FORMATS:
        message = f"expected one of {listed(FORMATS)}, got '{form}'{suggestion(form, FORMATS)}"
        raise ConfigurationError([Problem("command line", "format", message)])
    if not overrides:
        raise ConfigurationError([Problem("command line", "graph", "expected the name of an experiment")])
    name = overrides[0].removeprefix("+experiment=")
    known = options("experiment", config_folders(config_dir))
    if name not in known:
        message = f"expected an experiment ({listed(known)}), got '{name}'{suggestion(name, known)}"
        raise ConfigurationError([Problem("command line", "graph", message)])
    experiment = check_experiment(compose([f"+experiment={name}", *overrides[1:]], config_dir))
    nodes = nodes_of(experiment)
    if form == "mermaid":
        console.print(mermaid(nodes), markup=False, soft_wrap=True)
        return status.DONE
    spec = experiment.spec
    console.print(Text(f"{spec.experiment.name} on {spec.model.name}", style="bold"))
    console.print(drawn(nodes, console))
    for told, finding in experiment.findings.items():
        console.print(Text(f"finding {told}: {finding.label or _of_finding(finding)}", style="dim"))
    return status.DONE


def stands_in(stage: Stage, experiment: Experiment) -> str | None:
    """The sentence on a stage whose words are shown with stand-ins for what is still to be chosen."""
    choices = [need for need in stage.needs if experiment.stage(need).kind == "select"]
    cells = [name for name in choices if not getattr(experiment.stage(name).body, "items", ())]
    if not cells:
        return None
    return f"shown with the first candidate in the place of what {listed(cells)} will choose"


def _of_finding(finding: object) -> str:
    given = finding.model_dump(exclude_none=True, exclude_defaults=True)  # type: ignore[attr-defined]
    return ", ".join(f"{key} {value}" for key, value in given.items() if isinstance(value, str))


def nodes_of(experiment: Experiment) -> list[Node]:
    """The stages in their order, in words."""
    return [_node(stage) for stage in experiment.stages]


def _node(stage: Stage) -> Node:
    body = stage.body
    if isinstance(body, SelectStageSpec):
        gives = "a choice of items" if body.items else f"a choice of {', '.join(body.over)}"
        return Node(stage.name, stage.kind, rule_in_words(body), gives, stage.needs)
    assert stage.spec is not None
    if isinstance(body, ExtractStageSpec):
        return Node(stage.name, stage.kind, _extraction(body, stage.spec), "an artefact", stage.needs)
    return Node(
        stage.name, stage.kind, _measurement(stage), f"a table of {_readouts(stage.spec)}", stage.needs
    )


def _readouts(spec: Spec) -> str:
    return ", ".join(spec.readouts)


def _measurement(stage: Stage) -> str:
    spec = stage.spec
    assert spec is not None
    parts = []
    for name in grid_names(spec):
        cells = len(grid_cells(spec, name))
        parts.append(f"{name} ({cells:,} cells)" if cells > 1 else name)
    split = spec.prompts.targets.split
    items = f"{spec.n_asked:,} items{'' if split == 'all' else f' of the {split} split'}"
    kept = getattr(stage.body, "items", None)
    told = f"{', '.join(parts)}; {items}{f', those of {kept}' if kept else ''}"
    return f"{told} (in sample)" if stage.in_sample else told


def _extraction(body: ExtractStageSpec, spec: Spec) -> str:
    if body.from_ is not None:
        return f"{body.heads} of {body.from_}, summed through {body.through}"
    minus = "" if body.minus is None else f" - {body.minus}"
    apart = " (each position)" if body.each_position else ""
    by = f", by {body.by}" if body.by else ""
    split = spec.prompts.targets.split
    layers = body.layers if isinstance(body.layers, str | int) else ", ".join(map(str, body.layers))
    where = f"{body.site}, layers {layers}, {body.positions}{apart}"
    kept = f", those of {body.items}" if body.items else ""
    return f"mean {body.of}{minus} at {where}{by}; {spec.n_asked:,} items of {split}{kept}"


def rule_in_words(body: SelectStageSpec) -> str:
    """The rule of a choice as a phrase."""
    wanted = [read_criterion(one.model_dump()).words for one in (body.items or body.where)]
    where = f" where {'; '.join(wanted)}" if wanted else ""
    if body.items:
        return f"items{where}"
    if body.draw is not None:
        but = f", none of {body.but}" if body.but else ""
        return f"{body.draw} at random{but}{where}"
    objective = read_objective(body.model_dump())
    assert objective is not None
    count = f"the {body.top} with the " if body.top > 1 else ""
    return f"{count}{objective.words}{where}"


def drawn(nodes: Sequence[Node], console: Console) -> Table:
    """The stages below each other, with lines on the left from each to those that use it. console: its width
    says where the words of a stage break, and so how long its lines are."""
    table = Table(box=None, show_header=False, padding=(0, _GAP, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    found = lanes(nodes)
    columns = (
        max(len(line) for line, _ in found),
        max(len(node.name) for node in nodes),
        max(len(node.kind) for node in nodes),
    )
    width = max(1, console.width - sum(columns) - _GAP * (len(columns) + 1))
    styles = {"measure": "green", "extract": "magenta", "select": "cyan"}
    for node, (line, below) in zip(nodes, found, strict=True):
        what = Text(node.what).append(f"\n-> {node.gives}", style="dim")
        height = len(what.wrap(console, width))
        table.add_row(
            Text("\n".join([line, *[below] * (height - 1)])),
            Text(node.name, style="bold"),
            Text(node.kind, styles[node.kind]),
            what,
        )
    return table


def lanes(nodes: Sequence[Node]) -> list[tuple[str, str]]:
    """For each stage the line that it stands on and the line below it: a lane for each earlier stage that a
    later one still uses."""
    last = {need: index for index, node in enumerate(nodes) for need in node.needs}
    open_lanes: list[str | None] = []
    out = []
    for index, node in enumerate(nodes):
        used = {at for at, name in enumerate(open_lanes) if name in node.needs}
        closing = {at for at in used if last[open_lanes[at] or ""] == index}
        free = [at for at, name in enumerate(open_lanes) if name is None]
        here = free[0] if free else len(open_lanes)
        if here == len(open_lanes):
            open_lanes.append(None)
        ends = used | {here}
        low, high = min(ends), max(ends)
        cells = []
        for at, name in enumerate(open_lanes):
            inside = low <= at <= high and len(ends) > 1
            if at == here:
                mark = "●"
            elif at in used:
                left, right = at > low, at < high
                mark = _joint(stays=at not in closing, left=left, right=right)
            elif name is not None:
                mark = "┼" if inside else "│"
            else:
                mark = "─" if inside else " "
            cells.append(mark + ("─" if low <= at < high and len(ends) > 1 else " "))
        for at in closing:
            open_lanes[at] = None
        open_lanes[here] = node.name if node.name in last else None
        while open_lanes and open_lanes[-1] is None:
            open_lanes.pop()
        below = "".join("│ " if name is not None else "  " for name in open_lanes)
        out.append(("".join(cells).rstrip(), below.rstrip()))
    return out


def _joint(*, stays: bool, left: bool, right: bool) -> str:
    if left and right:
        return "┼" if stays else "┴"
    if right:
        return "├" if stays else "╰"
    return "┤" if stays else "╯"


def mermaid(nodes: Sequence[Node]) -> str:
    """The same as a Mermaid flow chart."""
    shapes = {"measure": ("[", "]"), "extract": ("[(", ")]"), "select": ("{{", "}}")}
    lines = ["flowchart TD"]
    for node in nodes:
        left, right = shapes[node.kind]
        what = node.what.replace('"', "'")
        lines.append(f'  {node.name}{left}"<b>{node.name}</b><br/>{node.kind}: {what}"{right}')
    lines += [f"  {need} --> {node.name}" for node in nodes for need in node.needs]
    return "\n".join(lines)
