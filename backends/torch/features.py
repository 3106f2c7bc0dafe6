"""Features of a sparse autoencoder, read and written on the device of the layer that they are hooked at.

`Sources.features` hands out sets of features from one store, so that each SAE's files are checked once and
its whole dictionary is held once a device. Captured rows become values [n, k] before they are written.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from backends import sae
from backends.contract import BackendError, ModelInfo
from backends.sae import Chosen, Conventions, Description, Sae, SaeError
from backends.writes import Features, Op, Write


@dataclass(frozen=True, eq=False)
class SaeTensors:
    """Features of an SAE on a device, all of them or some, in float32.

    encoder [features, width] (a row for each feature), b_enc [features], decoder [features, width], b_dec
    [width]. thresholds [features]: the activation above which a feature is active; None for topk, which
    `ranked` decides: activations times these norms [features], or as they are where it is None.
    """

    conventions: Conventions
    encoder: torch.Tensor
    b_enc: torch.Tensor
    decoder: torch.Tensor
    b_dec: torch.Tensor
    thresholds: torch.Tensor | None
    ranked: torch.Tensor | None

    @staticmethod
    def of(part: Sae | Chosen, device: torch.device) -> SaeTensors:
        """The tensors of an SAE, or of some features of one that is not topk."""
        made = part.conventions
        chosen = part.choose(range(part.features)) if isinstance(part, Sae) else part
        if made.activation == "topk" and not isinstance(part, Sae):
            raise ValueError("topk features are active by what all the others are: the whole SAE is needed")

        def there(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(device)

        decoder = there(chosen.decoder)
        return SaeTensors(
            made,
            encoder=there(chosen.encoder.T),
            b_enc=there(chosen.b_enc),
            decoder=decoder,
            b_dec=there(chosen.b_dec),
            thresholds=None if chosen.thresholds is None else there(chosen.thresholds),
            ranked=decoder.norm(dim=-1)
            if made.activation == "topk" and made.decoder_norms == "counted"
            else None,
        )


def feature_activations(
    tensors: SaeTensors, hidden: torch.Tensor, indices: torch.Tensor | None = None
) -> torch.Tensor:
    """Activations of features on rows [n, width], float32, in the SAE's units.

    indices: [k], or [n, k] where each row has features of its own -> [n, k]; None: all -> [n, features]. Only
    those asked for are computed, except with topk, where all decide. The formulas stand in
    backends/sae/formulas.py.
    """
    made = tensors.conventions
    inputs = made.input_scale * hidden.float()
    if made.apply_b_dec_to_input:
        inputs = inputs - tensors.b_dec
    if tensors.thresholds is None:
        assert made.k is not None
        pre = inputs @ tensors.encoder.T + tensors.b_enc
        score = pre if tensors.ranked is None else pre * tensors.ranked
        least = score.topk(made.k, dim=-1).values[:, -1:]
        found = torch.where((score >= least) & (pre > 0), pre, torch.zeros_like(pre))
        return found if indices is None else found.gather(1, _each_row(indices, len(found)))
    if indices is None:
        pre, above = inputs @ tensors.encoder.T + tensors.b_enc, tensors.thresholds
    else:
        above = tensors.thresholds[indices]
        rows = tensors.encoder[indices]
        product = inputs @ rows.T if indices.ndim == 1 else torch.einsum("nw,nkw->nk", inputs, rows)
        pre = product + tensors.b_enc[indices]
    return torch.where(pre > above, pre, torch.zeros_like(pre))


def feature_write(
    tensors: SaeTensors,
    old: torch.Tensor,
    indices: torch.Tensor,
    values: torch.Tensor | None,
    *,
    op: Op = "set_feature",
    alpha: float = 1.0,
    round_trip: bool = False,
) -> torch.Tensor:
    """Rows [n, width] with features written, in the dtype of `old`; computed in float32.

    indices: [k], or [n, k] where each row has features of its own. op, with a the activations: set_feature to
    `values` [n or 1, k], in the SAE's units; zero: to 0; scale: to alpha a. What the SAE does not reconstruct
    is kept: x + (v - a) W_D / s. With `round_trip` it is lost: the reconstruction with those features
    written, for which `tensors` must hold the whole SAE (op scale, alpha 1 is the pass-through).
    """
    scale = tensors.conventions.input_scale
    if round_trip:
        every = feature_activations(tensors, old)
        places = _each_row(indices, len(old))
        wanted = _wanted(op, every.gather(1, places), values, alpha)
        rebuilt = every.scatter(1, places, wanted)
        return ((rebuilt @ tensors.decoder + tensors.b_dec) / scale).to(old.dtype)
    active = feature_activations(tensors, old, indices)
    change = _wanted(op, active, values, alpha) - active
    rows = tensors.decoder[indices]
    moved = change @ rows if indices.ndim == 1 else torch.einsum("nk,nkw->nw", change, rows)
    return (old.float() + moved / scale).to(old.dtype)


def _wanted(op: Op, active: torch.Tensor, values: torch.Tensor | None, alpha: float) -> torch.Tensor:
    """The activations [n, k] that a write leaves."""
    if op == "zero":
        return torch.zeros_like(active)
    if op == "scale":
        return alpha * active
    assert op == "set_feature" and values is not None, op
    return values.to(active.dtype).expand_as(active)


def _each_row(indices: torch.Tensor, rows: int) -> torch.Tensor:
    return indices if indices.ndim == 2 else indices.expand(rows, -1)


@dataclass(frozen=True)
class OpenedSae:
    """An SAE whose files have been checked, on a device."""

    folder: str
    description: Description
    device: torch.device
    _reading: threading.Lock = field(default_factory=threading.Lock, init=False, compare=False, repr=False)

    @staticmethod
    def open(folder: str, fingerprint: str, device: torch.device) -> OpenedSae:
        """Raises BackendError where the files hold no SAE, or not the one of the fingerprint."""
        return OpenedSae(folder, _description(folder, fingerprint), device)

    @property
    def whole(self) -> SaeTensors:
        """All features, read at the first use: a round trip or topk needs them, no other write does."""
        with self._reading:
            return self._whole

    @cached_property
    def _whole(self) -> SaeTensors:
        try:
            return SaeTensors.of(sae.load(self.folder), self.device)
        except SaeError as error:
            raise BackendError(str(error)) from error

    def chosen(self, indices: tuple[int, ...]) -> SaeTensors:
        """Some features, read without the others."""
        try:
            return SaeTensors.of(sae.choose(self.folder, indices), self.device)
        except SaeError as error:
            raise BackendError(str(error)) from error


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """The chosen features of an SAE, ready to be read and written at its site. tensors: those features alone,
    or the whole SAE of topk; places: [k], where in them the features are; indices: [k], where in the SAE."""

    opened: OpenedSae = field(repr=False)
    tensors: SaeTensors = field(repr=False)
    places: torch.Tensor = field(repr=False)
    indices: torch.Tensor

    @staticmethod
    def load(features: Features, layer: int, device: torch.device) -> FeatureSet:
        """Read the SAE's files. Raises BackendError where they are not those of the fingerprint, or were made
        for another layer or site, or lack the features."""
        return FeatureStore().of(features, layer, device)

    def activations(self, hidden: torch.Tensor) -> torch.Tensor:
        """Activations [n, k] of the chosen features on rows [n, width], float32."""
        return feature_activations(self.tensors, hidden, self.places)

    def write(
        self, op: Op, old: torch.Tensor, values: torch.Tensor | None, alpha: float, round_trip: bool
    ) -> torch.Tensor:
        """New rows [n, width]: op set_feature (values [n or 1, k]), zero or scale by alpha."""
        if round_trip:
            tensors, places = self.opened.whole, self.indices
        else:
            tensors, places = self.tensors, self.places
        return feature_write(tensors, old, places, values, op=op, alpha=alpha, round_trip=round_trip)


class FeatureStore:
    """Feature sets by what they are of, for any number of threads. Sets of one SAE share its check and, where
    any needs it, its whole dictionary."""

    def __init__(self) -> None:
        self._opened: dict[tuple[str, str, torch.device], OpenedSae] = {}
        self._sets: dict[tuple[str, Features, int, torch.device], FeatureSet] = {}
        self._lock = threading.Lock()

    def of(self, features: Features, layer: int, device: torch.device) -> FeatureSet:
        """The features on a device. Raises BackendError as FeatureSet.load does."""
        key = (features.folder, features, layer, device)
        with self._lock:
            if key not in self._sets:
                self._sets[key] = self._make(features, layer, device)
            return self._sets[key]

    def _make(self, features: Features, layer: int, device: torch.device) -> FeatureSet:
        key = (features.folder, features.fingerprint, device)
        if key not in self._opened:
            self._opened[key] = OpenedSae.open(*key)
        opened = self._opened[key]
        problems = _misplaced(features, layer, opened.description)
        if problems:
            raise BackendError(f"the SAE in '{features.folder}': {'; '.join(problems)}")
        indices = torch.tensor(features.indices, device=device)
        if opened.description.conventions.activation == "topk":
            return FeatureSet(opened, opened.whole, indices, indices)
        places = torch.arange(len(indices), device=device)
        return FeatureSet(opened, opened.chosen(features.indices), places, indices)


def check_features(writes: Iterable[Write], info: ModelInfo) -> None:
    """Raises BackendError for features of an SAE that was not made for this model: whose files have changed,
    or of another layer, site, width or model. Each SAE is looked at once."""
    found: dict[tuple[str, str], Description] = {}
    problems: dict[str, None] = {}
    for write in writes:
        features = write.features
        if features is None:
            continue
        key = (features.folder, features.fingerprint)
        if key not in found:
            found[key] = _description(*key)
        wrong = [
            *(text for layer in write.layers for text in _misplaced(features, layer, found[key])),
            *_foreign(found[key], info),
        ]
        problems.update(dict.fromkeys(f"the SAE in '{features.folder}': {text}" for text in wrong))
    if problems:
        raise BackendError("\n".join(problems))


def _description(folder: str, fingerprint: str) -> Description:
    try:
        found = sae.read(folder)
    except SaeError as error:
        raise BackendError(str(error)) from error
    if found.fingerprint != fingerprint:
        raise BackendError(
            f"the SAE in '{folder}' is not the one that the experiment was planned with: expected the "
            f"fingerprint {fingerprint}, got {found.fingerprint}; its files have changed"
        )
    return found


def _misplaced(features: Features, layer: int, found: Description) -> list[str]:
    outside = [str(index) for index in features.indices if not 0 <= index < found.features]
    return [
        *([f"was made for layer {found.layer}, not for layer {layer}"] if found.layer != layer else []),
        *([f"was made for {found.site}, not for {features.site}"] if found.site != features.site else []),
        *([f"has features 0 to {found.features - 1}, not {', '.join(outside)}"] if outside else []),
    ]


def _foreign(found: Description, info: ModelInfo) -> list[str]:
    model = found.conventions.model
    return [
        *(
            [f"reads rows of width {found.width}, those of model '{info.name}' have {info.width}"]
            if found.width != info.width
            else []
        ),
        *(
            [f"is hooked at {found.site}, which model '{info.name}' does not have"]
            if info.sites and found.site not in info.sites
            else []
        ),
        *(
            [f"was made for the weights {model}, those of model '{info.name}' are {info.fingerprint}"]
            if model not in (None, info.fingerprint)
            else []
        ),
    ]
