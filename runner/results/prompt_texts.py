"""The texts of the prompts of a run, so that its folder can be read without its tokenizer and its banks."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from backends.tokenizer import Tokenizer
from runner.plan import Plan

SCHEMA = pa.schema([("ids", pa.list_(pa.int32())), ("text", pa.string())])


def prompt_texts(planned: Iterable[tuple[Plan, Tokenizer]]) -> pa.Table:
    """One row for each different prompt that a plan feeds or reads from: its ids, as `target_ids` and
    `donor_ids` of the trials have them, and the text that they stand for, special tokens left out."""
    found: dict[tuple[int, ...], str] = {}
    for plan, tokenizer in planned:
        for ids in plan.ledger.prompts:
            if ids not in found:
                found[ids] = tokenizer.decode(ids)
    return pa.table({"ids": [list(ids) for ids in found], "text": list(found.values())}, schema=SCHEMA)
