"""Which formats an SAE can be read from. A further one is an entry of READERS: the files by which it is
known, and three functions that return the same types."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from backends.sae import folder as own
from backends.sae.types import Chosen, Description, Sae, SaeError


@dataclass(frozen=True)
class Reader:
    """A format. files: names that a folder of it has, all of them. describe: without the weights; choose:
    some features, without the others where the format allows it. Each raises SaeError."""

    name: str
    files: tuple[str, ...]
    describe: Callable[[Path], Description]
    load: Callable[[Path], Sae]
    choose: Callable[[Path, Sequence[int]], Chosen]


READERS = (Reader("patchbay", (own.DESCRIPTION, own.WEIGHTS), own.describe, own.load, own.choose),)


def read(folder: str | os.PathLike[str]) -> Description:
    """What an SAE is, without its weights: for checks before anything is loaded. Raises SaeError."""
    return _reader(Path(folder)).describe(Path(folder))


def load(folder: str | os.PathLike[str]) -> Sae:
    """An SAE with its weights. Raises SaeError with all that is wrong."""
    return _reader(Path(folder)).load(Path(folder))


def choose(folder: str | os.PathLike[str], indices: Sequence[int]) -> Chosen:
    """Some features of an SAE, in the order asked for. Raises SaeError, also for features that it does not
    have."""
    return _reader(Path(folder)).choose(Path(folder), indices)


def _reader(folder: Path) -> Reader:
    if not folder.is_dir():
        raise SaeError(f"expected the folder of an SAE, found no folder '{folder}'")
    there = {path.name for path in folder.iterdir()}
    for reader in READERS:
        if there.issuperset(reader.files):
            return reader
    looked_for = "; or ".join(f"{' and '.join(each.files)} ({each.name})" for each in READERS)
    shown = sorted(there)[:8]
    more = f" and {len(there) - len(shown)} more" if len(there) > len(shown) else ""
    raise SaeError(
        f"'{folder}' holds no SAE of a known format: looked for {looked_for}; found "
        f"{', '.join(shown) if shown else 'nothing'}{more}"
    )
