"""What each write of a row will do, as positions: free of tensors, shared by all backends.

Prompts are counted from their first real token. Prefill holds tokens 0..T-2 (all T where the last token is
replayed); the last prompt token is fed on its own afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from backends.noise import permutation, stream_of
from backends.positions import PositionError
from backends.rows import Row
from backends.writes import SELF, Write, same_tensor


@dataclass(frozen=True)
class Pairs:
    """Target positions and the source positions written there (None for values that have no source)."""

    target: np.ndarray
    source: np.ndarray | None

    def where(self, chosen: np.ndarray) -> Pairs:
        """The pairs whose entry of the boolean mask is set."""
        return Pairs(self.target[chosen], None if self.source is None else self.source[chosen])


@dataclass(frozen=True)
class WritePlan:
    """One write of one row. prefill: pairs asked of the prompt (not kv_cache); window: source positions
    that decode draws from; slots: pairs of cache slots (kv_cache)."""

    write: Write
    source: tuple[int, ...] | None
    asked: int = 0
    prefill: Pairs | None = None
    window: np.ndarray | None = None
    slots: Pairs | None = None


@dataclass(frozen=True)
class RowPlan:
    """A row with its writes resolved. slots: cached slots when the last prompt token is fed (its
    position)."""

    row: Row
    prefill_ids: tuple[int, ...]
    slots: int
    structural: WritePlan | None
    writes: tuple[WritePlan, ...]

    @property
    def kv(self) -> tuple[WritePlan, ...]:
        return tuple(w for w in self.writes if w.slots is not None)

    def plan_of(self, write: Write) -> WritePlan:
        return next(w for w in self.writes if w.write == write)


def plan_row(row: Row) -> RowPlan:
    """Resolve every write of a row. Raises PositionError when a prompt is shorter than a window, a source is
    missing, or the row asks for what cannot be (no tokens, kv_cache writes without a cache)."""
    if not row.ids:
        raise PositionError("the prompt has no tokens")
    prefill_ids = row.ids if row.replay_last_token else row.ids[:-1]
    plans = tuple(_plan_write(row, write, len(prefill_ids)) for write in row.writes)
    caches = [plan for plan in plans if plan.slots is not None]
    if len(caches) > 1 and any(not plan.write.has_old for plan in caches):
        raise PositionError(
            "a kv_cache write of align whole or concat stands alone: its slots are another cache's"
        )
    if row.recompute and any(p.slots is not None for p in plans):
        raise PositionError("kv_cache writes need a cache; recompute has none")
    _refuse_collisions(plans)
    structural = next((p for p in plans if not p.write.has_old), None)
    slots = len(prefill_ids)
    if structural is not None:
        assert structural.slots is not None
        taken = len(structural.slots.target)
        slots = taken if structural.write.align == "whole" else taken + len(prefill_ids)
    return RowPlan(row, prefill_ids, slots, structural, plans)


def _refuse_collisions(plans: Sequence[WritePlan]) -> None:
    """Whether two spans share a token is known only here: marks that share no character may share one."""
    for first, second in combinations(plans, 2):
        one, other = first.write, second.write
        if not (one.positions.span or other.positions.span) or one.order != other.order:
            continue
        if not same_tensor(one, other):
            continue
        shared = _targets(first) & _targets(second)
        if shared:
            raise PositionError(
                f"writes '{one.name}' and '{other.name}' both change {one.site} at token {min(shared)} of "
                "this prompt; they need a different order"
            )


def _targets(plan: WritePlan) -> set[int]:
    pairs = plan.slots if plan.slots is not None else plan.prefill
    return set() if pairs is None else set(pairs.target.tolist())


def source_ids(row: Row, write: Write) -> tuple[int, ...] | None:
    """Token ids of the prompt that a write draws from; None for values without a source."""
    if write.value.kind in ("random", "none"):
        return None
    if write.value.role == SELF:
        return row.ids
    if write.value.role not in row.sources:
        raise PositionError(f"the item has no donor in the role '{write.value.role}'")
    return row.sources[write.value.role]


def _plan_write(row: Row, write: Write, slots: int) -> WritePlan:
    source = source_ids(row, write)
    length = len(row.ids)
    if write.site == "kv_cache":
        return _plan_kv(row, write, source, slots)
    if source is None:
        order = None
    else:
        order = np.arange(len(source))
        if write.value.kind == "shuffled_sequence":
            order = permutation(shuffle_stream(row, write), len(source))
    prefill, window, asked = None, None, 0
    if write.during in ("prefill", "both"):
        target = np.array(write.positions.resolve(length, row.spans_of(SELF)), dtype=np.int64)
        asked = len(target)
        drawn = None if order is None else _window(row, write, order)
        if drawn is not None:
            _same_length(write, len(target), len(drawn))
            count = min(len(target), len(drawn))
            first = write.positions.kind == "first"
            target = target[:count] if first else target[len(target) - count :]
            drawn = drawn[:count] if first else drawn[len(drawn) - count :]
        prefill = Pairs(target, drawn).where(_long_enough(row, write, target, slots))
    if write.during in ("decode", "both") and order is not None:
        window = _window(row, write, order)
    return WritePlan(write, source, asked, prefill, window)


def _long_enough(row: Row, write: Write, target: np.ndarray, prefilled: int) -> np.ndarray:
    """Which positions come out of a forward with at least `min_positions` outputs: the prefill has
    `prefilled`, the last prompt token is fed alone; without a cache the whole prompt is one forward."""
    if row.recompute:
        return np.full(len(target), len(row.ids) >= write.min_positions)
    return np.where(target < prefilled, prefilled >= write.min_positions, write.min_positions <= 1)


def _window(row: Row, write: Write, order: np.ndarray) -> np.ndarray:
    window = write.positions.resolve(len(order), row.spans_of(write.value.role))
    chosen = order[np.array(window, dtype=np.int64)]
    if write.value.kind == "shuffled_window":
        chosen = chosen[permutation(shuffle_stream(row, write), len(chosen))]
    return chosen


def _same_length(write: Write, target: int, source: int) -> None:
    """A span stands for one thing, so that leaving out a part of it would compare two different things."""
    if write.positions.span and target != source:
        raise PositionError(
            f"{write.positions.word} has {target} tokens in the prompt and {source} in the prompt that "
            f"'{write.name}' draws from; spans must be equally long ({write.positions.word}.last takes one "
            "token of each)"
        )


def shuffle_stream(row: Row, write: Write) -> int:
    """The stream of a shuffle: the same at every layer, another for each draw."""
    return stream_of(row.value_stream, row.draw % write.value.draws, "shuffle", write.site)


def noise_stream(row: Row, write: Write, layer: int, part: str = "") -> int:
    """The stream of a random value at one layer."""
    return stream_of(row.value_stream, row.draw % write.value.draws, write.site, layer, part)


def _plan_kv(row: Row, write: Write, source: tuple[int, ...] | None, slots: int) -> WritePlan:
    if write.during != "prefill":
        raise PositionError("kv_cache is written between prefill and decode; `during` must be prefill")
    if source is None:
        target = np.array(_slots_of(row, write, SELF, slots), dtype=np.int64)
        if write.keep_sink:
            target = target[target > 0]
        return WritePlan(write, None, len(target), slots=Pairs(target, None))
    available = len(source) if row.replay_last_token else len(source) - 1
    if write.align in ("whole", "concat"):
        every = np.arange(available)
        return WritePlan(write, source, available, slots=Pairs(every, every))
    wanted = np.zeros(slots, dtype=bool)
    wanted[list(_slots_of(row, write, SELF, slots))] = True
    if write.keep_sink and slots:
        wanted[0] = False
    if write.positions.span:  # a span meets the span of the same name, wherever that stands
        target = np.array(_slots_of(row, write, SELF, slots), dtype=np.int64)
        drawn = np.array(_slots_of(row, write, write.value.role, available), dtype=np.int64)
        _same_length(write, len(target), len(drawn))
    else:
        count = min(slots, available)
        target = np.arange(count) + (slots - count if write.align == "right" else 0)
        drawn = np.arange(count) + (available - count if write.align == "right" else 0)
    chosen = wanted[target]
    if write.keep_sink:
        chosen &= drawn > 0
    target, drawn = target[chosen], drawn[chosen]
    if write.value.kind == "shuffled_window":
        drawn = drawn[permutation(shuffle_stream(row, write), len(drawn))]
    elif write.value.kind == "shuffled_sequence":
        drawn = permutation(shuffle_stream(row, write), available)[drawn]
    return WritePlan(write, source, int(wanted.sum()), slots=Pairs(target, drawn))


def _slots_of(row: Row, write: Write, role: str, slots: int) -> range:
    """Slots that a write's positions name in the cache of the row's own prompt (SELF) or of a source."""
    if not write.positions.span:
        return write.positions.resolve(slots, {})
    tokens = len(row.ids if role == SELF else row.sources[role])
    named = write.positions.resolve(tokens, row.spans_of(role))
    if named.stop > slots:
        whose = "the prompt" if role == SELF else f"the {role} prompt"
        raise PositionError(
            f"{write.positions.word} takes in the last token of {whose}, which has no slot in the cache yet "
            "when kv_cache is written"
        )
    return named


def keys_ahead(plan: RowPlan, item: WritePlan) -> int:
    """Copied keys whose rotary position lies after that of the first query (only with `rope: keep`)."""
    if (
        item.slots is None
        or item.slots.source is None
        or item.write.rope != "keep"
        or item.write.part == "values"
    ):
        return 0
    return int((item.slots.source > plan.slots).sum())


@dataclass(frozen=True)
class Shadow:
    """Positions of a write that a later one wholly overwrites: prompt positions, and whether every decode
    step."""

    prefill: int = 0
    decode: bool = False


def shadowed(plan: RowPlan, layers: int) -> dict[str, Shadow]:
    """What later writes leave nothing of, per write: later in rank on the same tensor, or in the cache."""
    gone = {item.write.name: _overwritten(plan, item) for item in plan.writes}
    for name, targets in _lost_in_cache(plan, layers).items():
        gone[name] |= targets
    decode = {item.write.name: _decode_overwritten(plan, item.write) for item in plan.writes}
    return {name: Shadow(len(targets), decode[name]) for name, targets in gone.items()}


def _later(plan: RowPlan, write: Write) -> list[WritePlan]:
    """Writes at the same site that come after this one and leave nothing of what they cover."""
    return [
        item
        for item in plan.writes
        if item.write.site == write.site
        and item.write.order > write.order
        and item.write.op != "add"
        and (item.write.heads is None or item.write.heads == write.heads)
    ]


def _overwritten(plan: RowPlan, item: WritePlan) -> set[int]:
    if item.prefill is None:
        return set()
    left = set(item.prefill.target.tolist())
    for layer in item.write.layers:
        covered: set[int] = set()
        for other in _later(plan, item.write):
            if other.prefill is not None and layer in other.write.layers:
                covered |= set(other.prefill.target.tolist())
        left &= covered
    return left


def _decode_overwritten(plan: RowPlan, write: Write) -> bool:
    if write.during == "prefill" or write.hold == "sliding":
        return False
    acting = [
        item.write
        for item in _later(plan, write)
        if item.write.during != "prefill" and item.write.hold != "lockstep" and item.write.min_positions <= 1
    ]
    return all(any(layer in other.layers for other in acting) for layer in write.layers)


def _lost_in_cache(plan: RowPlan, layers: int) -> dict[str, set[int]]:
    """Per write, the prefill positions whose every trace in the cache a kv_cache write overwrites.

    A write at layer l and position p < slots is read later only through keys and values at positions >= p:
    at layer l itself (k_proj, v_proj, resid_pre) and at all layers above. kv_cache writes shadow earlier
    ones slot by slot.
    """
    out: dict[str, set[int]] = {}
    if plan.structural is not None:
        if plan.structural.write.align == "whole":
            for item in plan.writes:
                if item.prefill is not None:
                    out[item.write.name] = {
                        t for t in item.prefill.target.tolist() if t < len(plan.prefill_ids)
                    }
        return out
    ranked = sorted(plan.kv, key=lambda w: w.write.order)
    kv = [w for w in ranked if w.write.op != "add" and w.write.heads is None]
    if not kv:
        return out
    slots = plan.slots
    covered = {part: np.zeros((layers, slots), dtype=bool) for part in ("keys", "values")}
    for item in reversed(kv):
        assert item.slots is not None
        parts = ("keys", "values") if item.write.part == "both" else (item.write.part,)
        mine = np.ix_(np.array(item.write.layers), item.slots.target)
        hidden = np.all([covered[part][mine].all(axis=0) for part in parts], axis=0)
        out[item.write.name] = set(item.slots.target[hidden].tolist())
        for part in parts:
            covered[part][mine] = True
    both = covered["keys"] & covered["values"]
    onward = np.logical_and.accumulate(both[:, ::-1], axis=1)[:, ::-1]  # every slot from p on
    above = np.ones((layers + 1, slots), dtype=bool)  # ... in every layer from l on
    above[:layers] = np.logical_and.accumulate(onward[::-1], axis=0)[::-1]
    for item in plan.writes:
        if item.prefill is None:
            continue
        target = item.prefill.target[item.prefill.target < slots]
        gone = np.ones(len(target), dtype=bool)
        for layer in item.write.layers:
            gone &= above[layer + 1][target]
            if item.write.site in ("k_proj", "v_proj"):
                gone &= covered["keys" if item.write.site == "k_proj" else "values"][layer][target]
            elif item.write.site == "resid_pre":
                gone &= both[layer][target]
        out[item.write.name] = set(target[gone].tolist())
    return out


def decode_asked(write: Write, forwards: int) -> int:
    """Positions that a write was asked to act on over a row's decode forwards."""
    if write.during == "prefill":
        return 0
    if write.hold == "sliding":
        return forwards * max(1, write.positions.count)
    return forwards


def needs(rows: Sequence[RowPlan]) -> dict[tuple[int, ...], set[tuple[str, int]]]:
    """Sources of a batch: token ids -> (site, layer) pairs to capture; ('kv_cache', 0) stands for the whole
    cache."""
    wanted: dict[tuple[int, ...], set[tuple[str, int]]] = {}
    for plan in rows:
        for item in plan.writes:
            if item.source is None:
                continue
            spots = wanted.setdefault(item.source, set())
            if item.slots is not None:
                spots.add(("kv_cache", 0))
            elif item.prefill is not None or (item.window is not None and item.write.hold != "lockstep"):
                spots.update((item.write.site, layer) for layer in item.write.layers)
    return wanted
