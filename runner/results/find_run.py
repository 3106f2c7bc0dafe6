"""Which folder a RUN on the command line means."""

from __future__ import annotations

from pathlib import Path

from analyses.runs.folders import SWEEP, VERSION, run_folders, versions
from analyses.tables.run import TableError
from runner.config.errors import listed, suggestion

_MOST = 20  # names that a message lists


def find_run(word: str, output_root: Path = Path("outputs")) -> Path:
    """A RUN is a path, `name` (its newest version) or `name/v0003`. Raises TableError naming what exists."""
    for path in (Path(word), output_root / word):
        if (path / "manifest.json").is_file():
            return path
        if found := versions(path):
            return found[-1]
    if not output_root.is_dir():
        raise TableError(f"no run '{word}': {output_root} is not there; another is given as output_root=DIR")
    if (output_root / word).is_dir() and SWEEP.fullmatch(Path(word).name):
        raise TableError(
            f"'{word}' is a sweep, not a run: its page is {output_root / word / 'report.html'}, its runs are "
            f"in `ls {Path(word).parts[0]}`"
        )
    parent = output_root / Path(word).parent
    if VERSION.fullmatch(Path(word).name) and (known := versions(parent)):
        if (output_root / word).is_dir():
            raise TableError(f"{output_root / word} has no manifest: it was stopped before it had one")
        raise TableError(f"no run '{word}': {parent} holds {_some([path.name for path in known])}")
    if (known := versions(parent)) and parent != output_root:
        raise TableError(
            f"no run '{word}': expected {Path(word).parent}/VERSION; {parent} holds "
            f"{_some([path.name for path in known])}"
        )
    names = list(dict.fromkeys(folder.parent.name for folder in run_folders(output_root)))
    holds = f"{output_root} holds {_some(names)}" if names else f"{output_root} holds no runs"
    raise TableError(
        f"no run '{word}': expected a path, NAME or NAME/v0001; {holds}{suggestion(word, names)}"
    )


def _some(names: list[str]) -> str:
    return listed(names[:_MOST]) + (f" and {len(names) - _MOST} more" if len(names) > _MOST else "")
