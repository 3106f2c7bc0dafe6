"""The memory and the time of a run of very many tiny trials: `python -m benchmarks.many_trials
[small=4000] [large=400000] [by=items|repeats|cells] [report=false] [code=FOLDER]`."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

SHAPES = ("items", "repeats", "cells")
CELLS = 40  # conditions, unless it is these that there are more of
ITEMS = 100  # the same of items
LAYERS = 2
VOCABULARY = 934  # of the organism's tokenizer, whose prompts these are
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}


@dataclass(frozen=True)
class Measured:
    """One run as a whole process. peak: most resident memory, in MB; seconds: by the clock; phases: seconds
    by what took them, as `profile=true` records them."""

    trials: int
    status: int
    peak: float
    seconds: float
    phases: dict[str, float]
    stored: float


@dataclass(frozen=True)
class Options:
    """What the command line says. code: the checkout whose runner is measured."""

    small: int = 4_000
    large: int = 400_000
    by: str = "items"
    report: bool = False
    code: Path = Path(__file__).resolve().parents[1]


def main(words: Sequence[str]) -> int:
    """Run both sizes, each in a process of its own, and print a Markdown table."""
    try:
        options = _options(words)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_model(root / "model")
        found = [measure(root, options, size) for size in (options.small, options.large)]
    print(_machine())
    print(f"\nmore {options.by}, report={str(options.report).lower()}\n")
    names = list(dict.fromkeys(name for each in found for name in each.phases))
    print(f"| trials | status | peak MB | results MB | seconds | {' | '.join(names)} |")
    print(f"|---:|---:|---:|---:|---:|{'---:|' * len(names)}")
    for each in found:
        phases = " | ".join(f"{each.phases.get(name, 0.0):.1f}" for name in names)
        print(
            f"| {each.trials:,} | {each.status} | {each.peak:.0f} | {each.stored:.1f} | {each.seconds:.1f} | "
            f"{phases} |"
        )
    less, more = found
    further = (more.peak - less.peak) * 1e6 / (more.trials - less.trials)
    print(f"\n- peak memory: {more.peak / less.peak:.2f}x, {further:.0f} bytes for each further trial")
    return max(each.status for each in found)


def make_model(folder: Path) -> None:
    """A random model of two layers and width 16 with the organism's tokenizer, as a local folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from organisms import weights_dir

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**_SHAPE)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((weights_dir() / name).read_bytes())


def experiment(trials: int, by: str) -> dict[str, object]:
    """An experiment of about so many trials, of which there are more by one dimension: items, repeats or
    cells of a grid. Each asks for one next-token probability under one random write."""
    cells = trials // ITEMS if by == "cells" else CELLS
    items = trials // CELLS if by == "items" else ITEMS
    repeats = trials // (CELLS * ITEMS) if by == "repeats" else 1
    alphas = [round(0.01 * (1 + place), 2) for place in range(max(1, (cells - 1) // LAYERS))]
    return {
        "experiment": {"name": "many", "n": items, "repeats": repeats},
        "conditions": {
            "baseline": {},
            "noise": {
                "grid": {"noise.layers": "all", "noise.alpha": alphas},
                "noise": {"site": "resid_post", "op": "add", "value": "random", "positions": "last:1"},
            },
        },
        "readout": {"p": {"kind": "next_token", "tokens": ["the"]}},
        "readouts": ["p"],
        "contrasts": {"family": "each_against_baseline", "primary": "p"},
    }


def write_experiment(folder: Path, body: dict[str, object]) -> Path:
    """Put an experiment into a folder of configuration, as `many`. Returns the folder."""
    (folder / "experiment").mkdir(parents=True)
    text = yaml.safe_dump(body, sort_keys=False)
    (folder / "experiment" / "many.yaml").write_text(f"# @package _global_\n{text}", encoding="utf-8")
    return folder


def measure(root: Path, options: Options, trials: int) -> Measured:
    """One run of about so many trials. Raises RuntimeError where it ends in the middle."""
    folder = root / f"{trials}"
    write_experiment(folder / "conf", experiment(trials, options.by))
    settings = [f"report={str(options.report).lower()}", "profile=true", "quiet=true", "allow_inert=true"]
    command = [
        sys.executable, "-m", "runner", "--config-dir", str(folder / "conf"), "+experiment=many",
        f"model.path={root / 'model'}", f"output_root={folder / 'out'}", *settings,
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(options.code)}
    started = time.perf_counter()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=options.code, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    run = folder / "out" / "many" / "v0001"
    if not (run / "summary.json").is_file():
        raise RuntimeError((folder / "log").read_text()[-2000:])
    counts = json.loads((run / "manifest.json").read_bytes())["counts"]
    profile = json.loads((run / "profile.json").read_bytes())
    phases = profile.get("seconds", profile)  # earlier versions wrote the seconds alone
    stored = (run / "trials.parquet").stat().st_size / 1e6
    code = os.waitstatus_to_exitcode(status)
    return Measured(counts["planned"], code, usage.ru_maxrss / 1e3, seconds, phases, stored)


def _options(words: Sequence[str]) -> Options:
    """Raises ValueError with what was expected."""
    found = Options()
    for word in words:
        name, _, value = word.partition("=")
        if name == "small" and value.isdecimal():
            found = replace(found, small=int(value))
        elif name == "large" and value.isdecimal():
            found = replace(found, large=int(value))
        elif name == "by" and value in SHAPES:
            found = replace(found, by=value)
        elif name == "report" and value in ("true", "false"):
            found = replace(found, report=value == "true")
        elif name == "code" and Path(value).is_dir():
            found = replace(found, code=Path(value).resolve())
        else:
            expected = f"small=N, large=N, by={'|'.join(SHAPES)}, report=true|false or code=FOLDER"
            raise ValueError(f"{word}: expected {expected}")
    return found


def _machine() -> str:
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}{load}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
