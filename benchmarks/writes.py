"""Decode with writes at all layers against decode without: `python -m benchmarks.writes [--quick|--tiny]
[--results FILE]`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from backends.contract import Device, ModelSource
from backends.positions import Positions
from backends.rows import Row, Sampling
from backends.torch.backend import TorchBackend
from backends.writes import Constant, Value, Write
from benchmarks.machine import Machine
from benchmarks.made_models import TINY, make_random, organism_without_end, prompts
from benchmarks.results_file import Goal, Section, number, table
from benchmarks.rounds import Rounds, Way, interleaved
from benchmarks.sizes import Size, run

WANTED = 0.95
CPU = Device("cpu", "float32")
CLEAN, VALUES, STEERED, BOTH = "no writes", "v_proj, all layers", "resid_post, all layers", "both"


def measure(size: Size) -> Section:
    """Batches of rows with equal prompts and lengths, with writes and without."""
    machine = Machine.measured(size.pick(1536, 1536, 128))
    rounds, tokens = size.pick(5, 3, 1), size.pick(32, 32, 4)
    rows, goals = [], []
    with tempfile.TemporaryDirectory() as folder:
        source = make_random(Path(folder) / "made", TINY)
        if size.name != "tiny":
            source = organism_without_end(Path(folder) / "organism")
        backend = TorchBackend(source, CPU)
        for count in [64, 256] if size.name == "full" else [size.pick(64, 64, 4)]:
            found = decode_rates(backend, source, count, tokens, rounds, warm=size.name != "tiny")
            for name in (VALUES, STEERED, BOTH):
                share = 1 / found.ratio(name, CLEAN)
                rate = count * tokens / found.median(name)
                rows.append((f"{count} rows: {name}", f"{rate:,.0f}", number(share)))
                if name == VALUES:
                    goals.append(Goal(f"{count} rows, {name}", share, WANTED))
            clean = count * tokens / found.median(CLEAN)
            rows.append((f"{count} rows: {CLEAN}", f"{clean:,.0f}", "1"))
    how = (
        f"The organism without an end of text: {tokens} new tokens a row, sampled. v_proj: the donor's last "
        "16 rows in turn, in every decode step; resid_post: a fixed vector added. Both count every "
        "position and measure its relative change. Sources were captured before."
    )
    return Section(
        "writes",
        "Decode with writes at all layers",
        "python -m benchmarks.writes",
        machine.words(),
        tuple(goals),
        (how, table(("decode", "new tokens/s", "of decode without writes"), rows)),
        _limits(goals),
    )


def _limits(goals: Sequence[Goal]) -> tuple[str, ...]:
    if all(goal.met for goal in goals):
        return ()
    return (
        "A write costs what it reads and writes of its tensor, and the norms of old and new for its "
        "receipt. On a model as narrow as this one that is not little beside a layer's own products; the "
        "wider the model, the less it is.",
    )


def decode_rates(
    backend: TorchBackend, source: ModelSource, count: int, tokens: int, rounds: int, *, warm: bool = True
) -> Rounds:
    """Seconds of decoding rows with each kind of writes, in turn."""
    targets, donors = prompts(count), prompts(count, 17, 24, seed=1)
    rows = {
        name: [
            Row(ids, Sampling(0.8, tokens), writes, {"donor": donor} if writes else {}, stream=stream)
            for stream, (ids, donor) in enumerate(zip(targets, donors, strict=True))
        ]
        for name, writes in kinds(source).items()
    }
    ways = {name: Way(_Decode(backend, each)) for name, each in rows.items()}
    return interleaved(ways, rounds, warm=warm)


class _Decode:
    """Decodes the same rows again and again, and looks that every one has all its tokens."""

    def __init__(self, backend: TorchBackend, rows: Sequence[Row]) -> None:
        self._backend, self._rows = backend, rows

    def __call__(self) -> None:
        decoded = self._backend.decode(self._rows)
        for row, found in zip(self._rows, decoded, strict=True):
            assert len(found.output_ids) == row.sampling.max_new_tokens, found.invalid
            steps = row.sampling.max_new_tokens - 1
            assert all(receipt.positions_decode == steps for receipt in found.receipts.values())


def kinds(source: ModelSource) -> Mapping[str, tuple[Write, ...]]:
    """Writes at all layers in decode, by name."""
    layers = tuple(range(source.layers))
    vector = np.random.default_rng(0).normal(size=source.width).astype(np.float32)
    fixed = Value("constant", constant=Constant("fixed", vector / np.linalg.norm(vector), "a fixed vector"))
    window, none = Positions.parse("last:16"), Positions.parse("all")
    values = Write(
        "v_proj", "v_proj", layers, "replace", Value("source", "donor"), window, "decode", hold="cycle"
    )
    steered = Write("steer", "resid_post", layers, "add", fixed, none, "decode", alpha=0.01)
    return {
        CLEAN: (),
        VALUES: (values,),
        STEERED: (steered,),
        BOTH: (values, replace(steered, order=1)),
    }


def main(words: Sequence[str]) -> int:
    """Measure and keep."""
    return run(measure, "writes", words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
