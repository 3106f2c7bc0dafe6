"""`report`: the page and the figures of a run, written anew from its folder alone."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from runner.commands.words import OUTPUT_ROOT, Command, read
from runner.status import DONE

COMMAND = Command(
    name="report",
    about=(
        "Writes report.html and the figures of a run anew, from its folder alone: no model is loaded. Of a\n"
        "run that goes on they show what there is so far. Trials, manifest and summary stay as they are; a\n"
        "summary that a finished run lacks, or that is broken, is written."
    ),
    takes="RUN",
    least=1,
    most=1,
    keys=(OUTPUT_ROOT,),
    examples=("patchbay report n300_kv_only", "patchbay report n300_kv_only/v0001"),
)
_ENDED = ("done", "failed")  # states of a run whose summary should be there


def run(words: Sequence[str], console: Console) -> int:
    """Write the page and the figures, and a summary that is missing; print where they are. Raises
    TableError."""
    given = read(COMMAND, words)  # mistakes are told before anything heavy is loaded
    from analyses.figures import draw
    from analyses.report.report import write_report
    from analyses.runs.notebook import is_summary, load
    from analyses.summary.summary import write_summary
    from analyses.tables.run import TableError
    from runner.results.find_run import find_run

    found = load(find_run(given.free[0], given[OUTPUT_ROOT]))
    if found.note:
        console.print(Text(found.note, style="yellow"))
    lacking = found.manifest.get("status") in _ENDED and not is_summary(found.folder / "summary.json")
    try:
        if lacking:
            write_summary(found)
        drawn = draw(found, found.summary)
        path = write_report(found, found.summary, drawn)
    except OSError as error:
        told = f"{found.folder}: the report cannot be written ({error.strerror or error})"
        raise TableError(told) from error
    for sentence in drawn.skipped.values():
        console.print(Text(sentence, style="yellow"))
    if lacking:
        console.print(Text(f"summary: {found.folder / 'summary.json'}"))
    if drawn.captions:
        console.print(Text(f"figures: {found.folder / 'figures'}"))
    console.print(Text(f"report: {path}"))
    return DONE
