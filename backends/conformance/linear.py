"""Vectors added to and taken out of the residual stream, and what they cannot touch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from backends.conformance.check import T0, T1, T2, Check, Finding
from backends.conformance.subject import (
    DONOR,
    SMALLEST,
    NotApplicable,
    Subject,
    apart,
    constant,
    farthest,
    make,
    mean_of,
    scalar,
)
from backends.contract import BackendError
from backends.measures import Probe, ScoreRow
from backends.positions import PositionError
from backends.rows import Row
from backends.writes import Site, Write

SECTION = "linear"


def _at(subject: Subject, site: Site, layer: int, *writes: Write) -> np.ndarray:
    """What lies at a site, writes there included: [positions, width]."""
    ids, donor = subject.ids("target"), subject.ids("donor")
    spot = (site, layer)
    found: np.ndarray = subject.read(subject.row(ids, *writes, donor=donor), [spot])[spot]
    return found


def _spots(subject: Subject) -> list[tuple[Site, int]]:
    return [(site, layer) for site in subject.stream() for layer in subject.layers()]


def projected(subject: Subject) -> Finding:
    """Nothing of a direction is left after project_out; error: largest |<x, r>| / (|x| |r|)."""
    direction = subject.vector("direction")
    unit = direction.astype(np.float64) / np.linalg.norm(direction.astype(np.float64))
    left = []
    for site, layer in _spots(subject):
        write = make("out", site, (layer,), "project_out", constant(direction))
        x = _at(subject, site, layer, write).astype(np.float64)
        size = np.maximum(np.linalg.norm(x, axis=-1), SMALLEST)  # rows of unused tokens may be zero
        left.append(float((np.abs(x @ unit) / size).max()))
    return Finding(max(left))


def idempotent(subject: Subject) -> Finding:
    """project_out twice is project_out once."""
    value = constant(subject.vector("direction"))
    pairs = []
    for site, layer in _spots(subject):
        once = make("once", site, (layer,), "project_out", value)
        twice = make("twice", site, (layer,), "project_out", value, order=1)
        pairs.append((_at(subject, site, layer, once, twice), _at(subject, site, layer, once)))
    return Finding(farthest(pairs))


def turned(subject: Subject) -> Finding:
    """project_out does not feel the length or the sign of its direction."""
    direction = subject.vector("direction")
    pairs = []
    for site, layer in _spots(subject):
        one, other = (
            _at(
                subject, site, layer, make("out", site, (layer,), "project_out", constant(factor * direction))
            )
            for factor in (1.0, -3.0)
        )
        pairs.append((other, one))
    return Finding(farthest(pairs))


def restored(subject: Subject) -> Finding:
    """Adding v and then -v."""
    value = constant(subject.vector("added"))
    pairs = []
    for site, layer in _spots(subject):
        there = make("there", site, (layer,), "add", value, alpha=0.7)
        back = make("back", site, (layer,), "add", value, alpha=-0.7, order=1)
        pairs.append((_at(subject, site, layer, there, back), _at(subject, site, layer)))
    return Finding(farthest(pairs))


def seam(subject: Subject) -> Finding:
    """Adding at resid_post of layer l is adding at resid_pre of layer l + 1."""
    subject.need(subject.depth > 1, "the model has a single layer")
    ids = subject.ids("target")
    value = constant(subject.vector("added"))
    pairs = []
    for layer in subject.layers():
        if layer + 1 < subject.depth:
            behind = make("add", "resid_post", (layer,), "add", value)
            ahead = make("add", "resid_pre", (layer + 1,), "add", value)
            one, other = (subject.final([subject.row(ids, write)])[0] for write in (behind, ahead))
            pairs.append((one, other))
    return Finding(farthest(pairs))


def formulas(subject: Subject) -> Finding:
    """add in each unit, scale, zero and partial project_out against the formulas in float64."""
    direction = subject.vector("direction")
    v = direction.astype(np.float64)
    value = constant(direction)
    length = np.linalg.norm(v)
    pairs = []
    for site, layer in _spots(subject):
        x = _at(subject, site, layer).astype(np.float64)
        size = np.linalg.norm(x, axis=-1, keepdims=True)
        expected = {
            make("raw", site, (layer,), "add", value, alpha=0.4, unit="raw"): x + 0.4 * v / length,
            make("resid", site, (layer,), "add", value, alpha=0.4, unit="resid_norm"): x
            + 0.4 * size * v / length,
            make("own", site, (layer,), "add", value, alpha=0.4): x + 0.4 * v,
            make("scale", site, (layer,), "scale", alpha=-1.5): -1.5 * x,
            make("zero", site, (layer,), "zero"): 0 * x,
            make("half", site, (layer,), "project_out", value, alpha=0.5): x
            - 0.5 * (x @ v)[:, None] * v / length**2,
            make("set", site, (layer,), "replace", value): np.broadcast_to(v, x.shape),
        }
        pairs += [(_at(subject, site, layer, write), wanted) for write, wanted in expected.items()]
    return Finding(max(_formula_error(found, wanted) for found, wanted in pairs))


def _formula_error(found: np.ndarray, expected: np.ndarray) -> float:
    """`apart`, where all zeros are expected too."""
    return float(np.abs(found).max()) if not expected.any() else apart(found, expected)


def means(subject: Subject) -> Finding:
    """The mean over prompts is the mean of what was captured, in float64, however many prompts it is over."""
    prompts = [subject.ids(f"set {n}", subject.length - n % 5) for n in range(7)]
    pairs = []
    sites: tuple[Site, ...] = ("resid_pre", "v_proj")
    for site in sites:
        for layer in subject.layers():
            spot = (site, layer)
            write = make("mean", site, (layer,), "replace", mean_of(prompts), "last:2")
            written = _at(subject, site, layer, write)[-1]
            stacked = [
                found[spot][-2:].astype(np.float64).mean(axis=0)
                for found in subject.capture([subject.row(ids) for ids in prompts], [spot])
            ]
            pairs.append((written, np.mean(stacked, axis=0)))
    return Finding(farthest(pairs))


def differences(subject: Subject) -> Finding:
    """Difference of means: of opposite sign the other way round, and nothing between equal sets."""
    one = mean_of([subject.ids(f"set {n}") for n in range(4)])
    other = mean_of([subject.ids(f"other {n}") for n in range(3)])
    pairs = []
    for layer in subject.layers():
        site: Site = "resid_pre"
        x = _at(subject, site, layer).astype(np.float64)

        def step(plus: object, minus: object, layer: int = layer) -> np.ndarray:
            values = {"plus": plus, "minus": minus}
            writes = [
                make(name, "resid_pre", (layer,), "add", values[name], alpha=alpha, order=rank)  # type: ignore[arg-type]
                for rank, (name, alpha) in enumerate((("plus", 1.0), ("minus", -1.0)))
            ]
            return _at(subject, "resid_pre", layer, *writes).astype(np.float64)

        pairs.append((step(one, other) + step(other, one), 2 * x))
        pairs.append((step(one, one), x))
    return Finding(farthest(pairs))


def refused(subject: Subject) -> Finding:
    """A zero or non-finite direction is an error, never a silent no-op. error: writes that went through."""
    zero = np.zeros(subject.info.width, dtype=np.float32)
    bad = zero.copy()
    bad[0] = np.nan
    ids = subject.ids("target")
    passed = []
    for name, vector, op, unit in (
        ("project_out of a zero direction", zero, "project_out", "direction_norm"),
        ("project_out of a direction that is not finite", bad, "project_out", "direction_norm"),
        ("add of a zero direction in raw units", zero, "add", "raw"),
        ("add of a zero direction in resid_norm units", zero, "add", "resid_norm"),
        ("add of a direction that is not finite", bad, "add", "direction_norm"),
    ):
        write = make("bad", "resid_pre", (0,), op, constant(vector), unit=unit)  # type: ignore[arg-type]
        try:
            found = subject.attempt([subject.row(ids, write)])
        except (BackendError, PositionError, ValueError):
            continue
        if found[0].invalid is None:
            passed.append(f"{name} went through")
    return Finding(float(len(passed)), tuple(passed))


def orthogonalised(subject: Subject) -> Finding:
    """Orthogonalised weights = project_out at every residual site."""
    direction = subject.vector("direction")
    ids = subject.ids("target")
    logits = _with_weights(subject, direction, ids)
    hooked = subject.row(ids, *_taken_out(subject, direction))
    return Finding(apart(logits, subject.logits([hooked])[0]))


def _taken_out(subject: Subject, direction: np.ndarray) -> list[Write]:
    """project_out of a direction at every residual site."""
    return [
        make(site, site, subject.every(site), "project_out", constant(direction))
        for site in ("embed", *subject.stream())
        if site in subject.info.sites
    ]


def weights_back(subject: Subject) -> Finding:
    """Afterwards the weights are what they were."""
    ids = subject.ids("target")
    before = subject.logits([subject.row(ids)])[0]
    inside = _with_weights(subject, subject.vector("direction"), ids)
    broken = () if apart(inside, before) > 0 else ("orthogonalising changed no logit",)
    return Finding(apart(subject.logits([subject.row(ids)])[0], before), broken)


def row_weights(subject: Subject) -> Finding:
    """Rows with weights of their own are the model with project_out hooks, and rows beside them the model
    without; kl is taken against the latter, and perplexity is its own. Where the weights cannot be changed
    such a row is invalid, with the reason."""
    direction = subject.vector("direction")
    ids, told = subject.ids("target"), subject.ids("told", 4)
    changed = constant(direction).constant
    plain, without = subject.row(ids), replace(subject.row(ids), weights=changed)
    try:
        found = subject.logits([plain, without])
    except BackendError as error:
        reason = subject.attempt([without])[0].invalid
        if reason != str(error):
            return Finding(0.0, (f"a row with weights that cannot be changed ended with '{reason}'",))
        raise NotApplicable(str(error)) from error
    hooked = subject.row(ids, *_taken_out(subject, direction))
    pairs = [*zip(found, subject.logits([plain, hooked]), strict=True)]
    probes = [Probe("kl", name="kl"), Probe("perplexity", name="perplexity")]

    def measured(*rows: Row) -> list[np.ndarray]:
        scored = subject.score([ScoreRow(row, told) for row in rows], probes)
        return [np.array([scalar(value) for value in one.values.values()]) for one in scored]

    beside, own = measured(plain, without)
    (expected,) = measured(hooked)
    with subject.backend.orthogonalised(direction):  # which these rows have already
        (inside,) = measured(without)
    pairs += [(own, expected), (inside, expected)]
    broken = () if beside[0] == 0 else ("KL is not 0 for a row beside them",)
    return Finding(farthest(pairs), broken)


def _with_weights(subject: Subject, direction: np.ndarray, ids: tuple[int, ...]) -> np.ndarray:
    """Logits with orthogonalised weights. Raises NotApplicable with the backend's own reason."""
    try:
        with subject.backend.orthogonalised(direction):
            return subject.logits([subject.row(ids)])[0]
    except BackendError as error:
        raise NotApplicable(str(error)) from error


def equal_to_donor(subject: Subject) -> Finding:
    """Adding a donor's state and taking the own one away is replacing it."""
    pairs = []
    for site, layer in _spots(subject):
        x = _at(subject, site, layer).astype(np.float64)
        donor = _at(subject, site, layer, make("set", site, (layer,), "replace", DONOR)).astype(np.float64)
        added = _at(subject, site, layer, make("add", site, (layer,), "add", DONOR))
        pairs.append((added, x + donor))
    return Finding(farthest(pairs))


WEIGHTS = "weight form"
CHECKS = (
    Check("projected", SECTION, T1, projected, "project_out leaves nothing of its direction", ("float32",)),
    Check("project_twice", SECTION, T1, idempotent, "project_out twice is project_out once", ("float32",)),
    Check("project_turned", SECTION, T1, turned, "project_out of r is project_out of -3 r", ("float32",)),
    Check("add_and_back", SECTION, T1, restored, "adding v and then -v restores the state", ("float32",)),
    Check("seam", SECTION, T0, seam, "adding at resid_post l is adding at resid_pre l + 1"),
    Check(
        "formulas",
        SECTION,
        T1,
        formulas,
        "add, scale, zero, project_out and units follow their formulas",
        ("float32",),
    ),
    Check("add_donor", SECTION, T1, equal_to_donor, "a donor's state added is the sum of both", ("float32",)),
    Check("means", SECTION, T1, means, "a streamed mean over prompts is the mean of the stack", ("float32",)),
    Check(
        "mean_difference",
        SECTION,
        T1,
        differences,
        "differences of means are antisymmetric, zero on equal sets",
        ("float32",),
    ),
    Check("bad_direction", SECTION, T0, refused, "a zero or non-finite direction is an error"),
    Check(
        "orthogonalised",
        WEIGHTS,
        T2,
        orthogonalised,
        "orthogonalised weights are project_out hooks",
        ("float32",),
    ),
    Check("weights_restored", WEIGHTS, T0, weights_back, "and are restored bit for bit"),
    Check(
        "row_weights",
        WEIGHTS,
        T2,
        row_weights,
        "rows with weights of their own have them, and rows beside them have not",
        ("float32",),
    ),
)
