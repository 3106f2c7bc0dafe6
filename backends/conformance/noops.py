"""Writes that must change nothing."""

from __future__ import annotations

import numpy as np

from backends.conformance.check import T0, T1, T2, Check, Finding
from backends.conformance.subject import (
    OWN,
    RANDOM,
    Subject,
    apart,
    constant,
    farthest,
    make,
    same_tokens,
)
from backends.rows import Row
from backends.writes import LAYERLESS, SELF, Site, Value, Write

SECTION = "no-ops"


def _last(subject: Subject, site: Site) -> str:
    """Positions of a write that takes all it can: logits are written at the last position alone."""
    return "index:-1" if site == "logits" else "all"


def _unchanged(subject: Subject, writes: list[Write]) -> Finding:
    """Each write alone, in a row alone: what the model computes and returns is what it is without."""
    ids = subject.ids("target")
    spots = subject.spots(("resid_post", "logits"))
    clean = subject.read(subject.row(ids), spots)
    errors = {}
    for write in writes:
        found = subject.read(subject.row(ids, write), spots)
        errors[write.name] = farthest([(found[spot], clean[spot]) for spot in spots])
    return Finding(max(errors.values(), default=0.0), details=errors)


def beside(subject: Subject) -> Finding:
    """A row without writes beside rows that are written."""
    ids = subject.ids("target")
    writes = [
        make(site, site, subject.every(site), value=RANDOM, positions=_last(subject, site), during="both")
        for site in subject.sites()
    ]
    written = [subject.row(ids, write, tokens=5) for write in writes]
    plain = subject.row(ids, tokens=5)
    spots = subject.spots(("resid_post", "logits"))
    with_writes = subject.capture([plain, *written], spots)[0]
    without = subject.capture([plain] * (len(written) + 1), spots)[0]
    error = farthest([(with_writes[spot], without[spot]) for spot in spots])
    said = subject.decode([plain, *written])[0], subject.decode([plain] * (len(written) + 1))[0]
    same = said[0].output_ids == said[1].output_ids
    return Finding(error, () if same else ("its tokens differ",))


def captured(subject: Subject) -> Finding:
    """Reading every site leaves what the model returns as it is."""
    row = subject.row(subject.ids("target"))
    returned = subject.spots(("logits",))
    everything = subject.spots(subject.sites())
    kept = subject.read(row, [*everything, *subject.spots(("kv_cache",))])
    return Finding(farthest([(kept[spot], subject.read(row, [spot])[spot]) for spot in returned]))


def alpha_zero(subject: Subject) -> Finding:
    """`add` with alpha 0."""
    return _unchanged(
        subject,
        [
            make(site, site, subject.every(site), "add", RANDOM, _last(subject, site), alpha=0.0)
            for site in subject.sites()
        ],
    )


def scale_one(subject: Subject) -> Finding:
    """`scale` with alpha 1."""
    return _unchanged(
        subject,
        [
            make(site, site, subject.every(site), "scale", positions=_last(subject, site), alpha=1.0)
            for site in subject.sites()
        ],
    )


def in_decode(subject: Subject) -> Finding:
    """`add` with alpha 0 and `scale` with alpha 1, in prefill and decode, of rows alone: in a batch, rows
    without writes share one prefill, which has another shape."""
    ids = subject.ids("target")
    continuation = subject.ids("continuation", 4)
    clean = subject.forced([subject.row(ids)], continuation)
    errors = {}
    for site in subject.sites():
        place, every = _last(subject, site), subject.every(site)
        for write in (
            make("add", site, every, "add", RANDOM, place, "both", alpha=0.0),
            make("scale", site, every, "scale", positions=place, during="both"),
        ):
            found = subject.forced([subject.row(ids, write)], continuation)
            errors[f"{write.name} {site}"] = apart(found, clean)
    return Finding(max(errors.values()), details=errors)


def cut_future(subject: Subject) -> Finding:
    """Cutting the attention of a position to a later one."""
    return _unchanged(
        subject,
        [
            make(
                f"layer {layer}",
                "attention_edge",
                (layer,),
                "mask",
                positions="first:3",
                keys="last:4",
            )
            for layer in subject.layers()
        ],
    )


def self_patch(subject: Subject) -> Finding:
    """Every site replaced, in all layers, by what the same prompt has there."""
    return _unchanged(
        subject,
        [
            make(site, site, subject.every(site), "replace", OWN, _last(subject, site))
            for site in subject.sites()
        ],
    )


def back_patch(subject: Subject) -> Finding:
    """Back-patching with source layer = target layer."""
    return _unchanged(
        subject,
        [
            make(
                f"{site} {layer}",
                site,
                (layer,),
                "replace",
                Value("source", role=SELF, layer=layer),
            )
            for site in subject.sites()
            if site not in LAYERLESS
            for layer in subject.layers()
        ],
    )


def next_layer(subject: Subject) -> Finding:
    """resid_pre of each layer replaced by what resid_post of the layer below had there."""
    subject.need(subject.depth > 1, "the model has a single layer")
    ids = subject.ids("target")
    posts = subject.read(subject.row(ids), subject.spots(("resid_post",)))
    errors = []
    for position in (0, len(ids) // 2, len(ids) - 1):
        table = np.zeros((subject.depth, subject.info.width), dtype=np.float32)
        for layer in range(1, subject.depth):
            table[layer] = posts[("resid_post", layer - 1)][position]
        write = make(
            f"position {position}",
            "resid_pre",
            range(1, subject.depth),
            "replace",
            constant(table),
            f"index:{position}",
        )
        errors.append(_unchanged(subject, [write]).error)
    return Finding(max(errors))


def own_cache(subject: Subject) -> Finding:
    """The cache replaced by the same prompt's own: slot by slot, whole, keys and values apart."""
    ids = subject.ids("target")
    every = range(subject.depth)
    ways = [make("slots", "kv_cache", every, "replace", OWN, rope=subject_rope(subject))]
    ways += [
        make(part, "kv_cache", every, "replace", OWN, part=part, rope="keep") for part in ("keys", "values")
    ]
    ways.append(make("whole", "kv_cache", every, "replace", OWN, align="whole", rope="keep"))
    rows = [subject.row(ids, way) for way in ways]
    clean = subject.first([subject.row(ids)] * len(rows))
    found = subject.first(rows)
    details = {way.name: apart(found[i], clean[i]) for i, way in enumerate(ways)}
    return Finding(max(details.values()), details=details)


def own_state_in_decode(subject: Subject) -> Finding:
    """Self-patches at every site in the two forwards of a trial (tokens 0..T-2, then the last) and what
    follows them."""
    ids = subject.ids("target")
    rows: list[Row] = [
        subject.row(
            ids, make(site, site, subject.every(site), "replace", OWN, _last(subject, site)), tokens=6
        )
        for site in subject.sites()
    ]
    clean = [subject.row(ids, tokens=6)] * len(rows)
    found, expected = subject.first(rows), subject.first(clean)
    tokens = same_tokens(subject.decode(rows), subject.decode(clean), float(np.abs(found - expected).max()))
    broken = (f"tokens of {tokens.differ} rows differ",) if tokens.differ else ()
    return Finding(apart(found, expected), broken, {"near-ties": tokens.near_ties})


def own_generation(subject: Subject) -> Finding:
    """Each new token given, in lockstep, what the prompt's own generation has there."""
    ids = subject.ids("target")
    rows, clean = [], []
    for number, heat in enumerate((0.0, 0.9)):
        write = make("own", "resid_post", range(subject.depth), value=OWN, during="decode", hold="lockstep")
        rows.append(subject.row(ids, write, tokens=6, temperature=heat, stream=number))
        clean.append(subject.row(ids, tokens=6, temperature=heat, stream=number))
    found, expected = subject.decode(rows), subject.decode(clean)
    error = max(each.receipts["own"].relative_change or 0.0 for each in found)
    differ = sum(a.output_ids != b.output_ids for a, b in zip(found, expected, strict=True))
    broken = [f"the tokens of {differ} rows differ"] if differ else []
    for each in found:
        receipt = each.receipts["own"]
        if receipt.positions_decode != len(each.output_ids) - 1:
            broken.append(f"{receipt.positions_decode} of {len(each.output_ids) - 1} new tokens are written")
    return Finding(error, tuple(broken))


def subject_rope(subject: Subject) -> str:
    """`rerotate` where keys can be moved."""
    return "rerotate" if subject.info.rotary else "keep"


CHECKS = (
    Check(
        "beside_writes",
        SECTION,
        T0,
        beside,
        "a row without writes is the same beside written rows",
        mixture=T1,
    ),
    Check("capture_everything", SECTION, T0, captured, "reading every site changes nothing"),
    Check("alpha_zero", SECTION, T0, alpha_zero, "adding 0 times a value changes nothing, at every site"),
    Check("scale_one", SECTION, T0, scale_one, "scaling by 1 changes nothing, at every site"),
    Check(
        "nothing_in_decode", SECTION, T0, in_decode, "adding 0 times and scaling by 1 change no decode step"
    ),
    Check("cut_future_edge", SECTION, T0, cut_future, "cutting an edge to a later position changes nothing"),
    Check("self_patch", SECTION, T0, self_patch, "replacing any site by its own state changes nothing"),
    Check(
        "back_patch_same_layer", SECTION, T0, back_patch, "back-patching a layer into itself changes nothing"
    ),
    Check("next_resid_pre", SECTION, T0, next_layer, "resid_pre of layer l + 1 is resid_post of layer l"),
    Check(
        "own_cache",
        SECTION,
        T2,
        own_cache,
        "a prompt's own cache in place of its cache changes nothing",
        ("float32",),
    ),
    Check(
        "lockstep_own",
        SECTION,
        T2,
        own_generation,
        "a generation in lockstep with itself is what it was",
        ("float32",),
    ),
    Check(
        "self_patch_in_trial",
        SECTION,
        T2,
        own_state_in_decode,
        "self-patches in a trial's two forwards change nothing",
        ("float32",),
    ),
)
