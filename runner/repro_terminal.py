"""What came of trials that were run again, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analyses.runs.compare_terminal import value_in_words
from analyses.wording import count, figure, listed, plural, small
from runner.repeated import Repeated
from runner.repro import FULL, Reproduction

_MOST = 10  # trials and differences that are listed


def print_reproduction(found: Reproduction, console: Console) -> None:
    """Print the verdict, the conditions, the trials that differ and what is different now."""
    console.print(Text(headline(found), style="green" if found.sound else "red"))
    for note in found.notes:
        console.print(Text(note, style="yellow"))
    if found.gone:
        told = (
            f"{plural(found.gone, 'trial')} of the run would not be computed again as they were: their "
            "prompts or conditions are others now."
        )
        console.print(Text(told, style="yellow"))
    console.print(_conditions(found.repeated))
    differing = [each for each in found.repeated if each.verdict != "same"]
    for each in differing[:_MOST]:
        console.print(Text(f"  {_trial(each)}", style="yellow" if each.verdict == "near_tie" else "red"))
    if len(differing) > _MOST:
        console.print(Text(f"  and {count(len(differing) - _MOST)} more", style="dim"))
    if found.dtype != FULL:
        alike = sum(each.same_shape for each in found.repeated)
        told = f"in {found.dtype}, {alike} of {len(found.repeated)} ran in a batch of the shape that they had"
        console.print(Text(told, style="dim"))
    if found.uncovered:
        names = list(found.uncovered[:_MOST])
        more = [f"{len(found.uncovered) - _MOST} more"] if len(found.uncovered) > _MOST else []
        console.print(Text(f"no trial was run again of {listed(names + more)}; sample=N takes more", "dim"))
    _print_differences(found, console)


def headline(found: Reproduction) -> str:
    """What came of it, in a sentence."""
    of = plural(len(found.repeated), "trial")
    same, near = found.number("same"), found.number("near_tie")
    said = f"{count(same)} of {of} of {found.run} gave the same tokens, scores and receipts"
    if near:
        said += f"; {count(near)} took another token at a near-tie"
    if wrong := found.number("differs"):
        said += f"; {count(wrong)} {'differ' if wrong > 1 else 'differs'}"
    if failed := found.number("failed"):
        said += f"; {count(failed)} did not end well"
    return f"{said}."


def _conditions(repeated: Sequence[Repeated]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("condition", "trials", "same", "near-tie", "differ", "failed"):
        table.add_column(name, justify="left" if name == "condition" else "right", overflow="fold")
    several = len({each.stage for each in repeated}) > 1
    by_name: dict[str, list[Repeated]] = {}
    for each in repeated:
        stage, condition = each.stratum
        by_name.setdefault(f"{stage}.{condition}" if several else condition, []).append(each)
    for name, trials in by_name.items():
        numbers = [
            sum(t.verdict == verdict for t in trials) for verdict in ("same", "near_tie", "differs", "failed")
        ]
        cells = [count(len(trials)), *(count(number) if number else "-" for number in numbers)]
        table.add_row(Text(name), *cells)
    return table


def _trial(each: Repeated) -> str:
    where = f"{each.condition}, item {each.item}" + (f", repeat {each.repeat}" if each.repeat else "")
    if each.verdict == "failed":
        return f"{where}: {each.reason}"
    parts = []
    if each.step is not None:
        gaps = " and ".join(small(gap) for gap in each.margin if gap is not None)
        kind = "a near-tie" if each.verdict == "near_tie" else "no near-tie"
        parts.append(f"other tokens from step {each.step} on ({kind}: smallest margin {gaps})")
    for name, values in ({} if each.step is not None else {**each.scores, **each.receipts}).items():
        parts.append(f"{name} was {_value(values[0])}, is {_value(values[1])}")
    return f"{where}: {'; '.join(parts[:3])}" + (f"; and {len(parts) - 3} more" if len(parts) > 3 else "")


def _value(value: object) -> str:
    return figure(value, 4) if isinstance(value, float) else value_in_words(value)


def _print_differences(found: Reproduction, console: Console) -> None:
    if not found.differences:
        console.print(Text("Code, packages, machine and inputs are those of the run.", style="dim"))
        return
    table = Table(box=box.SIMPLE_HEAD, title="what is different now", title_justify="left")
    for name in ("", "key", "then", "now"):
        table.add_column(name, overflow="fold")
    for each in found.differences[:_MOST]:
        values = (value_in_words(each.first), value_in_words(each.second))
        table.add_row(*(Text(cell) for cell in (each.of, each.key, *values)))
    console.print(table)
    if len(found.differences) > _MOST:
        console.print(Text(f"and {count(len(found.differences) - _MOST)} more differences", style="dim"))
