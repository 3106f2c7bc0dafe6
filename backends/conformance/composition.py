"""The order of events of a trial, and writes that meet."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from backends.conformance.check import T0, T1, T2, Check, Finding
from backends.conformance.subject import DONOR, RANDOM, Subject, apart, constant, farthest, make
from backends.writes import Site, Under

SECTION = "composition"


def first_token(subject: Subject) -> Finding:
    """A prefill write at the last prompt position shapes the first new token, as it does in one forward."""
    ids, donor = subject.ids("target"), subject.ids("donor")
    pairs, dead = [], []
    clean = subject.first([subject.row(ids)])[0]
    for site in subject.sites():
        layers = subject.only(site)
        row = subject.row(ids, make(site, site, layers, positions="index:-1"), donor=donor)
        found = subject.first([row])[0]
        logits = subject.returned([row])[0].astype(np.float64)
        top = logits.max()
        pairs.append((found, np.maximum(logits - top - np.log(np.exp(logits - top).sum()), np.log(1e-30))))
        if not np.abs(found - clean).max() > 0:
            dead.append(f"{site}: the first new token is not treated")
    return Finding(farthest(pairs), tuple(dead))


def second_token(subject: Subject) -> Finding:
    """A write on the first new token as it is fed back = the same write at the last position of a prompt
    that ends in it."""
    ids = subject.ids("target")
    said = subject.ids("continuation", 2)
    pairs = []
    for site in subject.sites():
        for layer in subject.layers_of(site):
            value = constant(subject.vector(site, subject.width(site)))
            decode = make(site, site, (layer,), "add", value, "all", "decode", alpha=0.5)
            prefill = make(site, site, (layer,), "add", value, "index:-1", "prefill", alpha=0.5)
            forced = subject.forced([subject.row(ids, decode)], said)[0, 1]
            whole = subject.first([subject.row((*ids, said[0]), prefill)])[0, said[1]]
            pairs.append((np.array([forced]), np.array([whole])))
    return Finding(farthest(pairs))


def holds(subject: Subject) -> Finding:
    """What a new token takes from a donor's window: its last row, its rows in turn, their mean."""
    ids, donor = subject.ids("target"), subject.ids("donor")
    said = subject.ids("continuation", 3)
    layer = subject.depth - 1
    window = subject.read(subject.row(donor), [("v_proj", layer)])[("v_proj", layer)][-2:]
    wanted = {
        "last": (window[-1], window[-1]),
        "cycle": (window[0], window[1]),
        "mean": (window.mean(axis=0), window.mean(axis=0)),
    }
    pairs = []
    for hold, (one, two) in wanted.items():
        write = make("hold", "v_proj", (layer,), positions="last:2", during="decode", hold=hold)
        forced = subject.forced([subject.row(ids, write, donor=donor)], said)[0]
        prompt = (*ids, *said[:2])
        by_hand = subject.row(
            prompt,
            make("one", "v_proj", (layer,), "replace", constant(one), "index:-2"),
            make("two", "v_proj", (layer,), "replace", constant(two), "index:-1", order=1),
        )
        pairs.append((forced[2:], subject.first([by_hand])[0, [said[2]]]))
        half = subject.row(
            (*ids, said[0]), make("one", "v_proj", (layer,), "replace", constant(one), "index:-1")
        )
        pairs.append((forced[1:2], subject.first([half])[0, [said[1]]]))
    return Finding(farthest(pairs))


def shadowed(subject: Subject) -> Finding:
    """V writes in prefill whose slots are then replaced: all reported shadowed, and without effect."""
    ids, donor = subject.ids("target"), subject.ids("donor")
    every = range(subject.depth)
    slots = len(ids) - 1
    v = make("v", "v_proj", every, value=RANDOM, positions=f"first:{slots}")
    kv = make("kv", "kv_cache", every, rope="keep")
    alone, both = subject.row(ids, kv, donor=donor), subject.row(ids, v, kv, donor=donor)
    error = apart(subject.first([both]), subject.first([alone]))
    receipts = subject.decode([both])[0].receipts
    broken = []
    if receipts["v"].shadowed != slots:
        broken.append(f"{receipts['v'].shadowed} of {slots} positions are reported shadowed")
    if receipts["kv"].shadowed:
        broken.append("the cache write is reported shadowed")
    partly = subject.row(ids, v, make("kv", "kv_cache", every, positions="last:3", rope="keep"), donor=donor)
    if subject.decode([partly])[0].receipts["v"].shadowed == slots:
        broken.append("slots that stay are reported shadowed")
    return Finding(error, tuple(broken))


def cache_after_prefill(subject: Subject) -> Finding:
    """Slots of layers that are not replaced keep what the prefill writes left: writing the cache of one layer
    does not undo a write below it."""
    subject.need(subject.depth > 1, "the model has a single layer")
    ids, donor = subject.ids("target"), subject.ids("donor")
    last = subject.depth - 1
    residual = make("r", "resid_pre", (0,), value=DONOR)
    kv = make("kv", "kv_cache", (last,), rope="keep")
    donors_cache = subject.row(ids, residual, kv, donor=donor)
    return Finding(apart(subject.first([donors_cache]), subject.first([subject.row(donor)])))


def under(subject: Subject) -> Finding:
    """A source captured under a condition is what its prompt has there with the condition's writes."""
    ids, donor = subject.ids("target"), subject.ids("donor")
    pairs, dead = [], []
    for layer in subject.layers():
        steer = make("steer", "resid_pre", (0,), "add", constant(subject.vector("steer")), "all")
        value = replace(DONOR, under=Under((steer,), "steered"))
        row = subject.row(ids, make("r", "resid_post", (layer,), value=value), donor=donor)
        spot = ("resid_post", layer)
        found = subject.read(row, [("resid_post", layer)])[spot]
        pairs.append((found, subject.read(subject.row(donor, steer), [("resid_post", layer)])[spot]))
        clean = subject.read(subject.row(donor), [("resid_post", layer)])[spot]
        if not np.abs(found - clean).max() > 0:
            dead.append(f"layer {layer}: the source is that of the clean run")
    return Finding(farthest(pairs), tuple(dead))


def ranked(subject: Subject) -> Finding:
    """Two writes on one tensor act in the order of their ranks, whatever the order in which they stand."""
    ids, donor = subject.ids("target"), subject.ids("donor")
    value = constant(subject.vector("added"))
    pairs, broken = [], []
    for layer in subject.layers():
        spot = ("resid_post", layer)

        def at(*writes: object, layer: int = layer) -> np.ndarray:
            row = subject.row(ids, *writes, donor=donor)  # type: ignore[arg-type]
            return subject.read(row, [("resid_post", layer)])[("resid_post", layer)]

        put = [make("put", "resid_post", (layer,), "replace", DONOR, order=rank) for rank in (0, 1)]
        add = [make("add", "resid_post", (layer,), "add", value, order=rank) for rank in (0, 1)]
        alone = at(put[0])
        vector = subject.vector("added").astype(np.float64)
        pairs += [(at(add[0], put[1]), alone), (at(put[1], add[0]), alone)]
        pairs += [(at(put[0], add[1]), alone + vector), (at(add[1], put[0]), alone + vector)]
        if apart(at(put[0], add[1]), alone) == 0:
            broken.append(f"{spot}: an add behind a replace is lost")
    return Finding(farthest(pairs), tuple(broken))


def both_phases(subject: Subject) -> Finding:
    """during both = the same write in prefill and another in decode."""
    ids, donor = subject.ids("target"), subject.ids("donor")
    said = subject.ids("continuation", 4)
    pairs = []
    sites: tuple[Site, ...] = ("resid_pre", "v_proj", "mlp_out")
    for site in sites:
        every = subject.every(site)
        both = make("both", site, every, positions="last:2", during="both", hold="cycle")
        before = make("before", site, every, positions="last:2")
        after = make("after", site, every, positions="last:2", during="decode", hold="cycle")
        pairs.append(
            (
                subject.forced([subject.row(ids, both, donor=donor)], said),
                subject.forced([subject.row(ids, before, after, donor=donor)], said),
            )
        )
    return Finding(farthest(pairs))


CHECKS = (
    Check(
        "first_token_treated",
        SECTION,
        T2,
        first_token,
        "a write at the last prompt position shapes the first new token, at every site",
        ("float32",),
    ),
    Check(
        "decode_is_prefill",
        SECTION,
        T2,
        second_token,
        "a write on a new token is that write at the end of a longer prompt, at every site",
        ("float32",),
    ),
    Check(
        "holds", SECTION, T2, holds, "last, cycle and mean take the donor's rows that they name", ("float32",)
    ),
    Check(
        "shadowed",
        SECTION,
        T1,
        shadowed,
        "V writes whose slots are replaced are shadowed, and told",
        ("float32",),
    ),
    Check(
        "cache_after_prefill",
        SECTION,
        T2,
        cache_after_prefill,
        "cache writes come after prefill writes, which layers that are not replaced keep",
        ("float32",),
    ),
    Check(
        "under",
        SECTION,
        T1,
        under,
        "a source under a condition carries that condition's writes",
        ("float32",),
    ),
    Check(
        "ranked", SECTION, T1, ranked, "writes on one tensor act in the order of their ranks", ("float32",)
    ),
    Check("both_phases", SECTION, T0, both_phases, "during both is prefill and decode", mixture=T1),
)
