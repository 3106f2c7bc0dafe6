"""What a command line asks for: an experiment, a sweep, or one of the sub-commands."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rich.console import Console

from runner import status
from runner.config.errors import ConfigurationError, Problem, suggestion
from runner.failures import complain, crash
from runner.speaker import LOG_WIDTH

HELP = """\
patchbay: declarative interpretability experiments on language models

  python -m runner +experiment=NAME [KEY=VALUE ...]      run an experiment
  python -m runner -m +experiment=NAME KEY=A,B,C         one run per value
  python -m runner list                                  experiments, interventions, models, prompts
  python -m runner show NAME                             an experiment: its YAML, and its conditions in words
  python -m runner graph NAME [format=mermaid]           its stages, and what flows between them
  python -m runner try +experiment=NAME item=3           texts of one item in all conditions, at once
  python -m runner check model=NAME [suite=full]         identities that must hold, measured on a model
  python -m runner train-organism                        train the embedded model anew

Keys of every run:
  limit=5            only the first 5 items          dry_run=true     say what would run, and run nothing
  resume=true        go on with an unfinished run    allow_inert=true inert writes do not end with status 3
  output_root=DIR    where results go (outputs)      quiet=true       plain lines instead of a progress bar
  model=NAME         another model; any local folder: +model.path=DIR

Options:
  -m, --multirun     sweep over comma-separated values
  --config-dir DIR   a folder with experiments, prompts and interventions of your own
  -h, --help         this text                       --version        the version

Exit status: 0 done, 1 crash, 2 configuration, 3 inert write, 4 failed trials, 130 interrupted.
"""


@dataclass(frozen=True)
class Line:
    """A command line, taken apart."""

    words: tuple[str, ...]
    config_dir: Path | None
    multirun: bool


def dispatch(argv: Sequence[str]) -> int:
    """Carry out a command line. No traceback reaches the user but for a crash, which is ours."""
    console = new_console()
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(HELP, end="")
            return status.DONE
        if argv[0] == "--version":
            print(f"patchbay {version()}")
            return status.DONE
        if is_subcommand(argv[0]):
            return subcommand(argv[0], argv[1:], console)
        return experiment(take_apart(argv), console)
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
    console = Console(highlight=False)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(highlight=False, width=LOG_WIDTH)


def version() -> str:
    """The installed version; of a source tree that is not installed, that of its pyproject.toml."""
    try:
        return metadata.version("patchbay")
    except metadata.PackageNotFoundError:
        project = Path(__file__).resolve().parent.parent / "pyproject.toml"
        return str(tomllib.loads(project.read_text())["project"]["version"])


def is_subcommand(word: str) -> bool:
    """A first word without `=`, `+`, `~` or a leading `-`."""
    return "=" not in word and not word.startswith(("+", "~", "-"))


def take_apart(argv: Sequence[str]) -> Line:
    """Options and overrides of a command line. Raises ConfigurationError for an option that does not
    exist."""
    words: list[str] = []
    config_dir: Path | None = None
    multirun = False
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word in ("-m", "--multirun"):
            multirun = True
        elif word == "--config-dir" or word.startswith("--config-dir="):
            value = word.partition("=")[2] if "=" in word else (rest.pop(0) if rest else "")
            config_dir = Path(value).resolve()
            if not value or not config_dir.is_dir():
                raise ConfigurationError(
                    [Problem("command line", "--config-dir", f"'{value}' is not a folder")]
                )
        elif word.startswith("-"):
            raise ConfigurationError([Problem("command line", word, unknown_option(word))])
        else:
            words.append(word)
    return Line(tuple(words), config_dir, multirun)


def unknown_option(word: str) -> str:
    """What to write instead of an option that does not exist."""
    name, _, value = word.lstrip("-").partition("=")
    key = name.replace("-", "_")
    if key in ("dry_run", "resume", "allow_inert", "limit", "profile", "quiet", "output_root"):
        return f"no such option; keys are given as {key}={value or 'true'}"
    known = ("--multirun", "--config-dir", "--help", "--version")
    return f"no such option (options: {', '.join(known)}){suggestion(word, known)}"


def experiment(line: Line, console: Console) -> int:
    """Run an experiment or a sweep."""
    from runner.config.check import check_experiment
    from runner.config.sweeps import plan_jobs

    sweep = plan_jobs(line.words, line.multirun, line.config_dir)
    if sweep.declared:
        from runner.sweep import run_sweep

        return run_sweep(sweep, console, line.config_dir).status
    composed = sweep.jobs[0].composed
    assert composed is not None
    checked = check_experiment(composed)  # a mistake is told before anything heavy is imported
    from runner.job import run_job

    return run_job(composed, console, spoken(line), line.config_dir, checked).status


def spoken(line: Line) -> list[str]:
    """The command as one would type it again."""
    config = [] if line.config_dir is None else ["--config-dir", str(line.config_dir)]
    return ["python", "-m", "runner", *config, *line.words]


def _list(words: Sequence[str], console: Console) -> int:
    from runner.config.catalogue import catalogue

    line = take_apart(words)
    console.print(catalogue(line.config_dir, console.width), markup=False, soft_wrap=True)
    return status.DONE


def _show(words: Sequence[str], console: Console) -> int:
    from runner.config.catalogue import show
    from runner.config.compose import compose, config_folders, options
    from runner.config.sweeps import show_sweep, swept_experiments

    line = take_apart(words)
    if not line.words:
        raise ConfigurationError([Problem("command line", "show", "expected the name of an experiment")])
    name, rest = line.words[0].removeprefix("+experiment="), line.words[1:]
    lines: list[str] = []
    if name in options("experiment", config_folders(line.config_dir)):
        chosen = (f"+experiment={name}", *rest)
        lines = show_sweep(chosen, line.config_dir)
        composed = compose(chosen, line.config_dir)
        if swept_experiments(composed):  # of its own it has no conditions to show
            file = composed.files[-1]
            lines = [str(file), "", file.read_text(encoding="utf-8").rstrip(), *lines]
            console.print("\n".join(lines), markup=False)
            return status.DONE
    console.print("\n".join([show(name, list(rest), line.config_dir), *lines]), markup=False)
    return status.DONE


def _graph(words: Sequence[str], console: Console) -> int:
    from runner.graph import graph

    line = take_apart(words)
    return graph(line.words, line.config_dir, console)


def _try(words: Sequence[str], console: Console) -> int:
    from runner.config.compose import compose
    from runner.config.errors import listed
    from runner.config.sweeps import swept_experiments
    from runner.try_item import try_item

    line = take_apart(words)
    chosen = [word for word in line.words if word.startswith("+experiment=")]
    experiments = swept_experiments(compose(chosen, line.config_dir)) if chosen else ()
    if experiments:
        message = f"'{chosen[0]}' sweeps over experiments; expected one of them: {listed(experiments)}"
        raise ConfigurationError([Problem("command line", "try", message)])
    return try_item(list(line.words), line.config_dir, console)


def _check(words: Sequence[str], console: Console) -> int:
    from runner.check import check_model

    line = take_apart(words)
    return check_model(line.words, line.config_dir, console)


def _train(words: Sequence[str], console: Console) -> int:
    from organisms.train import main as train

    return train(list(words))


SUBCOMMANDS: dict[str, Callable[[Sequence[str], Console], int]] = {
    "list": _list,
    "show": _show,
    "graph": _graph,
    "try": _try,
    "check": _check,
    "train-organism": _train,
}


def subcommand(name: str, words: Sequence[str], console: Console) -> int:
    """Carry out a sub-command. Raises ConfigurationError for one that does not exist."""
    if name not in SUBCOMMANDS:
        known = ", ".join(SUBCOMMANDS)
        hint = suggestion(name, SUBCOMMANDS)
        message = f"no such command (commands: {known}){hint}; an experiment is run by +experiment={name}"
        raise ConfigurationError([Problem("command line", name, message)])
    return SUBCOMMANDS[name](words, console)
