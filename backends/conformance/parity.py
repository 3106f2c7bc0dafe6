"""Two backends on one model: the same logits, and the same tokens wherever nothing is tied."""

from __future__ import annotations

import numpy as np

from backends.conformance.check import Check, Finding, Measurement, Tolerance, judged
from backends.conformance.equivariance import mixed_rows
from backends.conformance.subject import Subject, Suite
from backends.contract import Backend

SECTION = "across backends"
T3 = Tolerance("T3", 1e-3, "absolute, of logits")
MARGIN = 1e-2  # where the two best logits lie farther apart than this, both backends take the same token


def parity(one: Backend, other: Backend, suite: Suite = "short") -> list[Measurement]:
    """Two loaded backends of one model, in float32: logits of clean prompts, log-probabilities of the first
    new token and tokens of rows in unlike conditions. Raises OutOfMemory."""
    first, second = Subject(one, suite), Subject(other, suite)
    rows = mixed_rows(first)
    plain = [first.row(row.ids) for row in rows]
    logits = max(
        float(np.abs(mine - theirs).max())
        for mine, theirs in zip(first.logits(plain), second.logits(plain), strict=True)
    )
    mine, theirs = first.first(rows), second.first(rows)
    best = np.sort(mine, axis=-1)[:, -2:]
    clear = best[:, 1] - best[:, 0] > MARGIN
    turned = int((mine.argmax(axis=-1) != theirs.argmax(axis=-1))[clear].sum())
    said = list(zip(first.decode(rows), second.decode(rows), strict=True))
    near = sum(a.output_ids != b.output_ids and min(a.min_margin, b.min_margin) < MARGIN for a, b in said)
    differ = sum(a.output_ids != b.output_ids for a, b in said) - near
    broken = [f"{turned} first tokens differ beyond near-ties"] if turned else []
    broken += [f"the tokens of {differ} rows differ beyond near-ties"] if differ else []
    found = {
        LOGITS: Finding(logits),
        FIRST: Finding(float(np.abs(mine - theirs).max())),
        TOKENS: Finding(0.0, tuple(broken), {"rows": float(len(rows)), "near-ties": float(near)}),
    }
    return [judged(check, T3, finding) for check, finding in found.items()]


def _compared(_: Subject) -> Finding:
    raise TypeError("two backends are compared by `parity`")


LOGITS = Check("parity_logits", SECTION, T3, _compared, "logits of clean prompts agree")
FIRST = Check(
    "parity_first", SECTION, T3, _compared, "the first new token's probabilities agree, under writes"
)
TOKENS = Check("parity_tokens", SECTION, T3, _compared, "generated tokens agree, under writes")
