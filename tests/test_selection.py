"""What is chosen from made tables: cells of grids, rows of artefacts, items; and a stage as a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analyses.choices.criteria import read_criterion
from analyses.choices.selection import select_cells, select_items, select_rows
from analyses.tables.run import Run
from analyses.tables.stages import stage_runs

LAYERS = 10
FROM, AT = "dir.from_layer", "dir.from_positions"


def grid(name: str, values: list[int], words: list[str] | None = None) -> dict[str, Any]:
    """A grid's conditions over layers, and over positions where they are given."""
    found = {}
    for layer in values:
        for word in words or [None]:
            axes = {FROM: layer} | ({} if word is None else {AT: word})
            found[f"{name}[{','.join(f'{k}={v}' for k, v in axes.items())}]"] = {"grid": axes, "writes": {}}
    return found


def rows(values: dict[str, list[float]], column: str = "refusal", status: str = "ok") -> pd.DataFrame:
    """Trials: condition -> a value for each item."""
    return pd.DataFrame(
        [
            {"stage": "s", "condition": name, "item": f"{i:02d}", "repeat": 0, "donor": f"d{i}",
             "target": f"t{i}", "status": status, column: value}
            for name, held in values.items()
            for i, value in enumerate(held)
        ]
    )  # fmt: skip


CELLS = grid("ablate", [1, 4, 8], ["index:-1", "index:-2"])


def refusals(means: list[float]) -> pd.DataFrame:
    """One value for each of four items in each of the six cells, spread about their means."""
    spread = np.array([-0.3, -0.1, 0.1, 0.3])
    return rows({name: list(mean + spread) for name, mean in zip(CELLS, means, strict=True)})


RULE: dict[str, Any] = {"over": [FROM, AT], "lowest": {"of": "ablate", "readout": "refusal"}, "seed": 42}


def test_the_lowest_cell_is_taken_and_told_with_its_figure() -> None:
    found = select_cells(refusals([0, -1, -3.25, -3, -9, 2]), CELLS, RULE, LAYERS)
    assert found.chosen == ({FROM: 8, AT: "index:-1"},)
    assert found.sentence == (
        "from_layer 8, from_positions index:-1: lowest refusal of ablate (-9.00), of 6 that pass, of 6 "
        "cells. Means of 4 of 4 items."
    )
    assert [row["ablate: refusal"] for row in found.table] == pytest.approx([0, -1, -3.25, -3, -9, 2])
    assert (found.n_items, found.n_cells, found.n_pass, found.chance) == (4, 6, 6, None)
    assert {FROM, AT, "n", "passes", "why"} <= found.table[0].keys()


def test_criteria_keep_cells_out_and_the_table_says_why() -> None:
    rule = RULE | {
        "where": [
            {"axis": "from_layer", "below": "80%", "above": None},
            {"of": "ablate", "readout": "kl", "at_most": 0.1},
        ]
    }
    trials = refusals([0, -1, -3.25, -3, -9, 2])
    trials["kl"] = trials["condition"].map({name: 0.2 if "4" in name else 0.1 for name in CELLS})
    found = select_cells(trials, CELLS, rule, LAYERS)
    assert found.chosen == ({FROM: 1, AT: "index:-2"},)  # a layer at 80% is not below it; 0.1 is at most 0.1
    assert [row["passes"] for row in found.table] == [True, True, False, False, False, False]
    assert found.table[2]["why"] == "not kl of ablate at most 0.1"
    assert found.table[5]["why"] == "not from_layer below 80%"
    assert "from_layer below 80% removes 2; kl of ablate at most 0.1 removes 2" in found.sentence


def test_nothing_that_passes_is_an_empty_choice_that_says_what_removed_how_many() -> None:
    rule = RULE | {"where": [{"of": "ablate", "readout": "refusal", "above": 5}]}
    found = select_cells(refusals([0, -1, -3.25, -3, -9, 2]), CELLS, rule, LAYERS)
    assert found.chosen == () and found.n_pass == 0
    assert found.sentence.startswith(
        "No cell of 6 passes (refusal of ablate above 5 removes 6). Means of 4 of 4"
    )


def test_a_grid_is_held_against_the_same_cell_of_another_paired_by_item() -> None:
    conditions = grid("patched", [1, 2]) | grid("corrupted", [1, 2]) | {"baseline": {}}
    one, two = (f"{FROM}={layer}]" for layer in (1, 2))
    trials = rows(
        {
            "patched[" + one: [0.9, 0.1], "corrupted[" + one: [0.8, 0.0],
            "patched[" + two: [0.5, 0.6], "corrupted[" + two: [0.1, 0.1], "baseline": [0.4, 0.6],
        },
        "p",
    )  # fmt: skip
    rule = {"over": [FROM], "highest": {"of": "patched", "minus": "corrupted", "readout": "p"}}
    found = select_cells(trials, conditions, rule, LAYERS)
    assert found.chosen == ({FROM: 2},)
    assert [row["patched - corrupted: p"] for row in found.table] == pytest.approx([0.1, 0.45])
    # A condition without a grid is the same beside every cell.
    rule["highest"] = {"of": "patched", "minus": "baseline", "readout": "p"}
    found = select_cells(trials, conditions, rule, LAYERS)
    assert [row["patched - baseline: p"] for row in found.table] == pytest.approx([0.0, 0.05])


def test_repeats_and_axes_that_are_not_chosen_between_are_averaged() -> None:
    trials = pd.concat([refusals([0, -4, -3, -2, 5, 5]).assign(repeat=r) for r in (0, 1)])
    trials.loc[trials["repeat"] == 1, "refusal"] += 1
    found = select_cells(trials, CELLS, RULE | {"over": ["from_layer"]}, LAYERS)
    assert [row["ablate: refusal"] for row in found.table] == pytest.approx([-1.5, -2.0, 5.5])
    assert found.chosen == ({FROM: 4},)


def test_an_item_without_a_value_somewhere_is_left_out_of_every_cell_and_counted() -> None:
    trials = refusals([0, 1, 2, 3, 4, 5])
    trials.loc[3, "refusal"] = np.nan  # item 03 of the first cell, the one with the largest value
    found = select_cells(trials, CELLS, RULE, LAYERS)
    assert found.n_items == 3 and {row["n"] for row in found.table} == {3}
    assert found.table[1]["ablate: refusal"] == pytest.approx(1 - 0.1)
    assert "Means of 3 of 4 items; 1 without a value somewhere are left out." in found.sentence


def test_a_cell_with_few_values_fails_and_costs_the_others_no_item() -> None:
    trials = refusals([-50, -60, 2, 3, 4, 5])
    trials.loc[trials["condition"] == next(iter(CELLS)), "status"] = "invalid"
    trials.loc[5:7, "refusal"] = np.nan  # three of four items of the second cell
    found = select_cells(trials, CELLS, RULE, LAYERS)
    assert found.n_items == 4 and found.chosen == ({FROM: 4, AT: "index:-1"},)
    assert found.table[0]["why"] == "no item has a value of refusal of ablate"
    assert found.table[1]["why"] == "1 of 4 items have a value of refusal of ablate"
    assert [row["n"] for row in found.table[:3]] == [0, 0, 4]


def test_a_repeat_without_a_value_leaves_its_item_out() -> None:
    trials = pd.concat([refusals([0, 1, 2, 3, 4, 5]).assign(repeat=r) for r in (0, 1)], ignore_index=True)
    trials.loc[0, "status"] = "failed"
    assert select_cells(trials, CELLS, RULE, LAYERS).n_items == 3


def test_ties_go_to_the_first_in_the_order_of_the_grid_and_are_told() -> None:
    found = select_cells(refusals([3, 1, 1, 1, 2, 2]), CELLS, RULE, LAYERS)
    assert found.chosen == ({FROM: 1, AT: "index:-2"},)
    assert "3 cells tie at 1.00: taken in the order of the grid." in found.sentence
    whole = select_cells(refusals([3, 1, 1, 1, 2, 2]), CELLS, RULE | {"top": 3}, LAYERS)
    assert "tie" not in whole.sentence  # all that tie are taken


def test_top_absolute_and_all_that_pass() -> None:
    trials = refusals([0, -1, 3, -4, 2, 5])
    rule = RULE | {"lowest": None, "highest": {"of": "ablate", "readout": "refusal", "absolute": True}}
    found = select_cells(trials, CELLS, rule | {"top": 2}, LAYERS)
    assert [cell[FROM] for cell in found.chosen] == [8, 4]
    assert (
        "The 2 cells of highest absolute refusal of ablate" in found.sentence and "(-4.00)" in found.sentence
    )
    rule = {"over": [FROM, AT], "where": [{"of": "ablate", "readout": "refusal", "below": 0}]}
    assert [cell[FROM] for cell in select_cells(trials, CELLS, rule, LAYERS).chosen] == [1, 4]


def test_a_draw_is_by_seed_and_never_of_excluded_cells() -> None:
    trials = refusals([0, -1, 3, -4, 2, 5])
    rule = {"over": [FROM, AT], "draw": 3, "seed": 1}
    excluded = [{FROM: 4, AT: "index:-1"}, {"x.from_layer": 8, "x.from_positions": "index:-2"}]
    draws = {
        seed: select_cells(trials, CELLS, rule | {"seed": seed}, LAYERS, excluded=excluded)
        for seed in range(20)
    }
    drawn = [tuple(cell.values()) for found in draws.values() for cell in found.chosen]
    assert {len(found.chosen) for found in draws.values()} == {3}
    assert set(drawn) == {(1, "index:-1"), (1, "index:-2"), (4, "index:-2"), (8, "index:-1")}
    again = select_cells(trials, CELLS, rule | {"seed": 7}, LAYERS, excluded=excluded)
    assert again == draws[7] and len({found.chosen for found in map(_keyed, draws.values())}) > 1
    short = select_cells(trials, CELLS, rule | {"draw": 9}, LAYERS)
    assert len(short.chosen) == 6 and "9 were to be drawn." in short.sentence


class _keyed:
    def __init__(self, found: Any) -> None:
        self.chosen = tuple(tuple(cell.values()) for cell in found.chosen)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"over": ["layer"], "lowest": {"of": "ablate", "readout": "refusal"}}, "expected an axis"),
        ({"over": [FROM], "lowest": {"of": "oblate", "readout": "refusal"}}, "ablate"),
        ({"over": [FROM], "where": [{"of": "ablate", "readout": "refusal"}]}, "exactly one"),
        ({"over": [FROM], "where": [{"above": 1}]}, "a readout"),
        ({"over": []}, "axes of a grid"),
    ],
)
def test_names_that_are_not_there_are_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_cells(refusals([0] * 6), CELLS, rule, LAYERS)


def test_an_unknown_readout_names_those_of_the_stage() -> None:
    rule = RULE | {"lowest": {"of": "ablate", "readout": "refuse"}}
    readouts = {"refusal": {"columns": {"refusal": "number"}}}
    with pytest.raises(KeyError, match="refusal"):
        select_cells(refusals([0] * 6), CELLS, rule, LAYERS, readouts=readouts)


def test_an_entry_of_a_list_is_a_layer_where_the_readout_has_layers() -> None:
    trials = refusals([0] * 6)
    trials["lens.rank"] = [[place, 10 - place] for place in range(len(trials))]
    readouts = {"lens": {"columns": {"lens.rank": "integers"}, "layers": [3, 7]}}
    rule = RULE | {"lowest": {"of": "ablate", "readout": "lens.rank[7]"}}
    assert select_cells(trials, CELLS, rule, LAYERS, readouts=readouts).chosen == ({FROM: 8, AT: "index:-2"},)
    with pytest.raises(KeyError, match="say which entry"):
        bare = RULE | {"lowest": {"of": "ablate", "readout": "lens.rank"}}
        select_cells(trials, CELLS, bare, LAYERS, readouts=readouts)


@pytest.mark.parametrize(
    ("bound", "value", "holds"),
    [
        ({"below": "50%"}, 4, True),
        ({"below": "50%"}, 5, False),
        ({"at_most": 4}, "3+4", True),
        ({"at_most": 4}, "4+5", False),
        ({"at_most": 4}, [3, 4], True),
        ({"equals": "index:-1"}, "index:-1", True),
        ({"equals": 0}, 0.0, True),
        ({"above": 0}, "early", False),
        ({"above": 0}, float("nan"), False),
    ],
)
def test_bounds_on_axes(bound: dict[str, Any], value: object, holds: bool) -> None:
    assert read_criterion({"axis": "a"} | bound).holds(value, LAYERS) is holds


ARTEFACT = [
    {"group": "en", "layer": layer, "position": position, "separation": layer * 0.5 + position, "norm": 1.0}
    for position in (-2, -1)
    for layer in range(4)
]


def test_rows_of_an_artefact_are_chosen_by_its_columns_and_axes() -> None:
    rule = {"over": ["layer", "position"], "where": [{"axis": "layer", "below": "50%"}],
            "highest": {"readout": "separation"}}  # fmt: skip
    found = select_rows(ARTEFACT, rule, 4)
    assert found.chosen == ({"layer": 1, "position": -1},) and isinstance(found.chosen[0]["layer"], int)
    assert found.sentence.startswith("layer 1, position -1: highest separation (-0.50), of 4 that pass, of 8")
    over = select_rows(ARTEFACT, {"over": ["layer"], "highest": {"readout": "separation"}}, 4)
    assert over.chosen == ({"layer": 3},) and over.table[3]["separation"] == pytest.approx(0.0)
    broken = [*ARTEFACT[:-1], ARTEFACT[-1] | {"separation": float("nan")}]
    found = select_rows(broken, rule | {"where": []}, 4)
    assert (
        found.chosen == ({"layer": 2, "position": -1},) and found.table[-1]["why"] == "separation undefined"
    )
    with pytest.raises(ValueError, match="separation"):
        select_rows(ARTEFACT, rule | {"highest": {"readout": "separator"}}, 4)


SCREEN = {"harmful": [1.0, 2.0, -1.0, 3.0], "harmless": [-1.0, 0.5, -2.0, -1.0]}
AGREED = {
    "items": [
        {"of": "harmful", "readout": "refusal", "above": 0},
        {"of": "harmless", "readout": "refusal", "below": 0},
    ]
}


def test_items_are_kept_of_which_everything_holds_and_the_dropped_are_counted() -> None:
    found = select_items(rows(SCREEN), AGREED)
    assert found.items == (("d0", "t0"), ("d3", "t3")) and found.n_items == 2
    assert found.sentence == (
        "2 of 4 items kept (refusal of harmful above 0 drops 1; refusal of harmless below 0 drops 1)."
    )
    assert [row["passes"] for row in found.table] == [True, False, False, True]
    none = select_items(rows(SCREEN), {"items": [{"of": "harmful", "readout": "refusal", "above": 9}]})
    assert none.items == () and none.sentence.startswith("None of 4 items is kept")


def test_items_without_a_donor_or_a_value_and_means_over_repeats() -> None:
    trials = pd.concat([rows(SCREEN).assign(repeat=r) for r in (0, 1)], ignore_index=True)
    trials["donor"] = None
    trials.loc[trials["repeat"] == 1, "refusal"] -= 1.5
    trials.loc[3, "status"] = "invalid"  # the last item of harmful, in one repeat
    found = select_items(trials, AGREED)
    assert found.items == (("", "t0"), ("", "t1")) and "1 without a value" in found.sentence
    assert found.table[3]["why"] == "no value of harmful: refusal"


def test_trap_31_what_passes_is_told_beside_what_chance_would_give() -> None:
    rng = np.random.default_rng(0)
    names = grid("feature", list(range(200)))
    noise = {name: list(rng.normal(size=16)) for name in [*names, "off"]}
    rule = {
        "over": [FROM],
        "where": [
            {"of": "feature", "minus": "off", "readout": "p", "above": 0},
            {"of": "feature", "minus": "off", "readout": "q", "below": 0},
        ],
    }
    trials = rows(noise, "p")
    trials["q"] = rng.normal(size=len(trials))
    found = select_cells(trials, names | {"off": {}}, rule, LAYERS)
    # "Safe" by the sign of two differences: about a quarter of them are, of noise.
    assert found.chance == pytest.approx(50, abs=8)
    assert (
        f"By chance, with the signs of the paired differences left to a coin, {found.chance:.1f} of 200"
        in (found.sentence)
    )
    strong = trials.assign(p=trials["p"].where(trials["condition"] == "off", trials["p"] + 10))
    surely = select_cells(strong, names | {"off": {}}, rule, LAYERS)
    assert surely.n_pass > 80 and surely.chance is not None and surely.chance < surely.n_pass - 20
    items = select_items(
        rows({"a": [1.0, 2.0, -1.0, 4.0], "b": [0.0] * 4}),
        {"items": [{"of": "a", "minus": "b", "readout": "refusal", "above": 0}]},
    )
    assert items.chance == pytest.approx(2.0) and "2.0 of 4 items would pass; 3 do." in items.sentence


def test_a_stage_is_a_run_of_its_own() -> None:
    one = rows({"baseline": [1.0]}).assign(stage="one", kl=0.5)
    one["w.positions_prefill"] = np.nan
    two = rows({"treated": [2.0]}, "score").assign(stage="two")
    two["w.positions_prefill"] = 3.0
    section = {"kind": "measure", "status": "done", "question": "why?", "in_sample": None}
    manifest = {
        "schema": 1, "status": "done", "counts": {"planned": 2},
        "experiment": {"name": "e", "question": "all", "n": 9},
        "stages": {
            "one": section | {"conditions": {"baseline": {"writes": {}}}, "experiment": {"n": 1},
                              "readout": {"r": {"columns": {"refusal": "number", "kl": "number"}}}},
            "best": {"kind": "select", "status": "done"},
            "two": section | {"conditions": {"treated": {"writes": {"w": {}}}},
                              "readout": {"s": {"columns": {"score": "number"}}}},
            "three": section | {"status": "left_out", "reason": "an empty choice", "conditions": {}},
        },
    }  # fmt: skip
    run = Run(pd.concat([one, two], ignore_index=True), manifest, Path("."))
    found = stage_runs(run)
    assert list(found) == ["one", "two"]
    assert {"refusal", "kl"} <= set(found["one"].trials) and not {"score", "w.positions_prefill"} & set(
        found["one"].trials
    )
    assert {"score", "w.positions_prefill"} <= set(found["two"].trials) and "kl" not in found["two"].trials
    assert found["one"].manifest["experiment"] == {"name": "e", "question": "why?", "n": 1, "stage": "one"}
    assert found["one"].manifest["conditions"] == {"baseline": {"writes": {}}}
    assert found["one"].manifest["status"] == "done" and "stages" not in found["one"].manifest
    flat = Run(one, {"experiment": {"stage": "measure"}}, Path("."))
    assert stage_runs(flat) == {"measure": flat}
