"""What the figures of a run and of a sweep show, and that the same data give the same files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from PIL import Image

from analyses.figures import draw, draw_sweep
from analyses.figures.bars import bars
from analyses.figures.curve import curve, layers
from analyses.figures.heat import heat
from analyses.figures.heatmap import heatmap
from analyses.figures.palette import ABSENT, CONTROL, INK
from analyses.figures.scales import scale_of
from analyses.figures.style import Page, drawing
from analyses.figures.subject import NotDrawn, Subject
from analyses.findings.findings import findings, read_choices
from analyses.tables.run import Run
from analyses.tables.stages import stage_runs
from tests.made_stages import AT, FROM, WORDS, N, condition, rows, section, staged, write

HEAT = {"kind": "heatmap", "stage": "candidates", "of": ["ablate"], "readout": "refusal", "x": FROM, "y": AT}
CURVE = {"kind": "curve", "stage": "candidates", "of": ["ablate", "add"], "readout": "refusal", "x": FROM}
BARS = {"kind": "bars", "stage": "evaluate", "of": ["baseline", "ablated", "random"], "readout": "refuses"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return staged(tmp_path_factory.mktemp("made") / "run")


def subject(run: Run, spec: dict[str, Any], **declared: Any) -> Subject:
    return Subject(spec, stage_runs(run)[spec["stage"]], read_choices(run.folder), declared)


def one_stage(tmp_path: Path, values: dict[str, Any], conditions: dict[str, Any], **fields: Any) -> Run:
    """A flat run of one readout, `right`. values: condition -> one for each item."""
    manifest = {
        "schema": 1, "status": "done",
        "experiment": {"name": "made", "n": N, "repeats": 1, "stage": "measure"},
        "model": {"name": "organism", "layers": 9},
    } | {key: value for key, value in section(conditions, "right").items() if key != "status"}  # fmt: skip
    trials = rows("measure", {key: np.array(value) for key, value in values.items()}, set(), "right", 0)
    return Run(trials, manifest | fields, tmp_path)


def panels(page: Page) -> list[Any]:
    return [axes for axes in page.figure.axes if axes.get_visible() and axes.get_label() != "<colorbar>"]


def lines(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def test_every_figure_of_the_manifest_is_written_as_png_and_pdf(run: Run) -> None:
    declared = {"cells": HEAT | {"against": "baseline", "title": "Where"}, "line": CURVE, "test": BARS}
    drawn = draw(replace(run, manifest={**run.manifest, "figures": declared}))
    assert [path.name for path in drawn.files] == [
        f"{name}.{kind}" for name in declared for kind in ("png", "pdf")
    ]
    assert not drawn.skipped and all(path.parent == run.folder / "figures" for path in drawn.files)
    for caption in drawn.captions.values():
        assert f"n = {N} items; organism (9 layers); stage" in caption
    with Image.open(drawn.files[0]) as image:
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        assert len(image.convert("RGB").getcolors(10**6) or ()) > 20


def test_a_run_without_figures_writes_nothing(run: Run) -> None:
    assert draw(replace(run, folder=run.folder / "none")).files == ()
    assert not (run.folder / "none").exists()


def test_what_cannot_be_drawn_is_skipped_with_the_reason(run: Run) -> None:
    declared = {
        "left": BARS | {"stage": "weights"},
        "nowhere": BARS | {"stage": "elsewhere"},
        "unknown": BARS | {"of": ["ablatd"]},
        "axis": CURVE | {"x": "dir.alpha"},
        "column": HEAT | {"readout": "refusals"},
        "flat": CURVE | {"kind": "layers"},
        "good": BARS,
    }
    drawn = draw(replace(run, manifest={**run.manifest, "figures": declared}))
    assert [path.stem for path in drawn.files] == ["good", "good"]
    assert "stage weights was left out: 'none' has chosen nothing" in drawn.skipped["left"]
    assert "candidates and evaluate" in drawn.skipped["nowhere"]
    assert "ablated" in drawn.skipped["unknown"] and "got 'ablatd'" in drawn.skipped["unknown"]
    assert FROM in drawn.skipped["axis"]
    assert "refusal" in drawn.skipped["column"]
    assert "list by layer" in drawn.skipped["flat"]


def test_the_same_data_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    declared = {"a": HEAT, "b": BARS}
    here = staged(tmp_path / "here")
    draw(replace(here, manifest={**here.manifest, "figures": declared}))
    code = (
        "import sys; from pathlib import Path; from dataclasses import replace\n"
        "from analyses.figures import draw; from tests.made_stages import staged\n"
        f"run = staged(Path(sys.argv[1])); figures = {declared!r}\n"
        "draw(replace(run, manifest={**run.manifest, 'figures': figures}))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "there")],
        env={**os.environ, "PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"},
        cwd=Path(__file__).parents[1],
        check=True,
    )
    for name in ("a.png", "a.pdf", "b.png", "b.pdf"):
        first, second = ((tmp_path / place / "figures" / name).read_bytes() for place in ("here", "there"))
        assert first == second, name
    pdf = (tmp_path / "here" / "figures" / "a.pdf").read_bytes()
    assert b"CreationDate" not in pdf and b"/Type3" not in pdf and b"CIDFontType2" in pdf


def test_the_look_of_a_figure_does_not_depend_on_the_process_nor_change_it(run: Run, tmp_path: Path) -> None:
    figures = {**run.manifest, "figures": {"a": BARS}}
    first = draw(Run(run.trials, figures, tmp_path / "first")).files[0].read_bytes()
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black"}):
        before = dict(matplotlib.rcParams)
        second = draw(Run(run.trials, figures, tmp_path / "second")).files[0].read_bytes()
        assert dict(matplotlib.rcParams) == before
    assert first == second


def test_matplotlib_is_not_imported_before_something_is_drawn() -> None:
    code = "import sys, analyses.figures; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)


def test_cells_are_paired_differences_of_the_items_that_both_have(run: Run) -> None:
    trials = run.trials.copy()
    cell = f"ablate[{FROM}=2,{AT}=index:-2]"
    mine = (trials["condition"] == cell) & (trials["stage"] == "candidates")
    lost = mine & trials["item"].isin([f"{i:04d}" for i in range(25)])
    trials.loc[lost, ["status", "refusal"]] = ["invalid", np.nan]
    made = subject(replace(run, trials=trials), HEAT | {"against": "baseline"})
    x, y = scale_of(made, FROM), scale_of(made, AT)
    found = heat(made, made.shown[0], x, y)
    at = y.keys.index("index:-2"), x.keys.index("2")
    values = trials[(trials["stage"] == "candidates") & (trials["status"] == "ok")]
    wide = values.pivot(index="item", columns="condition", values="refusal")
    assert found.means[at] == pytest.approx((wide[cell] - wide["baseline"]).dropna().mean())
    assert found.items[at] == N - 25 and found.means.shape == (2, 9) and found.ran.all()
    assert "n = 15 to 40 items" in _made(heatmap, made).caption


def test_a_grid_against_a_grid_is_taken_cell_by_cell(run: Run) -> None:
    made = subject(run, HEAT | {"against": "add"})
    found = heat(made, made.shown[0], scale_of(made, FROM), scale_of(made, AT))
    alone = [
        heat(each, each.shown[0], scale_of(each, FROM), scale_of(each, AT)).means
        for each in (subject(run, HEAT), subject(run, HEAT | {"of": ["add"]}))
    ]
    assert found.means == pytest.approx(alone[0] - alone[1])


def test_a_difference_is_coloured_around_zero_and_the_choice_outlined(run: Run) -> None:
    page = _made(heatmap, subject(run, HEAT | {"against": "baseline"}))
    (axes,) = panels(page)
    norm = axes.images[0].norm
    assert norm.vcenter == 0 and norm.vmin == -norm.vmax
    outlined = [p for p in axes.patches if isinstance(p, Rectangle) and not p.get_fill()]
    assert {patch.get_xy() for patch in outlined} == {(5 - 0.5, 0 - 0.5)}
    (chosen,) = read_choices(run.folder)["best"]["chosen"]
    assert (chosen[FROM], WORDS.index(chosen[AT])) == (5, 0)
    assert "Outlined: choice best." in page.caption
    failed = {
        (row[FROM], WORDS.index(row[AT]))
        for row in read_choices(run.folder)["best"]["table"]
        if not row["passes"]
    }
    assert failed and {(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.get_lines()} == failed


def test_cells_that_are_not_there_are_grey_and_those_without_a_trial_crossed(run: Run) -> None:
    gone, empty = f"ablate[{FROM}=0,{AT}=index:-1]", f"ablate[{FROM}=8,{AT}=index:-1]"
    trials = run.trials[run.trials["condition"] != gone].copy()
    trials.loc[trials["condition"] == empty, ["status", "refusal"]] = ["invalid", np.nan]
    made = subject(replace(run, trials=trials), HEAT)
    conditions = {key: body for key, body in made.conditions.items() if key != gone}
    made = replace(made, run=replace(made.run, manifest={**made.run.manifest, "conditions": conditions}))
    page = _made(heatmap, made)
    (axes,) = panels(page)
    grey = [p for p in axes.patches if p.get_fill() and to_hex(p.get_facecolor()).upper() == ABSENT]
    assert {patch.get_xy() for patch in grey} == {(-0.5, -0.5), (7.5, -0.5)}
    crosses = [line for line in axes.get_lines() if line.get_marker() == "x"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in crosses] == [(8, 0)]
    assert "Grey: not in the grid. Crossed: no valid trial." in page.caption


def test_a_line_has_the_mean_and_interval_of_the_finding_of_each_cell(run: Run) -> None:
    made = subject(run, CURVE | {"by": AT, "of": ["ablate"]})
    cell = f"ablate[{FROM}=4,{AT}=index:-2]"
    finding = {"f": {"stage": "candidates", "of": cell, "readout": "refusal"}}
    (expected,) = findings(replace(run, manifest={**run.manifest, "findings": finding}))
    (axes,) = panels(_made(curve, made))
    assert set(lines(axes)) == set(WORDS)
    assert lines(axes)["index:-2"].get_ydata()[4] == pytest.approx(expected.value)
    corners = axes.collections[1].get_paths()[0].vertices
    ends = corners[np.isclose(corners[:, 0], 4), 1]
    assert (ends.min(), ends.max()) == pytest.approx((expected.low, expected.high))


def test_several_grids_apart_by_an_axis_have_a_panel_for_each_value(run: Run) -> None:
    page = _made(curve, subject(run, CURVE | {"by": AT, "against": "baseline"}))
    assert [axes.get_title(loc="left") for axes in panels(page)] == [
        f"from_positions {word}" for word in WORDS
    ]
    rings = [[line for line in axes.get_lines() if line.get_markersize() == 9] for axes in panels(page)]
    # The chosen position is index:-1: the other panel has no ring.
    assert len(rings[0]) == 2 and not rings[1]
    assert {float(line.get_xdata()[0]) for line in rings[0]} == {5.0}
    assert {text.get_text() for text in page.figure.legends[0].get_texts()} == {"ablate", "add", "baseline"}


def test_noise_is_grey_and_dashed_and_what_writes_nothing_is_level(run: Run) -> None:
    made = subject(run, CURVE | {"against": "baseline"})
    conditions = {
        name: body | {"writes": {"dir": write(0) | {"value": {"kind": "random"}}}}
        if name.startswith("add")
        else body
        for name, body in made.conditions.items()
    }
    made = replace(made, run=replace(made.run, manifest={**made.run.manifest, "conditions": conditions}))
    (axes,) = panels(_made(curve, made))
    found = lines(axes)
    assert to_hex(found["add"].get_color()).upper() == CONTROL and found["add"].is_dashed()
    assert not found["ablate"].is_dashed() and found["ablate"].get_color() != CONTROL
    assert len(set(found["baseline"].get_ydata())) == 1


def test_grids_whose_alpha_has_other_units_are_not_on_one_axis(tmp_path: Path) -> None:
    conditions, values = {}, {}
    for grid, unit in (("plain", "raw"), ("scaled", "resid_norm")):
        for alpha in (-1, 2):
            name = f"{grid}[dir.alpha={alpha}]"
            held = {"dir_resid_pre": write(0) | {"unit": unit, "alpha": alpha}}
            conditions[name] = condition(name, held, grid={"dir.alpha": alpha})
            values[name] = np.full(N, float(alpha)) + np.arange(N)
    run = one_stage(tmp_path, values, conditions)
    spec = {
        "kind": "curve",
        "stage": "measure",
        "of": ["plain", "scaled"],
        "readout": "right",
        "x": "dir.alpha",
    }
    found = panels(_made(curve, subject(run, spec)))
    assert [list(lines(axes)) for axes in found] == [["plain"], ["scaled"]]
    assert [axes.get_xlabel() for axes in found] == ["dir.alpha (raw)", "dir.alpha (times resid_norm)"]


def test_a_window_of_layers_stands_at_its_centre(tmp_path: Path) -> None:
    windows = [list(range(max(0, layer - 2), min(9, layer + 3))) for layer in range(9)]
    conditions = {
        f"block[b.layers={window}]": condition("block", {"b": write(0)}, grid={"b.layers": window})
        for window in windows
    }
    run = one_stage(tmp_path, {name: np.zeros(N) for name in conditions}, conditions)
    spec = {"kind": "curve", "stage": "measure", "of": ["block"], "readout": "right", "x": "b.layers"}
    scale = scale_of(subject(run, spec), "b.layers")
    assert scale.places == tuple(range(9)) and scale.layer and scale.label.startswith("centre of the window")
    assert scale.place([0, 1, 2, 3]) == 1
    few = {name: body for name, body in list(conditions.items())[3:6]}
    run = one_stage(tmp_path, {name: np.zeros(N) for name in few}, few)
    scale = scale_of(subject(run, spec), "b.layers")
    assert scale.ticks == ("1-5", "2-6", "3-7") and not scale.numeric


def test_a_list_readout_has_its_layers_and_its_onset(tmp_path: Path) -> None:
    ranks = [[40 + i, 20, 0] if i % 2 else [50 + i, 40, 10] for i in range(N)]
    conditions = {"baseline": condition("baseline", {})}
    readout = {
        "lens": {"kind": "lens", "columns": {"lens.rank": "integers"}, "layers": [2, 4, 8]},
        "first": {"kind": "onset", "of": "lens.rank", "within": 30, "columns": {"first": "number"}},
    }
    run = one_stage(tmp_path, {"baseline": np.zeros(N)}, conditions, readout=readout)
    run.trials["lens.rank"] = ranks
    run.trials["first"] = [4.0 if i % 2 else 8.0 for i in range(N)]
    spec = {"kind": "layers", "stage": "measure", "of": ["baseline"], "readout": "lens.rank"}
    page = _made(layers, subject(run, spec))
    (axes,) = panels(page)
    line = lines(axes)["baseline"]
    assert list(line.get_xdata()) == [2, 4, 8]
    assert list(line.get_ydata()) == pytest.approx(np.mean(ranks, axis=0))
    (triangle,) = [each for each in axes.get_lines() if each.get_marker() == "^"]
    assert triangle.get_xdata()[0] == pytest.approx(6.0) and "mean first" in page.caption
    assert axes.get_yscale() == "symlog"


def test_bars_are_shares_with_their_counts_and_the_floor(run: Run) -> None:
    page = _made(bars, subject(run, BARS | {"against": "baseline"}))
    (axes,) = panels(page)
    widths = [patch.get_width() for patch in axes.patches if patch.get_height() == pytest.approx(0.66)]
    assert widths == pytest.approx([36 / 40, 3 / 40, 35 / 40])
    assert [text.get_text() for text in axes.texts] == ["36 of 40", "3 of 40", "35 of 40"]
    assert any(line.is_dashed() and line.get_xdata()[0] == pytest.approx(0.9) for line in axes.get_lines())
    assert "Dashed: baseline." in page.caption


def test_what_a_figure_averages_over_is_said(run: Run) -> None:
    cells = {"stage": "candidates", "of": ["ablate"], "readout": "refusal"}
    assert f"Mean over {FROM} and {AT}." in _made(bars, subject(run, BARS | cells)).caption
    assert f"Mean over {AT}." in _made(curve, subject(run, CURVE)).caption
    assert "Mean over" not in _made(curve, subject(run, CURVE | {"by": AT})).caption
    assert "Mean over" not in _made(heatmap, subject(run, HEAT)).caption


def test_an_axis_that_follows_from_another_is_not_averaged_over(tmp_path: Path) -> None:
    conditions = {
        f"g[d.layers={i},d.from_layer={i}]": condition(
            "g", {"d": write(i)}, grid={"d.layers": i, "d.from_layer": i}
        )
        for i in range(3)
    }
    run = one_stage(tmp_path, {name: np.arange(N) for name in conditions}, conditions)
    spec = {"kind": "curve", "stage": "measure", "of": ["g"], "readout": "right", "x": "d.from_layer"}
    assert "Mean over" not in _made(curve, subject(run, spec)).caption


def test_bars_by_group_are_those_of_its_items(run: Run) -> None:
    (axes,) = panels(_made(bars, subject(run, BARS | {"by": "group"})))
    values = run.trials[(run.trials["stage"] == "evaluate")]
    means = values.groupby(["group", "condition"])["refuses"].mean()
    groups = [text.get_text() for text in axes.get_xticklabels()]
    expected = [means[group, name] for group in groups for name in BARS["of"]]
    assert [patch.get_height() for patch in axes.patches] == pytest.approx(expected)


def test_published_values_are_drawn_for_their_model_only(run: Run) -> None:
    finding = {"layer": {"choice": "best", "axis": FROM, "published": "refusal_direction.{model}.0"}}
    for name, drawn in (("gemma_2_2b_it", True), ("organism", False)):
        own = replace(run, manifest={**run.manifest, "model": {"name": name, "layers": 9}})
        page = _made(curve, subject(own, CURVE, **finding))
        (axes,) = panels(page)
        dashed = [x for x in axes.get_lines() if x.is_dashed() and x.get_color() == INK]
        assert [float(line.get_xdata()[0]) for line in dashed] == ([16.0] if drawn else [])
        assert ("published (layer)" in page.caption) is drawn


def test_a_stage_evaluated_on_what_it_was_chosen_on_says_so(run: Run) -> None:
    told = "Evaluated on the prompts that its choice was made on."
    stages = run.manifest["stages"]
    marked = {**stages, "evaluate": stages["evaluate"] | {"in_sample": told}}
    page = _made(bars, subject(replace(run, manifest={**run.manifest, "stages": marked}), BARS))
    assert told in page.caption


def test_a_sweep_has_the_depth_of_chosen_layers_beside_the_published(tmp_path: Path) -> None:
    published = {"path": "", "model": None, "value": None, "models": {"gemma_2_2b": 16, "unknown": 3}}
    table = [
        row(
            "small",
            4,
            "layer",
            1,
            kind="choice",
            depth=_depth(1, 4),
            published=published,
        ),
        row(
            "large",
            8,
            "layer",
            4,
            kind="choice",
            depth=_depth(4, 8),
            published=published,
        ),
        row("small", 4, "refused", 0.2, unit="share", low=0.1, high=0.4),
        row("large", 8, "refused", 0.9, unit="share", low=0.7, high=1.0),
    ]
    (tmp_path / "summary.json").write_text(json.dumps({"jobs": [], "table": table}))
    drawn = draw_sweep(tmp_path)
    assert [path.name for path in drawn.files] == ["depth.png", "depth.pdf", "scaling.png", "scaling.pdf"]
    from analyses.figures.sweep import depth, scaling

    (axes,) = panels(_made(depth, {"table": table}))
    own, open_ones = axes.get_lines()[:2]
    assert list(own.get_ydata()) == [0.25, 0.5]
    assert list(open_ones.get_ydata()) == [pytest.approx(16 / 26)]  # of the models whose L is known
    assert [text.get_text() for text in axes.get_xticklabels()] == ["small", "large", "gemma_2_2b"]
    (axes,) = panels(_made(scaling, {"table": table}))
    points = {name: (line.get_xdata()[0], line.get_ydata()[0]) for name, line in lines(axes).items()}
    assert points == {"small": (4, 0.2), "large": (8, 0.9)}


def test_models_stand_at_their_parameters_where_the_runs_have_them(tmp_path: Path) -> None:
    jobs = []
    for version, size in (("v0001", 10**6), ("v0002", 10**9)):
        folder = tmp_path / "e" / version
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"model": {"parameters": size}}))
        jobs.append({"folder": str(folder)})
    table = [row("a", 4, "f", 1.0, version="v0001"), row("b", 4, "f", 2.0, version="v0002")]
    from analyses.figures.sweep import scaling

    (axes,) = panels(_made(scaling, {"table": table, "jobs": jobs}))
    assert axes.get_xscale() == "log"
    assert [line.get_xdata()[0] for line in lines(axes).values()] == [10**6, 10**9]


def test_a_sweep_of_one_model_has_no_scaling(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"jobs": [], "table": [row("a", 4, "f", 1.0)]}))
    drawn = draw_sweep(tmp_path)
    assert drawn.files == () and "1 model" in drawn.skipped["scaling"] and "choice" in drawn.skipped["depth"]


def test_nothing_valid_is_no_figure(run: Run) -> None:
    trials = run.trials.assign(status="failed")
    for made, spec in ((heatmap, HEAT), (curve, CURVE), (bars, BARS), (bars, BARS | {"by": "group"})):
        with pytest.raises(NotDrawn):
            _made(made, subject(replace(run, trials=trials), spec))


def row(model: str, layers: int, name: str, value: float, **fields: Any) -> dict[str, Any]:
    return {
        "experiment": "e", "version": "v0001", "model": model, "layers": layers, "finding": name,
        "label": name, "kind": "mean", "value": value, "low": None, "high": None, "unit": "", "depth": None,
        "published": None,
    } | fields  # fmt: skip


def _depth(layer: int, layers: int) -> dict[str, Any]:
    return {"layer": layer, "layers": layers, "share": layer / layers}


def _made(make: Any, of: Any) -> Page:
    with drawing():
        page: Page = make(of)
    return page
