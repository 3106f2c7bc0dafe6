"""Features of a sparse autoencoder that a write sets: `sae` names its folder, `features` which."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from backends import sae
from backends.sae.types import check_indices
from backends.writes import Features, Write
from runner.config.spec import ModelSpec, WriteSpec


class FeatureError(ValueError):
    """A folder that holds no SAE for this model, or features that it does not have. field: the key of the
    write that is wrong."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(message)


@dataclass(frozen=True)
class SaeFeatures:
    """The features chosen, and the layer that their SAE is hooked at."""

    chosen: Features
    layer: int


def resolve_features(write: WriteSpec, model: ModelSpec) -> SaeFeatures | None:
    """What an sae write sets; None at every other site, and where the folder or the features are not given.

    Reads the description of the SAE, not its weights. Raises FeatureError.
    """
    if write.site != "sae" or write.sae is None or write.features is None:
        return None
    folder = os.path.abspath(os.path.expanduser(write.sae))
    try:
        found = _description(folder, _stamp(Path(folder)))
    except sae.SaeError as error:
        raise FeatureError("sae", str(error)) from error
    if found.width != model.width or found.layer >= model.layers:
        raise FeatureError(
            "sae",
            f"expected an SAE of width {model.width} at a layer from 0 to {model.layers - 1} (model "
            f"'{model.name}'), got width {found.width} at layer {found.layer} in '{write.sae}'",
        )
    try:
        check_indices(write.features, found.features)
    except sae.SaeError as error:
        raise FeatureError("features", str(error)) from error
    chosen = Features(folder, found.fingerprint, found.site, write.features)
    return SaeFeatures(chosen, found.layer)


def unreached_values(write: Write) -> tuple[str, ...]:
    """A sentence for each feature that a write sets to a value that it never takes on: above 0 and not above
    its threshold. Only values that the configuration says itself are looked at. Raises FeatureError."""
    value = write.value
    if write.features is None or (value.number is None and value.constant is None):
        return ()
    count = len(write.features.indices)
    values = np.full(count, value.number) if value.constant is None else value.constant.array
    try:
        flags = sae.faults(sae.choose(write.features.folder, write.features.indices), values).flags
    except sae.SaeError as error:
        raise FeatureError("sae", str(error)) from error
    return tuple(f"{flag[0].upper()}{flag[1:]}." for flag in flags)


@lru_cache(maxsize=64)
def _description(folder: str, stamp: tuple[tuple[str, int, int], ...]) -> sae.Description:
    """The description of an SAE whose files are as `stamp` says: a fingerprint is taken over all of them."""
    return sae.read(folder)


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of each file of a folder; nothing where there is none."""
    if not folder.is_dir():
        return ()
    files = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    return tuple((name, found.st_size, found.st_mtime_ns) for name, found in files)
