"""Cached generation of rows side by side: the order of events of a trial (prefill, cache writes, last token,
decode), finished rows leaving and waiting rows entering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from backends.contract import Start
from backends.rowplan import RowPlan
from backends.torch.begin import Begun, begin, moved, uncounted
from backends.torch.capture import armed_for
from backends.torch.edges import changes, decode_edges, first_cuts
from backends.torch.edits import Recorded, Tallies, decode_touches
from backends.torch.forward import call
from backends.torch.graph import GraphedStep
from backends.torch.hooks import Board
from backends.torch.loading import Loaded
from backends.torch.outcome import Outcome
from backends.torch.progress import Progress, Recorder
from backends.torch.running import Running
from backends.torch.sampling import Chooser, Sampler
from backends.torch.sources import Sources
from backends.torch.step import FixedStep, can_be_fixed
from backends.torch.touches import Tally

# How a decode step is computed: operation by operation; in one fixed shape, which asks the host nothing; or
# so and as a CUDA graph.
Stepping = Literal["eager", "fixed", "graph"]


@dataclass(frozen=True)
class Pace:
    """When rows leave and enter.

    shrink: finished rows leave once no more than this share of the batch still runs: copying the cache costs
    too. enter: waiting rows enter once no more than this share of the rows that may run at once still does;
    0: once none does. To prefill a few rows costs a forward, and beside rows that have run for long a new one
    reads many slots that are not its own. check: steps between two looks at which rows still run; on a
    device that computes on its own each look waits for it.
    """

    shrink: float = 0.7
    enter: float = 0.0
    check: int = 1

    @staticmethod
    def of(device: torch.device) -> Pace:
        """What is best on a kind of device.

        On a CPU a step costs what its rows read: 720 rows of 8 to 17 tokens that generate up to 150, at most
        256 at once, took 1.4 times the time of all at once where rows entered at 6% to 30%, and 1.28 times
        where the next 256 began after the last of the 256 before. An accelerator reads its weights at every
        step, however few the rows, and its places are kept filled.
        """
        return Pace() if device.type == "cpu" else Pace(enter=0.75, check=8)


@torch.inference_mode()
def generate(
    loaded: Loaded,
    board: Board,
    sources: Sources,
    plans: Sequence[RowPlan],
    recorded: Recorded,
    recorder: Recorder | None = None,
    start: Start | None = None,
    chooser: Chooser | None = None,
    together: int | None = None,
    pace: Pace | None = None,
    stepping: Stepping | None = None,
) -> Outcome:
    """Decode rows with the cache. Sources must have been captured. Raises OutOfMemory, BackendError.

    chooser: says the tokens instead of each row's sampling; nothing ends a text then but its limit. together:
    how many rows run at once at most; the others wait and enter, in their order, as rows finish. With a
    recorder all rows run from the first step to the last.

    stepping: None is a graph on CUDA and eager elsewhere. Whatever is asked, steps are eager where they have
    no fixed shape: with a recorder or a chooser, where rows cut attention edges, in models that choose
    experts, rotate by the length of the text or are spread over devices. Tokens, margins and receipts are
    the same.
    """
    spots = recorder.spots if recorder is not None else frozenset()
    with armed_for(board, plans, spots):
        places = (loaded, board, sources, plans, recorded, recorder, start, chooser)
        pace = Pace.of(loaded.device) if pace is None else pace
        loop = _Loop(*places, together, pace, _stepping(loaded, board, stepping))
        loop.run()
    return Outcome(loop.whole, loop.tallies, loop.change, loop.widest)


def _stepping(loaded: Loaded, board: Board, asked: Stepping | None) -> Stepping:
    if asked is None:
        asked = "graph" if loaded.device.type == "cuda" else "eager"
    if asked == "eager" or not can_be_fixed(loaded):
        return "eager"
    return "fixed" if board.clock.close else asked  # a close clock times what a graph would hold


class _Loop:
    """One call: all of its rows (`whole`), and those that run now (`now`), at the places of a batch."""

    def __init__(
        self,
        loaded: Loaded,
        board: Board,
        sources: Sources,
        plans: Sequence[RowPlan],
        recorded: Recorded,
        recorder: Recorder | None,
        start: Start | None,
        chooser: Chooser | None,
        together: int | None,
        pace: Pace,
        stepping: Stepping,
    ) -> None:
        self._loaded, self._board, self._sources, self._recorded = loaded, board, sources, recorded
        self._plans, self._recorder, self._start, self._pace = plans, recorder, start, pace
        rows, device = [plan.row for plan in plans], loaded.device
        self.whole = Progress.of(rows, loaded.info.eos_ids if chooser is None else (), device)
        self.whole.forwards += torch.tensor([row.replay_last_token for row in rows], device=device)
        self.tallies: Tallies = {}
        self.change = torch.full((len(plans),), torch.nan, device=device)
        self.widest = [0] * len(plans)
        self._choices: Chooser = (
            Sampler.of(rows, loaded.info.vocabulary, device) if chooser is None else chooser
        )
        self._first_cuts = first_cuts(plans, device)
        self._together = len(plans) if together is None or recorder is not None else together
        self._limits = [row.sampling.max_new_tokens for row in rows]
        self._longest = max(plan.slots + 1 + plan.row.sampling.max_new_tokens for plan in plans)
        self._slack = self._longest // 4 + pace.check  # for moves to the front to be rare
        self._stepping = stepping if recorder is None and chooser is None else "eager"
        self._fixed: FixedStep | GraphedStep | None = None  # for the rows and slots that there are now
        self._waiting = 0  # the first row that has not begun

    def run(self) -> None:
        """Decode until no row runs and none waits."""
        step = 0
        self._begin(step)
        while True:
            look = step % self._pace.check == 0 or self._full() or step >= self._until
            if look and not self._turn_over(step):
                break
            fixed = self._fixed_step(step)
            if fixed is not None:
                fixed.run()
                step += 1
                continue
            logits = self._forward(step)
            step += 1
            own = step - self._since if self._since is not None else step - self._entered
            tokens, margin, finite = self._choose.draw(logits, own)
            self.now.take(own, tokens, margin, finite)
            self._tokens = tokens
        self.whole.put(self._current, self.now)

    def _begin(self, step: int) -> None:
        """Fill all places with waiting rows, none running."""
        rows = self._next(self._together)
        more = self._longest - max(self._plans[row].slots for row in rows) - 1
        begun = self._begun(rows, more + (self._slack if self._waiting < len(self._plans) else 0))
        self._current = torch.tensor(rows, device=self._loaded.device)
        self._running = Running.of(begun, self._current, self.tallies, step)
        self._entered = torch.full_like(self._current, step)
        self._since: int | None = step  # the step at which all rows entered, where that was one
        self._compose()
        self._first(begun, torch.arange(len(rows), device=self._loaded.device))
        self._alive, self._until = len(rows), self._last(step, rows)
        self._twins = bool((self._first_cuts[self._current] == 1).any())

    def _turn_over(self, step: int) -> bool:
        """Let finished rows leave and waiting rows enter, where that pays; whether any row runs then."""
        while True:
            alive = int(self.now.alive.sum())
            waits = len(self._plans) - self._waiting
            if alive == 0:
                if not waits:
                    return False
                self.whole.put(self._current, self.now)
                self._begin(step)
                continue
            if alive == self._alive:
                return True
            self._alive = alive
            self._running.narrow(self.now.alive)
            if waits and alive <= self._pace.enter * self._together:
                self._enter(step, alive)
                continue
            if self._recorder is None and alive <= self._pace.shrink * len(self._current):
                self._leave(step)
            return True

    def _leave(self, step: int) -> None:
        """Go on without the rows that have finished."""
        kept = self.now.alive.nonzero()[:, 0]
        self.whole.put(self._current, self.now)
        self._running.keep(kept, self._room(step))
        self._current, self._entered = self._current[kept], self._entered[kept]
        self._tokens = self._tokens[kept]
        self._compose()

    def _enter(self, step: int, alive: int) -> None:
        """Go on without the rows that have finished, and with as many that have waited."""
        rows = self._next(self._together - alive)
        kept = self.now.alive.nonzero()[:, 0]
        self.whole.put(self._current, self.now)
        begun = self._begun(rows, 0)
        total = torch.tensor(rows, device=self._loaded.device)
        self._until = max(self._until, self._last(step, rows))
        self._running.enter(kept, begun, self._room(step), total, self.tallies, step)
        self._current = torch.cat([self._current[kept], total])
        self._entered = torch.cat([self._entered[kept], torch.full_like(total, step)])
        self._tokens = torch.cat([self._tokens[kept], torch.zeros_like(total)])
        self._since = None
        self._compose()
        self._first(begun, torch.arange(alive, alive + len(rows), device=total.device))
        self._alive = -1  # look again: some may have ended with their first token
        self._twins = self._twins or bool((self._first_cuts[total] == 1).any())

    def _room(self, step: int) -> int:
        """Unfilled slots that the cache is to have behind those that are read now."""
        read = self._running.cache.filled - self._running.cache.start
        return max(1, min(self._until - step, self._longest + self._slack - read))

    def _last(self, step: int, rows: Sequence[int]) -> int:
        """The step at which the last of some rows that enter now has reached its limit, if not before."""
        return step + max(self._limits[row] for row in rows) - 1

    def _next(self, count: int) -> list[int]:
        rows = list(range(self._waiting, min(self._waiting + count, len(self._plans))))
        self._waiting += len(rows)
        return rows

    def _begun(self, rows: Sequence[int], room: int) -> Begun:
        """Prefill, cache writes and last token of some rows. room: slots of the cache beyond the prompts."""
        plans = [self._plans[row] for row in rows]
        counted: Tallies = {}
        begun = begin(
            self._loaded, self._board, self._sources, plans, self._recorded, counted, self._start, room
        )
        at = torch.tensor(rows, device=self._loaded.device)
        for key, tally in counted.items():
            if key not in self.tallies:
                self.tallies[key] = Tally(len(tally.counts), len(self._plans), self._loaded.device)
            self.tallies[key].put(at, tally)
        self.change[at] = begun.logit_change
        return begun

    def _compose(self) -> None:
        """What follows from which rows are at the places."""
        self._fixed = None
        self.now = self.whole.select(self._current)
        self._choose = self._choices.select(self._current)
        width = len(self._current)
        for row in self._current.tolist():
            self.widest[row] = max(self.widest[row], width)

    def _first(self, begun: Begun, places: torch.Tensor) -> None:
        """Draw the first new token of rows that have just begun, at these places."""
        part = self.now.select(places)
        tokens, margin, finite = self._choices.select(self._current[places]).draw(begun.logits, 0)
        part.take(0, tokens, margin, finite)
        self.now.put(places, part)
        if len(places) == len(self._current):
            self._tokens = tokens
        else:
            self._tokens[places] = tokens

    def _fixed_step(self, step: int) -> FixedStep | GraphedStep | None:
        """The step of fixed shape for the rows that run now; None where theirs has none."""
        if self._stepping == "eager" or self._running.cuts:
            return None
        if self._fixed is None or self._fixed.full:
            self._running.make_room()
            made = FixedStep(
                self._loaded,
                self._board,
                self._running,
                self.now,
                self._choose,
                self._tokens,
                self._entered,
                step,
            )
            self._fixed = made if self._stepping == "fixed" else GraphedStep(made)
        return self._fixed

    def _full(self) -> bool:
        return self._running.cache.filled >= self._running.cache.capacity

    def _forward(self, step: int) -> torch.Tensor:
        """Feed the newest token of every row; the logits [places, vocabulary] after it."""
        running, now = self._running, self.now
        running.make_room()
        running.slots = running.slots + 1
        twin = self._twin(step) if self._twins else None
        weight = now.alive.float()
        keys = running.cache.filled + 1 - running.cache.start
        self._board.touches = decode_touches(running.edits, step, weight)
        self._board.edges = changes(decode_edges(running.cuts, step, weight, running.padding, keys))
        if self._recorder is not None:
            self._recorder.tap(self._board)
        now.forwards += now.alive
        logits = call(self._loaded, self._tokens[:, None], running.here(), running.cache)[:, -1]
        if twin is not None:
            known = self.change[self._current]
            self.change[self._current] = torch.where(torch.isnan(known), moved(logits, twin), known)
        return logits

    def _twin(self, step: int) -> torch.Tensor | None:
        """Logits of this decode forward without its cut edges, for rows that first cut edges in it; None
        where there is no such row. The cache is as before afterwards."""
        running = self._running
        fresh = self._entered == step
        self._twins = False
        chosen = (self._first_cuts[self._current] == 1) & self.now.alive & fresh
        if not bool(chosen.any()):
            return None
        weight = torch.zeros_like(self.now.alive, dtype=torch.float32)
        touches = decode_touches(running.edits, step, weight)
        self._board.touches, self._board.edges = uncounted(touches), {}
        logits = call(self._loaded, self._tokens[:, None], running.here(), running.cache)[:, -1].float()
        running.cache.take_back(1)
        return torch.where(chosen[:, None], logits, torch.nan)
