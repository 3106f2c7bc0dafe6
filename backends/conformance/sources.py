"""Where values come from: other positions and other layers of a source, noise in place of a vector."""

from __future__ import annotations

import numpy as np

from backends.conformance.check import T0, T1, Check, Finding
from backends.conformance.subject import Subject, apart, constant, farthest, make, with_role
from backends.rows import Row
from backends.writes import LAYERLESS, SELF, Site, Value, ValueKind

SECTION = "sources"


def same_positions(subject: Subject) -> Finding:
    """Positions of the source that are those of the write, said or not."""
    ids, donor = subject.ids("target"), subject.ids("donor")
    spots = subject.spots(("resid_post", "logits"))
    pairs = []
    for site in subject.sites():
        for place in ("index:-1",) if site == "logits" else ("all", "last:3", "index:-1"):
            rows = [
                subject.row(
                    ids, make(site, site, subject.every(site), positions=place, read_at=read), donor=donor
                )
                for read in (None, place)
            ]
            usual, said = (subject.read(row, spots) for row in rows)
            pairs += [(said[spot], usual[spot]) for spot in spots]
    return Finding(farthest(pairs))


def other_positions(subject: Subject) -> Finding:
    """What is written is the source's row at the position named, bit for bit: one row at several positions,
    or a row for each; wherever a marked part of the source stands."""
    ids, donor = subject.ids("target"), subject.ids("donor", subject.length - 3)
    count = len(donor)
    ways = {
        ("last:3", "index:2"): [2, 2, 2],
        ("index:0", "index:-1"): [count - 1],
        ("first:3", "last:3"): [count - 3, count - 2, count - 1],
        ("index:-1", "role:part.last"): [4],
        ("first:2", "role:part"): [3, 4],
    }
    pairs, broken = [], []
    for site in subject.sites():
        for (place, read), rows in ways.items():
            if site == "logits" and place != "index:-1":
                continue
            for layer in subject.layers_of(site):
                spot = (site, layer)
                write = make(site, site, (layer,), positions=place, read_at=read)
                row = with_role(subject.row(ids, write, donor=donor), "donor/part", (3, 5))
                there = write.positions.resolve(len(ids), {})
                new = subject.read(row, [spot])[spot][list(there)]
                source = subject.read(subject.row(donor), [spot])[spot]
                pairs.append((new, source[rows]))
                if place == "first:3" and apart(new, source[:3]) == 0:
                    broken.append(f"{site} of layer {layer}: {read} is written as {place}")
    return Finding(farthest(pairs), tuple(broken))


def other_layer(subject: Subject) -> Finding:
    """What is written at one layer is what a donor, or the prompt itself, has at another, bit for bit."""
    subject.need(subject.depth > 1, "the model has a single layer")
    ids, donor = subject.ids("target"), subject.ids("donor")
    pairs, broken = [], []
    for site in subject.sites():
        if site in LAYERLESS:
            continue
        for layer in subject.layers():
            read = (layer + 1) % subject.depth
            spots: list[tuple[Site, int]] = [(site, layer), (site, read)]
            for role, prompt in (("donor", donor), (SELF, ids)):
                value = Value("source", role=role, layer=read)
                write = make(site, site, (layer,), value=value, positions="last:2", read_at="index:3")
                new = subject.read(subject.row(ids, write, donor=donor), spots)[spots[0]][-2:]
                source = subject.read(subject.row(prompt), spots)
                pairs.append((new, source[spots[1]][[3, 3]]))
                if apart(new, source[spots[0]][[3, 3]]) == 0:
                    broken.append(f"{site}: layer {layer} is read instead of layer {read}")
    return Finding(farthest(pairs), tuple(broken))


def both_phases(subject: Subject) -> Finding:
    """A write in both phases = the same in prefill and another in decode, whose window is that part of the
    source. The row alone, as its prompt and its steps are the same forwards."""
    ids, donor = subject.ids("target"), subject.ids("donor")
    continuation = subject.ids("continuation", 4)
    pairs = []
    for hold in ("last", "cycle", "mean"):
        for site in subject.stream():
            whole = make("whole", site, (0,), positions="last:2", during="both", hold=hold, read_at="first:2")
            prompt = make("prompt", site, (0,), positions="last:2", read_at="first:2")
            steps = make("steps", site, (0,), positions="first:2", during="decode", hold=hold)
            rows = [subject.row(ids, whole, donor=donor), subject.row(ids, prompt, steps, donor=donor)]
            found, expected = (subject.forced([row], continuation) for row in rows)
            pairs.append((found, expected))
    return Finding(farthest(pairs))


def in_place_of_a_vector(subject: Subject) -> Finding:
    """Noise in place of a vector has that vector's norm at every layer, and is one vector too: the same at
    all positions, and at all layers where the vector is."""
    ids = subject.ids("target")
    depth, last = subject.depth, subject.depth - 1
    one = subject.vector("long") * np.float32(3)
    each = np.stack([subject.vector(f"long {layer}") for layer in range(depth)])
    kinds: tuple[ValueKind, ...] = ("random", "orthogonal")
    errors, broken = [], []
    for site in subject.stream():
        spots = subject.spots((site,))
        for kind in kinds:
            for table in (one, each):
                value = constant(table, kind)
                row = subject.row(ids, make("noise", site, range(depth), value=value))
                found = subject.read(row, spots)
                drawn = [found[spot].astype(np.float64) for spot in spots]
                vectors = np.broadcast_to(table, (depth, table.shape[-1])).astype(np.float64)
                for layer, rows in enumerate(drawn):
                    errors.append(apart(rows, np.broadcast_to(rows[:1], rows.shape)))
                    sizes = np.linalg.norm(rows[0]), np.linalg.norm(vectors[layer])
                    errors.append(float(abs(sizes[0] - sizes[1]) / sizes[1]))
                    if kind == "orthogonal":
                        errors.append(float(abs(rows[0] @ vectors[layer]) / sizes[0] / sizes[1]))
                same = apart(drawn[last], drawn[0]) == 0
                if depth > 1 and same != (table is one):
                    broken.append(f"{kind} at {site}: {'one' if same else 'another'} vector at each layer")
                if apart(_draw(subject, row, spots[0], 0), _draw(subject, row, spots[0], 1)) == 0:
                    broken.append(f"{kind} at {site}: a second draw is the first")
    return Finding(max(errors), tuple(broken))


def _draw(subject: Subject, row: Row, spot: tuple[Site, int], draw: int) -> np.ndarray:
    """The rows that one of two draws writes."""
    write = row.writes[0]
    value = Value(write.value.kind, draws=2, constant=write.value.constant)
    drawn = subject.drawn(subject.row(row.ids, make("noise", write.site, write.layers, value=value)), draw)
    return subject.read(drawn, [spot])[spot]


CHECKS = (
    Check(
        "same_positions",
        SECTION,
        T0,
        same_positions,
        "positions of the source said as they are change nothing",
    ),
    Check(
        "other_positions",
        SECTION,
        T0,
        other_positions,
        "a source's row at another position arrives exactly, at every site",
        mixture=T1,
    ),
    Check(
        "other_layer",
        SECTION,
        T0,
        other_layer,
        "a source's row at another layer arrives exactly, at every site",
        mixture=T1,
    ),
    Check(
        "source_in_both_phases",
        SECTION,
        T0,
        both_phases,
        "a source read elsewhere is so in both phases",
        mixture=T1,
    ),
    Check(
        "vector_noise",
        SECTION,
        T1,
        in_place_of_a_vector,
        "noise in place of a vector is one vector of its norm",
        ("float32",),
    ),
)
