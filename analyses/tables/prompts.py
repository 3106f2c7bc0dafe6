"""Token ids of a table as codes: which cells hold the same tokens, found without a loop over cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Codes = NDArray[np.int64]
Tokens = tuple[int, ...]


def types_of_pandas(kind: pa.DataType) -> Any:
    """How pandas holds a column of a Parquet table: token ids stay as Arrow has them, which costs nothing
    until they are read; everything else is as pandas would have it (None)."""
    tokens = pa.types.is_list(kind) and kind.value_type == pa.int32()
    return pd.ArrowDtype(kind) if tokens or pa.types.is_map(kind) else None


def token_codes(column: pd.Series) -> tuple[Codes, Codes]:
    """(codes, lengths) of lists of tokens: equal codes for equal lists, -1 and 0 where there is no list or
    an empty one."""
    held = _arrow(column, pa.types.is_list)
    if held is not None:
        codes, lengths = _coded(held)
        return np.where(lengths > 0, codes, -1), lengths
    known: dict[Tokens, int] = {}
    cells = [() if _missing(cell) else tuple(int(token) for token in cell) for cell in column]
    found = [known.setdefault(cell, len(known)) if cell else -1 for cell in cells]
    return np.array(found, dtype=np.int64), np.array([len(cell) for cell in cells], dtype=np.int64)


@dataclass(frozen=True)
class Roles:
    """The prompts in the roles of `donor_ids`. codes: role -> the code of its prompt in each row, -1 where
    the row has none."""

    codes: Mapping[str, Codes]
    _prompts: Sequence[Tokens] | pa.Array  # an Arrow array has the tokens as bytes

    def __len__(self) -> int:
        """How many different prompts there are."""
        return len(self._prompts)

    def tokens(self, code: int) -> Tokens:
        """The tokens of a code."""
        if isinstance(self._prompts, pa.Array):
            return tuple(np.frombuffer(self._prompts[code].as_py(), dtype=np.int32).tolist())
        return self._prompts[code]

    @staticmethod
    def of(column: pd.Series) -> Roles:
        """The roles of a column of maps, or of lists of pairs, from role to tokens; also of categories of
        such cells, which are looked at once each."""
        if isinstance(column.dtype, pd.CategoricalDtype):
            each = _roles_of_python(pd.Series(column.cat.categories, dtype=object))
            places = column.cat.codes.to_numpy()
            # The last is of cells that are missing.
            found = {role: np.append(codes, -1)[places] for role, codes in each.codes.items()}
            return Roles(found, each._prompts)
        held = _arrow(column, pa.types.is_map)
        return _roles_of_python(column) if held is None else _roles_of_arrow(held)


def ids_by_role(cell: object) -> dict[str, Tokens]:
    """One `donor_ids` of a table: tokens by role, empty where nothing is recorded."""
    pairs = cell.items() if isinstance(cell, Mapping) else cell if isinstance(cell, Iterable) else ()
    return {str(role): tuple(tokens) for role, tokens in pairs}


def _arrow(column: pd.Series, form: Any) -> pa.ChunkedArray | None:
    """The Arrow array behind a column of token ids; None where pandas holds Python objects."""
    dtype = column.dtype
    if not isinstance(dtype, pd.ArrowDtype) or not form(dtype.pyarrow_dtype):
        return None
    held = pa.chunked_array(column.array.__arrow_array__())
    inner = held.type.item_type if pa.types.is_map(held.type) else held.type
    return held if inner.value_type == pa.int32() else None


def _coded(lists: pa.ChunkedArray) -> tuple[Codes, Codes]:
    """Codes and lengths of lists of int32; a missing list counts as an empty one."""
    codes, _ = _encoded(lists.chunks)
    return codes, _lengths(lists.chunks)


def _encoded(lists: Sequence[pa.ListArray]) -> tuple[Codes, pa.Array]:
    """Codes of lists, and the distinct ones as bytes."""
    # The chunks of an encoded array share one dictionary.
    chunks = pc.dictionary_encode(pa.chunked_array(map(_as_bytes, lists), pa.large_binary())).chunks
    if not chunks:
        return np.empty(0, dtype=np.int64), pa.array([], pa.large_binary())
    codes = np.concatenate([np.asarray(each.indices) for each in chunks]).astype(np.int64)
    return codes, chunks[-1].dictionary


def _as_bytes(lists: pa.ListArray) -> pa.Array:
    """The same lists as bytes, which Arrow can hash; no token is copied."""
    offsets = (np.asarray(lists.offsets).astype(np.int64) + lists.values.offset) * 4
    data = lists.values.buffers()[1] or pa.py_buffer(b"")
    return pa.Array.from_buffers(pa.large_binary(), len(lists), [None, pa.py_buffer(offsets), data])


def _lengths(chunks: Sequence[Any]) -> Codes:
    """How many entries each list or map has."""
    found = [np.diff(np.asarray(each.offsets)) for each in chunks]
    return np.concatenate(found).astype(np.int64) if found else np.empty(0, dtype=np.int64)


def _roles_of_arrow(maps: pa.ChunkedArray) -> Roles:
    # `keys` and `items` are those of the whole array, whatever part of it a chunk is.
    ends = [(each.offsets[0].as_py(), each.offsets[-1].as_py()) for each in maps.chunks]
    keys = [each.keys.slice(a, b - a) for each, (a, b) in zip(maps.chunks, ends, strict=True)]
    lists = [each.items.slice(a, b - a) for each, (a, b) in zip(maps.chunks, ends, strict=True)]
    row = np.repeat(np.arange(len(maps)), _lengths(maps.chunks))
    codes, prompts = _encoded(lists)
    named, names = pd.factorize(pa.chunked_array(keys, pa.string()).to_pandas())
    found = {}
    for place, name in enumerate(names):
        mine = named == place
        found[str(name)] = np.full(len(maps), -1, dtype=np.int64)
        found[str(name)][row[mine]] = codes[mine]
    return Roles(found, prompts)


def _roles_of_python(column: pd.Series) -> Roles:
    known: dict[Tokens, int] = {}
    found: dict[str, Codes] = {}
    for row, cell in enumerate(column):
        for role, tokens in ids_by_role(cell).items():
            of_role = found.setdefault(role, np.full(len(column), -1, dtype=np.int64))
            of_role[row] = known.setdefault(tokens, len(known))
    return Roles(found, tuple(known))


def _missing(cell: object) -> bool:
    return cell is None or cell is pd.NA or isinstance(cell, float)
