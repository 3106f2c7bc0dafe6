"""What a run would do, before it does it: conditions in words, sizes, time, and the effect that it could
find."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analyses.runs.folders import versions
from analyses.statistics.clusters import in_words
from analyses.tables.pairs import EQUIVALENCE
from analyses.wording import figure
from runner import status
from runner.config.check import Experiment
from runner.config.resolve import Design, resolve
from runner.config.stages.known import MEASURE
from runner.execute import passes
from runner.graph import nodes_of, stands_in
from runner.plan import Trial
from runner.plan_gates import plan_gates
from runner.power_before import power_before
from runner.prepare import Prepared, prepare
from runner.schedule import Batch, batches

PROBE_TOKENS = 12
REASONS = 8  # why trials are invalid, the most frequent first
MOST_POWER = 20  # contrasts of the table of power


def dry_run(experiment: Experiment, console: Console, config_dir: Path | None, output_root: Path) -> int:
    """Print what would run, stage by stage; what an earlier stage would choose or extract is stood in for.
    Loads the model for a short timing probe; writes and downloads nothing.

    Raises BackendError where the weights are not here, ConfigurationError for banks.
    """
    for stage, node in zip(experiment.stages, nodes_of(experiment), strict=True):
        if experiment.staged:
            console.rule(Text(f"stage {stage.name}: {stage.kind}", style="bold"), align="left")
        if stage.spec is None or stage.kind != MEASURE:
            console.print(Text(f"{node.what} -> {node.gives}"))
            continue
        note = stands_in(stage, experiment)
        if note is not None:
            console.print(note, style="dim")
        _stage(resolve(stage.spec), console, config_dir, output_root, staged=experiment.staged)
    return status.DONE


def _stage(
    design: Design, console: Console, config_dir: Path | None, output_root: Path, *, staged: bool
) -> None:
    """Print what a stage that measures would run."""
    prepared = prepare(design, config_dir, download=False)
    design, plan, pairing = prepared.design, prepared.plan, prepared.pairing
    if not staged or design.question:
        console.print(Text(f"{design.name}: {design.question}", style="bold"))
    for note in design.layer_notes:
        console.print(note, style="dim")
    cells = Counter(condition.name.partition("[")[0] for condition in design.conditions)
    shown: set[str] = set()
    for condition in design.conditions:
        name = condition.name.partition("[")[0]
        if staged and name in shown:
            continue  # the first cell of a grid stands for the others
        shown.add(name)
        also = f"  (the first of {cells[name]:,} cells)" if staged and cells[name] > 1 else ""
        title = Text(f"\n{condition.name}", style="bold").append(f"  {condition.label}", style="not bold")
        console.print(title.append(also, style="dim"))
        for sentence in condition.words:
            console.print(Text(f"  {sentence}"))
    for gate in plan_gates(design, plan):
        console.print(Text(f"{gate['condition']}: {gate['sentence']}", style="red"))
    invalid = Counter(t.invalid for t in plan.trials if t.invalid is not None)
    console.print()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("trials", f"{len(plan.trials):,}")
    table.add_row("items", f"{pairing.items} of {pairing.asked} asked")
    if design.prompts.pairs:
        table.add_row("distinct donors, targets, pairs", _distinct(prepared))
    table.add_row("distinct prompts", f"{plan.distinct_prompts:,}")
    table.add_row("prompt tokens", f"{_prompt_tokens(prepared):,} in distinct prompts")
    asked = f"up to {plan.new_tokens:,}" if plan.decodes else "none: no readout reads a text"
    table.add_row("new tokens", asked)
    table.add_row("batches", f"{_batches(prepared):,}")
    if plan.decodes:
        told = f"from a probe of {PROBE_TOKENS} tokens in one full batch"
        table.add_row("time", f"about {_estimate(prepared):.0f} s, {told}")
    else:
        table.add_row("time", f"about {_estimate_scores(prepared):.0f} s, from one full batch")
    for reason, count in invalid.most_common(REASONS):
        table.add_row("invalid", f"{count:,}: {reason}")
    if len(invalid) > REASONS:
        rest = invalid.total() - sum(count for _, count in invalid.most_common(REASONS))
        table.add_row("invalid", f"{rest:,}: {len(invalid) - REASONS} other reasons")
    console.print(table)
    if not staged:
        _print_power(prepared, console, output_root)


def _distinct(prepared: Prepared) -> str:
    pairing = prepared.pairing
    return f"{pairing.distinct_donors}, {pairing.distinct_targets}, {pairing.distinct_pairs}"


def _prompt_tokens(prepared: Prepared) -> int:
    prompts = {trial.row.ids for trial in prepared.plan.trials}
    for trial in prepared.plan.trials:
        prompts.update(trial.donor_ids.values())
    return sum(map(len, prompts))


def _batches(prepared: Prepared) -> int:
    trials = [t for t in prepared.plan.trials if t.invalid is None]
    return sum(1 for _ in _in_batches(prepared, trials))


def _in_batches(prepared: Prepared, trials: list[Trial]) -> Iterator[Batch]:
    backend, most_rows = prepared.backend, prepared.design.backend.max_rows
    return batches(
        trials, backend.footprint, most_rows, workers=backend.workers, entering=prepared.plan.decodes
    )


def _estimate(prepared: Prepared) -> float:
    """Seconds for the whole plan: as many trials as run at once are run for a few tokens, and both the fixed
    part and the time per token are scaled up. Rows that end before the limit make it less, scores that need
    the model (perplexity) more."""
    trials = [t for t in prepared.plan.trials if t.invalid is None]
    if not trials:
        return 0.0
    sample = _at_once(prepared, trials)
    seconds: list[float] = []
    for tokens in (2, 2, PROBE_TOKENS):  # the first warms up
        rows = [replace(t.row, sampling=replace(t.row.sampling, max_new_tokens=tokens)) for t in sample]
        started = time.perf_counter()
        prepared.backend.decode(rows)
        seconds.append(time.perf_counter() - started)
    per_token = max(0.0, seconds[2] - seconds[1]) / (PROBE_TOKENS - 2) / len(sample)
    fixed = max(0.0, seconds[1] / len(sample) - 2 * per_token)
    alone = sum(fixed + per_token * t.row.sampling.max_new_tokens for t in trials)
    return alone / _busy(prepared, trials)


def _estimate_scores(prepared: Prepared) -> float:
    """Seconds for a plan without generated text: as many trials as run at once are measured twice, the
    first time to warm up."""
    trials = [t for t in prepared.plan.trials if t.invalid is None]
    if not trials:
        return 0.0
    sample = _at_once(prepared, trials)
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        for each in passes(prepared.design.measured):
            prepared.backend.score([each.row(trial, ()) for trial in sample], each.probes)
        seconds = time.perf_counter() - started
    return seconds * len(trials) / len(sample) / _busy(prepared, trials)


def _at_once(prepared: Prepared, trials: list[Trial]) -> Sequence[Trial]:
    """The most trials that run at once."""
    most = max(_in_batches(prepared, trials), key=lambda batch: batch.together)
    return most.trials[: most.together]


def _busy(prepared: Prepared, trials: list[Trial]) -> int:
    """How many workers have batches to run."""
    return min(prepared.backend.workers, sum(1 for _ in _in_batches(prepared, trials)))


def _print_power(prepared: Prepared, console: Console, output_root: Path) -> None:
    design = prepared.design
    found = power_before(design, prepared.plan, versions(output_root / design.name))
    if found is None:
        return
    unit = f"difference in {design.contrasts.primary}" if found["sd"] is not None else "difference in sd"
    table = Table(
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title=f"minimal detectable effect, 80% power, alpha {found['alpha']:g} / {found['family']:,}",
    )
    table.add_column("contrast", overflow="fold", min_width=14, max_width=46)
    for head in ("pairs", "clusters", "sd", unit):
        table.add_column(head, justify="right", overflow="fold")
    for row in found["rows"][:MOST_POWER]:
        kind = ", margin" if row["kind"] == EQUIVALENCE else ""
        table.add_row(
            Text(f"{row['condition']} - {row['against']}{kind}"),
            f"{row['n']:,}",
            in_words(row["clusters"]),
            "unknown" if row["sd"] is None else figure(row["sd"]),
            "no test" if row["detectable"] is None else figure(row["detectable"]),
        )
    console.print()
    console.print(table)
    if found["family"] > MOST_POWER:
        console.print(f"and {found['family'] - min(MOST_POWER, len(found['rows'])):,} more", style="dim")
    console.print(Text(found["sentence"], style="dim"))
    for sentence in found["warnings"]:
        console.print(Text(sentence, style="yellow"))
