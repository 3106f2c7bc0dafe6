"""Which fields of one write go together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from backends.positions import POST_INSTRUCTION
from backends.writes import LAYERLESS, SELF
from runner.config.errors import listed, suggestion
from runner.config.spec import ConditionSpec, WriteSpec
from runner.config.writes.values import (
    NO_VALUE,
    RANDOM,
    SHUFFLED,
    has_source,
    reads_artefact,
    shown,
    stands_in_for,
    value_word,
)

_HOLD_MEANS = (
    "last (the window's last row), cycle (row t mod n), mean, lockstep (the donor's own t-th generated "
    "token), or sliding (the context's last N positions, rewritten at every step; needs positions: last:N "
    "and recompute: true)"
)
_OPS: Mapping[str, tuple[str, ...]] = {
    "kv_cache": ("replace", "add", "zero"),
    "sae": ("set_feature", "scale", "zero"),
    "attention_edge": ("mask",),
}
_OPS_ELSEWHERE = ("replace", "add", "scale", "project_out", "zero")
_SITE_OF = {"set_feature": "sae", "mask": "attention_edge"}
_SCALED = ("add", "scale", "project_out")  # operations in which alpha counts
_OWN_FIELDS: Mapping[str, tuple[str, ...]] = {
    "kv_cache": ("part", "align", "rope", "keep_sink"),
    "sae": ("sae", "features", "round_trip"),
    "attention_edge": ("keys",),
}
_VECTORS = ("mean", "file", "artefact", "orthogonal", "layer")
_LAST = ("index:-1", "last:1")
_SPANS = ("role", "token", POST_INSTRUCTION)
_MAKE_UNREAD = {"align", "rope", "part", "op", "value", "positions"}
_ONE_ROW = re.compile(r"(index:.*|first:1|last:1|token:.*|role:.*\.(first|last))", re.DOTALL)


def broken_rules(write: WriteSpec, body: ConditionSpec) -> Iterator[tuple[str, str]]:
    """(field, sentence) for every rule that a write breaks within its condition."""
    word = value_word(write)
    yield from _phase(write, word, body)
    for site, own in _OWN_FIELDS.items():
        for field in own if write.site != site else ():
            if write.given(field):
                yield field, f"{field} belongs to {site} writes; {write.site} has none, remove it"
    yield from _operation(write)
    yield from _values(write, word)
    if write.from_layer is not None:
        yield from _from_layer(write, word)
    if write.from_positions is not None:
        yield from _from_positions(write, word)
    if write.site == "kv_cache":
        yield from _kv(write, word, body)
    elif write.site == "sae":
        yield from _sae(write)
    elif write.site == "attention_edge":
        yield from _edges(write)
    elif write.site == "logits" and write.during != "decode" and write.given("positions"):
        yield from _logits(write)


def _operation(write: WriteSpec) -> Iterator[tuple[str, str]]:
    ops = _OPS.get(write.site, _OPS_ELSEWHERE)
    if write.op not in ops:
        where = _SITE_OF.get(write.op)
        belongs = "" if where is None else f"; {write.op} belongs to {where}"
        near = "" if where is not None else suggestion(write.op, ops)
        yield "op", f"expected {_one_of(ops)} at {write.site}, got {write.op}{belongs}{near}"
    if write.op == "scale" and not write.given("alpha"):
        yield "alpha", "op scale multiplies by alpha, which is missing; expected a number, 1 changes nothing"
    if write.alpha != 1 and write.op not in _SCALED:
        yield "alpha", f"alpha counts in {listed(_SCALED)}; op {write.op} has no use for it"
    if write.given("unit") and (write.op != "add" or write.site == "kv_cache"):
        at = " at kv_cache" if write.op == "add" else ""
        yield "unit", f"unit says in what the alpha of add counts; op {write.op}{at} has no use for it"


def _values(write: WriteSpec, word: str) -> Iterator[tuple[str, str]]:
    if write.draws > 1 and word not in RANDOM:
        yield (
            "draws",
            f"draws counts random draws; the value {write.value} is the same in every repeat",
        )
    if write.under is not None and not has_source(write):
        yield (
            "under",
            f"under says in which condition the source is read, and {_no_source(write)} has no source; "
            "remove it",
        )
    if write.op in NO_VALUE:
        return
    if word == "shuffled_window" and _ONE_ROW.fullmatch(write.positions):
        yield (
            "value",
            f"a window of one row ({write.positions}) has no order to permute, so that {shown(write.value)} "
            "is the row itself; expected a longer window, or shuffled_sequence",
        )
    if write.site == "kv_cache" and (word in _VECTORS or stands_in_for(write)):
        yield (
            "value",
            f"kv_cache takes rows of a cache, noise or zeros, got {shown(write.value)}; k_proj and v_proj "
            "take vectors",
        )
    if write.op == "set_feature" and word in (*RANDOM, "layer"):
        yield (
            "value",
            f"expected the value of a feature: a number, a donor's (donor), mean:SET or file:PATH, got "
            f"{shown(write.value)}",
        )
    elif write.site in LAYERLESS and word == "layer":
        yield (
            "value",
            f"{write.site} has no layers of which another one could be read, got {shown(write.value)}",
        )


def _no_source(write: WriteSpec) -> str:
    return f"op {write.op}" if write.op in NO_VALUE else f"the value {write.value}"


def _from_layer(write: WriteSpec, word: str) -> Iterator[tuple[str, str]]:
    """Whether there is a source that could be read at another layer. Which layers an artefact has is told
    with the value."""
    if word == "layer":
        yield "from_layer", f"{write.value} says the layer already; expected one or the other"
    elif write.site == "kv_cache":
        yield "from_layer", "kv_cache takes each layer's keys and values from the same layer; remove it"
    elif write.site == "sae":
        yield "from_layer", "the features of an SAE are those of the layer that it is hooked at; remove it"
    elif reads_artefact(write) and write.op not in NO_VALUE:
        return
    elif "file" in (word, stands_in_for(write)):
        yield (
            "from_layer",
            "the vectors of a file are for the layers that they are written at; expected a file with one "
            "vector, or an artefact",
        )
    elif not has_source(write):
        yield (
            "from_layer",
            f"from_layer says at which layer the source is read, and {_no_source(write)} has none; remove it",
        )
    elif write.site in LAYERLESS:
        yield "from_layer", f"{write.site} has no layers of which another one could be read; remove it"


def _from_positions(write: WriteSpec, word: str) -> Iterator[tuple[str, str]]:
    """Whether there is a source whose positions could be counted apart. Which positions an artefact has is
    told with the value."""
    assert write.from_positions is not None
    if write.site == "kv_cache":
        yield "from_positions", "align says which slots of two caches meet; remove it"
    elif reads_artefact(write) and write.op not in NO_VALUE:
        return
    elif not has_source(write):
        yield (
            "from_positions",
            f"from_positions are counted on the source, and {_no_source(write)} has none; remove it",
        )
    elif word in SHUFFLED:
        yield (
            "from_positions",
            f"{word} permutes the rows of the window that `positions` name in the source; expected one or "
            "the other",
        )
    elif write.during == "decode" and write.hold == "lockstep":
        yield (
            "from_positions",
            "lockstep takes the donor's own generated tokens in turn, so that nothing reads them; remove it",
        )
    elif write.during == "decode" and write.hold != "sliding":
        if write.given("positions"):
            yield (
                "from_positions",
                "in decode the window is counted on the source alone, so that nothing reads positions beside "
                "from_positions; expected one of them",
            )
    else:
        written, read = (static_rows(each) for each in (write.positions, write.from_positions))
        if None not in (written, read) and read not in (1, written):
            wanted = "one position" if written == 1 else f"one position, or {written} for {write.positions}"
            yield "from_positions", f"expected {wanted}, got {write.from_positions}"


def static_rows(positions: str) -> int | None:
    """How many positions a word names in every prompt; None where the prompt decides."""
    if _ONE_ROW.fullmatch(positions):
        return 1
    counted = re.fullmatch(r"(?:first|last):(\d+)", positions)
    return None if counted is None else int(counted[1])


def _phase(write: WriteSpec, word: str, body: ConditionSpec) -> Iterator[tuple[str, str]]:
    decodes = write.during in ("decode", "both")
    has_window = has_source(write)
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
    if write.hold == "lockstep" and word in SHUFFLED:
        yield (
            "hold",
            "lockstep takes the donor's own generated tokens in turn, which have no window to shuffle",
        )


def unread_words(write: WriteSpec) -> Iterator[tuple[str, str]]:
    """(field, why) for words about another cache that nothing reads in a kv_cache write, given or not.

    Two writes that differ in one of them alone are one and the same.
    """
    entire = write.align in ("whole", "concat")
    if not has_source(write):
        what = _no_source(write)
        if not entire:  # which is refused by itself
            yield "align", f"align says which slots of two caches meet, and {what} has no other cache"
        yield "rope", f"rope says what becomes of another cache's keys, and {what} has no other cache"
        return
    if write.positions.partition(":")[0] in _SPANS and not entire:
        yield "align", f"{write.positions} meets the span of the same name, wherever the two stand"
    elif write.value == SELF and not entire:
        yield "align", "the prompt's own cache is as long as itself, so that the same slots meet"
    if write.part == "values":
        yield "rope", "rope says what becomes of keys, and part: values writes none"
    elif write.align == "whole":
        yield "rope", "align whole moves no key"


def _unread(write: WriteSpec, body: ConditionSpec) -> Iterator[tuple[str, str]]:
    """Words that were given and that nothing reads. Those of a grid may be read in its other cells, and those
    that change nothing there (the own cache, align whole) go with words that differ."""
    name = next(name for name, each in body.writes.items() if each is write)
    swept = {axis.removeprefix(f"{name}.") for axis in body.grid if axis.startswith(f"{name}.")}
    if write.value == SELF or write.align == "whole" or swept & _MAKE_UNREAD:
        return
    for field, why in unread_words(write):
        if write.given(field):
            yield field, f"{why}; remove it"


def _kv(write: WriteSpec, word: str, body: ConditionSpec) -> Iterator[tuple[str, str]]:
    yield from _unread(write, body)
    if body.recompute:
        yield "site", "kv_cache cannot be written with recompute: true, which keeps no cache"
    if write.min_positions > 1:
        yield "min_positions", "the guard is on outputs of a module; a kv_cache write has none, remove it"
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
    if word in SHUFFLED and write.part == "both" and write.rope == "keep" and write.expect != "noop":
        yield (
            "value",
            "keys keep their rotary position and attention is a set function, so that permuting keys and "
            "values together changes nothing; expected part: values (against keys that stay), or expect: "
            "noop if that is meant",
        )


def _sae(write: WriteSpec) -> Iterator[tuple[str, str]]:
    if write.sae is None:
        yield "sae", "missing: expected the folder of the SAE whose features are written"
    if write.features is None:
        yield "features", "missing: expected a list of features such as [1402, 77]"
    if write.op == "scale" and write.alpha < 0:
        message = f"expected a factor that leaves features what they can be, 0 or more, got {write.alpha:g}"
        yield "alpha", message


def _edges(write: WriteSpec) -> Iterator[tuple[str, str]]:
    """`positions` are the queries and `keys` what they no longer see; both are to be said."""
    if write.keys is None:
        yield "keys", "missing: expected the positions that are no longer seen, such as role:subject"
    if write.during == "decode":
        if write.given("positions"):
            yield (
                "positions",
                "in decode the query is each new token, so that nothing reads positions; remove it",
            )
    elif not write.given("positions"):
        yield (
            "positions",
            "missing: expected the queries that no longer see `keys`, such as index:-1",
        )


def _logits(write: WriteSpec) -> Iterator[tuple[str, str]]:
    if write.positions not in _LAST:
        yield (
            "positions",
            "logits are read at the last prompt position alone; expected index:-1 (or no positions), got "
            f"{write.positions}",
        )


def _one_of(words: tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else f"one of {listed(words)}"
