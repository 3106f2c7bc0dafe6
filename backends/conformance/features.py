"""Features of a sparse autoencoder made on the spot: written with its reconstruction error kept, and lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from backends.conformance.check import T0, T1, Check, Finding
from backends.conformance.subject import OWN, Subject, apart, farthest, make
from backends.noise import stream_of
from backends.sae import Conventions, Description, Sae, decode, encode, save, set_features
from backends.writes import Features, Op, Site, Value, Write

SECTION = "sae"
MOST_FEATURES = 96
SCALE = 1.7  # so that a scale that is not applied shows


@dataclass(frozen=True)
class Hooked:
    """A tiny SAE in a folder, and the clean activations [positions, width] at its site."""

    folder: Path
    described: Description
    sae: Sae
    x: np.ndarray
    ids: tuple[int, ...]

    @property
    def spot(self) -> tuple[Site, int]:
        return self.described.site, self.described.layer

    @property
    def active(self) -> np.ndarray:
        """Activations [positions, features] of the clean prompt, by the reference formulas."""
        return encode(self.sae, self.x)

    def most_active(self, count: int) -> tuple[int, ...]:
        """Features that are active at most positions."""
        order = np.argsort(-(self.active > 0).sum(axis=0), kind="stable")
        return tuple(int(index) for index in order[:count])

    def write(
        self,
        op: Op,
        indices: tuple[int, ...],
        value: Value = OWN,
        positions: str = "all",
        *,
        alpha: float = 1.0,
        round_trip: bool = False,
    ) -> Write:
        """A write to these features, in prefill."""
        chosen = Features(str(self.folder), self.described.fingerprint, self.described.site, indices)
        return make(
            "feature",
            "sae",
            (self.described.layer,),
            op,
            value,
            positions,
            alpha=alpha,
            features=chosen,
            round_trip=round_trip,
        )


@contextmanager
def _hooked(subject: Subject, tag: str) -> Iterator[list[Hooked]]:
    """SAEs of three conventions at the residual stream behind a middle layer, drawn by a tag."""
    layer = subject.depth // 2
    width, count = subject.info.width, min(2 * subject.info.width, MOST_FEATURES)
    ids = subject.ids("target")
    x = subject.read(subject.row(ids), [("resid_post", layer)])[("resid_post", layer)]
    size = float(np.linalg.norm(x, axis=-1).mean())
    with TemporaryDirectory(prefix="patchbay_sae_") as folder:
        made = []
        for activation, k in (("relu", None), ("jumprelu", None), ("topk", max(2, count // 4))):
            rng = np.random.default_rng(stream_of("sae", tag, subject.suite, activation))
            decoder = rng.standard_normal((count, width))
            decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
            jumps = 0.1 * size * rng.random(count)
            sae = Sae(
                Conventions(
                    site="resid_post",
                    layer=layer,
                    model=None,
                    activation=activation,  # type: ignore[arg-type]
                    k=k,
                    apply_b_dec_to_input=activation == "jumprelu",
                    input_scale=SCALE,
                    decoder_norms="folded",
                    dtype="float32",
                ),
                encoder=np.ascontiguousarray(decoder.T, dtype=np.float32),
                b_enc=(0.05 * size * rng.standard_normal(count)).astype(np.float32),
                decoder=decoder.astype(np.float32),
                b_dec=(0.05 * size * rng.standard_normal(width)).astype(np.float32),
                thresholds=jumps.astype(np.float32) if activation == "jumprelu" else None,
            )
            place = Path(folder) / activation
            made.append(Hooked(place, save(place, sae), sae, x, ids))
        yield made


def _at(subject: Subject, hooked: Hooked, write: Write) -> np.ndarray:
    found: np.ndarray = subject.read(subject.row(hooked.ids, write), [hooked.spot])[hooked.spot]
    return found


def own_value(subject: Subject) -> Finding:
    """Features set to what they are: all the prompt's own by a source, one of them by its number."""
    pairs = []
    with _hooked(subject, "own_value") as every:
        for hooked in every:
            indices = hooked.most_active(5)
            pairs.append((_at(subject, hooked, hooked.write("set_feature", indices)), hooked.x))
            number = Value("number", number=float(hooked.active[-1, indices[0]]))
            one = hooked.write("set_feature", indices[:1], number, "index:-1")
            pairs.append((_at(subject, hooked, one), hooked.x))
            same = hooked.write("scale", indices, alpha=1.0)
            pairs.append((_at(subject, hooked, same), hooked.x))
    return Finding(farthest(pairs))


def pass_through(subject: Subject) -> Finding:
    """A round trip with no feature changed leaves the reconstruction: it differs from the clean run by the
    reconstruction error, exactly."""
    pairs, broken = [], []
    with _hooked(subject, "pass_through") as every:
        for hooked in every:
            through = hooked.write("scale", hooked.most_active(1), alpha=1.0, round_trip=True)
            rebuilt = decode(hooked.sae, hooked.active)
            found = _at(subject, hooked, through)
            pairs.append((found, rebuilt))
            lost = found.astype(np.float64) - hooked.x
            pairs.append((lost, rebuilt - hooked.x))
            if apart(found, hooked.x) == 0:
                broken.append(f"{hooked.sae.conventions.activation}: nothing is lost")
    return Finding(farthest(pairs), tuple(broken))


def formulas(subject: Subject) -> Finding:
    """Set, zeroed and scaled features, alone and in a round trip, against the reference formulas."""
    pairs = []
    with _hooked(subject, "formulas") as every:
        for hooked in every:
            indices = hooked.most_active(3)
            active = hooked.active[:, list(indices)]
            number = 2.5 * float(hooked.active.max())
            wanted: tuple[tuple[Op, Value, float, np.ndarray], ...] = (
                ("set_feature", Value("number", number=number), 1.0, np.full_like(active, number)),
                ("zero", OWN, 1.0, np.zeros_like(active)),
                ("scale", OWN, 0.5, 0.5 * active),
            )
            for op, value, alpha, values in wanted:
                for round_trip in (False, True):
                    write = hooked.write(op, indices, value, alpha=alpha, round_trip=round_trip)
                    expected = set_features(hooked.sae, hooked.x, indices, values, round_trip=round_trip)
                    pairs.append((_at(subject, hooked, write), expected))
    return Finding(farthest(pairs))


def elsewhere(subject: Subject) -> Finding:
    """A feature written at the last position leaves the others as they are, and reaches the logits there."""
    error, broken = 0.0, []
    with _hooked(subject, "elsewhere") as every:
        for hooked in every:
            number = Value("number", number=2.5 * float(hooked.active.max()))
            write = hooked.write("set_feature", hooked.most_active(1), number, "index:-1")
            rows = subject.row(hooked.ids, write), subject.row(hooked.ids)
            written, clean = (subject.logits([row])[0] for row in rows)
            error = max(error, apart(written[:-1], clean[:-1]))
            if not np.abs(written[-1] - clean[-1]).max() > 0:
                broken.append(f"{hooked.sae.conventions.activation}: a set feature changes no logit")
    return Finding(error, tuple(broken))


CHECKS = (
    Check(
        "feature_own_value",
        SECTION,
        T1,
        own_value,
        "a feature set to what it is changes nothing",
        ("float32",),
    ),
    Check(
        "feature_pass_through",
        SECTION,
        T1,
        pass_through,
        "a round trip loses the reconstruction error, no more",
        ("float32",),
    ),
    Check(
        "feature_formulas",
        SECTION,
        T1,
        formulas,
        "set, zeroed and scaled features follow the formulas",
        ("float32",),
    ),
    Check(
        "feature_elsewhere",
        SECTION,
        T0,
        elsewhere,
        "a feature written at one position changes no earlier one",
        mixture=T1,
    ),
)
