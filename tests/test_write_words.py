"""Every word of a write in YAML: what it resolves to, what is said where it is wrong, how it is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backends.positions import Positions
from backends.writes import LAYERLESS, SELF, Heads, Under, Value, Write
from runner.config.folders import config_folders
from tests.configuring import body, design, faults
from tests.writing import EDGE, RESID, TWO_HOP, WIDTH, refused, resolved, wrong

WITH_POST_NORMS = ("model.architecture=gemma2",)  # of which nothing is loaded here

# --- Sites --------------------------------------------------------------------------------------------------


def test_sites_of_the_whole_model_have_no_layers(tmp_path: Path) -> None:
    (embed, of_embed), (logits, of_logits) = resolved(
        tmp_path, "site: embed, value: donor, positions: index:-1", "site: logits, value: donor"
    )
    assert (embed.site, embed.layers) == ("embed", (0,))
    assert (logits.site, logits.layers, logits.positions.word) == ("logits", (8,), "index:-1")
    assert "embed: in prefill, the token embedding at the prompt's last position is replaced by" in of_embed
    assert "logits: in prefill, the row of logits at the prompt's last position" in of_logits
    cases = [
        (
            f"site: {site}, layers: 0, value: donor",
            f"w.layers: {site} is a site of the whole model and has no",
        )
        for site in ("embed", "logits")
    ]
    refused(tmp_path, cases)


def test_every_other_site_needs_layers(tmp_path: Path) -> None:
    said = wrong(tmp_path, "site: resid_mid, value: donor")
    assert "conditions.a.w.layers: missing: expected a layer index" in said
    assert len(said.splitlines()) == 1
    misspelled = wrong(tmp_path, "site: embd, value: donor")
    assert "did you mean 'embed'" in misspelled and "layers" not in misspelled


def test_sites_within_a_block(tmp_path: Path) -> None:
    sites = {
        "resid_mid": "the residual stream between attention and MLP",
        "attn_out_normed": "the attention block's output after its post-norm",
        "mlp_out_normed": "the MLP block's output after its post-norm",
    }
    texts = [f"site: {site}, layers: [2, 5], value: donor, positions: last:2" for site in sites]
    for (site, words), (found, told) in zip(
        sites.items(), resolved(tmp_path, *texts, overrides=WITH_POST_NORMS), strict=True
    ):
        assert (found.site, found.layers) == (site, (2, 5))
        assert f"at layers 2 and 5, in prefill, {words} at the prompt's last 2 positions" in told


def test_logits_are_written_where_they_are_read(tmp_path: Path) -> None:
    text = "site: logits, value: donor, positions: "
    assert "expected index:-1 (or no positions), got last:3" in wrong(tmp_path, text + "last:3")
    last, decode = resolved(tmp_path, text + "last:1", text + "last:3, during: decode, hold: cycle")
    assert last[0].positions.count == 1
    assert decode[0].positions == Positions("last", count=3)


# --- Operations ---------------------------------------------------------------------------------------------


def test_operations(tmp_path: Path) -> None:
    cases = [
        ("op: scale, alpha: 0.5", "scale", "is multiplied by 0.5."),
        ("op: project_out, value: donor", "project_out", "loses its component along that at the donor's"),
        ("op: project_out, value: random, alpha: 2", "project_out", "per position and head), times 2."),
        ("op: zero", "zero", "is set to zero."),
    ]
    found = resolved(tmp_path, *(f"{RESID}, positions: last:1, {words}" for words, _, _ in cases))
    for (_, op, sentence), (write, told) in zip(cases, found, strict=True):
        assert write.op == op
        assert sentence in told


def test_operations_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    refused(
        tmp_path,
        [
            (f"{RESID}, op: scale", "alpha: op scale multiplies by alpha, which is missing"),
            (
                f"{RESID}, op: scale, alpha: 2, value: donor",
                "op scale multiplies what is there by alpha and tak",
            ),
            (f"{RESID}, op: project_out", "value: op project_out needs a value: donor, donor:ROLE"),
            (f"{RESID}, op: project_ot, value: donor", "did you mean 'project_out'"),
            (f"{RESID}, op: set_feature, value: 4.0", "got set_feature; set_feature belongs to sae"),
            (
                f"{RESID}, op: mask",
                "expected one of replace, add, scale, project_out, zero at resid_post, got mask",
            ),
            (
                "site: kv_cache, layers: all, op: scale, alpha: 2",
                "expected one of replace, add, zero at kv_cache",
            ),
            (
                "site: attention_edge, layers: 1, value: donor, keys: all",
                "op: expected mask at attention_edge",
            ),
            (
                f"{RESID}, value: donor, unit: raw",
                "unit: unit says in what the alpha of add counts; op replace",
            ),
            (
                f"{RESID}, value: donor, op: add, unit: norm",
                "expected one of raw, resid_norm, direction_norm",
            ),
            (
                "site: kv_cache, layers: all, op: add, value: donor, unit: raw",
                "op add at kv_cache has no use",
            ),
            (f"{RESID}, value: donor, round_trip: true", "round_trip belongs to sae writes"),
            (f"{RESID}, value: donor, keys: all", "keys belongs to attention_edge writes"),
        ],
    )


def test_units_of_add(tmp_path: Path) -> None:
    units = {
        "raw": "scaled to the norm 8",
        "resid_norm": "scaled to 8 times the norm of what is there",
        "direction_norm": "times 8",
    }
    text = f"{RESID}, op: add, value: donor, positions: last:1, alpha: 8"
    for (unit, sentence), (write, told) in zip(
        units.items(), resolved(tmp_path, *(f"{text}, unit: {unit}" for unit in units)), strict=True
    ):
        assert write.unit == unit
        assert sentence in told
    assert resolved(tmp_path, text)[0][0].unit == "direction_norm"


# --- Cut edges ----------------------------------------------------------------------------------------------


def test_cut_edges(tmp_path: Path) -> None:
    (prefill, of_prefill), (decode, of_decode) = resolved(
        tmp_path,
        f"{EDGE}, positions: index:-1, keys: first:2, heads: [q0, q3]",
        f"{EDGE}, keys: first:2, during: decode",
    )
    assert prefill.value == Value("none") and prefill.keys == Positions("first", count=2)
    assert prefill.heads == Heads("query", (0, 3)) and prefill.layers == (2, 3, 4)
    assert (
        "at layers 2 to 4, in prefill, the attention (query heads 0, 3 only) of the prompt's last position "
        "to its first 2 positions is cut." in of_prefill
    )
    assert decode.keys == Positions("first", count=2)
    assert "in decode, the attention of the new token to the prompt's first 2 positions is cut." in of_decode


def test_cut_edges_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    refused(
        tmp_path,
        [
            (
                f"{EDGE}, positions: index:-1",
                "w.keys: missing: expected the positions that are no longer seen",
            ),
            (
                f"{EDGE}, keys: first:1",
                "w.positions: missing: expected the queries that no longer see `keys`",
            ),
            (f"{EDGE}, keys: frist:1, positions: index:-1", "w.keys: 'frist:1' is not a set of positions"),
            (f"{EDGE}, keys: all, positions: all, during: decode", "in decode the query is each new token"),
            (f"{EDGE}, keys: all, during: decode, hold: last", "this write has none; remove it"),
            (f"{EDGE}, keys: all, positions: all, heads: [kv0]", "expected query heads q0 to q3"),
            (
                f"{EDGE}, keys: all, positions: all, value: donor",
                "cuts what `keys` and `positions` name and takes no",
            ),
        ],
    )


def test_cut_edges_add_up_and_have_no_place_beside_another_cache(tmp_path: Path) -> None:
    first = f"v: {{{EDGE}, positions: index:-1, keys: first:1}}"
    twice = f"b: {{{first}, w: {{{EDGE}, positions: index:-1, keys: index:1}}}}"
    assert len(design("+experiment=mine", folder=body(twice, tmp_path)).condition("b").writes) == 2
    whole = f"b: {{{first}, k: {{site: kv_cache, layers: all, value: donor, align: whole}}}}"
    assert "which align whole of 'k' moves or takes away" in faults(
        "+experiment=mine", folder=body(whole, tmp_path)
    )


# --- Values -------------------------------------------------------------------------------------------------


def test_back_patching_reads_another_layer_of_the_own_run(tmp_path: Path) -> None:
    layers = {"layer:3": 3, "layer:0": 0, "layer:late": 7, "layer:84%": 8}
    found = resolved(tmp_path, *(f"{RESID}, value: '{word}', positions: index:-1" for word in layers))
    for layer, (write, told) in zip(layers.values(), found, strict=True):
        assert write.value == Value("source", SELF, layer=layer)
        assert f"is replaced by that at the prompt's own last position in layer {layer}." in told


def test_back_patching_is_read_on_the_reference_depth(tmp_path: Path) -> None:
    folder = body(f"a: {{w: {{{RESID}, value: 'layer:27'}}}}", tmp_path, rest="reference_depth: 32")
    found = design("+experiment=mine", folder=folder)
    assert found.condition("a").writes[0].value.layer == 7
    assert "layer 27 of 32 is layer 7 of 9" in found.layer_notes
    twice = "\n".join(f"{name}: {{w: {{{RESID}, value: 'layer:{i}'}}}}" for name, i in (("a", 25), ("b", 24)))
    folder = body(twice, tmp_path, rest="reference_depth: 32")
    assert "because reference_depth 32 is read on 9 layers" in faults("+experiment=mine", folder=folder)


def test_a_grid_of_source_layer_and_target_layer(tmp_path: Path) -> None:
    grid = "{w.value: [layer:6, layer:7], w.layers: [1, 2, 3]}"
    folder = body(f"a: {{w: {{site: resid_post, positions: index:-1}}, grid: {grid}}}", tmp_path)
    cells = design("+experiment=mine", folder=folder).conditions[1:]
    assert [(c.writes[0].value.layer, c.writes[0].layers[0]) for c in cells] == [
        (source, target) for source in (6, 7) for target in (1, 2, 3)
    ]
    assert cells[0].name == "a[w.value=layer:6,w.layers=1]"
    assert dict(cells[0].grid) == {"w.value": "layer:6", "w.layers": 1}
    one = design("+experiment=mine", "+conditions.a.w.value=layer:2", folder=folder)
    assert [c.writes[0].value.layer for c in one.conditions[1:]] == [2, None, 2]  # layer 2 is itself


def test_orthogonal_takes_the_row_that_it_stands_in_for(tmp_path: Path) -> None:
    found = resolved(
        tmp_path,
        f"{RESID}, value: orthogonal",
        f"{RESID}, value: 'orthogonal:self'",
        f"{RESID}, value: 'orthogonal:donor:repetitive'",
        f"{RESID}, value: orthogonal, draws: 4, positions: last:1",
        f"{RESID}, value: orthogonal, during: decode, hold: cycle, positions: last:4",
        overrides=("experiment.repeats=4",),
    )
    assert [write.value.role for write, _ in found] == ["donor", SELF, "repetitive", "donor", "donor"]
    assert {write.value.kind for write, _ in found} == {"orthogonal"}
    assert found[3][0].value.draws == 4
    assert (
        "Gaussian noise (orthogonal to that at the donor's last position, and of its norm, 4 different draws "
        "over the repeats)" in found[3][1]
    )
    assert "orthogonal to row t mod 4 of the donor's last 4 positions" in found[4][1]


def test_trap_28_orthogonal_draws_make_greedy_repeats_differ(tmp_path: Path) -> None:
    more = "~conditions.baseline", "contrasts.family=none", "sampling.temperature=0", "experiment.repeats=3"
    text = f"{RESID}, value: orthogonal, draws: 3"
    assert resolved(tmp_path, text, overrides=more)[0][0].drawn
    under = f"{RESID}, value: donor, under: b"
    assert resolved(tmp_path, under, overrides=more, more=f"b: {{v: {{{text}}}}}")[0][0].drawn
    assert "all 3 repeats of 'a'" in wrong(tmp_path, f"{RESID}, value: orthogonal", *more)


def test_values_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    refused(
        tmp_path,
        [
            (
                f"{RESID}, value: 'layer:9'",
                "value: expected a layer from 0 to 8 (the model has 9 layers), got 9",
            ),
            (f"{RESID}, value: 'layer:-1'", "value: expected a layer from 0 to 8"),
            (f"{RESID}, value: 'layer:erly'", "did you mean 'early'"),
            (f"{RESID}, value: 'layer:1-3'", "expected one layer: an index, a depth such as 84%"),
            (f"{RESID}, value: 'layer:all'", "expected one layer"),
            (f"{RESID}, value: 'layer:'", "value: expected a layer index"),
            (f"{RESID}, value: 'orthogonal:repetitiv'", "did you mean 'repetitive'"),
            (f"{RESID}, value: 'meen:targets'", "did you mean 'mean'"),
            (f"{RESID}, value: 'mean:target'", "did you mean 'targets'"),
            (f"{RESID}, value: 'mean:'", "expected the set of a mean (targets, donors, pseudo_recursive"),
            (f"{RESID}, value: 'mean:targets/facual'", "did you mean 'factual'"),
            (
                f"{RESID}, value: 'artefact:refusal'",
                "expected an artefact that an earlier stage extracts, or the path",
            ),
            (
                f"{RESID}, value: 'orthogonal:artefact:refusal'",
                "or the path of one (.safetensors), got 'refusal'",
            ),
            (f"{RESID}, value: 4.0", "a number is the value of a feature (site sae, op set_feature)"),
            (f"{RESID}, value: true", "value: expected a text or a number, got true"),
            (f"{RESID}, value: .inf", "finite"),
            (f"{RESID}, value: donor, draws: 1, hold: last", "during: prefill, remove it"),
            (
                f"{RESID}, value: 'mean:targets', draws: 5",
                "the value mean:targets is the same in every repeat",
            ),
            ("site: kv_cache, layers: all, value: 'mean:targets'", "kv_cache takes rows of a cache"),
            ("site: kv_cache, layers: all, value: 'layer:3'", "kv_cache takes rows of a cache"),
            ("site: kv_cache, layers: all, value: orthogonal", "kv_cache takes rows of a cache"),
            ("site: embed, value: 'layer:3'", "embed has no layers of which another one could be read"),
        ],
    )


def test_a_vector_needs_neither_window_nor_hold_in_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("v.npy", np.ones(WIDTH, dtype=np.float32))
    values = ("mean:targets", "file:v.npy", "orthogonal:file:v.npy")
    texts = [f"{RESID}, op: add, value: '{value}', during: decode" for value in values]
    assert {write.hold for write, _ in resolved(tmp_path, *texts)} == {None}
    refused(tmp_path, [(f"{text}, hold: last", "this write has none; remove it") for text in texts])


def test_where_a_value_comes_from_reads_as_a_sentence(tmp_path: Path) -> None:
    stream, new = "the residual stream after the layer", "the new token's residual stream after the layer"
    cases = {
        "value: donor": "at all positions of the prompt is replaced by that at all positions of the donor.",
        "value: self": "is replaced by that at all positions of the prompt itself.",
        "value: other_donor, positions: index:0": "that at another item's donor's first position.",
        "value: other_donor": "that at all positions of another item's donor.",
        "value: donor, positions: index:-3": f"{stream} at the prompt's position -3 is replaced by that at",
        "value: donor, positions: last:25%": "that at the last 25% of the donor's positions.",
        "value: 'mean:targets'": "at all their positions.",
        "value: donor, op: add, positions: last:2, alpha: -1": (
            f"{stream} at the donor's last 2 positions is added to that at the prompt's last 2 positions, "
            "times -1."
        ),
        "value: donor, op: add, during: decode, hold: lockstep": (
            f"{stream} at the donor's t-th generated token is added to that at the new token."
        ),
        "value: donor, op: add, during: decode, hold: cycle, positions: last:2": (
            f"row t mod 2 of the donor's last 2 positions is added to {new}."
        ),
        "value: random, op: add, during: decode": f"is added to {new}.",
    }
    for (text, words), (_, told) in zip(
        cases.items(), resolved(tmp_path, *(f"{RESID}, {text}" for text in cases)), strict=True
    ):
        assert words in told, text


# --- Sources under a condition ------------------------------------------------------------------------------

ABLATED = f"b: {{v: {{{RESID}, op: zero, positions: last:1, during: both}}}}"


def test_a_source_is_captured_under_the_prefill_writes_of_a_condition(tmp_path: Path) -> None:
    text = "site: resid_post, layers: 7, value: donor, positions: last:1, under: b"
    write, said = resolved(tmp_path, text, more=ABLATED)[0]
    found = write.value
    inner = Write("v", "resid_post", (4,), "zero", Value("none"), Positions("last", count=1), "prefill")
    assert found == Value("source", "donor", under=Under((inner,)))
    assert found.under is not None and found.under.name == "b"
    assert (
        "resid_post reads its source from a run of that prompt with resid_post: at layer 4, in prefill, the "
        "residual stream after the layer at the prompt's last position is set to zero." in said
    )


def test_roles_of_the_condition_underneath_are_roles_of_the_condition(tmp_path: Path) -> None:
    more = f"b: {{v: {{{RESID}, value: 'donor:repetitive'}}}}"
    folder = body(f"a: {{w: {{site: resid_post, layers: 7, value: self, under: b}}}}\n{more}", tmp_path)
    assert design("+experiment=mine", folder=folder).condition("a").roles == (SELF, "repetitive")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            "c: {}",
            "w.under: expected another condition that writes while a source is read (none), got 'b'",
        ),
        ("bb: {}", "did you mean 'bb'"),
        ("b: {}", "'b' writes nothing; a source from a clean run goes without under"),
        (
            "b: {v: {site: kv_cache, layers: all, value: donor}}",
            "'v' of 'b' writes kv_cache, which is after that",
        ),
        (f"b: {{v: {{{RESID}, op: zero, during: decode}}}}", "'v' of 'b' acts in decode only"),
        (f"b: {{v: {{{RESID}, value: donor, under: a}}}}", "'a' under 'b' under 'a'"),
        (
            f"b: {{v: {{{RESID}, value: donor, under: b}}}}",
            "b.v.under: expected another condition that writes while a source is read (a)",
        ),
    ],
)
def test_conditions_under_which_nothing_can_be_captured(tmp_path: Path, more: str, message: str) -> None:
    assert message in wrong(tmp_path, f"{RESID}, value: donor, under: b", more=more)


def test_a_mistake_of_the_condition_underneath_is_told_there_alone(tmp_path: Path) -> None:
    said = wrong(
        tmp_path,
        f"{RESID}, value: donor, under: b",
        more="b: {v: {site: resid_post, layers: 40, value: donor}}",
    )
    assert "conditions.b.v.layers: expected a layer from 0 to 8" in said and len(said.splitlines()) == 1


def test_under_needs_a_source(tmp_path: Path) -> None:
    values = ("value: random", "value: 'mean:targets'", "op: zero")
    cases = [
        (f"{RESID}, {value}, under: baseline", "w.under: under says in which condition the source is read")
        for value in values
    ]
    refused(tmp_path, cases)


def test_clean_and_treated_sources_are_different_conditions(tmp_path: Path) -> None:
    clean = f"a: {{w: {{{RESID}, value: donor}}}}\nc: {{w: {{{RESID}, value: donor, under: b}}}}\n{ABLATED}"
    found = design("+experiment=mine", folder=body(clean, tmp_path))
    assert found.condition("a").writes != found.condition("c").writes
    again = f"{clean}\nd: {{w: {{{RESID}, value: donor, under: e}}}}\n" + ABLATED.replace(
        "b: {", "e: {same_as: b, "
    )
    assert "conditions 'c' and 'd' resolve to the same" in faults(
        "+experiment=mine", folder=body(again, tmp_path)
    )


# --- Order --------------------------------------------------------------------------------------------------


def test_two_writes_on_one_tensor_need_an_order_at_every_site(tmp_path: Path) -> None:
    sites = ("embed", "resid_mid", "attn_out_normed", "mlp_out_normed", "logits")
    layers = {site: ("", "") if site in LAYERLESS else (", layers: 1", ", layers: 0-3") for site in sites}
    both = "\n".join(
        f"{site}: {{v: {{site: {site}, value: donor{one}}}, w: {{site: {site}, op: zero{other}}}}}"
        for site, (one, other) in layers.items()
    )
    said = faults("+experiment=mine", *WITH_POST_NORMS, folder=body(both, tmp_path))
    for site in sites:
        assert f"conditions.{site}.w.order: writes 'v' and 'w' change the same {site}" in said
    ordered = both.replace("donor", "donor, order: 1").replace("zero", "zero, order: 2")
    design("+experiment=mine", *WITH_POST_NORMS, folder=body(ordered, tmp_path))


def test_two_parts_of_a_text_that_overlap_need_an_order(tmp_path: Path) -> None:
    def both(first: str, second: str) -> Path:
        writes = (
            f"{name}: {{{RESID}, value: self, positions: {word}}}"
            for name, word in (("v", first), ("w", second))
        )
        return body(f"b: {{{', '.join(writes)}}}", tmp_path, rest=TWO_HOP)

    said = faults("+experiment=mine", folder=both("\"token:'is'\"", "\"token:'s'\""))
    assert "'token:'is'' and 'token:'s'' overlap, as in prompt" in said
    design("+experiment=mine", folder=both("\"token:'is'\"", "role:e1"))


# --- Ready bodies -------------------------------------------------------------------------------------------


def test_every_ready_body_resolves_in_every_language(tmp_path: Path) -> None:
    names = sorted(path.stem for path in (config_folders(None)[0] / "intervention").glob("*.yaml"))
    bodies = "".join(f"  - /intervention@conditions.{name}: {name}\n" for name in names)
    rest = f"reference_depth: 32\ndefaults:\n{bodies}  - _self_"
    folder = body("same_as_nothing: {sampling: {temperature: 0.5}}", tmp_path, rest=rest)
    for overrides in ((), ("model=mistral_7b_instruct_v0_2",)):
        found = design("+experiment=mine", *overrides, folder=folder)
        assert set(names) <= set(found.names)
        assert len({one.words for one in found.conditions}) == len(found.conditions)
