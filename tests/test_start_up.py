"""What a command line loads: help, lists and mistakes nothing that computes, the analyses no model
library."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import analyses
from runner.commands import ENTRIES

KV_ONLY = "+experiment=n300_kv_only"
MODEL = ("torch", "transformers")
HEAVY = (*MODEL, "scipy", "pandas", "pyarrow", "matplotlib", "duckdb")
CHECKING = (*HEAVY, "numpy", "pydantic", "hydra", "omegaconf")
_PROGRAM = """\
import json, sys
from runner.__main__ import main
status = main(sys.argv[2:])
sys.stdout.flush()
found = [name for name in json.loads(sys.argv[1]) if name in sys.modules]
print(json.dumps([status, found]), file=sys.stderr)
"""
_LINES = _PROGRAM.replace("main(sys.argv[2:])", "max(main(words) for words in json.loads(sys.argv[2]))")
_IMPORTS = (
    """\
import importlib, sys
for name in sys.argv[3:]:
    importlib.import_module(name)
"""
    + _LINES
)


def loaded(
    heavy: Sequence[str], words: Sequence[str], folder: Path, program: str = _PROGRAM
) -> tuple[int, str]:
    """The exit status of a command line in a process of its own, and which of these modules it had loaded at
    its end, with commas between."""
    home = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(heavy), *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    status, found = json.loads(done.stderr.splitlines()[-1])
    return int(status), ", ".join(found)


@pytest.mark.parametrize("words", [(), ("--help",), ("--version",), ("list",), ("lsit",)], ids=str)
def test_help_and_lists_load_no_configuration(words, tmp_path):
    assert loaded(CHECKING, words, tmp_path) == (2 if words == ("lsit",) else 0, "")


def test_the_help_of_every_command_loads_nothing(tmp_path):
    program = _PROGRAM.replace("main(sys.argv[2:])", "max(main([name, '--help']) for name in sys.argv[2:])")
    assert loaded(CHECKING, list(ENTRIES), tmp_path, program) == (0, "")


def test_wrong_words_for_a_command_are_told_before_it_loads_anything(tmp_path):
    """An option, of which no command has any but train-organism, whose words another parser reads."""
    program = _PROGRAM.replace("main(sys.argv[2:])", "min(main([name, '--nokey']) for name in sys.argv[2:])")
    assert loaded(HEAVY, sorted(ENTRIES.keys() - {"train-organism"}), tmp_path, program) == (2, "")


def test_experiments_are_shown_without_what_computes(tmp_path):
    """One in the flat form, one with stages, one that is a sweep."""
    lines = [["show", "n300_kv_only"], ["graph", "refusal_direction"], ["show", "layer_localisation"]]
    assert loaded(HEAVY, [json.dumps(lines)], tmp_path, _LINES) == (0, "")


MISTAKES = (
    "experiment.nn=3",
    "conditions.kv_only.kv.layers=99",
    "conditions.kv_only.kv.site=resid_prr",
    "model=organsim",
    "+readout.mine.kind=pobability",
    "output_root",
    "--profile",
)


def test_mistakes_in_an_experiment_are_told_before_what_computes_is_loaded(tmp_path):
    program = _PROGRAM.replace(
        "main(sys.argv[2:])", f"min(main([{KV_ONLY!r}, word]) for word in sys.argv[2:])"
    )
    assert loaded(HEAVY, MISTAKES, tmp_path, program) == (2, "")
    assert loaded(HEAVY, ["+experiment=n300_kvonly"], tmp_path) == (2, "")


def test_neither_the_analyses_nor_the_commands_that_read_runs_load_a_model_library(tmp_path):
    """Every module of the analyses, and each of these commands in a folder without runs: what it imports it
    imports before it looks for one."""
    names = [module.name for module in pkgutil.walk_packages(analyses.__path__, "analyses.")]
    assert "analyses.statistics.mixed" in names
    lines = [
        ["ls"],
        ["prune"],
        ["query", "SELECT 1"],
        ["report", "none"],
        ["compare", "one", "other"],
        ["rescore", "none", "readout=degenerate"],
        ["recheck"],
    ]
    assert loaded(MODEL, [json.dumps(lines), *names], tmp_path, _IMPORTS) == (2, "")
