"""`patchbay check`: the identities that must hold on any model, measured on the one that is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, get_args

from rich.console import Console
from rich.table import Table
from rich.text import Text

from backends.hub import fetch
from runner import status
from runner.config.check import check
from runner.config.compose import Composed, compose
from runner.config.errors import ConfigurationError, Problem, listed, suggestion
from runner.config.provenance import COMMAND_LINE
from runner.config.resolve import Design, resolve
from runner.model_source import load_backend, model_source

if TYPE_CHECKING:
    from backends.conformance.check import Measurement
    from backends.conformance.subject import Suite
    from backends.contract import Backend

READ = ("model", "backend", "suite")  # what the command line of a check may set
# An experiment that says nothing, so that a model and a backend pass the same door as for a run.
_EMPTY = {"experiment": {"name": "check", "n": 1}, "conditions": {"baseline": {}}, "readouts": ["behaviour"]}
_STYLES = {"ok": "green", "violated": "bold red", "not applicable": "dim"}


@dataclass(frozen=True)
class Asked:
    """A check's command line, resolved."""

    design: Design
    suite: Suite


def check_model(words: Sequence[str], config_dir: Path | None, console: Console) -> int:
    """Load `model=... backend=...` (overrides as for a run; `suite=full` for every layer), measure every
    check on it and those with known truth on a planted model, and print what came out.

    Weights are run in float32, which the tolerances are for, unless `backend.dtype` says otherwise. Returns 0
    where all hold, 4 where one is violated. Raises ConfigurationError, BackendError, OutOfMemory.
    """
    from backends.conformance.planted import PLANTED
    from backends.conformance.suite import CHECKS

    asked = read_line(words, config_dir)
    source = fetch(model_source(asked.design))
    backend = load_backend(source, asked.design)
    info = backend.info
    console.print(
        f"{info.name}: {info.architecture}, {info.layers} layers, {info.dtype} on {info.device}, "
        f"{asked.suite} suite",
        markup=False,
    )
    found: list[Measurement] = []
    with planted(asked.design) as hand_made:
        for loaded, checks in ((backend, CHECKS), (hand_made, PLANTED)):
            found += _measured(loaded, asked.suite, checks, console)
    console.print(table(found))
    tell(found, console)
    return status.FAILED_TRIALS if any(each.verdict == "violated" for each in found) else status.DONE


def read_line(words: Sequence[str], config_dir: Path | None) -> Asked:
    """The model, backend and suite of a command line. Raises ConfigurationError with all mistakes."""
    from backends.conformance.subject import Suite

    suites = get_args(Suite)
    suite, overrides = "short", []
    problems = []
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        head = key.partition("@")[0].partition(".")[0].partition("/")[0]
        if head not in READ:
            message = f"a check reads {listed(READ)} alone{suggestion(head, READ)}"
            problems.append(Problem(COMMAND_LINE, word, message))
        elif key != "suite":
            overrides.append(word)
        elif value in suites:
            suite = value
        else:
            message = f"expected one of {listed(suites)}, got '{value}'{suggestion(value, suites)}"
            problems.append(Problem(COMMAND_LINE, "suite", message))
    if problems:
        raise ConfigurationError(problems)
    design = resolve(check(_with_empty_experiment(compose(overrides, config_dir))))
    if design.backend.dtype is None:
        design = replace(design, backend=design.backend.model_copy(update={"dtype": "float32"}))
    return Asked(design, suite)  # type: ignore[arg-type]


def _with_empty_experiment(composed: Composed) -> Composed:
    mapping = {**composed.mapping, **_EMPTY}
    contrasts = mapping.get("contrasts")
    if isinstance(contrasts, dict):
        mapping["contrasts"] = {**contrasts, "family": "none"}
    return replace(composed, mapping=mapping)


@contextmanager
def planted(design: Design) -> Iterator[Backend]:
    """The model with known truth, in the same backend."""
    from backends.conformance.planted import plant

    with TemporaryDirectory(prefix="patchbay_check_") as folder:
        bare = replace(design, model=design.model.model_copy(update={"vocabulary": None}))
        yield load_backend(plant(Path(folder)), bare)


def _measured(
    backend: Backend, suite: Suite, checks: Sequence[object], console: Console
) -> list[Measurement]:
    from backends.conformance.suite import measure

    found: list[Measurement] = []
    with console.status("") as line:
        for each in measure(backend, suite, checks):  # type: ignore[arg-type]
            found.append(each)
            line.update(f"{len(found)} of {len(checks)}: {each.check.name}")
    return found


def table(found: Sequence[Measurement]) -> Table:
    """Checks by section, with error, tolerance and verdict."""
    out = Table(box=None, pad_edge=False)
    for name in ("check", "error", "tolerance", "verdict"):
        out.add_column(name, justify="right" if name == "error" else "left", no_wrap=True)
    out.add_column("what must hold")
    section = ""
    for each in found:
        if each.check.section != section:
            section = each.check.section
            out.add_row(Text(section, style="bold"))
        bound = each.tolerance
        out.add_row(
            f"  {each.check.name}",
            "" if each.error is None else f"{each.error:.2g}",
            bound.name if bound.bound == 0 else f"{bound.name} {bound.bound:.2g}",
            Text(each.verdict, style=_STYLES[each.verdict]),
            Text(each.check.says),
        )
    return out


def tell(found: Sequence[Measurement], console: Console) -> None:
    """What is violated and why, what says nothing here and why, and the counts."""
    for verdict in ("not applicable", "violated"):
        for each in found:
            if each.verdict == verdict:
                line = f"{verdict}: {each.check.name}: {each.sentence}"
                console.print(Text(line, style=_STYLES[verdict]))
    counts = {verdict: sum(each.verdict == verdict for each in found) for verdict in _STYLES}
    near = sum(int(each.details.get("near-ties", 0)) for each in found)
    ties = f"; {near} near-ties of tokens accepted" if near else ""
    console.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) + ties)
