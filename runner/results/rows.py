"""A table that is made and read a part at a time, so that it is never in memory as a whole."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class Rows:
    """The rows of a table, in order, in tables of one schema. parts: may be read more than once where it is
    no iterator."""

    schema: pa.Schema
    parts: Iterable[pa.Table]

    @staticmethod
    def of(table: pa.Table) -> Rows:
        """A table that is in memory."""
        return Rows(table.schema, (table,))

    def table(self, but: Sequence[str] = ()) -> pa.Table:
        """All rows at once, without the columns named."""
        kept = [name for name in self.schema.names if name not in but]
        empty = self.schema.empty_table().select(kept)
        return pa.concat_tables([empty, *(part.select(kept) for part in self.parts)])


@dataclass(frozen=True)
class Parts:
    """What `make` yields, anew whenever it is read."""

    make: Callable[[], Iterator[pa.Table]]

    def __iter__(self) -> Iterator[pa.Table]:
        return self.make()


def give_back() -> None:
    """Return freed memory to the system, which Arrow and the C library keep for later."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # glibc alone has it
        trim(0)


def in_groups(rows: Rows, size: int) -> Iterator[pa.Table]:
    """The rows in tables of `size` rows, the last smaller; one without rows where there are none."""
    held: list[pa.Table] = []
    count = 0
    for part in rows.parts:
        held.append(part)
        count += part.num_rows
        while count >= size:
            whole = pa.concat_tables(held)
            yield whole.slice(0, size).combine_chunks()
            held, count = [whole.slice(size)], count - size
    if count:
        yield pa.concat_tables(held).combine_chunks()


def below(tables: Sequence[Rows]) -> Rows:
    """Tables below each other; a column that one lacks is null there, and a column of different types in two
    (an axis of numbers and words) holds texts."""
    if len(tables) == 1:
        return tables[0]
    types: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for column in table.schema:
            types.setdefault(column.name, set()).add(column.type)
    mixed = {
        name
        for name, found in types.items()
        if name.startswith("grid.") and pa.string() in found and len(found - {pa.null()}) > 1
    }
    schemas = [_texts(table.schema, mixed) for table in tables]
    schema = pa.unify_schemas(schemas, promote_options="permissive")

    def parts() -> Iterator[pa.Table]:
        for table in tables:
            for part in table.parts:
                empty = schema.empty_table()
                yield pa.concat_tables([empty, as_texts(part, mixed)], promote_options="permissive")

    return Rows(schema, Parts(parts))


def _texts(schema: pa.Schema, names: set[str]) -> pa.Schema:
    return pa.schema([pa.field(each.name, pa.string()) if each.name in names else each for each in schema])


def as_texts(table: pa.Table, names: set[str]) -> pa.Table:
    """The same with the columns named as texts."""
    for name in names & set(table.column_names):
        values = [None if value is None else str(value) for value in table[name].to_pylist()]
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))
    return table
