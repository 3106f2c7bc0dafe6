"""What is known of extracted vectors: their norms, how well they separate, how far they depend on which items
they came from."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from runner.config.stages.known import Plain


class Read(Protocol):
    """Activations of one prompt of one item, [positions, layers, width]."""

    @property
    def item(self) -> str: ...
    @property
    def side(self) -> str: ...
    @property
    def prompt(self) -> Hashable: ...
    @property
    def values(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Sample:
    """Activations of the items of one group: `of`, and `minus` (None: no difference is taken), each
    [items, positions, layers, width], in the order of the items. halves, minus_halves: in which half (0 or 1)
    each of them is. A prompt that several items have is in one half alone, whichever side it stands on, so
    that what one half gives is tested on prompts that it has not seen."""

    of: np.ndarray
    minus: np.ndarray | None
    halves: np.ndarray
    minus_halves: np.ndarray

    @staticmethod
    def of_reads(reads: Sequence[Any], of: str, minus: str | None) -> Sample:
        """The reads of one group, by side. Of the different prompts of a side every second is in the other
        half."""
        ordered = sorted(reads, key=lambda read: read.item)
        half: dict[Hashable, int] = {}
        values: dict[str, list[np.ndarray]] = {}
        halves: dict[str, list[int]] = {}
        for side in (of, minus):
            if side is None:
                continue
            mine = [read for read in ordered if read.side == side]
            for number, prompt in enumerate(dict.fromkeys(read.prompt for read in mine)):
                half.setdefault(prompt, number % 2)
            values[side] = [read.values for read in mine]
            halves[side] = [half[read.prompt] for read in mine]
        return Sample(
            np.stack(values[of]),
            None if minus is None else np.stack(values[minus]),
            np.array(halves[of]),
            np.array([] if minus is None else halves[minus]),
        )

    def half(self, which: int) -> Sample:
        """One of two halves that share no prompt."""
        of, minus = self.halves == which, self.minus_halves == which
        return Sample(
            self.of[of], None if self.minus is None else self.minus[minus], self.halves[of],
            self.minus_halves[minus],
        )  # fmt: skip

    @property
    def smallest(self) -> int:
        """Activations of the side and half that has the fewest."""
        sides = [self.halves] if self.minus is None else [self.halves, self.minus_halves]
        return min(int((side == which).sum()) for side in sides for which in (0, 1))

    def vector(self) -> np.ndarray:
        """Mean of `of`, less that of `minus`, in float64: [positions, layers, width]."""
        mean: np.ndarray = self.of.mean(axis=0, dtype=np.float64)
        return mean if self.minus is None else mean - self.minus.mean(axis=0, dtype=np.float64)


def summary_table(
    samples: Sequence[Sample], groups: Sequence[str], positions: Sequence[int], layers: Sequence[int]
) -> list[dict[str, Plain | None]]:
    """A row for each group, position and layer.

    norm: of the vector. resid_norm: mean norm of the activations that it was taken from, the scale on which
    steering is read. separation: difference of the means of `of` and `minus` along the direction, in pooled
    standard deviations (Cohen's d), taken on the half of the prompts that the direction was not taken from,
    mean of both ways round; None without `minus` or with fewer than 2 of a side in a half. consistency:
    cosine between the vectors of the two halves, which share no prompt (None where one is empty).
    """
    rows: list[dict[str, Plain | None]] = []
    for group, sample in zip(groups, samples, strict=True):
        vector = sample.vector()
        norms = np.linalg.norm(vector, axis=-1)
        scale = _scale(sample)
        separation, consistency = _separation(sample), _consistency(sample)
        for p, position in enumerate(positions):
            for at, layer in enumerate(layers):
                rows.append(
                    {
                        "group": group,
                        "position": f"index:{position}",
                        "layer": layer,
                        "norm": float(norms[p, at]),
                        "resid_norm": float(scale[p, at]),
                        "separation": None if separation is None else _finite(separation[p, at]),
                        "consistency": None if consistency is None else _finite(consistency[p, at]),
                    }
                )
    return rows


def _scale(sample: Sample) -> np.ndarray:
    both = [sample.of] if sample.minus is None else [sample.of, sample.minus]
    norms = [np.linalg.norm(side.astype(np.float64), axis=-1).mean(axis=0) for side in both]
    scale: np.ndarray = np.mean(norms, axis=0)
    return scale


def _separation(sample: Sample) -> np.ndarray | None:
    if sample.minus is None or sample.smallest < 2:
        return None
    found = []
    for parity in (0, 1):
        direction = sample.half(parity).vector()
        other = sample.half(1 - parity)
        assert other.minus is not None
        on, off = (
            np.einsum("iplw,plw->ipl", side.astype(np.float64), direction) for side in (other.of, other.minus)
        )
        spread = np.sqrt((on.var(axis=0, ddof=1) + off.var(axis=0, ddof=1)) / 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append((on.mean(axis=0) - off.mean(axis=0)) / spread)
    mean: np.ndarray = np.mean(found, axis=0)
    return mean


def _consistency(sample: Sample) -> np.ndarray | None:
    if sample.smallest < 1:
        return None
    one, other = (sample.half(parity).vector() for parity in (0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine: np.ndarray = (one * other).sum(axis=-1) / (
            np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
        )
    return cosine


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
