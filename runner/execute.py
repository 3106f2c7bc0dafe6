"""Running trials in batches, several at the same time: halving on out-of-memory, isolating what fails,
recording as results arrive."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from backends.clock import merged
from backends.contract import Backend, BackendError, OutOfMemory
from backends.measures import Measured, Probe, Scored, ScoreRow
from backends.rows import Decoded, Finish, Receipt
from backends.tokenizer import Tokenizer
from backends.writes import Constant
from runner.config.readouts.readout import Readout
from runner.keys import receipt_order
from runner.plan import Trial
from runner.schedule import Batch, batches
from runner.scores.scoring import Scorer, Scores
from runner.workers import Workers, undisturbed

Result = dict[str, Any]
Found = list[Result] | BaseException  # what came of a batch


class Watcher(Protocol):
    """Who is told of progress."""

    def advanced(self, trials: int, tokens: int) -> None: ...
    def failed(self, trial: Trial, error: str) -> None: ...
    def note(self, sentence: str) -> None: ...


@dataclass(frozen=True)
class Pass:
    """Probes that are measured in one call. follows: the readout whose fixed text comes after the prompts;
    of_output: the generated one does."""

    probes: tuple[Probe, ...]
    follows: str | None = None
    of_output: bool = False

    def row(self, trial: Trial, output: tuple[int, ...]) -> ScoreRow:
        """A trial as this call takes it."""
        if self.of_output:
            return ScoreRow(trial.row, output, trial.tokens, trial.positions)
        fixed = () if self.follows is None else trial.continuations[self.follows]
        return ScoreRow(trial.row, fixed, trial.tokens, trial.positions)


def passes(readouts: Sequence[Readout]) -> tuple[Pass, ...]:
    """The calls that a set of readouts needs: one for all that read prompts, which takes the first fixed text
    along, one for each further fixed text, one for the generated text."""
    plain = [r.probe for r in readouts if r.probe and not r.of_output and r.continuation is None]
    fixed = [(r.name, r.probe) for r in readouts if r.probe and r.continuation is not None]
    output = tuple(r.probe for r in readouts if r.probe and r.of_output)
    found = [Pass((*plain, *(probe for _, probe in fixed[:1])), fixed[0][0] if fixed else None)]
    found += [Pass((probe,), name) for name, probe in fixed[1:]]
    found.append(Pass(output, of_output=True))
    return tuple(each for each in found if each.probes)


def generates(readouts: Sequence[Readout]) -> bool:
    """Whether a text is generated: a readout reads it."""
    return any(readout.of_output for readout in readouts)


@dataclass(frozen=True)
class Outcome:
    """What came of a trial: the generated text and what was measured. output_ids: empty where nothing was
    generated."""

    values: Mapping[str, Measured]
    receipts: Mapping[str, Receipt]
    batch_rows: int
    batch_length: int
    invalid: str | None = None
    output_ids: tuple[int, ...] = ()
    finish: Finish | None = None
    min_margin: float | None = None


@dataclass
class _Weights:
    """The weights that a model has now. entered: what will put them back."""

    backend: Backend
    entered: ExitStack
    now: Constant | None = None

    def change(self, asked: Constant | None) -> None:
        """Give the model the weights that a batch asks for, unless it has them. Where it cannot have them the
        rows of that batch say so."""
        if asked == self.now:
            return
        self.entered.close()
        self.now = asked
        if asked is not None:
            with suppress(BackendError):
                self.entered.enter_context(self.backend.orthogonalised(asked.array))


@dataclass
class Executor:
    """Runs trials on a backend, several batches at the same time where it has several workers.

    record: called with the results of each finished batch, by the thread that calls `run`, which alone
    records, tells the watcher, and decides what becomes of a batch that did not fit or raised. most_rows: the
    most that run at once, lowered where memory did not suffice for more.
    """

    backend: Backend
    tokenizer: Tokenizer
    readouts: Sequence[Readout]
    record: Callable[[Iterable[Result]], None]
    watcher: Watcher
    most_rows: int | None = None

    def run(self, trials: Sequence[Trial]) -> None:
        """Run all trials. A trial that raises ends as `failed` and the others go on; BackendError and
        KeyboardInterrupt end the run, whatever has finished being recorded. Weights that a condition changes
        are changed once for all of its batches, which run when no others do. The seconds of all workers are
        added to those of the backend's clock."""
        self.run_batches(list(self.batches(trials)))

    def run_batches(self, found: Sequence[Batch]) -> None:
        """Run all trials in these batches, as `run` does."""
        alone = [batch for batch in found if batch.alone]
        beside = [batch for batch in found if not batch.alone]
        if min(self.backend.workers, len(beside)) > 1:
            self._side_by_side(deque(beside))
            beside = []
        with ExitStack() as changed:
            self._in_turn(deque([*beside, *alone]), _Weights(self.backend, changed))

    def batches(self, trials: Sequence[Trial]) -> Iterator[Batch]:
        """What trials are run in, where nothing goes wrong: those with weights of their own come last."""
        return batches(
            trials,
            self.backend.footprint,
            self.most_rows,
            workers=self.backend.workers,
            entering=generates(self.readouts),
        )

    def in_words(self, found: Sequence[Batch]) -> str:
        """How many batches there are, of how many rows, and how many run at the same time."""
        rows = max((batch.together for batch in found), default=0)
        workers = max(1, min(self.backend.workers, sum(not batch.alone for batch in found)))
        beside = "one after the other" if workers == 1 else f"{workers} at the same time"
        number = "1 batch" if len(found) == 1 else f"{len(found):,} batches"
        return f"{number}, {beside}, at most {rows:,} rows of each at once"

    def _in_turn(self, waiting: deque[Batch], weights: _Weights) -> None:
        """One batch after the other, in this thread."""
        while waiting:
            batch = self._next(waiting)
            found: Found
            try:
                weights.change(batch.trials[0].row.weights)
                found = self._work(self.backend, batch)
            except Exception as error:
                found = error
            with undisturbed():
                self._settle(batch, found, waiting)

    def _side_by_side(self, waiting: deque[Batch]) -> None:
        """As many batches at the same time as there are workers."""
        workers = Workers(min(self.backend.workers, len(waiting)), self.backend, self._work)
        try:
            with workers:
                try:
                    self._share_out(waiting, workers)
                except (KeyboardInterrupt, BackendError):
                    done = workers.end()
                    with undisturbed():
                        for _, found in done:
                            if isinstance(found, list):
                                self._record(found)
                    raise
        finally:
            spent = merged(workers.clocks)
            clock = self.backend.clock
            clock.counts.update(spent.counts)
            for phase, seconds in spent.times.items():
                clock.times[phase] = clock.times.get(phase, 0.0) + seconds

    def _share_out(self, waiting: deque[Batch], workers: Workers[Batch, list[Result]]) -> None:
        while True:
            while waiting and workers.idle:
                workers.give(self._next(waiting))
            if not workers.running:
                return
            batch, found = workers.finished()
            if isinstance(found, list) and waiting:  # a worker need not wait until they are stored
                workers.give(self._next(waiting))
            with undisturbed():
                self._settle(batch, found, waiting)
                workers.settled()

    def _next(self, waiting: deque[Batch]) -> Batch:
        """The next batch, no more of which runs at once than memory has sufficed for so far. Its trials are
        made here: workers have no part in the plan."""
        first, *rest = waiting.popleft().within(self.most_rows)
        waiting.extendleft(reversed(rest))
        return Batch(tuple(first.trials), first.together)

    def _work(self, backend: Backend, batch: Batch) -> list[Result]:
        return measure(backend, self.tokenizer, self.readouts, batch.trials, batch.together)

    def _settle(self, batch: Batch, found: Found, waiting: deque[Batch]) -> None:
        """Record what a batch gave, or have smaller ones run in its place."""
        if isinstance(found, list):
            self._record(found)
        elif isinstance(found, BackendError) or not isinstance(found, Exception):
            raise found
        elif isinstance(found, OutOfMemory) and batch.together > 1:
            fewer = (batch.together + 1) // 2
            if self.most_rows is None or fewer < self.most_rows:  # else another batch has said so already
                self.most_rows = fewer
                self.watcher.note(f"out of memory with {batch.together} rows; going on with {fewer}")
            waiting.appendleft(batch)
        elif len(batch.trials) > 1:
            waiting.extendleft(reversed(batch.halves()))
        else:
            said = f"{type(found).__name__}: {found}"
            if isinstance(found, OutOfMemory):
                said = f"out of memory with a single row: {found}"
            self.watcher.failed(batch.trials[0], said)
            self._record([blank(batch.trials[0].key, "failed", said)])

    def _record(self, results: list[Result]) -> None:
        with self.backend.clock.during("store"):
            self.record(results)
        self.watcher.advanced(len(results), sum(result["n_new"] for result in results))


def measure(
    backend: Backend,
    tokenizer: Tokenizer,
    readouts: Sequence[Readout],
    trials: Sequence[Trial],
    together: int | None = None,
) -> list[Result]:
    """Generate where a readout reads the text, then measure what ran as asked. together: at most so many
    trials run at once, None for all."""
    decoded: Sequence[Decoded | None] = [None] * len(trials)
    if generates(readouts):
        decoded = backend.decode([trial.row for trial in trials], together=together)
    backend.clock.count("rows", len(trials))
    backend.clock.count("generated", sum(len(_output(text)) for text in decoded))
    scored: list[list[Scored]] = [[] for _ in trials]
    runs = [at for at, outcome in enumerate(decoded) if outcome is None or outcome.invalid is None]
    for each in passes(readouts):
        # A generated text is read without a cache, in forwards that the backend sizes itself.
        size = len(runs) if each.of_output or together is None else together
        for first in range(0, len(runs), max(1, size)):
            part = runs[first : first + size]
            rows = [each.row(trials[at], _output(decoded[at])) for at in part]
            backend.clock.count("scored", sum(len(row.continuation) for row in rows))
            for at, found in zip(part, backend.score(rows, each.probes), strict=True):
                scored[at].append(found)
    with backend.clock.during("score"):
        scorer = Scorer.of(readouts)
        results = []
        for trial, text, measured in zip(trials, decoded, scored, strict=True):
            outcome = outcome_of(text, measured)
            words = tokenizer.decode(outcome.output_ids)
            values = {name: _stored(value) for name, value in outcome.values.items()}
            results.append(result_of(trial, outcome, words, scorer.scores(words, trial.words, values)))
    return results


def _output(decoded: Decoded | None) -> tuple[int, ...]:
    return () if decoded is None else decoded.output_ids


def outcome_of(decoded: Decoded | None, scored: Sequence[Scored]) -> Outcome:
    """A trial's outcome from its generated text and everything measured. Receipts and batch are those of the
    text; without one, those of the first call."""
    values = {name: value for found in scored for name, value in found.values.items()}
    invalid = next((found.invalid for found in scored if found.invalid is not None), None)
    if decoded is None:
        first = scored[0]
        return Outcome(values, first.receipts, first.batch_rows, first.batch_length, invalid)
    return Outcome(
        values,
        decoded.receipts,
        decoded.batch_rows,
        decoded.batch_length,
        decoded.invalid if decoded.invalid is not None else invalid,
        decoded.output_ids,
        decoded.finish,
        decoded.min_margin,
    )


def blank(key: str, status: str, reason: str) -> Result:
    """A trial without an outcome."""
    return {
        "key": key,
        "status": status,
        "reason": reason,
        "output_ids": [],
        "text": "",
        "n_new": 0,
        "finish": None,
        "scores": {},
        "receipts": [],
        "origin": None,
        "batch_rows": None,
        "batch_length": None,
        "min_margin": None,
    }


def result_of(trial: Trial, outcome: Outcome, text: str, scores: Scores) -> Result:
    """A finished trial as it is stored: receipts in the canonical order of its writes, without their names.
    Of a trial that is invalid nothing measured is kept."""
    order = receipt_order(trial.row.writes)
    return {
        "key": trial.key,
        "status": "ok" if outcome.invalid is None else "invalid",
        "reason": outcome.invalid,
        "output_ids": list(outcome.output_ids),
        "text": text,
        "n_new": len(outcome.output_ids),
        "finish": outcome.finish,
        "scores": dict(scores) if outcome.invalid is None else {},
        "receipts": [as_stored(outcome.receipts[name]) for name in order] if outcome.receipts else [],
        "origin": None,
        "batch_rows": outcome.batch_rows,
        "batch_length": outcome.batch_length,
        "min_margin": finite(outcome.min_margin),
    }


def as_stored(receipt: Receipt) -> dict[str, float | int | None]:
    return {
        "positions_prefill": receipt.positions_prefill,
        "positions_decode": receipt.positions_decode,
        "relative_change": finite(receipt.relative_change),
        "asked_prefill": receipt.asked_prefill,
        "asked_decode": receipt.asked_decode,
        "positions_shadowed": receipt.shadowed,
        "decode_shadowed": receipt.decode_shadowed,
        "keys_ahead": receipt.keys_ahead,
        "logit_change": finite(receipt.logit_change),
    }


def finite(value: Measured) -> float | None:
    """None for what JSON cannot hold."""
    return value if isinstance(value, float | int) and math.isfinite(value) else None


def _stored(value: Measured) -> float | list[float | None] | None:
    return [finite(each) for each in value] if isinstance(value, tuple) else finite(value)
