"""The formulas of a sparse autoencoder, in float64 and as plainly as possible: what backends are checked
against.

With s the input scale: pre = (s x - b_dec, where the SAE asks for it) W_E + b_E; a = pre where the feature is
active, else 0; x^ = (a W_D + b_D) / s. ReLU: active above 0. JumpReLU (Rajamanoharan et al. 2024, "Jumping
ahead", section 3): above the feature's threshold. TopK (Gao et al. 2024, "Scaling and evaluating sparse
autoencoders", section 2.3): the k largest, if above 0; features that tie with the k-th are all active.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backends.sae.types import Chosen, Sae, SaeError, active_above, check_indices


def encode(sae: Sae, x: np.ndarray) -> np.ndarray:
    """Feature activations [n, features] of activations x [n, width], in float64 and the SAE's own units."""
    made = sae.conventions
    inputs = made.input_scale * x.astype(np.float64)
    if made.apply_b_dec_to_input:
        inputs = inputs - sae.b_dec
    pre = inputs @ sae.encoder + sae.b_enc
    if made.activation == "topk":
        assert made.k is not None
        ranked = pre * np.linalg.norm(sae.decoder, axis=1) if made.decoder_norms == "counted" else pre
        least = np.partition(ranked, -made.k, axis=-1)[:, -made.k, None]
        active = (ranked >= least) & (pre > 0)
    else:
        active = pre > active_above(made, sae.thresholds, sae.decoder)
    return np.where(active, pre, 0.0)


def decode(sae: Sae, activations: np.ndarray) -> np.ndarray:
    """Reconstruction [n, width] of feature activations [n, features], in float64 and the model's units."""
    rebuilt: np.ndarray = activations.astype(np.float64) @ sae.decoder + sae.b_dec
    return rebuilt / sae.conventions.input_scale


def set_features(
    sae: Sae, x: np.ndarray, indices: Sequence[int], values: np.ndarray, *, round_trip: bool = False
) -> np.ndarray:
    """Activations [n, width] after features are set, in float64. x: [n, width]; values: [n or 1, k], in the
    SAE's units.

    x + (v - a) W_D / s, which keeps what the SAE does not reconstruct, so that v = a changes nothing; with
    `round_trip` the SAE's reconstruction with those features set, which loses it in every row. Raises
    SaeError for features that it does not have.
    """
    check_indices(indices, sae.features)
    taken = list(indices)
    found = encode(sae, x)
    if round_trip:
        found[:, taken] = values
        return decode(sae, found)
    moved: np.ndarray = (values - found[:, taken]) @ sae.decoder[taken]
    return x + moved / sae.conventions.input_scale


@dataclass(frozen=True)
class Faults:
    """What is wrong with values that features are to be set to, a sentence each. errors: values that no
    feature can have; flags: values that the feature itself never takes on."""

    errors: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


def faults(chosen: Chosen, values: np.ndarray) -> Faults:
    """Errors (negative, not finite) and flags (above 0, but not above the threshold) of values [k], in the
    SAE's units and in the order of the chosen features.

    Means that include zeros fall between 0 and the threshold. Of topk, whose threshold moves with the input,
    nothing is flagged. Raises SaeError where there are not as many values as features.
    """
    if values.shape != (len(chosen.indices),):
        raise SaeError(f"expected values of shape [{len(chosen.indices)}], got {list(values.shape)}")
    errors, flags = [], []
    for place, (index, value) in enumerate(zip(chosen.indices, values.tolist(), strict=True)):
        if not np.isfinite(value) or value < 0:
            errors.append(
                f"feature {index}: expected a value that a feature can have, 0 or more and finite, got "
                f"{value:g}"
            )
        elif chosen.thresholds is not None and 0 < value <= chosen.thresholds[place]:
            flags.append(
                f"feature {index}: {value:g} is not above its threshold, {chosen.thresholds[place]:g}, so "
                "that no input gives it (a mean that includes zeros can fall there)"
            )
    return Faults(tuple(errors), tuple(flags))
