"""What a sparse autoencoder is: its weights, and the conventions without which they mean nothing."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from backends.writes import Site

Activation = Literal["relu", "jumprelu", "topk"]
DecoderNorms = Literal["folded", "free", "counted"]
Dtype = Literal["float32", "float16", "bfloat16"]
Units = Literal["raw", "scaled"]
ACTIVATIONS: tuple[str, ...] = Activation.__args__  # type: ignore[attr-defined]
DECODER_NORMS: tuple[str, ...] = DecoderNorms.__args__  # type: ignore[attr-defined]
DTYPES: tuple[str, ...] = Dtype.__args__  # type: ignore[attr-defined]
SITES: tuple[Site, ...] = (
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "attn_out_normed",
    "mlp_out",
    "mlp_out_normed",
)  # of the residual stream's width
UNIT_NORM = 1e-2  # how far bfloat16 may take a folded decoder row from norm 1


class SaeError(ValueError):
    """Files that hold no SAE that can be used as it was trained, or features that it does not have."""


def refuse(problems: Iterator[str] | Sequence[str], where: str = "") -> None:
    """Raises SaeError with every problem, if there is any."""
    found = list(problems)
    if found:
        raise SaeError(where + "; ".join(found))


def near(word: object, known: Sequence[str]) -> str:
    """` (did you mean 'X'?)` for a word that resembles a known one, else nothing."""
    found = difflib.get_close_matches(str(word), known, n=1)
    return f" (did you mean '{found[0]}'?)" if found else ""


@dataclass(frozen=True)
class Conventions:
    """How an SAE is to be computed, and what it was made for. None of it has a default: a threshold that is
    dropped or a scale that is not applied gives numbers that look right.

    site, layer: where it is hooked. model: fingerprint of the weights that it was trained on, None where that
    is not known. activation: `relu`, `jumprelu` (with a threshold for each feature) or `topk` (with `k`).
    apply_b_dec_to_input: whether b_dec is taken from the input first. input_scale: s, which the input is
    multiplied by and the output divided by. decoder_norms: `folded` (rows of norm 1), `free` (rows of any
    norm, which the activation does not look at) or `counted` (what is compared with the threshold or with the
    other features is the activation times the norm of the decoder row). dtype: that of the weights as stored;
    all is computed in float32. Raises SaeError with all that is wrong.
    """

    site: Site
    layer: int
    model: str | None
    activation: Activation
    k: int | None
    apply_b_dec_to_input: bool
    input_scale: float
    decoder_norms: DecoderNorms
    dtype: Dtype

    def __post_init__(self) -> None:
        refuse(self._problems())

    def _problems(self) -> Iterator[str]:
        words = {
            "site": SITES,
            "activation": ACTIVATIONS,
            "decoder_norms": DECODER_NORMS,
            "dtype": DTYPES,
        }
        for key, known in words.items():
            got = getattr(self, key)
            if got not in known:
                yield f"{key}: expected one of {', '.join(known)}, got {got!r}{near(got, known)}"
        if not _whole(self.layer) or self.layer < 0:
            yield f"layer: expected a whole number from 0, got {self.layer!r}"
        model: object = self.model
        if model is not None and (not isinstance(model, str) or not model):
            yield f"model: expected the fingerprint of a model or null, got {model!r}"
        if self.activation == "topk" and not (_whole(self.k) and self.k is not None and self.k > 0):
            yield f"k: expected how many features topk leaves active, got {self.k!r}"
        if self.activation != "topk" and self.k is not None:
            yield f"k: expected null with activation {self.activation}, got {self.k!r}"
        flag: object = self.apply_b_dec_to_input
        if not isinstance(flag, bool):
            yield f"apply_b_dec_to_input: expected true or false, got {flag!r}"
        scale: object = self.input_scale
        number = isinstance(scale, int | float) and not isinstance(scale, bool)
        if not (number and math.isfinite(self.input_scale) and self.input_scale > 0):
            yield f"input_scale: expected a positive number, got {scale!r}"

    @property
    def units(self) -> Units:
        """Units of feature activations: `raw`, those of the model's own activations, or `scaled`, those of
        activations times input_scale. Values do not carry over from one to the other."""
        return "raw" if self.input_scale == 1 else "scaled"


def _whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


@dataclass(frozen=True)
class Description:
    """What is known of an SAE without its weights. fingerprint: 16 hex digits over its files, conventions
    included. features, width: how many it has, and how wide the activations are that it reads."""

    fingerprint: str
    features: int
    width: int
    conventions: Conventions

    @property
    def site(self) -> Site:
        return self.conventions.site

    @property
    def layer(self) -> int:
        return self.conventions.layer


@dataclass(frozen=True)
class Chosen:
    """Some features of an SAE, in the order asked for: all that is needed to set them without the others.

    encoder [width, k], b_enc [k], decoder [k, width], b_dec [width], float32. thresholds [k]: the activation
    above which a feature is active, 0 for relu; None for topk, where the other features decide.
    """

    conventions: Conventions
    indices: tuple[int, ...]
    encoder: np.ndarray = field(compare=False, repr=False)
    b_enc: np.ndarray = field(compare=False, repr=False)
    decoder: np.ndarray = field(compare=False, repr=False)
    b_dec: np.ndarray = field(compare=False, repr=False)
    thresholds: np.ndarray | None = field(compare=False, repr=False)


@dataclass(frozen=True)
class Sae:
    """A sparse autoencoder: encoder [width, features], b_enc [features], decoder [features, width], b_dec
    [width], float32. thresholds [features] as its files have them, of jumprelu alone (with decoder_norms
    `counted` they are compared with activation times norm). Raises SaeError with all that is wrong."""

    conventions: Conventions
    encoder: np.ndarray = field(compare=False, repr=False)
    b_enc: np.ndarray = field(compare=False, repr=False)
    decoder: np.ndarray = field(compare=False, repr=False)
    b_dec: np.ndarray = field(compare=False, repr=False)
    thresholds: np.ndarray | None = field(compare=False, repr=False)

    def __post_init__(self) -> None:
        refuse(shape_problems({name: array.shape for name, array in self.arrays().items()}, self.conventions))
        refuse(self._problems())

    @property
    def features(self) -> int:
        return int(self.decoder.shape[0])

    @property
    def width(self) -> int:
        return int(self.decoder.shape[1])

    def arrays(self) -> dict[str, np.ndarray]:
        """The weights by name, as they are stored: one row for each feature, the encoder [features, width]
        too."""
        found = {
            "encoder": self.encoder.T,
            "b_enc": self.b_enc,
            "decoder": self.decoder,
            "b_dec": self.b_dec,
        }
        return found if self.thresholds is None else {**found, "thresholds": self.thresholds}

    def choose(self, indices: Sequence[int]) -> Chosen:
        """Some of its features. Raises SaeError for indices that it does not have, or that repeat."""
        check_indices(indices, self.features)
        taken = list(indices)
        return Chosen(
            self.conventions,
            tuple(indices),
            self.encoder[:, taken],
            self.b_enc[taken],
            self.decoder[taken],
            self.b_dec,
            active_above(
                self.conventions,
                None if self.thresholds is None else self.thresholds[taken],
                self.decoder[taken],
            ),
        )

    def _problems(self) -> Iterator[str]:
        for name, array in self.arrays().items():
            if array.dtype != np.float32:
                yield f"{name}: expected float32, got {array.dtype}"
            elif not np.isfinite(array).all():
                yield f"{name}: has values that are not finite"
        if self.thresholds is not None and (self.thresholds < 0).any():
            yield "thresholds: expected 0 or more, got negative ones"
        if self.conventions.decoder_norms == "folded":
            norms = np.linalg.norm(self.decoder, axis=1)
            far = np.flatnonzero(np.abs(norms - 1) > UNIT_NORM)
            if len(far):
                yield (
                    f"decoder: expected rows of norm 1 (decoder_norms: folded), got norm "
                    f"{norms[far[0]]:.4g} for feature {far[0]} and {len(far) - 1} others"
                )


def shape_problems(shapes: dict[str, tuple[int, ...]], conventions: Conventions) -> Iterator[str]:
    """What is wrong with the names and shapes of an SAE's weights as stored."""
    needed = ["encoder", "b_enc", "decoder", "b_dec"]
    if conventions.activation == "jumprelu":
        needed.append("thresholds")
    for name in needed:
        if name not in shapes:
            yield f"{name}: missing, which activation {conventions.activation} needs"
    for name in shapes:
        if name not in needed:
            yield (
                f"{name}: activation {conventions.activation} has {', '.join(needed)} alone"
                f"{near(name, [key for key in needed if key not in shapes])}"
            )
    if "decoder" not in shapes:
        return
    if len(shapes["decoder"]) != 2 or 0 in shapes["decoder"]:
        yield f"decoder: expected [features, width], got {list(shapes['decoder'])}"
        return
    features, width = shapes["decoder"]
    expected = {
        "encoder": (features, width),
        "b_enc": (features,),
        "b_dec": (width,),
        "thresholds": (features,),
    }
    for name, shape in expected.items():
        if name in shapes and shapes[name] != shape:
            yield f"{name}: expected {list(shape)} (as stored, by the decoder), got {list(shapes[name])}"
    if conventions.k is not None and conventions.k > features:
        yield f"k: expected at most the {features} features that there are, got {conventions.k}"


def check_indices(indices: Sequence[int], features: int) -> None:
    """Raises SaeError for no features, features that the SAE does not have, or one that is named twice."""
    outside = [str(index) for index in indices if not 0 <= index < features]
    twice = [str(index) for index, count in Counter(indices).items() if count > 1]
    refuse(
        [
            *(["expected at least one feature, got none"] if not indices else []),
            *([f"expected features from 0 to {features - 1}, got {', '.join(outside)}"] if outside else []),
            *([f"expected features that differ, got {', '.join(twice)} more than once"] if twice else []),
        ]
    )


def active_above(
    conventions: Conventions, thresholds: np.ndarray | None, decoder: np.ndarray
) -> np.ndarray | None:
    """The activation [k] above which each feature is active; None for topk.

    thresholds: [k] as stored, of jumprelu; decoder: [k, width]. With decoder_norms `counted` the stored
    threshold is divided by the norm of the row: infinite for a row of zeros, which is never active.
    """
    if conventions.activation == "topk":
        return None
    if thresholds is None:
        return np.zeros(len(decoder), dtype=np.float32)
    if conventions.decoder_norms != "counted":
        return thresholds
    norms = np.linalg.norm(decoder, axis=1).astype(np.float32)
    never = np.full_like(thresholds, np.inf)
    np.divide(thresholds, norms, out=never, where=norms > 0)
    return never
