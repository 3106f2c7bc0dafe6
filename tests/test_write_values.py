"""Values of writes that are read from prompts, files and SAEs: means, vectors, features."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from backends.sae import Sae, save
from backends.sae import read as read_sae
from backends.sae.types import Conventions
from backends.tokenizer import Tokenizer
from backends.writes import Features, Value
from runner.config.errors import ConfigurationError
from runner.config.folders import config_folders
from runner.config.resolve import Design
from runner.config.writes.values import NamedSet
from runner.config.writes.vectors import constant_of
from runner.keys import canonical
from runner.prompts.pairing import choose, read_banks
from runner.prompts.sets import with_sets
from tests.configuring import body, design, faults
from tests.test_roles import ORGANISM
from tests.writing import RESID, TWO_HOP, WIDTH, refused, resolved, vector, wrong

# --- Means --------------------------------------------------------------------------------------------------


def test_a_mean_names_the_prompts_of_a_choice(tmp_path: Path) -> None:
    choices = {
        "targets": ("targets", "all", "all"),
        "donors": ("donors", ("L3", "L4", "L5"), "all"),
        "donors/L4": ("donors", ("L4",), "all"),
        "length_matched": ("plain", "all", "all"),
    }
    text = f"{RESID}, op: add, alpha: -1, positions: last:2, value: "
    found = resolved(tmp_path, *(f"{text}'mean:{word}'" for word in choices))
    for (word, expected), (write, _) in zip(choices.items(), found, strict=True):
        named = write.value.prompts
        assert isinstance(named, NamedSet) and named.name == word
        assert (named.choice.bank, named.choice.groups, named.choice.split) == expected
    assert (
        "the mean over the prompts of bank 'donors' (group L4) at their last 2 positions is added to the "
        "residual stream after the layer at the prompt's last 2 positions, times -1." in found[2][1]
    )


def test_means_over_the_same_prompts_are_the_same_value(tmp_path: Path) -> None:
    conditions = (
        f"a: {{w: {{{RESID}, value: 'mean:length_matched'}}}}\nb: {{w: {{{RESID}, value: 'mean:again'}}}}"
    )
    folder = body(conditions, tmp_path, rest="prompts: {roles: {again: {bank: plain, match: random}}}")
    assert "conditions 'a' and 'b' resolve to the same" in faults("+experiment=mine", folder=folder)
    other = conditions.replace("mean:again", "mean:pseudo_recursive")
    design("+experiment=mine", folder=body(other, tmp_path))
    taken = body("a: {}", tmp_path, rest="prompts: {roles: {targets: {bank: plain}}}")
    assert "'targets' is the name of a set already" in faults("+experiment=mine", folder=taken)


def read(found: Design, tokenizer: Tokenizer = ORGANISM) -> Design:
    banks = read_banks(found.prompts, config_folders(None))
    return with_sets(found, choose(found.prompts, banks), tokenizer)


def test_the_prompts_of_a_mean_become_distinct_token_ids(tmp_path: Path) -> None:
    text = f"{RESID}, value: 'mean:donors/L3', positions: last:2"
    more = f"b: {{w: {{{RESID}, value: donor, under: a}}}}"
    found = design("+experiment=mine", folder=body(f"a: {{w: {{{text}}}}}\n{more}", tmp_path))
    filled = read(found)
    prompts = filled.condition("a").writes[0].value.prompts
    assert prompts is not None and not isinstance(prompts, NamedSet) and not prompts.spans
    banks = choose(found.prompts, read_banks(found.prompts, config_folders(None)))
    texts = [prompt.text for prompt in banks.donors if prompt.group == "L3"]
    assert prompts.prompts == tuple(dict.fromkeys(ORGANISM.encode(text) for text in texts))
    under = filled.condition("b").writes[0].value.under
    assert under is not None and under.writes[0].value.prompts == prompts
    assert filled.condition("a").words == found.condition("a").words


def test_a_mean_leaves_no_prompt_out(tmp_path: Path) -> None:
    text = f"a: {{w: {{{RESID}, value: 'mean:targets', positions: last:999}}}}"
    found = design("+experiment=mine", folder=body(text, tmp_path))
    with pytest.raises(ConfigurationError, match=r"conditions.a.w.value: a mean over targets cannot take in"):
        read(found)


def test_a_mean_at_a_span_counts_on_the_span_of_each_prompt(tmp_path: Path) -> None:
    text = f"a: {{w: {{{RESID}, value: 'mean:targets', positions: role:e1, during: decode}}}}"
    found = design("+experiment=mine", folder=body(text, tmp_path, rest=TWO_HOP))
    prompts = read(found).condition("a").writes[0].value.prompts
    assert prompts is not None and len(prompts.spans) == len(prompts.prompts)
    ids, (name, (start, end)) = prompts.prompts[0], prompts.spans[0][0]
    assert name == "e1" and 0 < start < end <= len(ids)
    text = text.replace("mean:targets", "mean:repetitive")
    assert "a mean over repetitive at role:e1 would leave out 48 of its 48 prompts: " in faults(
        "+experiment=mine", folder=body(text, tmp_path, rest=TWO_HOP)
    )


# --- Vectors in files ---------------------------------------------------------------------------------------


def test_a_vector_is_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("v.npy", vector())
    save_file({"direction": vector()}, "v.safetensors")
    np.save("layers.npy", vector(1, 9, WIDTH))
    text = f"{RESID}, op: add, value: "
    (one, said), (other, _), (orthogonal, _), (layered, _) = resolved(
        tmp_path,
        f"{text}file:v.npy, positions: last:1",
        f"{text}'file:{tmp_path}/v.safetensors', positions: last:2",
        f"{text}'orthogonal:file:v.npy'",
        f"{text}file:layers.npy",
    )
    assert one.value.kind == "constant" and one.value.constant is not None
    np.testing.assert_array_equal(one.value.constant.at(4), vector())
    assert one.value == other.value  # by content, wherever it lies
    assert orthogonal.value == Value("orthogonal", constant=one.value.constant)
    assert f"the vector in 'v.npy' (sha256 {one.value.constant.digest[:12]}) is added to" in said
    assert layered.value.constant is not None
    np.testing.assert_array_equal(layered.value.constant.at(4), vector(1, 9, WIDTH)[4])


@pytest.mark.parametrize("kind", ["<f8", ">f4", "<f2"])
def test_the_number_format_of_a_file_is_no_part_of_its_content(tmp_path: Path, kind: str) -> None:
    exact = np.arange(1, 9, dtype=np.float32)
    np.save(tmp_path / "a.npy", exact)
    np.save(tmp_path / "b.npy", exact.astype(kind))
    one, other = (constant_of(str(tmp_path / name), ((8,),)) for name in ("a.npy", "b.npy"))
    assert one == other and other.array.dtype == np.float32
    np.save(tmp_path / "c.npy", exact + 1)
    assert constant_of(str(tmp_path / "c.npy"), ((8,),)) != one


def test_bfloat16_is_read(tmp_path: Path) -> None:
    exact = np.array([1.0, -2.5, 0.0078125, 3e38], dtype=np.float32)
    halves = (exact.view("<u4") >> 16).astype("<u2").tobytes()
    header = json.dumps({"v": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "v.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + halves)
    found = constant_of(str(tmp_path / "v.safetensors"), ((4,),)).array
    np.testing.assert_allclose(found, exact, rtol=2**-7)


def test_the_width_of_a_vector_is_that_of_its_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    widths = {"resid_mid": 64, "v_proj": 32, "k_proj": 32, "q_proj": 64, "head_z": 64, "mlp_out": 64}
    for width in (32, 33, 64, 65):
        np.save(f"{width}.npy", vector(0, width))
    texts = [f"site: {site}, layers: 1, value: file:%d.npy" for site in widths]
    found = resolved(tmp_path, *(t % width for t, width in zip(texts, widths.values(), strict=True)))
    assert all(write.value.constant is not None for write, _ in found)
    cases = [
        (text % (width + 1), f"expected numbers of shape [{width}] or [9, {width}], got [{width + 1}]")
        for text, width in zip(texts, widths.values(), strict=True)
    ]
    refused(tmp_path, cases)


def test_trap_16_a_zero_or_undefined_direction_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    layered = vector(1, 9, WIDTH)
    layered[4] = 0
    undefined = vector()
    undefined[3] = np.nan
    for name, array in (("zero", np.zeros(WIDTH, "f4")), ("layered", layered), ("nan", undefined)):
        np.save(f"{name}.npy", array)
    np.save("huge.npy", np.full(WIDTH, 1e300))
    text = f"{RESID}, op: add, value: "
    refused(
        tmp_path,
        [
            (text + "file:zero.npy", "the vector in 'zero.npy' is zero, which is no direction"),
            (text + "file:layered.npy", "is zero at layer 4"),
            (text + "file:nan.npy", "expected finite numbers (in float32), got 1 in 'nan.npy'"),
            (text + "'orthogonal:file:huge.npy'", "got 64 in 'huge.npy'"),
        ],
    )
    beside = resolved(tmp_path, "site: resid_post, layers: 5, op: add, value: file:layered.npy")
    assert beside[0][0].layers == (5,)


def test_files_that_hold_no_vector_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("ints.npy", np.arange(WIDTH))
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    Path("text.npy").write_text("no array")
    Path("cut.safetensors").write_bytes(b"\x08\x00")
    save_file({"a": vector(), "b": vector()}, "two.safetensors")
    save_file({"a": np.arange(WIDTH)}, "ints.safetensors")
    Path("folder.npy").mkdir()
    expected: Mapping[str, str] = {
        "none.npy": f"found no 'none.npy' in {tmp_path}",
        "v.pt": "expected a file that ends in .npy or .safetensors, got 'v.pt'",
        "ints.npy": "expected floating point numbers in 'ints.npy', got int64",
        "objects.npy": "is no .npy file of numbers",
        "text.npy": "is no .npy file of numbers",
        "cut.safetensors": "is no safetensors file",
        "two.safetensors": "expected one tensor in 'two.safetensors', got 2: a, b",
        "ints.safetensors": "got I64",
        "folder.npy": "cannot be read",
        "": "expected file:PATH, got no path",
    }
    refused(tmp_path, [(f"{RESID}, value: 'file:{path}'", said) for path, said in expected.items()])


def test_a_misspelled_site_says_nothing_of_the_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("v.npy", vector(0, 32))
    said = wrong(tmp_path, "site: v_prj, layers: 1, value: file:v.npy")
    assert "did you mean 'v_proj'" in said and len(said.splitlines()) == 1


# --- Features -----------------------------------------------------------------------------------------------

FEATURE = "site: sae, sae: dictionary, op: set_feature, positions: index:-1"


@pytest.fixture
def dictionary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An SAE of eight features in the folder where the command runs: feature i needs more than i / 10."""
    monkeypatch.chdir(tmp_path)
    conventions = Conventions("resid_post", 5, None, "jumprelu", None, False, 1.0, "free", "float32")
    thresholds = np.arange(8, dtype=np.float32) / 10
    made = Sae(conventions, vector(0, WIDTH, 8), vector(1, 8), vector(2, 8, WIDTH), vector(3), thresholds)
    save(tmp_path / "dictionary", made)
    return tmp_path / "dictionary"


def test_features_are_those_of_the_sae_in_its_folder(tmp_path: Path, dictionary: Path) -> None:
    np.save("means.npy", np.array([0.5, 2.0], dtype=np.float32))
    (one, of_one), (kept, _), (donor, of_donor), (_, of_zero), (same, of_same) = resolved(
        tmp_path,
        f"{FEATURE}, features: [3], value: 4.0",
        f"{FEATURE}, features: [6, 2], value: file:means.npy",
        f"{FEATURE}, features: [3, 1], value: donor, round_trip: true",
        f"{FEATURE.replace('set_feature', 'zero')}, features: [3]",
        f"{FEATURE.replace('set_feature', 'scale, alpha: 1')}, features: [0], round_trip: true",
    )
    found = read_sae(dictionary)
    assert one.layers == (5,) and one.tensor == "resid_post"
    assert one.features == Features("", found.fingerprint, "resid_post", (3,))
    assert one.features is not None and Path(one.features.folder) == dictionary
    assert one.value == Value("number", number=4.0) and not one.round_trip
    assert kept.features is not None and kept.features.indices == (6, 2)  # in the order of the file's values
    assert donor.value == Value("source", "donor") and donor.round_trip
    named = f"feature 3 of the SAE {found.fingerprint[:12]} of resid_post is set to 4"
    assert f"at layer 5, in prefill, at the prompt's last position, {named}; what the SAE does not" in of_one
    assert (
        "last position, the features 3, 1 of the SAE" in of_donor
        and "are set to their values at the donor's last position; the SAE's reconstruction takes" in of_donor
    )
    assert "at the prompt's last position, feature 3 of the SAE" in of_zero and "is set to zero;" in of_zero
    assert (same.op, same.alpha) == ("scale", 1.0) and "is multiplied by 1; the" in of_same


def test_trap_14_values_that_no_feature_has_are_refused_or_flagged(tmp_path: Path, dictionary: Path) -> None:
    np.save("low.npy", np.array([0.5, 0.55], dtype=np.float32))
    np.save("below.npy", np.array([0.5, -0.55], dtype=np.float32))
    low, fine, zero = (
        words
        for _, words in resolved(
            tmp_path,
            f"{FEATURE}, features: [2, 7], value: file:low.npy",
            f"{FEATURE}, features: [2, 7], value: 0.75",
            f"{FEATURE}, features: [2, 7], value: 0",
        )
    )
    assert "Feature 7: 0.55 is not above its threshold, 0.7" in low and "Feature 2" not in low
    assert "threshold" not in fine and "threshold" not in zero
    refused(
        tmp_path,
        [
            (f"{FEATURE}, features: [2], value: -1", "expected a value that a feature can have, 0 or more"),
            (f"{FEATURE}, features: [2, 7], value: file:below.npy", "0 or more, got -0.55 in 'below.npy'"),
        ],
    )


def test_features_that_do_not_fit_are_refused(tmp_path: Path, dictionary: Path) -> None:
    np.save("wide.npy", vector())
    refused(
        tmp_path,
        [
            (f"{FEATURE}, features: [8], value: 1", "w.features: expected features from 0 to 7, got 8"),
            (f"{FEATURE}, features: [1, 1], value: 1", "w.features: expected features that differ, got 1"),
            (f"{FEATURE}, features: [], value: 1", "w.features: expected at least one feature"),
            (f"{FEATURE}, value: 1", "w.features: missing: expected a list of features"),
            ("site: sae, op: zero, features: [1]", "w.sae: missing: expected the folder of the SAE"),
            (
                f"{FEATURE.replace('dictionary', 'nowhere')}, features: [1], value: 1",
                "w.sae: expected the fold",
            ),
            (
                f"{FEATURE}, features: [1], value: 1, layers: 5",
                "the layer of an sae write is the one that its",
            ),
            (f"{FEATURE}, features: [1]", "op set_feature needs a value: a number, donor, donor:ROLE"),
            (
                f"{FEATURE}, features: [1], value: random",
                "expected the value of a feature: a number, a donor's",
            ),
            (f"{FEATURE}, features: [1], value: 'layer:3'", "expected the value of a feature: a number"),
            (f"{FEATURE}, features: [1, 2], value: file:wide.npy", "expected numbers of shape [2], got [64]"),
            (
                f"{FEATURE.replace('set_feature', 'add')}, features: [1], value: 1",
                "set_feature, scale, zero at",
            ),
            (f"{FEATURE}, features: [1], value: 1, heads: [q0]", "sae is not divided into heads"),
        ],
    )
    other = "model.width=32", "model.head_width=8"
    assert "expected an SAE of width 32 at a layer from 0 to 8" in wrong(
        tmp_path, f"{FEATURE}, features: [1], value: 1", *other
    )


def test_features_meet_writes_at_the_site_of_their_sae(tmp_path: Path, dictionary: Path) -> None:
    feature = f"v: {{{FEATURE}, features: [1], value: 1}}"
    lines = (
        f"a: {{{feature}, w: {{site: resid_post, layers: all, value: donor}}}}\n"
        f"b: {{{feature}, w: {{site: resid_post, layers: 4, value: donor}}}}"
    )
    said = faults("+experiment=mine", folder=body(lines, tmp_path))
    assert "conditions.a.w.order: writes 'v' and 'w' change the same resid_post" in said
    assert "conditions.b" not in said


def test_a_grid_of_sets_of_features(tmp_path: Path, dictionary: Path) -> None:
    text = f"a: {{w: {{{FEATURE}, value: 2}}, grid: {{w.features: [[1, 2], 3]}}}}"
    cells = design("+experiment=mine", folder=body(text, tmp_path)).conditions[1:]
    found = [(c.name, c.writes[0].features and c.writes[0].features.indices) for c in cells]
    assert found == [("a[w.features=1+2]", (1, 2)), ("a[w.features=3]", (3,))]


def test_a_number_in_quotes_is_told(tmp_path: Path, dictionary: Path) -> None:
    said = wrong(tmp_path, f"{FEATURE}, features: [1], value: '4'")
    assert "in quotes it is a text, without them a number" in said


def test_a_grid_of_features_and_values(tmp_path: Path, dictionary: Path) -> None:
    text = f"a: {{w: {{{FEATURE}, features: [1]}}, grid: {{w.value: [0, 1.5, donor]}}}}"
    cells = design("+experiment=mine", folder=body(text, tmp_path)).conditions[1:]
    assert [(c.writes[0].value.kind, c.writes[0].value.number) for c in cells] == [
        ("number", 0.0),
        ("number", 1.5),
        ("source", None),
    ]


def test_the_folder_of_an_sae_is_no_part_of_a_key(tmp_path: Path, dictionary: Path) -> None:
    text = f"{FEATURE}, features: [1], value: 1"
    write = resolved(tmp_path, text)[0][0]
    assert write.features is not None
    moved = replace(write, features=replace(write.features, folder="/elsewhere"))
    changed = replace(write, features=replace(write.features, fingerprint="0"))
    assert canonical(moved) == canonical(write) != canonical(changed)
