"""Words that a new user tries: near misses of positions, single heads and features, controls that cannot
control, and what the sentences must not leave out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backends import sae
from runner.config.errors import ConfigurationError
from tests.configuring import body, design, faults
from tests.writing import refused, resolved, wrong


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("lasst:16", "last:16"),
        ("Last:25%", "last:25%"),
        ("post-instruction", "post_instruction"),
        ("token:the", "token:'the'"),
        ("role:Subject", "role:subject"),
        ("-1", "index:-1"),
    ],
)
@pytest.mark.parametrize("field", ["positions", "keys"])
def test_a_near_miss_of_a_position_word_is_told_with_what_was_meant(
    tmp_path: Path, field: str, word: str, meant: str
) -> None:
    other = {"positions": "keys", "keys": "positions"}[field]
    said = wrong(
        tmp_path, f'site: attention_edge, layers: 2, op: mask, {field}: "{word}", {other}: "index:1"'
    )
    assert f"w.{field}: '{word}' is not a set of positions" in said
    assert said.endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize("word", ["last", "last:150%", "somewhere", "token:''", "first:0"])
def test_no_word_is_proposed_that_is_none_itself(tmp_path: Path, word: str) -> None:
    said = wrong(tmp_path, f'site: v_proj, layers: 2, value: donor, positions: "{word}"')
    assert "is not a set of positions" in said and "did you mean" not in said


def test_a_single_head_goes_without_brackets_so_that_a_grid_can_run_over_heads(tmp_path: Path) -> None:
    ((bare, of_bare), (listed, of_listed)) = resolved(
        tmp_path,
        "site: head_z, layers: 2, op: zero, heads: q1",
        "site: head_z, layers: 3, op: zero, heads: [q1]",
    )
    assert bare.heads is not None and bare.heads == listed.heads
    assert of_bare == of_listed.replace("layer 3", "layer 2")
    found = design(
        "+experiment=mine",
        folder=body("c: {w: {site: head_z, layers: 2, op: zero}, grid: {w.heads: [q0, q3]}}", tmp_path),
    )
    for name in ("q0", "q3"):
        (write,) = found.condition(f"c[w.heads={name}]").writes
        assert write.heads is not None and write.heads.indices == (int(name[1:]),)


@pytest.mark.parametrize(("heads", "got"), [("1", "1"), ("[1]", "1"), ("true", "true")])
def test_a_head_without_its_kind_is_refused(tmp_path: Path, heads: str, got: str) -> None:
    said = wrong(tmp_path, f"site: head_z, layers: 2, op: zero, heads: {heads}")
    assert said.endswith(f"expected a list such as [q0, q3] or [kv1], got {got}")


def _sae(folder: Path) -> Path:
    decoder = np.random.default_rng(0).standard_normal((8, 64), dtype=np.float32)
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    conventions = sae.Conventions(
        site="resid_post",
        layer=5,
        model=None,
        activation="relu",
        k=None,
        apply_b_dec_to_input=False,
        input_scale=1.0,
        decoder_norms="folded",
        dtype="float32",
    )
    zeros = {"b_enc": np.zeros(8, dtype=np.float32), "b_dec": np.zeros(64, dtype=np.float32)}
    sae.save(
        folder / "sae", sae.Sae(conventions, encoder=decoder.T, decoder=decoder, **zeros, thresholds=None)
    )
    return folder / "sae"


def test_a_grid_runs_over_features_and_values(tmp_path: Path) -> None:
    words = f"site: sae, sae: {_sae(tmp_path)}, op: set_feature"
    grid = "{w.features: [3, 5], w.value: [2, 4.5]}"
    found = design("+experiment=mine", folder=body(f"c: {{w: {{{words}}}, grid: {grid}}}", tmp_path))
    cells = {
        (write.features.indices, write.value.number)
        for condition in found.conditions
        for write in condition.writes
        if write.features is not None
    }
    assert cells == {((feature,), value) for feature in (3, 5) for value in (2.0, 4.5)}


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ("-3", "w.features: expected at least 0, got -3"),
        ("[2, -3]", "w.features.1: expected at least 0, got -3"),
        ("true", "w.features: expected a list, got true"),
        ("x", "w.features: expected a whole number, got 'x'"),
        ("8", "w.features: expected features from 0 to 7, got 8"),
    ],
)
def test_what_is_no_feature_is_refused(tmp_path: Path, features: str, said: str) -> None:
    assert said in wrong(tmp_path, f"site: sae, sae: {_sae(tmp_path)}, features: {features}, op: zero")


def test_a_feature_is_not_scaled_below_zero(tmp_path: Path) -> None:
    words = f"site: sae, sae: {_sae(tmp_path)}, features: 3, op: scale"
    said = wrong(tmp_path, f"{words}, alpha: -1")
    assert "w.alpha: expected a factor that leaves features what they can be, 0 or more, got -1" in said
    ((write, _),) = resolved(tmp_path, f"{words}, alpha: 0.5")
    assert write.alpha == 0.5


def test_a_shuffled_window_of_one_row_is_no_control(tmp_path: Path) -> None:
    one_row = ("last:1", "first:1", "index:-2", "token:'the'")
    site = "site: resid_post, layers: 3, value: shuffled_window"
    refused(
        tmp_path,
        [(f'{site}, positions: "{word}"', f"a window of one row ({word}) has no order") for word in one_row],
    )
    longer = resolved(tmp_path, f"{site}, positions: last:2", f"{site}, positions: first:10%")
    assert [write.value.kind for write, _ in longer] == ["shuffled_window", "shuffled_window"]


def test_what_a_shuffle_is_drawn_from_is_told_with_all_that_it_can_be(tmp_path: Path) -> None:
    site = "site: resid_post, layers: 3, positions: last:4"
    sources = "donor, other_donor, self, donor:pseudo_recursive, donor:repetitive, donor:length_matched"
    refused(
        tmp_path,
        [
            (f"{site}, value: shuffled_window:nobody", f"expected a source ({sources}), got 'nobody'"),
            (
                f"{site}, value: orthogonal:selff",
                f"({sources}, file:PATH), got 'selff'; did you mean 'self'?",
            ),
            (f'{site}, value: "shuffled_window:"', "expected what shuffled_window is drawn from"),
            (f'{site}, value: "orthogonal:"', "expected what orthogonal is drawn from"),
        ],
    )


def test_sentences_leave_out_nothing_that_makes_a_difference(tmp_path: Path) -> None:
    kv = "site: kv_cache, layers: all"
    told = [
        words
        for _, words in resolved(
            tmp_path,
            f"{kv}, value: donor, align: concat",
            f"{kv}, value: donor, align: concat, rope: keep",
            f"{kv}, value: random, draws: 2",
            'site: resid_post, layers: 2, value: "layer:5", during: decode, hold: lockstep',
            overrides=["experiment.repeats=2"],
        )
    ]
    assert "the prompt's keys re-rotated to their new slots, before" in told[0]
    assert "the prompt's keys keeping their rotary positions, before" in told[1]
    assert "per position and head, 2 different draws over the repeats) replaces" in told[2]
    assert "is replaced by that at the prompt's own t-th generated token in layer 5." in told[3]


def test_a_wrong_word_beside_a_wrong_value_is_told_too(tmp_path: Path) -> None:
    said = wrong(tmp_path, "site: v_proj, layers: 99, value: doner, positions: lats:3, during: decoding")
    for field in ("layers", "value", "positions", "during"):
        assert f"conditions.a.w.{field}: " in said


def test_a_configuration_error_has_one_problem_for_each_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        design(
            "+experiment=mine",
            folder=body(
                "a: {w: {site: v_proj, layers: 2, value: donor, positions: lats:3, hold: last}}", tmp_path
            ),
        )
    assert len(caught.value.problems) == 2


def test_what_is_wrong_in_every_cell_of_a_grid_is_told_once(tmp_path: Path) -> None:
    grid = "grid: {w.layers: [1, 2, 99], w.during: [prefill, both]}"
    said = faults(
        "+experiment=mine",
        folder=body(f"c: {{w: {{site: v_proj, op: zero, heads: q9}}, {grid}}}", tmp_path),
    ).splitlines()
    assert [line for line in said if "heads" in line] == [
        f"{tmp_path}/experiment/mine.yaml: conditions.c.w.heads: expected key-value heads kv0 to kv1 "
        "(v_proj of organism has 2), got 'q9'"
    ]
    beyond = [line for line in said if "got 99" in line]  # in two cells of six: each is named
    assert len(beyond) == 2 and all("conditions.c[w.layers=99,w.during=" in line for line in beyond)


def test_removing_what_is_not_there_is_not_answered_with_how_to_add_it(tmp_path: Path) -> None:
    folder = body("steer: {w: {site: v_proj, layers: 2, op: zero}}", tmp_path)
    said = faults("+experiment=mine", "~conditions.ster", folder=folder)
    assert "unknown key 'ster' of conditions; did you mean 'steer'?" in said and "added" not in said
    assert "a new key is added with" in faults("+experiment=mine", "conditions.ster=1", folder=folder)
