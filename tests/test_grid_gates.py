"""Gates on grids of many cells: told once, as a whole, and none for a cell that changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analyses.comparisons.contrasts import contrasts
from analyses.gates.all_gates import result_gates
from analyses.summary.folding import fold_contrasts, fold_gates, large_grids
from analyses.summary.summary import summarise
from analyses.tables.run import Run
from tests.gating import condition, manifest, named, probed, readout, table
from tests.made_stages import FROM, section, staged
from tests.made_stages import condition as stage_condition
from tests.made_stages import rows as stage_rows

CELLS = [f"back[w.layers={layer}]" for layer in range(20)]
WRITE = {"w": {"site": "resid_post", "value": "donor", "during": "prefill"}}


def gates(values: dict[str, float], grids: tuple[str, ...] = ("back",), n: int = 20) -> list:
    """Gates of a baseline with p = i and of grids whose cells add a number to it."""
    items = np.arange(n, dtype=float)
    conditions, frames = {}, [probed("baseline", p=items)]
    for grid in grids:
        for layer in range(20):
            name = f"{grid}[w.layers={layer}]"
            conditions[name] = condition(WRITE, grid={"w.layers": layer})
            frames.append(probed(name, p=items + values.get(name, 1.0 + layer)))
    told = manifest(conditions, readout={"p": readout("next_token", "p")})
    told["contrasts"] |= {"primary": "p", "family": "none"}
    return named(result_gates(table(*frames), told), "identical")


def test_cells_that_change_nothing_are_counted_in_one_warning() -> None:
    same = dict.fromkeys(CELLS[3:9], 0.0)
    (gate,) = gates(same)
    assert gate.verdict == "warn" and gate.condition == CELLS[3]
    assert gate.sentence.startswith(
        "6 of 20 cells of back gave the same values of p as baseline, in at least 99%"
    )


def test_cells_that_are_alike_among_themselves_are_no_gate_unless_all_are() -> None:
    assert gates(dict.fromkeys(CELLS[3:9], 5.5)) == []
    (gate,) = gates(dict.fromkeys(CELLS, 5.5))
    assert gate.verdict == "fail" and "20 of 20 cells of back" in gate.sentence
    assert "its axes change nothing" in gate.sentence
    (gate,) = gates(dict.fromkeys(CELLS, 0.0))
    assert gate.verdict == "fail" and "as baseline" in gate.sentence


def test_a_null_grid_that_equals_its_treatment_cell_by_cell_is_told() -> None:
    (gate,) = gates({}, grids=("back", "null"))
    assert gate.verdict == "warn" and "20 of 20 cells of back and 20 of 20 cells of null" in gate.sentence
    assert "as the same cells of the other grid" in gate.sentence


def test_cells_that_cannot_be_had_are_one_warning_of_their_grid(tmp_path: Path) -> None:
    run = staged(tmp_path / "run")
    lost = run.trials["condition"].str.startswith(f"ablate[{FROM}=0,")
    assert lost.sum() > 0
    trials = run.trials.assign(
        status=run.trials["status"].where(~lost, "invalid"),
        reason=run.trials["reason"].where(~lost, "the direction of layer 0 is zero"),
    )
    found = summarise(Run(trials, run.manifest, run.folder))["stages"]["candidates"]["gates"]
    (gate,) = [gate for gate in found if gate["gate"] == "no_valid_trials"]
    assert gate["verdict"] == "warn"
    assert gate["sentence"].startswith(
        "2 of 18 cells of ablate have no valid trial, most often: the direction of"
    )
    assert not [gate for gate in found if gate["gate"] == "fewer_items"]
    # All cells of a grid: nothing can be said of it, which is a failure as it was.
    every = run.trials["condition"].str.startswith("ablate[")
    gone = run.trials.assign(status=run.trials["status"].where(~every, "invalid"))
    found = summarise(Run(gone, run.manifest, run.folder))["stages"]["candidates"]["gates"]
    assert {gate["verdict"] for gate in found if gate["gate"] == "no_valid_trials"} == {"fail"}


def test_gates_of_one_kind_on_many_cells_are_shown_once() -> None:
    told = [
        {
            "stage": "s",
            "condition": name,
            "gate": "inert",
            "verdict": "fail",
            "sentence": f"w in {name} never fired.",
        }
        for name in CELLS
    ]
    other = {"condition": "all", "gate": "reused_items", "verdict": "warn", "sentence": "Items are reused."}
    (first, second) = fold_gates([*told, other])
    assert second == other and first["sentence"] == (
        f"w in {CELLS[0]} never fired. The same kind of gate stands for 20 cells of back; summary.json has "
        "each."
    )
    assert fold_gates(told[:2]) == told[:2]


def test_comparisons_of_a_large_grid_are_told_as_a_whole() -> None:
    rng = np.random.default_rng(0)
    names = [f"g[w.layers={layer}]" for layer in range(20)]
    conditions = {"baseline": stage_condition("baseline", {})}
    conditions |= {name: stage_condition(name, {}, grid={"w.layers": i}) for i, name in enumerate(names)}
    values = {name: rng.normal(size=30) + 3.0 * (name == names[4]) for name in conditions}
    made = section(conditions, "p")
    made["contrasts"] |= {"family": "each_against_baseline"}
    run = Run(stage_rows("s", values, set(), "p", 0), made, Path("."))
    summary = summarise(run)
    single, sentences = fold_contrasts(summary)
    assert single == [] and large_grids(names) == {"g": names}
    difference = summary["contrasts"][4]["difference"]
    assert sentences[0].startswith("g - baseline in p: 1 of 20 comparisons stand after Holm;")
    assert f"the largest difference is {difference:.2f} at layers=4" in sentences[0]


@pytest.mark.parametrize("clustered", [False, True])
def test_a_contrast_in_which_every_pair_goes_from_one_to_zero_is_tested(clustered: bool) -> None:
    conditions = {name: stage_condition(name, {}) for name in ("baseline", "ablated", "same")}
    values = {"baseline": np.ones(12), "ablated": np.zeros(12), "same": np.ones(12)}
    made = section(conditions, "refuses")
    made["contrasts"] |= {"family": "each_against_baseline"}
    trials = stage_rows("s", values, set(), "refuses", 0)
    if clustered:
        trials["target"] = [f"t{int(item) // 3}" for item in trials["item"]]
    (ablated, same) = contrasts(pd.DataFrame(trials), made)
    assert ablated.test is not None and ablated.test.p == pytest.approx(2 * 0.5 ** (4 if clustered else 12))
    assert ablated.test.ci_low == -1.0 and ablated.test.ci_high is not None and ablated.test.ci_high > -0.9
    assert ("lowers refuses by 1.00" in ablated.sentence) is not clustered
    assert same.p_holm is None and "nothing to test" in same.sentence


def test_items_that_a_choice_dropped_are_no_silent_shrink(tmp_path: Path) -> None:
    run = staged(tmp_path / "run")
    kept = run.trials[run.trials["item"] < "0030"]
    short = Run(kept, run.manifest, run.folder)
    assert {gate["stage"] for gate in summarise(short)["gates"] if gate["gate"] == "fewer_items"} == {
        "candidates",
        "evaluate",
    }
    run.manifest["stages"]["evaluate"]["kept"] = {"choice": "choice:best", "items": 30, "of": 40}
    run.manifest["stages"]["candidates"]["kept"] = {"choice": "choice:best", "items": 31, "of": 40}
    (gate,) = [gate for gate in summarise(short)["gates"] if gate["gate"] == "fewer_items"]
    assert gate["stage"] == "candidates" and "31 items were asked for" in gate["sentence"]
