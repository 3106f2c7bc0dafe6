"""What a command line asks for: an experiment, a sweep, or one of the sub-commands."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner import status
from runner.commands import overview, subcommand
from runner.commands.words import Line, take_apart
from runner.config.errors import ConfigurationError
from runner.failures import complain, crash

if TYPE_CHECKING:
    from rich.console import Console

HELP = """\
patchbay: declarative interpretability experiments on language models

  patchbay +experiment=NAME [KEY=VALUE ...]  run an experiment (also: python -m runner ...)
  patchbay -m +experiment=NAME KEY=A,B,C     one run per value

{commands}

  patchbay COMMAND --help says more. A RUN is a path, NAME (its newest version) or NAME/v0001.

Keys of every run:
  limit=5            only the first 5 items          dry_run=true     say what would run, and run nothing
  resume=true        go on with an unfinished run    allow_inert=true inert writes do not end with status 3
  output_root=DIR    where results go (outputs)      quiet=true       plain lines instead of a progress bar
  report=false       no report.html, no automatic figures
  model=NAME         another model; any local folder: +model.path=DIR

Options:
  -m, --multirun     sweep over comma-separated values
  --config-dir DIR   a folder with experiments, prompts and interventions of your own
  -h, --help         this text                       --version        the version

Exit status: 0 done, 1 crash, 2 configuration, 3 inert write, 4 failed trials, 130 interrupted.
"""


def dispatch(argv: Sequence[str]) -> int:
    """Carry out a command line. No traceback reaches the user but for a crash, which is ours."""
    try:
        if len(argv) == 2 and argv[0] == "help" and is_subcommand(argv[1]):
            return subcommand(argv[1], ["--help"], new_console)
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(HELP.format(commands=overview()), end="")
            return status.DONE
        if argv[0] == "--version":
            print(f"patchbay {version()}")
            return status.DONE
        if is_subcommand(argv[0]):
            return subcommand(argv[0], argv[1:], new_console)
        return experiment(take_apart(argv))
    except ConfigurationError as error:
        complain(error)
        return status.CONFIGURATION
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return status.INTERRUPTED
    except Exception as error:
        return crash(error)


def new_console() -> Console:
    """A console as wide as the terminal; in a pipe or a log, where there is none, of 110 columns."""
    from rich.console import Console

    from runner.speaker import LOG_WIDTH

    console = Console(highlight=False)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(highlight=False, width=LOG_WIDTH)


def version() -> str:
    """The installed version; of a source tree that is not installed, that of its pyproject.toml."""
    import tomllib
    from importlib import metadata

    try:
        return metadata.version("patchbay")
    except metadata.PackageNotFoundError:
        project = Path(__file__).resolve().parent.parent / "pyproject.toml"
        return str(tomllib.loads(project.read_text())["project"]["version"])


def is_subcommand(word: str) -> bool:
    """A first word without `=`, `+`, `~` or a leading `-`."""
    return "=" not in word and not word.startswith(("+", "~", "-"))


def experiment(line: Line) -> int:
    """Run an experiment or a sweep."""
    from runner.config.check import check_experiment
    from runner.config.sweeps import plan_jobs

    sweep = plan_jobs(line.words, line.multirun, line.config_dir)
    if sweep.declared:
        gc.enable()
        from runner.sweep import run_sweep

        return run_sweep(sweep, new_console(), line.config_dir).status
    composed = sweep.jobs[0].composed
    assert composed is not None
    checked = check_experiment(composed)  # a mistake is told before anything heavy is imported
    gc.enable()
    from runner.job import run_job

    return run_job(composed, new_console(), spoken(line), line.config_dir, checked).status


def spoken(line: Line) -> list[str]:
    """The command as one would type it again."""
    config = [] if line.config_dir is None else ["--config-dir", str(line.config_dir)]
    return ["python", "-m", "runner", *config, *line.words]
