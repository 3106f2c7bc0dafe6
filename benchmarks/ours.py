"""An experiment as the runner runs it, in this process, with the model loaded already."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from rich.console import Console

from runner.config.check import check_experiment
from runner.config.compose import compose
from runner.job import run_job
from runner.plan import Trial
from runner.prepare import Prepared
from runner.stages.course import prepare_first

LOAD = "load"


@dataclass(frozen=True)
class Ran:
    """A run. seconds: from the plan to trials.parquet; whole, processor: to the end of its summary, by the
    clock and of the processor; all without loading the model and its tokenizer. times: seconds by phase;
    trials: its table."""

    seconds: float
    whole: float
    processor: float
    times: Mapping[str, float]
    trials: pd.DataFrame


@dataclass
class Experiment:
    """An experiment of one measure stage, to be run again and again. words: overrides, as on the command
    line; config_dir: where an experiment of the benchmark's own lies; folder: where run folders go."""

    words: Sequence[str]
    config_dir: Path
    folder: Path
    runs: list[Ran] = field(default_factory=list)

    def prepare(self) -> Prepared:
        """Model, tokenizer and plan; the model stays in this process."""
        return prepare_first(check_experiment(compose(self.words, self.config_dir)), self.config_dir)

    def trials(self, prepared: Prepared) -> list[Trial]:
        """The trials that are run."""
        return [trial for trial in prepared.plan.trials if trial.invalid is None]

    def __call__(self) -> None:
        """Run it into a folder of its own: no results of an earlier run are taken over."""
        self.runs.append(self._run())

    def _run(self) -> Ran:
        root = Path(tempfile.mkdtemp(dir=self.folder))
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            composed = compose([*self.words, f"output_root={root}"], self.config_dir)
            started, processor = time.time(), time.process_time()
            result = run_job(
                composed, Console(file=nowhere), ["python", "-m", "benchmarks.decode"], self.config_dir
            )
            ended, used = time.time(), time.process_time() - processor
        assert result.folder is not None
        stored = result.folder / "trials.parquet"
        times = json.loads((result.folder / "manifest.json").read_bytes())["times"]["seconds"]
        load = times.pop(LOAD)
        begun = started + load
        table = pd.read_parquet(stored)
        ran = Ran(stored.stat().st_mtime - begun, ended - begun, used - load, times, table)
        shutil.rmtree(root)
        return ran


def write_experiment(folder: Path, name: str, text: str) -> Path:
    """A folder of configuration with one experiment in it, for `--config-dir`."""
    (folder / "experiment").mkdir(parents=True, exist_ok=True)
    (folder / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}", encoding="utf-8")
    return folder


def arms(name: str, bodies: Mapping[str, str], readouts: str = "[behaviour, perplexity]") -> str:
    """The YAML of an experiment whose conditions are interventions that come with the program, without
    comparisons. bodies: condition -> intervention, `` for the empty one, `kv_plus_v 5` to set the layer of
    its v_proj write."""
    written = {condition: body.split() for condition, body in bodies.items()}
    defaults = [f"  - /intervention@conditions.{c}: {body[0]}" for c, body in written.items() if body]
    conditions = [
        f"  {condition}: {'{}' if len(body) < 2 else f'{{v_proj: {{layers: {body[1]}}}}}'}"
        for condition, body in written.items()
        if len(body) != 1
    ]
    lines = [
        "defaults:",
        *defaults,
        "  - _self_",
        "  - override /prompts: recursive_pairs",
        f"experiment: {{name: {name}, n: 300, repeats: 1}}",
        "reference_depth: 32",
        "sampling: {temperature: 0.8, max_new_tokens: 150, seed: 42}",
        *(["conditions:", *conditions] if conditions else []),
        f"readouts: {readouts}",
        "contrasts: {family: none}",
        "report: false",
        "quiet: true",
    ]
    return "\n".join(lines) + "\n"
