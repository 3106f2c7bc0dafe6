"""`rescore`: stored texts scored again, without the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from runner.commands.words import OUTPUT_ROOT, Command, Key, flag, folder, names, read
from runner.config.errors import ConfigurationError, Problem
from runner.status import DONE

READOUT: Key[tuple[str, ...]] = Key("readout", names, (), "NAME[,NAME]", "what the texts are scored with")
CONFIG_DIR: Key[Path | None] = Key("config_dir", folder, None, "DIR", "a folder with readouts of your own")
REPORT: Key[bool] = Key("report", flag, True, "true|false", "whether report.html is written (true)")
COMMAND = Command(
    name="rescore",
    about=(
        "Score the stored texts of a run again, or with further readouts, as a new version of it: no model\n"
        "is loaded. Takes readouts of the text alone (behaviour, contains, degenerate) and derived ones, as\n"
        "conf/readout has them now. What the model measured is kept, and the run itself is not touched."
    ),
    takes="RUN",
    least=1,
    most=1,
    keys=(READOUT, CONFIG_DIR, REPORT, OUTPUT_ROOT),
    examples=(
        "patchbay rescore n300_controls readout=degenerate",
        "patchbay rescore n300_controls/v0001 readout=behaviour,refuses",
    ),
)


def run(words: Sequence[str], console: Console) -> int:
    """Write the new version and show what it comes to; status 0."""
    given = read(COMMAND, words)  # mistakes are told before anything heavy is loaded
    from analyses.tables.run import load_run
    from runner.rescore import rescore
    from runner.results.find_run import find_run
    from runner.results.stored import own_config_dir

    if not given[READOUT]:
        message = "expected readout=NAME, what the texts are scored with"
        raise ConfigurationError([Problem("command line", "readout", message)])
    stored = load_run(find_run(given.free[0], given[OUTPUT_ROOT]))
    config_dir = own_config_dir(stored.manifest, given[CONFIG_DIR])
    command = ["python", "-m", "runner", COMMAND.name, *words]
    rescore(stored, given[READOUT], config_dir, command, console, report=given[REPORT])
    return DONE
