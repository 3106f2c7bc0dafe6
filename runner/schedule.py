"""Which trials run together: batches sorted by length and sized from the memory budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from backends.contract import Footprint
from runner.plan import Trial

MOST_ROWS = 1024  # beyond this a batch gains nothing and a crash loses more


def batches(trials: Sequence[Trial], footprint: Footprint, most_rows: int | None) -> Iterator[list[Trial]]:
    """Trials in batches whose caches and logits fit in the budget (at least one trial each).

    Sorted by the length of the prompt, then by prompt, so that rows of all conditions of an item stand
    together: their prompt is prefilled once and their donors are captured once. Rows for which the weights
    are changed come last, those of each change together and in no batch with others.
    """
    limit = MOST_ROWS if most_rows is None else most_rows
    batch: list[Trial] = []
    longest = new = 0
    for trial in sorted(trials, key=_order):
        length = max(longest, _context(trial))
        tokens = max(new, trial.more)
        size = (len(batch) + 1) * ((length + tokens) * footprint.bytes_per_token + footprint.bytes_per_row)
        other = bool(batch) and trial.row.weights != batch[0].row.weights
        if batch and (other or len(batch) >= limit or size > footprint.budget):
            yield batch
            batch, length, tokens = [], _context(trial), trial.more
        batch.append(trial)
        longest, new = length, tokens
    if batch:
        yield batch


def _context(trial: Trial) -> int:
    """Tokens of a row's longest context: concat puts a source in front of the prompt."""
    sources = max((len(ids) for ids in trial.row.sources.values()), default=0)
    own = len(trial.row.ids)
    joined = any(write.align == "concat" for write in trial.row.writes)
    return own + sources if joined else max(own, sources)


def _order(trial: Trial) -> tuple[str, bool, int, tuple[int, ...], str]:
    weights = "" if trial.row.weights is None else trial.row.weights.digest
    return (weights, trial.row.recompute, len(trial.row.ids), trial.row.ids, trial.key)
