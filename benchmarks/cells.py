"""A grid of back-patching against one forward per cell: `python -m benchmarks.cells [--quick|--tiny]
[--results FILE]`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.machine import Machine, cores
from benchmarks.made_models import TINY, make_random, overrides, plain_model
from benchmarks.ours import Experiment, write_experiment
from benchmarks.results_file import Goal, Section, number, table
from benchmarks.rounds import Rounds, Way, best_threads, interleaved
from benchmarks.sizes import Size, run
from runner.execute import Executor, Result
from runner.model_source import load_backend, model_source
from runner.plan import Trial
from runner.prepare import Prepared

WANTED = 20.0
CELL, WHOLE, CALL = "one forward per cell", "plan to trials.parquet", "the cells alone"
NEAR_TIE = 1e-4  # probabilities so close may be ranked the other way round
_GRID = """
defaults:
  - _self_
  - override /prompts: two_hop
experiment: {name: cells, n: 40}
conditions:
  cells:
    grid: {state.from_layer: all, state.layers: all, only: state.from_layer > state.layers}
    state: {site: resid_post, value: self, positions: "index:-1"}
readouts: [top]
contrasts: {family: none, primary: top.ids}
report: false
quiet: true
"""


@dataclass(frozen=True)
class Cell:
    """The state that a cell takes, where it writes it, and its prompt."""

    ids: tuple[int, ...]
    source: int
    target: int

    @staticmethod
    def of(trial: Trial) -> Cell:
        (write,) = trial.row.writes
        assert write.value.layer is not None and len(write.layers) == 1
        return Cell(trial.row.ids, write.value.layer, write.layers[0])


@dataclass(frozen=True)
class Compared:
    """A grid in all three ways. same: cells with the same likeliest token, of how many."""

    rounds: Rounds
    cells: int
    items: int
    same: int


def measure(size: Size) -> Section:
    """The grid in rounds."""
    machine = Machine.measured(size.pick(1536, 1536, 128))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = overrides(make_random(folder / "made", TINY)) if size.name == "tiny" else []
        found = compare(folder, size.pick(40, 20, 2), size.pick(5, 3, 1), words)
    rounds = found.rounds
    goals = (Goal("all cells, without plan and table", rounds.ratio(CELL, CALL), WANTED),)
    lines = [
        (name, number(rounds.median(name)), f"{found.cells / rounds.median(name):,.0f}")
        for name in (CELL, WHOLE, CALL)
    ]
    how = (
        f"{found.cells:,} cells: every source layer above every target layer of the organism, the last "
        f"token of {found.items} two-hop questions. By hand each question is run once for its states, and "
        f"then once for each cell with one hook. The likeliest next token is the same in {found.same:,} "
        "cells, and so is its probability to 1e-4."
    )
    limits: tuple[str, ...] = ()
    if not all(goal.met for goal in goals):
        limits = (
            "What is left for a cell is the last token's blocks from the target layer up (and the "
            "unembedding, over which the five likeliest are looked for); from the plan to the table come "
            "its key, its record and its row, which are the same work for a cell as for a trial that "
            "generates a text.",
        )
    return Section(
        "cells",
        "Back-patching over all cells",
        "python -m benchmarks.cells",
        machine.words(),
        goals,
        (how, table(("way", "seconds", "cells/s"), lines)),
        limits,
    )


def compare(folder: Path, items: int, rounds: int, words: Sequence[str] = ()) -> Compared:
    """Time the grid in all ways and hold predictions against each other. Raises AssertionError where they
    differ."""
    config = write_experiment(folder / "conf", "cells", _GRID)
    ours = Experiment(["+experiment=cells", f"experiment.n={items}", *words], config, folder)
    prepared = ours.prepare()
    trials = ours.trials(prepared)
    cells = [Cell.of(trial) for trial in trials]
    script = _Script(plain_model(model_source(prepared.design)))
    threads = best_threads(lambda: script.run(cells[: len(cells) // 4]), range(1, cores() + 1))
    predicted: list[torch.Tensor] = []

    def by_hand() -> None:
        predicted[:] = script.run(cells)

    alone = _Alone(prepared, trials)
    ways = {CELL: Way(by_hand, threads), WHOLE: Way(ours), CALL: Way(alone, before=alone.prepare)}
    ours()  # once, before
    timings = interleaved(ways, rounds, warm=False)
    seconds = {**timings.seconds, WHOLE: tuple(each.seconds for each in ours.runs[1:])}
    same = _same(ours.runs[-1].trials, trials, predicted)
    return Compared(Rounds(seconds), len(cells), len({trial.item for trial in trials}), same)


@dataclass(frozen=True)
class _Script:
    """One forward per cell: the state of a later layer at the last token, written at an earlier one."""

    model: Any

    @torch.inference_mode()
    def run(self, cells: Sequence[Cell]) -> list[torch.Tensor]:
        """Probabilities of the next token, one cell after the other. States are kept while the prompt
        stays."""
        found = []
        states: dict[tuple[int, ...], tuple[torch.Tensor, ...]] = {}
        for cell in cells:
            if cell.ids not in states:
                states[cell.ids] = self._states(cell.ids)
            found.append(self._patched(cell, states[cell.ids][cell.source]))
        return found

    def _states(self, ids: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
        seen: list[torch.Tensor] = []
        handles = [
            layer.register_forward_hook(lambda _, __, output: seen.append(_hidden(output)[0, -1].clone()))
            for layer in self.model.model.layers
        ]
        self.model(torch.tensor([ids]), use_cache=False)
        for handle in handles:
            handle.remove()
        return tuple(seen)

    def _patched(self, cell: Cell, state: torch.Tensor) -> torch.Tensor:
        def hook(module: Any, inputs: Any, output: Any) -> Any:
            _hidden(output)[0, -1] = state
            return output

        handle = self.model.model.layers[cell.target].register_forward_hook(hook)
        logits: torch.Tensor = self.model(torch.tensor([cell.ids]), use_cache=False).logits[0, -1]
        handle.remove()
        return logits.softmax(-1)


def _hidden(output: Any) -> torch.Tensor:
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


class _Alone:
    """The trials through the runner's executor, with nothing before and nothing stored."""

    def __init__(self, prepared: Prepared, trials: Sequence[Trial]) -> None:
        self._prepared, self._trials = prepared, trials
        self.prepare()

    def prepare(self) -> None:
        """A backend that has captured nothing yet, on the same weights. What it measures of the model's
        memory, once, is not the grid's."""
        self._backend = load_backend(model_source(self._prepared.design), self._prepared.design)
        assert self._backend.footprint.budget > 0

    def __call__(self) -> None:
        Executor(
            self._backend,
            self._prepared.tokenizer,
            self._prepared.design.measured,
            _drop,
            _Silent(),
            self._prepared.design.backend.max_rows,
        ).run(self._trials)


def _drop(results: Iterable[Result]) -> None:
    """Stores nothing."""


class _Silent:
    """Is told of progress, and says nothing."""

    def advanced(self, trials: int, tokens: int) -> None: ...
    def failed(self, trial: Trial, error: str) -> None:
        raise AssertionError(error)

    def note(self, sentence: str) -> None: ...


def _same(stored: pd.DataFrame, trials: Sequence[Trial], predicted: Sequence[torch.Tensor]) -> int:
    by_key = {row["key"]: row for row in stored.to_dict("records")}
    same = 0
    for trial, probabilities in zip(trials, predicted, strict=True):
        row = by_key[trial.key]
        best, second = probabilities.topk(2).values.tolist()
        equal = int(row["top.ids"][0]) == int(probabilities.argmax())
        assert equal or best - second < NEAR_TIE, "predictions differ from the script's"
        assert abs(row["top.probs"][0] - best) < NEAR_TIE
        same += equal
    return same


def main(words: Sequence[str]) -> int:
    """Measure and keep."""
    return run(measure, "cells", words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
