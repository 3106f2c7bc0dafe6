"""Our decode against transformers' own `generate`, neither with writes: `python -m benchmarks.generate
[--quick|--tiny] [--results FILE]`."""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from backends.contract import Backend, Device, ModelSource
from backends.rows import Decoded, Row, Sampling
from backends.torch.backend import TorchBackend
from benchmarks.machine import Machine, cores
from benchmarks.made_models import NARROW, TINY, make_random, organism_without_end, plain_model, prompts
from benchmarks.padded import Padded
from benchmarks.results_file import Goal, Section, number, table
from benchmarks.rounds import Way, interleaved, timed
from benchmarks.sizes import Size, run

GOALS = {1: 1.5, 64: 1.2, 256: 0.95, 512: 0.95}
_WORK = 5e8  # of all rows: layers x width x width x tokens, about a second
NEAR_TIE = 1e-3


@dataclass(frozen=True)
class Cell:
    """One model at one batch size. theirs, ours: new tokens per second; threads, way: the best of each;
    same: rows with equal tokens."""

    model: str
    rows: int
    tokens: int
    theirs: float
    threads: int
    ours: float
    way: str
    ratio: float
    same: int


def measure(size: Size) -> Section:
    """All models at all batch sizes."""
    machine = Machine.measured(size.pick(1536, 1536, 128))
    cells: list[Cell] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, source in _models(size, Path(folder)).items():
            backend = TorchBackend(source, Device("cpu", "float32", threads=1))
            plain = plain_model(source)
            chosen: Cell | None = None
            for rows in [4] if size.name == "tiny" else GOALS:
                tokens = _tokens(size, source, rows)
                rounds = size.pick(7 if rows == 1 else 3, 1, 1)
                same = chosen if rows > 256 else None  # what was best for 256 rows
                cells.append(compare(name, backend, plain, rows, tokens, rounds, same))
                chosen = cells[-1]
    goals = [Goal(f"{c.model}, {c.rows} rows", c.ratio, GOALS.get(c.rows, 0.95)) for c in cells]
    lines = [
        (
            f"{c.model}, {c.rows} rows",
            str(c.tokens),
            f"{c.theirs:,.0f} ({c.threads} threads)",
            f"{c.ours:,.0f} ({c.way})",
            number(c.ratio),
            f"{c.same} of {c.rows}",
        )
        for c in cells
    ]
    head = ("model, batch", "new tokens", "generate, tokens/s", "patchbay, tokens/s", "ratio", "same rows")
    return Section(
        "generate",
        "Decode against transformers' generate",
        "python -m benchmarks.generate",
        machine.words(),
        tuple(goals),
        (_HOW, table(head, lines)),
        _limits(goals),
    )


_HOW = (
    "Greedy, no writes, prompts of 8 to 17 tokens padded on the left, no end of text. Each side with what "
    "is best for it: so many of torch's threads, or, as the runner does it, so many workers with a share "
    "of the rows each. Prompt and receipts are part of the time, since neither can leave its prompt out."
)


def _limits(goals: Sequence[Goal]) -> tuple[str, ...]:
    if all(goal.met for goal in goals):
        return ()
    return (
        "Both run the same products of the same library. A single row waits for the library's calls (a few "
        "microseconds for each of some thirty operations a layer); many rows wait for attention over "
        "caches that no longer fit in the processor's own.",
    )


def _models(size: Size, folder: Path) -> Mapping[str, ModelSource]:
    if size.name == "tiny":
        return {"tiny": make_random(folder / "tiny", TINY)}
    made = {name: make_random(folder / str(n), shape) for n, (name, shape) in enumerate(NARROW.items())}
    return {"organism": organism_without_end(folder / "organism"), **made}


def _tokens(size: Size, source: ModelSource, rows: int) -> int:
    """New tokens a row: fewer where they take longer."""
    fewest, most = size.pick(16, 8, 4), size.pick(48, 24, 4)
    return min(most, max(fewest, int(_WORK / (source.layers * source.width**2 * rows))))


def compare(
    name: str,
    backend: Backend,
    plain: Any,
    count: int,
    tokens: int,
    rounds: int,
    as_in: Cell | None = None,
) -> Cell:
    """Time both in turn on the same rows, each as is best for it, or as was best in another cell. Raises
    AssertionError where greedy tokens differ but at a near-tie."""
    rows = [Row(ids, Sampling(0.0, tokens)) for ids in prompts(count)]
    theirs = _Generate(plain, rows)
    ours: dict[str, Way] = {}
    for threads in range(1, cores() + 1):
        ours[f"{threads} threads"] = Way(_Decode([backend], rows), threads)
    beside = getattr(backend, "beside", None)
    if beside is not None and cores() > 1 and count >= cores():
        helpers = [backend, *(beside() for _ in range(cores() - 1))]
        ours[f"{cores()} workers"] = Way(_Decode(helpers, rows), 1)
    choices = {f"{threads} threads": Way(theirs, threads) for threads in range(1, cores() + 1)}
    if as_in is None:
        way, other = _best(ours), _best(choices)
    else:
        way, other = as_in.way, f"{as_in.threads} threads"
    found = interleaved({"theirs": choices[other], "ours": ours[way]}, rounds, warm=False)
    done = ours[way].work
    assert isinstance(done, _Decode)
    same = _same(done.decoded, theirs.tokens)
    rate = count * tokens
    return Cell(
        name,
        count,
        tokens,
        rate / found.median("theirs"),
        int(other.split()[0]),
        rate / found.median("ours"),
        way,
        found.ratio("theirs", "ours"),
        same,
    )


def _best(ways: Mapping[str, Way]) -> str:
    """The way that takes least, once each has been done."""
    if len(ways) == 1:
        return next(iter(ways))
    for way in ways.values():
        timed(way)
    return min(ways, key=lambda name: timed(ways[name]).seconds)


def _same(ours: Sequence[Decoded], theirs: torch.Tensor) -> int:
    same = 0
    for found, tokens in zip(ours, theirs.tolist(), strict=True):
        equal = list(found.output_ids) == tokens
        assert equal or found.min_margin < NEAR_TIE, "greedy tokens differ from those of generate"
        same += equal
    return same


class _Generate:
    """transformers' generate on a left-padded batch."""

    def __init__(self, model: Any, rows: Sequence[Row]) -> None:
        new = rows[0].sampling.max_new_tokens
        self._model, self._padded = model, Padded.of([row.ids for row in rows])
        self._config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, max_new_tokens=new, min_new_tokens=new, pad_token_id=0, eos_token_id=None
        )
        self.tokens = torch.empty(0)

    @torch.inference_mode()
    def __call__(self) -> None:
        out = self._model.generate(
            self._padded.ids, attention_mask=self._padded.mask, generation_config=self._config
        )
        self.tokens = out[:, self._padded.ids.shape[1] :]


class _Decode:
    """Our decode: rows shared out evenly over backends on the same weights, each in a thread of its own."""

    def __init__(self, backends: Sequence[Backend], rows: Sequence[Row]) -> None:
        self._backends, self._rows = backends, rows
        self.decoded: list[Decoded] = []

    def __call__(self) -> None:
        if len(self._backends) == 1:
            self.decoded = self._backends[0].decode(self._rows)
            return
        share = -(-len(self._rows) // len(self._backends))
        found: dict[int, list[Decoded]] = {}

        def work(place: int, backend: Backend) -> None:
            torch.set_num_threads(1)
            found[place] = backend.decode(self._rows[place * share : (place + 1) * share])

        workers = [threading.Thread(target=work, args=each) for each in enumerate(self._backends)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self.decoded = [each for place in sorted(found) for each in found[place]]


def main(words: Sequence[str]) -> int:
    """Measure and keep."""
    return run(measure, "generate", words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
