"""Prompts of a batch, padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Padded:
    """ids, mask: [rows, longest]; mask 0 where there is padding."""

    ids: torch.Tensor
    mask: torch.Tensor

    @staticmethod
    def of(prompts: Sequence[tuple[int, ...]]) -> Padded:
        """Pad with token 0."""
        longest = max(map(len, prompts))
        pads = [longest - len(each) for each in prompts]
        ids = [[0] * pad + list(each) for pad, each in zip(pads, prompts, strict=True)]
        mask = [[0] * pad + [1] * (longest - pad) for pad in pads]
        return Padded(torch.tensor(ids), torch.tensor(mask))

    @property
    def positions(self) -> torch.Tensor:
        """Each token's position in its own prompt, [rows, longest]; 0 for padding."""
        return (self.mask.cumsum(-1) - 1).clamp(min=0)
