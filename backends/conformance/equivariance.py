"""Results do not depend on how rows are put together: batch, padding, order, cache, prefix."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from backends.conformance.check import T2, Check, Finding
from backends.conformance.subject import (
    DONOR,
    RANDOM,
    Subject,
    apart,
    constant,
    farthest,
    make,
    same_tokens,
)
from backends.contract import Start
from backends.rows import Decoded, Row
from backends.writes import Heads, Value, Write

SECTION = "equivariance"
TOKENS = 8


def mixed_rows(subject: Subject) -> list[Row]:
    """Rows of unequal lengths in unlike conditions, greedy and sampled."""
    info = subject.info
    every = range(subject.depth)
    last = subject.depth - 1
    conditions: list[tuple[Write, ...]] = [
        (),
        (make("kv", "kv_cache", every, rope="keep"),),
        (make("v", "v_proj", (0, last), positions="last:3", during="both", hold="cycle"),),
        (make("noise", "resid_pre", (last,), value=RANDOM, positions="first:2", during="both"),),
        (
            make("kv", "kv_cache", every, part="values", positions="last:4", rope="keep"),
            make("z", "head_z", (0,), "zero", positions="index:-1", heads=Heads("query", (info.heads - 1,))),
        ),
        (make("add", "resid_post", (0,), "add", constant(subject.vector("add")), alpha=0.5, during="both"),),
        (make("scale", "mlp_out", every, "scale", positions="last:2", during="decode", alpha=0.5),),
        (make("cut", "attention_edge", (0,), "mask", positions="last:2", keys="first:2"),),
        (make("kv", "kv_cache", every, align="whole", rope="keep"),),
    ]
    if info.rotary:
        conditions.append((make("kv", "kv_cache", every, positions="first:3"),))
        conditions.append((make("kv", "kv_cache", every, align="concat"),))
    far = Value("source", role="donor", layer=0)
    long = constant(subject.vector("long"), "random")
    conditions += [
        (make("far", "resid_post", (last,), "add", far, "last:3", "both", hold="last", read_at="index:2"),),
        (make("long", "resid_pre", (last,), "add", long, "first:2", "both"),),
    ]
    rows = []
    for number, writes in enumerate(conditions):
        for turn in range(2 if subject.full else 1):
            ids = subject.ids(f"mixed {number} {turn}", subject.length - (5 * number + 3 * turn) % 8)
            donor = subject.ids(f"donor {number}", subject.length - (3 * number) % 7)
            heat = 0.9 if (number + turn) % 2 else 0.0
            rows.append(
                subject.row(ids, *writes, donor=donor, tokens=TOKENS, temperature=heat, stream=number)
            )
    return rows


def _compared(
    subject: Subject, pairs: list[tuple[np.ndarray, np.ndarray]], found: list[Decoded], alone: list[Decoded]
) -> Finding:
    logits = max(float(np.abs(one - other).max()) for one, other in pairs)
    tokens = same_tokens(found, alone, logits)
    broken = [f"the tokens of {tokens.differ} of {len(found)} rows differ"] if tokens.differ else []
    for one, other in zip(found, alone, strict=True):
        if one.output_ids == other.output_ids:
            for name in one.receipts:
                mine, theirs = one.receipts[name], other.receipts[name]
                counts = (
                    "positions_prefill",
                    "positions_decode",
                    "asked_prefill",
                    "asked_decode",
                    "shadowed",
                )
                if any(getattr(mine, count) != getattr(theirs, count) for count in counts):
                    broken.append(f"the receipt of {name} differs")
    details = {"rows": float(len(found)), "near-ties": float(tokens.near_ties), "logits": logits}
    return Finding(farthest(pairs), tuple(broken), details)


def batched(subject: Subject) -> Finding:
    """All rows in one batch, and each alone."""
    rows = mixed_rows(subject)
    together = subject.first(rows)
    alone = [subject.first([row])[0] for row in rows]
    apiece = [subject.decode([row])[0] for row in rows]
    return _compared(subject, list(zip(together, alone, strict=True)), subject.decode(rows), apiece)


def order(subject: Subject) -> Finding:
    """A batch in another order, and in batches of other sizes."""
    rows = mixed_rows(subject)
    turned = [rows[i] for i in np.random.default_rng(7).permutation(len(rows))]
    back = [turned.index(row) for row in rows]
    straight, shuffled = subject.first(rows), subject.first(turned)[back]
    pairs = list(zip(shuffled, straight, strict=True))
    said = subject.decode(rows)
    again = subject.decode(turned)
    pieces = [each for i in range(0, len(rows), 4) for each in subject.decode(rows[i : i + 4])]
    return _compared(subject, pairs, [*(again[i] for i in back), *pieces], [*said, *said])


def padded(subject: Subject) -> Finding:
    """Prompts behind padding: the activations of each site at each position."""
    rows = [subject.row(subject.ids(f"padded {n}", subject.length - n)) for n in (0, 3, 7)]
    spots = subject.spots(("resid_post", "k_proj", "kv_cache"))
    together = subject.capture(rows, spots)
    pairs = []
    for row, found in zip(rows, together, strict=True):
        alone = subject.read(row, spots)
        pairs += [(found[spot], alone[spot]) for spot in spots]
    return Finding(farthest(pairs))


def recomputed(subject: Subject) -> Finding:
    """Generation with the cache, and with a whole forward at every step."""
    rows = []
    for number, (length, writes) in enumerate(
        (
            (subject.length, ()),
            (subject.length - 5, ()),
            (subject.length - 2, (make("v", "v_proj", range(subject.depth), positions="last:3"),)),
            (subject.length - 3, (make("r", "resid_pre", (0,), "add", DONOR, "first:2", alpha=0.3),)),
        )
    ):
        ids, donor = subject.ids(f"again {number}", length), subject.ids("donor")
        rows.append(subject.row(ids, *writes, donor=donor, tokens=TOKENS))
    anew = [replace(row, recompute=True) for row in rows]
    found, expected = subject.decode(anew), subject.decode(rows)
    continuation = subject.ids("continuation", 5)
    cached = subject.forced(rows[:2], continuation)
    whole = [
        _said(subject, subject.row(row.ids + continuation), len(row.ids), continuation) for row in rows[:2]
    ]
    return _compared(subject, list(zip(cached, whole, strict=True)), found, expected)


def _said(subject: Subject, row: Row, start: int, continuation: tuple[int, ...]) -> np.ndarray:
    """Log-probabilities of a continuation, read from one forward over prompt and continuation."""
    logits = subject.logits([row])[0][start - 1 : -1].astype(np.float64)
    top = logits.max(axis=-1)
    total = top + np.log(np.exp(logits - top[:, None]).sum(axis=-1))
    found: np.ndarray = logits[np.arange(len(continuation)), list(continuation)] - total
    return found


def prefixed(subject: Subject) -> Finding:
    """Rows that begin behind a prefix that was run once."""
    common = subject.ids("common", 5)
    rows = [
        subject.row(common + subject.ids(f"rest {n}", subject.length - 5 - n), tokens=TOKENS)
        for n in (0, 2, 4)
    ]
    start = Start(subject.backend.prefix(common))
    spots = subject.spots(("resid_post",))
    pairs = []
    for row, found in zip(rows, subject.backend.capture(rows, spots, start=start), strict=True):
        alone = subject.read(row, spots)
        pairs += [(found.activations[spot], alone[spot][len(common) :]) for spot in spots]
    said = subject.decode(rows)
    logits = subject.first(rows)
    again = subject.backend.decode(rows, start)
    error = farthest(pairs) * float(np.abs(logits).max())
    tokens = same_tokens(again, said, error)
    broken = (f"the tokens of {tokens.differ} rows differ",) if tokens.differ else ()
    return Finding(farthest(pairs), broken, {"near-ties": float(tokens.near_ties)})


def from_layer(subject: Subject) -> Finding:
    """The last token run from a layer on, behind its own prompt = the whole prompt, writes at the last
    position included."""
    ids, donor = subject.ids("target"), subject.ids("donor")
    pairs = []
    for layer in subject.layers():
        rows = [
            subject.row(ids, *writes, donor=donor)
            for writes in (
                (),
                (make("r", "resid_pre", (layer,), positions="index:-1"),),
                (make("z", "head_z", (layer, subject.depth - 1), positions="index:-1"),),
            )
        ]
        start = Start(subject.backend.prefix(ids), layer)
        last = [("resid_post", subject.depth - 1)]
        found = subject.backend.capture(rows, last, "last", start)  # type: ignore[arg-type]
        alone = subject.final(rows)
        pairs += [(a.activations[last[0]], b[-1]) for a, b in zip(found, alone, strict=True)]
    return Finding(farthest(pairs))


def replayed(subject: Subject) -> Finding:
    """The last prompt token fed again = a prompt with that token twice."""
    ids = subject.ids("target")
    twice = subject.row((*ids, ids[-1]))
    again = replace(subject.row(ids), replay_last_token=True)
    return Finding(apart(subject.first([again]), subject.first([twice])))


def token_once(subject: Subject) -> Finding:
    """A trial's two forwards give what one forward over the prompt gives: the last token is fed once."""
    rows = [subject.row(subject.ids(f"once {n}", subject.length - n)) for n in (0, 4)]
    pairs = []
    for row in rows:
        logits = subject.logits([row])[0][-1].astype(np.float64)
        top = logits.max()
        pairs.append((subject.first([row])[0], logits - top - np.log(np.exp(logits - top).sum())))
    return Finding(farthest(pairs))


def reductions(subject: Subject) -> Finding:
    """Captures reduced to the last position or to the mean are those of the whole."""
    rows = [subject.row(subject.ids(f"reduced {n}", subject.length - n)) for n in (0, 3)]
    spots = subject.spots(("resid_pre", "v_proj"))
    whole = subject.capture(rows, spots)
    pairs = []
    last = subject.backend.capture(rows, spots, "last")
    mean = subject.backend.capture(rows, spots, "mean")
    for full, tail, middle in zip(whole, last, mean, strict=True):
        for spot in spots:
            pairs.append((tail.activations[spot], full[spot][-1]))
            pairs.append((middle.activations[spot], full[spot].astype(np.float64).mean(axis=0)))
    return Finding(farthest(pairs))


CHECKS = (
    Check("batched", SECTION, T2, batched, "rows in one batch are the rows alone", ("float32",)),
    Check("order", SECTION, T2, order, "order and size of batches do not matter", ("float32",)),
    Check(
        "padded",
        SECTION,
        T2,
        padded,
        "left-padded prompts have the activations of unpadded ones",
        ("float32",),
    ),
    Check(
        "recomputed", SECTION, T2, recomputed, "generation with and without a cache is the same", ("float32",)
    ),
    Check(
        "prefixed", SECTION, T2, prefixed, "rows behind a common prefix are the rows in whole", ("float32",)
    ),
    Check(
        "from_layer",
        SECTION,
        T2,
        from_layer,
        "a last token run from a layer on is that of the whole prompt",
        ("float32",),
    ),
    Check("replayed", SECTION, T2, replayed, "a replayed last token is that token twice", ("float32",)),
    Check("last_token_once", SECTION, T2, token_once, "the last prompt token is fed once", ("float32",)),
    Check(
        "reductions", SECTION, T2, reductions, "reduced captures are reductions of whole ones", ("float32",)
    ),
)
