"""What the rows of a batch share of their prompts' computation, and running only what they do not.

Rows of one prompt have the same states before the first position that a write touches, and below the lowest
layer that a write touches. So each distinct prompt is run once without writes (its clean run), and each row
only from there on: its other slots of the cache are the clean run's, and so is the residual stream that goes
into its first block. All this is found from the plans of a batch. Rows of any prompts, positions and layers
run in the same forwards: a row enters a forward at its own first block.

Which order of the rows helps. Prefill: none, distinct prefills are sorted here. Last token: rows in ascending
order of `onset(plan).last`, which `score` sorts by itself; in any other order results are the same, but a row
enters no later than the rows after it. Trials of the same prompt should be in the same batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from backends.contract import BackendError, Start
from backends.rowplan import RowPlan
from backends.torch.cache import SlotCache
from backends.torch.edges import changes, prompt_cuts
from backends.torch.edits import Prompted, Tallies, prompt_touches
from backends.torch.effects import DRAWS
from backends.torch.forward import Geometry, call, new_cache, pad_left, prompt_geometry, token_geometry
from backends.torch.hooks import Board, Spot, Tap
from backends.torch.kv import Prefilled
from backends.torch.loading import Loaded
from backends.torch.prefix import Below, PrefixRun, advance, call_from, fill, rows_of
from backends.torch.sources import Sources
from backends.torch.touches import Tally

OWN_FORWARD = 128  # tokens: about what a forward costs that has none
# Tokens of a forward over prompts: on a CPU as many as its caches hold the activations of small models for.
FORWARD_TOKENS = {"cpu": 4096}
MOST_TOKENS = 1 << 15


Key = tuple[object, ...]


@dataclass(frozen=True)
class Onset:
    """Where a row departs from the clean run of its prompt.

    position: the first position of the prefill that a write touches, the length of the prefill where none
    does; layer: the lowest block that one of these writes acts in; last: the first block that the last
    token's states can depart in, the number of layers where they do not.
    """

    position: int
    layer: int
    last: int


def onset(plan: RowPlan, layers: int) -> Onset:
    """Where a row departs from the clean run of its prompt, from its plan alone. Cut edges and slots that
    move are taken to change everything from the first token or block on."""
    length = len(plan.prefill_ids)
    position, layer, last = length, layers, layers
    if plan.structural is not None or plan.row.replay_last_token:
        last = 0
    for item in plan.writes:
        if item.slots is not None:
            last = min(last, *item.write.layers)
        elif item.prefill is not None and len(item.prefill.target):
            lowest = 0 if item.keys is not None or item.write.site == "embed" else min(item.write.layers)
            last = min(last, lowest)
            first = int(item.prefill.target[0])  # positions ascend
            if first < length:
                position = min(position, 0 if item.keys is not None else first)
                layer = min(layer, lowest)
    return Onset(position, layer, last)


def prefill_key(plan: RowPlan) -> Key:
    """Rows with equal keys have the same cache before kv_cache writes, so it is computed once."""
    length = len(plan.prefill_ids)
    parts: list[object] = [plan.prefill_ids]
    for item in plan.writes:
        if item.prefill is None or not len(item.prefill.target) or item.prefill.target[0] >= length:
            continue
        parts += [item.write, item.source, item.prefill.target.tobytes()]
        if item.prefill.source is not None:
            parts.append(item.prefill.source.tobytes())
        if item.write.value.kind in DRAWS:
            parts += [plan.row.value_stream, plan.row.draw]
        if item.keys is not None:
            parts.append(item.keys.tobytes())
    return tuple(parts)


@dataclass(frozen=True)
class Run:
    """One distinct prefill. plan: a row that has it, None for a clean run that no row has; width: how many
    last tokens of it are run; layer: the first block that they run through; clean: the clean run that has the
    rest, -1 where all is run."""

    ids: tuple[int, ...]
    plan: RowPlan | None
    width: int
    layer: int = 0
    clean: int = -1


@dataclass(frozen=True)
class Work:
    """What a batch computes of its prompts.

    runs: distinct prefills, the first `clean` of them those that others take something of. row_of: the run of
    each row. ends: last tokens that are run cleanly, as (run, token); end_of: that of each row or -1; lasts:
    the first block that each row's last token runs through, ascending [rows].
    """

    runs: tuple[Run, ...]
    clean: int
    row_of: tuple[int, ...]
    ends: tuple[tuple[int, int], ...]
    end_of: tuple[int, ...]
    lasts: np.ndarray


Keyed = tuple[Run, Key]


def work_of(plans: Sequence[RowPlan], layers: int, *, share: bool = True) -> Work:
    """What to compute once and what for each row. Without `share` only equal prefills are computed once.

    Rows take something of a clean run where that saves more, in tokens times blocks, than it costs, and saves
    a batch what a forward costs in any case.
    """
    onsets = [onset(plan, layers) for plan in plans]
    keys = [prefill_key(plan) for plan in plans]
    first: dict[Key, int] = {}  # key -> the first row that has it
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    closing: dict[tuple[tuple[int, ...], int], list[int]] = {}  # prompt, last token -> its rows
    for row, plan in enumerate(plans):
        if not plan.row.replay_last_token:
            closing.setdefault((plan.prefill_ids, plan.row.ids[-1]), []).append(row)
    at_end = {end: sum(onsets[row].last for row in some) - layers for end, some in closing.items()}

    saved: dict[tuple[int, ...], int] = {}  # prompt -> tokens times blocks that its clean run saves
    for key, row in first.items():
        ids, at = plans[row].prefill_ids, onsets[row]
        left = (len(ids) - at.position) * (layers - at.layer)
        saved[ids] = saved.get(ids, 0) + (len(ids) * layers - left if key != (ids,) else 0)
    for (ids, _), more in at_end.items():
        saved[ids] += max(0, more) if (ids,) not in first else 0
    for ids in saved:
        saved[ids] -= len(ids) * layers if (ids,) not in first else 0
    gain = sum(max(0, each) for each in saved.values())
    shared = share and gain >= OWN_FORWARD * layers

    clean = {ids: -1 for ids, each in saved.items() if shared and ((ids,) in first or each > 0)}
    for index, ids in enumerate(clean):
        clean[ids] = index
    rest: list[Keyed] = []
    for key, row in first.items():
        plan, at = plans[row], onsets[row]
        ids = plan.prefill_ids
        if ids not in clean:
            rest.append((Run(ids, plan, len(ids)), key))
        elif key != (ids,):
            rest.append((Run(ids, plan, len(ids) - at.position, at.layer, clean[ids]), key))
    rest = [each for some in _of_width(rest) for each in sorted(some, key=lambda pair: pair[0].layer)]
    place: dict[Key, int] = {(ids,): index for ids, index in clean.items()}
    place.update((key, len(clean) + index) for index, (_, key) in enumerate(rest))

    found = [end for end, each in at_end.items() if each > 0 and (end[0],) in place]
    if not share or sum(at_end[end] for end in found) < OWN_FORWARD * layers:
        found = []
    end_of = [-1] * len(plans)
    for index, end in enumerate(found):
        for row in closing[end]:
            end_of[row] = index
    lasts = np.array([at.last if end >= 0 else 0 for at, end in zip(onsets, end_of, strict=True)])
    return Work(
        runs=(*(Run(ids, None, len(ids)) for ids in clean), *(run for run, _ in rest)),
        clean=len(clean),
        row_of=tuple(place[key] for key in keys),
        ends=tuple((place[ids,], token) for ids, token in found),
        end_of=tuple(end_of),
        lasts=np.minimum.accumulate(lasts[::-1])[::-1],
    )


def _of_width(runs: Sequence[Keyed]) -> Iterator[list[Keyed]]:
    """Runs for one forward each, the widest first, with the width that all of a forward take."""
    left = sorted(runs, key=lambda pair: -pair[0].width)
    while left:
        widest = left[0][0].width
        cut = next(
            (
                at
                for at, (run, _) in enumerate(left)
                if 2 * run.width <= widest and (len(left) - at) * (widest - run.width) >= OWN_FORWARD
            ),
            len(left),
        )
        yield [(Run(r.ids, r.plan, widest, r.layer, r.clean), key) for r, key in left[:cut]]
        left = left[cut:]


def _cuts(plan: RowPlan) -> bool:
    """Whether a row cuts edges while its prompt is run."""
    return any(item.keys is not None and item.prefill is not None for item in plan.writes)


@dataclass(frozen=True)
class Ends:
    """Last tokens of clean runs. keys, values: per layer, their slot [ends, kv heads, width]; states: block
    -> what goes into it [ends, width]; logits: [ends, vocabulary]; seen: watched spot -> [ends, width]."""

    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]
    states: Mapping[int, torch.Tensor]
    logits: torch.Tensor
    seen: Mapping[Spot, torch.Tensor] = field(default_factory=dict)

    @staticmethod
    def of_prefix(run: PrefixRun) -> Ends:
        """The one end of a prefix that was run as a whole."""
        return Ends(
            [keys[None, :, -1] for keys in run.keys],
            [values[None, :, -1] for values in run.values],
            {layer: state[None] for layer, state in enumerate(run.residual)},
            run.logits[None],
        )


@dataclass
class PromptRuns:
    """The prompts of one batch while they are run: first `prefill`, then, with the cache that a batch
    decodes from, `last`.

    watch: spot -> how many of each prefill's last positions are kept of what it has there. prompts, after
    `prefill`: spot -> [runs, n, width], right-aligned; ends, after `last`: spot -> [rows, width]. Both have
    the writes in them, whatever of it was computed and whatever known. A spot below a start's layer is in
    neither. Without `share` rows of one prompt are run side by side in the same forwards, so that those whose
    writes change nothing have the very same numbers as those without.
    """

    loaded: Loaded
    board: Board
    sources: Sources
    plans: Sequence[RowPlan]
    start: Start | None = None
    watch: Mapping[Spot, int] = field(default_factory=dict)
    share: bool = True
    prompts: dict[Spot, torch.Tensor] = field(default_factory=dict)
    ends: dict[Spot, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layers = self.loaded.info.layers
        self.work = work_of(self.plans, layers, share=self.share and self.start is None)
        self._longest = max(len(run.ids) for run in self.work.runs)
        self._past = 0
        # What cuts edges or acts as in decode is made for all rows of a batch, so all run through all.
        if any(plan.row.replay_last_token or _cuts(plan) for plan in self.plans):
            self.work = replace(self.work, lasts=np.zeros_like(self.work.lasts))
        self._lasts, self._end_of, self._known = self.work.lasts, self.work.end_of, None
        if self.start is not None:
            assert isinstance(self.start.prefix.handle, PrefixRun)
            self._past = min(len(self.start.prefix.ids), *(len(run.ids) for run in self.work.runs))
            if self.start.layer > 0:
                self._lasts = np.full(len(self.plans), self.start.layer)
                self._end_of = (0,) * len(self.plans)
                self._known = Ends.of_prefix(self.start.prefix.handle)

    @property
    def running(self) -> list[int]:
        """Per block, how many rows' last tokens run through it: the first of the batch."""
        return [int((self._lasts <= layer).sum()) for layer in range(self.loaded.info.layers)]

    @property
    def first(self) -> int:
        """Positions below are a start's, which were not computed."""
        return self._past

    def prefill(self, tallies: Tallies, *, with_edges: bool = True) -> Prefilled:
        """Run the prompts up to the token before the last, prefill writes active (but for cut edges, where
        these are left out). Raises OutOfMemory, and BackendError for a write into a start's prefix."""
        work, device = self.work, self.loaded.device
        index = torch.tensor(work.row_of, device=device)
        if self._longest == 0:
            self._end_run(None)
            return Prefilled(None, index, 0)
        cache = self._slots()
        states = self._clean(cache)
        own: Tallies = {}
        for begin, end in self._forwards(work.clean, len(work.runs)):
            self._written(cache, begin, end, states, own, with_edges)
        for key, tally in own.items():
            tallies[key] = tally.expand(index)
        for layer in range(self.loaded.info.layers):
            cache.slot_layer(layer).filled = self._longest
        self._end_run(cache)
        return Prefilled(cache, index, self._longest, self._past)

    def last(self, cache: SlotCache, at: Geometry) -> torch.Tensor:
        """Logits [rows, vocabulary] of the last prompt token, which stands `at` the next slot of the cache;
        what the hooks do is set."""
        rows, layers, device = len(self.plans), self.loaded.info.layers, self.loaded.device
        tokens = torch.tensor([plan.row.ids[-1] for plan in self.plans], device=device)[:, None]
        starts = self._lasts
        seen: dict[Spot, torch.Tensor] = {}
        self.board.taps.update({spot: _keep(seen, spot, 1) for spot in self.watch})
        running = int((starts < layers).sum())
        known, end_of = self._known, torch.tensor(self._end_of, device=device)
        if known is not None:
            for layer in range(layers):
                slots, entered = cache.slot_layer(layer), int((starts <= layer).sum())
                assert slots.keys is not None and slots.values is not None
                chosen = end_of[entered:].to(slots.keys.device)
                slots.keys[entered:, :, slots.filled] = known.keys[layer][chosen]
                slots.values[entered:, :, slots.filled] = known.values[layer][chosen]

        def below(layer: int, begin: int, end: int) -> torch.Tensor:
            assert known is not None
            state = known.states[layer]
            return state[end_of[begin:end].to(state.device)][:, None]

        logits = torch.empty(0)
        if running:
            here = Geometry(at.positions[:running], at.keys[:running], at.allowed[:running])
            logits = call_from(self.loaded, tokens[:running], here, cache, starts[:running], below)[:, -1]
        else:
            advance(cache, 1)
        self.board.taps.clear()
        for spot in self.watch:
            parts = [seen[spot][:, -1]] if spot in seen else []
            entered = len(parts[0]) if parts else 0
            if entered < rows and known is not None and spot in known.seen:
                found = known.seen[spot]
                parts.append(found[end_of[entered:].to(found.device)])
            if sum(map(len, parts)) == rows:
                self.ends[spot] = torch.cat(parts)
        self._known = None
        if running < rows:
            assert known is not None
            rest = known.logits[end_of[running:]]
            logits = torch.cat([logits, rest]) if running else rest
        return logits

    def _slots(self) -> SlotCache:
        """Room for all runs, a start's slots in front of them."""
        cache = new_cache(self.loaded, len(self.work.runs), self._longest)
        if self.start is not None:
            assert isinstance(self.start.prefix.handle, PrefixRun)
            fill(cache, self.start.prefix.handle, self._past)
        return cache

    def _forwards(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """The runs of each forward over some runs: equally wide, and about as many tokens as are fastest."""
        runs = self.work.runs
        while begin < end:
            width = self._longest - self._past if self.start is not None else runs[begin].width
            most = begin + max(1, FORWARD_TOKENS.get(self.loaded.device.type, MOST_TOKENS) // max(1, width))
            most = most if self.share else end
            last = begin + 1
            while last < min(end, most) and (self.start is not None or runs[last].width == runs[begin].width):
                last += 1
            yield begin, last
            begin = last

    def _clean(self, cache: SlotCache) -> dict[int, torch.Tensor]:
        """The clean runs; returns what goes into the blocks that others begin at: [runs, positions, width] of
        as many last positions as any of these needs."""
        count = self.work.clean
        if not count or self._longest == self._past:
            return {}
        needed: dict[int, int] = {}
        for run in self.work.runs[count:]:
            if run.layer > 0:
                needed[run.layer] = max(run.width, needed.get(run.layer, 0))
        self.board.touches, self.board.edges = {}, {}
        with inputs_of(self.loaded, needed) as states:
            self._forward(cache, 0, count, self._longest - self._past, np.zeros(count, dtype=int), None)
        return states

    def _written(
        self,
        cache: SlotCache,
        begin: int,
        end: int,
        states: Mapping[int, torch.Tensor],
        tallies: Tallies,
        with_edges: bool,
    ) -> None:
        """One forward over runs with writes."""
        runs, loaded, rows = self.work.runs[begin:end], self.loaded, end - begin
        width = self._longest - self._past if self.start is not None else runs[0].width
        entries = list(self._entries(runs, width, with_edges))
        own: Tallies = {}
        board = self.board
        board.touches = prompt_touches(loaded, self.sources, entries, own, rows)
        board.edges = changes(prompt_cuts(loaded, entries, own, rows, width, self._longest, self._past))
        clean = torch.tensor([max(0, run.clean) for run in runs], device=loaded.device)
        if any(run.clean >= 0 for run in runs):
            for layer in range(loaded.info.layers):
                slots = cache.slot_layer(layer)
                assert slots.keys is not None and slots.values is not None
                chosen = clean.to(slots.keys.device)
                slots.keys[begin:end] = slots.keys[chosen]
                slots.values[begin:end] = slots.values[chosen]
            for found in self.prompts.values():
                found[begin:end] = found[clean.to(found.device)]

        def below(layer: int, first: int, behind: int) -> torch.Tensor:
            state = states[layer]
            return state[clean[first:behind].to(state.device), state.shape[1] - width :]

        starts = np.array([0 if board.edges else run.layer for run in runs])
        self._forward(cache, begin, end, width, starts, below)
        for key, tally in own.items():
            whole = tallies.setdefault(key, Tally(len(tally.counts), len(self.work.runs), loaded.device))
            whole.counts[:, begin:end] = tally.counts
            whole.change[begin:end], whole.measured[begin:end] = tally.change, tally.measured

    def _entries(self, runs: Sequence[Run], width: int, with_edges: bool) -> Iterator[Prompted]:
        for row, run in enumerate(runs):
            assert run.plan is not None
            for item in run.plan.writes:
                if item.prefill is not None and (with_edges or item.keys is None):
                    inside = item.prefill.where(item.prefill.target < len(run.ids))
                    if (inside.target < self._past).any():
                        raise BackendError(f"start: {item.write.name} would write into the prefix")
                    yield Prompted(run.plan, item, inside, row, row, width - len(run.ids))

    def _forward(
        self, cache: SlotCache, begin: int, end: int, width: int, starts: np.ndarray, below: Below | None
    ) -> None:
        """Run the last `width` tokens of some runs, each from its first block on."""
        if width == 0:
            return
        loaded, longest, past = self.loaded, self._longest, self._past
        rest = [run.ids[past:] for run in self.work.runs[begin:end]]
        pads = torch.tensor([longest - past - len(ids) for ids in rest], device=loaded.device)
        # One more run, as long as the longest of all, makes these as wide as the cache.
        ids = pad_left(loaded, [*rest, (0,) * (longest - past)])[0][:-1, longest - past - width :]
        whole = prompt_geometry(pads, longest - past, past)
        at = Geometry(whole.positions[:, -width:], whole.keys, whole.allowed[:, -width:])
        seen: dict[Spot, torch.Tensor] = {}
        watched = {spot: min(most, longest - past) for spot, most in self.watch.items() if most}
        self.board.taps.update({spot: _keep(seen, spot, n) for spot, n in watched.items()})
        layers = [cache.slot_layer(layer) for layer in range(loaded.info.layers)]
        own = SlotCache([rows_of(slots, begin, end, longest - width) for slots in layers])
        call_from(loaded, ids, at, own, starts, below)
        self.board.taps.clear()
        for spot, found in seen.items():
            if spot not in self.prompts:
                shape = (len(self.work.runs), watched[spot], found.shape[-1])
                self.prompts[spot] = found.new_zeros(shape)
            if found.shape[1]:
                self.prompts[spot][begin : begin + len(found), -found.shape[1] :] = found

    def _end_run(self, cache: SlotCache | None) -> None:
        """Run the last tokens of clean prompts that rows take something of."""
        ends, loaded, longest = self.work.ends, self.loaded, self._longest
        if not ends:
            return
        device, layers = loaded.device, loaded.info.layers
        run_of = torch.tensor([run for run, _ in ends], device=device)
        own = new_cache(loaded, len(ends), longest + 1)
        for layer in range(layers if cache is not None else 0):
            assert cache is not None
            old, new = cache.slot_layer(layer), own.slot_layer(layer)
            assert old.keys is not None and new.keys is not None
            assert old.values is not None and new.values is not None
            chosen = run_of.to(old.keys.device)
            new.keys[:, :, :longest] = old.keys[chosen]
            new.values[:, :, :longest] = old.values[chosen]
            new.filled = longest
        slots = torch.tensor([len(self.work.runs[run].ids) for run, _ in ends], device=device)
        at = token_geometry(slots, longest - slots, longest + 1)
        tokens = torch.tensor([token for _, token in ends], device=device)
        needed = {int(layer): 1 for layer in set(self._lasts.tolist()) if 0 < layer < layers}
        seen: dict[Spot, torch.Tensor] = {}
        self.board.touches, self.board.edges = {}, {}
        self.board.taps.update({spot: _keep(seen, spot, 1) for spot in self.watch})
        with inputs_of(loaded, needed) as states:
            logits = call(loaded, tokens[:, None], at, own)[:, -1]
        self.board.taps.clear()
        held = [own.slot_layer(layer) for layer in range(layers)]
        self._known = Ends(
            [slots.keys[:, :, -1].clone() for slots in held if slots.keys is not None],
            [slots.values[:, :, -1].clone() for slots in held if slots.values is not None],
            {layer: state[:, -1] for layer, state in states.items()},
            logits,
            {spot: found[:, -1] for spot, found in seen.items()},
        )


def _keep(kept: dict[Spot, torch.Tensor], spot: Spot, columns: int) -> Tap:
    """A tap that keeps so many last columns of what it sees."""

    def tap(hidden: torch.Tensor) -> None:
        left_out = max(0, hidden.shape[1] - columns)
        kept[spot] = hidden[:, left_out:].clone() if left_out else hidden

    return tap


@contextmanager
def inputs_of(loaded: Loaded, columns: Mapping[int, int]) -> Iterator[dict[int, torch.Tensor]]:
    """What goes into blocks in the forward within, before any write there: block -> [rows, n, width] of so
    many last positions."""
    found: dict[int, torch.Tensor] = {}

    def hook(layer: int) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def keep(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            found[layer] = args[0][:, -columns[layer] :].clone()

        return keep

    handles = [loaded.blocks[layer].register_forward_pre_hook(hook(layer)) for layer in columns]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
