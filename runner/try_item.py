"""One item in all conditions, at once, as texts: the first look at an experiment. Nothing is stored."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from runner import status
from runner.config.check import check_experiment
from runner.config.compose import compose
from runner.config.errors import ConfigurationError, Problem
from runner.config.resolve import resolve
from runner.execute import measure
from runner.keys import receipt_order
from runner.prepare import prepare


def try_item(words: list[str], config_dir: Path | None, console: Console) -> int:
    """Run `item=K` (default 0) of an experiment in all its conditions and print the texts and receipts."""
    item, overrides = 0, []
    for word in words:
        key, _, value = word.partition("=")
        if key != "item":
            overrides.append(word)
        elif value.isdecimal():
            item = int(value)
        else:
            raise ConfigurationError(
                [Problem("command line", "item", f"expected a number from 0, got '{value}'")]
            )
    checked = check_experiment(compose(overrides, config_dir))
    tried = next(stage for stage in checked.stages if stage.spec is checked.spec)
    if checked.staged and tried.needs:
        needed = ", ".join(f"'{name}'" for name in tried.needs)
        message = (
            f"one item of the first stage that measures is tried, and '{tried.name}' needs what {needed} "
            "will give; dry_run=true says what every stage would do, limit=5 runs them all on five items"
        )
        raise ConfigurationError([Problem("command line", "try", message)])
    design = resolve(checked.spec)
    if item >= design.n:
        raise ConfigurationError(
            [Problem("command line", "item", f"expected 0 to {design.n - 1}, got {item}")]
        )
    prepared = prepare(design, config_dir, only_item=item)
    pair = prepared.items[0]
    console.print(Panel(Text(pair.donor.text), title=f"donor {pair.donor.id}", title_align="left"))
    console.print(Panel(Text(pair.target.text), title=f"target {pair.target.id}", title_align="left"))
    trials = [t for t in prepared.plan.trials if t.repeat == 0]
    runnable = [t for t in trials if t.invalid is None]
    found = measure(prepared.backend, prepared.tokenizer, prepared.design.measured, runnable)
    results = {result["key"]: result for result in found}
    for trial in trials:
        condition = design.condition(trial.condition)
        reason = trial.invalid
        if reason is None:
            reason = results[trial.key]["reason"]
        if reason is not None:
            body = Text(f"invalid: {reason}", style="red")
        else:
            result = results[trial.key]
            body = Text(result["text"] + "\n" if prepared.design.decodes else "")
            told = [f"{name} {_told(value)}" for name, value in result["scores"].items()]
            body.append("  ".join(told), style="bold")
            for name, receipt in zip(receipt_order(trial.row.writes), result["receipts"], strict=True):
                change = receipt["relative_change"]
                body.append(
                    f"\n{name}: prefill {receipt['positions_prefill']} of {receipt['asked_prefill']}, decode "
                    f"{receipt['positions_decode']} of {receipt['asked_decode']} positions"
                    + (f", relative change {change:.3g}" if change is not None else ""),
                    style="dim",
                )
        title = f"{trial.condition}: {condition.label}"
        console.print(Panel(body, title=Text(title), title_align="left"))
    return status.DONE


def _told(value: object) -> str:
    """A value in a line: three significant digits, or each of a list so."""
    if isinstance(value, list):
        return f"[{', '.join(map(_told, value))}]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
