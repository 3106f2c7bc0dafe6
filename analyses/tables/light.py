"""The table of a run as the summary reads it: the columns that it needs, each in the narrowest form that says
the same, so that hundreds of thousands of trials are some tens of megabytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from analyses.tables.columns import RECEIPTS
from analyses.tables.prompts import Roles, ids_by_role, types_of_pandas
from analyses.tables.run import TableError

# What nothing but the report, the notebook and other programs reads.
NOT_READ = ("key", "experiment", "seed", "text", "target_ids")
# Names of which a run has few: numbers of sorted names. Reasons are texts, since they are counted in order.
_NAMES = ("stage", "condition", "item", "donor", "target", "group", "split", "status", "finish", "origin")
_COUNTS = ("repeat", "n_prompt", "n_new", "batch_rows", "batch_length")
_PART = 16_384  # rows of which the maps are compared at once
_EXACT = 2**24  # whole numbers below it are the same in 32 bits


def light_trials(folder: Path) -> pd.DataFrame:
    """The trials of a run that has ended, without NOT_READ: names as categories, in their order, counts and
    positions of receipts in 32 bits, `donor_ids` as categories of pairs of role and tokens. Raises TableError
    where the table cannot be read."""
    path = folder / "trials.parquet"
    try:
        names = [name for name in pq.read_schema(path).names if name not in NOT_READ]
        # One column at a time, so that no more than one is there twice.
        columns = {name: _read(path, name) for name in names}
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"{path}: expected a Parquet table, but it cannot be read: {error}") from error
    pa.default_memory_pool().release_unused()
    return pd.DataFrame(columns, copy=False)


def _read(path: Path, name: str) -> pd.Series:
    if name == "donor_ids":
        with pq.ParquetFile(path) as file:
            return _donors(file.iter_batches(_PART, columns=[name]))
    words = [name] if name in _NAMES else []
    return _narrowed(name, pq.read_table(path, columns=[name], read_dictionary=words)[name])


def _narrowed(name: str, column: pa.ChunkedArray) -> pd.Series:
    if name in _NAMES:
        return _named(column)
    if name == "reason" and column.null_count == len(column):
        return _categories(np.full(len(column), -1, dtype=np.int32), pd.Index([], dtype=object))
    if name in _COUNTS and not column.null_count and pa.types.is_integer(column.type):
        return pd.Series(column.cast(pa.int32()).to_pandas())
    if name.rpartition(".")[2] in RECEIPTS and pa.types.is_integer(column.type):
        ends = pc.min_max(column).as_py()
        if all(end is None or abs(end) < _EXACT for end in ends.values()):
            return pd.Series(column.cast(pa.float32()).to_pandas())
    frame: pd.DataFrame = pa.table({name: column}).to_pandas(types_mapper=types_of_pandas)
    return frame[name]


def _named(column: pa.ChunkedArray) -> pd.Series:
    """Names as categories, which are in their order."""
    found = column.unify_dictionaries().combine_chunks()
    found = found if pa.types.is_dictionary(found.type) else found.dictionary_encode()
    names = found.dictionary.to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    places = np.empty(len(names) + 1, dtype=np.int32)
    places[order], places[-1] = np.arange(len(names)), -1
    codes = places[found.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)]
    return _categories(codes, pd.Index([names[place] for place in order], dtype=object))


def _donors(parts: Iterator[pa.RecordBatch]) -> pd.Series:
    """Maps from role to tokens as categories: of most tables there are far fewer than rows."""
    known: dict[object, int] = {}
    codes = [np.empty(0, dtype=np.int32)]
    for part in parts:
        column = part.column(0)
        roles = Roles.of(pd.Series(column, dtype=pd.ArrowDtype(column.type))).codes
        apart = np.stack([np.zeros(len(column), dtype=np.int64), *roles.values()], axis=1)
        _, rows, again = np.unique(apart, axis=0, return_index=True, return_inverse=True)
        cells = [ids_by_role(cell) for cell in column.take(pa.array(rows)).to_pylist()]
        numbers = [known.setdefault(tuple(cell.items()), len(known)) for cell in cells]
        codes.append(np.array(numbers, dtype=np.int32)[again.ravel()])
    every = np.empty(len(known), dtype=object)
    every[:] = list(known)
    return _categories(np.concatenate(codes), pd.Index(every, tupleize_cols=False))


def _categories(codes: NDArray[np.int32], categories: pd.Index[Any]) -> pd.Series:
    kind: Any = pd.Categorical
    return pd.Series(kind.from_codes(codes, categories))
