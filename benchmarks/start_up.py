"""How long a command takes that computes nothing: `python -m benchmarks.start_up [--quick|--tiny]
[--results FILE]`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import Machine
from benchmarks.results_file import Goal, Section, table
from benchmarks.rounds import Way, interleaved
from benchmarks.sizes import Size, run

WANTED = 0.7
COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "--help": ("-m", "runner", "--help"),
    "list": ("-m", "runner", "list"),
    "a configuration error": ("-m", "runner", "+experiment=n300_kv_only", "sampling.temprature=1"),
}
_STATUS = {"a configuration error": 2}
_ROOT = Path(__file__).resolve().parents[1]


def measure(size: Size) -> Section:
    """Every command as a process of its own, in turn."""
    machine = Machine.measured(size.pick(1536, 1536, 128))
    with tempfile.TemporaryDirectory() as folder:
        ways = {name: Way(_Command(name, words, folder)) for name, words in COMMANDS.items()}
        rounds = interleaved(ways, size.pick(11, 5, 1), warm=size.name != "tiny")
    bare, *names = COMMANDS
    goals = tuple(Goal(name, rounds.median(name), WANTED, "s", most=True) for name in names)
    lines = [
        (
            name,
            f"{rounds.median(name):.2f}",
            f"{min(rounds.seconds[name]):.2f}",
            f"{rounds.ratio(name, bare):.0f}",
        )
        for name in COMMANDS
    ]
    head = ("command", "seconds, median", "least", "times python -c pass")
    limits: tuple[str, ...] = ()
    if not all(goal.met for goal in goals):
        limits = ("What takes longest is reading the libraries: Hydra, OmegaConf, pydantic and rich.",)
    return Section(
        "start_up",
        "Start-up",
        "python -m benchmarks.start_up",
        machine.words(),
        goals,
        (f"{len(rounds.seconds[bare])} times each, in turn.", table(head, lines)),
        limits,
    )


class _Command:
    """A command of Python, whose status is looked at."""

    def __init__(self, name: str, words: Sequence[str], folder: str) -> None:
        self._words = [sys.executable, *words]
        self._status, self._name = _STATUS.get(name, 0), name

    def __call__(self) -> None:
        done = subprocess.run(self._words, cwd=_ROOT, capture_output=True, check=False)
        assert done.returncode == self._status, f"{self._name}: {done.stderr.decode()[-500:]}"


def main(words: Sequence[str]) -> int:
    """Measure and keep."""
    return run(measure, "start_up", words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
