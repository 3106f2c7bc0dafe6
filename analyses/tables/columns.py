"""The names of a table's columns that are not readouts, in one place; nothing heavy is imported here."""

from __future__ import annotations

STRUCTURE: tuple[str, ...] = (
    "key",
    "experiment",
    "stage",
    "condition",
    "item",
    "donor",
    "target",
    "group",
    "split",
    "repeat",
    "seed",
    "status",
    "reason",
    "target_ids",
    "donor_ids",
    "n_prompt",
    "output_ids",
    "text",
    "n_new",
    "finish",
    "origin",
    "batch_rows",
    "batch_length",
    "min_margin",
)
GRID = "grid"  # grid axes are the columns `grid.<axis>`
LENGTHS = ("n_prompt", "n_new")  # of these, the ones that can be covariates beside readouts
RECEIPTS = (
    "positions_prefill",
    "positions_decode",
    "relative_change",
    "asked_prefill",
    "asked_decode",
    "positions_shadowed",
    "decode_shadowed",
    "keys_ahead",
    "logit_change",
)
# What a readout's column holds: one number; a list of numbers; a list of whole numbers (ranks, token ids).
NUMBER, NUMBERS, INTEGERS = "number", "numbers", "integers"
