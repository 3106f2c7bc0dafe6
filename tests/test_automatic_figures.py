"""The figures that a run gets of itself: what they show, as files and inline, and bad input."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.text import Text

from analyses.comparisons.trends import trends
from analyses.figures import draw
from analyses.figures.automatic import planned
from analyses.figures.dose import dose
from analyses.figures.forest import forest
from analyses.figures.intervals import analysis
from analyses.figures.lettering import SIZE
from analyses.figures.palette import BAD, CONTROL, PAPER, VARIABLES
from analyses.figures.raincloud import MOST_DOTS, MOST_ROWS, raincloud
from analyses.figures.receipts import receipts
from analyses.figures.style import Page, drawing, save
from analyses.figures.subject import NotDrawn
from analyses.summary.summary import summarise
from analyses.tables.run import Run
from analyses.tables.stages import stage_runs
from tests.made_run import EFFECTS, N, made_manifest, made_trials
from tests.made_stages import staged

Make = Callable[[Run, dict[str, Any]], Page]
AUTOMATIC: dict[str, Make] = {"forest": forest, "raincloud": raincloud, "receipts": receipts, "dose": dose}
SAME = [["transfer_l5", "kv_only", {"margin": 1.0}]]


@pytest.fixture(scope="module")
def run() -> Run:
    return Run(made_trials(), made_manifest(same=SAME), Path("."))


@pytest.fixture(scope="module")
def summary(run: Run) -> dict[str, Any]:
    return summarise(run)


@pytest.fixture(scope="module")
def drawn(run: Run, summary: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return draw(replace(run, folder=tmp_path_factory.mktemp("run")), summary)


def made(make: Make, run: Run, summary: dict[str, Any]) -> Page:
    with drawing():
        return make(run, summary)


def panels(page: Page) -> list[Any]:
    return list(page.figure.axes)


def texts(page: Page) -> list[Any]:
    return [text for text in page.figure.findobj(Text) if isinstance(text, Text) and text.get_text()]


def dots(page: Page) -> list[Any]:
    """The places of the dots of each cloud."""
    (axes,) = panels(page)
    paths: list[Any] = [patch.get_path() for patch in axes.patches if isinstance(patch, PathPatch)]
    return [path.vertices[::2] for path in paths]


def marks(page: Page) -> list[Any]:
    """The points of a figure, top to bottom."""
    points = [line for axes in panels(page) for line in axes.get_lines() if line.get_marker() in "osD"]
    return sorted(points, key=lambda line: line.get_ydata()[0])


def words(page: Page) -> list[str]:
    return [text.get_text() for text in texts(page)]


def test_a_run_gets_the_figures_that_have_something_to_say(drawn: Any) -> None:
    assert list(drawn.captions) == ["forest", "raincloud", "receipts"]
    assert list(drawn.titles) == list(drawn.svg) == list(drawn.captions)
    assert [path.name for path in drawn.files] == [
        f"{name}.{kind}" for name in drawn.captions for kind in ("png", "pdf")
    ]
    assert all(path.is_file() for path in drawn.files) and not drawn.skipped


def test_none_are_drawn_without_a_summary_or_where_they_are_not_wanted(
    run: Run, summary: dict[str, Any], tmp_path: Path
) -> None:
    own = replace(run, folder=tmp_path / "run")
    assert draw(own).files == () == draw(own, summary, automatic=False).files
    assert not own.folder.exists()


def test_a_declared_figure_takes_the_place_of_one_of_its_name(
    run: Run, summary: dict[str, Any], tmp_path: Path
) -> None:
    spec = {"kind": "bars", "of": ["baseline", "kv_only"], "readout": "score", "title": "mine"}
    own = replace(run, manifest={**run.manifest, "figures": {"forest": spec}}, folder=tmp_path)
    few = summary | {"receipts": [], "contrasts": [summary["contrasts"][-1]]}
    found = draw(own, few)
    # An equivalence alone has no cloud, and that is no fault of the experiment.
    assert found.titles == {"forest": "mine"} and found.skipped == {}


def test_a_forest_has_the_intervals_and_verdicts_of_the_contrasts(run: Run, summary: dict[str, Any]) -> None:
    page = made(forest, run, summary)
    (axes,) = panels(page)
    points = marks(page)
    assert [point.get_xdata()[0] for point in points] == [each["difference"] for each in summary["contrasts"]]
    for point, each in zip(points, summary["contrasts"], strict=True):
        sure = each["p_holm"] is not None and each["p_holm"] < 0.05
        assert (to_hex(point.get_markerfacecolor()).upper() != PAPER) is sure
        assert point.get_marker() == ("s" if each["kind"] == "equivalence" else "o")
    intervals = [
        tuple(line.get_xdata())
        for line in axes.get_lines()
        if len(line.get_xdata()) == 2 and line.get_marker() == "None" and line.get_linewidth() > 1.2
    ]
    told = [
        (each["ci_low"], each["ci_high"])
        for each in summary["contrasts"]
        if each["kind"] == "difference" and each["ci_low"] is not None
    ]
    equal = next(each["equivalence"] for each in summary["contrasts"] if each["equivalence"])
    assert intervals == [*told, (equal["ci_low"], equal["ci_high"])]
    (band,) = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert (band.get_x(), band.get_width()) == (-1.0, 2.0)
    assert f"{N} pairs" in page.caption and "after Holm over 5 contrasts" in page.caption
    assert "organism (9 layers)" in page.caption and "(all equal)" in " ".join(words(page))


def test_what_was_published_of_a_condition_is_an_open_diamond(run: Run, summary: dict[str, Any]) -> None:
    printed = {"mean": 1.87, "ci95 low": 1.53, "ci95 high": 2.2}
    rows = [{"condition": "kv_only", "figure": key, "recomputed": value} for key, value in printed.items()]
    page = made(forest, run, summary | {"published": {"rows": rows}})
    (diamond,) = [point for point in marks(page) if point.get_marker() == "D"]
    assert diamond.get_xdata()[0] == 1.87 and to_hex(diamond.get_markerfacecolor()).upper() == PAPER
    assert "Open diamond: published" in page.caption
    assert "diamond" not in made(forest, run, summary).caption


def test_of_many_contrasts_the_largest_are_shown_and_the_caption_says_so(
    run: Run, summary: dict[str, Any]
) -> None:
    first = summary["contrasts"][0]
    many = [
        first | {"difference": 0.1 * i, "ci_low": 0.1 * i - 1, "ci_high": 0.1 * i + 1} for i in range(300)
    ]
    page = made(forest, run, summary | {"contrasts": many})
    assert [point.get_xdata()[0] for point in marks(page)] == [each["difference"] for each in many[-30:]]
    assert "Of 300 contrasts, the 30 with the largest differences." in page.caption


def test_an_interval_that_dwarfs_the_others_is_cut_with_an_arrow(run: Run, summary: dict[str, Any]) -> None:
    wide = [summary["contrasts"][1] | {"ci_low": -900.0, "ci_high": 900.0}]
    page = made(forest, run, summary | {"contrasts": [*summary["contrasts"][:3], *wide]})
    (axes,) = panels(page)
    assert -30 < axes.get_xlim()[0] < axes.get_xlim()[1] < 30
    assert {line.get_marker() for line in axes.get_lines()} >= {"<", ">"}
    assert "Arrow: the interval goes on." in page.caption


def test_a_raincloud_is_of_the_paired_differences(run: Run, summary: dict[str, Any]) -> None:
    page = made(raincloud, run, summary)
    wide = run.trials.pivot(index="item", columns="condition", values="score")
    differences = {name: wide[name] - wide["baseline"] for name in EFFECTS if name != "baseline"}
    assert [point.get_xdata()[0] for point in marks(page)] == pytest.approx(
        [each.mean() for each in differences.values()]
    )
    (axes,) = panels(page)
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    first = differences["kv_only"]
    counts = first.value_counts().reindex(np.arange(first.min(), first.max() + 1), fill_value=0)
    heights = [-bar.get_height() for bar in bars[: len(counts)]]
    assert heights == pytest.approx(0.2 * (counts / counts.max()).to_numpy())
    text = words(page)
    assert f"{100 * (first > 0).mean():.0f}%" in text and f"({N} pairs)" in page.caption


def test_dots_are_the_pairs_moved_aside_by_less_than_half_and_always_alike(
    run: Run, summary: dict[str, Any]
) -> None:
    wide = run.trials.pivot(index="item", columns="condition", values="score")
    first = dots(made(raincloud, run, summary))
    assert np.rint(first[0][:, 0]) == pytest.approx(np.sort(wide["kv_only"] - wide["baseline"]))
    assert len(np.unique(first[0].round(6), axis=0)) == N
    again = dots(made(raincloud, run, summary))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_every_dot_is_there_to_be_seen(run: Run, summary: dict[str, Any]) -> None:
    page = made(raincloud, run, summary)
    with drawing():
        canvas: Any = FigureCanvasAgg(page.figure)
        canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[:, :, :3]
    (axes,) = panels(page)
    for places in dots(page):
        across, up = axes.transData.transform(places).astype(int).T
        seen = pixels[pixels.shape[0] - 1 - up, across]
        assert (seen.min(axis=1) < 200).all()


def test_dots_and_rows_have_a_limit_that_the_caption_tells(run: Run, summary: dict[str, Any]) -> None:
    items = [f"{i:05d}" for i in range(900)]
    names = ["baseline", *(f"c{i}" for i in range(20))]
    rng = np.random.default_rng(0)
    trials = pd.DataFrame(
        [(name, item, 0, "ok", rng.normal(number)) for number, name in enumerate(names) for item in items],
        columns=["condition", "item", "repeat", "status", "score"],
    )
    first = summary["contrasts"][0]
    declared = [first | {"condition": name, "difference": float(i)} for i, name in enumerate(names) if i]
    labels = {name: {"label": name} for name in names}
    many = {"primary": "score", "baseline": "baseline", "contrasts": declared, "conditions": labels}
    page = made(raincloud, replace(run, trials=trials), many)
    clouds = dots(page)
    assert len(clouds) == MOST_ROWS and max(map(len, clouds)) <= MOST_DOTS
    assert f"{MOST_DOTS} pairs evenly by rank" in page.caption
    assert f"Of 20 conditions, the {MOST_ROWS} with the largest" in page.caption
    assert "c19" in words(page) and "c1" not in words(page)
    assert "kernel density" in page.caption


def test_a_dose_has_its_means_line_and_interval(run: Run, tmp_path: Path) -> None:
    manifest = made_manifest(trends=[["baseline", "kv_plain", "kv_only"]])
    found = [each.__dict__ for each in trends(run.trials, manifest)]
    page = made(dose, Run(run.trials, manifest, tmp_path), {"trends": found, "conditions": {}})
    (axes,) = panels(page)
    points = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert [point.get_ydata()[0] for point in points] == pytest.approx(list(found[0]["means"]))
    line = axes.get_lines()[0]
    (x, y) = line.get_xdata(), line.get_ydata()
    assert (y[1] - y[0]) / (x[1] - x[0]) == pytest.approx(found[0]["slope"])
    band = axes.collections[0].get_paths()[0].vertices
    at_end = band[np.isclose(band[:, 0], x[1]), 1]
    middle, reach = np.mean(found[0]["means"]), x[1] - 2.0
    ends = sorted(middle + found[0][key] * reach for key in ("ci_low", "ci_high"))
    assert (at_end.min(), at_end.max()) == pytest.approx(tuple(ends))
    assert "over the 60 items" in page.caption


def test_receipts_say_what_was_written_and_what_is_inert(run: Run, summary: dict[str, Any]) -> None:
    def changed(row: dict[str, Any], **fields: Any) -> dict[str, Any]:
        return row | fields

    rows = {row["condition"]: row for row in summary["receipts"]}
    none = {"prefill": 0, "decode": 0}
    dead = changed(rows["kv_only"], written=none, relative_change=None)
    half = changed(rows["kv_plain"], written={"prefill": 300, "decode": 0})
    hidden = changed(rows["transfer_l5"], shadowed=rows["transfer_l5"]["written"])
    page = made(receipts, run, summary | {"receipts": [dead, half, hidden, rows["kv_self"]]})
    text = words(page)
    assert text.count("never fired") == 1 and "overwritten" in text and "no change, expected" in text
    prefill, change = panels(page)
    bars = [p for p in prefill.patches if isinstance(p, Rectangle)]
    outlines, live = bars[0::3], bars[1::3]
    assert [bar.get_width() for bar in live] == pytest.approx([0.0, 0.5, 0.0, 1.0])
    red = [to_hex(bar.get_edgecolor()).upper() == BAD and bool(bar.get_hatch()) for bar in outlines]
    assert red == [True, False, True, False]
    points = [line for line in change.get_lines() if line.get_marker() == "o"]
    assert len(points) == 3 and to_hex(points[-1].get_markerfacecolor()).upper() == PAPER
    assert change.get_xscale() == "log" and "Red, hatched" in page.caption


def test_large_grids_are_one_row_of_the_receipts(run: Run, summary: dict[str, Any]) -> None:
    row = summary["receipts"][0]
    cells = [f"g[d.layers={i}]" for i in range(300)]
    held = [
        row | {"condition": cell, "relative_change": 1e-9 if i == 7 else 0.1} for i, cell in enumerate(cells)
    ]
    labels = {cell: {"label": f"direction [{cell[2:-1]}]"} for cell in cells}
    page = made(receipts, run, summary | {"receipts": held, "conditions": labels})
    text = words(page)
    assert "direction, 300 cells" in text and "1 of 300: no change" in text


def test_each_stage_has_its_figures_and_the_run_its_receipts(tmp_path: Path) -> None:
    run = staged(tmp_path / "run")
    told = summarise(run)
    names = [each.name for each in planned(run, stage_runs(run), told, {})]
    evaluated = ["evaluate_forest", "evaluate_shares"]
    assert names == ["candidates_grid_ablate", "candidates_grid_add", *evaluated, "receipts"]
    shown = {"a": {"kind": "heatmap", "stage": "candidates", "of": ["ablate", "add"], "readout": "refusal"}}
    names = [each.name for each in planned(run, stage_runs(run), told, shown)]
    assert names == [*evaluated, "receipts"]
    grid = next(planned(run, stage_runs(run), told, {}))
    assert grid.spec is not None and grid.spec["kind"] == "heatmap" and grid.spec["y"] == "dir.from_layer"
    page = made(receipts, run, told)
    assert {"Stage candidates", "Stage evaluate"} <= set(words(page))


def test_a_readout_of_zero_and_one_has_shares_and_no_cloud(run: Run, summary: dict[str, Any]) -> None:
    trials = run.trials.assign(score=(run.trials["score"] > 1).astype(float))
    binary = replace(run, trials=trials)
    names = [each.name for each in planned(binary, stage_runs(binary), summary, {})]
    assert names == ["forest", "shares", "receipts"]


def test_an_analysis_is_drawn_as_its_intervals(run: Run, summary: dict[str, Any]) -> None:
    def estimate(value: float) -> dict[str, Any]:
        return {"value": value, "low": value - 1, "high": value + 1, "n": N, "clusters": {"donor": 12}}

    names = {"both": "transfer_l5", "second": "kv_only", "first": "kv_plain", "neither": "baseline"}
    cell = {"row": "layer 5", "with_second": estimate(2.0), "without": estimate(1.0), "conditions": names}
    cell["interaction"] = estimate(0.5)
    told = {
        "name": "cross", "kind": "interaction", "label": "Layer and KV", "exploratory": True, "note": "",
        "sentence": "", "result": {"readout": "score", "rows": [cell], "between": []},
    }  # fmt: skip
    with drawing():
        page = analysis(run, summary, told)
    assert [point.get_xdata()[0] for point in marks(page)] == [2.0, 1.0, 0.5]
    assert (
        page.title == "Layer and KV"
        and "Exploratory." in page.caption
        and "60 trials, 12 donors" in page.caption
    )
    plans = planned(run, stage_runs(run), summary | {"analyses": [told]}, {})
    assert "analysis_cross" in [each.name for each in plans]
    with drawing(), pytest.raises(NotDrawn, match="too few"):
        analysis(run, summary, told | {"result": None, "note": "too few items"})


def test_the_inline_svg_takes_its_colours_and_type_from_the_page(drawn: Any) -> None:
    for name, svg in drawn.svg.items():
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img" and drawn.captions[name][:40] in root.get("aria-label", "")
        found = {colour.lower() for colour in re.findall(r"#[0-9a-fA-F]{6}\b", svg)}
        assert not found & {colour.lower() for colour in VARIABLES}
        assert "var(--ink)" in svg and "var(--accent-1)" in svg and "font-family" not in svg
        # Nothing that acts on the page around it, and nothing that is fetched.
        assert not re.search(r"<style|<script|<metadata|<\?xml|<!DOCTYPE|@import|<title", svg)
        assert set(re.findall(r'https?://[^" ]+', svg)) <= {
            "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink",
        }  # fmt: skip
        assert len(svg) < 300_000
        texts = ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text")]
        assert any("label of kv_only" in text for text in texts)


def test_ids_of_figures_on_one_page_are_apart(drawn: Any) -> None:
    ids = [each for svg in drawn.svg.values() for each in re.findall(r' id="([^"]*)"', svg)]
    referred = [each for svg in drawn.svg.values() for each in re.findall(r'(?:href="#|url\(#)([^")]*)', svg)]
    assert len(ids) == len(set(ids)) and set(referred) <= set(ids)


def test_the_same_data_give_the_same_bytes(
    drawn: Any, run: Run, summary: dict[str, Any], tmp_path: Path
) -> None:
    with drawing():
        again = save(forest(run, summary), tmp_path, "forest")
    assert again.svg == drawn.svg["forest"]
    assert [path.read_bytes() for path in again.paths] == [path.read_bytes() for path in drawn.files[:2]]


def test_fonts_are_embedded_and_no_type_is_smaller_than_eight_points(
    drawn: Any, run: Run, summary: dict[str, Any]
) -> None:
    for path in drawn.files[1::2]:
        pdf = path.read_bytes()
        assert b"/FontFile2" in pdf and b"/Type3" not in pdf
    for make in (forest, raincloud, receipts):
        page = made(make, run, summary)
        assert min(text.get_fontsize() for text in texts(page)) >= SIZE == 8
        assert page.figure.get_size_inches()[0] == pytest.approx(7.0)


def test_labels_are_words_and_no_markup(run: Run, summary: dict[str, Any], tmp_path: Path) -> None:
    label = r"$\alpha_1$ & <b>x</b> of $5 \frac"
    conditions = {name: body | {"label": label if name == "kv_only" else name}
                  for name, body in summary["conditions"].items()}  # fmt: skip
    few = summary | {"conditions": conditions, "contrasts": summary["contrasts"][:1]}
    with drawing():
        saved = save(forest(run, few), tmp_path, "a b<c>")
    texts = [
        "".join(each.itertext())
        for each in ElementTree.fromstring(saved.svg).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert label in texts
    assert all(re.fullmatch(r"[\w.-]+", each) for each in re.findall(r' id="([^"]*)"', saved.svg))


def test_long_labels_are_wrapped_and_leave_room_for_the_plot(run: Run, summary: dict[str, Any]) -> None:
    long = {name: body | {"label": f"{name} " + "with many words " * 12}
            for name, body in summary["conditions"].items()}  # fmt: skip
    for make in (forest, raincloud, receipts):
        page = made(make, run, summary | {"conditions": long})
        assert all(axes.get_position().width > 0.1 for axes in panels(page))
        labels = [text for text in texts(page) if text.get_transform() == page.figure.transFigure]
        labels = sorted(
            (text for text in labels if text.get_ha() == "left"), key=lambda t: -t.get_position()[1]
        )
        gaps = [a.get_position()[1] - b.get_position()[1] for a, b in pairwise(labels)]
        assert min(gap for gap in gaps if gap > 0) * page.figure.get_size_inches()[1] * 72 > SIZE


def _one_condition(trials: pd.DataFrame) -> pd.DataFrame:
    return trials[trials["condition"] == "baseline"]


def _one_item(trials: pd.DataFrame) -> pd.DataFrame:
    return trials[trials["item"] == "0000"]


def _all_invalid(trials: pd.DataFrame) -> pd.DataFrame:
    return trials.assign(status="invalid", score=np.nan)


def _undefined(trials: pd.DataFrame) -> pd.DataFrame:
    return trials.assign(score=np.nan)


def _all_equal(trials: pd.DataFrame) -> pd.DataFrame:
    return trials.assign(score=3.0)


def _no_receipts(trials: pd.DataFrame) -> pd.DataFrame:
    return trials.drop(columns=[name for name in trials if str(name).startswith("kv.")])


@pytest.mark.parametrize(
    ("spoil", "left"),
    [
        (_one_condition, set()),
        (_one_item, {"forest", "receipts"}),
        (_all_invalid, set()),
        (_undefined, {"receipts"}),
        (_all_equal, {"forest", "receipts"}),
        (_no_receipts, {"forest", "raincloud", "receipts"}),
    ],
)
def test_bad_input_gives_fewer_figures_and_never_an_error(
    run: Run, spoil: Callable[[pd.DataFrame], pd.DataFrame], left: set[str]
) -> None:
    spoilt = replace(run, trials=spoil(run.trials).reset_index(drop=True))
    told = summarise(spoilt)
    shown = set()
    for name in ("forest", "raincloud", "receipts"):
        try:
            page = made(AUTOMATIC[name], spoilt, told)
        except NotDrawn as error:
            assert str(error)
            continue
        shown.add(name)
        assert not any("nan" in text.lower() for text in [*words(page), page.caption])
    assert shown == left


def test_controls_are_grey_and_what_acts_is_not(run: Run, summary: dict[str, Any]) -> None:
    points = marks(made(forest, run, summary))
    names = [each["condition"] for each in summary["contrasts"]]
    grey = {name for name, point in zip(names, points, strict=True)
            if to_hex(point.get_markeredgecolor()).upper() == CONTROL}  # fmt: skip
    assert grey == {"kv_self"}


@pytest.mark.slow
def test_a_million_trials_are_drawn_in_seconds(summary: dict[str, Any], run: Run) -> None:
    items, names = 50_000, ["baseline", *(f"c{i}" for i in range(19))]
    rng = np.random.default_rng(0)
    trials = pd.DataFrame(
        {
            "condition": np.repeat(names, items),
            "item": np.tile([f"{i:05d}" for i in range(items)], len(names)),
            "repeat": 0,
            "status": "ok",
            "score": rng.normal(size=items * len(names)),
        }
    )
    declared = [summary["contrasts"][0] | {"condition": name} for name in names[1:]]
    told = summary | {"contrasts": declared, "conditions": {name: {"label": name} for name in names}}
    start = time.process_time()
    page = made(raincloud, replace(run, trials=trials), told)
    assert time.process_time() - start < 3 and "(50,000 pairs)" in page.caption
