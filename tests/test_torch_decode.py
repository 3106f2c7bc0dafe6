"""The torch backend: batched equals alone, equals a deliberately plain implementation, and receipts tell
the truth."""

from __future__ import annotations

import dataclasses
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from backends.contract import BackendError, Device, ModelInfo, Start
from backends.measures import Probe, ScoreRow
from backends.rows import Row, Sampling
from backends.torch.backend import TorchBackend
from backends.torch.loading import sliding_windows
from backends.torch.sites import LAYOUTS, find
from backends.writes import Write
from tests.models import ALL_LAYERS, CPU, FAMILIES, GREEDY, SAMPLED, make_model, prompt, taken_by, write
from tests.plain_reference import generate as plain_generate

PERPLEXITY = Probe("perplexity", "perplexity")
NEAR_TIE = 1e-4  # top-two margin below which a difference in the last bits may change the token


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def pair(request, tmp_path_factory):
    """A backend and the same model as transformers loads it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    source = make_model(folder, request.param)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return TorchBackend(source, CPU), model


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    torch.set_num_threads(1)
    return TorchBackend(make_model(tmp_path_factory.mktemp("llama")), CPU)


CONDITIONS: dict[str, tuple[Write, ...]] = {
    "baseline": (),
    "kv": (write("kv", "kv_cache"),),
    "kv_keep": (write("kv", "kv_cache", rope="keep"),),
    "kv_left": (write("kv", "kv_cache", align="left"),),
    "kv_sink": (write("kv", "kv_cache", keep_sink=True),),
    "kv_whole": (write("kv", "kv_cache", align="whole"),),
    "kv_self": (write("kv", "kv_cache", role="self"),),
    "kv_values_of_two_layers": (write("kv", "kv_cache", (1, 2), part="values"),),
    "kv_window": (write("kv", "kv_cache", positions="last:3"),),
    "v_decode_cycle": (write("v", "v_proj", (2,), during="decode", positions="last:4", hold="cycle"),),
    "k_decode_last": (write("k", "k_proj", (1,), during="decode", positions="last:4", hold="last"),),
    "q_decode_mean": (write("q", "q_proj", (0, 3), during="decode", positions="all", hold="mean"),),
    "kv_and_v": (
        write("kv", "kv_cache"),
        write("v", "v_proj", (2,), during="decode", positions="last:4", hold="cycle"),
    ),
    "resid_pre": (write("r", "resid_pre", (1,), positions="last:3"),),
    "resid_post_both": (write("r", "resid_post", (2,), positions="last:3", during="both", hold="cycle"),),
    "attn_add": (write("a", "attn_out", (1, 2), op="add", alpha=0.5, positions="first:4"),),
    "mlp_zero": (write("m", "mlp_out", (1,), op="zero", during="both"),),
    "head_z": (
        Write(**{**vars(write("z", "head_z", (2,), positions="index:-1")), "heads": None}),
        write("v", "v_proj", (3,), op="zero", during="decode"),
    ),
    "v_prefill": (write("v", "v_proj", (1,), positions="last:4"),),
    "guarded": (
        write("v", "v_proj", (2,), during="decode", positions="last:4", hold="cycle", min_positions=16),
    ),
}


def rows_of(
    info: ModelInfo, rng: random.Random, sampling: Sampling, items: int = 3, replay: bool = False
) -> list[Row]:
    """Every condition over a few ragged pairs; streams differ by item."""
    rows = []
    for item in range(items):
        target, donor = prompt(rng, rng.randrange(4, 24)), prompt(rng, rng.randrange(5, 24))
        for writes in CONDITIONS.values():
            rows.append(
                Row(
                    ids=target,
                    sampling=sampling,
                    writes=taken_by(info, writes),
                    sources={"donor": donor},
                    stream=rng.getrandbits(64) if replay else 7_000_000_000_000_000_000 + item,
                    value_stream=item,
                    replay_last_token=replay,
                )
            )
    return rows


@pytest.mark.parametrize("replay", [False, True])
def test_batched_rows_give_the_tokens_of_the_plain_implementation(pair, replay):
    backend, model = pair
    rows = rows_of(backend.info, random.Random(5), GREEDY, items=2, replay=replay)
    for row, found in zip(rows, backend.decode(rows), strict=True):
        assert found.invalid is None
        expected = plain_generate(model, row, backend.info.eos_ids)
        if list(found.output_ids) != expected:
            assert found.min_margin < NEAR_TIE, (row.writes, found.output_ids, expected)


def test_every_architecture_of_the_table_is_tested():
    assert set(FAMILIES) == set(LAYOUTS)


def normed(backend, layer: int, path: str | None, hidden: np.ndarray) -> np.ndarray:
    """What the norm at a path of the layout makes of a site's values; the values where there is none."""
    if path is None:
        return hidden
    norm = find(backend._loaded.blocks[layer], path)
    with torch.no_grad():
        return norm(torch.from_numpy(hidden)).numpy()


def test_blocks_add_up_from_their_sites_and_the_norms_after_them(pair):
    backend, _ = pair
    layout = backend._loaded.layout
    row = Row(prompt(random.Random(83), 20), GREEDY)
    sites = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    found = backend.capture([row], [(site, layer) for site in sites for layer in ALL_LAYERS])[0].activations
    for layer in ALL_LAYERS:
        total = found[("resid_pre", layer)]
        total = total + normed(backend, layer, layout.attn_norm, found[("attn_out", layer)])
        total = total + normed(backend, layer, layout.mlp_norm, found[("mlp_out", layer)])
        expected = found[("resid_post", layer)]
        assert np.abs(total - expected).max() < 1e-5 * np.abs(expected).max()


def test_cached_keys_and_values_are_the_projections_after_their_norms(pair):
    backend, _ = pair
    info, layout = backend.info, backend._loaded.layout
    row = Row(prompt(random.Random(89), 9), GREEDY)
    sites = ("q_proj", "k_proj", "v_proj", "kv_cache", "head_z")
    found = backend.capture([row], [(site, layer) for site in sites for layer in ALL_LAYERS])[0].activations
    for layer in ALL_LAYERS:
        assert found[("q_proj", layer)].shape == (9, info.heads * info.head_width)
        assert found[("head_z", layer)].shape == (9, info.heads * info.head_width)
        keys, values = np.split(found[("kv_cache", layer)], 2, axis=-1)
        assert (values == found[("v_proj", layer)]).all()
        heads = found[("k_proj", layer)][:1].reshape(1, info.kv_heads, info.head_width)
        first = normed(backend, layer, layout.k_norm, heads)  # position 0: no rotation
        assert np.allclose(keys[0], first.ravel(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_the_last_token_from_a_layer_up_in_every_architecture(pair, layer):
    backend, _ = pair
    rng = random.Random(97)
    ids = prompt(rng, 22)
    later = write("v", "v_proj", (3,), during="decode", positions="last:2", hold="last")
    rows = [Row(ids, GREEDY, writes, {"donor": prompt(rng, 7)}) for writes in ((), (later,))]
    start = Start(backend.prefix(ids), layer)
    sites = [("resid_pre", 3), ("attn_out", 3), ("kv_cache", 3)]
    for whole, short in zip(
        backend.capture(rows, sites, "last"), backend.capture(rows, sites, "last", start), strict=True
    ):
        for spot, expected in whole.activations.items():
            assert np.allclose(short.activations[spot], expected, rtol=1e-4, atol=1e-5), spot
    for whole, short in zip(backend.decode(rows), backend.decode(rows, start), strict=True):
        assert whole.output_ids == short.output_ids or whole.min_margin < NEAR_TIE


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_eager_and_fused_attention_agree_and_what_ran_is_told(tmp_path, family):
    source = make_model(tmp_path, family)
    fused, eager = (TorchBackend(source, dataclasses.replace(CPU, attention=a)) for a in ("sdpa", "eager"))
    assert eager.info.attention == "eager"
    assert fused.info.attention == ("sdpa" if LAYOUTS[family].fused else "eager")
    rows = rows_of(eager.info, random.Random(101), GREEDY, items=1)
    for a, b in zip(fused.decode(rows), eager.decode(rows), strict=True):
        assert a.output_ids == b.output_ids or min(a.min_margin, b.min_margin) < NEAR_TIE


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_low_precision_runs_in_every_architecture(tmp_path, family):
    backend = TorchBackend(make_model(tmp_path, family), Device("cpu", "bfloat16"))
    rng = random.Random(103)
    writes = taken_by(backend.info, CONDITIONS["kv_and_v"])
    row = Row(prompt(rng, 20), GREEDY, writes, {"donor": prompt(rng, 24)})
    found = backend.decode([row])[0]
    steps = len(found.output_ids) - 1
    assert found.invalid is None and steps > 0
    counts = {name: (r.positions_prefill, r.positions_decode) for name, r in found.receipts.items()}
    assert counts == {"kv": (19, 0), "v": (0, steps)}


def test_layers_of_a_kind_that_is_not_known_are_refused(tmp_path):
    source = make_model(tmp_path, "qwen3")
    config = SimpleNamespace(sliding_window=5, layer_types=["full_attention", "chunked_attention"] * 2)
    with pytest.raises(BackendError, match="layer_types of the kind chunked_attention"):
        sliding_windows(config, source)
    config.layer_types = ["sliding_attention", "full_attention"] * 2
    assert sliding_windows(config, source) == (5, None, 5, None)
    assert sliding_windows(SimpleNamespace(sliding_window=5), source) == (5, 5, 5, 5)
    assert sliding_windows(SimpleNamespace(), source) == (None,) * 4


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"architecture": "mistral"}, "model_type llama, mistral declared"),
        ({"heads": 2, "head_width": 16}, "num_attention_heads 4, 2 declared"),
        ({"kv_heads": 1, "head_width": 16}, "num_key_value_heads 2, 1 declared"),
        ({"width": 64}, "hidden_size 32, 64 declared"),
        ({"context": 257}, "max_position_embeddings 256, a context of 257 declared"),
    ],
)
def test_a_declared_number_that_config_json_contradicts_is_refused(tmp_path, wrong, told):
    with pytest.raises(BackendError, match=told):
        TorchBackend(dataclasses.replace(make_model(tmp_path), **wrong), CPU)


@pytest.mark.parametrize(
    "sampling", [GREEDY, SAMPLED, Sampling(0.9, 12, top_k=5), Sampling(0.9, 12, top_p=0.7)]
)
def test_trap_10_batched_equals_alone_whatever_the_order_and_batch(backend, sampling):
    rows = rows_of(backend.info, random.Random(11), sampling)
    together = backend.decode(rows)
    shuffled = list(enumerate(rows))
    random.Random(3).shuffle(shuffled)
    for size in (1, 7):
        for start in range(0, len(rows), size):
            chunk = shuffled[start : start + size]
            for (index, _), found in zip(chunk, backend.decode([row for _, row in chunk]), strict=True):
                if found.output_ids != together[index].output_ids:
                    assert min(found.min_margin, together[index].min_margin) < NEAR_TIE
                for name, receipt in found.receipts.items():
                    counted = dataclasses.replace(receipt, relative_change=None, logit_change=None)
                    other = together[index].receipts[name]
                    assert counted == dataclasses.replace(other, relative_change=None, logit_change=None)
                    same_tokens = found.output_ids == together[index].output_ids
                    if same_tokens and receipt.relative_change is not None:
                        assert receipt.relative_change == pytest.approx(
                            other.relative_change, rel=1e-3, abs=1e-6
                        )


def test_trap_01_a_guarded_write_never_fires_and_the_receipt_says_so(backend):
    rng = random.Random(1)
    row = Row(prompt(rng, 20), GREEDY, CONDITIONS["guarded"], {"donor": prompt(rng, 20)})
    plain = dataclasses.replace(row, writes=())
    guarded, baseline = backend.decode([row, plain])
    assert guarded.output_ids == baseline.output_ids
    receipt = guarded.receipts["v"]
    assert (receipt.positions_decode, receipt.asked_decode) == (0, len(guarded.output_ids) - 1)
    assert receipt.relative_change is None


def test_decode_write_is_counted_at_every_decode_step(backend):
    rng = random.Random(2)
    donor = prompt(rng, 20)
    rows = [
        Row(prompt(rng, n), SAMPLED, CONDITIONS["kv_and_v"], {"donor": donor}, stream=n) for n in range(2, 20)
    ]
    for found in backend.decode(rows):
        steps = len(found.output_ids) - 1
        assert found.receipts["v"].positions_decode == found.receipts["v"].asked_decode == steps


def test_the_first_new_token_is_already_treated(backend):
    rng = random.Random(8)
    donors = [prompt(rng, 20) for _ in range(30)]
    one = Sampling(0.0, 1)
    target = prompt(rng, 20)
    plain = backend.decode([Row(target, one)])[0].output_ids
    treated = backend.decode([Row(target, one, CONDITIONS["kv"], {"donor": donor}) for donor in donors])
    assert any(found.output_ids != plain for found in treated)


def test_trap_47_a_prefill_write_under_a_kv_replacement_is_shadowed(backend):
    rng = random.Random(4)
    writes = (write("v", "v_proj", (1,), positions="last:4"), write("kv", "kv_cache"))
    row = Row(prompt(rng, 12), GREEDY, writes, {"donor": prompt(rng, 20)})
    receipt = backend.decode([row])[0].receipts["v"]
    assert (receipt.positions_prefill, receipt.shadowed) == (
        4,
        3,
    )  # the last prompt token is fed after the swap
    all_before = dataclasses.replace(writes[0], positions=writes[0].positions.parse("first:4"))
    receipt = backend.decode([dataclasses.replace(row, writes=(all_before, writes[1]))])[0].receipts["v"]
    assert receipt.shadowed == receipt.positions_prefill == 4
    untouched = backend.decode([dataclasses.replace(row, writes=(writes[1],))])[0]
    shadowed = backend.decode([dataclasses.replace(row, writes=(all_before, writes[1]))])[0]
    assert shadowed.output_ids == untouched.output_ids


def test_trap_04_last_prompt_token_is_fed_once_unless_replay_is_asked(backend):
    rng = random.Random(6)
    ids = prompt(rng, 15)
    seen = []
    embed = backend._loaded.model.get_input_embeddings()
    handle = embed.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    try:
        backend.decode([Row(ids, Sampling(0.0, 1))])
        assert [t.shape[1] for t in seen] == [14, 1]
        seen.clear()
        backend.decode([Row(ids, Sampling(0.0, 1), replay_last_token=True)])
        assert [t.shape[1] for t in seen] == [15, 1]
    finally:
        handle.remove()


def test_trap_05_sources_do_not_change_whatever_the_order_of_conditions(backend):
    rows = rows_of(backend.info, random.Random(21), GREEDY)
    forward = [found.output_ids for found in backend.decode(rows)]
    for _ in range(2):
        assert [found.output_ids for found in backend.decode(rows)] == forward
    backwards = [found.output_ids for found in backend.decode(rows[::-1])]
    assert backwards[::-1] == forward


def test_trap_06_copied_positions_are_in_the_receipt(backend):
    rng = random.Random(9)
    target, short, long = prompt(rng, 12), prompt(rng, 6), prompt(rng, 20)
    kv = CONDITIONS["kv"]
    keep = CONDITIONS["kv_keep"]
    found = backend.decode(
        [
            Row(target, GREEDY, kv, {"donor": short}),
            Row(target, GREEDY, kv, {"donor": long}),
            Row(target, GREEDY, keep, {"donor": long}),
            Row(target, GREEDY, CONDITIONS["kv_sink"], {"donor": long}),
        ]
    )
    receipts = [each.receipts["kv"] for each in found]
    assert [(r.asked_prefill, r.positions_prefill) for r in receipts] == [
        (11, 5),
        (11, 11),
        (11, 11),
        (10, 10),
    ]
    # Kept keys of donor positions 8..18 under a query at position 11: those at 12..18 lie ahead of it.
    assert [r.keys_ahead for r in receipts] == [0, 0, 7, 0]


def test_trap_07_resid_post_of_a_layer_is_resid_pre_of_the_next(backend):
    rng = random.Random(3)
    row = Row(prompt(rng, 14), GREEDY)
    found = backend.capture([row], [("resid_post", 1), ("resid_pre", 2), ("resid_pre", 1)])[0].activations
    assert (found[("resid_post", 1)] == found[("resid_pre", 2)]).all()
    assert (found[("resid_post", 1)] != found[("resid_pre", 1)]).any()
    donor = prompt(rng, 14)
    tokens = [
        backend.decode([Row(row.ids, GREEDY, (write("r", site, (layer,)),), {"donor": donor})])[0].output_ids
        for site, layer in (("resid_post", 1), ("resid_pre", 2))
    ]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize(
    "site", ["resid_pre", "resid_post", "attn_out", "mlp_out", "q_proj", "k_proj", "v_proj", "head_z"]
)
def test_trap_08_writing_what_is_there_changes_nothing(backend, site):
    rng = random.Random(13)
    row = Row(prompt(rng, 16), GREEDY)
    own = dataclasses.replace(row, writes=(write("w", site, ALL_LAYERS, role="self"),))
    plain, patched = backend.decode([row, own])
    assert patched.output_ids == plain.output_ids
    assert patched.receipts["w"].positions_prefill == 16
    assert patched.receipts["w"].relative_change < 1e-5


def test_trap_09_head_slices_follow_the_models_config(backend):
    rng = random.Random(17)
    ids, donor = prompt(rng, 12), prompt(rng, 12)
    from backends.writes import Heads

    everything = write("v", "v_proj", (1,))
    split = [dataclasses.replace(everything, name=f"v{h}", heads=Heads("kv", (h,))) for h in range(2)]
    whole = backend.capture([Row(ids, GREEDY, (everything,), {"donor": donor})], [("v_proj", 1)])[0]
    parts = backend.capture([Row(ids, GREEDY, tuple(split), {"donor": donor})], [("v_proj", 1)])[0]
    one = backend.capture([Row(ids, GREEDY, (split[1],), {"donor": donor})], [("v_proj", 1)])[0]
    clean = backend.capture([Row(ids, GREEDY)], [("v_proj", 1)])[0].activations[("v_proj", 1)]
    assert whole.activations[("v_proj", 1)].shape == (12, 16)
    assert (whole.activations[("v_proj", 1)] == parts.activations[("v_proj", 1)]).all()
    changed = (one.activations[("v_proj", 1)] != clean).any(axis=0)
    assert list(changed) == [False] * 8 + [True] * 8


def test_trap_11_recompute_equals_the_cache_without_decode_writes_and_differs_with_them(backend):
    rng = random.Random(23)
    rows = [r for r in rows_of(backend.info, rng, GREEDY) if not any(w.site == "kv_cache" for w in r.writes)]
    prefill_only = [r for r in rows if all(w.during == "prefill" for w in r.writes)]
    cached = backend.decode(prefill_only)
    anew = backend.decode([dataclasses.replace(r, recompute=True) for r in prefill_only])
    for a, b in zip(cached, anew, strict=True):
        assert a.output_ids == b.output_ids or min(a.min_margin, b.min_margin) < NEAR_TIE
    donor = prompt(rng, 20)
    decode = write("v", "resid_post", (1,), during="decode", positions="last:4", hold="cycle")
    row = Row(prompt(rng, 9), Sampling(0.0, 30), (decode,), {"donor": donor})
    a, b = backend.decode([row])[0], backend.decode([dataclasses.replace(row, recompute=True)])[0]
    assert a.output_ids[:2] == b.output_ids[:2]  # the first decode step is the same intervention
    assert a.output_ids != b.output_ids
    sliding = dataclasses.replace(decode, hold="sliding")
    found = backend.decode([dataclasses.replace(row, recompute=True, writes=(sliding,))])[0]
    receipt = found.receipts["v"]
    assert receipt.positions_decode == receipt.asked_decode == 4 * (len(found.output_ids) - 1)


def test_trap_21_a_window_never_shrinks(backend):
    rng = random.Random(31)
    row = Row(
        prompt(rng, 6), GREEDY, (write("v", "v_proj", positions="last:16"),), {"donor": prompt(rng, 20)}
    )
    found = backend.decode([row, Row(prompt(rng, 6), GREEDY)])
    assert found[0].invalid == "a window of 16 is longer than a prompt of 6 tokens"
    assert found[1].invalid is None and found[1].output_ids


def test_own_cache_is_a_noop_and_anothers_is_not(backend):
    rng = random.Random(37)
    rows = []
    for _ in range(8):
        ids, donor = prompt(rng, 15), prompt(rng, 15)
        rows += [
            Row(ids, GREEDY, CONDITIONS[name], {"donor": donor}) for name in ("baseline", "kv_self", "kv")
        ]
    found = backend.decode(rows)
    assert all(found[i].output_ids == found[i + 1].output_ids for i in range(0, len(rows), 3))
    assert sum(found[i].output_ids != found[i + 2].output_ids for i in range(0, len(rows), 3)) >= 6
    assert all(found[i + 1].receipts["kv"].relative_change < 1e-5 for i in range(0, len(rows), 3))


def test_whole_donor_cache_and_last_token_give_the_donors_continuation(backend):
    rng = random.Random(41)
    donor = prompt(rng, 18)
    target = (*prompt(rng, 9)[:-1], donor[-1])
    transplanted = backend.decode([Row(target, GREEDY, CONDITIONS["kv_whole"], {"donor": donor})])[0]
    assert transplanted.output_ids == backend.decode([Row(donor, GREEDY)])[0].output_ids
    assert transplanted.receipts["kv"].logit_change > 1e-3


def test_trap_45_pairs_permuted_together_change_nothing_values_against_keys_do(backend):
    rng = random.Random(43)
    ids, donor = prompt(rng, 15), prompt(rng, 15)
    kept = write("kv", "kv_cache", rope="keep")
    together = dataclasses.replace(kept, value=dataclasses.replace(kept.value, kind="shuffled_window"))
    apart = (
        dataclasses.replace(kept, name="k", part="keys"),
        dataclasses.replace(together, name="v", part="values"),
    )
    rows = [Row(ids, GREEDY, writes, {"donor": donor}) for writes in ((kept,), (together,), apart)]
    found = [each.output_ids for each in backend.decode(rows)]
    assert found[0] == found[1] != found[2]


def test_random_values_match_what_they_replace_and_depend_on_the_draw(backend):
    rng = random.Random(47)
    row = Row(prompt(rng, 20), GREEDY, (write("v", "v_proj", (1,), value="random", draws=2),), value_stream=5)
    captures = [
        backend.capture([r], [("v_proj", 1)])[0].activations[("v_proj", 1)].reshape(20, 2, 8)
        for r in (
            dataclasses.replace(row, writes=()),
            row,
            dataclasses.replace(row, draw=1),
            dataclasses.replace(row, draw=2),
            dataclasses.replace(row, value_stream=6),
        )
    ]
    clean, first, second, third, other = captures
    assert (first == third).all() and (first != second).any() and (first != other).any()
    # Noise of mean m and standard deviation s per head: pooled over heads its own moments agree with those
    # replaced.
    z = (first - clean.mean(-1, keepdims=True)) / clean.std(-1, keepdims=True)
    assert abs(z.mean()) < 0.2 and abs(z.std() - 1) < 0.15


def test_rows_with_infinite_logits_are_invalid_and_their_neighbours_are_not(backend):
    rng = random.Random(53)
    good = Row(prompt(rng, 9), GREEDY)
    huge = write("r", "resid_post", (3,), op="add", alpha=float("1e38"), positions="all", during="prefill")
    huge = dataclasses.replace(huge, alpha=1e38, layers=(0, 1, 2, 3))
    bad = Row(prompt(rng, 9), GREEDY, (huge,), {"donor": prompt(rng, 9)})
    alone = backend.decode([good])[0]
    found = backend.decode([good, bad])
    assert found[1].invalid == "logits not finite"
    assert found[0].invalid is None and found[0].output_ids == alone.output_ids


def test_perplexity_is_that_of_transformers(pair):
    backend, model = pair
    rng = random.Random(59)
    rows = [
        ScoreRow(Row(prompt(rng, rng.randrange(2, 12)), GREEDY), prompt(rng, rng.randrange(2, 12))[1:])
        for _ in range(9)
    ]
    for row, found in zip(rows, backend.score(rows, [PERPLEXITY]), strict=True):
        ids = torch.tensor([[*row.row.ids, *row.continuation]])
        labels = ids.clone()
        labels[:, : len(row.row.ids)] = -100
        with torch.no_grad():
            expected = float(model(ids, labels=labels).loss.exp())
        assert found.values["perplexity"] == pytest.approx(expected, rel=1e-4)
    (empty,) = backend.score([ScoreRow(Row(prompt(rng, 5), GREEDY))], [PERPLEXITY])
    assert empty.values == {"perplexity": None}


def test_lockstep_writes_the_donors_own_tokens(backend):
    rng = random.Random(61)
    donor = prompt(rng, 14)
    # Every layer's input at every step is the donor's: the target must then continue with the donor's
    # second token on.
    lockstep = write("r", "resid_pre", (0,), during="decode", positions="all", hold="lockstep")
    whole = write("kv", "kv_cache", align="whole")
    target = (*prompt(rng, 9)[:-1], donor[-1])
    row = Row(target, GREEDY, (whole, lockstep), {"donor": donor}, stream=3)
    found = backend.decode([row])[0]
    expected = backend.decode([Row(donor, GREEDY, stream=3)])[0]
    assert found.output_ids == expected.output_ids
    assert found.receipts["r"].relative_change < 1e-4


def test_lockstep_does_not_depend_on_its_neighbours_and_ends_with_the_donor(backend):
    rng = random.Random(67)
    lockstep = write("r", "resid_post", (2,), during="decode", positions="all", hold="lockstep")
    rows = [
        Row(prompt(rng, 9), sampling, (lockstep,), {"donor": prompt(rng, 8)}, stream=5)
        for sampling in (Sampling(0.9, 20), Sampling(3.0, 20), Sampling(0.9, 3), Sampling(0.9, 1))
        for _ in range(4)
    ]
    rows = [dataclasses.replace(row, sources=rows[0].sources) for row in rows]
    together = backend.decode(rows)
    for row, found in zip(rows, together, strict=True):
        alone = backend.decode([row])[0]
        assert alone.output_ids == found.output_ids or min(alone.min_margin, found.min_margin) < NEAR_TIE
        own = backend.decode([Row(row.sources["donor"], row.sampling, stream=5)])[0]
        receipt = found.receipts["r"]
        assert receipt.positions_decode == min(receipt.asked_decode, len(own.output_ids) - 1)


def test_lockstep_with_donors_that_end_at_once_at_a_site_of_another_width(backend):
    rng = random.Random(107)
    lockstep = write("v", "v_proj", (2,), during="decode", positions="all", hold="lockstep")
    sources = {"donor": prompt(rng, 8)}
    rows = [Row(prompt(rng, 9), Sampling(0.9, n), (lockstep,), sources, stream=5) for n in (20, 1)]
    longer, shorter = backend.decode(rows)
    assert (len(shorter.output_ids), shorter.receipts["v"].positions_decode) == (1, 0)
    donor = backend.decode([Row(sources["donor"], Sampling(0.9, 20), stream=5)])[0]
    steps = min(len(longer.output_ids), len(donor.output_ids)) - 1
    assert longer.receipts["v"].positions_decode == steps > 0


def test_a_write_that_a_later_one_overwrites_is_shadowed(backend):
    rng = random.Random(71)
    first = write("a", "v_proj", (1, 2), positions="last:4", during="both", hold="last")
    later = dataclasses.replace(write("b", "v_proj", positions="last:3", during="both", op="zero"), order=1)
    row = Row(prompt(rng, 12), GREEDY, (first, later), {"donor": prompt(rng, 9)})
    found = backend.decode([row])[0].receipts
    assert (found["a"].shadowed, found["b"].shadowed) == (3, 0)
    assert found["a"].decode_shadowed == found["a"].positions_decode > 0
    assert found["b"].decode_shadowed == 0
    partial = dataclasses.replace(later, layers=(1,))
    found = backend.decode([dataclasses.replace(row, writes=(first, partial))])[0].receipts
    assert (found["a"].shadowed, found["a"].decode_shadowed) == (0, 0)


def test_logit_change_belongs_to_the_cache_write_alone(backend):
    rng = random.Random(73)
    own = write("kv", "kv_cache", align="whole", role="self")
    zero = write("r", "resid_post", (2,), op="zero", positions="index:-1")
    found = backend.decode([Row(prompt(rng, 12), GREEDY, (own, zero))])[0].receipts
    assert found["kv"].logit_change < 1e-5
    assert found["r"].positions_prefill == 1


def test_a_whole_cache_stands_alone(backend):
    rng = random.Random(79)
    both = (write("kv", "kv_cache", align="whole"), write("z", "kv_cache", op="zero", positions="last:2"))
    found = backend.decode([Row(prompt(rng, 12), GREEDY, both, {"donor": prompt(rng, 9)})])[0]
    assert found.invalid is not None and "whole or concat" in found.invalid
