"""Where configuration files are, and which of them a group offers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner.config.errors import ConfigurationError, Problem


def conf_dir() -> Path:
    """The configuration files that come with the program: inside the package where it is installed, beside it
    in a source tree."""
    package = Path(__file__).resolve().parent.parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def config_folders(config_dir: Path | None) -> tuple[Path, ...]:
    """The folders to look in, the user's own first. Raises ConfigurationError where the user's is no folder,
    or has a YAML file of the same name as one of ours, which would silently not be read."""
    ours = conf_dir()
    if config_dir is None:
        return (ours,)
    folder = config_dir.expanduser().resolve()
    if not folder.is_dir():
        raise ConfigurationError(
            [Problem(str(config_dir), "--config-dir", "expected a folder, found none there")]
        )
    if folder == ours.resolve():
        return (ours,)
    clashes = [path.relative_to(folder) for path in sorted(folder.rglob("*.yaml"))]
    problems = [
        Problem(str(folder / path), "", f"patchbay has a {path} of its own; give this file another name")
        for path in clashes
        if (ours / path).is_file()
    ]
    if problems:
        raise ConfigurationError(problems)
    return (folder, ours)


def options(group: str, folders: Sequence[Path]) -> tuple[str, ...]:
    """The files that a group offers, sorted, without their ending."""
    found = {
        path.relative_to(folder / group).with_suffix("").as_posix()
        for folder in folders
        for path in (folder / group).rglob("*.yaml")
    }
    return tuple(sorted(found))
