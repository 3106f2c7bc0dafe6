"""Measure every check on every architecture and write the errors into docs/conformance.md:

python -m tests.measure_conformance
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from backends.conformance.check import Measurement
from backends.conformance.planted import plant
from backends.conformance.suite import run, run_planted
from backends.torch.backend import TorchBackend
from tests.models import CPU
from tests.test_conformance import MODELS, load

PAGE = Path(__file__).resolve().parent.parent / "docs" / "conformance.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
SHORT_NAMES = {"gemma3_text": "gemma3", "organism": "organism"}


def main() -> int:
    """Measure, write the page, and return 1 where anything is violated."""
    torch.set_num_threads(1)
    found: dict[str, list[Measurement]] = {}
    for name in MODELS:
        with TemporaryDirectory() as folder:
            found[name] = run(load(name, Path(folder)), "full")
        print(f"{name}: {sum(each.verdict == 'ok' for each in found[name])} ok")
    with TemporaryDirectory() as folder:
        planted = run_planted(TorchBackend(plant(Path(folder)), CPU), "full")
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{tables(found, planted)}\n{END}{after}", encoding="utf-8")
    found["planted"] = planted
    wrong = [(name, each) for name in found for each in found[name] if each.verdict == "violated"]
    for name, each in wrong:
        print(f"violated: {name}: {each.check.name}: {each.sentence}", file=sys.stderr)
    return 1 if wrong else 0


def tables(found: dict[str, list[Measurement]], planted: Sequence[Measurement]) -> str:
    """A table for each section, a column for each model; the planted model's checks at the end."""
    names = list(found)
    by_check = list(zip(*(found[name] for name in names), strict=True))
    lines: list[str] = []
    section = ""
    for each in by_check:
        if each[0].check.section != section:
            section = each[0].check.section
            head = " | ".join(SHORT_NAMES.get(name, name) for name in names)
            lines += ["", f"### {section.capitalize()}", "", f"| check | allowed | {head} |"]
            lines.append("|---|---|" + "---|" * len(names))
        cells = " | ".join(cell(one) for one in each)
        lines.append(f"| `{each[0].check.name}` | {allowed(each)} | {cells} |")
    lines += [
        "",
        f"### {planted[0].check.section.capitalize()}",
        "",
        "| check | allowed | error |",
        "|---|---|---|",
    ]
    lines += [f"| `{each.check.name}` | {allowed([each])} | {cell(each)} |" for each in planted]
    return "\n".join(lines[1:])


def cell(each: Measurement) -> str:
    """An error in one digit, `-` where the check says nothing of the model; violations stand out."""
    if each.error is None:
        return "-" if each.verdict == "not applicable" else "**violated**"
    error = "0" if each.error == 0 else f"{each.error:.0e}".replace("e-0", "e-")
    if each.tolerance.name == "chance":
        error = f"{each.error:.1f}"
    return f"**{error}**" if each.verdict == "violated" else error


def allowed(row: Sequence[Measurement]) -> str:
    """The tolerance, and that of mixtures of experts where it is another one."""
    names = dict.fromkeys(each.tolerance.name for each in row)
    return " or ".join(names)


if __name__ == "__main__":
    sys.exit(main())
