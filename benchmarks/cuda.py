"""Large shapes on a GPU: `python -m benchmarks.cuda [--quick|--tiny] [--results FILE] [bandwidth=4.3e12]
[flops=790e12]`. --tiny runs all of it on a small model, on the CPU where there is no GPU."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from backends.contract import Device, ModelSource
from backends.rows import Row, Sampling
from backends.torch.backend import TorchBackend
from backends.torch.generate import Stepping
from benchmarks.arithmetic import forward
from benchmarks.decode import KV_ARMS
from benchmarks.machine import Machine
from benchmarks.made_models import Shape, overrides, prompts
from benchmarks.ours import Experiment, arms, write_experiment
from benchmarks.random_weights import MODELS, Large, random_weights, write_folder
from benchmarks.results_file import NOT_MEASURED, Goal, Section, number, table
from benchmarks.rounds import Way, interleaved
from benchmarks.sizes import Size, run
from runner.config.folders import conf_dir

SECONDS, SHARE = 30.0, 0.6
EAGER: Stepping = "eager"
BATCHES = (1, 64, 256, 512)
PROMPT = 32


@dataclass(frozen=True)
class Roof:
    """What the device can do at most: bytes read per second, and operations per second of bfloat16."""

    bandwidth: float = 4.3e12
    flops: float = 790e12

    def step(self, shape: Shape, rows: int, past: int, size: int) -> float:
        """The least seconds of a decode step: weights and caches read once, or its operations.

        rows: that decode together, each with `past` tokens behind it; size: bytes of a number.
        """
        weights = sum(a * b for a, b in shape.all_products())
        cached = 2 * shape.layers * shape.kv_heads * shape.head_width * past * rows
        return max((weights + cached) * size / self.bandwidth, rows * forward(shape, 1, past) / self.flops)


@dataclass(frozen=True)
class Found:
    """A model on the device. whole: seconds of six arms; steps: per batch and way of stepping, seconds of
    a step and of the roof."""

    name: str
    whole: float
    trials: int
    tokens: int
    phases: str
    steps: dict[tuple[int, Stepping], tuple[float, float]]


def measure(roof: Roof, size: Size) -> Section:
    """Both shapes; without a GPU, and but for --tiny, only that there is none."""
    command = "python -m benchmarks.cuda"
    title = "Large shapes on a GPU"
    if not torch.cuda.is_available() and size.name != "tiny":
        goals = [
            goal
            for large in MODELS
            for goal in (_whole(large.name, None), _share(f"{large.name}, 256 rows", None))
        ]
        said = f"{NOT_MEASURED}: torch {torch.__version__} sees no CUDA device here. The command is above."
        return Section("cuda", title, command, Machine.measured().words(), tuple(goals), (said,))
    found = [_one(large if size.name != "tiny" else large.tiny(), roof, size) for large in MODELS]
    goals = [_whole(each.name, each.whole) for each in found]
    goals += [
        _share(f"{each.name}, {rows} rows", least / step)
        for each in found
        for (rows, how), (step, least) in each.steps.items()
        if rows in (1, 256) and how != EAGER
    ]
    rows = [
        (f"{each.name}, {count} rows, {how}", number(step * 1e3), number(least * 1e3), f"{least / step:.0%}")
        for each in found
        for (count, how), (step, least) in each.steps.items()
    ]
    parts = [
        f"Random weights of the published shapes. The roof of a step is max(bytes / {roof.bandwidth:.3g} "
        f"B/s, operations / {roof.flops:.3g} per s).",
        table(("decode step, greedy", "milliseconds", "roof", "share of the roof"), rows),
        *(
            f"{each.name}: {each.trials:,} trials of n300_kv_only with {each.tokens:,} new tokens (no text "
            f"ends by itself) in {number(each.whole)} s after load. Seconds by phase: {each.phases}."
            for each in found
        ),
    ]
    return Section("cuda", title, command, _device(), tuple(goals), tuple(parts))


def _whole(name: str, seconds: float | None) -> Goal:
    return Goal(f"{name}, n300 and six arms, after load", seconds, SECONDS, "s", most=True)


def _share(name: str, share: float | None) -> Goal:
    return Goal(f"{name}, share of the roof", share, SHARE, "")


def _device() -> str:
    if not torch.cuda.is_available():
        return Machine.measured(128).words()
    told = torch.cuda.get_device_properties(0)
    return f"{told.name}, {told.total_memory / 2**30:.0f} GiB, torch {torch.__version__}"


def _one(large: Large, roof: Roof, size: Size) -> Found:
    with tempfile.TemporaryDirectory() as name, random_weights():
        folder = Path(name)
        source = write_folder(folder / "model", large, _texts())
        whole, trials, tokens, phases = _experiment(large, source, folder, size)
        on_gpu = torch.cuda.is_available()
        device = Device("cuda" if on_gpu else "cpu", "bfloat16" if on_gpu else "float32")
        fixed: Stepping = "graph" if on_gpu else "fixed"
        backends = {how: TorchBackend(source, device, how) for how in (fixed, EAGER)}
        steps = {
            (rows, how): _step(backend, large.shape, roof, rows, size)
            for how, backend in backends.items()
            for rows in _batches(size)
        }
    return Found(large.name, whole, trials, tokens, phases, steps)


def _batches(size: Size) -> Sequence[int]:
    return BATCHES if size.name == "full" else (1, size.pick(0, 64, 2))


def _texts() -> list[str]:
    """The program's English prompts."""
    banks = sorted((conf_dir() / "prompts" / "banks" / "english").glob("*.jsonl"))
    return [line for bank in banks for line in bank.read_text(encoding="utf-8").splitlines()]


def _experiment(large: Large, source: ModelSource, folder: Path, size: Size) -> tuple[float, int, int, str]:
    """Seconds, trials, new tokens and phases of six arms, of the second run: the first one loads, and
    captures what is captured once."""
    config = write_experiment(folder / "conf", "kv_arms", arms("kv_arms", KV_ARMS))
    words = [
        "+experiment=kv_arms",
        f"experiment.n={size.pick(300, 60, 2)}",
        f"sampling.max_new_tokens={size.pick(150, 150, 4)}",
        f"model={large.yaml}",
        "model.chat_template=false",
        f"model.vocabulary={large.shape.vocabulary}",
        *([] if torch.cuda.is_available() else ["model.dtype=float32"]),
        *overrides(source),
    ]
    ours = Experiment(words, config, folder)
    for _ in range(1 if size.name == "tiny" else 2):
        ours()
    last = ours.runs[-1]
    phases = ", ".join(f"{phase} {number(seconds)}" for phase, seconds in last.times.items())
    assert (last.trials["status"] == "ok").all()
    return last.seconds, len(last.trials), int(last.trials["n_new"].sum()), phases


def _step(backend: TorchBackend, shape: Shape, roof: Roof, count: int, size: Size) -> tuple[float, float]:
    """Seconds of a decode step, from decodes of two lengths, and the least that the roof allows at the mean
    length between."""
    short, long = size.pick(32, 32, 2), size.pick(160, 96, 4)
    ids = prompts(count, PROMPT, PROMPT)

    def decode(new: int) -> None:
        backend.decode([Row(each, Sampling(0.0, new)) for each in ids])
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    ways = {"short": Way(partial(decode, short)), "long": Way(partial(decode, long))}
    found = interleaved(ways, size.pick(3, 2, 1))
    step = (found.median("long") - found.median("short")) / (long - short)
    numbers = 2 if torch.cuda.is_available() else 4
    return step, roof.step(shape, count, PROMPT + (short + long) // 2, numbers)


def main(words: Sequence[str]) -> int:
    """Measure and keep. Returns 2 for words that are none."""
    given = {"bandwidth": Roof.bandwidth, "flops": Roof.flops}
    rest = []
    for word in words:
        name, _, value = word.partition("=")
        try:
            given[{"bandwidth": "bandwidth", "flops": "flops"}[name]] = float(value)
        except (KeyError, ValueError):
            rest.append(word)
    return run(partial(measure, Roof(**given)), "cuda", rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
