"""Starting from a shared prefix, or from a layer of its last token, changes nothing but the work."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest

from backends.contract import BackendError, Start
from backends.measures import Probe, ScoreRow
from backends.rows import Row
from backends.torch.backend import TorchBackend
from tests.models import CPU, FAMILIES, GREEDY, SAMPLED, make_model, prompt, taken_by, write

NEAR_TIE = 1e-4


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def backend(request, tmp_path_factory):
    return TorchBackend(make_model(tmp_path_factory.mktemp(request.param), request.param), CPU)


def same(found, expected) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.output_ids == b.output_ids or min(a.min_margin, b.min_margin) < NEAR_TIE
        for name, receipt in a.receipts.items():
            assert receipt.positions_prefill == b.receipts[name].positions_prefill
            assert receipt.positions_decode == b.receipts[name].positions_decode
            assert receipt.relative_change == pytest.approx(
                b.receipts[name].relative_change, rel=1e-2, abs=1e-5
            )


def test_decoding_from_a_shared_prefix(backend):
    rng = random.Random(1)
    common, donor = prompt(rng, 9), prompt(rng, 14)
    conditions = [
        (),
        (write("kv", "kv_cache"),),
        (write("kv", "kv_cache", align="left", positions="first:5"),),
        (write("r", "resid_pre", (1, 2), positions="last:2"),),
        (write("v", "v_proj", (2,), during="decode", positions="last:4", hold="cycle"),),
    ]
    rows = [
        Row((*common, *prompt(rng, n)[1:]), SAMPLED, writes, {"donor": donor}, stream=n)
        for n in (3, 5, 12)
        for writes in (taken_by(backend.info, each) for each in conditions)
    ]
    rows.append(Row(common, SAMPLED, stream=77))
    start = Start(backend.prefix(common))
    writes_into_prefix = [r for r in rows if len(r.ids) < len(common) + 2 and r.writes]
    plain = [r for r in rows if r not in writes_into_prefix]
    same(backend.decode(plain, start), backend.decode(plain))


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_the_last_token_from_a_layer_up(backend, layer):
    rng = random.Random(2)
    ids, donors = prompt(rng, 12), [prompt(rng, 7) for _ in range(4)]
    start = Start(backend.prefix(ids), layer)
    at_last = write("r", "resid_pre", (3,), positions="index:-1")
    later = write("v", "v_proj", (3,), during="decode", positions="last:2", hold="last")
    rows = [
        Row(ids, GREEDY, writes, {"donor": donor})
        for donor in donors
        for writes in ((), (at_last,), (at_last, later))
    ]
    same(backend.decode(rows, start), backend.decode(rows))
    sites = [("resid_pre", 3), ("attn_out", 3), ("kv_cache", 3)]
    whole = backend.capture(rows, sites, "last")
    short = backend.capture(rows, sites, "last", start)
    for a, b in zip(whole, short, strict=True):
        for spot, found in a.activations.items():
            assert np.allclose(found, b.activations[spot], rtol=1e-3, atol=1e-4), spot


def test_scores_from_a_prefix(backend):
    rng = random.Random(3)
    common = prompt(rng, 10)
    rows = [ScoreRow(Row((*common, *prompt(rng, n)[1:]), GREEDY), prompt(rng, 6)[1:]) for n in (1, 4, 9)]
    found = backend.score(rows, [Probe("perplexity", "perplexity")], Start(backend.prefix(common)))
    for a, b in zip(found, backend.score(rows, [Probe("perplexity", "perplexity")]), strict=True):
        assert a.values["perplexity"] == pytest.approx(b.values["perplexity"], rel=1e-4)


def test_reductions(backend):
    rng = random.Random(4)
    rows = [Row(prompt(rng, n), GREEDY) for n in (4, 9)]
    sites = [("resid_post", 1), ("head_z", 2)]
    everything = backend.capture(rows, sites)
    for reduce, function in (("last", lambda a: a[-1]), ("mean", lambda a: a.astype(np.float64).mean(0))):
        for whole, part in zip(everything, backend.capture(rows, sites, reduce), strict=True):
            for spot, found in part.activations.items():
                assert np.allclose(found, function(whole.activations[spot]), rtol=1e-6, atol=1e-7)


def test_what_cannot_start_there_is_refused(backend):
    rng = random.Random(5)
    ids = prompt(rng, 8)
    start, deep = Start(backend.prefix(ids)), Start(backend.prefix(ids), 2)
    longer = Row((*ids, 5), GREEDY)
    with pytest.raises(BackendError, match="must begin with the prefix"):
        backend.decode([Row(prompt(rng, 9), GREEDY)], start)
    with pytest.raises(BackendError, match="must be the whole prefix"):
        backend.decode([longer], deep)
    with pytest.raises(BackendError, match="expected 0 to 3"):
        backend.decode([Row(ids, GREEDY)], dataclasses.replace(start, layer=4))
    low = write("r", "resid_pre", (1,), positions="index:-1", role="self")
    with pytest.raises(BackendError, match="r would act below it"):
        backend.decode([Row(ids, GREEDY, (low,))], deep)
    early = write("r", "resid_pre", (1,), positions="first:2", role="self")
    with pytest.raises(BackendError, match="r would write into the prefix"):
        backend.decode([Row((*ids, 5, 6), GREEDY, (early,))], start)
