"""`compare`: runs on the items that they share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from runner.commands.words import OUTPUT_ROOT, Command, Key, folder, formats, names, read, text
from runner.config.errors import ConfigurationError, Problem
from runner.status import DONE

if TYPE_CHECKING:
    from analyses.runs.comparison import Comparison

_MOST_NAMED = 3  # runs in the name of a file
FOLDER = "comparisons"
READOUT: Key[str | None] = Key("readout", text, None, "NAME", "what is compared (the primary readout)")
CONDITIONS: Key[tuple[str, ...]] = Key("conditions", names, (), "A,B", "only these conditions (all shared)")
OUT: Key[Path | None] = Key("out", folder, None, "PATH", f"the page (OUTPUT_ROOT/{FOLDER}/A_B.html)")
FORMAT = formats("table", "json")
COMMAND = Command(
    name="compare",
    about=(
        "Runs on the items that they share: differences of each condition and of each effect, paired and\n"
        "clustered, Holm over all; what differs in configuration, model, prompts, packages and machine.\n"
        "Three and more runs are each held against the first. Writes a page and prints its path."
    ),
    takes="RUN RUN [RUN ...]",
    least=2,
    most=None,
    keys=(READOUT, CONDITIONS, OUT, FORMAT, OUTPUT_ROOT),
    examples=(
        "patchbay compare n300_controls/v0001 n300_controls/v0002",
        "patchbay compare n300_controls/v0001 n300_controls readout=strict conditions=kv_only,kv_plain",
    ),
)


def run(words: Sequence[str], console: Console) -> int:
    """Print the comparison and write its page; status 0."""
    given = read(COMMAND, words)  # mistakes are told before anything heavy is loaded
    from analyses.report.compare_page import comparison_page
    from analyses.runs.compare import CompareError, compare
    from analyses.runs.compare_terminal import print_comparison
    from analyses.tables.run import load_run
    from runner.results.find_run import find_run
    from runner.results.store import StoreError, atomic_write

    root = given[OUTPUT_ROOT]
    folders = [find_run(word, root) for word in given.free]
    twice = [str(path) for place, path in enumerate(folders) if _among(path, folders[:place])]
    if twice:
        message = f"expected different runs, got {', '.join(twice)} twice"
        raise ConfigurationError([Problem("command line", "compare", message)])
    try:
        found = compare(
            [load_run(path) for path in folders], readout=given[READOUT], conditions=given[CONDITIONS]
        )
    except CompareError as error:
        raise ConfigurationError([Problem("command line", "compare", str(error))]) from error
    path = given[OUT]
    if path is None:
        path = root / FOLDER / _file_name(folders, given[READOUT], given[CONDITIONS])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, comparison_page(found).encode())
    except OSError as error:
        raise StoreError(
            f"{path}: the page cannot be written ({error.strerror}); choose another with out=PATH"
        ) from error
    if given[FORMAT] == "json":
        print(_as_json(found, path))
        return DONE
    print_comparison(found, console)
    console.print(Text(f"page: {path}"))
    return DONE


def _among(path: Path, others: Sequence[Path]) -> bool:
    return any(path.resolve() == other.resolve() for other in others)


def _file_name(folders: Sequence[Path], readout: str | None, conditions: Sequence[str]) -> str:
    """`A-v0001_B-v0002.html`: the same comparison is written to the same file."""
    told = [f"{path.resolve().parent.name}-{path.resolve().name}" for path in folders]
    rest = [*(told[_MOST_NAMED:]), *conditions]
    parts = [*told[:_MOST_NAMED], *([readout] if readout is not None else [])]
    if rest:
        parts.append(hashlib.sha256("\n".join(rest).encode()).hexdigest()[:8])
    return f"{'_'.join(parts)}.html"


def _as_json(found: Comparison, path: Path) -> str:
    import orjson

    body = {"page": str(path), **asdict(found)}
    return orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY, default=str).decode()
