"""Which folder a RUN on the command line means."""

from __future__ import annotations

from pathlib import Path

from analyses.tables.run import TableError
from runner.config.errors import suggestion
from runner.results.store import versions


def find_run(word: str, output_root: Path = Path("outputs")) -> Path:
    """A RUN is a path, `name` (its newest version) or `name/v0003`. Raises TableError naming what exists."""
    for path in (Path(word), output_root / word):
        if (path / "manifest.json").is_file():
            return path
        if found := versions(path):
            return found[-1]
    names = sorted(p.name for p in output_root.iterdir() if p.is_dir()) if output_root.is_dir() else []
    known = f"{output_root} holds {', '.join(names)}" if names else f"{output_root} holds no runs"
    raise TableError(
        f"no run '{word}': expected a path, NAME or NAME/v0001; {known}{suggestion(word, names)}"
    )
