"""Which trials are handed to the backend together: sorted by length, sized from the memory budget, shared
out among the workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from backends.contract import Footprint
from runner.key_table import Places
from runner.ledger import Ledger, ledger_of
from runner.plan import Trial, Trials

MOST_ROWS = 1024  # at once: beyond this nothing is gained
LEAST_ROWS = 64  # of a worker's batch: below this a second worker gains little
# Trials of one batch where rows enter as others finish, of which only so many are lost with it.
MOST_TIMES, MOST_TRIALS = 4, 2048


@dataclass(frozen=True)
class Batch:
    """Trials that are handed over together. together: at most so many of them run at once."""

    trials: Sequence[Trial]
    together: int

    @property
    def alone(self) -> bool:
        """Whether the model's weights are changed for it, so that no other batch runs beside it."""
        return self.trials[0].row.weights is not None

    def within(self, most_rows: int | None) -> list[Batch]:
        """The same trials, no more than so many of them at once, in batches that are smaller by as much."""
        if most_rows is None or self.together <= most_rows:
            return [self]
        return self._cut(max(1, len(self.trials) * most_rows // self.together), most_rows)

    def halves(self) -> list[Batch]:
        """Two batches of the same trials."""
        return self._cut((len(self.trials) + 1) // 2, self.together)

    def _cut(self, size: int, together: int) -> list[Batch]:
        parts = [self.trials[first : first + size] for first in range(0, len(self.trials), size)]
        return [Batch(part, min(together, len(part))) for part in parts]


def batches(
    trials: Sequence[Trial],
    footprint: Footprint,
    most_rows: int | None,
    *,
    workers: int = 1,
    entering: bool = True,
) -> Iterator[Batch]:
    """Trials in batches of which as many run at once as have caches and logits within a worker's share of the
    budget (at least one).

    The longest prompts come first, the trials of one prompt together: it is prefilled once for all conditions
    and their donors are captured once. Trials for which the weights are changed come last, those of each
    change together and in no batch with others; one worker runs them.

    most_rows: the most that run at once, None for MOST_ROWS. entering: whether others of the batch enter as
    rows finish; without it, and where rows have no cache, a batch is what runs at once. Each batch is a
    worker's share of what is left, so that the last ones, which end at different times, are small.
    """
    limit = MOST_ROWS if most_rows is None else most_rows
    held = trials.ledger if isinstance(trials, Trials) else ledger_of(trials)
    rows = trials.rows if isinstance(trials, Trials) else np.arange(len(trials))
    for (weights, recompute), places in _kinds(held, rows):
        crew = 1 if weights else workers
        room = replace(footprint, budget=footprint.budget // crew)
        context, more = held.context[rows[places]].astype(np.int64), held.more[rows[places]].astype(np.int64)
        first = 0
        while first < len(places):
            share = _share(len(places) - first, crew)
            last = first + min(share, max(MOST_TRIALS, limit))
            fitting = _fitting(context[first:last], more[first:last], room, limit)
            most = fitting
            if entering and not recompute:
                most = np.maximum(fitting, np.minimum(MOST_TIMES * fitting, MOST_TRIALS))
            beyond = np.flatnonzero(np.arange(1, len(most) + 1) > most)
            size = max(1, int(beyond[0])) if len(beyond) else len(most)
            chosen = places[first : first + size]
            yield Batch(_taken(trials, chosen), min(int(fitting[size - 1]), size))
            first += size


def _kinds(held: Ledger, rows: Places) -> Iterator[tuple[tuple[str, bool], Places]]:
    """Trials that may run in one batch, in the order in which they are to run: places among the rows."""
    order = _order(held, rows)
    kind = held.kind[rows[order]]
    for place in sorted(set(kind.tolist()), key=lambda place: held.kinds[place]):
        yield held.kinds[place], order[kind == place]


def _order(held: Ledger, rows: Places) -> Places:
    """The longest prompts first, the trials of a prompt together, in the order of the plan."""
    lengths = np.array([len(ids) for ids in held.prompts])
    prompt = held.prompt[rows]
    return np.lexsort((prompt, -lengths[prompt]))


def _share(left: int, workers: int) -> int:
    """How many of the trials that are left the next batch may have."""
    busy = max(1, min(workers, left // LEAST_ROWS))
    return -(-left // busy)


def _fitting(context: Places, more: Places, room: Footprint, limit: int) -> Places:
    """How many rows run at once in a batch of the first 1, 2, ... of these, by their tokens [trials]: those
    of their longest context and those that come after it."""
    most = np.stack([np.maximum.accumulate(context), np.maximum.accumulate(more)])
    sizes, which = np.unique(most, axis=1, return_inverse=True)
    rows = [room.budget // max(1, room.of_batch(1, *size)) for size in sizes.T.tolist()]
    fitting: Places = np.clip(np.array(rows)[which], 1, limit)
    return fitting


def _taken(trials: Sequence[Trial], places: Places) -> Sequence[Trial]:
    if isinstance(trials, Trials):
        return trials.take(places)
    return tuple(trials[int(place)] for place in places)
