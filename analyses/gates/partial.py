"""Which writes fired at fewer positions than they were asked to, and all that can have kept them from it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from analyses.gates.gate import Gate
from analyses.gates.receipts import PHASES, Receipt
from analyses.wording import count, listed, plural

_NO_DONOR = ("self", "random", "none", "mean", "constant", "number")


def partial_gates(found: Sequence[Receipt]) -> list[Gate]:
    """One gate for every write that fired in part; conditions in which a write of the same name has the same
    figures share one, under the first of them."""
    sentences: dict[tuple[str, str], list[str]] = {}
    for receipt in found:
        for phase in PHASES:
            asked, written = receipt.asked[phase], receipt.written[phase]
            if phase in receipt.phases and 0 < written < asked:
                part = f"{count(written)} of {plural(asked, 'position')} asked were written"
                what = f"fired in part in {phase}: {part}; {'; '.join(_reasons(receipt, phase))}."
                sentences.setdefault((receipt.write, what), []).append(receipt.condition)
    return [
        Gate(
            conditions[0],
            "partial",
            "warn",
            f"{write} in {listed(conditions)} {'each ' if len(conditions) > 1 else ''}{what}",
        )
        for (write, what), conditions in sentences.items()
    ]


def _reasons(receipt: Receipt, phase: str) -> list[str]:
    """Everything that can have left positions out. The receipt does not tell them apart."""
    spec = receipt.spec
    window = str(spec.get("positions", "all"))
    reasons = []
    if spec.get("site") == "attention_edge":
        reasons.append(_edges(phase))
    elif spec.get("site") == "kv_cache":
        reasons.append("donor and target differ in length: only as many slots are replaced as both have")
    elif (
        phase == "prefill" and _from_donor(receipt) and not re.fullmatch(r"(first|last|index):-?\d+", window)
    ):
        reasons.append("donor and target differ in length: only as many positions are written as both have")
    if phase == "decode" and spec.get("hold") == "lockstep":
        reasons.append("the donor's own text ended first")
    if receipt.guard is not None:
        reasons.append(f"outputs of fewer than {receipt.guard} positions are left alone")
    return reasons or [f"some prompts or sources are shorter than the window {window}"]


def _edges(phase: str) -> str:
    if phase == "decode":
        return "the keys asked had left the attention window"
    return "the other queries have no such edge, standing before every key asked or too far behind"


def _from_donor(receipt: Receipt) -> bool:
    value = receipt.spec.get("value", "donor")
    words = (value.get("kind"), value.get("role")) if isinstance(value, dict) else (value,)
    return not any(word in _NO_DONOR for word in words)
