"""Sparse autoencoders: the formulas, the files, and writes to features in a model that runs."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from backends import sae
from backends.contract import BackendError
from backends.positions import Positions
from backends.rows import Row
from backends.sae import Conventions, Sae, SaeError
from backends.torch.backend import TorchBackend
from backends.torch.features import (
    FeatureSet,
    FeatureStore,
    SaeTensors,
    check_features,
    feature_activations,
    feature_write,
)
from backends.writes import Features, PromptSet, Value, Write
from tests.models import CPU, GREEDY, make_model, prompt

WIDTH, FEATURES, LAYER = 32, 80, 1  # the width is that of tests.models
HERE = torch.device("cpu")
PLAIN = Conventions("resid_post", LAYER, None, "relu", None, False, 1.0, "free", "float32")
CONVENTIONS = {
    "relu": PLAIN,
    "relu_folded": replace(PLAIN, decoder_norms="folded"),
    "relu_minus_b_dec": replace(PLAIN, apply_b_dec_to_input=True, input_scale=0.4),
    "jumprelu": replace(PLAIN, activation="jumprelu"),
    "jumprelu_scaled_by_norm": replace(
        PLAIN, activation="jumprelu", input_scale=2.5, decoder_norms="counted"
    ),
    "topk": replace(PLAIN, activation="topk", k=7, input_scale=3.0),
    "topk_by_norm": replace(PLAIN, activation="topk", k=7, decoder_norms="counted"),
}


def made(conventions: Conventions = PLAIN, seed: int = 0) -> Sae:
    """A random SAE; about a third of its features are active."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    decoder = normal(FEATURES, WIDTH) * rng.uniform(0.05, 0.4, (FEATURES, 1)).astype(np.float32)
    if conventions.decoder_norms == "folded":
        decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    return Sae(
        conventions,
        encoder=normal(WIDTH, FEATURES),
        b_enc=normal(FEATURES),
        decoder=decoder,
        b_dec=normal(WIDTH),
        thresholds=(
            rng.uniform(0.2, 3.0, FEATURES).astype(np.float32)
            if conventions.activation == "jumprelu"
            else None
        ),
    )


def inputs(rows: int = 40, seed: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, WIDTH), dtype=np.float32)


def by_hand(each: Sae, x: np.ndarray) -> np.ndarray:
    """Activations of one row, one feature at a time."""
    c = each.conventions
    pre, norm = [], []
    for i in range(each.features):
        total = float(each.b_enc[i])
        for j in range(each.width):
            taken = float(each.b_dec[j]) if c.apply_b_dec_to_input else 0.0
            total += (c.input_scale * float(x[j]) - taken) * float(each.encoder[j, i])
        pre.append(total)
        norm.append(math.sqrt(sum(float(d) ** 2 for d in each.decoder[i])))
    score = [p * n if c.decoder_norms == "counted" else p for p, n in zip(pre, norm, strict=True)]
    if c.activation == "topk":
        chosen = set(sorted(range(each.features), key=lambda i: -score[i])[: c.k])
        return np.array([p if i in chosen and p > 0 else 0.0 for i, p in enumerate(pre)])
    least = [0.0] * each.features if each.thresholds is None else each.thresholds.tolist()
    return np.array([p if s > t else 0.0 for p, s, t in zip(pre, score, least, strict=True)])


# The formulas


@pytest.mark.parametrize("name", CONVENTIONS)
def test_encode_and_decode_follow_the_conventions(name):
    each, x = made(CONVENTIONS[name]), inputs(4)
    found = sae.encode(each, x)
    assert 0 < (found > 0).mean() < 0.7
    for row, active in zip(x, found, strict=True):
        expected = by_hand(each, row)
        np.testing.assert_allclose(active, expected, atol=1e-9)
        total = each.b_dec.astype(float) + sum(a * d for a, d in zip(expected, each.decoder, strict=True))
        np.testing.assert_allclose(
            sae.decode(each, active[None])[0], total / each.conventions.input_scale, atol=1e-5
        )


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("round_trip", [False, True])
def test_writes_in_torch_equal_the_reference(name, round_trip):
    each, x = made(CONVENTIONS[name]), inputs()
    whole, chosen = SaeTensors.of(each, HERE), (41, 3, 66)
    found = feature_activations(whole, torch.from_numpy(x)).numpy()
    expected = sae.encode(each, x)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    values = np.random.default_rng(4).uniform(0, 3, (len(x), 3)).astype(np.float32)
    for given in (values, values[:1]):
        new = feature_write(
            whole,
            torch.from_numpy(x),
            torch.tensor(chosen),
            torch.from_numpy(given),
            round_trip=round_trip,
        )
        reference = sae.set_features(each, x, chosen, given, round_trip=round_trip)
        np.testing.assert_allclose(new.numpy(), reference, atol=1e-4)


@pytest.mark.parametrize("name", ["relu_minus_b_dec", "jumprelu_scaled_by_norm", "topk"])
@pytest.mark.parametrize("round_trip", [False, True])
def test_rows_with_features_of_their_own_equal_one_row_at_a_time(name, round_trip):
    whole, x = SaeTensors.of(made(CONVENTIONS[name]), HERE), torch.from_numpy(inputs(12))
    indices = torch.stack([torch.randperm(FEATURES, generator=torch.manual_seed(i))[:2] for i in range(12)])
    values = torch.rand(12, 2)
    together = feature_write(whole, x, indices, values, round_trip=round_trip)
    for row in range(12):
        cut = slice(row, row + 1)
        alone = feature_write(whole, x[cut], indices[row], values[cut], round_trip=round_trip)
        torch.testing.assert_close(together[cut], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_own_activation_is_a_no_op_and_ops_are_what_they_set(name):
    whole, x = SaeTensors.of(made(CONVENTIONS[name]), HERE), torch.from_numpy(inputs())
    chosen = torch.tensor([5, 17, 40, 60])
    own = feature_activations(whole, x, chosen)
    assert (own > 0).any()
    same = feature_write(whole, x, chosen, own)
    assert (same - x).abs().max() <= 1e-5 * x.abs().max()
    assert torch.equal(feature_write(whole, x, chosen, None, op="scale"), x)
    zeroed = feature_write(whole, x, chosen, None, op="zero")
    torch.testing.assert_close(zeroed, feature_write(whole, x, chosen, torch.zeros(1, 4)))
    doubled = feature_write(whole, x, chosen, None, op="scale", alpha=2.0)
    torch.testing.assert_close(doubled - x, x - zeroed, atol=1e-5, rtol=0)
    assert (zeroed - x).abs().max() > 1e-2


def test_low_precision_rows_keep_their_dtype():
    whole, x = SaeTensors.of(made(), HERE), torch.from_numpy(inputs()).bfloat16()
    new = feature_write(whole, x, torch.tensor([5]), torch.tensor([[2.0]]))
    exact = feature_write(whole, x.float(), torch.tensor([5]), torch.tensor([[2.0]]))
    assert new.dtype == torch.bfloat16
    assert torch.equal(new, exact.bfloat16())


def test_features_that_tie_with_the_kth_are_all_active():
    each = made(CONVENTIONS["topk"])
    encoder = np.repeat(each.encoder[:, :10], 8, axis=1)  # each feature eight times, k is 7
    tied = replace(each, encoder=encoder, b_enc=np.repeat(each.b_enc[:10], 8))
    x = inputs(6)
    found = sae.encode(tied, x)
    assert ((found > 0).sum(axis=1) == 8).all()
    torched = feature_activations(SaeTensors.of(tied, HERE), torch.from_numpy(x)).numpy()
    assert ((torched > 0) == (found > 0)).all()


# The files


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_saved_is_what_is_loaded(tmp_path, name, dtype):
    each = made(replace(CONVENTIONS[name], dtype=dtype, model="a1b2"))
    description = sae.save(tmp_path / "it", each)
    assert sae.read(tmp_path / "it") == description
    assert (description.features, description.width) == (FEATURES, WIDTH)
    assert (description.site, description.layer) == ("resid_post", LAYER)
    loaded = sae.load(tmp_path / "it")
    assert loaded.conventions == each.conventions
    for key, array in loaded.arrays().items():
        stored = torch.from_numpy(np.array(each.arrays()[key])).to(getattr(torch, dtype)).float().numpy()
        assert (array == stored).all(), key
    few, whole = sae.choose(tmp_path / "it", (41, 3)), loaded.choose((41, 3))
    for key in ("encoder", "b_enc", "decoder", "b_dec", "thresholds"):
        np.testing.assert_array_equal(getattr(few, key), getattr(whole, key))


def test_the_file_is_one_that_safetensors_reads(tmp_path):
    from safetensors.torch import load_file as load_torch

    sae.save(tmp_path / "it", made(replace(PLAIN, dtype="bfloat16")))
    found = load_torch(tmp_path / "it" / "weights.safetensors")
    assert found["encoder"].dtype == torch.bfloat16
    assert (found["encoder"].float().numpy() == sae.load(tmp_path / "it").encoder.T).all()


def test_a_saved_sae_is_never_overwritten_and_a_weight_never_overflows(tmp_path):
    sae.save(tmp_path / "it", made())
    with pytest.raises(SaeError, match="exists already"):
        sae.save(tmp_path / "it", made(seed=1))
    big = made(replace(PLAIN, dtype="float16"))
    big.b_enc[3] = 1e6
    with pytest.raises(SaeError, match="b_enc: has values that are too large for float16"):
        sae.save(tmp_path / "big", big)
    assert not (tmp_path / "big").exists()


def test_a_folder_of_no_known_format_is_refused_with_what_was_looked_for(tmp_path):
    (tmp_path / "cfg.json").write_text("{}")
    with pytest.raises(SaeError, match=r"looked for sae\.json and weights\.safetensors .*found cfg\.json"):
        sae.read(tmp_path)
    with pytest.raises(SaeError, match="found no folder"):
        sae.read(tmp_path / "nowhere")


def test_the_fingerprint_stands_for_weights_and_conventions(tmp_path):
    first = sae.save(tmp_path / "a", made()).fingerprint
    assert sae.save(tmp_path / "b", made()).fingerprint == first
    assert sae.save(tmp_path / "c", made(seed=1)).fingerprint != first
    assert sae.save(tmp_path / "d", made(replace(PLAIN, input_scale=2.0))).fingerprint != first


def test_weights_that_do_not_fit_are_refused_all_at_once(tmp_path):
    sae.save(tmp_path / "it", made())
    path = tmp_path / "it" / "weights.safetensors"
    arrays = load_file(path)
    arrays["b_enc"] = arrays["b_enc"][:-1]
    arrays["threshold"] = arrays.pop("b_dec")
    save_file(arrays, path)
    with pytest.raises(SaeError) as caught:
        sae.read(tmp_path / "it")
    for part in ("b_dec: missing", "threshold: activation relu has", "b_enc: expected [80]", "got [79]"):
        assert part in str(caught.value)


def test_corrupt_weights_and_values_that_are_not_finite_are_refused(tmp_path):
    sae.save(tmp_path / "it", made())
    path = tmp_path / "it" / "weights.safetensors"
    arrays = load_file(path)
    arrays["decoder"][7, 2] = np.nan
    save_file(arrays, path)
    with pytest.raises(SaeError, match="decoder: has values that are not finite"):
        sae.load(tmp_path / "it")
    with pytest.raises(SaeError, match="decoder: has values that are not finite"):
        sae.choose(tmp_path / "it", (7,))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SaeError, match="cannot be read"):
        sae.read(tmp_path / "it")


@pytest.mark.parametrize("indices", [(), (3, 80), (-1,), (3, 5, 3)])
def test_features_that_the_sae_does_not_have_are_refused(tmp_path, indices):
    sae.save(tmp_path / "it", made())
    with pytest.raises(SaeError, match=r"expected (at least one feature|features)"):
        sae.choose(tmp_path / "it", indices)


# In a model that runs


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    """A backend, and the folder and weights of a JumpReLU SAE that was made for it."""
    backend = TorchBackend(make_model(tmp_path_factory.mktemp("llama")), CPU)
    conventions = replace(
        CONVENTIONS["jumprelu_scaled_by_norm"], model=backend.info.fingerprint, input_scale=0.7
    )
    folder = tmp_path_factory.mktemp("sae") / "it"
    sae.save(folder, made(conventions))
    return backend, str(folder), sae.load(folder)


def features(folder: str, *indices: int) -> Features:
    found = sae.read(folder)
    return Features(folder, found.fingerprint, found.site, indices)


def sae_write(folder: str, indices: tuple[int, ...], value: Value, op: str = "set_feature", **more) -> Write:
    keys = {"positions": "index:-2", "during": "prefill", **more}
    positions = Positions.parse(keys.pop("positions"))
    during = keys.pop("during")
    chosen = features(folder, *indices)
    return Write("f", "sae", (LAYER,), op, value, positions, during, features=chosen, **keys)


def at_site(backend: TorchBackend, row: Row, layer: int = LAYER) -> np.ndarray:
    return backend.capture([row], [("resid_post", layer)])[0].activations[("resid_post", layer)]


def row(*writes: Write, seed: int = 3, **more) -> Row:
    return Row(prompt(random.Random(seed), 14), GREEDY, writes, **more)


def most_active(each: Sae, x: np.ndarray, count: int) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argsort(-sae.encode(each, x[None])[0])[:count])


def test_a_donors_activation_a_mean_and_a_number_are_set_at_the_position(placed):
    backend, folder, each = placed
    donor = prompt(random.Random(8), 11)
    clean, donors = at_site(backend, row()), at_site(backend, Row(donor, GREEDY))
    chosen = most_active(each, donors[-2], 3)
    others = (prompt(random.Random(1), 9), prompt(random.Random(2), 12))
    mean = np.mean([sae.encode(each, at_site(backend, Row(p, GREEDY))[-2:-1])[0] for p in others], axis=0)
    cases = [
        (Value("source", "donor"), sae.encode(each, donors[-2:-1])[0][list(chosen)]),
        (Value("mean", prompts=PromptSet(others)), mean[list(chosen)]),
        (Value("number", number=1.5), np.full(3, 1.5)),
    ]
    for value, expected in cases:
        found = at_site(backend, row(sae_write(folder, chosen, value), sources={"donor": donor}))
        wanted = sae.set_features(each, clean[-2:-1], chosen, expected[None].astype(np.float32))[0]
        np.testing.assert_allclose(found[-2], wanted, atol=1e-4)
        assert np.abs(found[-2] - clean[-2]).max() > 1e-2
        np.testing.assert_allclose(np.delete(found, -2, 0), np.delete(clean, -2, 0), atol=1e-5)


def test_own_activation_in_a_ragged_batch_changes_no_token_and_a_real_write_is_counted(placed):
    backend, folder, each = placed
    chosen = most_active(each, at_site(backend, row())[-2], 4)
    own = sae_write(folder, chosen, Value("source", "self"))
    ablated = sae_write(folder, chosen, Value("none"), op="zero", during="both", hold="last")
    rows = [row(), row(own), row(ablated), Row(prompt(random.Random(5), 20), GREEDY, (own,))]
    clean, same, changed, _ = together = backend.decode(rows)
    assert same.output_ids == clean.output_ids
    assert same.receipts["f"].positions_prefill == 1
    assert same.receipts["f"].relative_change == pytest.approx(0, abs=1e-6)
    assert changed.receipts["f"].positions_prefill == 1
    assert changed.receipts["f"].positions_decode == changed.receipts["f"].asked_decode > 0
    assert changed.receipts["f"].relative_change > 1e-3
    for one, found in zip(rows, together, strict=True):
        assert backend.decode([one])[0].output_ids == found.output_ids


def test_a_store_reads_an_sae_once_for_all_its_features(placed, monkeypatch):
    _, folder, each = placed
    read = []
    monkeypatch.setattr(sae, "read", lambda where, real=sae.read: read.append(where) or real(where))
    wanted = [features(folder, i) for i in range(6)]
    read.clear()
    store = FeatureStore()
    sets = [store.of(one, LAYER, HERE) for one in wanted]
    assert len(read) == 1
    assert store.of(wanted[2], LAYER, HERE) is sets[2]
    x = inputs(5)
    for index, found in enumerate(sets):
        np.testing.assert_allclose(
            found.activations(torch.from_numpy(x)).numpy()[:, 0], sae.encode(each, x)[:, index], atol=1e-4
        )
    value = torch.full((1, 1), 2.0)
    found = sets[4].write("set_feature", torch.from_numpy(x), value, 1.0, True)
    expected = sae.set_features(each, x, (4,), value.numpy(), round_trip=True)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_a_topk_set_is_read_among_all_features(tmp_path):
    each = made(CONVENTIONS["topk_by_norm"])
    sae.save(tmp_path / "it", each)
    x = inputs(30)
    chosen = FeatureSet.load(features(str(tmp_path / "it"), 9, 2, 70), LAYER, HERE)
    expected = sae.encode(each, x)[:, [9, 2, 70]]
    assert (expected > 0).any() and (expected == 0).any()
    np.testing.assert_allclose(chosen.activations(torch.from_numpy(x)).numpy(), expected, atol=1e-4)


def test_an_sae_of_another_model_layer_or_file_is_refused(placed, tmp_path):
    backend, folder, each = placed
    right = sae_write(folder, (1,), Value("number", number=1.0))
    check_features([right], backend.info)
    foreign = replace(each, conventions=replace(each.conventions, model="0" * 16, site="mlp_out"))
    sae.save(tmp_path / "it", foreign)
    elsewhere = replace(features(str(tmp_path / "it"), 1, 99), site="resid_post")
    with pytest.raises(BackendError) as caught:
        check_features([right, replace(right, layers=(2,), features=elsewhere)], backend.info)
    for part in (
        "made for layer 1, not for layer 2",
        "made for mlp_out, not for resid_post",
        "has features 0 to 79, not 99",
        "made for the weights 0000000000000000",
    ):
        assert part in str(caught.value)
    with pytest.raises(BackendError, match="made for layer 1, not for layer 3"):
        FeatureSet.load(features(folder, 1), 3, HERE)
    stale = replace(features(folder, 1), fingerprint="f" * 16)
    with pytest.raises(BackendError, match="its files have changed"):
        FeatureSet.load(stale, LAYER, HERE)


# Traps


def test_trap_13_the_default_write_keeps_what_the_sae_does_not_reconstruct(placed):
    """Two values of a feature move the row to either side along its decoder row; a feature set to its own
    activation, or scaled by 1, moves nothing."""
    backend, folder, each = placed
    clean = at_site(backend, row())
    (index,) = most_active(each, clean[-2], 1)
    active = sae.encode(each, clean[-2:-1])[0, index]
    moved = {
        v: at_site(backend, row(sae_write(folder, (index,), Value("number", number=v))))[-2] - clean[-2]
        for v in (float(active) - 0.5, float(active), float(active) + 0.5)
    }
    low, none, high = moved.values()
    step = 0.5 * each.decoder[index] / each.conventions.input_scale
    np.testing.assert_allclose(high, step, atol=1e-4)
    np.testing.assert_allclose(low, -step, atol=1e-4)
    np.testing.assert_allclose(none, 0, atol=1e-5 * np.abs(clean).max())
    same = at_site(backend, row(sae_write(folder, (index,), Value("none"), op="scale", alpha=1.0)))
    np.testing.assert_array_equal(same, clean)


def test_trap_13_a_round_trip_that_changes_no_feature_differs_by_the_reconstruction_error(placed):
    """So that the baseline of a round trip is the pass-through: against a baseline without an SAE, two
    values that move the row to either side have all but the same effect."""
    backend, folder, each = placed
    clean = at_site(backend, row())[-2]
    (index,) = most_active(each, clean, 1)
    active = float(sae.encode(each, clean[None])[0, index])

    def after(value: Value, op: str = "set_feature") -> np.ndarray:
        written = sae_write(folder, (index,), value, op, round_trip=True)
        return at_site(backend, row(written))[-2] - clean

    passed = after(Value("none"), "scale")
    error = sae.decode(each, sae.encode(each, clean[None]))[0] - clean
    assert np.linalg.norm(error) > 0.1 * np.linalg.norm(clean)
    np.testing.assert_allclose(passed, error, atol=1e-4)
    low, high = (after(Value("number", number=v)) for v in (active - 0.5, active + 0.5))
    step = 0.5 * each.decoder[index] / each.conventions.input_scale
    np.testing.assert_allclose(high - passed, step, atol=1e-4)
    np.testing.assert_allclose(low - passed, -step, atol=1e-4)
    assert np.corrcoef(low, high)[0, 1] > 0.9  # it is the round trip that both show


def test_trap_13_a_random_feature_moves_along_its_own_decoder_row_alone(placed):
    """The random-feature arm is the same write with another index: it has no part that all arms share."""
    backend, folder, each = placed
    clean = at_site(backend, row())[-2]
    for index in random.Random(0).sample(range(FEATURES), 5):
        active = float(sae.encode(each, clean[None])[0, index])
        written = sae_write(folder, (index,), Value("number", number=active + 2.0))
        moved = at_site(backend, row(written))[-2] - clean
        np.testing.assert_allclose(moved, 2.0 * each.decoder[index] / each.conventions.input_scale, atol=1e-4)


def test_trap_14_values_that_no_feature_can_have_are_errors_and_means_below_the_threshold_are_flagged(
    tmp_path,
):
    each = made(CONVENTIONS["jumprelu_scaled_by_norm"])
    sae.save(tmp_path / "it", each)
    indices = (4, 9, 2, 30, 7)
    chosen = sae.choose(tmp_path / "it", indices)
    least = [each.thresholds[i] / np.linalg.norm(each.decoder[i]) for i in indices]
    np.testing.assert_allclose(chosen.thresholds, least, rtol=1e-6)
    found = sae.faults(chosen, np.array([-0.1, np.nan, 0.5 * least[2], 0.0, 1.01 * least[4]]))
    assert [text.partition(":")[0] for text in found.errors] == ["feature 4", "feature 9"]
    assert [text.partition(":")[0] for text in found.flags] == ["feature 2"]
    with pytest.raises(SaeError, match=r"expected values of shape \[5\]"):
        sae.faults(chosen, np.zeros(4))


def test_trap_14_means_that_include_zeros_fall_below_what_the_encoder_ever_gives():
    """The flag's threshold is the one that the encoder applies: of features that are rarely active, no
    activation is ever flagged, and the mean over all inputs is."""
    each = planted("jumprelu_scaled_by_norm")
    chosen = each.choose(range(FEATURES))
    active = sae.encode(each, planted_inputs(each))
    assert (active > 0).any(axis=0).all()
    for row in active:
        assert not sae.faults(chosen, row).flags
    assert len(sae.faults(chosen, active.mean(axis=0)).flags) == FEATURES


def test_trap_14_units_and_conventions_belong_to_what_identifies_an_sae(tmp_path):
    raw, scaled = made(), made(replace(PLAIN, input_scale=2.0))
    assert (raw.conventions.units, scaled.conventions.units) == ("raw", "scaled")
    x = inputs()
    assert np.abs(sae.encode(raw, x) - sae.encode(scaled, x)).max() > 0.1
    prints = {sae.save(tmp_path / str(i), s).fingerprint for i, s in enumerate((raw, scaled))}
    assert len(prints) == 2


@pytest.mark.parametrize("key", sorted(vars(PLAIN)))
def test_trap_15_no_convention_has_a_default(tmp_path, key):
    sae.save(tmp_path / "it", made())
    path = tmp_path / "it" / "sae.json"
    document = json.loads(path.read_text())
    del document[key]
    path.write_text(json.dumps(document))
    with pytest.raises(SaeError, match=rf"sae\.json: {key}: missing"):
        sae.read(tmp_path / "it")


def test_trap_15_conventions_that_contradict_the_weights_are_refused_with_all_that_is_wrong(tmp_path):
    sae.save(tmp_path / "it", made(CONVENTIONS["jumprelu"]))
    path = tmp_path / "it" / "sae.json"
    document = json.loads(path.read_text())

    def told(**changes: object) -> str:
        path.write_text(json.dumps({**document, **changes}))
        with pytest.raises(SaeError) as caught:
            sae.load(tmp_path / "it")
        return str(caught.value)

    assert "thresholds: activation relu has encoder" in told(activation="relu")
    assert "did you mean 'jumprelu'" in told(activation="jump_relu")
    assert "decoder: expected rows of norm 1" in told(decoder_norms="folded")
    assert "input_scales: not a key" in told(input_scales=1.0)
    assert "float16 (by sae.json), got F32" in told(dtype="float16")
    every = told(activation="topk", k=None, input_scale=0, apply_b_dec_to_input="no", layer=True)
    for key in ("k", "input_scale", "apply_b_dec_to_input", "layer"):
        assert f"{key}: expected" in every
    with pytest.raises(SaeError, match="thresholds: missing, which activation jumprelu needs"):
        replace(made(), conventions=CONVENTIONS["jumprelu"])


def planted(name: str) -> Sae:
    """An SAE that reconstructs what `planted_inputs` makes: its encoder reads each decoder row off."""
    conventions = replace(CONVENTIONS[name], k=1 if "topk" in name else None)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((FEATURES, WIDTH))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    norms = rng.uniform(0.3, 3.0, (FEATURES, 1)) if conventions.decoder_norms == "counted" else 1.0
    jump = conventions.activation == "jumprelu"
    return Sae(
        conventions,
        encoder=(rows / norms).T.astype(np.float32),
        b_enc=np.full(FEATURES, 0 if jump or "topk" in name else -2, dtype=np.float32),
        decoder=(rows * norms).astype(np.float32),
        b_dec=3 * rng.standard_normal(WIDTH, dtype=np.float32)
        if conventions.apply_b_dec_to_input
        else np.zeros(WIDTH, dtype=np.float32),
        thresholds=np.full(FEATURES, 3.5, dtype=np.float32) if jump else None,
    )


def planted_inputs(each: Sae) -> np.ndarray:
    """One feature at a time, each with a contribution of norm 5 (before the scale)."""
    codes = 5 * np.eye(FEATURES) / np.linalg.norm(each.decoder, axis=1)
    return sae.decode(each, codes).astype(np.float32)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("jumprelu", {"activation": "relu"}),
        ("topk", {"activation": "relu", "k": None}),
        ("jumprelu_scaled_by_norm", {"decoder_norms": "free"}),
        ("jumprelu_scaled_by_norm", {"input_scale": 1.0}),
        ("relu_minus_b_dec", {"apply_b_dec_to_input": False}),
        ("relu_minus_b_dec", {"input_scale": 1.0}),
    ],
)
def test_trap_15_weights_reconstruct_under_their_own_conventions_alone(right, wrong):
    each = planted(right)
    x = planted_inputs(each)
    misread = replace(
        each,
        conventions=replace(each.conventions, **wrong),
        thresholds=None if wrong.get("activation") == "relu" else each.thresholds,
    )

    def error(of: Sae) -> float:
        """Relative, the part of the inputs that is the same in all of them left out."""
        varying = np.linalg.norm(x - x.mean(axis=0))
        return float(np.linalg.norm(sae.decode(of, sae.encode(of, x)) - x) / varying)

    assert error(each) < 0.5
    assert error(misread) > 1.5 * error(each)
