"""The decode step of fixed shape, and on a GPU its graph, give what the eager step gives."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from backends import sae
from backends.contract import Device
from backends.positions import Positions
from backends.rows import Decoded, Row, Sampling
from backends.torch.backend import TorchBackend
from backends.torch.generate import Pace
from backends.torch.step import FixedStep, can_be_fixed
from backends.writes import Constant, Value, Write
from tests.models import CPU, make_model, prompt, write
from tests.test_sae import made, sae_write

NEAR_TIE = 1e-4
BUCKET = 8  # so that texts this short outgrow some

VECTOR = Constant("steer", np.random.default_rng(5).normal(size=32).astype(np.float32))
STEER = Write(
    "s",
    "resid_post",
    (0, 1, 2, 3),
    "add",
    Value("constant", constant=VECTOR),
    Positions.parse("all"),
    "both",
    alpha=0.4,
)
DECODE = {"during": "decode", "positions": "last:4"}
CONDITIONS: dict[str, tuple[Write, ...]] = {
    "none": (),
    "kv": (write("kv", "kv_cache"),),
    "kv_concat": (write("kv", "kv_cache", align="concat"),),
    "cycle": (write("v", "v_proj", (2, 3), hold="cycle", **DECODE),),
    "last": (write("v", "v_proj", hold="last", **DECODE),),
    "mean": (write("v", "v_proj", hold="mean", **DECODE),),
    "lockstep": (write("r", "resid_post", (1,), hold="lockstep", **DECODE),),
    "random": (write("v", "v_proj", value="random", during="both"),),
    "steered": (STEER,),
    "two": (write("v", "v_proj", (1, 2), hold="cycle", **DECODE), replace(STEER, during="decode")),
}


def rows(replay: bool = False) -> list[Row]:
    """Every condition with every way to draw, prompts and limits all different."""
    rng = random.Random(3)
    found = []
    for writes in CONDITIONS.values():
        for sampling in (Sampling(0.0, 21), Sampling(0.8, 9, 12, 0.9)):
            donor = {"donor": prompt(rng, rng.randrange(5, 14))}
            ids = prompt(rng, rng.randrange(4, 16))
            stream = rng.getrandbits(64)
            found.append(
                Row(ids, sampling, writes, donor, stream=stream, value_stream=7, replay_last_token=replay)
            )
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.set_num_threads(1)
    return make_model(tmp_path_factory.mktemp("llama"), eos_token_id=[1, 7])


@pytest.fixture(scope="module")
def eager(source):
    return TorchBackend(source, CPU, stepping="eager")


@pytest.fixture
def fixed(source, monkeypatch):
    """A backend whose steps have a fixed shape, and how many of them it has computed."""
    ran: list[int] = []
    compute = FixedStep.compute

    def counted(self: FixedStep) -> None:
        ran.append(len(self.tokens))
        compute(self)

    monkeypatch.setattr(FixedStep, "compute", counted)
    monkeypatch.setattr("backends.torch.step.BUCKET", BUCKET)
    return TorchBackend(source, CPU, stepping="fixed"), ran


def assert_same(found: list[Decoded], expected: list[Decoded]) -> None:
    same = 0
    for one, other in zip(found, expected, strict=True):
        if other.min_margin < NEAR_TIE:
            continue
        same += 1
        assert (one.output_ids, one.finish, one.invalid) == (other.output_ids, other.finish, other.invalid)
        assert one.min_margin == pytest.approx(other.min_margin, rel=1e-2, abs=1e-4)
        for name, receipt in one.receipts.items():
            told = other.receipts[name]
            blank = {"relative_change": None, "logit_change": None}
            assert replace(receipt, **blank) == replace(told, **blank), name
            for key in blank:
                mine, theirs = getattr(receipt, key), getattr(told, key)
                assert (mine is None) == (theirs is None), (name, key)
                assert mine is None or mine == pytest.approx(theirs, rel=1e-3, abs=1e-6), (name, key)
    assert same > 0.8 * len(expected)


@pytest.mark.parametrize(("together", "check"), [(None, 1), (7, 5)])
def test_the_fixed_step_gives_what_the_eager_step_gives(eager, fixed, monkeypatch, together, check):
    backend, ran = fixed
    expected = eager.decode(rows())
    assert not ran
    monkeypatch.setattr(Pace, "of", staticmethod(lambda device: Pace(check=check)))
    assert_same(backend.decode(rows(), together=together), expected)
    assert len(ran) >= 20 and len(set(ran)) > 1  # rows that ended have left


def test_replayed_rows_too(eager, fixed):
    backend, ran = fixed
    assert_same(backend.decode(rows(replay=True)), eager.decode(rows(replay=True)))
    assert ran


def test_features_of_an_sae_are_written_by_the_fixed_step(eager, fixed, tmp_path):
    backend, ran = fixed
    folder = str(tmp_path / "sae")
    sae.save(folder, made())
    number, donor = Value("number", number=2.0), Value("source", "donor")
    writes = (
        (sae_write(folder, (3, 5), number, during="decode"),),
        (sae_write(folder, (3, 5, 60), donor, during="decode", positions="last:3", hold="cycle"),),
    )
    rng = random.Random(4)
    batch = [
        Row(prompt(rng, 5 + n), Sampling(0.9, 12), writes[n % 2], {"donor": prompt(rng, 9)}, stream=n)
        for n in range(6)
    ]
    found = backend.decode(batch)
    assert_same(found, eager.decode(batch))
    assert ran and all(each.receipts["f"].positions_decode > 0 for each in found if len(each.output_ids) > 1)


def test_steps_that_changed_nothing_are_not_counted(eager, fixed, monkeypatch):
    """Rows that have finished go on until somebody looks."""
    backend, ran = fixed
    monkeypatch.setattr(Pace, "of", staticmethod(lambda device: Pace(check=10**6)))
    batch = rows()
    assert_same(backend.decode(batch), eager.decode(batch))
    assert set(ran) == {len(batch)} and len(ran) <= 20  # the longest limit is 21 tokens


def test_cut_edges_run_eagerly(fixed):
    backend, ran = fixed
    keys = Positions.parse("index:1")
    cut = Write(
        "e", "attention_edge", (1,), "mask", Value("none"), Positions.parse("last:1"), "both", keys=keys
    )
    rng = random.Random(6)
    found = backend.decode([Row(prompt(rng, 6), Sampling(0.0, 5), (cut,))])
    assert not ran and found[0].receipts["e"].positions_decode > 0


def test_a_model_that_chooses_experts_has_no_fixed_step(tmp_path, eager):
    assert can_be_fixed(eager._loaded)
    experts = TorchBackend(make_model(tmp_path, "mixtral"), CPU, stepping="fixed")
    assert not can_be_fixed(experts._loaded)
    rng = random.Random(6)
    assert len(experts.decode([Row(prompt(rng, 6), Sampling(0.0, 3))])[0].output_ids) > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("together", [None, 7])
def test_a_graph_gives_what_the_eager_step_gives(source, together):
    place = Device("cuda", "float32")
    batch = rows()
    found = TorchBackend(source, place, stepping="graph").decode(batch, together=together)
    assert_same(found, TorchBackend(source, place, stepping="eager").decode(batch))
