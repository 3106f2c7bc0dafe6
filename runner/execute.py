"""Running trials batch by batch: halving on out-of-memory, isolating what fails, recording as results
arrive."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from backends.contract import Backend, BackendError, OutOfMemory
from backends.measures import Measured, Probe, Scored, ScoreRow
from backends.rows import Decoded, Finish, Receipt
from backends.tokenizer import Tokenizer
from backends.writes import Constant
from runner.config.readouts.readout import Readout
from runner.keys import receipt_order
from runner.plan import Trial
from runner.schedule import batches
from runner.scores.scoring import Scorer, Scores

Result = dict[str, Any]


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
    """Runs trials on a backend. record: called with the results of each finished batch, before the next
    begins."""

    backend: Backend
    tokenizer: Tokenizer
    readouts: Sequence[Readout]
    record: Callable[[Iterable[Result]], None]
    watcher: Watcher
    most_rows: int | None = None
    times: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "score": 0.0, "store": 0.0})

    def run(self, trials: Sequence[Trial]) -> None:
        """Run all trials. A trial that raises ends as `failed` and the others go on; BackendError and
        KeyboardInterrupt end the run, whatever has finished being recorded. Weights that a condition changes
        are changed once for all of its batches."""
        queue = [list(batch) for batch in batches(trials, self.backend.footprint, self.most_rows)]
        queue.reverse()
        with ExitStack() as changed:
            self._run(queue, _Weights(self.backend, changed))

    def _run(self, queue: list[list[Trial]], weights: _Weights) -> None:
        while queue:
            batch = queue.pop()
            if self.most_rows is not None and len(batch) > self.most_rows:
                queue += [batch[self.most_rows :], batch[: self.most_rows]]
                continue
            try:
                weights.change(batch[0].row.weights)
                results = self._batch(batch)
            except BackendError:
                raise
            except OutOfMemory as error:
                if len(batch) > 1:
                    self.most_rows = (len(batch) + 1) // 2  # remembered: later batches start at this size
                    self.watcher.note(f"out of memory with {len(batch)} rows; going on with {self.most_rows}")
                    queue.append(batch)
                    continue
                results = [self._failure(batch[0], f"out of memory with a single row: {error}")]
            except Exception as error:
                if len(batch) > 1:
                    half = len(batch) // 2
                    queue += [batch[half:], batch[:half]]
                    continue
                results = [self._failure(batch[0], f"{type(error).__name__}: {error}")]
            started = time.perf_counter()
            self.record(results)
            self.times["store"] += time.perf_counter() - started
            self.watcher.advanced(len(batch), sum(result["n_new"] for result in results))

    def _failure(self, trial: Trial, error: str) -> Result:
        self.watcher.failed(trial, error)
        return blank(trial.key, "failed", error)

    def _batch(self, batch: Sequence[Trial]) -> list[Result]:
        return measure(self.backend, self.tokenizer, self.readouts, batch, self.times)


def measure(
    backend: Backend,
    tokenizer: Tokenizer,
    readouts: Sequence[Readout],
    batch: Sequence[Trial],
    times: dict[str, float],
) -> list[Result]:
    """Generate for a batch where a readout reads the text, then measure what ran as asked. times: takes up
    the seconds of `decode` and `score`."""
    started = time.perf_counter()
    decoded: Sequence[Decoded | None] = [None] * len(batch)
    if any(readout.of_output for readout in readouts):
        decoded = backend.decode([trial.row for trial in batch])
    middle = time.perf_counter()
    times["decode"] += middle - started
    scored: list[list[Scored]] = [[] for _ in batch]
    runs = [at for at, outcome in enumerate(decoded) if outcome is None or outcome.invalid is None]
    for each in passes(readouts):
        rows = [each.row(batch[at], _output(decoded[at])) for at in runs]
        for at, found in zip(runs, backend.score(rows, each.probes) if rows else (), strict=True):
            scored[at].append(found)
    scorer = Scorer.of(readouts)
    results = []
    for trial, text, measured in zip(batch, decoded, scored, strict=True):
        outcome = outcome_of(text, measured)
        words = tokenizer.decode(outcome.output_ids)
        values = {name: _stored(value) for name, value in outcome.values.items()}
        results.append(result_of(trial, outcome, words, scorer.scores(words, trial.words, values)))
    times["score"] += time.perf_counter() - middle
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
