"""Features of a sparse autoencoder, on the device of the layer that they are hooked at."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from backends.writes import Features, Op


@dataclass(frozen=True)
class FeatureSet:
    """The chosen features of an SAE, ready to be read and written at its site."""

    @staticmethod
    def load(features: Features, layer: int, device: torch.device) -> FeatureSet:
        """Read the SAE's files. Raises BackendError where they are not those of the fingerprint, or were made
        for another layer."""
        raise NotImplementedError

    def activations(self, hidden: torch.Tensor) -> torch.Tensor:
        """Activations [n, k] of the chosen features on rows [n, width]."""
        raise NotImplementedError

    def write(
        self, op: Op, old: torch.Tensor, values: torch.Tensor | None, alpha: float, round_trip: bool
    ) -> torch.Tensor:
        """New rows [n, width]: op set_feature (values [n or 1, k]), zero or scale by alpha."""
        raise NotImplementedError
