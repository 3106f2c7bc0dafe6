"""Which fields of one write go together."""

from __future__ import annotations

import re
from collections.abc import Iterator

from runner.config.spec import ConditionSpec, WriteSpec

_HOLD_MEANS = (
    "last (the window's last row), cycle (row t mod n), mean, lockstep (the donor's own t-th generated "
    "token), or sliding (the context's last N positions, rewritten at every step; needs positions: last:N "
    "and recompute: true)"
)
_SHUFFLED = ("shuffled_window", "shuffled_sequence")


def broken_rules(write: WriteSpec, body: ConditionSpec) -> Iterator[tuple[str, str]]:
    """(field, sentence) for every rule that a write breaks within its condition."""
    word = (write.value or "").partition(":")[0]
    yield from _phase(write, word, body)
    if write.site == "kv_cache":
        yield from _kv(write, word, body)
    else:
        for field in ("part", "align", "rope", "keep_sink"):
            if field in write.model_fields_set:
                yield field, f"{field} belongs to kv_cache writes; {write.site} has none, remove it"
    if write.alpha != 1 and write.op != "add":
        yield "alpha", f"alpha scales what is added; op {write.op} has no use for it"
    if write.draws > 1 and word not in ("random", *_SHUFFLED):
        yield "draws", f"draws counts random draws; the value {write.value} is the same in every repeat"
    if write.site == "kv_cache" and write.min_positions > 1:
        yield "min_positions", "the guard is on outputs of a module; a kv_cache write has none, remove it"


def _phase(write: WriteSpec, word: str, body: ConditionSpec) -> Iterator[tuple[str, str]]:
    decodes = write.during in ("decode", "both")
    has_window = write.op != "zero" and word != "random"
    if write.site == "kv_cache":
        if decodes:
            yield (
                "during",
                f"kv_cache is written between prefill and decode; expected prefill, got {write.during}",
            )
        if write.hold is not None:
            yield (
                "hold",
                "hold says what a new token gets in decode; kv_cache is not written there, remove it",
            )
        return
    if not decodes and write.hold is not None:
        yield (
            "hold",
            f"hold says what a new token gets in decode; this write is during: {write.during}, remove it",
        )
    if decodes and has_window and write.hold is None:
        yield "hold", f"a write in decode needs a hold: {_HOLD_MEANS}"
    if decodes and not has_window and write.hold is not None:
        yield "hold", f"hold: {write.hold} picks from a window, and this write has none; remove it"
    if write.hold == "sliding" and not re.fullmatch(r"last:\d+", write.positions):
        yield (
            "positions",
            f"sliding rewrites the last N positions of the context; expected last:N, got {write.positions}",
        )
    if write.hold == "sliding" and not body.recompute:
        yield (
            "hold",
            "sliding rewrites positions that a cache has fixed; expected recompute: true in the condition",
        )
    if write.hold == "lockstep" and word in _SHUFFLED:
        yield (
            "hold",
            "lockstep takes the donor's own generated tokens in turn, which have no window to shuffle",
        )


def _kv(write: WriteSpec, word: str, body: ConditionSpec) -> Iterator[tuple[str, str]]:
    if body.recompute:
        yield "site", "kv_cache cannot be written with recompute: true, which keeps no cache"
    if write.align in ("whole", "concat"):
        if write.layers != "all":
            yield (
                "layers",
                f"align {write.align} changes how many slots there are; expected all, got {write.layers}",
            )
        if write.positions != "all":
            message = (
                f"align {write.align} takes the donor's cache entire; expected all, got {write.positions}"
            )
            yield "positions", message
        for field, usual in (("part", "both"), ("heads", None), ("op", "replace"), ("keep_sink", False)):
            if getattr(write, field) != usual:
                message = f"align {write.align} takes the donor's cache entire; {field} cannot limit it"
                yield field, message
        if word in ("random", "") or write.op == "zero":
            yield "align", f"align {write.align} needs the cache of another prompt, and this value has none"
    if word in _SHUFFLED and write.part == "both" and write.rope == "keep" and write.expect != "noop":
        yield (
            "value",
            "keys keep their rotary position and attention is a set function, so that permuting keys and "
            "values together changes nothing; expected part: values (against keys that stay), or expect: "
            "noop if that is meant",
        )
