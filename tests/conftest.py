"""Shared fixtures: the command line in a folder of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported

import pandas as pd
import pytest
import torch

from runner.command import dispatch


@dataclass(frozen=True)
class Said:
    """What a command line answered."""

    status: int
    out: str
    err: str


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Said]:
    """Run a command line in `tmp_path`, with lines wide enough not to be wrapped in the middle of a
    sentence."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")

    def run(*words: str) -> Said:
        status = dispatch(list(words))
        out, err = capsys.readouterr()
        return Said(status, out, err)

    return run


SMALL = ("limit=6", "sampling.max_new_tokens=20", "quiet=true", "report=false")


def table(folder: Path) -> pd.DataFrame:
    """A finished run's trials without the columns that say where and how they were computed."""
    found = pd.read_parquet(folder / "trials.parquet")
    told = ["origin", "batch_rows", "batch_length", "min_margin"]
    changes = [c for c in found.columns if c.endswith((".relative_change", ".logit_change"))]
    return found.drop(columns=[*told, *changes, "perplexity"])
