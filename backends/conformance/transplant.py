"""Putting another prompt's state in place gives that prompt's results, and leaves alone what lies before."""

from __future__ import annotations

import numpy as np

from backends.conformance.check import T0, T1, T2, Check, Finding
from backends.conformance.subject import RANDOM, Subject, apart, farthest, make, same_tokens

SECTION = "transplant"


def all_positions(subject: Subject) -> Finding:
    """All positions of a residual layer from a donor of equal length: the donor's logits at all positions."""
    ids, donor = subject.ids("target"), subject.ids("donor")
    expected = subject.logits([subject.row(donor)])[0]
    details = {}
    for site in subject.stream():
        for layer in subject.layers():
            row = subject.row(ids, make(site, site, (layer,)), donor=donor)
            details[f"{site} {layer}"] = apart(subject.logits([row])[0], expected)
    return Finding(max(details.values()), details=details)


def all_positions_in_trial(subject: Subject) -> Finding:
    """The same in a trial, whose prompt is run in two forwards: the donor's first new token."""
    ids, donor = subject.ids("target"), subject.ids("donor")
    rows = [
        subject.row(ids, make(site, site, (layer,)), donor=donor)
        for site in subject.stream()
        for layer in subject.layers()
    ]
    expected = subject.first([subject.row(donor)])[0]
    return Finding(farthest([(found, expected) for found in subject.first(rows)]))


def last_state(subject: Subject) -> Finding:
    """resid_post of the last layer at the last position: the donor's logits there, whatever its length."""
    ids, donor = subject.ids("target"), subject.ids("donor", subject.length - 3)
    write = make("last", "resid_post", (subject.depth - 1,), positions="index:-1")
    found = subject.returned([subject.row(ids, write, donor=donor)])[0]
    return Finding(apart(found, subject.returned([subject.row(donor)])[0]))


def all_heads(subject: Subject) -> Finding:
    """All heads of a layer patched at head_z = attn_out of that layer patched."""
    ids, donor = subject.ids("target"), subject.ids("donor")
    pairs = []
    for layer in subject.layers():
        heads, whole = (
            subject.logits([subject.row(ids, make(site, site, (layer,)), donor=donor)])[0]
            for site in ("head_z", "attn_out")
        )
        pairs.append((heads, whole))
    return Finding(farthest(pairs))


def whole_cache(subject: Subject) -> Finding:
    """The donor's slots in every layer and its last token: its continuation."""
    donor = subject.ids("donor")
    target = (*subject.ids("target")[:-1], donor[-1])
    every = range(subject.depth)
    ways = [make("slots", "kv_cache", every, rope=rope) for rope in ropes(subject)]
    ways.append(make("whole", "kv_cache", every, align="whole", rope="keep"))
    rows = [subject.row(target, way, donor=donor, tokens=8) for way in ways]
    clean = [subject.row(donor, tokens=8)] * len(rows)
    found, expected = subject.first(rows), subject.first(clean)
    tokens = same_tokens(subject.decode(rows), subject.decode(clean), float(np.abs(found - expected).max()))
    broken = (f"the continuation of {tokens.differ} rows is not the donor's",) if tokens.differ else ()
    return Finding(apart(found, expected), broken, {"near-ties": tokens.near_ties})


def cache_and_continuation(subject: Subject) -> Finding:
    """The same, for given new tokens."""
    donor = subject.ids("donor")
    target = (*subject.ids("target")[:-1], donor[-1])
    continuation = subject.ids("continuation", 5)
    row = subject.row(target, make("slots", "kv_cache", range(subject.depth), rope="keep"), donor=donor)
    found = subject.forced([row], continuation)
    return Finding(apart(found, subject.forced([subject.row(donor)], continuation)))


def before(subject: Subject) -> Finding:
    """Positions before those written, and layers below the one written, stay as they were."""
    ids = subject.ids("target")
    spots = subject.spots(subject.stream())
    clean = subject.read(subject.row(ids), spots)
    start = len(ids) - 5
    pairs = []
    for layer in subject.layers():
        row = subject.row(ids, make("late", "resid_post", (layer,), value=RANDOM, positions="last:5"))
        found = subject.read(row, spots)
        for site, at in spots:
            below = at < layer or (at == layer and site != "resid_post")
            stop = len(ids) if below else start
            pairs.append((found[(site, at)][:stop], clean[(site, at)][:stop]))
    return Finding(farthest(pairs))


def ropes(subject: Subject) -> tuple[str, ...]:
    """The ways of `rope` that the model takes."""
    return ("rerotate", "keep") if subject.info.rotary else ("keep",)


CHECKS = (
    Check(
        "donor_residual",
        SECTION,
        T1,
        all_positions,
        "a residual layer from a donor of equal length gives the donor's logits",
    ),
    Check(
        "donor_residual_in_trial",
        SECTION,
        T2,
        all_positions_in_trial,
        "in a trial it gives the donor's first new token",
        ("float32",),
    ),
    Check(
        "donor_last_state",
        SECTION,
        T1,
        last_state,
        "the last layer's state at the last position gives the donor's logits",
    ),
    Check(
        "all_heads", SECTION, T1, all_heads, "all heads of a layer patched is attn_out patched", ("float32",)
    ),
    Check(
        "donor_cache",
        SECTION,
        T2,
        whole_cache,
        "the donor's slots and last token give the donor's continuation",
        ("float32",),
    ),
    Check(
        "donor_cache_forced",
        SECTION,
        T2,
        cache_and_continuation,
        "and the donor's probabilities of given new tokens",
        ("float32",),
    ),
    Check(
        "nothing_before",
        SECTION,
        T0,
        before,
        "positions before a write and layers below it do not change",
        mixture=T1,
    ),
)
