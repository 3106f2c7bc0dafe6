"""Rows that wait and enter a running batch give what they give alone."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from backends.contract import Start
from backends.positions import Positions
from backends.rows import Decoded, Row, Sampling
from backends.torch.backend import TorchBackend
from backends.torch.cache import SlotCache
from backends.torch.generate import Pace
from backends.writes import Constant, Value, Write
from tests.models import CPU, make_model, prompt, write

NEAR_TIE = 1e-4
EVERY_STEP = Pace(shrink=1.0, enter=0.99)
RELUCTANT = Pace(shrink=0.3, enter=0.2, check=3)


def steer(name: str, *, during: str = "both", kind: str = "constant") -> Write:
    vector = Constant("steer", np.random.default_rng(5).normal(size=32).astype(np.float32))
    value = Value(kind, constant=vector)
    return Write(name, "resid_post", (0, 1, 2, 3), "add", value, Positions.parse("all"), during, alpha=0.4)


def cut(name: str, during: str) -> Write:
    keys = Positions.parse("index:1")
    return Write(
        name, "attention_edge", (1, 2), "mask", Value("none"), Positions.parse("last:2"), during, keys=keys
    )


CONDITIONS: dict[str, tuple[Write, ...]] = {
    "baseline": (),
    "kv": (write("kv", "kv_cache"),),
    "kv_left": (write("kv", "kv_cache", align="left", rope="keep"),),
    "kv_whole": (write("kv", "kv_cache", align="whole"),),
    "kv_concat": (write("kv", "kv_cache", align="concat"),),
    "kv_random": (write("kv", "kv_cache", value="random"),),
    "cycle": (write("v", "v_proj", (2, 3), during="decode", positions="last:4", hold="cycle"),),
    "last": (write("v", "v_proj", during="decode", positions="last:4", hold="last"),),
    "mean": (write("v", "v_proj", during="both", positions="all", hold="mean"),),
    "lockstep": (write("r", "resid_post", (1,), during="decode", positions="last:3", hold="lockstep"),),
    "steered": (steer("s"),),
    "steered_in_decode": (steer("s", during="decode"),),
    "one_random_vector": (steer("s", kind="random"),),
    "random": (write("v", "v_proj", value="random", during="both"),),
    "kv_and_v": (
        write("kv", "kv_cache"),
        write("v", "v_proj", (1, 2), during="decode", positions="all", hold="cycle"),
        write("half", "v_proj", (2,), during="decode", op="scale", alpha=0.5, value="none", role="", order=1),
    ),
    "cut_in_decode": (cut("e", "decode"),),
    "cut_in_both": (cut("e", "both"), steer("s", during="decode")),
}


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    torch.set_num_threads(1)
    return TorchBackend(make_model(tmp_path_factory.mktemp("llama"), eos_token_id=[1, 7, 31]), CPU)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Every condition twice, prompts, limits and samplings all different, every third token replayed."""
    rng = random.Random(3)
    found = []
    for number, writes in enumerate([*CONDITIONS.values()] * 2):
        sampling = rng.choice(
            [Sampling(0.0, 9), Sampling(0.9, 17), Sampling(0.7, 3, 20, 0.9), Sampling(1.2, 1)]
        )
        found.append(
            Row(
                prompt(rng, rng.randrange(4, 22)),
                sampling,
                writes,
                {"donor": prompt(rng, rng.randrange(5, 20))},
                stream=rng.getrandbits(64),
                value_stream=number,
                replay_last_token=number % 3 == 0,
            )
        )
    rng.shuffle(found)
    return found


@pytest.fixture(scope="module")
def alone(backend, rows) -> list[Decoded]:
    return [backend.decode([row])[0] for row in rows]


def close(one: float | None, other: float | None) -> bool:
    return one == other if one is None or other is None else one == pytest.approx(other, rel=1e-3, abs=1e-5)


def assert_same(rows: list[Row], found: list[Decoded], expected: list[Decoded]) -> None:
    """Tokens, why they end, and receipts; a row whose best two tokens are all but equal may differ."""
    same = 0
    assert len(found) == len(rows)
    for row, one, other in zip(rows, found, expected, strict=True):
        if other.min_margin < NEAR_TIE:
            continue
        same += 1
        assert (one.output_ids, one.finish, one.invalid) == (other.output_ids, other.finish, other.invalid)
        assert one.min_margin == pytest.approx(other.min_margin, rel=1e-2, abs=1e-4)
        assert one.receipts.keys() == other.receipts.keys()
        for name, receipt in one.receipts.items():
            blank = {"relative_change": None, "logit_change": None}
            told = other.receipts[name]
            assert replace(receipt, **blank) == replace(told, **blank), (name, row)
            assert close(receipt.relative_change, told.relative_change), (name, row, receipt, told)
            assert close(receipt.logit_change, told.logit_change), (name, row, receipt, told)
    assert same > 0.8 * len(rows)


@pytest.mark.parametrize(
    ("together", "pace"),
    [(1, EVERY_STEP), (2, EVERY_STEP), (3, RELUCTANT), (7, EVERY_STEP), (7, RELUCTANT), (None, RELUCTANT)],
)
def test_rows_that_enter_give_what_they_give_alone(backend, rows, alone, monkeypatch, together, pace):
    monkeypatch.setattr(Pace, "of", staticmethod(lambda device: pace))
    assert_same(rows, backend.decode(rows, together=together), alone)


def test_in_the_order_of_the_rows_whichever_finish_first(backend, rows, alone):
    turned = rows[::-1]
    assert_same(turned, backend.decode(turned, together=5), alone[::-1])


def test_no_more_than_the_rows_asked_run_at_once(backend):
    rng = random.Random(8)
    rows = [Row(prompt(rng, 6), Sampling(1.0, rng.randrange(2, 9)), stream=n) for n in range(40)]
    seen: list[int] = []
    model = backend._loaded.model
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        found = backend.decode(rows, together=8)
    finally:
        hook.remove()
    assert max(seen) == 8 and len(found) == 40
    assert max(each.batch_rows for each in found) == 8
    assert {each.batch_length for each in found} == {6}


def test_a_row_says_the_widest_batch_it_ran_in_and_the_longest_prompt_of_the_call(backend, monkeypatch):
    monkeypatch.setattr(Pace, "of", staticmethod(lambda device: EVERY_STEP))
    rng = random.Random(9)
    rows = [Row(prompt(rng, 4 + n), Sampling(1.0, 3 + 2 * n), stream=n) for n in range(5)]
    found = backend.decode(rows, together=2)
    assert [each.batch_rows for each in found] == [2] * 5
    assert {each.batch_length for each in found} == {8}
    assert [each.batch_rows for each in backend.decode(rows)] == [5] * 5


def test_fewer_than_one_row_together_is_refused(backend):
    with pytest.raises(ValueError, match="together: expected at least 1 row, got 0"):
        backend.decode([Row((0, 5), Sampling(0.0, 2))], together=0)


def test_rows_that_begin_after_a_prefix_enter_too(backend, monkeypatch):
    monkeypatch.setattr(Pace, "of", staticmethod(lambda device: EVERY_STEP))
    rng = random.Random(11)
    common = prompt(rng, 6)
    rows = [
        Row(
            (*common, *prompt(rng, 2 + n % 5)[1:]),
            Sampling(0.8, 3 + n % 7),
            (steer("s", during="decode"),),
            stream=n,
        )
        for n in range(9)
    ]
    alone = [backend.decode([row])[0] for row in rows]
    found = backend.decode(rows, start=Start(backend.prefix(common)), together=3)
    assert_same(rows, found, alone)


def test_a_row_whose_logits_are_not_finite_spoils_no_row_that_takes_its_place(backend, monkeypatch):
    monkeypatch.setattr(Pace, "of", staticmethod(lambda device: EVERY_STEP))
    rng = random.Random(12)
    huge = Constant("huge", np.full(32, 3e38, dtype=np.float32))
    broken = Write(
        "b",
        "resid_pre",
        (0,),
        "add",
        Value("constant", constant=huge),
        Positions.parse("all"),
        "both",
        alpha=10.0,
    )
    rows = [
        Row(prompt(rng, 9), Sampling(0.9, 6), (broken,) if n % 2 == 0 else (), stream=n) for n in range(8)
    ]
    found = backend.decode(rows, together=2)
    assert [each.invalid for each in found] == ["logits not finite", None] * 4
    sound = rows[1::2]
    assert_same(sound, found[1::2], [backend.decode([row])[0] for row in sound])


def numbered(rows: int, slots: int, capacity: int) -> SlotCache:
    cache = SlotCache.empty([(torch.device("cpu"), torch.float32)] * 2, rows, 1, capacity, 1)
    for layer in range(2):
        new = torch.arange(slots, dtype=torch.float32).view(1, 1, slots, 1).expand(rows, -1, -1, -1)
        cache.slot_layer(layer).update(new + 10 * layer, -new)
    return cache


def held(cache: SlotCache, layer: int = 0) -> list[list[float]]:
    slots = cache.slot_layer(layer)
    assert slots.keys is not None
    return slots.keys[:, 0, slots.start : slots.filled, 0].tolist()


def test_a_cache_moves_what_is_read_and_keeps_it():
    cache = numbered(2, 6, 8)
    cache.read_from(2)
    cache.to_front()
    assert held(cache) == [[2, 3, 4, 5]] * 2 and held(cache, 1) == [[12, 13, 14, 15]] * 2
    assert (cache.start, cache.filled, cache.capacity) == (0, 4, 8)


def test_a_cache_takes_rows_in_at_its_last_slot():
    cache, new = numbered(3, 6, 8), numbered(1, 2, 2)
    cache.read_from(3)
    cache.keep_rows(torch.tensor([0, 2]), room=2, front=1, more=1)
    cache.put_rows(2, new)
    assert held(cache) == [[0, 3, 4, 5], [0, 3, 4, 5], [0, 0, 0, 1]]
    assert (cache.start, cache.filled, cache.capacity) == (0, 4, 6)
    with pytest.raises(ValueError, match="slots 4 to 7 of 6"):
        cache.slot_layer(0).update(torch.zeros(3, 1, 3, 1), torch.zeros(3, 1, 3, 1))
