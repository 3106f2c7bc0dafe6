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
from backends.rows import Row, SourceRun, source_run
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
    """One write of one row. source: the run that it draws from. prefill: pairs asked of the prompt (not
    kv_cache); window: source positions that decode draws from; slots: pairs of cache slots (kv_cache); keys:
    prompt positions that cut edges lead to."""

    write: Write
    source: SourceRun | None
    asked: int = 0
    prefill: Pairs | None = None
    window: np.ndarray | None = None
    slots: Pairs | None = None
    keys: np.ndarray | None = None

    def spot(self, layer: int) -> tuple[str, int]:
        """(site, layer) that the source is read at for a write at this layer."""
        return self.write.tensor, layer if self.write.value.layer is None else self.write.value.layer


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
        """The plan of the write of that name, whose vector may be that of the row's group."""
        return next(w for w in self.writes if w.write.name == write.name)


def plan_row(row: Row) -> RowPlan:
    """Resolve every write of a row. Raises PositionError when a prompt is shorter than a window, a source is
    missing, or the row asks for what cannot be (no tokens, kv_cache writes or a replay without a cache)."""
    if not row.ids:
        raise PositionError("the prompt has no tokens")
    if row.recompute and row.replay_last_token:
        raise PositionError("a token is fed again into a cache; recompute has none")
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
    structural = next((p for p in plans if p.slots is not None and not p.write.has_old), None)
    if structural is not None and any(p.keys is not None for p in plans):
        raise PositionError(
            f"attention_edge counts on the prompt's own slots, which align {structural.write.align} moves or "
            "takes away"
        )
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


def drawn_from(row: Row, write: Write) -> SourceRun | None:
    """The run that a write draws from; None for values without a source. Raises PositionError where the item
    has no such donor."""
    if not write.value.has_source:
        return None
    if write.value.role == SELF:
        return source_run(row, row.ids, write.value)
    if write.value.role not in row.sources:
        raise PositionError(f"the item has no donor in the role '{write.value.role}'")
    return source_run(row, row.sources[write.value.role], write.value)


def _plan_write(row: Row, write: Write, slots: int) -> WritePlan:
    source = drawn_from(row, write)
    length = len(row.ids)
    if write.site == "kv_cache":
        return _plan_kv(row, write, source, slots)
    if write.site == "attention_edge":
        return _plan_edges(row, write, slots)
    order = None
    if source is not None:
        order = np.arange(len(source.ids))
        if write.value.kind == "shuffled_sequence":
            order = permutation(shuffle_stream(row, write), len(source.ids))
    prefill, window, asked = None, None, 0
    if write.during in ("prefill", "both"):
        target = np.array(write.positions.resolve(length, row.spans_of(SELF)), dtype=np.int64)
        asked = len(target)
        if write.site == "logits" and target.tolist() != [length - 1]:
            raise PositionError(
                f"logits are written at the last prompt position alone, which {write.positions.word} is not"
            )
        drawn = None if order is None else _window(row, write, order)
        if drawn is not None:
            target, drawn = _met(write, target, drawn)
        prefill = _coming_out(row, write, Pairs(target, drawn), slots)
    if write.during in ("decode", "both") and order is not None:
        window = _window(row, write, order)
        if write.hold == "sliding" and write.source_positions is not None:
            window = _spread(write, write.positions.count, window)
    return WritePlan(write, source, asked, prefill, window)


def _met(write: Write, target: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The target positions that are written and, for each, the source position that is written there."""
    if write.source_positions is not None:
        return target, _spread(write, len(target), drawn)
    _same_length(write, len(target), len(drawn))
    count = min(len(target), len(drawn))
    if write.positions.kind == "first":
        return target[:count], drawn[:count]
    return target[len(target) - count :], drawn[len(drawn) - count :]


def _spread(write: Write, count: int, drawn: np.ndarray) -> np.ndarray:
    """The source positions for `count` positions to write: one for all of them, or one for each."""
    if len(drawn) == 1:
        return np.repeat(drawn, count)
    if len(drawn) != count:
        raise PositionError(
            f"'{write.name}' writes {count} positions ({write.positions.word}) and reads {len(drawn)} "
            f"({write.read_at.word} of the prompt that it draws from); expected one, or as many"
        )
    return drawn


def _plan_edges(row: Row, write: Write, slots: int) -> WritePlan:
    """Cut edges: positions are the queries, keys what they no longer see. Both are of the row's prompt."""
    assert write.keys is not None, "a write at attention_edge says which keys it cuts"
    spans = row.spans_of(SELF)
    keys = np.array(write.keys.resolve(len(row.ids), spans), dtype=np.int64)
    if write.during == "decode":
        return WritePlan(write, None, keys=keys)
    queries = np.array(write.positions.resolve(len(row.ids), spans), dtype=np.int64)
    pairs = _coming_out(row, write, Pairs(queries, None), slots)
    return WritePlan(write, None, len(queries), pairs, keys=keys)


def plan_for(row: Row, windows: Sequence[int | None], heads: int) -> RowPlan:
    """`plan_row`, held against a model and for the prompts that its writes draw from as well.

    windows: per layer, how many latest tokens it sees, or None for all. heads: query heads of the model.
    Raises PositionError as `plan_row` does, where cut edges leave a query of a prompt no key to attend to,
    and where an entire cache is not taken at all layers.
    """
    plan = plan_row(row)
    refuse_blind_queries(plan, windows, heads)
    entire = plan.structural
    if entire is not None and set(entire.write.layers) != set(range(len(windows))):
        raise PositionError(
            f"'{entire.write.name}': align {entire.write.align} takes the cache of all layers"
        )
    for item in plan.writes:
        if item.source is not None and item.source.writes:
            try:
                plan_for(item.source.row(), windows, heads)
            except PositionError as error:
                raise PositionError(f"the prompt that '{item.write.name}' draws from: {error}") from error
    return plan


def refuse_blind_queries(plan: RowPlan, windows: Sequence[int | None], heads: int) -> None:
    """Raises PositionError where the cut edges of a row leave a query of its prompt no key to attend to.

    windows: per layer, how many latest tokens it sees, or None for all. heads: query heads of the model.
    """
    cuts = [item for item in plan.writes if item.keys is not None and item.prefill is not None]
    if not cuts:
        return
    position = np.arange(len(plan.row.ids))
    looked_at = set()  # layers and heads that see and lose the same are looked at once
    for layer, window in enumerate(windows):
        here = [item for item in cuts if layer in item.write.layers]
        for head in range(heads if any(item.write.heads is not None for item in here) else 1):
            losing = [i for i in here if i.write.heads is None or head in i.write.heads.indices]
            same = (window, *map(id, losing))
            if not losing or same in looked_at:
                continue
            looked_at.add(same)
            blind = _blind(losing, position, window)
            if len(blind):
                raise PositionError(
                    f"'{here[0].write.name}' leaves position {blind[0]} nothing to attend to at layer {layer}"
                )


def _blind(cuts: Sequence[WritePlan], position: np.ndarray, window: int | None) -> np.ndarray:
    """Positions, ascending, that have no key left. position: all of the prompt; window: how many latest
    tokens each sees, or None for all."""
    asked = [item.prefill.target for item in cuts if item.prefill is not None]
    queries: np.ndarray = np.unique(np.concatenate(asked))
    distance = queries[:, None] - position[None, :]
    left = distance >= 0
    if window is not None:
        left &= distance < window
    for item in cuts:
        assert item.keys is not None and item.prefill is not None
        left[np.ix_(np.searchsorted(queries, item.prefill.target), item.keys)] = False
    blind: np.ndarray = queries[~left.any(axis=1)]
    return blind


def _coming_out(row: Row, write: Write, pairs: Pairs, prefilled: int) -> Pairs:
    """The pairs whose positions come out of a forward with at least `min_positions` outputs: the prefill has
    `prefilled`, the last prompt token is fed alone; without a cache the whole prompt is one forward."""
    if write.min_positions <= 1:
        return pairs
    if row.recompute:
        return pairs.where(np.full(len(pairs.target), len(row.ids) >= write.min_positions))
    return pairs.where((pairs.target < prefilled) & (prefilled >= write.min_positions))


def _window(row: Row, write: Write, order: np.ndarray) -> np.ndarray:
    window = write.read_at.resolve(len(order), row.spans_of(write.value.role))
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
    """The stream of a random value at one layer. In place of a fixed vector one vector is drawn: its stream
    knows that vector, and the layer only where another vector is written at each."""
    constant = write.value.constant
    if constant is not None:
        own = layer if constant.array.ndim > 1 else -1
        return stream_of(row.value_stream, row.draw % write.value.draws, "vector", constant.digest, own)
    return stream_of(row.value_stream, row.draw % write.value.draws, write.site, layer, part)


def _plan_kv(row: Row, write: Write, source: SourceRun | None, slots: int) -> WritePlan:
    taken = ("source", "shuffled_window", "shuffled_sequence", "random", "none")
    if write.value.kind not in taken or write.op not in ("replace", "add", "scale", "zero"):
        raise PositionError(f"kv_cache takes no {write.op} with a value of the kind {write.value.kind}")
    if write.value.layer is not None:
        raise PositionError("kv_cache takes each layer's keys and values from the same layer")
    if write.source_positions is not None:
        raise PositionError("align says which slots of two caches meet; kv_cache takes no source_positions")
    if write.value.constant is not None:
        raise PositionError("kv_cache takes no fixed vector, nor noise of the norm of one")
    if write.during != "prefill":
        raise PositionError("kv_cache is written between prefill and decode; `during` must be prefill")
    if not write.has_old:
        _refuse_part(write)
    if source is None:
        target = np.array(_slots_of(row, write, SELF, slots), dtype=np.int64)
        if write.keep_sink:
            target = target[target > 0]
        return WritePlan(write, None, len(target), slots=Pairs(target, None))
    available = len(source.ids) if row.replay_last_token else len(source.ids) - 1
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


def _refuse_part(write: Write) -> None:
    """Slots of which only a part is written would hold zeros elsewhere, which queries attend to."""
    if not write.value.has_source or write.op != "replace":
        raise PositionError(
            f"align {write.align} takes the cache of another prompt, and '{write.name}' has none"
        )
    if write.part != "both" or write.heads is not None or write.keep_sink or write.positions.kind != "all":
        raise PositionError(
            f"align {write.align} takes the source's cache entire; '{write.name}' limits it by part, heads, "
            "positions or keep_sink"
        )


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
