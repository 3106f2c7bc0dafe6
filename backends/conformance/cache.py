"""What the cache holds: rotary positions, pairs of keys and values."""

from __future__ import annotations

import numpy as np

from backends.conformance.check import T0, T1, T2, Check, Finding
from backends.conformance.subject import Subject, apart, make, with_role
from backends.contract import BackendError
from backends.writes import SELF, Value

SECTION = "cache"


def shifted(subject: Subject) -> Finding:
    """A prompt behind a donor's cache (align concat) = one prompt over both, its tokens computed at their
    shifted positions and cut off from the donor's, but for the last, which sees all."""
    every = range(subject.depth)
    errors = []
    for length in (4, subject.length):
        ids, donor = subject.ids("target"), subject.ids("donor", length)
        joined = subject.row(ids, make("kv", "kv_cache", every, align="concat"), donor=donor)
        taken = len(donor) - 1
        cut = make("cut", "attention_edge", every, "mask", positions="role:own", keys=f"first:{taken}")
        plain = with_role(subject.row(donor[:-1] + ids, cut), "own", (taken, taken + len(ids) - 1))
        errors.append(apart(subject.first([joined]), subject.first([plain])))
    return Finding(max(errors))


def tail(subject: Subject) -> Finding:
    """The end of a longer donor's cache, re-rotated into the slots of a shorter prompt = the donor's prompt
    with this prompt's last token, which does not see the beginning."""
    every = range(subject.depth)
    donor, ids = subject.ids("donor"), subject.ids("target", subject.length - 5)
    taken = subject.row(ids, make("kv", "kv_cache", every), donor=donor)
    cut = make("cut", "attention_edge", every, "mask", positions="index:-1", keys="first:5")
    plain = subject.row((*donor[:-1], ids[-1]), cut)
    found, expected = subject.first([taken]), subject.first([plain])
    kept = subject.first([subject.row(ids, make("kv", "kv_cache", every, rope="keep"), donor=donor)])
    broken = () if apart(kept, expected) > 0 else ("keys that keep their positions give the same",)
    return Finding(apart(found, expected), broken, {"with rope keep": apart(kept, expected)})


def pairs_permuted(subject: Subject) -> Finding:
    """Keys and values permuted together, keys keeping their positions: attention sees a set of pairs."""
    ids = subject.ids("target", subject.short_length)
    value = Value("shuffled_window", role=SELF)
    write = make("kv", "kv_cache", range(subject.depth), value=value, rope="keep")
    return Finding(apart(subject.first([subject.row(ids, write)]), subject.first([subject.row(ids)])))


def values_permuted(subject: Subject) -> Finding:
    """Values permuted against their keys change the first new token, at every layer. error: layers that do
    not."""
    ids = subject.ids("target", subject.short_length)
    value = Value("shuffled_window", role=SELF)
    layers = subject.layers()
    rows = [
        subject.row(ids, make("kv", "kv_cache", (layer,), value=value, part="values", rope="keep"))
        for layer in layers
    ]
    moved = np.abs(subject.first(rows) - subject.first([subject.row(ids)] * len(rows))).max(axis=1)
    dead = [f"layer {layer}: no change" for layer, change in zip(layers, moved, strict=True) if change == 0]
    return Finding(float(len(dead)), tuple(dead), {"smallest change": float(moved.min())})


def learned_positions(subject: Subject) -> Finding:
    """Where positions are learned, keys cannot be moved: re-rotating is refused. error: 1 where it is not."""
    subject.need(not subject.info.rotary, "positions are rotary")
    write = make("kv", "kv_cache", range(subject.depth))
    try:
        subject.backend.check([write])
    except BackendError:
        return Finding(0.0)
    return Finding(1.0, ("rope rerotate is accepted",))


def parts(subject: Subject) -> Finding:
    """Keys and values replaced by two writes = both replaced by one."""
    ids, donor = subject.ids("target"), subject.ids("donor")
    every = range(subject.depth)
    both = subject.row(ids, make("kv", "kv_cache", every, rope="keep"), donor=donor)
    apiece = subject.row(
        ids,
        make("keys", "kv_cache", every, part="keys", rope="keep"),
        make("values", "kv_cache", every, part="values", rope="keep"),
        donor=donor,
    )
    return Finding(apart(subject.first([apiece]), subject.first([both])))


def captured_cache(subject: Subject) -> Finding:
    """A captured cache holds, behind its keys, what v_proj gave."""
    ids = subject.ids("target")
    spots = subject.spots(("v_proj", "kv_cache"))
    found = subject.read(subject.row(ids), spots)
    width = subject.info.kv_heads * subject.info.head_width
    errors = [
        apart(found[("kv_cache", layer)][:, width:], found[("v_proj", layer)])
        for layer in range(subject.depth)
    ]
    return Finding(max(errors))


CHECKS = (
    Check(
        "rerotated_behind",
        SECTION,
        T2,
        shifted,
        "re-rotated keys of a sequence are keys computed at shifted positions",
        ("float32", "rotary"),
    ),
    Check(
        "rerotated_tail",
        SECTION,
        T2,
        tail,
        "a longer donor's last slots, re-rotated, are its prompt with the beginning cut off",
        ("float32", "rotary"),
    ),
    Check(
        "rerotation_refused", SECTION, T0, learned_positions, "keys with learned positions cannot be moved"
    ),
    Check(
        "pairs_permuted",
        SECTION,
        T1,
        pairs_permuted,
        "pairs of keys and values permuted together change nothing",
        ("float32",),
    ),
    Check("values_permuted", SECTION, T0, values_permuted, "values permuted against keys do"),
    Check("keys_and_values", SECTION, T1, parts, "keys and values by two writes are both by one"),
    Check("cache_captured", SECTION, T1, captured_cache, "a captured cache holds the values of v_proj"),
)
