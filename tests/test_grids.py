"""Grids beyond their expansion: in contrasts, and where the command line sets what an axis runs over."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from analyses.summary.summary import summarise
from analyses.summary.terminal import print_summary
from runner.config.bodies import Cell, expand_contrasts
from tests.configuring import body, design, faults
from tests.made_run import made_run

GRIDS = """\
a: {v: {site: v_proj, value: donor, positions: last:4}, grid: {v.layers: [1, 3]}}
b: {v: {site: v_proj, value: donor, positions: last:4, op: add}, grid: {v.layers: [1, 3], v.alpha: [1, 2]}}
c: {v: {site: v_proj, value: donor, positions: last:4, layers: 5}}
"""


def with_contrasts(folder: Path, contrasts: str) -> Path:
    return body(GRIDS, folder, rest=f"contrasts: {contrasts}")


def test_a_grid_and_a_condition_are_compared_cell_by_cell(tmp_path: Path) -> None:
    folder = with_contrasts(tmp_path, "{extra: [[a, c], [c, baseline]], family: none}")
    assert design("+experiment=mine", folder=folder).contrasts.extra == (
        ("a[v.layers=1]", "c"), ("a[v.layers=3]", "c"), ("c", "baseline"),
    )  # fmt: skip


def test_two_grids_are_compared_where_they_agree(tmp_path: Path) -> None:
    folder = with_contrasts(tmp_path, "{extra: [[b, a]], family: none}")
    found = design("+experiment=mine", folder=folder).contrasts.extra
    assert len(found) == 4
    for first, second in found:
        assert first.startswith(f"b[{second.removeprefix('a[').removesuffix(']')},")


def test_a_grid_and_itself_are_every_two_of_its_cells(tmp_path: Path) -> None:
    folder = with_contrasts(tmp_path, "{same: [[b, b, {margin: 0.6}]], family: none}")
    found = design("+experiment=mine", folder=folder).contrasts.same
    assert len({frozenset(each[:2]) for each in found}) == len(found) == 6
    assert {each[2].margin for each in found} == {0.6}


def test_grids_without_a_common_axis_are_crossed() -> None:
    grids = {"a": [Cell(f"a[x={x}]", {"x": x}) for x in (1, 2)], "b": [Cell("b[y=1]", {"y": 1})]}
    assert expand_contrasts([["b", "a"]], grids) == [(0, ["b[y=1]", "a[x=1]"]), (0, ["b[y=1]", "a[x=2]"])]


def test_what_is_wrong_with_a_contrast_is_told_at_its_own_place(tmp_path: Path) -> None:
    folder = with_contrasts(tmp_path, "{extra: [[a, c], [nowhere, c]], family: none}")
    told = faults("+experiment=mine", folder=folder)
    assert "contrasts.extra.1" in told and "got 'nowhere'" in told
    folder = with_contrasts(tmp_path, "{extra: [[a, baseline]]}")
    assert "compared already by contrasts.family" in faults("+experiment=mine", folder=folder)


def test_a_value_on_the_command_line_takes_the_place_of_the_axis(tmp_path: Path) -> None:
    folder = with_contrasts(tmp_path, "{extra: [[a, c], [a, a]], family: none}")
    found = design("+experiment=mine", "+conditions.a.v.layers=6", folder=folder)
    assert found.condition("a").writes[0].layers == (6,) and not found.condition("a").grid
    assert found.contrasts.extra == (("a", "c"),)
    two = design("+experiment=mine", "+conditions.b.v.layers=6", folder=folder)
    assert [c.name for c in two.conditions if c.name.startswith("b[")] == ["b[v.alpha=1]", "b[v.alpha=2]"]
    assert two.condition("b[v.alpha=2]").writes[0].layers == (6,)
    # Other fields of the write leave the grid alone, and so does a grid that is given there itself.
    other = design("+experiment=mine", "conditions.a.v.positions=last:2", folder=folder)
    assert [c.name for c in other.conditions if c.name.startswith("a[")] == ["a[v.layers=1]", "a[v.layers=3]"]
    typed = "+conditions.d={v: {site: k_proj, layers: 1, value: donor}, grid: {v.layers: [2, 4]}}"
    mine = design("+experiment=mine", typed, folder=folder)
    assert [c.name for c in mine.conditions if c.name.startswith("d[")] == ["d[v.layers=2]", "d[v.layers=4]"]


def test_a_wrong_value_for_an_axis_is_told(tmp_path: Path) -> None:
    folder = with_contrasts(tmp_path, "{family: none}")
    told = faults("+experiment=mine", "+conditions.a.v.layers=40", folder=folder)
    assert "command line: conditions.a.v.layers: expected a layer from 0 to 8" in told


@pytest.mark.parametrize(
    ("trends", "message"),
    [
        ("[[a]]", "three or more"),
        ("[[a, nowhere]]", "got 'nowhere'"),
        ("[[c, c, c]]", "three or more different"),
    ],
)
def test_trends_that_cannot_be_are_refused(tmp_path: Path, trends: str, message: str) -> None:
    folder = with_contrasts(tmp_path, f"{{trends: {trends}, family: none}}")
    told = faults("+experiment=mine", folder=folder)
    assert message in told and "contrasts.trends.0" in told


def test_a_trend_over_a_grid_is_over_its_cells_in_order(tmp_path: Path) -> None:
    folder = with_contrasts(tmp_path, "{trends: [b, [baseline, a]], family: none}")
    first, second = design("+experiment=mine", folder=folder).contrasts.trends
    assert len(first) == 4 and second == ("baseline", "a[v.layers=1]", "a[v.layers=3]")


@pytest.mark.parametrize(
    ("name", "label", "told"),
    [
        ("a[v.layers=1]", "V at a layer [v.layers=1]", "a[v.layers=1]: V at a layer"),
        ("a[v.layers=1]", "a[v.layers=1]", "a[v.layers=1]"),
        ("a", "V at a layer", "a: V at a layer"),
        ("a", "a", "a"),
    ],
)
def test_the_terminal_tells_a_cell_once(name: str, label: str, told: str) -> None:
    summary = summarise(made_run())
    summary["conditions"] = {name: summary["conditions"]["kv_only"] | {"label": label}}
    stream = io.StringIO()
    print_summary(Console(file=stream, width=110, color_system=None), summary)
    row = next(line for line in stream.getvalue().splitlines() if line.strip().startswith(name))
    assert row.partition("  ")[0].strip() == told


def test_axes_in_words_run_over_the_model_that_is_chosen(tmp_path: Path) -> None:
    grid = "{v.layers: 0%-50%, v.heads: all}"
    folder = body(f"a: {{v: {{site: v_proj, value: self}}, grid: {grid}}}", tmp_path)
    small = design("+experiment=mine", folder=folder)
    large = design("+experiment=mine", "model=mistral_7b_instruct_v0_2", folder=folder)
    assert [len(found.conditions) - 1 for found in (small, large)] == [6 * 2, 17 * 8]
    assert small.condition("a[v.layers=5,v.heads=kv1]").writes[0].layers == (5,)
    told = faults("+experiment=mine", "reference_depth=32", folder=folder)
    assert "mine.yaml: conditions.a.grid.v.layers: '0%-50%' runs over the model's own layers" in told
    told = faults("+experiment=mine", "conditions.a.grid={v.layers: 3-40}", folder=folder)
    assert "conditions.a.grid.v.layers: expected a layer from 0 to 8 (the model has 9 layers), got 40" in told


def test_a_mistake_in_a_list_of_sites_is_told_once_and_where_it_stands(tmp_path: Path) -> None:
    words = "{site: [resid_pre, mlp_uot], layers: 40, op: zero}"
    folder = body(f"a: {{w: {words}, grid: {{w.positions: [all, 'last:2']}}}}", tmp_path)
    lines = faults("+experiment=mine", folder=folder).splitlines()
    assert len(lines) == 2, lines
    layers, site = sorted(lines)
    assert "mine.yaml: conditions.a.w.layers: expected a layer from 0 to 8" in layers
    assert "conditions.a.w.site: " in site and "did you mean 'mlp_out'?" in site
    sound = body(f"a: {{w: {words.replace('uot', 'out').replace('40', '4')}}}", tmp_path)
    writes = design("+experiment=mine", folder=sound).condition("a").writes
    assert {(write.name, write.site) for write in writes} == {
        ("w_resid_pre", "resid_pre"),
        ("w_mlp_out", "mlp_out"),
    }
