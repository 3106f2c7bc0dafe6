"""Help for tests of writes in YAML: resolve some, collect what is said of wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from backends.writes import Write
from tests.configuring import body, design, faults

WIDTH = 64  # of the embedded model
TWO_HOP = (
    "prompts: {donors: {bank: two_hop, groups: all}, targets: {bank: two_hop, groups: [composed]}}\n"
    "sampling: {temperature: 0, max_new_tokens: 4}"
)
Resolved = tuple[Write, str]
EDGE = "site: attention_edge, layers: 2-4, op: mask"
RESID = "site: resid_post, layers: 4"


def resolved(tmp_path: Path, *bodies: str, overrides: Sequence[str] = (), more: str = "") -> list[Resolved]:
    """Conditions that have the one write `w` each, resolved as one experiment: the write, and the condition
    in words."""
    lines = "\n".join(f"c{index}: {{w: {{{words}}}}}" for index, words in enumerate(bodies))
    found = design("+experiment=mine", *overrides, folder=body(f"{lines}\n{more}", tmp_path))
    conditions = [found.condition(f"c{index}") for index in range(len(bodies))]
    return [(one.writes[0], " ".join(one.words)) for one in conditions]


def wrong(tmp_path: Path, words: str, *overrides: str, more: str = "") -> str:
    return faults("+experiment=mine", *overrides, folder=body(f"a: {{w: {{{words}}}}}\n{more}", tmp_path))


def refused(tmp_path: Path, cases: Sequence[tuple[str, str]]) -> None:
    """Each write, a condition of its own, is refused in a line of its own with the words given."""
    lines = "\n".join(f"c{index}: {{w: {{{words}}}}}" for index, (words, _) in enumerate(cases))
    said = faults("+experiment=mine", folder=body(lines, tmp_path)).splitlines()
    for index, (words, message) in enumerate(cases):
        own = [line for line in said if f"conditions.c{index}." in line]
        assert any(message in line for line in own), (words, message, own)


def vector(seed: int = 0, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape or (WIDTH,)).astype(np.float32)
