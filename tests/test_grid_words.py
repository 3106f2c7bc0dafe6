"""Axes of grids in words, relations between axes, and lists of sites: what a body expands to."""

from __future__ import annotations

from typing import Any

import pytest

from runner.config.bodies import MOST_CELLS, Bodies, split_bodies

MODEL = {"layers": 9, "heads": 4, "kv_heads": 2, "landmarks": {"early": 1, "late": 7}}


def split(
    grid: object, model: dict[str, Any] | None = MODEL, reference: object = None, **write: Any
) -> Bodies:
    fields = {"site": "resid_pre", "value": "self", **write}
    return split_bodies({"a": {"w": fields, "grid": grid}}, model=model, reference=reference)


def values(bodies: Bodies, axis: str = "w.layers") -> list[Any]:
    assert bodies.faults == []
    return [cell.values[axis] for cell in bodies.grids["a"]]


def told(bodies: Bodies) -> str:
    """The one mistake, with its key."""
    (fault,) = bodies.faults
    return f"{'.'.join(fault.key)}: {fault.message}"


@pytest.mark.parametrize("field", ["layers", "from_layer"])
@pytest.mark.parametrize(
    ("word", "layers"),
    [
        ("all", range(9)),
        ("2-7", range(2, 8)),
        ("0%-80%", range(0, 8)),  # round(0.8 * 9) = 7
        ("50%-100%", range(5, 9)),
        ("12.5%-50%", range(1, 6)),
    ],
)
def test_a_word_is_one_value_for_each_layer(field: str, word: str, layers: range) -> None:
    found = split({f"w.{field}": word})
    assert values(found, f"w.{field}") == list(layers)
    assert [body["writes"]["w"][field] for body in found.conditions.values()] == list(layers)
    assert next(iter(found.conditions)) == f"a[w.{field}={layers[0]}]"
    # Axes may be nested by write as well.
    assert values(split({"w": {field: word}}), f"w.{field}") == list(layers)


def test_windows_are_a_list_around_each_layer_cut_at_the_ends() -> None:
    found = split({"w.layers": "windows:2"})
    lists = [body["writes"]["w"]["layers"] for body in found.conditions.values()]
    assert lists[0] == [0, 1, 2] and lists[1] == [0, 1, 2, 3] and lists[4] == [2, 3, 4, 5, 6]
    assert lists[8] == [6, 7, 8] and len(lists) == 9
    assert values(found)[4] == "2+3+4+5+6"
    assert values(split({"w.layers": "windows:0"})) == [str(layer) for layer in range(9)]


def test_windows_that_are_the_same_at_neighbouring_layers_are_refused() -> None:
    assert len(set(values(split({"w.layers": "windows:4"})))) == 9
    message = told(split({"w.layers": "windows:5"}))
    assert message.startswith("a.grid.w.layers: expected windows of at most 4 layers to each side")


@pytest.mark.parametrize(
    ("site", "heads"),
    [
        ("head_z", ["q0", "q1", "q2", "q3"]),
        ("attention_edge", ["q0", "q1", "q2", "q3"]),
        ("v_proj", ["kv0", "kv1"]),
    ],
)
def test_all_heads_are_those_of_the_site(site: str, heads: list[str]) -> None:
    assert values(split({"w.heads": "all"}, site=site), "w.heads") == heads
    # Also where an axis names the site.
    assert values(split({"w.site": [site], "w.heads": "all"}), "w.heads") == heads


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("resid_pre", "expected a site that is divided into heads"),
        (["q_proj", "v_proj"], "or of key-value heads"),
    ],
)
def test_all_heads_of_a_site_without_them_are_refused(site: object, message: str) -> None:
    found = told(split({"w.heads": "all"}, site=site))
    assert found.startswith("a.grid.w.heads: ") and message in found


def test_a_model_of_unknown_size_gives_one_value_and_no_mistake() -> None:
    for model in (None, {}, {"layers": "nine", "heads": 0, "kv_heads": True}):
        grid = {
            "w.layers": "windows:3",
            "w.from_layer": "2-30",
            "w.heads": "all",
            "only": "w.from_layer > w.layers",
        }
        found = split(grid, model=model, site="v_proj")
        assert found.faults == [] and len(found.conditions) == 1


@pytest.mark.parametrize(
    ("axis", "word", "message"),
    [
        ("w.layers", "late", "got 'late'; a single value is [late]"),
        ("w.layers", "84%", "a single value is [84%]"),
        ("w.layers", "al", "did you mean 'all'?"),
        ("w.layers", "7-2", "a range from low to high"),
        ("w.layers", "80%-20%", "a range from low to high"),
        ("w.layers", "0%-140%", "a depth of at most 100%"),
        ("w.layers", "5-9", "expected a layer from 0 to 8"),
        ("w.from_layer", "windows:2", "expected a list of values"),
        ("w.from_layer", "choice:best", "a single value is [choice:best]"),
        ("w.heads", "q1", "a single head is [q1]"),
        ("w.positions", "all", "expected a list of plain values"),
        ("w.layers", 5, "expected a list of plain values, or of lists of them; or one value for each layer"),
    ],
)
def test_a_word_that_is_none_is_told_at_its_axis(axis: str, word: object, message: str) -> None:
    found = told(split({axis: word}, site="head_z"))
    assert found.startswith(f"a.grid.{axis}: ") and message in found


def test_words_over_layers_are_refused_on_a_reference_scale() -> None:
    for word in ("all", "2-7", "0%-80%", "windows:1"):
        assert "reference_depth: 32 has integer layers read on another scale" in told(
            split({"w.layers": word}, reference=32)
        )
    assert values(split({"w.layers": [5, 18]}, reference=32)) == [5, 18]
    assert len(values(split({"w.heads": "all"}, reference=32, site="head_z"), "w.heads")) == 4


def test_choices_and_positions_are_values_like_others() -> None:
    grid = {"w.from_layer": ["choice:best", 3], "w.from_positions": ["index:-1", "role:hop_1.last"]}
    found = split(grid)
    assert found.faults == [] and list(found.conditions)[1] == (
        "a[w.from_layer=choice:best,w.from_positions=role:hop_1.last]"
    )


@pytest.mark.parametrize(
    ("relation", "count", "sample"),
    [
        ("w.from_layer > w.layers", 36, (1, 0)),
        ("w.from_layer>=w.layers", 45, (4, 4)),
        ("w.from_layer < w.layers", 36, (0, 1)),
        ("w.from_layer <= w.layers", 45, (4, 4)),
        ("w.from_layer == w.layers", 9, (4, 4)),
        ("w.from_layer != w.layers", 72, (4, 5)),
    ],
)
def test_a_relation_keeps_the_cells_of_which_it_holds(
    relation: str, count: int, sample: tuple[int, int]
) -> None:
    found = split({"w.from_layer": "all", "w.layers": "all", "only": relation})
    pairs = [(cell.values["w.from_layer"], cell.values["w.layers"]) for cell in found.grids["a"]]
    assert found.faults == [] and len(pairs) == len(found.conditions) == count and sample in pairs
    assert "only" not in next(iter(found.conditions.values()))["grid"]


def test_relations_compare_layers_as_what_they_mean() -> None:
    grid = {"w.value": ["layer:2", "layer:8"], "w.layers": [1, "late", "50%"], "only": "w.value > w.layers"}
    pairs = [(c.values["w.value"], c.values["w.layers"]) for c in split(grid).grids["a"]]
    assert pairs == [("layer:2", 1), ("layer:8", 1), ("layer:8", "late"), ("layer:8", "50%")]
    # On a scale of 32 layers the two are one layer of nine.
    close = split({"w.from_layer": [6, 27], "w.layers": [5], "only": "w.from_layer > w.layers"}, reference=32)
    assert values(close, "w.from_layer") == [6, 27]
    same = split({"w.from_layer": [5, 27], "w.layers": [4], "only": "w.from_layer != w.layers"}, reference=32)
    assert values(same, "w.from_layer") == [27]


def test_several_relations_hold_together() -> None:
    only = ["w.from_layer > w.layers", "w.layers != w.order"]
    found = split({"w.from_layer": [1, 2], "w.layers": [0, 1, 2], "w.order": [1], "only": only})
    assert [c.values["w.from_layer"] for c in found.grids["a"]] == [1, 2]
    assert {c.values["w.layers"] for c in found.grids["a"]} == {0}


@pytest.mark.parametrize(
    ("only", "message"),
    [
        (
            "w.from_layer > w.layer",
            "expected axes of this grid (w.from_layer, w.layers), got 'w.layer'; did you",
        ),
        ("w.from_layer greater than w.layers", "such as 'w.from_layer > w.layers'"),
        (3, "expected a relation of two axes"),
        ("w.from_layer == w.layers", "no cell is left: in none of 4 is w.from_layer == w.layers"),
    ],
)
def test_a_relation_that_is_wrong_is_told(only: object, message: str) -> None:
    found = told(split({"w.from_layer": [5, 6], "w.layers": [1, 2], "only": only}))
    assert found.startswith("a.grid.only: ") and message in found


def test_lists_and_choices_have_no_order() -> None:
    for layers in ("windows:1", ["choice:best"], [[1, 2]]):
        found = told(split({"w.from_layer": "all", "w.layers": layers, "only": "w.from_layer > w.layers"}))
        assert "'>' compares numbers or single layers" in found


def test_a_relation_reads_the_value_that_took_the_place_of_an_axis() -> None:
    body = {"w": {"site": "resid_pre", "layers": 3}, "grid": {"w.from_layer": "all", "w.layers": "all"}}
    body["grid"]["only"] = "w.from_layer > w.layers"
    found = split_bodies({"a": body}, lambda name, axis: axis == "w.layers", MODEL)
    assert [c.name for c in found.grids["a"]] == [f"a[w.from_layer={layer}]" for layer in range(4, 9)]


def test_a_grid_of_too_many_cells_is_told_with_their_number() -> None:
    big = {**MODEL, "layers": 150}
    message = told(split({"w.from_layer": "all", "w.layers": "all"}, model=big))
    assert message.startswith(f"a.grid: expected at most {MOST_CELLS:,} cells, got 22,500")
    # Those that a relation drops do not count.
    assert len(
        split({"w.from_layer": "all", "w.layers": "all", "only": "w.from_layer > w.layers"}, big).conditions
    ) == (150 * 149 // 2)


def test_a_list_of_sites_is_a_write_for_each() -> None:
    found = split({"w.layers": [1, 2]}, site=["resid_pre", "attn_out"], order=3)
    assert found.faults == []
    for layer in (1, 2):
        name = f"a[w.layers={layer}]"
        writes = found.conditions[name]["writes"]
        assert writes == {
            f"w_{site}": {"site": site, "value": "self", "order": 3, "layers": layer}
            for site in ("resid_pre", "attn_out")
        }
        assert {found.written[name, write] for write in writes} == {"w"}
    one = split_bodies({"a": {"w": {"site": ["mlp_out"]}}})
    assert list(one.conditions["a"]["writes"]) == ["w_mlp_out"]


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ([], "a list of sites that differ, got []"),
        (["resid_pre", "resid_pre"], "a list of sites that differ"),
        ([3], "a list of sites that differ, got [3]"),
        (["mlp_out", "attn_out"], "w_mlp_out is there already; rename one"),
    ],
)
def test_a_list_of_sites_that_is_wrong_is_told(sites: list[Any], message: str) -> None:
    body = {"w": {"site": sites}, "w_mlp_out": {"site": "mlp_out"}}
    found = told(split_bodies({"a": body}))
    assert found.startswith("a.w.site: ") and message in found
