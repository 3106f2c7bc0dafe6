"""Writes in decode against nnsight, where it is installed: `python -m benchmarks.oracle [--quick|--tiny]
[--results FILE]`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from backends.contract import Device, ModelSource
from backends.positions import Positions
from backends.rows import Decoded, Row, Sampling
from backends.torch.backend import TorchBackend
from backends.writes import Value, Write
from benchmarks.machine import Machine, cores
from benchmarks.made_models import NARROW, TINY, make_random, plain_model, prompts
from benchmarks.padded import Padded
from benchmarks.results_file import NOT_MEASURED, Goal, Section, number, table
from benchmarks.rounds import Way, best_threads, interleaved
from benchmarks.sizes import Size, run

ROWS, WINDOW = 16, 16
NEAR_TIE = 1e-3
INSTALL = "pip install -c constraints.txt -e '.[oracle]', in an environment of its own"


def measure(size: Size) -> Section:
    """A v_proj write in every decode step, at one layer and at all."""
    machine = Machine.measured(size.pick(1536, 1536, 128))
    title, command = "Against nnsight", "python -m benchmarks.oracle"
    if find_spec("nnsight") is None:
        goals = (Goal("v_proj in every decode step", None, 1.0),)
        said = f"{NOT_MEASURED}: nnsight is not installed here ({INSTALL})."
        return Section("oracle", title, command, machine.words(), goals, (said,))
    goals_found, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        shape = TINY if size.name == "tiny" else NARROW["random 8 x 128"]
        source = make_random(Path(folder) / "made", shape)
        for name, layers in {
            "one layer": (shape.layers // 2,),
            "all layers": tuple(range(shape.layers)),
        }.items():
            theirs, ours, gain, same = compare(source, layers, size)
            rows.append((name, f"{theirs:,.0f}", f"{ours:,.0f}", f"{number(gain)} x", f"{same} of {ROWS}"))
            goals_found.append(Goal(f"v_proj in every decode step, {name}", gain, 1.0))
    head = ("write", "nnsight, new tokens/s", "patchbay, new tokens/s", "gain", "same rows")
    how = (
        f"nnsight {version('nnsight')}, a random model of {shape.layers} layers and width {shape.width}, "
        f"{ROWS} prompts padded on the left, greedy. The donors' v_proj rows were captured before; ours "
        "counts and measures each write, nnsight's does not."
    )
    return Section("oracle", title, command, machine.words(), tuple(goals_found), (how, table(head, rows)))


def compare(source: ModelSource, layers: tuple[int, ...], size: Size) -> tuple[float, float, float, int]:
    """New tokens per second of nnsight and of ours, ours over theirs, and rows with the same tokens. Raises
    AssertionError where tokens differ but at a near-tie."""
    tokens = size.pick(64, 32, 4)
    backend = TorchBackend(source, Device("cpu", "float32", threads=1))
    window = Positions.parse(f"last:{WINDOW}")
    value = Value("source", "donor")
    write = Write("v", "v_proj", layers, "replace", value, window, "decode", hold="cycle")
    pairs = zip(prompts(ROWS), prompts(ROWS, 17, 24, seed=1), strict=True)
    rows = [Row(ids, Sampling(0.0, tokens), (write,), {"donor": donor}) for ids, donor in pairs]
    theirs = _Theirs(plain_model(source), rows, layers)
    ours = _Ours(backend, rows)
    ours()
    choices = range(1, cores() + 1)
    ways = {
        "theirs": Way(theirs, best_threads(theirs, choices)),
        "ours": Way(ours, best_threads(ours, choices)),
    }
    found = interleaved(ways, size.pick(5, 3, 1), warm=False)
    same = 0
    for decoded, told in zip(ours.decoded, theirs.tokens.tolist(), strict=True):
        equal = list(decoded.output_ids) == told
        assert equal or decoded.min_margin < NEAR_TIE, "greedy tokens differ from nnsight's"
        same += equal
    total = ROWS * tokens
    return total / found.median("theirs"), total / found.median("ours"), found.ratio("theirs", "ours"), same


class _Ours:
    def __init__(self, backend: TorchBackend, rows: Sequence[Row]) -> None:
        self._backend, self._rows = backend, rows
        self.decoded: list[Decoded] = []

    def __call__(self) -> None:
        self.decoded = self._backend.decode(self._rows)


class _Theirs:
    """transformers' generate under nnsight, the donors' rows written step by step."""

    def __init__(self, model: Any, rows: Sequence[Row], layers: tuple[int, ...]) -> None:
        import nnsight  # type: ignore[import-not-found,unused-ignore]

        self._model = nnsight.NNsight(model)
        self._padded = Padded.of([row.ids for row in rows])
        self._steps = rows[0].sampling.max_new_tokens
        self._windows = {layer: self._captured(rows, layer) for layer in layers}
        self.tokens = torch.empty(0)

    def _captured(self, rows: Sequence[Row], layer: int) -> torch.Tensor:
        """The donors' last rows at a layer, [rows, WINDOW, width]."""
        donors = Padded.of([row.sources["donor"] for row in rows])
        with (
            torch.no_grad(),
            self._model.trace(
                input_ids=donors.ids, attention_mask=donors.mask, position_ids=donors.positions
            ),
        ):
            found = self._model.model.layers[layer].self_attn.v_proj.output[:, -WINDOW:].clone().save()
        windows: torch.Tensor = found.detach()
        return windows

    def __call__(self) -> None:
        with (
            torch.no_grad(),
            self._model.trace(
                fn=self._model._module.generate,
                input_ids=self._padded.ids,
                attention_mask=self._padded.mask,
                max_new_tokens=self._steps,
                do_sample=False,
                pad_token_id=0,
            ) as tracer,
        ):
            for step in tracer.iter[0 : self._steps]:
                if step > 0:
                    for layer, window in self._windows.items():
                        place = self._model.model.layers[layer].self_attn.v_proj
                        place.output[:, -1] = window[:, (step - 1) % WINDOW]
            out = tracer.result.save()
        self.tokens = out[:, self._padded.ids.shape[1] :]


def main(words: Sequence[str]) -> int:
    """Measure and keep."""
    return run(measure, "oracle", words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
