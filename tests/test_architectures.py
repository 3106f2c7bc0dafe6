"""Every site in every architecture: what is read there is what a plain computation gives, what is written
there acts as its definition says, and a model that is laid out otherwise is refused."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LongformerConfig

from backends.contract import BackendError
from backends.torch import weights
from backends.torch.cache import rotate
from backends.torch.forward import Geometry, call, new_cache, prefill, prompt_geometry
from backends.torch.hooks import Board, keep_in
from backends.torch.kv import check_rope
from backends.torch.loading import Loaded, load, rotary_kind
from backends.torch.sites import LAYOUTS, check_layout, find, layout_of
from backends.torch.touches import Effect, Tally, Touch
from backends.writes import MODULE_SITES
from tests.models import ALL_LAYERS, CPU, FAMILIES, make_model, prompt, write
from tests.plain_reference import blocks, columns_of, module_of

LENGTH = 11
IDS = prompt(random.Random(7), LENGTH)
LAST = ALL_LAYERS[-1]
EVERY_FAMILY = pytest.mark.parametrize("family", sorted(FAMILIES))
# In Gpt-NeoX attention and MLP read one stream, so that nothing is between them.
EVERY_MIDDLE = pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"gpt_neox"}))
NEAREST = {"resid_mid": "resid_pre", "attn_out_normed": "attn_out", "mlp_out_normed": "mlp_out"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: tmp_path_factory.mktemp(family) for family in FAMILIES}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def loaded(request, folders):
    return load(make_model(folders[request.param], request.param), CPU)


def spots_of(loaded: Loaded, layers=ALL_LAYERS) -> list[tuple[str, int]]:
    within = [site for site in MODULE_SITES if site in loaded.info.sites and site not in ("embed", "logits")]
    return [("embed", 0), *((site, layer) for site in within for layer in layers), ("logits", LAST)]


@torch.inference_mode()
def run(loaded: Loaded, touches=None, spots=(), edges=None, keep=LENGTH):
    """The logits [positions, vocabulary] of one prompt, and what was at the spots, [positions, width]."""
    board, seen = Board(loaded), {}
    with board.armed({*(touches or {}), *spots}, edges=edges or {}):
        board.touches = touches or {}
        board.edges = edges or {}
        for spot in spots:
            board.taps[spot] = keep_in(seen, spot)
        logits, _ = prefill(loaded, [IDS], None, keep=keep)
    return logits[0], {spot: hidden[0].clone() for spot, hidden in seen.items()}


def touch(value, positions, op="replace") -> Touch:
    """value: [positions, width], or [1, width] for all of them."""
    at = torch.tensor(list(positions))
    zeros = torch.zeros_like(at)
    return Touch(Effect(op, 1.0), zeros, at, zeros, Tally(1, 1, torch.device("cpu")), 0, value)


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def normed(loaded: Loaded, path: str | None, layer: int, hidden: torch.Tensor) -> torch.Tensor:
    return hidden if path is None else find(loaded.blocks[layer], path)(hidden)


def contribution(loaded: Loaded, seen, part: str, layer: int) -> torch.Tensor:
    """What attention or MLP adds to the residual stream."""
    path = {"attn": loaded.layout.attn_norm, "mlp": loaded.layout.mlp_norm}[part]
    return normed(loaded, path, layer, seen[(f"{part}_out", layer)])


# --- what is read


@torch.no_grad()
def test_each_site_is_what_plain_hooks_and_arithmetic_give(loaded, folders):
    model = AutoModelForCausalLM.from_pretrained(folders[loaded.info.architecture]).eval()
    logits, seen = run(loaded, spots=spots_of(loaded))
    expected = {}
    handles = []

    def keep(spot, columns, value):
        expected[spot] = value[0] if columns is None else value[0][:, columns]

    for site, layer in seen:
        if site in ("resid_mid", "attn_out_normed", "mlp_out_normed", "logits"):
            continue
        module, side = module_of(model, site, layer)
        columns = columns_of(model, site)
        if side == "input":
            handles.append(
                module.register_forward_pre_hook(
                    lambda m, args, s=(site, layer), c=columns: keep(s, c, args[0])
                )
            )
        else:
            handles.append(
                module.register_forward_hook(
                    lambda m, args, out, s=(site, layer), c=columns: keep(
                        s, c, out[0] if isinstance(out, tuple) else out
                    )
                )
            )
    expected[("logits", LAST)] = model(torch.tensor([IDS]), use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    for layer in ALL_LAYERS:
        block = blocks(model)[layer]
        attn, mlp = expected[("attn_out", layer)], expected[("mlp_out", layer)]
        if "attn_out_normed" in loaded.info.sites:
            attn = expected[("attn_out_normed", layer)] = block.post_attention_layernorm(attn)
            mlp = expected[("mlp_out_normed", layer)] = block.post_feedforward_layernorm(mlp)
        if "resid_mid" in loaded.info.sites:
            expected[("resid_mid", layer)] = expected[("resid_pre", layer)] + attn
    assert set(expected) == set(seen)
    for spot, value in expected.items():
        assert seen[spot].shape == value.shape, spot
        assert close(seen[spot], value, 2e-5), spot
    assert (logits == seen[("logits", LAST)]).all()


def test_sites_have_the_widths_of_the_model(loaded):
    info = loaded.info
    _, seen = run(loaded, spots=spots_of(loaded))
    widths = {
        "q_proj": info.heads * info.head_width,
        "head_z": info.heads * info.head_width,
        "k_proj": info.kv_heads * info.head_width,
        "v_proj": info.kv_heads * info.head_width,
        "logits": info.vocabulary,
    }
    for (site, _), value in seen.items():
        assert value.shape == (LENGTH, widths.get(site, info.width)), site


def test_the_residual_stream_is_the_sum_of_embeddings_and_contributions(loaded):
    _, seen = run(loaded, spots=spots_of(loaded))
    total = seen[("embed", 0)]
    if loaded.layout.learned_positions is not None:
        total = total + find(loaded.model, loaded.layout.learned_positions)(torch.arange(LENGTH))
    for layer in ALL_LAYERS:
        assert close(total, seen[("resid_pre", layer)])
        total = total + contribution(loaded, seen, "attn", layer)
        if "resid_mid" in loaded.info.sites:
            assert close(total, seen[("resid_mid", layer)])
        total = total + contribution(loaded, seen, "mlp", layer)
        assert close(total, seen[("resid_post", layer)])


def test_heads_times_their_output_weights_are_the_attention_output(loaded):
    _, seen = run(loaded, spots=spots_of(loaded))
    for layer in ALL_LAYERS:
        matrix = torch.from_numpy(weights.weight(loaded, "o_proj", layer))
        bias = torch.from_numpy(weights.weight(loaded, "o_proj_bias", layer))
        heads = seen[("head_z", layer)].unflatten(-1, (loaded.info.heads, loaded.info.head_width))
        rows = matrix.unflatten(0, (loaded.info.heads, loaded.info.head_width))
        assert close(torch.einsum("thw,hwd->td", heads, rows) + bias, seen[("attn_out", layer)])


# --- what is written


def test_writing_what_is_there_changes_nothing_bit_for_bit(loaded):
    spots = spots_of(loaded)
    logits, seen = run(loaded, spots=spots)
    for spot in spots:
        again, _ = run(loaded, {spot: [touch(seen[spot], range(LENGTH))]})
        assert (again == logits).all(), spot
    everything = {spot: [touch(seen[spot], range(LENGTH))] for spot in spots}
    assert (run(loaded, everything)[0] == logits).all()


def test_a_write_at_each_site_is_there_and_reaches_the_logits(loaded):
    spots = spots_of(loaded, (2,))
    logits, seen = run(loaded, spots=spots)
    generator = torch.Generator().manual_seed(3)
    for spot in spots:
        value = torch.randn(1, seen[spot].shape[1], generator=generator)
        written, found = run(loaded, {spot: [touch(value, [4])]}, spots=[spot])
        assert (found[spot][4] == value[0]).all(), spot
        others = [position for position in range(LENGTH) if position != 4]
        assert (found[spot][others] == seen[spot][others]).all(), spot
        assert (written[4] != logits[4]).any(), spot
        assert (written[:4] == logits[:4]).all() or loaded.info.architecture == "mixtral", spot
        assert close(written[:4], logits[:4])  # experts run over the tokens of all positions together


def test_a_write_to_queries_leaves_keys_and_values_alone_and_so_for_each(loaded):
    sites = [("q_proj", 1), ("k_proj", 1), ("v_proj", 1)]
    _, seen = run(loaded, spots=sites)
    for spot in sites:
        _, found = run(loaded, {spot: [touch(torch.ones(1, seen[spot].shape[1]), range(LENGTH))]}, sites)
        for other in sites:
            expected = torch.ones_like(seen[other]) if other == spot else seen[other]
            assert (found[other] == expected).all()
    values = {spot: torch.full((1, seen[spot].shape[1]), n + 1.0) for n, spot in enumerate(sites)}
    _, found = run(loaded, {spot: [touch(v, [3])] for spot, v in values.items()}, sites)
    for spot in sites:
        assert (found[spot][3] == values[spot]).all()
        assert (found[spot][:3] == seen[spot][:3]).all() and (found[spot][4:] == seen[spot][4:]).all()


@EVERY_MIDDLE
def test_a_write_between_attention_and_mlp_changes_the_stream_and_what_the_mlp_sees(folders, family):
    middle_is_written(load(make_model(folders[family], family), CPU))


def middle_is_written(loaded: Loaded) -> None:
    spots = spots_of(loaded)
    _, clean = run(loaded, spots=spots)
    value = torch.randn(2, loaded.info.width, generator=torch.Generator().manual_seed(5))
    mid = {("resid_mid", 1): [touch(value, [2, 7])]}
    _, seen = run(loaded, mid, spots)
    expected_mid = clean[("resid_mid", 1)].clone()
    expected_mid[[2, 7]] = value
    assert (seen[("resid_mid", 1)] == expected_mid).all()
    with torch.no_grad():
        mlp_input = normed(loaded, loaded.layout.mid_norm, 1, expected_mid[None])
        assert close(seen[("mlp_out", 1)], find(loaded.blocks[1], loaded.layout.mlp)(mlp_input)[0])
        added = contribution(loaded, seen, "mlp", 1)
    assert (seen[("resid_post", 1)] == expected_mid + added).all()
    assert (seen[("attn_out", 1)] == clean[("attn_out", 1)]).all()
    # A write to what the MLP adds comes on top of it, and one to the block's output after both.
    last = "mlp_out_normed" if loaded.layout.mlp_norm else "mlp_out"
    nothing = touch(None, range(LENGTH), "zero")
    _, seen = run(loaded, {**mid, (last, 1): [nothing]}, spots)
    assert (seen[("resid_post", 1)] == expected_mid).all()
    _, seen = run(loaded, {**mid, ("resid_post", 1): [nothing]}, spots)
    assert (seen[("resid_post", 1)] == 0).all() and (seen[("resid_mid", 1)] == expected_mid).all()


@EVERY_MIDDLE
def test_adding_between_attention_and_mlp_is_adding_to_what_attention_adds(folders, family):
    loaded = load(make_model(folders[family], family), CPU)
    value = torch.randn(1, loaded.info.width, generator=torch.Generator().manual_seed(5))
    source = "attn_out_normed" if loaded.layout.attn_norm else "attn_out"
    at_mid, _ = run(loaded, {("resid_mid", 2): [touch(value, [5], "add")]})
    at_attention, _ = run(loaded, {(source, 2): [touch(value, [5], "add")]})
    assert close(at_mid, at_attention)


def test_only_kept_logits_are_written_and_counted(loaded):
    spot = ("logits", LAST)
    whole, _ = run(loaded)
    value = torch.arange(float(loaded.info.vocabulary))[None]
    for keep, written in ((1, [10]), (3, [8, 10]), (LENGTH, [0, 8, 10])):
        one = touch(value, [0, 8, 10])
        found, seen = run(loaded, {spot: [one]}, [spot], keep=keep)
        expected = whole.clone()
        expected[written] = value
        assert close(found, expected[-keep:]) and (seen[spot] == found).all()
        assert (found[-1] == value[0]).all()
        assert float(one.tally.counts.sum()) == len(written)


def test_hooks_are_gone_afterwards(loaded):
    clean, _ = run(loaded)
    board = Board(loaded)
    with pytest.raises(RuntimeError, match="in between"), board.armed(spots_of(loaded), edges=ALL_LAYERS):
        board.touches[("resid_mid" if "resid_mid" in loaded.info.sites else "resid_pre", 1)] = [
            touch(None, range(LENGTH), "zero")
        ]
        raise RuntimeError("in between")
    assert (run(loaded)[0] == clean).all() and not board.touches
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in loaded.model.modules())


# --- attention masks


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@EVERY_FAMILY
def test_a_query_that_sees_itself_alone_reads_its_own_value(folders, family, attention):
    loaded = load(make_model(folders[family], family), replace(CPU, attention=attention))
    group = loaded.info.heads // loaded.info.kv_heads
    calls = []

    def only_itself(allowed, heads=None):
        calls.append(allowed.dtype)
        alone = torch.eye(LENGTH, dtype=torch.bool)[None, None].expand(1, loaded.info.heads, -1, -1)
        chosen = torch.zeros(1, loaded.info.heads, LENGTH, 1, dtype=torch.bool)
        chosen[:, heads if heads is not None else slice(None), 6] = True
        return torch.where(chosen, alone, allowed)

    spots = [("v_proj", 1), ("head_z", 1)]
    _, clean = run(loaded, spots=spots)
    _, seen = run(loaded, spots=spots, edges={1: only_itself})
    own = clean[("v_proj", 1)][6].unflatten(-1, (loaded.info.kv_heads, -1)).repeat_interleave(group, 0)
    assert close(seen[("head_z", 1)][6], own.flatten())
    assert close(seen[("head_z", 1)][:6], clean[("head_z", 1)][:6])
    _, seen = run(loaded, spots=spots, edges={1: lambda allowed: only_itself(allowed, [2])})
    heads = seen[("head_z", 1)][6].unflatten(-1, (loaded.info.heads, -1))
    before = clean[("head_z", 1)][6].unflatten(-1, (loaded.info.heads, -1))
    assert close(heads[2], own[2]) and close(heads[[0, 1, 3]], before[[0, 1, 3]])
    assert set(calls) == {torch.bool}


def test_a_mask_left_as_it_is_changes_nothing_bit_for_bit(loaded):
    clean, _ = run(loaded)
    assert (run(loaded, edges=dict.fromkeys(ALL_LAYERS, lambda allowed: allowed))[0] == clean).all()


# --- weights


def test_the_lens_at_the_last_layer_is_the_models_logits_bit_for_bit(loaded):
    logits, seen = run(loaded, spots=spots_of(loaded))
    assert (weights.unembed(loaded, seen[("resid_post", LAST)][None])[0] == logits).all()


def test_matrices_are_those_of_the_forward(loaded):
    _, seen = run(loaded, spots=spots_of(loaded))
    embed = weights.weight(loaded, "embed")
    assert (embed[list(IDS)] == seen[("embed", 0)].numpy()).all()
    unembed = weights.weight(loaded, "unembed")
    assert unembed.shape == embed.shape == (loaded.info.vocabulary, loaded.info.width)
    norm = find(loaded.model, loaded.layout.final_norm)
    logits = norm(seen[("resid_post", LAST)]).numpy() @ unembed.T
    cap = getattr(loaded.model.config, "final_logit_softcapping", None)
    logits = logits if cap is None else cap * np.tanh(logits / cap)
    assert close(torch.from_numpy(logits), seen[("logits", LAST)])
    with pytest.raises(BackendError, match="expected a layer from 0 to 3, got 4"):
        weights.weight(loaded, "o_proj", 4)


UNTIED = sorted(set(FAMILIES) - {"gemma2", "gemma3_text"})


@pytest.mark.parametrize("family", UNTIED)
def test_orthogonalised_weights_are_project_out_at_every_residual_site(tmp_path, family):
    loaded = load(make_model(tmp_path, family, tie_word_embeddings=False), CPU)
    before = copy.deepcopy(loaded.model.state_dict())
    clean, _ = run(loaded)
    direction = np.random.default_rng(2).normal(size=loaded.info.width)
    given = torch.from_numpy(direction).float()[None]
    sites = [s for s in ("resid_pre", "resid_mid", "resid_post") if s in loaded.info.sites]
    spots = [(site, layer) for site in sites for layer in ALL_LAYERS]
    hooked, _ = run(loaded, {spot: [touch(given, range(LENGTH), "project_out")] for spot in spots})
    with weights.orthogonalised(loaded, direction):
        orthogonal, seen = run(loaded, spots=spots)
        scaled = dict.fromkeys(spots)
        for spot, hidden in seen.items():
            scaled[spot] = (hidden @ given[0]).abs() / (hidden.norm(dim=-1) * given.norm())
    assert max(float(s.max()) for s in scaled.values()) < 1e-5
    assert close(orthogonal, hooked, 1e-4) and not close(orthogonal, clean, 1e-2)
    after = loaded.model.state_dict()
    assert all((after[name] == tensor).all() for name, tensor in before.items())
    with pytest.raises(RuntimeError), weights.orthogonalised(loaded, -3 * direction):
        assert close(run(loaded)[0], orthogonal)
        raise RuntimeError
    assert (run(loaded)[0] == clean).all()


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gemma3_text"])
def test_weights_that_cannot_be_orthogonalised_are_refused_with_all_reasons(folders, family):
    loaded = load(make_model(folders[family], family), CPU)
    with (
        pytest.raises(BackendError, match="its embeddings are tied") as told,
        weights.orthogonalised(loaded, np.ones(32)),
    ):
        pass
    assert ("post_feedforward_layernorm" in str(told.value)) == (family != "gpt2")


@pytest.mark.parametrize(
    ("direction", "told"),
    [
        (np.zeros(32), "other than zero"),
        (np.full(32, np.nan), "finite"),
        (np.ones(31), r"expected a direction of shape \(32,\), got \(31,\)"),
    ],
)
def test_a_direction_that_is_none_is_refused(folders, direction, told):
    loaded = load(make_model(folders["llama"]), CPU)
    with pytest.raises(BackendError, match=told), weights.orthogonalised(loaded, direction):
        pass


# --- positions


def test_moved_keys_are_those_computed_at_the_new_positions(loaded):
    if loaded.inverse_frequencies is None:
        assert not loaded.info.rotary and loaded.info.architecture == "gpt2"
        return
    keys = []
    for offset in (0, 9):
        cache = new_cache(loaded, 1, LENGTH)
        at = prompt_geometry(torch.tensor([0]), LENGTH)
        moved = Geometry(at.positions + offset, at.keys + offset, at.allowed)
        with torch.inference_mode():
            call(loaded, torch.tensor([IDS]), moved, cache)
        keys.append([cache.slot_layer(layer).keys for layer in ALL_LAYERS])
    for layer, (there, expected) in enumerate(zip(*keys, strict=True)):
        frequencies = loaded.inverse_frequencies[layer]
        found = rotate(there, torch.full((1, LENGTH), 9), frequencies)
        assert close(found, expected, 1e-4)
        rotated = 2 * len(frequencies)
        assert (found[..., rotated:] == there[..., rotated:]).all()
        assert not close(found, there, 1e-2)


def test_parts_of_heads_and_layers_rotate_as_their_config_says(folders):
    loaded = {f: load(make_model(folders[f], f), CPU) for f in ("phi3", "gpt_neox", "gemma3_text", "gpt2")}
    assert [len(f) for f in loaded["phi3"].inverse_frequencies] == [3] * 4
    assert [len(f) for f in loaded["gpt_neox"].inverse_frequencies] == [2] * 4
    local, other = loaded["gemma3_text"].inverse_frequencies[0], loaded["gemma3_text"].inverse_frequencies[3]
    assert torch.allclose(local, 10.0 ** (-torch.arange(4) / 4))
    assert torch.allclose(other, 1000.0 ** (-torch.arange(4) / 4))
    assert loaded["gemma3_text"].info.windows == (7, 7, 7, None)
    assert loaded["phi3"].info.windows == (12,) * 4
    assert loaded["gpt2"].info.windows == (None,) * 4


def test_keys_are_moved_only_where_they_can_be(folders):
    loaded = load(make_model(folders["gpt2"], "gpt2"), CPU)
    moving = write("kv", "kv_cache")
    with pytest.raises(BackendError, match=r"its positions are learned.*use rope: keep"):
        check_rope(loaded, [moving])
    check_rope(loaded, [replace(moving, rope="keep"), replace(moving, part="values")])
    rotary = nn.Module()
    rotary.rope_type = {"sliding_attention": "default", "full_attention": "dynamic"}
    model = nn.Module()
    model.model = nn.Module()
    model.model.rotary_emb = rotary
    assert rotary_kind(model, LAYOUTS["gemma3_text"]) == "dynamic"
    llama = load(make_model(folders["llama"]), CPU)
    with pytest.raises(BackendError, match=r"cannot be re-rotated.*dynamic"):
        check_rope(replace(llama, rotary_kind="dynamic"), [moving])


# --- what an architecture has and has not


def test_sites_that_are_lacking_are_told_with_the_nearest(loaded):
    info = loaded.info
    normed_blocks = info.architecture in ("gemma2", "gemma3_text")
    lacking = set() if normed_blocks else {"attn_out_normed", "mlp_out_normed"}
    if info.architecture == "gpt_neox":
        lacking.add("resid_mid")
    told = {site: loaded.layout.lacks(site) for site in MODULE_SITES}
    assert {site for site, sentence in told.items() if sentence is not None} == lacking
    assert {site for site in MODULE_SITES if site not in info.sites} == lacking
    assert {"kv_cache", "attention_edge", "sae"} <= set(info.sites)
    for site in lacking:
        assert f"'{info.architecture}' has no site {site}" in told[site]
        assert NEAREST[site] in told[site]
        with pytest.raises(KeyError):
            loaded.layout.place(site, info)


def test_gpt_neox_without_parallel_residual_has_a_middle(tmp_path):
    loaded = load(make_model(tmp_path, "gpt_neox", use_parallel_residual=False), CPU)
    assert "resid_mid" in loaded.info.sites
    test_writing_what_is_there_changes_nothing_bit_for_bit(loaded)
    middle_is_written(loaded)
    test_the_residual_stream_is_the_sum_of_embeddings_and_contributions(loaded)


def test_an_unknown_architecture_is_refused_with_what_there_is():
    with pytest.raises(BackendError) as told:
        layout_of("gemma3", "mine")
    text = str(told.value)
    assert "architecture 'gemma3' is not in the table" in text and "the nearest: gemma3_text" in text
    assert all(name in text for name in LAYOUTS) and "docs/architectures.md" in text
    with pytest.raises(BackendError, match="'longformer' is not in the table"):
        layout_of(LongformerConfig.model_type, "mine")


def test_every_module_that_is_not_where_the_table_says_is_listed(folders):
    source = make_model(folders["llama"])
    model = AutoModelForCausalLM.from_pretrained(folders["llama"])
    wrong = replace(
        LAYOUTS["llama"],
        embed="model.tokens",
        final_norm="model.ln_f",
        o_proj="self_attn.out",
        mid_norm="ln_2",
        down="mlp.w2",
    )
    with pytest.raises(BackendError) as told:
        check_layout(model, model.config, wrong, source)
    text = str(told.value)
    for path in ("model.tokens", "model.ln_f"):
        assert f"{path}: not found" in text
    for path in ("self_attn.out", "ln_2", "mlp.w2"):
        assert f"model.layers.0.{path}: not found" in text and f"model.layers.3.{path}: not found" in text
    with pytest.raises(BackendError, match=r"transformer.h: looked for its blocks there, found none"):
        check_layout(model, model.config, replace(LAYOUTS["llama"], blocks="transformer.h"), source)


def test_a_last_block_that_differs_from_the_first_is_refused(folders):
    source = make_model(folders["llama"])
    model = AutoModelForCausalLM.from_pretrained(folders["llama"])
    model.model.layers[3].mlp = nn.Identity()
    with pytest.raises(BackendError, match=r"model.layers.3.mlp.down_proj: not found") as told:
        check_layout(model, model.config, LAYOUTS["llama"], source)
    assert "layers.0" not in str(told.value)


@pytest.mark.parametrize("family", ["phi3", "gpt2", "gpt_neox", "mixtral", "gemma3_text"])
def test_another_width_than_declared_is_refused(folders, family):
    source = make_model(folders[family], family)
    with pytest.raises(BackendError) as told:
        load(replace(source, head_width=4), CPU)
    text = str(told.value)
    assert "head_dim 8, 4 declared" in text and "in_features 32, 16 declared" in text
    assert "out_features" in text


def test_a_model_that_reads_both_ways_is_refused(folders):
    source = make_model(folders["gemma3_text"], "gemma3_text")
    model = AutoModelForCausalLM.from_pretrained(folders["gemma3_text"])
    config = SimpleNamespace(**{**model.config.to_dict(), "use_bidirectional_attention": True})
    with pytest.raises(BackendError, match="use_bidirectional_attention true"):
        check_layout(model, config, LAYOUTS["gemma3_text"], source)


def test_gpt2_files_that_name_only_the_body_are_read(tmp_path):
    source = make_model(tmp_path, "gpt2")
    expected, _ = run(load(source, CPU))
    file = tmp_path / "model.safetensors"
    short = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    assert "h.0.attn.c_attn.weight" in short
    save_file(short, file, metadata={"format": "pt"})
    assert (run(load(source, CPU))[0] == expected).all()


@pytest.mark.parametrize(
    ("family", "leftovers"),
    [
        ("gpt2", ("transformer.h.0.attn.bias", "transformer.h.1.attn.bias")),
        ("gpt_neox", ("gpt_neox.layers.0.attention.bias", "gpt_neox.layers.1.attention.masked_bias")),
        ("gpt_neox", ("gpt_neox.layers.0.attention.rotary_emb.inv_freq",)),
        ("llama", ("model.layers.0.self_attn.rotary_emb.inv_freq",)),
    ],
)
def test_masks_and_frequencies_that_old_files_hold_are_no_tensors_of_the_model(tmp_path, family, leftovers):
    source = make_model(tmp_path, family)
    expected, _ = run(load(source, CPU))
    file = tmp_path / "model.safetensors"
    save_file(
        {**load_file(file), **{name: torch.ones(4) for name in leftovers}}, file, metadata={"format": "pt"}
    )
    assert (run(load(source, CPU))[0] == expected).all()
