"""What users of stages get wrong: each mistake has its sentence at its key, and nothing is said of what only
follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from runner import status
from runner.config.check import check_experiment
from runner.config.compose import compose
from runner.config.errors import ConfigurationError
from tests.staging import FINDINGS, PROJECTED, staged

MINE = "+experiment=mine"
ABLATED = "stages/evaluate/conditions/ablated"
CANDIDATES = "dir.from_layer, dir.from_positions"


def by_separation() -> dict[str, Any]:
    """A choice of layer and position by the artefact's own table, in the place of the one by its effects."""
    return {
        "stages/best": {
            "kind": "select",
            "from": "direction",
            "over": ["layer", "position"],
            "highest": {"readout": "separation"},
        },
        f"{ABLATED}/dir/from_layer": "choice:best/layer",
        f"{ABLATED}/dir/from_positions": "choice:best/position",
        "findings/layer/axis": "layer",
    }


def faults(folder: Path) -> dict[str, str]:
    """Key -> sentence of every mistake."""
    with pytest.raises(ConfigurationError) as caught:
        check_experiment(compose([MINE], folder))
    return {problem.key: problem.message for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("changes", "key", "expected"),
    [
        ({"stages/direction/kind": "extrct"}, "stages.direction.kind", "did you mean 'extract'?"),
        ({"stages/direction/layrs": 3}, "stages.direction.layrs", "did you mean 'layers'?"),
        ({"stages/direction/site": "resid_pst"}, "stages.direction.site", "did you mean 'resid_post'?"),
        ({"stages/direction/site": "kv_cache"}, "stages.direction.site", "a row of activations"),
        ({"stages/direction/n": 0}, "stages.direction.n", "more than 0"),
        ({"stages/direction": [1]}, "stages.direction", "expected a stage, {kind: ...}, got [1]"),
        ({"stages/direction/split": "extrat"}, "stages.direction.split", "did you mean 'extract'?"),
        ({"stages/direction/minus": "donor"}, "stages.direction.minus", "donor less donor is zero"),
        ({"stages/best/higest": {}}, "stages.best.higest", "did you mean 'highest'?"),
        ({"stages/best/over": "dir.from_layer"}, "stages.best.over", "expected a list"),
        ({"stages/best/from": None}, "stages.best.from", "missing: expected the name of an earlier stage"),
        ({"stages/best/seed": 3}, "stages.best.seed", "nothing reads it without draw"),
        (
            {"stages/best/where": [{"axis": "dir.from_layer", "below": "800%"}]},
            "stages.best.where.0.below",
            "%",
        ),
        ({"stages/best/over": ["dir.from_layer"] * 2}, "stages.best.over", "names the axis"),
    ],
)
def test_what_follows_from_a_mistake_is_not_told(tmp_path, changes, key, expected):
    found = faults(staged(tmp_path, changes))
    assert expected in found[key]
    assert list(found) == [key]


def test_mistakes_of_stages_that_rest_on_each_other_are_told_at_once(tmp_path):
    changes = {
        **by_separation(),
        "stages/direction/split": "extrat",
        "stages/best/highest": {"readout": "seperation"},
        f"{ABLATED}/dir/layers": 99,
        "findings/layer/axes": 1,
    }
    assert list(faults(staged(tmp_path, changes))) == [
        "stages.direction.split",
        "stages.best.highest.readout",
        f"{ABLATED}/dir/layers".replace("/", "."),
        "findings.layer.axes",
    ]


@pytest.mark.parametrize(
    "write",
    [
        {"site": ["resid_pre", "mlp_out"], "layers": "choice:best/from_layer"},
        {"site": "resid_pre", "layers": 3, "from_layer": "choice:best", "from_positions": "choice:best"},
    ],
)
def test_a_field_that_takes_a_choice_of_a_wrong_stage_is_not_missing(tmp_path, write):
    body = {"op": "project_out", "value": "artefact:direction", **write}
    found = faults(staged(tmp_path, {"stages/best/ovr": [], f"{ABLATED}/dir": body}))
    assert list(found) == ["stages.best.ovr"]


def test_a_grid_over_a_choice_of_a_wrong_stage_is_not_empty(tmp_path):
    body = {key: value for key, value in PROJECTED.items() if key != "layers"}
    changes = {
        "stages/best/ovr": [],
        f"{ABLATED}/dir": {**body, "from_layer": 3, "from_positions": "index:-1"},
        f"{ABLATED}/grid": {"dir.layers": ["choice:best/from_layer", 3]},
    }
    assert list(faults(staged(tmp_path, changes))) == ["stages.best.ovr"]


@pytest.mark.parametrize(
    ("changes", "key", "expected"),
    [
        (
            {"stages/best/top": 2},
            f"{ABLATED}/dir/from_layer",
            "expected a choice of one, but 'best' takes up",
        ),
        ({"stages/best/top": 7}, "stages/best/top", "expected at most 6 cells"),
        (
            {f"{ABLATED}/dir/from_positions": "choice:best/from_layer"},
            f"{ABLATED}/dir/from_positions",
            "expected an axis of positions",
        ),
        (
            {**by_separation(), "stages/direction/minus": None},
            "stages/best/highest/readout",
            "'direction' has no minus",
        ),
        ({"findings/effect/choice": "best"}, "findings/effect/choice", "in a finding about a measurement"),
        ({"findings/layer/stage": "evaluate"}, "findings/layer/stage", "in a finding about a choice"),
        ({"findings/effect/reduce": "any"}, "findings/effect/reduce", "'ablated' is none"),
        ({"findings/effect/against": "ablated"}, "findings/effect/against", "expected another condition"),
        (
            {"figures": {"f": {"kind": "bars", "stage": "evaluate", "of": [], "readout": "refusal"}}},
            "figures/f/of",
            "expected at least one condition or grid (baseline, ablated)",
        ),
        ({"stags": {}}, "stags", "did you mean 'stages'?"),
        ({"stages": {}}, "stages", "this experiment has neither"),
    ],
)
def test_what_nothing_could_read_is_refused(tmp_path, changes, key, expected):
    assert expected in faults(staged(tmp_path, changes))[key.replace("/", ".")]


@pytest.mark.parametrize("but", ["direction", "agreed", "other"])
def test_a_draw_leaves_out_a_choice_of_the_same_cells(tmp_path, but):
    draw: Mapping[str, Any] = {"kind": "select", "from": "candidates", "over": ["dir.from_layer"]}
    last = {"other": {**draw, "lowest": {"of": "ablate", "readout": "refusal"}}}
    drawn = {**draw, "over": CANDIDATES.split(", "), "draw": 1, "but": but}
    changes = {f"stages/{name}": body for name, body in {**last, "drawn": drawn}.items()}
    found = faults(staged(tmp_path, changes))
    what = f"over the same axes ({CANDIDATES}), and 'other'" if but == "other" else "is no choice of cells"
    assert what in found["stages.drawn.but"]


@pytest.mark.parametrize("name", ["my-stage", "a/b", "a b", "3a"])
@pytest.mark.parametrize("part", ["stages", "findings"])
def test_a_name_is_one_that_other_places_can_say(tmp_path, part, name):
    given = {"stages": {"kind": "extract", "of": "donor"}, "findings": dict(FINDINGS["layer"])}
    folder = staged(tmp_path, {f"{part}/named": given[part]})
    file = folder / "experiment" / "mine.yaml"
    file.write_text(file.read_text().replace("  named:", f"  {name}:"))
    expected = f"expected a name of letters, digits and _ that begins with no digit, got '{name}'"
    assert faults(folder) == {f"{part}.{name}": expected}


def test_what_an_artefact_has_not_of_the_first_layers_can_be_chosen(tmp_path):
    body = {"site": "resid_pre", "layers": "all", "op": "project_out", "value": "artefact:direction"}
    words = {"from_layer": "choice:best/layer", "from_positions": "choice:best/position"}
    changes = {**by_separation(), "stages/direction/layers": [4, 6], f"{ABLATED}/dir": {**body, **words}}
    grid = {"dir.from_layer": [4, 6], "dir.from_positions": ["index:-2", "index:-1"]}
    experiment = check_experiment(
        compose([MINE], staged(tmp_path, changes | {"stages/candidates/conditions/ablate/grid": grid}))
    )
    assert experiment.stage("evaluate").spec is not None


def test_words_of_a_late_stage_are_looked_up_before_the_first_runs(cli, tmp_path):
    readout = {"named": {"kind": "next_token", "tokens": ["sorry nanela"]}}
    changes = {"stages/evaluate/readouts": ["refusal", "named"]}
    said = cli(MINE, "--config-dir", str(staged(tmp_path, changes, readout=readout)))
    assert said.status == status.CONFIGURATION
    assert "readout.named.tokens: 'sorry nanela' is 2 tokens" in said.err
    assert not (tmp_path / "outputs").exists()


def test_what_cannot_be_tried_says_what_can_be_done(cli, tmp_path):
    folder = staged(tmp_path, {"stages/screen": None, "stages/agreed": None, "stages/direction/items": None})
    said = cli("try", MINE, "--config-dir", str(folder))
    assert said.status == status.CONFIGURATION
    assert "'candidates' needs what 'direction' will give; dry_run=true" in " ".join(said.err.split())
