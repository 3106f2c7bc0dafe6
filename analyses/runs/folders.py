"""Which folders under an output root are runs and sweeps, and which of them somebody writes now."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

VERSION = re.compile(r"v(\d{4,})")
SWEEP = re.compile(r"s(\d{4,})")


def run_folders(output_root: Path) -> list[Path]:
    """The version folders of all experiments under an output root, by name and number; none where there is
    no such folder."""
    return [version for name in _folders(output_root) for version in versions(name)]


def versions(experiment: Path) -> list[Path]:
    """The version folders of one experiment, oldest first; none where there is no such folder."""
    return _numbered(experiment, VERSION)


def sweep_folders(output_root: Path) -> list[Path]:
    """The folders with the combined tables of sweeps, by name and number."""
    return [sweep for name in _folders(output_root) for sweep in _numbered(name / "sweeps", SWEEP)]


def number(folder: Path) -> int:
    """The number of a version or a sweep: 12 of `v0012`."""
    return int(folder.name[1:])


def run_name(folder: Path) -> str:
    """A run as commands take it: `name/v0001`."""
    return f"{folder.parent.name}/{folder.name}"


def is_held(folder: Path) -> bool:
    """Whether a process holds the lock of a run, that is: writes it now."""
    try:
        lock = (folder / "lock").open("rb")
    except OSError:
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False


def size(folder: Path) -> int:
    """Bytes of all files in a folder. What vanishes while it is counted is not counted."""
    return sum(_sizes(folder))


def _sizes(folder: Path | str) -> Iterator[int]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _sizes(entry.path)
            else:
                yield entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(entry for entry in root.iterdir() if entry.is_dir())
    except OSError:
        return []


def _numbered(parent: Path, form: re.Pattern[str]) -> list[Path]:
    return sorted((path for path in _folders(parent) if form.fullmatch(path.name)), key=number)
