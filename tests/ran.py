"""Whole experiments run once for all tests that look at them, and what they leave behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import runner
from runner import status
from runner.job import RunResult

Ran = Callable[..., RunResult]


def runs(tmp_path_factory: pytest.TempPathFactory, *fixed: str) -> Ran:
    """A function that runs an experiment, given by its name and further words, and remembers how it ended.
    fixed: words of every run."""
    done: dict[tuple[str, ...], RunResult] = {}

    def run(*words: str) -> RunResult:
        if words not in done:
            name, *more = words
            root = tmp_path_factory.mktemp(name)
            usual = ("quiet=true", "report=false", "backend.threads=1", f"output_root={root}")
            done[words] = runner.run([f"+experiment={name}", *fixed, *more, *usual])
        return done[words]

    return run


def folder_of(result: RunResult) -> Path:
    """The folder of a run that has ended well."""
    assert result.folder is not None and result.status == status.DONE
    return result.folder


def choice(result: RunResult, name: str) -> Mapping[str, Any]:
    """A choice as it is stored."""
    found: Mapping[str, Any] = json.loads((folder_of(result) / "choices" / f"{name}.json").read_text())
    return found


def finding(result: RunResult, name: str) -> Mapping[str, Any]:
    """A finding of the summary."""
    found: Mapping[str, Any] = next(one for one in result.summary["findings"] if one["name"] == name)
    return found
