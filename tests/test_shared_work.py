"""Rows that take what they can from clean runs of their prompts have what they have alone, and nothing is
computed twice."""

from __future__ import annotations

import math
import random
from collections import Counter
from contextlib import contextmanager
from functools import partial

import pytest

from backends.measures import Probe, ScoreRow
from backends.positions import Positions
from backends.rowplan import plan_row
from backends.rows import Row
from backends.torch import shared
from backends.torch.backend import TorchBackend
from backends.writes import Value, Write
from tests.models import CPU, FAMILIES, GREEDY, SAMPLED, make_model, prompt, taken_by, write

NEAR_TIE = 1e-4
PROBES = (
    Probe("next_token", "next", tokens="answer"),
    Probe("log_odds", "odds", tokens="answer", against="other"),
    Probe("next_token", "inner", tokens="answer", position=2),
    Probe("lens", "lens", tokens="answer", layers=(0, 1, 2, 3)),
    Probe("lens", "early", tokens="answer", layers=(0, 3), position=1),
    Probe("cross_entropy", "prompt"),
    Probe("geometry", "turn", layers=(0, 3), windows=(3, 5), site="v_proj"),
    Probe("kl", "moved"),
)


# Learned positions; windows at some layers, with fewer key heads than queries have; two rotary frequencies.
QUICK = ("gpt2", "qwen3", "gemma3_text")
EVERY = [pytest.param(each, marks=() if each in QUICK else pytest.mark.slow) for each in sorted(FAMILIES)]


@pytest.fixture(scope="module", params=EVERY)
def backend(request, tmp_path_factory):
    return TorchBackend(make_model(tmp_path_factory.mktemp(request.param), request.param), CPU)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return TorchBackend(make_model(tmp_path_factory.mktemp("llama")), CPU)


@pytest.fixture(autouse=True)
def shares_however_little(monkeypatch):
    monkeypatch.setattr(shared, "OWN_FORWARD", 0)


@contextmanager
def nothing_shared():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "work_of", partial(unshared, shared.work_of))
        yield


def unshared(work_of, plans, layers, *, share=True):
    return work_of(plans, layers, share=False)


def conditions(rng, backend, length):
    """Every site at every layer, each with writes at a position of its own, some reaching to the end."""
    found = []
    for site in backend.info.sites:
        if site in ("kv_cache", "attention_edge", "sae"):
            continue
        layers = (0,) if site == "embed" else (3,) if site == "logits" else (0, 1, 2, 3)
        for layer in layers:
            at = rng.choice(
                ["all", "index:-1", "last:3", "index:2", f"index:{rng.randrange(1, length - 1)}", "first:4"]
            )
            op = rng.choice(["replace", "add", "scale"])
            more = {"alpha": 0.5} if op != "replace" else {}
            kind = (
                "none" if op == "scale" else rng.choice(["source", "random"]) if op == "replace" else "source"
            )
            at = "index:-1" if site == "logits" else at
            found.append((write("w", site, (layer,), op=op, value=kind, positions=at, **more),))
    found += [
        (),
        (),
        (
            write("a", "resid_pre", (2,), positions="index:-1"),
            write("b", "mlp_out", (1, 3), positions="last:2"),
        ),
        taken_by(backend.info, (write("kv", "kv_cache", (2, 3), positions="first:3"),)),
        taken_by(
            backend.info,
            (write("kv", "kv_cache", (3,)), write("r", "resid_post", (1,), positions="index:3")),
        ),
        taken_by(backend.info, (write("kv", "kv_cache", align="concat"),)),
        (edge((1, 2)), write("r", "resid_post", (2,), positions="index:-1")),
    ]
    return found


def edge(layers):
    return Write(
        "cut",
        "attention_edge",
        layers,
        "zero",
        Value("none"),
        Positions.parse("last:2"),
        "prefill",
        keys=Positions.parse("index:1"),
    )


def rows_for(backend, seed, sampling=SAMPLED, lengths=(7, 11), **more):
    rng = random.Random(seed)
    donor = prompt(rng, 9)
    rows = []
    for number, length in enumerate(lengths):
        ids = prompt(rng, length)
        for index, writes in enumerate(conditions(rng, backend, length)):
            stream = 100 * number + index
            rows.append(
                Row(ids, sampling, writes, {"donor": donor}, stream=stream, value_stream=stream, **more)
            )
    rng.shuffle(rows)
    return rows


def scored(rows):
    return [ScoreRow(row, (), {"answer": (5, 9), "other": (11,)}) for row in rows]


def alike(a, b) -> None:
    if isinstance(a, tuple):
        for one, other in zip(a, b, strict=True):
            alike(one, other)
    elif a is None or b is None:
        assert a is b
    elif math.isnan(a):
        assert math.isnan(b)
    else:
        assert a == pytest.approx(b, rel=2e-3, abs=2e-4)


def same_receipts(a, b) -> None:
    assert a.keys() == b.keys()
    for name, one in a.items():
        other = b[name]
        for field in one.__dataclass_fields__:
            x, y = getattr(one, field), getattr(other, field)
            if isinstance(x, float) and isinstance(y, float):
                assert x == pytest.approx(y, rel=1e-3, abs=1e-5), (name, field)
            else:
                assert x == y, (name, field)


def same_scores(found, expected) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.values.keys() == b.values.keys() and a.invalid == b.invalid
        same_receipts(a.receipts, b.receipts)
        for name, value in a.values.items():
            if not name.endswith("top"):  # which token is best may be a tie
                alike(value, b.values[name])


def same_texts(found, expected) -> None:
    for a, b in zip(found, expected, strict=True):
        if min(a.min_margin, b.min_margin) < NEAR_TIE:
            continue
        assert (a.output_ids, a.finish, a.invalid) == (b.output_ids, b.finish, b.invalid)
        same_receipts(a.receipts, b.receipts)


def test_scores_of_every_site_and_layer(backend):
    rows = scored(rows_for(backend, 1))
    together = backend.score(rows, PROBES)
    some = random.Random(2).sample(range(len(rows)), 6)
    with nothing_shared():
        same_scores(together, backend.score(rows, PROBES))
        alone = [backend.score([rows[index]], PROBES)[0] for index in some]
    same_scores([together[index] for index in some], alone)


def test_texts_of_every_site_and_layer(backend):
    once, again = rows_for(backend, 3), rows_for(backend, 4, replay_last_token=True)
    rows = [*once[::2], *(row for row in again[::4] if all(w.site != "logits" for w in row.writes))]
    together = backend.decode(rows)
    with nothing_shared():
        same_texts(together, backend.decode(rows))


@contextmanager
def counted(backend):
    """Tokens that each block computes."""
    tokens: Counter[int] = Counter()

    def hook(layer):
        def count(module, args, output):
            tokens[layer] += args[0].shape[0] * args[0].shape[1]

        return count

    handles = [block.register_forward_hook(hook(at)) for at, block in enumerate(backend._loaded.blocks)]
    try:
        yield tokens
    finally:
        for handle in handles:
            handle.remove()


def grid(prompts, at, during="prefill"):
    """Back-patching: a later layer's state of the same prompt at an earlier layer, for all such cells."""
    cells = [(s, t) for s in range(4) for t in range(s)]
    writes = [
        Write(
            "w", "resid_post", (t,), "replace", Value("source", "self", layer=s), Positions.parse(at), during
        )
        for s, t in cells
    ]
    return [Row(ids, GREEDY, (each,)) for each in writes for ids in prompts], [t for _, t in cells]


@pytest.mark.parametrize("place", [2, 5, 9])
def test_what_is_known_is_not_computed(llama, place):
    rng = random.Random(5)
    prompts, length = [prompt(rng, 10) for _ in range(6)], 10
    rows, layers = grid(prompts, f"index:{place}")
    rows += [Row(ids, GREEDY) for ids in prompts for _ in range(3)]  # nothing of these is computed but once
    random.Random(6).shuffle(rows)
    llama.score(scored(rows), PROBES[:2])  # captures what the writes draw from
    with counted(llama) as tokens:
        llama.score(scored(rows), PROBES[:2])
    entered = {layer: sum(t <= layer for t in layers) for layer in range(4)}
    expected = {layer: 6 * (length + entered[layer] * (length - place)) for layer in range(4)}
    assert dict(tokens) == expected


def test_a_small_saving_is_not_worth_a_forward(llama, monkeypatch):
    monkeypatch.undo()
    rng = random.Random(7)
    rows, _ = grid([prompt(rng, 6) for _ in range(2)], "index:3")
    backend_forwards = []
    handle = llama._loaded.model.register_forward_pre_hook(lambda *_: backend_forwards.append(1))
    llama.score(scored(rows), PROBES[:1])
    backend_forwards.clear()
    llama.score(scored(rows), PROBES[:1])
    handle.remove()
    assert len(backend_forwards) == 2  # the prompts, and their last tokens


def test_onsets(llama):
    ids = (0, 5, 6, 7, 8, 9)

    def of(*writes, **more):
        return shared.onset(plan_row(Row(ids, GREEDY, writes, {"donor": ids}, **more)), 4)

    assert of() == shared.Onset(5, 4, 4)
    assert of(write("w", "resid_post", (2, 3), positions="index:-1")) == shared.Onset(5, 4, 2)
    assert of(write("w", "v_proj", (3,), positions="last:3")) == shared.Onset(3, 3, 3)
    assert of(write("w", "embed", (0,), positions="index:2")) == shared.Onset(2, 0, 0)
    assert of(write("w", "kv_cache", (2,))) == shared.Onset(5, 4, 2)
    assert of(write("w", "kv_cache", align="concat")) == shared.Onset(5, 4, 0)
    assert of(edge((2,))) == shared.Onset(0, 0, 0)
    assert of(write("w", "mlp_out", (1,), during="decode", positions="last:2", hold="cycle")) == (
        shared.Onset(5, 4, 4)
    )
    assert of(write("w", "mlp_out", (1,), positions="index:-1"), replay_last_token=True).last == 0
