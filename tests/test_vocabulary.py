"""Operations, values, units and edges of the vocabulary: each against what plain hooks on the same model
compute, and against what its definition says."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from backends.contract import BackendError, Start
from backends.measures import Probe, ScoreRow
from backends.positions import Positions
from backends.rows import Row, Sampling
from backends.torch.backend import TorchBackend
from backends.writes import Constant, Heads, PromptSet, Under, Value, Write
from tests.models import ALL_LAYERS, CPU, GREEDY, make_model, prompt
from tests.plain_reference import capture as plain_capture
from tests.plain_reference import hooked

ONE = Sampling(0.0, 1)
LAST = Positions.parse("index:-1")
ALL = Positions.parse("all")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("llama")
    source = make_model(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return TorchBackend(source, CPU), model


def constant(array: np.ndarray) -> Value:
    return Value("constant", constant=Constant(str(hash(array.tobytes())), array.astype(np.float32)))


def one(site: str, op: str, value: Value, layers=(1,), positions=ALL, during="prefill", **more) -> Write:
    return Write("w", site, layers, op, value, positions, during, **more)


def after(backend, row: Row, site: str, layer: int) -> np.ndarray:
    """Activations of a row's prompt under its writes."""
    return backend.capture([row], [(site, layer)])[0].activations[(site, layer)]


def logits_after(backend, row: Row) -> np.ndarray:
    return after(backend, row, "logits", backend.info.layers - 1)


def plain_logits(model, ids, edits=()) -> np.ndarray:
    with hooked(model, edits), torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].numpy()


def rows_like(writes, count=5, seed=0, **more) -> list[Row]:
    rng = random.Random(seed)
    return [
        Row(
            prompt(rng, rng.randrange(5, 14)),
            GREEDY,
            writes,
            {"donor": prompt(rng, 9)},
            value_stream=n,
            **more,
        )
        for n in range(count)
    ]


VECTOR = np.linspace(-1, 2, 32)


@pytest.mark.parametrize(
    ("op", "unit", "alpha", "expected"),
    [
        ("add", "direction_norm", 1.5, lambda x, v: x + 1.5 * v),
        ("add", "raw", 1.5, lambda x, v: x + 1.5 * v / v.norm()),
        ("add", "resid_norm", 0.5, lambda x, v: x + 0.5 * x.norm(dim=-1, keepdim=True) * v / v.norm()),
        ("project_out", "direction_norm", 1.0, lambda x, v: x - (x @ v)[:, None] * v / (v @ v)),
        ("project_out", "direction_norm", 0.5, lambda x, v: x - 0.5 * (x @ v)[:, None] * v / (v @ v)),
        ("scale", "direction_norm", 0.25, lambda x, v: 0.25 * x),
        ("replace", "direction_norm", 1.0, lambda x, v: v.expand_as(x)),
    ],
)
def test_operations_and_units(pair, op, unit, alpha, expected):
    backend, model = pair
    value = Value("none") if op == "scale" else constant(VECTOR)
    write = one("resid_post", op, value, alpha=alpha, unit=unit)
    for row in rows_like((write,)):
        clean = plain_capture(model, row.ids, "resid_post", 1)
        vector = torch.tensor(VECTOR, dtype=torch.float32)
        wanted = expected(clean, vector)
        np.testing.assert_allclose(after(backend, row, "resid_post", 1), wanted.numpy(), atol=2e-5)
        edit = ("resid_post", 1, lambda x, vector=vector: expected(x, vector))
        np.testing.assert_allclose(
            logits_after(backend, row), plain_logits(model, row.ids, [edit]), atol=1e-4
        )


def test_project_out_within_heads_touches_their_columns_alone(pair):
    backend, _ = pair
    write = one("head_z", "project_out", constant(VECTOR), heads=Heads("query", (1, 3)))
    (row,) = rows_like((write,), 1)
    clean = after(backend, Row(row.ids, GREEDY), "head_z", 1).reshape(-1, 4, 8)
    written = after(backend, row, "head_z", 1).reshape(-1, 4, 8)
    assert np.array_equal(clean[:, [0, 2]], written[:, [0, 2]])
    limited = VECTOR.reshape(4, 8)[[1, 3]].ravel()
    left = written[:, [1, 3]].reshape(len(row.ids), -1) @ limited
    assert np.abs(left).max() < 1e-5 * np.abs(clean).max() * np.linalg.norm(limited)
    assert np.abs(clean[:, [1, 3]].reshape(len(row.ids), -1) @ limited).max() > 1e-2


def test_a_constant_of_each_layer(pair):
    backend, _ = pair
    array = np.arange(4 * 32).reshape(4, 32) / 10
    write = one("resid_post", "replace", constant(array), layers=(0, 2), positions=LAST)
    (row,) = rows_like((write,), 1)
    for layer in (0, 2):
        assert np.allclose(after(backend, row, "resid_post", layer)[-1], array[layer])


def test_orthogonal_values_are_orthogonal_of_the_same_norm_and_drawn(pair):
    backend, _ = pair
    write = one("resid_post", "replace", Value("orthogonal", "donor", draws=2), positions=LAST)
    (row,) = rows_like((write,), 1)
    donor = after(backend, Row(row.sources["donor"], GREEDY), "resid_post", 1)[-1]
    found = after(backend, row, "resid_post", 1)[-1]
    assert abs(found @ donor) < 1e-5 * (donor @ donor)
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(donor), rel=1e-5)
    again = Row(row.ids, GREEDY, row.writes, row.sources, value_stream=row.value_stream, draw=1)
    other = after(backend, again, "resid_post", 1)[-1]
    assert np.abs(other - found).max() > 1e-2
    assert abs(other @ donor) < 1e-5 * (donor @ donor)


def test_means_are_over_prompts_and_their_positions(pair):
    backend, model = pair
    rng = random.Random(3)
    prompts = tuple(prompt(rng, n) for n in (4, 9, 6))
    window = Positions.parse("last:3")
    for during in ("prefill", "decode"):
        value = Value("mean", prompts=PromptSet(prompts))
        write = one("resid_post", "replace", value, layers=(0, 2), positions=window, during=during)
        (row,) = rows_like((write,), 1)
        if during == "decode":
            assert backend.decode([row])[0].receipts["w"].positions_decode > 0
            continue
        for layer in (0, 2):
            means = [plain_capture(model, ids, "resid_post", layer)[-3:].mean(0) for ids in prompts]
            wanted = torch.stack(means).mean(0).numpy()
            found = after(backend, row, "resid_post", layer)[-3:]
            np.testing.assert_allclose(found, np.broadcast_to(wanted, (3, 32)), atol=1e-5)


def test_back_patching_writes_the_state_of_another_layer(pair):
    backend, model = pair
    write = one("resid_post", "replace", Value("source", "self", layer=3), layers=(1,), positions=LAST)
    for row in rows_like((write,), 3):
        later = plain_capture(model, row.ids, "resid_post", 3)[-1]

        def edit(hidden, later=later):
            hidden[-1] = later
            return hidden

        wanted = plain_logits(model, row.ids, [("resid_post", 1, edit)])
        np.testing.assert_allclose(logits_after(backend, row), wanted, atol=1e-4)
    same = one("resid_post", "replace", Value("source", "self", layer=1), layers=(1,))
    (row,) = rows_like((same,), 1)
    assert np.array_equal(logits_after(backend, row), logits_after(backend, Row(row.ids, GREEDY)))


def test_under_captures_the_source_with_a_conditions_writes(pair):
    backend, model = pair
    inner = one("mlp_out", "zero", Value("none"), layers=(0,))
    write = one("resid_post", "replace", Value("source", "donor", under=Under((inner,))), (2,), LAST)
    clean = one("resid_post", "replace", Value("source", "donor"), (2,), LAST)
    for row in rows_like((write,), 3):
        with hooked(model, [("mlp_out", 0, torch.zeros_like)]):
            donor = plain_capture_here(model, row.sources["donor"])
        found = after(backend, row, "resid_post", 2)[-1]
        np.testing.assert_allclose(found, donor, atol=1e-4)
        other = after(backend, Row(row.ids, GREEDY, (clean,), row.sources), "resid_post", 2)[-1]
        assert np.abs(found - other).max() > 1e-2


def plain_capture_here(model, ids):
    seen = []
    handle = model.model.layers[2].register_forward_hook(
        lambda module, args, output: seen.append((output[0] if isinstance(output, tuple) else output)[0, -1])
    )
    with torch.no_grad():
        model(torch.tensor([ids]), use_cache=False)
    handle.remove()
    return seen[0].numpy()


def test_the_cache_of_a_donor_under_a_condition(pair):
    backend, _ = pair
    inner = one("v_proj", "zero", Value("none"), layers=ALL_LAYERS)
    write = Write(
        "kv",
        "kv_cache",
        ALL_LAYERS,
        "replace",
        Value("source", "donor", under=Under((inner,))),
        ALL,
        "prefill",
    )
    zeroed = Write("kv", "kv_cache", ALL_LAYERS, "zero", Value("none"), ALL, "prefill", part="values")
    rng = random.Random(5)
    donor = prompt(rng, 9)
    rows = [Row(donor, GREEDY, writes, {"donor": donor}) for writes in ((write,), (zeroed,), ())]
    values_gone, zero, clean = backend.decode(rows)
    assert values_gone.output_ids != clean.output_ids
    assert values_gone.receipts["kv"].relative_change > 0.1
    assert zero.receipts["kv"].positions_prefill == values_gone.receipts["kv"].positions_prefill == 8


# Attention edges


def edge(queries: str, keys: str, layers=ALL_LAYERS, during="prefill", **more) -> Write:
    return Write(
        "cut",
        "attention_edge",
        layers,
        "mask",
        Value("none"),
        Positions.parse(queries),
        during,
        keys=Positions.parse(keys),
        **more,
    )


def plain_masked(model, ids, cut, layers, heads=None) -> np.ndarray:
    """Logits with attention from queries to keys cut, by an explicit eager mask."""
    length = len(ids)
    allowed = torch.tril(torch.ones(length, length, dtype=torch.bool))
    floor = torch.finfo(torch.float32).min
    handles = []
    for layer in layers:
        mask = allowed[None].repeat(4, 1, 1)
        for head in range(4) if heads is None else heads:
            for query, key in cut:
                mask[head, query, key] = False
        given = torch.zeros(1, 4, length, length).masked_fill(~mask[None], floor)

        def before(module, args, kwargs, given=given):
            return args, {**kwargs, "attention_mask": given}

        attention = model.model.layers[layer].self_attn
        handles.append(attention.register_forward_pre_hook(before, with_kwargs=True))
    found = plain_logits(model, ids)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("heads", [None, (0, 2)])
def test_cut_edges_are_those_of_an_explicit_mask(pair, heads):
    backend, model = pair
    limited = None if heads is None else Heads("query", heads)
    write = edge("last:2", "first:3", (1, 2), heads=limited)
    rows = rows_like((write,), 4)
    for row, found in zip(rows, backend.decode([*rows]), strict=True):
        length = len(row.ids)
        cut = [(q, k) for q in (length - 2, length - 1) for k in range(3)]
        wanted = plain_masked(model, row.ids, cut, (1, 2), heads)
        np.testing.assert_allclose(logits_after(backend, row), wanted, atol=1e-4)
        assert found.output_ids[0] == wanted[-1].argmax()
        clean = plain_logits(model, row.ids)[-1]
        moved = np.linalg.norm(wanted[-1] - clean) / np.linalg.norm(clean)
        receipt = found.receipts["cut"]
        assert (receipt.asked_prefill, receipt.positions_prefill) == (2, 2)
        assert receipt.relative_change is None
        assert receipt.logit_change == pytest.approx(moved, rel=1e-3)


def test_edges_to_the_future_are_none(pair):
    backend, _ = pair
    write = edge("first:2", "last:2")
    rows = rows_like((write,), 3)
    for row, found, clean in zip(
        rows, backend.decode(rows), backend.decode([Row(r.ids, GREEDY) for r in rows]), strict=True
    ):
        assert found.output_ids == clean.output_ids
        assert found.receipts["cut"].positions_prefill == 0
        assert found.receipts["cut"].asked_prefill == 2
        assert found.receipts["cut"].logit_change == 0
        assert np.array_equal(logits_after(backend, row), logits_after(backend, Row(row.ids, GREEDY)))


def test_edges_cut_in_decode_alone(pair):
    backend, _ = pair
    write = edge("last:1", "first:4", during="decode")
    rows = rows_like((write,), 4)
    alone = [backend.decode([row])[0] for row in rows]
    clean = backend.decode([Row(row.ids, GREEDY) for row in rows])
    for together, single, base in zip(backend.decode(rows), alone, clean, strict=True):
        assert together.output_ids == single.output_ids
        assert together.output_ids[0] == base.output_ids[0]
        receipt = together.receipts["cut"]
        assert (receipt.asked_prefill, receipt.positions_prefill) == (0, 0)
        assert receipt.positions_decode == receipt.asked_decode == len(together.output_ids) - 1
        assert receipt.logit_change > 1e-4
    assert any(t.output_ids != c.output_ids for t, c in zip(alone, clean, strict=True))


def test_cached_edges_equal_recomputed_ones(pair):
    backend, _ = pair
    write = edge("last:2", "first:3", (1, 3), during="prefill")
    for row in rows_like((write,), 3, seed=8):
        anew = Row(row.ids, row.sampling, row.writes, row.sources, recompute=True)
        first, second = backend.decode([row, anew])
        assert first.output_ids == second.output_ids
        assert first.receipts["cut"].logit_change == pytest.approx(
            second.receipts["cut"].logit_change, rel=1e-3
        )


def test_a_query_that_would_see_nothing_is_invalid(pair):
    backend, _ = pair
    (row,) = rows_like((edge("all", "all", (1,)),), 1)
    (found,) = backend.decode([row])
    assert found.invalid == "'cut' leaves position 0 nothing to attend to at layer 1"


# Errors at the door


def test_a_vector_of_another_width_is_refused(pair):
    backend, _ = pair
    with pytest.raises(BackendError, match=r"takes a vector of \[32\].*has \[31\]"):
        backend.check([one("resid_post", "add", constant(np.ones(31)))])


@pytest.mark.parametrize("array", [np.zeros(32), np.full(32, np.nan)])
def test_trap_16_a_zero_or_infinite_direction_is_an_error(pair, array):
    backend, _ = pair
    (row,) = rows_like((one("resid_post", "project_out", constant(array)),), 1)
    with pytest.raises(BackendError, match=r"zero, which is no direction|not finite"):
        backend.decode([row])


def test_logits_are_written_at_the_last_position_alone(pair):
    backend, _ = pair
    (row,) = rows_like((one("logits", "add", constant(np.ones(120)), layers=(3,)),), 1)
    assert "at the last prompt position alone" in backend.decode([row])[0].invalid
    favoured = np.zeros(120)
    favoured[77] = 1e4
    write = one("logits", "add", constant(favoured), layers=(3,), positions=LAST, during="both")
    (row,) = rows_like((write,), 1)
    found = backend.decode([row])[0]
    assert set(found.output_ids) == {77}
    assert found.receipts["w"].positions_prefill == 1
    assert found.receipts["w"].positions_decode == len(found.output_ids) - 1


# What a batch, a retry or a nested run must not change


def under(*inner: Write) -> Value:
    return Value("source", "donor", under=Under(inner))


@pytest.fixture(scope="module")
def backend(pair):
    return pair[0]


@pytest.mark.parametrize(
    "inner",
    [
        one("resid_post", "zero", Value("none"), (0,), Positions.parse("last:16")),
        edge("all", "all", (1,)),
    ],
)
def test_a_source_that_cannot_be_run_makes_its_row_invalid_not_its_batch(backend, inner):
    rng = random.Random(0)
    write = one("resid_post", "replace", under(inner), (2,), LAST)
    bad, good = backend.decode(
        [Row(prompt(rng, 8), GREEDY, (write,), {"donor": prompt(rng, 6)}), Row(prompt(rng, 8), GREEDY)]
    )
    assert bad.invalid is not None and bad.invalid.startswith("the prompt that 'w' draws from: ")
    assert good.invalid is None


def test_a_donor_in_lockstep_under_one_in_lockstep(backend):
    rng = random.Random(0)
    lock = {"positions": ALL, "during": "decode", "hold": "lockstep"}
    inner = one("resid_post", "replace", Value("source", "other"), (1,), **lock)
    write = one("resid_post", "replace", under(inner), (2,), **lock)
    sources = {"donor": prompt(rng, 6), "other": prompt(rng, 7)}
    row = Row(prompt(rng, 8), GREEDY, (write,), sources)
    clean = replace(row, writes=(replace(write, value=Value("source", "donor")),))
    nested, plain = backend.decode([row, clean])
    assert nested.receipts["w"].positions_decode > 0
    assert nested.receipts["w"].relative_change != plain.receipts["w"].relative_change


def test_what_a_donor_draws_from_in_lockstep_evicts_nothing_that_is_needed(backend, tmp_path):
    small = TorchBackend(make_model(tmp_path), replace(CPU, budget=4 * 3000))
    rng = random.Random(0)
    inner = one("resid_pre", "add", Value("source", "other"), (0,), LAST)
    writes = (
        Write("lock", "resid_post", (2,), "replace", under(inner), ALL, "decode", hold="lockstep"),
        Write("third", "mlp_out", (1,), "replace", Value("source", "third"), ALL, "both", hold="cycle"),
    )
    sources = {"donor": prompt(rng, 26), "other": prompt(rng, 27), "third": prompt(rng, 28)}
    row = Row(prompt(rng, 8), GREEDY, writes, sources)
    assert small.decode([row]) == backend.decode([row])


def test_a_replayed_token_cannot_begin_at_a_layer_of_the_prefix(backend):
    ids = prompt(random.Random(1), 9)
    row = Row(ids, GREEDY, replay_last_token=True)
    with pytest.raises(BackendError, match=r"start\.layer 2: a replayed token stands at another position"):
        backend.decode([row], Start(backend.prefix(ids), 2))
    assert backend.decode([row], Start(backend.prefix(ids)))[0].output_ids == (
        backend.decode([row])[0].output_ids
    )


def test_edges_cut_in_decode_are_judged_by_the_replayed_token(backend):
    write = edge("last:1", "first:4", during="decode")
    row = Row(prompt(random.Random(1), 9), ONE, (write,), replay_last_token=True)
    (found,) = backend.decode([row])
    assert found.receipts["cut"].positions_decode == 1
    both = replace(row, writes=(replace(write, during="both", positions=Positions.parse("index:-2")),))
    assert found.receipts["cut"].logit_change > 1e-4
    assert backend.decode([both])[0].receipts["cut"].logit_change > 1e-4


@pytest.mark.parametrize("recompute", [False, True])
def test_a_row_that_has_ended_measures_nothing_more(backend, recompute):
    rng = random.Random(1)
    write = edge("last:1", "first:4", during="decode")
    rows = [
        Row(prompt(rng, 9), Sampling(0.0, tokens), (write,), recompute=recompute)
        for tokens in (1, 6, 6, 6, 6)
    ]
    assert backend.decode(rows)[0].receipts["cut"].logit_change is None
    assert backend.decode(rows[:1])[0].receipts["cut"].logit_change is None
    assert backend.decode(rows)[1].receipts["cut"].logit_change > 1e-4


def test_a_score_without_a_cache_measures_cut_edges_too(backend):
    probe = Probe("top_k", "top", top=3)
    other = one("resid_pre", "scale", Value("none"), (0,), alpha=0.5)
    for row in rows_like((edge("last:2", "first:3"), other), 3):
        anew, cached = backend.score([ScoreRow(replace(row, recompute=True)), ScoreRow(row)], [probe])
        decoded = backend.decode([row])[0].receipts["cut"].logit_change
        for found in (anew, cached):
            assert found.receipts["cut"].logit_change == pytest.approx(decoded, rel=1e-3)


def new_tokens_see(backend, row: Row) -> list[np.ndarray]:
    """What layer 2 takes for the last token of each forward."""
    seen = []
    handle = backend._loaded.blocks[2].register_forward_pre_hook(
        lambda module, args: seen.append(args[0][0, -1].numpy().copy())
    )
    backend.decode([row])
    handle.remove()
    return seen


@pytest.mark.parametrize("replay", [False, True])
def test_every_position_has_noise_of_its_own(backend, replay):
    write = one("resid_post", "replace", Value("random"), (1,), LAST, "both")
    row = Row(
        prompt(random.Random(1), 9), Sampling(0.0, 3), (write,), value_stream=5, replay_last_token=replay
    )
    noise = [(x - x.mean()) / x.std() for x in new_tokens_see(backend, row)][-4 if replay else -3 :]
    for number, one_position in enumerate(noise):
        for other in noise[number + 1 :]:
            assert np.abs(one_position - other).max() > 0.1


@pytest.mark.parametrize("last", ["sliding", "constant"])
def test_a_sliding_write_keeps_its_place_in_the_order(backend, last):
    rng = random.Random(1)
    sliding = Write(
        "sliding",
        "resid_post",
        (1,),
        "replace",
        Value("source", "donor"),
        Positions.parse("last:3"),
        "decode",
        hold="sliding",
        order=int(last == "sliding"),
    )
    fixed = replace(one("resid_post", "replace", constant(VECTOR), during="decode"), order=1 - sliding.order)
    row = Row(prompt(rng, 9), GREEDY, (sliding, fixed), {"donor": prompt(rng, 9)}, recompute=True)
    found = new_tokens_see(backend, row)[-1]
    assert np.allclose(found, VECTOR, atol=1e-5) == (last == "constant")


def test_a_replay_needs_a_cache(backend):
    row = Row(prompt(random.Random(1), 9), GREEDY, recompute=True, replay_last_token=True)
    assert backend.decode([row])[0].invalid == "a token is fed again into a cache; recompute has none"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (1,)}, "'kv': align whole takes the cache of all layers"),
        ({"part": "values"}, "align whole takes the source's cache entire; 'kv' limits it by part"),
        ({"heads": Heads("kv", (1,))}, "align whole takes the source's cache entire"),
        ({"value": Value("random")}, "align whole takes the cache of another prompt, and 'kv' has none"),
    ],
)
def test_a_cache_is_taken_whole_or_not_at_all(backend, changes, message):
    write = Write(
        "kv", "kv_cache", ALL_LAYERS, "replace", Value("source", "donor"), ALL, "prefill", align="whole"
    )
    rng = random.Random(1)
    row = Row(prompt(rng, 9), GREEDY, (replace(write, **changes),), {"donor": prompt(rng, 7)})
    assert backend.decode([row])[0].invalid.startswith(message)


def test_an_edge_outside_the_window_of_one_layer_counts_at_another(tmp_path):
    backend = TorchBackend(make_model(tmp_path, "gemma2"), CPU)
    row = Row(prompt(random.Random(1), 14), GREEDY, (edge("last:1", "first:2", during="both"),))
    (found,) = backend.decode([row])
    receipt = found.receipts["cut"]
    assert receipt.logit_change > 1e-5
    assert receipt.positions_prefill == 1
    assert receipt.positions_decode == receipt.asked_decode > 0


def test_a_condition_under_a_condition_is_checked_too(backend):
    lacking = one("attn_out_normed", "zero", Value("none"), (0,))
    middle = one("resid_post", "replace", under(lacking), (1,), LAST)
    with pytest.raises(BackendError, match=r"'w': .*attn_out_normed"):
        backend.check([one("resid_post", "replace", under(middle), (2,), LAST)])


def test_logits_of_a_prompt_whose_last_token_is_replayed_are_read_by_nobody(backend):
    favoured = np.zeros(120)
    favoured[77] = 1e4
    write = one("logits", "add", constant(favoured), (3,), LAST)
    row = Row(prompt(random.Random(1), 9), GREEDY, (write,), replay_last_token=True)
    (found,) = backend.decode([row])
    assert 77 not in found.output_ids
    assert found.receipts["w"].shadowed == found.receipts["w"].positions_prefill == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_takes_every_kind_of_write(tmp_path, dtype):
    backend = TorchBackend(make_model(tmp_path), replace(CPU, dtype=dtype))
    rng = random.Random(1)
    mean = Value("mean", prompts=PromptSet((prompt(rng, 6),)))
    writes = (
        Write("a", "resid_mid", (1,), "project_out", constant(VECTOR), ALL, "both"),
        Write("b", "logits", (3,), "scale", Value("none"), LAST, "both", alpha=0.5),
        Write("c", "head_z", (2,), "replace", mean, ALL, "both", heads=Heads("query", (1,))),
        replace(
            one("embed", "add", Value("orthogonal", "donor"), (0,), ALL, "both", hold="mean"),
            name="d",
            unit="resid_norm",
            alpha=0.5,
        ),
        replace(edge("last:2", "first:2", during="both"), name="e"),
    )
    rows = [Row(prompt(rng, n), GREEDY, writes, {"donor": prompt(rng, 8)}) for n in (5, 9, 7)]
    for found, row in zip(backend.decode(rows), rows, strict=True):
        assert found.invalid is None
        length, forwards = len(row.ids), len(found.output_ids) - 1
        asked = {"a": length, "b": 1, "c": length, "d": min(length, 8), "e": 2}
        for name, receipt in found.receipts.items():
            assert (receipt.positions_prefill, receipt.positions_decode) == (asked[name], forwards)
        assert found.receipts["b"].relative_change == pytest.approx(0.5, rel=1e-2)
        assert found.receipts["d"].relative_change == pytest.approx(0.5, rel=1e-2)
    vector, mid = np.float64(VECTOR), after(backend, replace(rows[0], writes=writes[:1]), "resid_mid", 1)
    clean = after(backend, replace(rows[0], writes=()), "resid_mid", 1)
    assert np.abs(mid @ vector).max() < 0.02 * np.abs(clean @ vector).max()


# Values that are drawn, by their properties


@pytest.mark.parametrize("site", ["embed", "resid_mid", "mlp_out", "k_proj", "head_z"])
@pytest.mark.parametrize("kind", ["random", "orthogonal", "shuffled_window", "shuffled_sequence"])
def test_drawn_values_have_the_properties_that_they_are_drawn_for(pair, site, kind):
    backend, model = pair
    layer = 0 if site == "embed" else 1
    value = Value(kind, "" if kind == "random" else "donor", draws=2)
    write = one(site, "replace", value, (layer,), Positions.parse("last:4"))
    others = []
    for row in rows_like((write,), 4, seed=3):
        found = after(backend, row, site, layer)[-4:]
        assert np.array_equal(found, after(backend, replace(row, draw=2), site, layer)[-4:])
        others.append(not np.array_equal(found, after(backend, replace(row, draw=1), site, layer)[-4:]))
        old = after(backend, Row(row.ids, GREEDY), site, layer)[-4:]
        donor = plain_capture(model, row.sources["donor"], site, layer).numpy()
        if kind == "random":
            width = 8 if site in ("k_proj", "head_z") else old.shape[1]
            new, before = found.reshape(-1, width), old.reshape(-1, width)
            gap = (new.mean(1) - before.mean(1)) / before.std(1)
            assert np.abs(gap).max() < 5 / np.sqrt(width)
            assert (new.std(1) < 3 * before.std(1)).all()
        elif kind == "orthogonal":
            norms = np.linalg.norm(donor[-4:], axis=1)
            np.testing.assert_allclose(np.linalg.norm(found, axis=1), norms, rtol=1e-4)
            assert np.abs((found * donor[-4:]).sum(1) / norms**2).max() < 1e-5
        else:
            pool = donor[-4:] if kind == "shuffled_window" else donor
            nearest = [int(np.abs(pool - row_).max(1).argmin()) for row_ in found]
            assert len(set(nearest)) == 4 or site == "embed"  # whose tokens may repeat
            np.testing.assert_allclose(found, pool[nearest], atol=1e-5)
    assert any(others)  # four rows have few orders: two draws may agree


def test_a_row_in_lockstep_has_its_donors_near_ties_too(pair):
    backend, _ = pair
    write = one(
        "v_proj", "replace", Value("source", "donor"), positions=LAST, during="decode", hold="lockstep"
    )
    for row in rows_like((write,), 4):
        donor = Row(row.sources["donor"], GREEDY, stream=row.stream)
        alone, together = backend.decode([donor])[0], backend.decode([row])[0]
        assert together.min_margin <= alone.min_margin
