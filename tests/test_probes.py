"""Probes on tiny models, against transformers."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from backends.contract import BackendError, Start
from backends.measures import Probe, Scope, ScoreRow
from backends.probes import distribution, kinds, lens, likelihood, ranking
from backends.rows import Row
from backends.torch.backend import TorchBackend
from tests.models import CPU, FAMILIES, GREEDY, VOCABULARY, make_model, prompt, write
from tests.plain_reference import capture, hooked

CLOSE = {"rel": 1e-3, "abs": 1e-5}  # a model of our own running, against transformers


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def pair(request, tmp_path_factory):
    """A backend and the same model as transformers loads it."""
    folder = tmp_path_factory.mktemp(request.param)
    source = make_model(folder, request.param)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return TorchBackend(source, CPU), model


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    source = make_model(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return TorchBackend(source, CPU), model


def logits_of(model, ids, edits=()) -> np.ndarray:
    """transformers' logits at every position [tokens, vocabulary]."""
    with hooked(model, list(edits)), torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].numpy()


def zeroed(hidden: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(hidden)


SETS = {"ours": (5, 9, 5), "theirs": (11, 40, 77)}
NEXT = (
    Probe("next_token", "p", tokens="ours"),
    Probe("log_odds", "gap", tokens="ours", against="theirs"),
    Probe("log_odds", "odds", tokens="ours"),
    Probe("rank", "place", tokens="ours"),
    Probe("accuracy", "right", tokens="ours"),
    Probe("top_k", "top", top=3),
    Probe("kl", "drift"),
    Probe("lens", "lens", tokens="ours", layers=(0, 2, 3)),
    Probe("cross_entropy", "ce"),
)
OFF = write("off", "mlp_out", (1,), op="zero")  # every position of the prompt
OFF_LAST = write("off", "mlp_out", (1,), op="zero", positions="index:-1")


def scored(ids, *writes, continuation=(), **more) -> ScoreRow:
    return ScoreRow(Row(tuple(ids), GREEDY, writes, **more), tuple(continuation), SETS)


def expect_next(found, logits: np.ndarray, clean: np.ndarray) -> None:
    """Values of NEXT but for lens and cross_entropy, of logits [vocabulary]."""
    values = found.values
    assert found.invalid is None
    assert values["p"] == pytest.approx(float(distribution.next_token(logits, SETS["ours"])), **CLOSE)
    expected = float(distribution.log_odds(logits, SETS["ours"], SETS["theirs"]))
    assert values["gap"] == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert values["odds"] == pytest.approx(
        float(distribution.log_odds(logits, SETS["ours"])), rel=1e-3, abs=1e-3
    )
    assert values["place"] == int(ranking.rank(logits, SETS["ours"]))
    assert values["right"] == (values["place"] == 0)
    ids, probs = ranking.top_k(logits, 3)
    assert values["top.ids"] == tuple(ids.tolist())
    assert values["top.probs"] == pytest.approx(probs, **CLOSE)
    assert values["drift"] == pytest.approx(float(distribution.kl(clean, logits)), rel=1e-2, abs=1e-5)


def test_probes_of_the_prompt_are_those_of_transformers(pair):
    backend, model = pair
    rng = random.Random(7)
    prompts = [prompt(rng, n) for n in (9, 4, 15, 2)]
    rows = [scored(ids, *writes) for ids in prompts for writes in ((), (OFF,), (OFF_LAST,))]
    for row, found in zip(rows, backend.score(rows, NEXT), strict=True):
        ids = row.row.ids

        def last_zeroed(hidden):
            hidden[-1] = 0
            return hidden

        edits = {
            (): [],
            (OFF,): [("mlp_out", 1, zeroed)],
            (OFF_LAST,): [("mlp_out", 1, last_zeroed)],
        }[row.row.writes]
        logits = logits_of(model, ids, edits)
        expect_next(found, logits[-1], logits_of(model, ids)[-1])
        loss = likelihood.cross_entropy(likelihood.token_log_probabilities(logits[:-1], np.array(ids[1:])))
        assert found.values["ce"] == pytest.approx(loss, **CLOSE)
        if row.row.writes:
            asked = len(ids) if row.row.writes == (OFF,) else 1
            receipt = found.receipts["off"]
            assert (receipt.positions_prefill, receipt.asked_decode) == (asked, 0)
            assert receipt.relative_change == pytest.approx(1)
        else:
            assert found.values["drift"] == 0
            assert found.receipts == {}


def test_the_lens_is_the_unembedding_of_each_layer(pair):
    backend, model = pair
    rng = random.Random(8)
    rows = [scored(prompt(rng, n), *writes) for n in (9, 4) for writes in ((), (OFF,))]
    probes = [
        Probe("lens", "all", tokens="ours", layers=(0, 1, 2, 3)),
        Probe("lens", "inner", tokens="ours", layers=(2,), position=1),
        Probe("next_token", "p", tokens="ours"),
        Probe("rank", "place", tokens="ours"),
    ]
    for row, found in zip(rows, backend.score(rows, probes), strict=True):
        edits = [("mlp_out", 1, zeroed)] if row.row.writes else []
        with hooked(model, edits):
            states = [capture(model, row.row.ids, "resid_post", layer) for layer in range(4)]
        logits = np.stack(
            [backend.unembed(state.numpy()) for state in states]
        )  # [layers, tokens, vocabulary]
        expected = lens.readings(logits[:, -1], SETS["ours"])
        assert found.values["all.rank"] == tuple(expected.rank.tolist())
        assert found.values["all.top"] == tuple(expected.top.tolist())
        assert found.values["all.prob"] == pytest.approx(expected.prob, **CLOSE)
        inner = lens.readings(logits[2:3, 1], SETS["ours"])
        assert found.values["inner.prob"] == pytest.approx(inner.prob, **CLOSE)
        # At the last layer it is the model's own prediction.
        assert found.values["all.prob"][-1] == pytest.approx(found.values["p"], rel=1e-5)
        assert found.values["all.rank"][-1] == found.values["place"]


def test_other_positions_are_read_after_themselves(pair):
    backend, model = pair
    rng = random.Random(9)
    rows = [scored(prompt(rng, n), *writes) for n in (9, 4) for writes in ((), (OFF,))]
    for position in (1, -3, 3):
        probes = [dataclasses.replace(p, position=position) for p in NEXT if p.kind in kinds.AT_POSITION]
        for row, found in zip(rows, backend.score(rows, probes), strict=True):
            edits = [("mlp_out", 1, zeroed)] if row.row.writes else []
            clean = logits_of(model, row.row.ids)
            expect_next(found, logits_of(model, row.row.ids, edits)[position], clean[position])


def test_a_position_outside_the_prompt_is_invalid_and_its_neighbours_are_not(llama):
    backend, _ = llama
    rng = random.Random(10)
    rows = [scored(prompt(rng, n)) for n in (9, 4)]
    long, short = backend.score(rows, [Probe("next_token", "p", tokens="ours", position=6)])
    assert long.invalid is None and 0 < long.values["p"] < 1
    assert short.invalid == "position 6 is outside a prompt of 4 tokens"
    assert short.values == {}


@pytest.mark.parametrize("order", [{}, {"replay_last_token": True}, {"recompute": True}])
def test_each_row_is_read_at_its_own_named_position(llama, order):
    backend, _ = llama
    rng = random.Random(31)
    long, short = prompt(rng, 9), prompt(rng, 4)
    asked = [(long, (), 2), (long, (OFF,), 2), (long, (OFF,), 5), (long, (), 8), (short, (OFF,), 3)]
    asked += [(short, (OFF,), 0), (short, (OFF_LAST,), 3)]
    scope = Scope((0, 5, 6), -1, 1)
    probes = [
        *(p for p in NEXT if p.kind in kinds.AT_POSITION),
        Probe("patchscope", "scope", tokens="ours", layers=(1, 3), scope=scope),
    ]
    named = [dataclasses.replace(probe, at="here") for probe in probes]
    rows = [
        dataclasses.replace(scored(ids, *writes, **order), positions={"here": at})
        for ids, writes, at in asked
    ]
    together = backend.score(rows, named)
    for row, (_, _, at), found in zip(rows, asked, together, strict=True):
        (alone,) = backend.score([row], [dataclasses.replace(probe, position=at) for probe in probes])
        assert found.invalid is None and found.receipts == alone.receipts
        for column, value in alone.values.items():
            assert found.values[column] == pytest.approx(value, rel=1e-4, abs=1e-6), column
    # One prompt at two places is held against itself at each of them.
    assert together[1].values["drift"] != pytest.approx(together[2].values["drift"], rel=1e-2)


def test_a_named_position_is_one_of_the_prompt(llama):
    backend, _ = llama
    rng = random.Random(32)
    probe = Probe("next_token", "p", tokens="ours", at="here")
    rows = [dataclasses.replace(scored(prompt(rng, 4)), positions={"here": at}) for at in (3, 4, -1)]
    good, beyond, negative = backend.score(rows, [probe])
    assert good.invalid is None
    assert beyond.invalid == "position 4 (here) is outside a prompt of 4 tokens"
    assert negative.invalid == "position -1 (here) is outside a prompt of 4 tokens"
    wrong = [probe, Probe("geometry", "g", layers=(1, 2), at="here"), Probe("kl", "k", position=1, at="here")]
    with pytest.raises(BackendError) as told:
        backend.score([rows[0], scored((0, 5))], wrong)
    for part in (
        "position 'here': not in row 1 (positions: here)",
        "probe 'g' (geometry): at: expected a probe of one position (next_token, ",
        "probe 'k' (kl): expected position or at, got 1 and 'here'",
    ):
        assert part in str(told.value), part


def test_one_prompt_alone_predicts_nothing_of_itself(llama):
    backend, _ = llama
    rng = random.Random(11)
    rows = [scored((0,)), scored(prompt(rng, 6))]
    single, longer = backend.score(
        rows, [Probe("cross_entropy", "ce"), Probe("next_token", "p", tokens="ours")]
    )
    assert single.values["ce"] is None and single.values["p"] > 0
    assert longer.values["ce"] > 0
    assert backend.score(rows[:1], [Probe("cross_entropy", "ce")])[0].values == {"ce": None}


def test_prompts_that_differ_in_the_last_token_differ_in_cross_entropy(llama):
    backend, model = llama
    rng = random.Random(12)
    common = prompt(rng, 7)
    rows = [scored((*common, last)) for last in (5, 9, 5)]
    values = [found.values["ce"] for found in backend.score(rows, [Probe("cross_entropy", "ce")])]
    assert values[0] == values[2] != values[1]
    for row, value in zip(rows, values, strict=True):
        ids = torch.tensor([row.row.ids])
        with torch.no_grad():
            assert value == pytest.approx(float(model(ids, labels=ids).loss), rel=1e-4)


CONDITIONS = {
    "baseline": (),
    "kv": (write("kv", "kv_cache"),),
    "whole": (write("kv", "kv_cache", align="whole"),),
    "prefill": (write("r", "resid_pre", (1,), positions="last:3"),),
    "decode": (write("v", "v_proj", (2,), during="decode", positions="last:4", hold="cycle"),),
    "both": (write("r", "resid_post", (2,), positions="last:3", during="both", hold="cycle"),),
    "random": (write("v", "v_proj", (1,), value="random", positions="last:4", during="prefill"),),
}


@pytest.mark.parametrize("replay", [False, True])
def test_what_is_read_is_what_decoding_draws_from(llama, replay):
    backend, _ = llama
    rng = random.Random(13)
    rows = [
        scored(ids, *writes, sources={"donor": donor}, value_stream=3, replay_last_token=replay)
        for ids, donor in [(prompt(rng, n), prompt(rng, m)) for n, m in ((9, 12), (6, 5))]
        for writes in CONDITIONS.values()
    ]
    decoded = backend.decode([row.row for row in rows])
    probes = [Probe("top_k", "top"), Probe("lens", "lens", layers=(3,)), Probe("kl", "drift")]
    for row, found, text in zip(rows, backend.score(rows, probes), decoded, strict=True):
        assert found.values["top.ids"][0] == text.output_ids[0]
        assert found.values["lens.top"][0] == text.output_ids[0]
        writes = row.row.writes
        reached = bool(writes) and (replay or writes[0].during != "decode")
        assert found.values["drift"] > 1e-6 if reached else found.values["drift"] < 1e-9
        for name, receipt in found.receipts.items():
            assert receipt.positions_prefill == text.receipts[name].positions_prefill
            assert receipt.shadowed == text.receipts[name].shadowed
            assert receipt.asked_decode == (writes[0].during != "prefill") * replay


@pytest.mark.parametrize("replay", [False, True])
def test_the_last_position_is_one_however_it_is_named(llama, replay):
    """Where the last token is replayed, both names mean the second time, from which the text goes on."""
    backend, _ = llama
    row = scored(prompt(random.Random(31), 9), replay_last_token=replay)
    probes = [
        Probe(kind, f"{kind} {at}", tokens="ours", layers=(1, 3), position=at)
        for kind in ("next_token", "lens")
        for at in (-1, 8)
    ]
    (found,) = backend.score([row], probes)
    assert found.values["next_token 8"] == found.values["next_token -1"]
    assert found.values["lens 8.prob"] == found.values["lens -1.prob"]


def test_without_a_cache_the_prompt_reads_the_same(llama):
    backend, _ = llama
    rng = random.Random(14)
    rows = [scored(prompt(rng, n), *w, continuation=(7, 1, 9)) for n in (9, 5) for w in ((), (OFF,))]
    anew = [dataclasses.replace(r, row=dataclasses.replace(r.row, recompute=True)) for r in rows]
    probes = [*NEXT, Probe("next_token", "inner", tokens="ours", position=1)]
    probes.append(Probe("geometry", "r_v", layers=(0, 2), windows=(4,)))
    probes.append(Probe("logprob", "c"))
    mixed = backend.score([*rows, *anew], probes)
    for a, b in zip(mixed[:4], mixed[4:], strict=True):
        for name, value in a.values.items():
            assert b.values[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
        assert {n: r.positions_prefill for n, r in a.receipts.items()} == {
            n: r.positions_prefill for n, r in b.receipts.items()
        }


@pytest.mark.parametrize("layer", [None, 1])
def test_a_patchscope_writes_the_state_into_another_prompt(pair, layer):
    backend, model = pair
    rng = random.Random(15)
    scope = Scope(prompt(rng, 6), 2, layer)
    rows = [scored(prompt(rng, n), *w) for n in (9, 4) for w in ((), (OFF,))]
    probe = Probe("patchscope", "scope", tokens="ours", layers=(0, 1, 2), scope=scope, position=-2)
    for row, found in zip(rows, backend.score(rows, [probe]), strict=True):
        expected = []
        for source in probe.layers:
            with hooked(model, [("mlp_out", 1, zeroed)] if row.row.writes else []):
                state = capture(model, row.row.ids, "resid_post", source)[-2]

            def put(hidden, state=state):
                hidden[2] = state
                return hidden

            target = source if layer is None else layer
            expected.append(logits_of(model, scope.ids, [("resid_post", target, put)])[-1])
        readings = lens.readings(np.stack(expected), SETS["ours"])
        assert found.values["scope.prob"] == pytest.approx(readings.prob, **CLOSE)
        assert found.values["scope.rank"] == tuple(readings.rank.tolist())
        assert found.values["scope.top"] == tuple(readings.top.tolist())
        assert set(found.receipts) == ({"off"} if row.row.writes else set())


def test_a_patchscope_into_the_prompt_itself_reads_the_prompt_itself(llama):
    backend, _ = llama
    rng = random.Random(16)
    ids = prompt(rng, 8)
    probes = [
        Probe("patchscope", "scope", tokens="ours", layers=(0, 1, 2, 3), scope=Scope(ids, 4), position=4),
        Probe("next_token", "p", tokens="ours"),
    ]
    (found,) = backend.score([scored(ids)], probes)
    assert found.values["scope.prob"] == pytest.approx([found.values["p"]] * 4, rel=1e-5)


def teacher_forced(model, ids, continuation, decode_edits=()) -> list[float]:
    """log p of each token of a continuation, one decode forward at a time."""
    cache = DynamicCache()
    out = []
    with torch.no_grad():
        logits = model(torch.tensor([ids]), past_key_values=cache, use_cache=True).logits[0, -1]
        with hooked(model, list(decode_edits)):
            for token in continuation:
                out.append(float(logits.log_softmax(-1)[token]))
                logits = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits[0, -1]
    return out


def test_the_log_probability_of_a_continuation_under_decode_writes(pair):
    backend, model = pair
    rng = random.Random(17)
    off = write("off", "mlp_out", (1,), op="zero", during="decode")
    rows = [
        scored(prompt(rng, n), *writes, continuation=prompt(rng, m)[1:])
        for n, m in ((9, 7), (4, 2), (6, 12))
        for writes in ((), (off,))
    ]
    probes = [Probe("logprob", "c"), Probe("perplexity", "ppl"), Probe("next_token", "p", tokens="ours")]
    for row, found in zip(rows, backend.score(rows, probes), strict=True):
        edits = [("mlp_out", 1, zeroed)] if row.row.writes else []
        expected = teacher_forced(model, row.row.ids, row.continuation, edits)
        assert found.values["c.tokens"] == pytest.approx(expected, rel=1e-3, abs=1e-4)
        assert found.values["c"] == pytest.approx(sum(expected), rel=1e-3, abs=1e-4)
        clean = teacher_forced(model, row.row.ids, row.continuation)
        assert found.values["ppl"] == pytest.approx(likelihood.perplexity(np.array(clean)), rel=1e-3)
        if row.row.writes:
            receipt = found.receipts["off"]
            assert receipt.positions_decode == receipt.asked_decode == len(row.continuation) - 1


def test_a_continuation_of_one_token_is_the_next_token_and_an_empty_one_nothing(llama):
    backend, _ = llama
    rng = random.Random(18)
    sets = {"ours": (33,)}
    rows = [ScoreRow(Row(prompt(rng, 7), GREEDY, (OFF,)), c, sets) for c in ((33,), ())]
    probes = [Probe("logprob", "c"), Probe("next_token", "p", tokens="ours"), Probe("perplexity", "ppl")]
    one, none = backend.score(rows, probes)
    assert one.values["c"] == pytest.approx(math.log(one.values["p"]), rel=1e-5)
    assert one.values["c.tokens"] == (one.values["c"],)
    assert (none.values["c"], none.values["c.tokens"], none.values["ppl"]) == (None, (), None)
    assert none.receipts["off"].positions_prefill == 7
    (unread,) = backend.score(rows[1:], [Probe("logprob", "c")])
    assert unread.values["c"] is None and unread.receipts == {}


@pytest.mark.parametrize("condition", sorted(CONDITIONS))
def test_the_models_own_text_is_its_likeliest_next_token_throughout(llama, condition):
    """A greedy text as a continuation, an end-of-text token within it: each token ranks first again, so that
    forced and drawn tokens meet the same writes at the same steps."""
    backend, _ = llama
    rng = random.Random(19)
    donor = prompt(rng, 12)
    rows = [
        Row(prompt(rng, n), GREEDY, CONDITIONS[condition], {"donor": donor}, value_stream=5) for n in (9, 6)
    ]
    texts = backend.decode(rows)
    again = [ScoreRow(row, (*text.output_ids, 1)) for row, text in zip(rows, texts, strict=True)]
    for row, text, found in zip(again, texts, backend.score(again, [Probe("logprob", "c")]), strict=True):
        alone = backend.score([row], [Probe("logprob", "c")])[0]
        assert found.values["c.tokens"] == pytest.approx(alone.values["c.tokens"], rel=1e-4, abs=1e-5)
        for cut in range(1, len(text.output_ids) + 1):
            short = dataclasses.replace(row, continuation=text.output_ids[:cut])
            other = dataclasses.replace(row, continuation=(*text.output_ids[: cut - 1], 44))
            best, lower = backend.score([short, other], [Probe("logprob", "c")])
            assert best.values["c"] >= lower.values["c"] - 1e-4
            assert best.values["c.tokens"] == pytest.approx(
                found.values["c.tokens"][:cut], rel=1e-4, abs=1e-5
            )
        for name, receipt in found.receipts.items():
            assert receipt.positions_prefill == text.receipts[name].positions_prefill
            assert receipt.asked_decode in (0, len(text.output_ids))


def test_perplexity_judges_the_text_not_the_run(llama):
    backend, _ = llama
    rng = random.Random(20)
    ids, text = prompt(rng, 8), prompt(rng, 6)[1:]
    rows = [scored(ids, continuation=text), scored(ids, OFF, continuation=text)]
    plain, written = backend.score(rows, [Probe("perplexity", "ppl"), Probe("logprob", "c")])
    assert plain.values["ppl"] == pytest.approx(written.values["ppl"], rel=1e-5)
    assert plain.values["ppl"] == pytest.approx(math.exp(-plain.values["c"] / len(text)), rel=1e-4)
    assert abs(plain.values["c"] - written.values["c"]) > 1e-3


R_V = Probe("geometry", "r_v", layers=(0, 3), windows=(5, 3))


def published_ratio(rows: torch.Tensor) -> float:
    squares = np.linalg.svd(rows.numpy(), compute_uv=False) ** 2
    return float(squares.sum() ** 2 / (squares**2).sum())


def test_the_geometry_of_a_window_is_that_of_its_singular_values(pair):
    backend, model = pair
    rng = random.Random(21)
    rows = [scored(prompt(rng, n), *w) for n in (9, 5, 14) for w in ((), (OFF,))]
    for row, found in zip(rows, backend.score(rows, [R_V]), strict=True):
        with hooked(model, [("mlp_out", 1, zeroed)] if row.row.writes else []):
            early, late = (capture(model, row.row.ids, "v_proj", layer) for layer in (0, 3))
        assert found.values["r_v.early"] == pytest.approx(published_ratio(early[-5:]), rel=1e-4)
        assert found.values["r_v.late"] == pytest.approx(published_ratio(late[-5:]), rel=1e-4)
        assert found.values["r_v"] == pytest.approx(found.values["r_v.late"] / found.values["r_v.early"])
        expected = published_ratio(late[-3:]) / published_ratio(early[-3:])
        assert found.values["r_v.w3"] == pytest.approx(expected, rel=1e-4)


def test_trap_21_a_prompt_shorter_than_a_window_is_invalid(llama):
    backend, _ = llama
    rng = random.Random(22)
    rows = [scored(prompt(rng, n)) for n in (4, 9, 1, 5)]
    found = backend.score(rows, [R_V])
    assert [each.invalid for each in found] == [
        "a window of 5 is longer than a prompt of 4 tokens",
        None,
        "a window of 5 is longer than a prompt of 1 tokens",
        None,
    ]
    assert found[0].values == {} and found[1].values["r_v"] > 0


def test_trap_20_a_shuffled_window_leaves_the_ratio_of_its_own_site_where_it_was(llama):
    """The published control: the donor's window, shuffled, has the geometry of the donor's window."""
    backend, _ = llama
    rng = random.Random(23)
    ids, donor = prompt(rng, 12), prompt(rng, 15)

    def patched(value: str) -> ScoreRow:
        return scored(
            ids, write("v", "v_proj", (3,), value=value, positions="last:5"), sources={"donor": donor}
        )

    rows = [scored(ids), patched("source"), patched("shuffled_window"), patched("random")]
    clean, straight, shuffled, noise = backend.score(rows, [R_V])
    assert shuffled.values["r_v"] == pytest.approx(straight.values["r_v"], rel=1e-5)
    for other in (clean, noise):
        assert abs(other.values["r_v"] - straight.values["r_v"]) > 1e-3


@pytest.mark.parametrize("replay", [False, True])
def test_a_batch_reads_what_each_row_reads_alone(llama, replay):
    backend, _ = llama
    rng = random.Random(24)
    probes = [
        *NEXT,
        Probe("next_token", "inner", tokens="ours", position=-4),
        Probe("patchscope", "scope", tokens="ours", layers=(1, 2), scope=Scope(prompt(rng, 5), 1)),
        Probe("logprob", "c"),
        R_V,
    ]
    rows = [
        scored(
            ids,
            *writes,
            continuation=prompt(rng, rng.randrange(2, 9))[1:],
            sources={"donor": donor},
            value_stream=3,
            replay_last_token=replay,
        )
        for ids, donor in [(prompt(rng, n), prompt(rng, m)) for n, m in ((9, 12), (6, 7))]
        for writes in CONDITIONS.values()
    ]
    together = backend.score(rows, probes)
    for row, found in zip(rows, together, strict=True):
        (alone,) = backend.score([row], probes)
        assert list(found.values) == [column for probe in probes for column in kinds.columns(probe)]
        for name, value in alone.values.items():
            assert found.values[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
        for name, receipt in alone.receipts.items():
            assert found.receipts[name].positions_decode == receipt.positions_decode
            change = receipt.relative_change
            expected = change if change is None else pytest.approx(change, rel=1e-3)
            assert found.receipts[name].relative_change == expected


def test_all_probes_of_the_prompt_share_one_run(llama):
    backend, _ = llama
    rng = random.Random(30)
    rows = [
        scored(i, *w, continuation=(5, 6)) for i in (prompt(rng, 9), prompt(rng, 6)) for w in ((), (OFF,))
    ]
    assert backend.footprint.budget > 0  # measured by forwards of its own, which are not what is counted
    model = backend._loaded.model
    shapes: list[tuple[int, ...]] = []
    handle = model.register_forward_hook(
        lambda module, args, kwargs, output: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        backend.score(rows, [*NEXT, Probe("top_k", "inner", position=2), R_V])
        assert shapes == [(4, 8), (4, 1)]  # the prompts, and their last tokens
        shapes.clear()
        backend.score(rows, [Probe("patchscope", "s", layers=(0, 2), scope=Scope((0, 5, 6), 1))])
        assert shapes == [(4, 8), (4, 1), (4, 3), (4, 3)]
        shapes.clear()
        backend.score(rows, [Probe("perplexity", "ppl")])
        assert shapes == [(2, 11)]  # two texts, however often each is asked about
        shapes.clear()
        backend.score(rows[1::2], [Probe("kl", "drift")])
        assert shapes == [(4, 8), (4, 1)]  # two written rows, and their prompts without the write
    finally:
        handle.remove()


def test_probes_from_a_shared_prefix(llama):
    backend, _ = llama
    rng = random.Random(25)
    common = prompt(rng, 9)
    late = write("r", "resid_pre", (1, 2), positions="last:2")
    rows = [
        scored((*common, *prompt(rng, n)[1:]), *w, continuation=(5, 6, 7), sources={"donor": common})
        for n in (8, 5)
        for w in ((), (late,))
    ]
    probes = [p for p in NEXT if p.kind != "cross_entropy"] + [
        Probe("logprob", "c"),
        Probe("perplexity", "ppl"),
        Probe("rank", "inner", tokens="ours", position=-2),
        Probe("geometry", "r_v", layers=(0, 3), windows=(3,)),
    ]
    start = Start(backend.prefix(common))
    for a, b in zip(backend.score(rows, probes, start), backend.score(rows, probes), strict=True):
        for name, value in b.values.items():
            assert a.values[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_probes_of_the_last_token_from_a_layer_up(llama):
    backend, _ = llama
    rng = random.Random(26)
    ids = prompt(rng, 9)
    write_up = write("r", "resid_pre", (2,), positions="index:-1")
    rows = [scored(ids, *w, sources={"donor": prompt(rng, 5)}) for w in ((), (write_up,))]
    probes = [
        Probe("next_token", "p", tokens="ours"),
        Probe("kl", "drift"),
        Probe("lens", "l", layers=(2, 3)),
    ]
    start = Start(backend.prefix(ids), 2)
    for a, b in zip(backend.score(rows, probes, start), backend.score(rows, probes), strict=True):
        for name, value in b.values.items():
            assert a.values[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    with pytest.raises(BackendError, match="resid_post of layer 1 lies below the layer started from"):
        backend.score(rows, [Probe("lens", "l", layers=(1,))], start)


def test_what_a_prefix_hides_is_not_read(llama):
    backend, _ = llama
    rng = random.Random(27)
    common = prompt(rng, 9)
    rows = [scored((*common, 5, 6))]
    start = Start(backend.prefix(common))
    with pytest.raises(BackendError, match="position 3 lies in the prefix"):
        backend.score(rows, [Probe("top_k", "t", position=3)], start)
    with pytest.raises(BackendError, match="window lies in the prefix"):
        backend.score(rows, [R_V], start)
    with pytest.raises(BackendError, match="cross_entropy is of whole prompts"):
        backend.score(rows, [Probe("cross_entropy", "ce")], start)


def test_rows_that_cannot_run_leave_the_others_alone(llama):
    backend, _ = llama
    rng = random.Random(28)
    ids = prompt(rng, 9)
    wide = write("r", "resid_pre", (1,), positions="last:20")
    huge = write("r", "resid_post", (0, 1, 2, 3), op="add", alpha=1e38)
    rows = [
        scored(ids, continuation=(5,)),
        scored(ids, wide, sources={"donor": ids}, continuation=(5,)),
        scored(ids, huge, sources={"donor": prompt(rng, 9)}, continuation=(5,)),
    ]
    probes = [*NEXT, Probe("logprob", "c"), Probe("perplexity", "ppl")]
    good, too_wide, infinite = backend.score(rows, probes)
    (alone,) = backend.score(rows[:1], probes)
    assert good.invalid is None
    assert good.values["p"] == pytest.approx(alone.values["p"], rel=1e-5)
    assert "window of 20 is longer" in too_wide.invalid and too_wide.values == {}
    assert infinite.invalid == "logits not finite" and infinite.values == {}
    assert infinite.receipts["r"].positions_prefill == 9


def test_an_item_without_such_tokens_has_no_value(llama):
    backend, _ = llama
    rng = random.Random(29)
    rows = [ScoreRow(Row(prompt(rng, 6), GREEDY), (), {"ours": tokens}) for tokens in ((), (5,))]
    probes = [p for p in NEXT if p.tokens and not p.against]
    none, some = backend.score(rows, probes)
    assert none.invalid is None
    assert [none.values[name] for name in ("p", "odds", "place", "right", "lens.rank", "lens.prob")] == [
        None
    ] * 6
    assert None not in some.values.values()
    assert len(none.values["lens.top"]) == 3


def test_everything_wrong_with_the_probes_is_said_at_once(llama):
    backend, _ = llama
    wrong = [
        Probe("next_token", "p"),
        Probe("rank", "p", tokens="nobody"),
        Probe("top_k", "t", top=500),
        Probe("lens", "l", layers=(2, 9)),
        Probe("geometry", "g", layers=(1,), windows=(1,)),
        Probe("geometry", "h", layers=(1, 2), windows=(4, 4), site="kv_cache"),
        Probe("patchscope", "s", layers=(1,), scope=Scope((5, VOCABULARY), 7, 4)),
        Probe("patchscope", "o", layers=(1, 1)),
        Probe("kl", version=2),
    ]
    with pytest.raises(BackendError) as told:
        backend.score([scored((0, 5))], wrong)
    for part in (
        "probe 'p' (next_token): expected the name of a token set in `tokens`",
        "column 'p' is given by more than one probe",
        "token set 'nobody': not in row 0 (sets: ours, theirs)",
        "probe 't' (top_k): top: expected 1 to 120, got 500",
        "probe 'l' (lens): layers: expected 0 to 3, got 9",
        "probe 'g' (geometry): layers: expected two different ones (early, late), got [1]",
        "probe 'g' (geometry): windows: expected at least one, of 2 positions or more, got [1]",
        "probe 'h' (geometry): windows: one is listed twice in [4, 4]",
        "probe 'h' (geometry): site: expected one with a row to each position and layer (resid_pre, ",
        "probe 's' (patchscope): scope.position: expected -2 to 1, got 7",
        "probe 's' (patchscope): scope.layer: expected 0 to 3, got 4",
        "probe 's' (patchscope): scope.ids: 120 not in the vocabulary of 120",
        "probe 'o' (patchscope): scope: expected a prompt to write the state into",
        "probe 'o' (patchscope): layers: one is listed twice",
        "probe '' (kl): expected a name, which its column takes",
        "probe '' (kl): expected version 1, got 2",
    ):
        assert part in str(told.value), part
    with pytest.raises(BackendError, match="expected ids from 0 to 119, got 500"):
        backend.score([ScoreRow(Row((0, 5), GREEDY), (), {"ours": (500,)})], [NEXT[0]])
