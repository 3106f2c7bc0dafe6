"""What is checked at the door: every mistake, told at once, with file, key and the nearest right word."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.config.errors import ConfigurationError
from tests.configuring import KV_ONLY, body, design, faults

SLIDING = "site: v_proj, layers: 1, during: decode, hold: sliding"


def test_trap_43_every_mistake_of_a_file_is_told_at_once_with_file_key_and_nearest(tmp_path: Path) -> None:
    folder = body(
        """
        a: {kv: {sight: kv_cache, layers: all, value: donor}}
        b: {label: no, v: {site: v_prj, layers: 40, value: donor, during: decode, hold: cycel}}
        c: {lable: 1:30, v: {site: v_proj, layers: -1, heads: [q3], value: donor:lenght_matched}}
        """.replace("        ", ""),
        tmp_path,
        rest="readouts: [behavior]\nlimt: 3\nsampling: {temprature: 1}",
    )
    told = faults("+experiment=mine", "+tpyo=3", "experiment.n=0", folder=folder)
    for part in (
        "mine.yaml: conditions.a.kv.sight: unknown key",
        "did you mean 'site'",
        "mine.yaml:6: conditions.b.label: expected true, false or a text in quotes, got no",
        "got 'v_prj'; did you mean 'v_proj'",
        "got 'cycel'; did you mean 'cycle'",
        "conditions.b.v.layers: expected a layer from 0 to 8 (the model has 9 layers), got 40",
        "mine.yaml: conditions.c.lable: expected a write",
        "did you mean 'label'",
        "conditions.c.v.layers: expected a layer from 0 to 8",
        "conditions.c.v.heads: expected key-value heads kv0 to kv1",
        "did you mean 'length_matched'",
        "got 'behavior'; did you mean 'behaviour'",
        "mine.yaml: limt: unknown key",
        "did you mean 'limit'",
        "sampling.temprature: unknown key",
        "command line: tpyo: unknown key",
        "command line: experiment.n: expected more than 0, got 0",
    ):
        assert part in told, part


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("{v: {site: v_proj, layers: 1}}", "value: op replace needs a value"),
        ("{v: {site: v_proj, layers: 1, op: zero, value: donor}}", "takes no value"),
        ("{v: {site: v_proj, layers: 1, value: doner}}", "did you mean 'donor'"),
        (
            "{v: {site: v_proj, layers: 1, value: donor, during: decode}}",
            r"hold: .*cycle \(row t mod n\).*lockstep",
        ),
        ("{v: {site: v_proj, layers: 1, value: donor, hold: last}}", "during: prefill, remove it"),
        ("{v: {site: v_proj, layers: 1, value: random, during: decode, hold: mean}}", "has none"),
        ("{v: {site: v_proj, layers: 1, value: donor, during: decode, hold: sliding}}", "recompute: true"),
        (f"{{recompute: true, v: {{{SLIDING}, value: donor}}}}", "expected last:N, got all"),
        (f"{{recompute: true, v: {{{SLIDING}, value: donor, positions: first:4}}}}", "got first:4"),
        (f"{{recompute: true, v: {{{SLIDING}, value: donor, positions: last:25%}}}}", "got last:25%"),
        (f"{{recompute: true, v: {{{SLIDING}, value: random, positions: last:4}}}}", "this write has none"),
        (f"{{recompute: true, v: {{{SLIDING}, op: zero, positions: last:4}}}}", "this write has none"),
        ("{v: {site: v_proj, layers: 1, value: donor, positions: role:subject}}", "no prompt bank marks"),
        ("{v: {site: v_proj, layers: 1, value: random, draws: 9}}", "9 draws need at least 9 repeats, got 1"),
        ("{sampling: {max_new_tokens: 1024}}", "fewer than the 1024 positions of model 'organism', got 1024"),
        ("{v: {site: v_proj, layers: 9, value: donor}}", "from 0 to 8"),
        ("{v: {site: v_proj, layers: [], value: donor}}", "empty list"),
        ("{v: {site: v_proj, layers: 7-3, value: donor}}", "low to high"),
        ("{v: {site: v_proj, layers: erly, value: donor}}", "did you mean 'early'"),
        ("{v: {site: v_proj, layers: 1, value: donor, positions: lst:3}}", "last:16"),
        ("{v: {site: q_proj, layers: 1, value: donor, heads: [q4]}}", "query heads q0 to q3"),
        ("{v: {site: q_proj, layers: 1, value: donor, heads: [kv0]}}", "query heads q0 to q3"),
        ("{v: {site: resid_pre, layers: 1, value: donor, heads: [q0]}}", "not divided into heads"),
        ("{v: {site: v_proj, layers: 1, value: donor, rope: keep}}", "belongs to kv_cache"),
        ("{v: {site: v_proj, layers: 1, value: donor, draws: 3}}", "same in every repeat"),
        ("{v: {site: v_proj, layers: 1, value: donor, alpha: 2.0}}", "alpha counts in add, scale"),
        ("{kv: {site: kv_cache, layers: all, value: donor, during: decode}}", "expected prefill, got decode"),
        ("{kv: {site: kv_cache, layers: 3, value: donor, align: whole}}", "expected all, got 3"),
        (
            "{kv: {site: kv_cache, layers: all, value: donor, align: concat, positions: first:2}}",
            "expected all",
        ),
        ("{kv: {site: kv_cache, layers: all, value: donor, align: whole, part: keys}}", "cannot limit it"),
        ("{kv: {site: kv_cache, layers: all, value: random, align: whole}}", "has none"),
        ("{recompute: true, kv: {site: kv_cache, layers: all, value: donor}}", "keeps no cache"),
        ("{recompute: true, replay_last_token: true}", "one or the other"),
        ("{prompt: doner}", "did you mean 'donor'"),
        ("{same_as: basline}", "did you mean 'baseline'"),
        ("{sampling: {temperature: -0.1}}", "at least 0"),
        ("{v: [1, 2]}", "expected a write"),
        ("{a.b: {site: v_proj, layers: 1, op: zero}}", "expected a name of letters"),
        ("null", "{} for a condition that writes nothing"),
    ],
)
def test_conditions_that_cannot_be_are_refused(tmp_path: Path, condition: str, message: str) -> None:
    folder = body(f"a: {condition}", tmp_path)
    with pytest.raises(ConfigurationError, match=message):
        design("+experiment=mine", folder=folder)


def test_trap_09_heads_come_from_the_model(tmp_path: Path) -> None:
    folder = body("a: {v: {site: v_proj, layers: 1, heads: [kv7], value: donor}}", tmp_path)
    found = design("+experiment=mine", "model=mistral_7b_instruct_v0_2", folder=folder)
    heads = found.condition("a").writes[0].heads
    assert heads is not None
    assert (heads.of, heads.indices) == ("kv", (7,))
    told = faults(
        "+experiment=mine", "model=mistral_7b_instruct_v0_2", "conditions.a.v.heads=[kv8]", folder=folder
    )
    assert "kv0 to kv7" in told


def test_trap_45_permuting_keys_and_values_together_is_refused_unless_expected(tmp_path: Path) -> None:
    write = "site: kv_cache, layers: all, value: shuffled_sequence, rope: keep"
    assert "set function" in faults("+experiment=mine", folder=body(f"a: {{kv: {{{write}}}}}", tmp_path))
    for sound in (f"{write}, expect: noop", write.replace("rope: keep", "part: values")):
        design("+experiment=mine", folder=body(f"a: {{kv: {{{sound}}}}}", tmp_path))


def test_trap_28_greedy_repeats_are_refused_unless_a_random_value_differs(tmp_path: Path) -> None:
    greedy = ("+experiment=mine", "experiment.repeats=3", "sampling.temperature=0")
    random = "{v: {site: v_proj, layers: 1, value: random, draws: 3}}"
    folder = body(f"a: {random}", tmp_path)
    assert "all 3 repeats of 'baseline'" in faults(*greedy, folder=folder)
    assert "'a'" not in faults(*greedy, folder=folder)
    family = ("~conditions.baseline", "contrasts.family=none")
    assert design(*greedy, *family, folder=folder).repeats == 3


def test_two_writes_on_one_tensor_need_an_order(tmp_path: Path) -> None:
    first = "v: {site: v_proj, layers: 1, value: donor}"
    second = "w: {site: v_proj, layers: 0-3, value: random, positions: last:2"
    assert "order" in faults("+experiment=mine", folder=body(f"a: {{{first}, {second}}}}}", tmp_path))
    ordered = f"a: {{{first.replace('donor', 'donor, order: 1')}, {second}, order: 2}}}}"
    design("+experiment=mine", folder=body(ordered, tmp_path))
    apart = f"a: {{{first.replace('layers: 1', 'layers: 5')}, {second}}}}}"
    design("+experiment=mine", folder=body(apart, tmp_path))


@pytest.mark.parametrize("align", ["whole", "concat"])
def test_another_cache_taken_entire_leaves_no_room_for_a_second_kv_write(tmp_path: Path, align: str) -> None:
    first = f"k: {{site: kv_cache, layers: all, value: donor, align: {align}, order: 1}}"
    second = "l: {site: kv_cache, layers: 3, value: random, positions: first:1, order: 2}"
    told = faults("+experiment=mine", folder=body(f"a: {{{first}, {second}}}", tmp_path))
    assert f"conditions.a.l.site: kv_cache writes 'k' and 'l': after align {align} of 'k'" in told
    assert len(told.splitlines()) == 1
    swapped = faults("+experiment=mine", folder=body(f"a: {{{second}, {first}}}", tmp_path))
    assert f"kv_cache writes 'l' and 'k': after align {align} of 'k'" in swapped
    beside = f"a: {{{first}, v: {{site: v_proj, layers: 3, value: donor}}}}"
    design("+experiment=mine", folder=body(beside, tmp_path))


def test_sliding_over_the_last_positions_is_possible(tmp_path: Path) -> None:
    folder = body(f"a: {{recompute: true, v: {{{SLIDING}, value: donor, positions: last:4}}}}", tmp_path)
    assert design("+experiment=mine", folder=folder).condition("a").writes[0].hold == "sliding"


def test_draws_up_to_the_repeats_are_possible(tmp_path: Path) -> None:
    folder = body("a: {v: {site: v_proj, layers: 1, value: random, draws: 9}}", tmp_path)
    assert design("+experiment=mine", "experiment.repeats=9", folder=folder).repeats == 9
    told = faults("+experiment=mine", "experiment.repeats=0", folder=folder)
    assert "more than 0" in told and "9 draws" not in told


def test_new_tokens_must_fit_in_the_context(tmp_path: Path) -> None:
    assert "sampling.max_new_tokens: expected fewer than the 1024" in faults(
        KV_ONLY, "sampling.max_new_tokens=1024"
    )
    assert design(KV_ONLY, "sampling.max_new_tokens=1000").n == 300
    told = faults(KV_ONLY, "model.context=0")
    assert "max_new_tokens" not in told


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1:30", "90"),
        ("010", "8"),
        ("0x2", "2"),
        ("1_0", "10"),
        ("0b11", "3"),
        ("2._0", "2.0"),
        ("on", "true"),
        ("No", "false"),
    ],
)
def test_trap_43_values_that_yaml_reads_otherwise_are_told_with_their_line(
    tmp_path: Path, written: str, read: str
) -> None:
    folder = body(
        f"a: {{v: {{site: v_proj, layers: [1, {written}], value: donor}}}}",
        tmp_path,
        rest=f"sampling:\n  seed: {written}\nreadouts: ['{written}', behaviour]",
    )
    told = faults("+experiment=mine", folder=folder)
    assert (
        f"mine.yaml:5: conditions.a.v.layers.1: expected {'true' if read[0] in 'tf' else 'a number'}" in told
    )
    assert "mine.yaml:7: sampling.seed: expected" in told
    assert told.count(f"got {written}, which YAML reads as {read}; quote it or write") == 2
    assert len(told.splitlines()) == 3  # and the readout in quotes, which is none
    assert "expected a readout (behaviour, perplexity, " in told and f"got '{written}'" in told


def test_values_that_yaml_reads_otherwise_are_told_in_every_file_that_is_used(tmp_path: Path) -> None:
    (tmp_path / "intervention").mkdir()
    for name in ("used", "unused"):
        (tmp_path / "intervention" / f"{name}.yaml").write_text(
            "v:\n  site: v_proj\n  layers: 007\n  value: donor\n", encoding="utf-8"
        )
    folder = body("b: {}", tmp_path, rest="defaults: [/intervention@conditions.a: used, _self_]")
    told = faults("+experiment=mine", "+conditions.b.same_as=baseline", folder=folder)
    assert "used.yaml:3: conditions.a.v.layers: expected a number in plain digits" in told
    assert "unused" not in told


def test_conditions_that_resolve_to_the_same_writes_are_an_error(tmp_path: Path) -> None:
    write = "v: {site: v_proj, layers: 1, value: donor}"
    twice = f"a: {{{write}}}\nb: {{label: other, {write.replace('v: {', 'w: {')}}}"
    assert "conditions 'a' and 'b' resolve to the same" in faults(
        "+experiment=mine", folder=body(twice, tmp_path)
    )
    meant = twice.replace("label: other", "same_as: a")
    assert design("+experiment=mine", folder=body(meant, tmp_path)).condition("b").same_as == "a"
    wrong = twice.replace("label: other", "same_as: baseline")
    assert "resolve differently" in faults("+experiment=mine", folder=body(wrong, tmp_path))


def test_layers_that_fall_together_by_the_reference_depth_are_told_as_such(tmp_path: Path) -> None:
    text = "\n".join(
        f"{n}: {{v: {{site: v_proj, layers: {i}, value: donor}}}}" for n, i in (("a", 25), ("b", 24))
    )
    folder = body(text, tmp_path, rest="reference_depth: 32")
    assert "because reference_depth 32 is read on 9 layers" in faults("+experiment=mine", folder=folder)
    design("+experiment=mine", "model=mistral_7b_instruct_v0_2", folder=folder)


def test_trap_17_zeros_stay_zeros(tmp_path: Path) -> None:
    folder = body("a: {v: {site: v_proj, layers: 0, value: donor}}", tmp_path)
    zeros = ("sampling.temperature=0", "sampling.seed=0", "prompts.seed=0")
    found = design("+experiment=mine", *zeros, folder=folder)
    assert found.condition("a").writes[0].layers == (0,)
    assert found.condition("a").sampling.temperature == 0
    assert (found.sampling_seed, found.prompts.seed) == (0, 0)
    own = design("+experiment=mine", "+conditions.a.sampling.temperature=0", folder=folder)
    assert own.condition("a").sampling.temperature == 0
    assert own.condition("baseline").sampling.temperature == 0.8


def test_trap_34_more_items_than_the_bank_holds_is_an_error_at_the_door() -> None:
    told = faults(KV_ONLY, "prompts.pairing.replace=false")
    assert "experiment.n: expected at most" in told
    assert "got 300" in told
    assert design(KV_ONLY, "prompts.pairing.replace=false", "experiment.n=20").n == 20


def test_trap_41_the_experiment_name_comes_from_the_configuration() -> None:
    assert design(KV_ONLY, "experiment.name=renamed").name == "renamed"
    assert "experiment.name" in faults(KV_ONLY, "experiment.name='a/b'")


def test_contrasts_name_conditions_and_columns_that_exist() -> None:
    told = faults(
        KV_ONLY, "contrasts.baseline=base", "contrasts.primary=scor", "contrasts.extra=[[kv_onyl, kv_self]]"
    )
    assert "did you mean 'kv_only'" in told
    assert "did you mean 'score'" in told
    assert "did you mean 'baseline'" in told
    assert "column of the readouts" in faults(KV_ONLY, "readouts=[behaviour]", "contrasts.primary=perplexity")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("contrasts.extra=[[kv_only,kv_plain],[kv_only,kv_plain]]", "extra.1: 'kv_only' and 'kv_plain'"),
        ("contrasts.extra=[[kv_only,kv_plain],[kv_plain,kv_only]]", "compared already by contrasts.extra.0"),
        ("contrasts.extra=[[kv_only,baseline]]", "compared already by contrasts.family"),
        ("contrasts.extra=[[baseline,kv_only]]", "compared already by contrasts.family"),
        ("contrasts.extra=[[kv_only,kv_only]]", "extra.0: expected two conditions, got 'kv_only' twice"),
        ("contrasts.same=[[kv_only,kv_only,{margin:1}]]", "same.0: expected two conditions"),
        (
            "contrasts.same=[[kv_only,kv_plain,{margin:1}],[kv_plain,kv_only,{margin:2}]]",
            "same.1: 'kv_plain' and 'kv_only' are compared already by contrasts.same.0",
        ),
        ("readouts=[behaviour,perplexity,behaviour]", "readouts.2: readout 'behaviour' is listed twice"),
    ],
)
def test_nothing_is_compared_or_read_twice(override: str, message: str) -> None:
    assert message in faults(KV_ONLY, override)


def test_a_pair_may_be_tested_for_difference_and_for_equivalence() -> None:
    both = ("contrasts.extra=[[kv_only,kv_plain]]", "contrasts.same=[[kv_only,kv_plain,{margin:1}]]")
    assert design(KV_ONLY, *both).contrasts.same[0][2].margin == 1
    against = design(KV_ONLY, "contrasts.same=[[kv_only,baseline,{margin:1}]]")
    assert against.contrasts.same[0][:2] == ("kv_only", "baseline")


def test_one_mistake_in_the_contrasts_hides_no_other() -> None:
    told = faults(KV_ONLY, "readouts=[behavior]", "contrasts.primary=scor")
    assert "did you mean 'behaviour'" in told and "did you mean 'score'" in told
    told = faults(KV_ONLY, "contrasts.same=[[baseline,x,{margin:-1}],[y,kv_only,0.6]]")
    for part in ("same.0.2.margin: expected more than 0", "got 'x'", "same.1.2: expected pairs", "got 'y'"):
        assert part in told, part


def test_unknown_groups_and_banks_are_told() -> None:
    assert "got 'L6'" in faults(KV_ONLY, "prompts.donors.groups=[L6]")
    assert "did you mean 'donors'" in faults(KV_ONLY, "prompts.donors.bank=doners")


def test_prompts_must_be_in_the_language_of_the_model() -> None:
    assert "prompts.language: expected organism" in faults(KV_ONLY, "prompts.language=english")
    told = faults(KV_ONLY, "+prompts.roles.self={bank: plain}")
    assert "prompts.roles.self: 'self' is the name of a value already" in told


def test_stages_are_the_long_form_of_the_same_thing(tmp_path: Path) -> None:
    flat = design(
        "+experiment=mine", folder=body("a: {v: {site: v_proj, layers: 1, value: donor}}", tmp_path)
    )
    (tmp_path / "experiment" / "staged.yaml").write_text(
        "# @package _global_\nexperiment: {name: mine, n: 5}\n"
        "stages:\n  measure:\n    kind: measure\n    conditions:\n"
        "      baseline: {}\n      a: {v: {site: v_proj, layers: 1, value: donor}}\n",
        encoding="utf-8",
    )
    assert design("+experiment=staged", folder=tmp_path) == flat
    told = faults("+experiment=staged", "stages.measure.kind=extrat", folder=tmp_path)
    assert "stages.measure.kind: expected one of measure, extract, select, got 'extrat'; did you mean" in told
    told = faults("+experiment=staged", "stages.measure.kind=extract", folder=tmp_path)
    assert "stages.measure.conditions: unknown key; expected one of kind, question, prompts" in told
    assert len(told.splitlines()) == 1
    assert "at least one condition" not in faults("+experiment=staged", "stages.measure=3", folder=tmp_path)
    told = faults("+experiment=staged", "~stages.measure.conditions", folder=tmp_path)
    assert "stages.measure.conditions: missing" in told and len(told.splitlines()) == 1
    told = faults("+experiment=staged", "stages.measure.conditions.a.v.layers=99", folder=tmp_path)
    assert "command line: stages.measure.conditions.a.v.layers: expected a layer from 0 to 8" in told


def test_grid_expands_to_conditions_with_columns(tmp_path: Path) -> None:
    grid = "{v.layers: [1, 3], v.positions: [last:4, all]}"
    text = f"a: {{v: {{site: v_proj, value: donor, positions: last:4}}, grid: {grid}}}"
    found = design("+experiment=mine", folder=body(text, tmp_path))
    cells = [c for c in found.conditions if c.name != "baseline"]
    assert [c.name for c in cells][:2] == [
        "a[v.layers=1,v.positions=last:4]",
        "a[v.layers=1,v.positions=all]",
    ]
    assert [(c.writes[0].layers, c.writes[0].positions.word) for c in cells] == [
        ((1,), "last:4"), ((1,), "all"), ((3,), "last:4"), ((3,), "all"),
    ]  # fmt: skip
    assert dict(cells[2].grid) == {"v.layers": 3, "v.positions": "last:4"}


def test_a_list_is_one_value_of_an_axis(tmp_path: Path) -> None:
    grid = "{v.layers: [[1, 2], [3, 5-6], 7]}"
    text = f"a: {{v: {{site: v_proj, value: donor, positions: last:4}}, grid: {grid}}}"
    rest = "contrasts: {extra: [['a[v.layers=1+2]', 'a[v.layers=7]']]}"
    found = design("+experiment=mine", folder=body(text, tmp_path, rest=rest))
    cells = found.conditions[1:]
    assert [c.name for c in cells] == ["a[v.layers=1+2]", "a[v.layers=3+5-6]", "a[v.layers=7]"]
    assert [c.writes[0].layers for c in cells] == [(1, 2), (3, 5, 6), (7,)]
    assert [c.grid["v.layers"] for c in cells] == ["1+2", "3+5-6", 7]
    assert found.contrasts.extra == (("a[v.layers=1+2]", "a[v.layers=7]"),)
    heads = "a: {v: {site: head_z, layers: 1, op: zero}, grid: {v.heads: [[q0, q1], q3]}}"
    cells = design("+experiment=mine", folder=body(heads, tmp_path)).conditions[1:]
    assert [(c.name, c.writes[0].heads and c.writes[0].heads.indices) for c in cells] == [
        ("a[v.heads=q0+q1]", (0, 1)),
        ("a[v.heads=q3]", (3,)),
    ]


def test_a_wrong_axis_is_told_once_and_its_field_is_not_missing(tmp_path: Path) -> None:
    text = "a: {v: {site: v_proj, value: donor}, grid: {v.layers: [1, {b: 2}]}}"
    told = faults("+experiment=mine", folder=body(text, tmp_path))
    assert "conditions.a.grid.v.layers: expected a list of plain values" in told
    assert len(told.splitlines()) == 1


def test_null_and_fractions_are_told_in_the_words_of_yaml(tmp_path: Path) -> None:
    told = faults("+experiment=mine", folder=body("a:\nb: {v: null}\nc: {v: 3}", tmp_path))
    assert told.count("got null") == 2 and "got 3" in told and "None" not in told
    text = "a: {v: {site: v_proj, value: donor, layers: 0.84}}"
    assert "did you mean '84%'?" in faults("+experiment=mine", folder=body(text, tmp_path))


def test_a_file_that_the_root_chooses_already_is_told(tmp_path: Path) -> None:
    rest = "defaults: [/readout@readout.kl: kl, _self_]"
    told = faults("+experiment=mine", folder=body("a: {}", tmp_path, rest=rest))
    assert "mine.yaml: defaults: 'readout@readout.kl' is chosen by conf/config.yaml already: the line" in told


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("{v.layrs: [1, 2]}", "did you mean 'layers'"),
        ("{w.layers: [1, 2]}", "axis of this condition"),
        ("{v.layers: 3}", "list of plain values, or of lists of them"),
        ("{v.layers: [[1, [2]], [3]]}", "list of plain values, or of lists of them"),
        ("{v.layers: [1, null]}", "list of plain values"),
        ("{v.layers: null}", "got null"),
        ("{v.positions: [[last:1, last:2]]}", "expected a list of plain values, got"),
        ("{v.layers: [[1, 2], 1+2]}", "values that differ"),
        ("{v.layers: [1, 1]}", "values that differ"),
        ("[1, 2]", "expected axes"),
    ],
)
def test_grids_that_cannot_be_are_refused(tmp_path: Path, grid: str, message: str) -> None:
    folder = body(f"a: {{v: {{site: v_proj, layers: 1, value: donor}}, grid: {grid}}}", tmp_path)
    assert message in faults("+experiment=mine", folder=folder)
