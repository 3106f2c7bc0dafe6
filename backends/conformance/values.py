"""What random, orthogonal and shuffled values are."""

from __future__ import annotations

import numpy as np

from backends.conformance.check import T0, T1, Check, Finding
from backends.conformance.subject import RANDOM, Subject, apart, farthest, make
from backends.noise import step_keys, uniform
from backends.rowplan import noise_stream
from backends.writes import SELF, Site, Value, ValueKind

SECTION = "values"


def random_values(subject: Subject) -> Finding:
    """Random rows are the reference noise, moved to mean and standard deviation of each head that they
    replace, or of the whole row where the site has no heads."""
    ids = subject.ids("target")
    info = subject.info
    pairs = []
    sites: tuple[Site, ...] = ("v_proj", "head_z", "resid_pre")
    for site in sites:
        group = info.width if site == "resid_pre" else info.head_width
        for layer in subject.layers():
            spot = (site, layer)
            write = make("noise", site, (layer,), value=RANDOM)
            row = subject.row(ids, write)
            old = subject.read(subject.row(ids), [spot])[spot].astype(np.float64)
            new = subject.read(row, [spot])[spot]
            stream = np.array([noise_stream(row, write, layer)], dtype=np.uint64)
            z = np.concatenate([_normal(stream, position, old.shape[1]) for position in range(len(ids))])
            heads = old.reshape(len(ids), -1, group)
            moved = heads.mean(axis=-1, keepdims=True) + heads.std(axis=-1, keepdims=True) * z.reshape(
                heads.shape
            )
            pairs.append((new, moved.reshape(old.shape)))
    return Finding(farthest(pairs))


def _normal(stream: np.ndarray, position: int, width: int) -> np.ndarray:
    """Box and Muller 1958 on the reference uniforms: [1, width]."""
    u = uniform(step_keys(stream, position), 2 * width).astype(np.float64)
    drawn: np.ndarray = np.sqrt(-2 * np.log(u[:, :width])) * np.cos(2 * np.pi * u[:, width:])
    return drawn


def orthogonal(subject: Subject) -> Finding:
    """Orthogonal rows are orthogonal to the source's and as long."""
    ids, donor = subject.ids("target"), subject.ids("donor")
    errors = []
    for site in subject.stream():
        for layer in subject.layers():
            spot = (site, layer)
            value = Value("orthogonal", role="donor")
            row = subject.row(ids, make("side", site, (layer,), value=value), donor=donor)
            new = subject.read(row, [spot])[spot].astype(np.float64)
            source = subject.read(subject.row(donor), [spot])[spot].astype(np.float64)
            sizes = np.linalg.norm(new, axis=-1), np.linalg.norm(source, axis=-1)
            errors.append(apart(sizes[0], sizes[1]))
            errors.append(float((np.abs((new * source).sum(axis=-1)) / sizes[0] / sizes[1]).max()))
    return Finding(max(errors))


def shuffled(subject: Subject) -> Finding:
    """A shuffled window has the window's rows, a shuffled sequence rows of the sequence; both in an order of
    their own, the same in every layer. error: rows that are not of the source."""
    ids, donor = subject.ids("target"), subject.ids("donor")
    strange, broken = 0, []
    orders: dict[str, list[list[int]]] = {}
    kinds: tuple[ValueKind, ...] = ("shuffled_window", "shuffled_sequence")
    for kind in kinds:
        for layer in subject.layers():  # behind a block, where equal tokens have unequal rows
            spot: tuple[Site, int] = ("resid_post", layer)
            write = make("mixed", "resid_post", (layer,), value=Value(kind, role="donor"), positions="last:8")
            new = subject.read(subject.row(ids, write, donor=donor), [spot])[spot][-8:]
            source = subject.read(subject.row(donor), [spot])[spot]
            nearest = np.abs(new[:, None] - source[None]).max(axis=-1)
            order = nearest.argmin(axis=1)
            strange += int((nearest.min(axis=1) > 0).sum()) + len(order) - len(set(order.tolist()))
            orders.setdefault(kind, []).append(order.tolist())
            if kind == "shuffled_window" and set(order.tolist()) != set(range(len(donor) - 8, len(donor))):
                broken.append(f"layer {layer}: rows from outside the window")
        if orders[kind][0] == sorted(orders[kind][0]):
            broken.append(f"{kind}: the order is as it was")
        if any(order != orders[kind][0] for order in orders[kind]):
            broken.append(f"{kind}: another order in other layers")
    return Finding(float(strange), tuple(broken))


def drawn_anew(subject: Subject) -> Finding:
    """A random value is the same in every repeat of a trial, and another for another draw."""
    ids = subject.ids("target")
    value = Value("random", draws=2)
    spot: tuple[Site, int] = ("resid_pre", 0)
    row = subject.row(ids, make("noise", "resid_pre", (0,), value=value))
    found = [
        subject.read(subject.drawn(row, draw), [spot])[spot]
        for draw in (0, 1, 2)  # the third draw of two is the first again
    ]
    broken = () if apart(found[1], found[0]) > 0 else ("another draw gives the same values",)
    return Finding(apart(found[2], found[0]), broken)


def own_positions(subject: Subject) -> Finding:
    """A window of the own prompt is that prompt's rows at the positions named."""
    ids = subject.ids("target")
    layer = subject.depth - 1
    spot: tuple[Site, int] = ("resid_pre", layer)
    clean = subject.read(subject.row(ids), [spot])[spot]
    value = Value("source", role=SELF, layer=0)
    write = make("back", "resid_pre", (layer,), value=value, positions="last:3")
    below = subject.read(subject.row(ids), [("resid_pre", 0)])[("resid_pre", 0)]
    found = subject.read(subject.row(ids, write), [spot])[spot]
    return Finding(farthest([(found[-3:], below[-3:]), (found[:-3], clean[:-3])]))


CHECKS = (
    Check(
        "random",
        SECTION,
        T1,
        random_values,
        "random rows are the reference noise, matched to what they replace",
        ("float32",),
    ),
    Check("random_draws", SECTION, T0, drawn_anew, "draws differ, and are the same in every repeat"),
    Check(
        "orthogonal",
        SECTION,
        T1,
        orthogonal,
        "orthogonal rows are orthogonal to their source, and as long",
        ("float32",),
    ),
    Check(
        "shuffled",
        SECTION,
        T0,
        shuffled,
        "shuffled rows are the source's in another order, one for all layers",
    ),
    Check(
        "back_patch",
        SECTION,
        T0,
        own_positions,
        "back-patching writes the row of the layer it names",
        mixture=T1,
    ),
)
