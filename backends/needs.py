"""What must be captured before a batch of rows can run: sources of its writes, and means over prompts."""

from __future__ import annotations

from collections.abc import Sequence

from backends.positions import Positions
from backends.rowplan import RowPlan
from backends.rows import SourceRun
from backends.writes import Features, PromptSet, Write

MeanKey = tuple[PromptSet, Positions, Features | None]  # whose activations, where in each, of features or not
Spots = set[tuple[str, int]]
CACHED = ("keys", "values")  # the two parts of a cache


def needs(rows: Sequence[RowPlan]) -> dict[SourceRun, Spots]:
    """Source runs of a batch -> (site, layer) pairs to capture, ("keys", layer) and ("values", layer) among
    them for what is read of a cache."""
    wanted: dict[SourceRun, Spots] = {}
    for plan in rows:
        for item in plan.writes:
            if item.source is None:
                continue
            spots = wanted.setdefault(item.source, set())
            if item.slots is not None:
                parts = CACHED if item.write.part == "both" else (item.write.part,)
                spots.update((part, layer) for part in parts for layer in item.write.layers)
            elif item.prefill is not None or (item.window is not None and item.write.hold != "lockstep"):
                spots.update(item.spot(layer) for layer in item.write.layers)
    return wanted


def mean_key(write: Write) -> MeanKey:
    """What identifies the mean that a write takes, layer aside."""
    assert write.value.prompts is not None
    return write.value.prompts, write.positions, write.features


def needed_means(rows: Sequence[RowPlan]) -> dict[MeanKey, Spots]:
    """Means of a batch -> (site, layer) pairs at which they are taken."""
    wanted: dict[MeanKey, Spots] = {}
    for write in {item.write for plan in rows for item in plan.writes if item.write.value.kind == "mean"}:
        wanted.setdefault(mean_key(write), set()).update((write.tensor, layer) for layer in write.layers)
    return wanted
