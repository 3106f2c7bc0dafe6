"""Help for tests of configurations: resolve one, collect what is wrong with one, write one."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.config.check import check
from runner.config.compose import compose
from runner.config.errors import ConfigurationError
from runner.config.resolve import Design, resolve

KV_ONLY = "+experiment=n300_kv_only"


def design(*overrides: str, folder: Path | None = None) -> Design:
    return resolve(check(compose(list(overrides), folder)))


def faults(*overrides: str, folder: Path | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        design(*overrides, folder=folder)
    return str(caught.value)


def body(text: str, folder: Path, name: str = "mine", rest: str = "") -> Path:
    """A user's folder with one experiment, its conditions a baseline and those given (YAML, one a line)."""
    lines = "".join(f"  {line}\n" for line in text.strip().splitlines())
    (folder / "experiment").mkdir(exist_ok=True)
    (folder / "experiment" / f"{name}.yaml").write_text(
        f"# @package _global_\nexperiment: {{name: {name}, n: 5}}\n"
        f"conditions:\n  baseline: {{}}\n{lines}{rest}\n",
        encoding="utf-8",
    )
    return folder
