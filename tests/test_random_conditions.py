"""Conditions and pairs drawn at random over the whole vocabulary: batched rows give the tokens, the receipts
and the changes of logits of the plain implementation, and those of each row alone.

`CONDITIONS=2000 pytest -m slow tests/test_random_conditions.py` draws so many for each architecture.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from backends.positions import Positions
from backends.rows import Row, Sampling
from backends.torch.backend import TorchBackend
from backends.writes import Constant, Heads, PromptSet, Under, Value, Write
from tests import plain_reference as plain
from tests.models import CPU, FAMILIES, make_model, prompt, taken_by

NEAR_TIE = 1e-4
LAYERS = 4
SITES = (
    "embed",
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "attn_out_normed",
    "mlp_out",
    "mlp_out_normed",
    "q_proj",
    "k_proj",
    "v_proj",
    "head_z",
    "logits",
)
POSITIONS = ("all", "first:3", "last:2", "last:4", "first:50%", "index:-1", "index:2")
LAST = "index:-1"
# Never -1: x - x leaves rounding noise alone, which the next norm blows up to full size.
ALPHAS = (0.5, -0.7)
SHORT = Sampling(0.0, 6)
DEEP = int(os.environ.get("CONDITIONS", "100"))

layers = st.sets(st.integers(0, LAYERS - 1), min_size=1, max_size=LAYERS).map(lambda s: tuple(sorted(s)))
roles = st.sampled_from(["donor", "other", "self"])


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def pair(request, tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    source = make_model(folder, request.param, seed=3)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return TorchBackend(source, CPU), model


def width_of(info, site: str) -> int:
    heads = {"q_proj": info.heads, "head_z": info.heads, "k_proj": info.kv_heads, "v_proj": info.kv_heads}
    if site in heads:
        return heads[site] * info.head_width
    return info.vocabulary if site == "logits" else info.width


def constant(seed: int, shape: tuple[int, ...]) -> Constant:
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return Constant(f"{seed}/{shape}", array)


@st.composite
def values(draw, info, site: str, op: str, *, nested: bool) -> Value:
    """A value that can be computed plainly. A projection is never onto what another write has put there:
    nothing but rounding would be left."""
    if op in ("zero", "scale"):
        return Value("none")
    kinds = ["constant", "mean"] if op == "project_out" else ["source", "source", "constant", "mean"]
    kind, seed = draw(st.sampled_from(kinds)), draw(st.integers(0, 10**6))
    wide = width_of(info, site)
    if kind == "constant":
        each = draw(st.booleans()) and site not in ("embed", "logits")
        return Value("constant", constant=constant(seed, (LAYERS, wide) if each else (wide,)))
    if kind == "mean":
        rng = random.Random(seed)
        return Value("mean", prompts=PromptSet(tuple(prompt(rng, rng.randrange(5, 12)) for _ in range(2))))
    other = None
    if site not in ("embed", "logits", "attn_out_normed"):
        other = draw(st.sampled_from([None, None, draw(st.integers(0, LAYERS - 1))]))
    under = None
    if nested and draw(st.booleans()):
        under = Under((draw(site_writes("inner", info, 0, ("prefill",), nested=False)),))
    return Value("source", draw(roles), layer=other, under=under)


@st.composite
def site_writes(
    draw, name: str, info, order: int, phases=("prefill", "decode", "both"), *, nested=True, again=False
) -> Write:
    site = draw(st.sampled_from([site for site in SITES if site in info.sites]))
    during = draw(st.sampled_from(phases))
    op = draw(st.sampled_from(["replace", "replace", "add", "zero", "scale", "project_out"]))
    value = draw(values(info, site, op, nested=nested))
    at = draw(st.sampled_from(POSITIONS))
    hold = None
    if during != "prefill" and value.has_source:
        hold = draw(st.sampled_from(["last", "cycle", "mean", "lockstep"]))
        if again and site != "logits" and draw(st.booleans()):
            hold, at = "sliding", draw(st.sampled_from(["last:2", "last:4"]))
    heads = None
    if site in ("q_proj", "head_z") and draw(st.booleans()):
        heads = Heads("query", draw(st.sampled_from([(0,), (1, 3)])))
    if site in ("k_proj", "v_proj") and draw(st.booleans()):
        heads = Heads("kv", (1,))
    where = {"embed": (0,), "logits": (LAYERS - 1,)}.get(site)
    return Write(
        name,
        site,
        draw(layers) if where is None else where,
        op,
        value,
        Positions.parse(LAST if site == "logits" else at),
        during,
        hold=hold,
        heads=heads,
        alpha=draw(st.sampled_from((*ALPHAS, 1.0) if op == "project_out" else ALPHAS))
        if op in ("add", "scale", "project_out")
        else 1.0,
        unit=draw(st.sampled_from(["raw", "resid_norm", "direction_norm"]))
        if op == "add"
        else "direction_norm",
        min_positions=draw(st.sampled_from([1, 1, 1, 10])) if nested else 1,
        order=order,
    )


@st.composite
def edge_writes(draw, name: str) -> Write:
    return Write(
        name,
        "attention_edge",
        draw(layers),
        "mask",
        Value("none"),
        Positions.parse(draw(st.sampled_from(["last:1", "last:2", "last:4", "index:3", "all"]))),
        draw(st.sampled_from(["prefill", "decode", "both"])),
        heads=draw(st.sampled_from([None, Heads("query", (0, 2))])),
        keys=Positions.parse(draw(st.sampled_from(["first:2", "index:1", "index:2", "last:2"]))),
    )


@st.composite
def kv_writes(draw, name: str, info, order: int) -> Write:
    align = draw(st.sampled_from(["right", "left", "right", "left", "whole", "concat"]))
    rope = draw(st.sampled_from(["rerotate", "keep"]))
    op = (
        "replace"
        if align in ("whole", "concat")
        else draw(st.sampled_from(["replace", "add", "zero", "scale"]))
    )
    value = Value("none")
    if op in ("replace", "add"):
        inner = site_writes("inner", info, 0, ("prefill",), nested=False)
        under = Under((draw(inner),)) if draw(st.booleans()) else None
        value = Value("source", draw(roles), under=under)
    if align in ("whole", "concat"):
        every = tuple(range(LAYERS))
        return Write(
            name, "kv_cache", every, op, value, Positions.parse("all"), "prefill", align=align, rope=rope
        )
    return Write(
        name,
        "kv_cache",
        draw(layers),
        op,
        value,
        Positions.parse(draw(st.sampled_from(["all", "last:2", "first:2"]))),
        "prefill",
        part=draw(st.sampled_from(["keys", "values", "both"])),
        heads=draw(st.sampled_from([None, None, Heads("kv", (1,))])),
        align=align,
        rope=rope,
        keep_sink=draw(st.booleans()),
        alpha=draw(st.sampled_from(ALPHAS)) if op in ("add", "scale") else 1.0,
        order=order,
    )


@st.composite
def conditions(draw, info, *, again: bool) -> tuple[Write, ...]:
    """Up to three writes at sites of modules, which may meet on one tensor; cut edges; the cache."""
    count = draw(st.integers(0, 3))
    found = [draw(site_writes(f"w{n}", info, n, again=again)) for n in draw(st.permutations(range(count)))]
    if count and draw(st.booleans()):  # on one tensor
        first = found[0]
        found.append(replace(first, name="again", order=draw(st.sampled_from([-1, 5])), op="scale",
                             value=Value("none"), hold=None, alpha=0.5, unit="direction_norm"))  # fmt: skip
    cache = not again and draw(st.booleans())
    if cache:
        found.append(draw(kv_writes("kv", info, 0)))
        if found[-1].has_old and draw(st.booleans()):
            more = draw(kv_writes("kv2", info, 1))
            found += [more] if more.has_old else []
    moved = bool(found) and not all(w.has_old for w in found if w.site == "kv_cache")
    if not moved and draw(st.booleans()):
        found.append(draw(edge_writes("cut")))
    return tuple(found)


def rows_of(info, drawn, seed: int, *, again: bool, replay: bool) -> list[Row]:
    rng = random.Random(seed)
    rows = []
    for writes in drawn:
        sources = {role: prompt(rng, rng.randrange(5, 16)) for role in ("donor", "other")}
        ids, tokens = prompt(rng, rng.randrange(5, 16)), rng.randrange(1, 8)
        rows.append(
            Row(
                ids,
                replace(SHORT, max_new_tokens=tokens),
                taken_by(info, writes),
                sources,
                recompute=again,
                replay_last_token=replay and not again,
            )
        )
    return rows


def first_cut(row: Row) -> int | None:
    """The new token whose logits are the first that a write without an old tensor acts on."""
    found = [write for write in row.writes if not write.has_old]
    if not found:
        return None
    at_once = any(write.site == "kv_cache" or write.during != "decode" for write in found)
    return 0 if at_once or row.replay_last_token else 1


def agree(info, model, row: Row, found) -> None:
    """A decoded row against the plain implementation."""
    eos = info.eos_ids
    if found.invalid == "logits not finite":  # of a direction that an inner write made zero
        assert not all(bool(torch.isfinite(step).all()) for step in plain.run(model, row, eos).logits)
        return
    if found.invalid is not None:
        assert "nothing to attend to" in found.invalid, found.invalid
        with pytest.raises(plain.Blind):
            plain.run(model, row, eos)
        return
    expected = plain.run(model, row, eos)
    if list(found.output_ids) != expected.tokens:
        margin = min(found.min_margin, expected.margin)
        assert margin < NEAR_TIE, (row, found.output_ids, expected.tokens)
        return
    for write in row.writes:
        receipt, count = found.receipts[write.name], expected.counts[write.name]
        assert receipt.positions_prefill == len(count.prefill), (write, row, receipt)
        assert receipt.positions_decode == len(count.decode), (write, row, receipt)
        each = int(write.positions.word.partition(":")[2]) if write.hold == "sliding" else 1
        asked = 0 if write.during == "prefill" else each * expected.forwards
        assert receipt.asked_decode == asked, (write, row)
        if write.has_old and count.changes:
            mean = float(np.mean(count.changes))
            assert receipt.relative_change == pytest.approx(mean, rel=5e-3, abs=1e-5), (write, row)
        else:
            assert receipt.relative_change is None
        assert (receipt.logit_change is None) or not write.has_old
    step = first_cut(row)
    if step is None:
        return
    name = next(write.name for write in row.writes if not write.has_old)
    measured = found.receipts[name].logit_change
    if step >= len(expected.tokens):
        assert measured is None
        return
    others = tuple(write for write in row.writes if write.has_old)
    twin = plain.run(model, replace(row, writes=others), eos)
    if twin.tokens[:step] == expected.tokens[:step]:
        old, new = twin.logits[step], expected.logits[step]
        assert measured == pytest.approx(float((new - old).norm() / old.norm()), rel=5e-3, abs=1e-5), row


def check(pair, data) -> None:
    backend, model = pair
    again = data.draw(st.sampled_from([False, False, True]), label="recompute")
    drawn = data.draw(st.lists(conditions(backend.info, again=again), min_size=1, max_size=5))
    seed, replay = data.draw(st.integers(0, 10**6)), data.draw(st.booleans(), label="replay")
    rows = rows_of(backend.info, drawn, seed, again=again, replay=replay)
    decoded = backend.decode(rows)
    for row, found in zip(rows, decoded, strict=True):
        agree(backend.info, model, row, found)
    index = seed % len(rows)
    (alone,), together = backend.decode([rows[index]]), decoded[index]
    if alone.output_ids != together.output_ids:
        assert min(alone.min_margin, together.min_margin) < NEAR_TIE, rows[index]
        return
    for name, receipt in alone.receipts.items():
        other = together.receipts[name]
        blank = {"relative_change": None, "logit_change": None}
        assert replace(receipt, **blank) == replace(other, **blank), rows[index]
        for one, two in (
            (receipt.relative_change, other.relative_change),
            (receipt.logit_change, other.logit_change),
        ):
            assert (one is None) == (two is None), rows[index]
            assert one is None or one == pytest.approx(two, rel=5e-3, abs=1e-5, nan_ok=True), rows[index]


quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=6, derandomize=True, deadline=None, suppress_health_check=quiet)
@given(data=st.data())
def test_random_conditions_over_random_pairs(pair, data):
    check(pair, data)


@pytest.mark.slow
@settings(max_examples=DEEP, deadline=None, suppress_health_check=quiet, database=None)
@given(data=st.data())
def test_very_many_random_conditions(pair, data):
    check(pair, data)
