"""Running trials batch by batch: halving on out-of-memory, isolating what fails, recording as results
arrive."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from backends.contract import Backend, BackendError, OutOfMemory
from backends.measures import Measured, Probe, ScoreRow
from backends.rows import Decoded, Receipt
from backends.tokenizer import Tokenizer
from runner.keys import receipt_order
from runner.plan import Trial
from runner.schedule import batches
from runner.scores.behaviour import behaviour

Result = dict[str, Any]
PERPLEXITY = Probe("perplexity", "perplexity")


class Watcher(Protocol):
    """Who is told of progress."""

    def advanced(self, trials: int, tokens: int) -> None: ...
    def failed(self, trial: Trial, error: str) -> None: ...
    def note(self, sentence: str) -> None: ...


@dataclass
class Executor:
    """Runs trials on a backend. record: called with the results of each finished batch, before the next
    begins."""

    backend: Backend
    tokenizer: Tokenizer
    readouts: Sequence[str]
    record: Callable[[Iterable[Result]], None]
    watcher: Watcher
    most_rows: int | None = None
    times: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "score": 0.0, "store": 0.0})

    def run(self, trials: Sequence[Trial]) -> None:
        """Run all trials. A trial that raises ends as `failed` and the others go on; BackendError and
        KeyboardInterrupt end the run, whatever has finished being recorded."""
        queue = [list(batch) for batch in batches(trials, self.backend.footprint, self.most_rows)]
        queue.reverse()
        while queue:
            batch = queue.pop()
            if self.most_rows is not None and len(batch) > self.most_rows:
                queue += [batch[self.most_rows :], batch[: self.most_rows]]
                continue
            try:
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
        started = time.perf_counter()
        decoded = self.backend.decode([trial.row for trial in batch])
        middle = time.perf_counter()
        self.times["decode"] += middle - started
        perplexities: list[Measured] = [None] * len(batch)
        if "perplexity" in self.readouts:
            rows = [ScoreRow(t.row, d.output_ids) for t, d in zip(batch, decoded, strict=True)]
            perplexities = [s.values["perplexity"] for s in self.backend.score(rows, [PERPLEXITY])]
        results = []
        for trial, outcome, value in zip(batch, decoded, perplexities, strict=True):
            text = self.tokenizer.decode(outcome.output_ids)
            scores = text_scores(text, self.readouts) | (
                {} if value is None else {"perplexity": finite(value)}
            )
            results.append(result_of(trial, outcome, text, scores))
        self.times["score"] += time.perf_counter() - middle
        return results


def text_scores(text: str, readouts: Sequence[str]) -> dict[str, float | int | None]:
    """The scores that need the text alone."""
    if "behaviour" not in readouts:
        return {}
    found = behaviour(text)
    return {"score": found.score, "markers": found.markers, "bonus": found.bonus, "strict": found.strict}


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


def result_of(trial: Trial, outcome: Decoded, text: str, scores: Mapping[str, float | int | None]) -> Result:
    """A finished trial as it is stored: receipts in the canonical order of its writes, without their
    names."""
    order = receipt_order(trial.row.writes)
    return {
        "key": trial.key,
        "status": "ok" if outcome.invalid is None else "invalid",
        "reason": outcome.invalid,
        "output_ids": list(outcome.output_ids),
        "text": text,
        "n_new": len(outcome.output_ids),
        "finish": outcome.finish,
        "scores": dict(scores),
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
