"""What an experiment finds: figures, intervals and what must stand beside them, from made runs."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from scipy import stats

from analyses.findings.cross_model import published
from analyses.findings.finding import Finding
from analyses.findings.findings import findings
from analyses.gates.confounds import confounded_gates
from analyses.statistics.proportions import mcnemar, newcombe, wilson
from analyses.summary.summary import summarise, write_summary
from analyses.summary.terminal import print_summary
from analyses.tables.cells import axis_words
from analyses.tables.join import PLAN_SCHEMA
from analyses.tables.run import Run, load_run
from tests.gating import named
from tests.made_run import RECEIPT
from tests.made_stages import FROM, N, condition, rows, section, staged


def found(tmp_path: Path, **specs: Mapping[str, Any]) -> dict[str, Finding]:
    return {each.name: each for each in findings(staged(tmp_path / "run", findings=dict(specs)))}


def grids(folder: Path, back: np.ndarray, null: np.ndarray | None = None, **specs: Any) -> Run:
    """A stage with a grid `back` of 0 and 1 by [cells, items], and a null grid beside it."""
    conditions: dict[str, Any] = {"baseline": condition("baseline", {})}
    values = {"baseline": np.zeros(back.shape[1])}
    for name, held in (("back", back), ("null", null)):
        for cell, row in enumerate(held if held is not None else ()):
            key = f"{name}[{FROM}={cell}]"
            conditions[key] = condition(key, {}, grid={FROM: cell})
            values[key] = row
    folder.mkdir()
    manifest = {
        "schema": 1, "status": "done", "dtype": "float32", "experiment": {"name": "made"},
        "model": {"name": "organism", "layers": 9},
        "stages": {"test": section(conditions, "correct")}, "findings": specs,
    }  # fmt: skip
    return Run(rows("test", values, set(), "correct", 0), manifest, folder)


def test_a_difference_of_shares_has_both_rates_an_exact_test_and_an_interval(tmp_path: Path) -> None:
    spec = {"stage": "evaluate", "of": "ablated", "readout": "refuses", "against": "baseline"}
    each = found(tmp_path, bypass=spec | {"label": "refusing"})["bypass"]
    assert each.value == pytest.approx(3 / N - 36 / N) and each.n == N and each.unit == "share"
    assert [(side.name, side.ones, side.n) for side in each.sides] == [
        ("ablated", 3, 40),
        ("baseline", 36, 40),
    ]
    # Of the 33 that differ, all do so in one direction.
    assert each.p == each.mcnemar == pytest.approx(2 * 0.5**33)
    assert each.low is not None and each.high is not None and -1 <= each.low < each.value < each.high < 0
    assert each.sentence.startswith(
        "refusing: refuses: 3 of 40 (7.5%) in ablated, 36 of 40 (90%) in baseline"
    )


def test_where_every_pair_differs_alike_there_is_still_an_interval() -> None:
    low, high = newcombe(np.zeros(12), np.ones(12), 12)
    assert low == -1.0 and -0.8 < high < -0.5
    assert mcnemar(np.zeros(12), np.ones(12)) == pytest.approx(2 * 0.5**12)
    assert mcnemar(np.ones(3), np.ones(3)) == 1.0


def test_the_interval_of_a_share_is_wilsons() -> None:
    for ones, n in ((0, 10), (3, 40), (40, 40)):
        exact = stats.binomtest(ones, n).proportion_ci(0.95, method="wilson")
        assert wilson(ones / n, n) == pytest.approx((exact.low, exact.high))
    with pytest.raises(ValueError, match="n > 0"):
        wilson(0.5, 0)


@pytest.mark.parametrize("cells", [(0.25, 0.25, 0.25, 0.25), (0.6, 0.2, 0.1, 0.1), (0.05, 0.9, 0.0, 0.05)])
def test_the_interval_of_a_paired_difference_covers_the_truth(cells: tuple[float, ...]) -> None:
    """Exactly, over every outcome of 15 pairs: both, only the first, only the second, neither."""
    n, covered, truth = 15, 0.0, cells[1] - cells[2]
    for both in range(n + 1):
        for one in range(n + 1 - both):
            for other in range(n + 1 - both - one):
                table = (both, one, other, n - both - one - other)
                weight = stats.multinomial.pmf(table, n, cells)
                if weight > 1e-9:
                    first = np.repeat([1.0, 1.0, 0.0, 0.0], table)
                    second = np.repeat([1.0, 0.0, 1.0, 0.0], table)
                    low, high = newcombe(first, second, n)
                    covered += weight * (low - 1e-9 <= truth <= high + 1e-9)
    assert 0.93 < covered < 0.995


def test_trials_that_share_prompts_widen_an_interval_and_raise_p(tmp_path: Path) -> None:
    back = np.zeros((1, 40))
    back[0, :20] = 1
    spec = {"of": "back", "readout": "correct", "against": "baseline"}
    run = grids(tmp_path / "a", back, rate={"of": "back", "readout": "correct"}, gap=spec)
    shared = run.trials.assign(target=[f"t{int(item) // 10}" for item in run.trials["item"]])
    apart, together = (
        {each.name: each for each in findings(Run(trials, run.manifest, run.folder))}
        for trials in (run.trials, shared)
    )

    def width(finding: Finding) -> float:
        assert finding.low is not None and finding.high is not None
        return finding.high - finding.low

    for name in ("rate", "gap"):
        assert together[name].value == apart[name].value
        assert width(together[name]) > 2 * width(apart[name])
    assert apart["gap"].p == apart["gap"].mcnemar == together["gap"].mcnemar == pytest.approx(2 * 0.5**20)
    assert together["gap"].p is not None and together["gap"].p > 0.05  # four clusters: 1, 1, 0, 0
    assert "share donors or targets" in together["gap"].method


def test_other_figures_have_the_clustered_interval_and_holm_runs_over_all_findings(tmp_path: Path) -> None:
    gap = {"stage": "candidates", "of": "ablate", "readout": "refusal", "against": "baseline"}
    shares = {"stage": "evaluate", "of": "random", "readout": "refuses", "against": "baseline"}
    each = found(tmp_path, gap=gap, random=shares, rate=shares | {"against": None})
    run = staged(tmp_path / "again")
    trials = run.trials[run.trials["stage"] == "candidates"]
    held = (
        trials.assign(grid=trials["condition"].str.partition("[")[0])
        .groupby(["grid", "item"])["refusal"]
        .mean()
    )
    difference = held["ablate"] - held["baseline"]
    test = stats.ttest_1samp(difference, 0)
    assert each["gap"].value == pytest.approx(difference.mean()) and each["gap"].p == pytest.approx(
        test.pvalue
    )
    low, high = test.confidence_interval()
    assert (each["gap"].low, each["gap"].high) == pytest.approx((low, high))
    assert each["rate"].p is None and each["rate"].value == pytest.approx(35 / 40)
    assert each["random"].family == 2 and each["random"].p == each["random"].p_holm == 1.0
    assert each["gap"].p_holm == pytest.approx(2 * test.pvalue)


def test_trap_31_a_declared_comparison_that_could_not_be_made_stays_in_the_family(tmp_path: Path) -> None:
    gap = {"stage": "candidates", "of": "ablate", "readout": "refusal", "against": "baseline"}
    each = found(tmp_path, gap=gap, gone=gap | {"of": "nothing"}, rate=gap | {"against": None})
    assert each["gone"].p is None and each["gone"].p_holm is None and "nothing" in each["gone"].note
    assert each["gap"].family == 2 and each["gap"].p is not None
    assert each["gap"].p_holm == pytest.approx(2 * each["gap"].p)
    assert each["rate"].family == 0


def test_a_figure_by_group_and_by_axis(tmp_path: Path) -> None:
    rate = {"stage": "evaluate", "of": "ablated", "readout": "refuses", "by": "group"}
    gap = {"stage": "candidates", "of": "ablate", "readout": "refusal", "against": "add", "by": "from_layer"}
    each = found(tmp_path, rate=rate, gap=gap)
    assert [(part.key, part.ones, part.n) for part in each["rate"].by] == [("de", 2, 20), ("en", 1, 20)]
    assert [part.key for part in each["gap"].by] == [str(layer) for layer in range(9)]
    mean = float(np.mean([part.value for part in each["gap"].by]))  # type: ignore[list-item]
    assert mean == pytest.approx(each["gap"].value)
    values = [part.value for part in each["gap"].by]
    # Ablation and addition are held against each other in the same layer.
    assert values[0] > values[5] > values[8]  # type: ignore[operator]


def test_a_choice_and_an_artefact_give_layer_depth_and_column(tmp_path: Path) -> None:
    each = found(
        tmp_path,
        layer={"choice": "best", "axis": "from_layer", "published": "refusal_direction.{model}.0"},
        cell={"choice": "best"},
        norm={"artefact": "direction", "column": "norm", "choice": "best"},
        agree={"artefact": "direction", "column": "consistency", "by": "position"},
    )
    assert each["layer"].value == 5 and each["layer"].depth is not None
    assert (each["layer"].depth.layers, each["layer"].depth.share) == (9, pytest.approx(5 / 9))
    assert "layer 5 of 9 (55.6% of the depth). Published: 16 (gemma_2_2b), " in each["layer"].sentence
    assert each["cell"].value == "from_layer 5, from_positions index:-1"
    assert each["norm"].value == 6.0 and each["norm"].depth == each["layer"].depth
    assert each["agree"].value == pytest.approx(0.9) and each["agree"].n == 16  # undefined at layer 0
    assert [part.key for part in each["agree"].by] == ["index:-1", "index:-2"]


def test_what_is_not_there_is_no_figure_and_says_why(tmp_path: Path) -> None:
    each = found(
        tmp_path,
        gone={"stage": "weights", "of": "x", "readout": "refuses"},
        typo={"stage": "evaluate", "of": "ablate", "readout": "refuses"},
        readout={"stage": "evaluate", "of": "ablated", "readout": "refusal"},
        choice={"choice": "beste", "axis": "from_layer"},
        axis={"choice": "best", "axis": "alpha"},
        figure={"choice": "best", "axis": "from_layer", "published": "refusal_direction.{model}.9"},
    )
    assert all(each[name].value is None for name in each if name != "figure")
    assert each["gone"].note == "stage weights was left out: 'none' has chosen nothing"
    assert "no figure: stage weights was left out" in each["gone"].sentence
    assert "(baseline, ablated and random), got 'ablate'" in each["typo"].note
    assert "refuses" in each["readout"].note and "got 'beste'" in each["choice"].note
    assert "from_layer" in each["axis"].note and "got 'alpha'" in each["axis"].note
    assert each["figure"].value == 5 and "no model has a figure there" in each["figure"].note


def test_a_published_figure_is_found_by_the_name_of_the_model() -> None:
    path = "refusal_direction.{model}.0"
    for model, value in (("gemma_2_2b_it", 16), ("qwen2_5_7b_instruct", 17), ("llama_3_1_8b_instruct", 20)):
        assert published(path, model).value == value
    assert published("papers.refusal.{model}.1", "meta_llama_3_8b_instruct").value == 12
    other = published(path, "organism")
    assert other.value is None and other.models["gemma_2_9b"] == 24
    assert published("papers.refusal.gates.kl_below", None).value == 0.1
    assert set(published("cross_lingual_refusal.{model}", "organism").models) == {
        "gemma_2_2b",
        "llama_3_2_3b",
        "qwen_2_5_7b",
    }
    with pytest.raises(KeyError, match="did you mean 'refusal_direction'"):
        published("refusal_directions.{model}.0", None)


def test_trap_27_a_share_never_stands_without_its_denominator_nor_a_gap_as_a_ratio(tmp_path: Path) -> None:
    """ "1625% transfer" was a gap over a gap of 0.008."""
    back = np.zeros((1, 40))
    back[0, :13] = 1
    spec = {"of": "back", "readout": "correct", "against": "baseline"}
    run = grids(tmp_path / "a", back, gap=spec, rate={"of": "back", "readout": "correct"})
    (gap, rate) = findings(run)
    # Over a baseline of 0 any ratio would be infinite.
    assert gap.value == pytest.approx(13 / 40) and gap.sides[1].mean == 0.0
    assert "13 of 40 (32.5%) in back, 0 of 40 (0%) in baseline; difference 0.33" in gap.sentence
    assert "13 of 40 (32.5%; 95% CI" in rate.sentence
    empty = Run(run.trials.assign(status="invalid"), run.manifest, run.folder)
    for each in findings(empty):
        assert each.value is None and "is valid" in each.note and each.low is None
    json.dumps(summarise(empty), allow_nan=False)


def test_trap_30_the_largest_of_many_cells_has_its_null_and_the_best_fixed_cell_beside_it(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    back, null = ((rng.random((60, 40)) < 0.05).astype(float) for _ in range(2))
    back[7, :10] = 1
    spec = {"of": "back", "readout": "correct", "reduce": "any"}
    run = grids(
        tmp_path / "a",
        back,
        null,
        any=spec | {"against": "null"},
        alone=spec,
        few=spec | {"against": "baseline"},
    )
    found = {each.name: each for each in findings(run)}
    # Noise in 60 cells: nearly every item is "fixed" by some cell, of the null grid too.
    anyone = found["any"]
    assert [side.ones for side in anyone.sides] == [int(grid.max(axis=0).sum()) for grid in (back, null)]
    assert anyone.sides[0].mean > 0.9 and anyone.p is not None and anyone.p > 0.05
    (fixed,) = anyone.fixed
    assert fixed.key == "from_layer 7 (chosen on the same items)" and fixed.ones == int(back[7].sum())
    assert f"One fixed cell: {fixed.key}: {fixed.ones} of 40." in anyone.sentence
    assert "without a null grid" in found["alone"].note and found["alone"].fixed
    assert "back has 60 cells, baseline has 1 cell" in found["few"].note
    # A cell that another stage chose stands beside it, as chosen there.
    (run.folder / "choices").mkdir()
    choice = {"name": "best", "from": "validate", "chosen": [{FROM: 3}], "items": None, "sentence": ""}
    (run.folder / "choices" / "best.json").write_text(json.dumps(choice))
    (anyone, *_) = findings(run)
    assert [(part.key, part.ones) for part in anyone.fixed] == [
        ("from_layer 3 (chosen on choice best, made on stage validate)", int(back[3].sum())),
        ("from_layer 7 (chosen on the same items)", int(back[7].sum())),
    ]


def test_trap_30_selection_and_test_on_the_same_items_cannot_be_silent(tmp_path: Path) -> None:
    spec = {"stage": "evaluate", "of": "ablated", "readout": "refuses", "against": "baseline"}
    kept = spec | {"items": [{"of": "baseline", "readout": "refuses", "equals": 1}]}
    run = staged(tmp_path / "run", findings={"bypass": spec, "kept": kept})
    run.manifest["stages"]["evaluate"]["in_sample"] = "it reads 3 prompts that what it uses was chosen on"
    summary = summarise(run)
    for each in summary["findings"]:
        assert "In sample: it reads 3 prompts that what it uses was chosen on." in each["sentence"]
    (gate,) = [gate for gate in summary["gates"] if gate["gate"] == "in_sample"]
    assert (
        gate["verdict"] == "warn" and gate["stage"] == "evaluate" and "it reads 3 prompts" in gate["sentence"]
    )
    assert [gate["gate"] for gate in summary["stages"]["candidates"]["gates"]].count("in_sample") == 0
    (_, by_items) = findings(run)
    assert by_items.n == 36 and "36 of 40 items: those with refuses of baseline equal to 1" in by_items.note
    assert "items chosen by the same readout: the null shows how much that alone gives" in by_items.note
    assert gate["sentence"] in (" ".join(printed(summary).split()))


def test_trap_32_a_finding_of_no_difference_is_not_called_equal(tmp_path: Path) -> None:
    spec = {"stage": "evaluate", "of": "random", "readout": "refuses", "against": "baseline"}
    each = found(tmp_path, random=spec)["random"]
    assert (
        each.p_holm == 1.0
        and "No difference is shown, which does not show that there is none." in each.sentence
    )
    assert "95% CI" in each.sentence
    sure = found(tmp_path / "b", ablated=spec | {"of": "ablated"})["ablated"]
    assert "No difference is shown" not in sure.sentence


def test_trap_33_prompts_that_differ_in_several_factors_are_confounded() -> None:
    factors = {"safe|risky": ["balance", "history", "betting mode"], "one|two": ["balance"], "a|b": []}
    gates = confounded_gates({"factors": factors})
    (warned,) = [gate for gate in gates if gate.verdict == "warn"]
    assert warned.condition == "safe" and "(balance, history and betting mode)" in warned.sentence
    assert "cannot be put down to any one of them" in warned.sentence
    (listed,) = [gate for gate in gates if gate.verdict == "pass"]
    assert listed.sentence == "The prompts of one and two differ in one factor, balance."
    assert confounded_gates({}) == [] and len(named(gates, "confounded")) == 2


def test_trap_33_the_factors_of_a_stage_are_in_its_summary(tmp_path: Path) -> None:
    run = staged(tmp_path / "run")
    run.manifest["stages"]["evaluate"]["factors"] = {"ablated|baseline": ["balance", "goal"]}
    (gate,) = [gate for gate in summarise(run)["gates"] if gate["gate"] == "confounded"]
    assert gate["stage"] == "evaluate" and "balance and goal" in gate["sentence"]


def test_an_empty_choice_is_a_warning_that_names_what_was_left_out(tmp_path: Path) -> None:
    run = staged(tmp_path / "run", findings={"layer": {"choice": "best", "axis": "from_layer"}})
    path = run.folder / "choices" / "best.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"chosen": [], "sentence": "No cell of 18 passes."})
    )
    run.manifest["stages"]["weights"] |= {"needs": ["best"]}
    run.manifest["stages"]["last"] = run.manifest["stages"]["weights"] | {"needs": ["weights"]}
    summary = summarise(run)
    (gate,) = [gate for gate in summary["gates"] if gate["gate"] == "empty_selection"]
    assert (
        gate["sentence"]
        == "Nothing was chosen: No cell of 18 passes. 2 stages were left out for it: weights and last."
    )
    assert gate["verdict"] == "warn" and gate["stage"] == "best"
    (each,) = summary["findings"]
    assert each["value"] is None and each["note"] == "choice best is empty: No cell of 18 passes."


def printed(summary: dict[str, Any], width: int = 100) -> str:
    stream = io.StringIO()
    print_summary(Console(file=stream, width=width, color_system=None), summary)
    assert max(map(len, stream.getvalue().splitlines())) <= width
    return stream.getvalue()


FINDINGS = {
    "layer": {"choice": "best", "axis": "from_layer", "published": "refusal_direction.{model}.0"},
    "bypass": {"stage": "evaluate", "of": "ablated", "readout": "refuses", "against": "baseline"},
}  # fmt: skip


def test_the_summary_of_a_run_with_stages(tmp_path: Path) -> None:
    run = staged(tmp_path / "run", findings=FINDINGS)
    summary = write_summary(run)
    stored = json.loads((run.folder / "summary.json").read_text())
    assert stored == json.loads(json.dumps(summary))
    assert list(summary["stages"]) == ["candidates", "evaluate"]
    assert {"evaluate.ablated", "candidates.baseline"} <= summary["conditions"].keys()
    assert {each["stage"] for each in summary["contrasts"]} == {"evaluate"}
    assert summary["stages"]["candidates"]["primary"] == "refusal"
    assert summary["choices"]["best"]["chosen"] == [{FROM: 5, "dir.from_positions": "index:-1"}]
    assert summary["artefacts"]["direction"]["consistency"] == [0.9, 0.9]
    assert summary["left_out"] == {"weights": "'none' has chosen nothing"}
    assert summary["findings"][0]["depth"] == {"layer": 5, "layers": 9, "share": pytest.approx(5 / 9)}
    assert summary["counts"]["rows"] == len(run.trials) and summary["counts"]["ok"] == len(run.trials)
    text = (run.folder / "summary.md").read_text()
    for heading in (
        "## Findings",
        "## Choices",
        "## Artefacts",
        "## Gates",
        "## Stage candidates",
        "### Contrasts",
    ):
        assert f"\n{heading}" in text
    assert text.index("## Findings") < text.index("## Choices") < text.index("## Stage candidates")


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_tells_findings_first_and_no_grid_cell_by_cell(tmp_path: Path, width: int) -> None:
    summary = summarise(staged(tmp_path / "run", findings=FINDINGS))
    text = printed(summary, width)
    flowing = " ".join(text.split())
    assert text.startswith("findings") and "5 (55.6% of 9 layers)" in flowing and "-0.82" in text
    assert summary["choices"]["best"]["sentence"] in flowing
    assert "Stage weights was left out: 'none' has chosen nothing." in flowing
    assert "ablate[" not in text and "add[" not in text
    lowest = min(
        each["readouts"]["refusal"]["mean"]
        for name, each in summary["stages"]["candidates"]["conditions"].items()
        if name.startswith("ablate[")
    )
    assert f"{lowest:.2f} at" in flowing and "from_layer=5" in flowing


def test_a_flat_run_with_findings_has_them_beside_what_it_has(tmp_path: Path) -> None:
    run = staged(tmp_path / "run")
    manifest = {k: v for k, v in run.manifest.items() if k != "stages"} | dict(
        run.manifest["stages"]["evaluate"]
    )
    manifest["experiment"] = {"name": "flat", "n": N, "stage": "evaluate"}
    flat = Run(run.trials[run.trials["stage"] == "evaluate"].reset_index(drop=True), manifest, run.folder)
    assert "findings" not in summarise(flat) and "stages" not in summarise(flat)
    spec = {"of": "ablated", "readout": "refuses", "against": "baseline", "label": "refusing"}
    summary = summarise(Run(flat.trials, manifest | {"findings": {"bypass": spec}}, run.folder))
    assert summary["findings"][0]["value"] == pytest.approx(-33 / 40) and "stages" not in summary
    assert printed(summary).startswith("findings") and "ablated" in summary["conditions"]


def test_a_staged_run_is_read_back_from_its_folder(tmp_path: Path) -> None:
    run = staged(tmp_path / "run", findings=FINDINGS)
    run.trials.to_parquet(run.folder / "trials.parquet")
    (run.folder / "manifest.json").write_text(json.dumps(run.manifest))
    again = load_run(run.folder)
    assert isinstance(again.trials, pd.DataFrame)
    assert summarise(again)["findings"] == summarise(run)["findings"]


def test_a_staged_run_that_is_still_going_is_read_stage_by_stage(tmp_path: Path) -> None:
    """The same condition name may stand in two stages with other writes, and so with other receipts."""
    run = staged(tmp_path / "run")
    stages = run.manifest["stages"]
    stages["evaluate"]["conditions"]["ablated"]["receipt_order"] = ["dir"]
    stages["candidates"]["conditions"] = {"ablated": condition("ablated", {}, receipt_order=[])}
    plans = []
    for stage in ("candidates", "evaluate"):
        for item in range(2):
            row = {
                "key": f"{stage}{item}",
                "stage": stage,
                "condition": "ablated",
                "item": f"{item}",
                "repeat": 0,
            }
            row |= {
                "experiment": "made",
                "donor": None,
                "target": f"t{item}",
                "group": "",
                "split": "",
                "seed": 1,
            }
            plans.append(row | {"reason": None, "target_ids": [1], "donor_ids": []})
    (run.folder / "segments").mkdir()
    pq.write_table(pa.Table.from_pylist(plans, schema=PLAN_SCHEMA), run.folder / "plan.parquet")
    (run.folder / "manifest.json").write_text(json.dumps(run.manifest | {"status": "running"}))
    result = {"key": "evaluate0", "status": "ok", "reason": None, "output_ids": [1], "n_new": 1, "text": "",
              "finish": "eos", "origin": None, "batch_rows": 1, "batch_length": 1, "min_margin": 1.0,
              "scores": {"refuses": 1.0}, "receipts": [RECEIPT | {"asked_prefill": 5, "positions_prefill": 4,
                                                                   "relative_change": 0.5}]}  # fmt: skip
    (run.folder / "segments" / "a.jsonl").write_text(json.dumps(result) + "\n")
    trials = load_run(run.folder).trials
    assert list(trials["status"]) == ["pending", "pending", "ok", "pending"]
    assert trials["dir.positions_prefill"].iloc[2] == 4 and trials["refuses"].iloc[2] == 1.0
    summary = summarise(load_run(run.folder))
    assert summary["unfinished"] == "still running, 3 of 4 trials pending"
    assert summary["stages"]["evaluate"]["conditions"]["ablated"]["pending"] == 1


def test_where_no_trial_has_every_cell_the_values_of_the_axis_still_stand(tmp_path: Path) -> None:
    run = grids(
        tmp_path / "a", np.ones((3, 8)), rate={"of": "back", "readout": "correct", "by": "from_layer"}
    )
    place = run.trials["condition"].str.extract(r"=(\d)")[0].astype(float)
    item = run.trials["item"].astype(int)
    # Each item lacks one of the cells.
    run.trials.loc[place == item % 3, "correct"] = np.nan
    (rate,) = findings(run)
    assert rate.value is None and "has a value in every cell" in rate.note
    assert [(part.key, part.ones, part.n) for part in rate.by] == [("0", 5, 5), ("1", 5, 5), ("2", 6, 6)]
    assert "By from_layer: 0: 5 of 5; 1: 5 of 5; 2: 6 of 6." in rate.sentence


def test_of_many_parts_the_sentence_has_the_lowest_and_the_highest(tmp_path: Path) -> None:
    back = (np.arange(40) < np.arange(0, 40, 4)[:, None]).astype(float)
    run = grids(tmp_path / "a", back, rate={"of": "back", "readout": "correct", "by": FROM})
    (rate,) = findings(run)
    assert len(rate.by) == 10
    assert "By from_layer: 10 values, lowest 0 of 40 at 0, highest 36 of 40 at 9." in rate.sentence


def test_windows_of_layers_are_told_by_their_ends() -> None:
    assert [axis_words(value) for value in ("2+3+4", [5, 6, 7, 8], "2+4+6", "3", "index:-1")] == [
        "2-4",
        "5-8",
        "2+4+6",
        "3",
        "index:-1",
    ]


def test_a_published_count_stands_as_the_share_that_it_is() -> None:
    """`/ of` divides by the number beside it, `/ 15` by a number; what is no share is as it is printed."""
    assert published("two_hop.{model}.sequential / of", "llama_3_2_3b_instruct").value == pytest.approx(2 / 6)
    assert published("back_patching_of_15.{model}.0 / 15", "gemma_2_2b_it").value == pytest.approx(0.6)
    languages = published("cross_lingual_refusal.{model} / 100", "qwen2_5_7b_instruct").value
    assert languages == [1, 0, 1, 1, 1]
    assert published("two_hop.{model}.gap", "gemma_2_9b_it").value == 4.5
    with pytest.raises(KeyError, match="no model has a figure there"):
        published("two_hop.{model}.sequential / off", None)
