"""Cached generation of one batch: the order of events of a trial (prefill, cache writes, last token,
decode)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from backends.contract import BackendError, Start
from backends.rowplan import RowPlan, decode_asked, keys_ahead, shadowed
from backends.rows import Decoded, Receipt, Row
from backends.torch.edits import (
    DecodeEdit,
    Prompted,
    Recorded,
    Tallies,
    decode_edits,
    prompt_touches,
)
from backends.torch.forward import Geometry, call, new_cache, prefill, token_geometry
from backends.torch.hooks import Board, Spot, Tap, Touch
from backends.torch.kv import Prefilled, assemble
from backends.torch.loading import Loaded
from backends.torch.prefix import PrefixRun, check_start, expanded, last_token_from
from backends.torch.sampling import Sampler
from backends.torch.sources import Sources

SHRINK = (
    0.7  # finished rows leave once fewer than this share of the batch still runs: copying the cache costs too
)


@dataclass
class Progress:
    """What has been generated so far, for all rows of the batch in their first order."""

    tokens: torch.Tensor
    count: torch.Tensor
    ended: torch.Tensor
    bad: torch.Tensor
    margin: torch.Tensor
    forwards: torch.Tensor
    limit: torch.Tensor
    eos: torch.Tensor
    current: torch.Tensor  # rows of the batch that are still in it
    alive: torch.Tensor  # over `current`

    @staticmethod
    def of(rows: Sequence[Row], eos: Sequence[int], device: torch.device) -> Progress:
        limit = torch.tensor([r.sampling.max_new_tokens for r in rows], device=device)
        count = len(rows)

        def zeros(dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(count, dtype=dtype, device=device)

        return Progress(
            tokens=torch.zeros(count, int(limit.max()), dtype=torch.int64, device=device),
            count=zeros(torch.int64),
            ended=zeros(torch.bool),
            bad=zeros(torch.bool),
            margin=torch.full((count,), torch.inf, device=device),
            forwards=zeros(torch.int64),
            limit=limit,
            eos=torch.tensor(list(eos), dtype=torch.int64, device=device),
            current=torch.arange(count, device=device),
            alive=torch.ones(count, dtype=torch.bool, device=device),
        )

    def take(self, step: int, tokens: torch.Tensor, margin: torch.Tensor, finite: torch.Tensor) -> None:
        """Record the tokens drawn at a step; rows that end, or whose logits are not finite, stop running."""
        here, alive = self.current, self.alive
        self.bad[here] |= alive & ~finite
        good = alive & finite
        self.tokens[here, step] = torch.where(good, tokens, self.tokens[here, step])
        self.count[here] += good
        self.margin[here] = torch.where(good, torch.minimum(self.margin[here], margin), self.margin[here])
        ended = good & torch.isin(tokens, self.eos)
        self.ended[here] |= ended
        self.alive = good & ~ended & (self.count[here] < self.limit[here])

    def shrink(self) -> torch.Tensor | None:
        """Indices into the present batch of the rows to keep, once enough have finished; else None."""
        running = int(self.alive.sum())
        if running == 0 or running > SHRINK * len(self.current):
            return None
        kept = self.alive.nonzero()[:, 0]
        self.current, self.alive = self.current[kept], self.alive[kept]
        return kept


@dataclass
class Recorder:
    """Activations of the newest token at each decode forward: (site, layer) -> list of [rows, width]."""

    spots: frozenset[Spot]
    seen: dict[Spot, list[torch.Tensor]] = field(default_factory=dict)

    def tap(self, board: Board) -> None:
        """Record the next forward."""
        for spot in self.spots:
            board.taps[spot] = self._keep(spot)

    def rows(self, spot: Spot, row: int, count: int, loaded: Loaded) -> torch.Tensor:
        """What one row's first `count` decode forwards had at a spot: [count, width]."""
        steps = self.seen.get(spot, [])[: max(count, 1)]
        if steps:
            return torch.stack([step[row] for step in steps])[:count]
        return torch.zeros(0, loaded.info.width, device=loaded.device)  # no row had a decode forward

    def _keep(self, spot: Spot) -> Tap:
        def tap(hidden: torch.Tensor) -> None:
            self.seen.setdefault(spot, []).append(hidden[:, -1].clone())

        return tap


@dataclass
class Outcome:
    """A finished batch: progress, and the tallies of each write."""

    progress: Progress
    tallies: Tallies
    logit_change: torch.Tensor | None


@torch.inference_mode()
def generate(
    loaded: Loaded,
    board: Board,
    sources: Sources,
    plans: Sequence[RowPlan],
    recorded: Recorded,
    recorder: Recorder | None = None,
    start: Start | None = None,
) -> Outcome:
    """Decode a batch with the cache. Sources must have been captured. Raises OutOfMemory, BackendError."""
    rows = [plan.row for plan in plans]
    if start is not None:
        check_start(start, [r.ids for r in rows], [w for r in rows for w in r.writes], loaded.info.layers)
    tallies: Tallies = {}
    edits = decode_edits(loaded, sources, plans, tallies, recorded)
    spots = {(w.site, layer) for r in rows for w in r.writes if w.site != "kv_cache" for layer in w.layers}
    progress = Progress.of(rows, loaded.info.eos_ids, loaded.device)
    sampler = Sampler.of(rows, loaded.info.vocabulary, loaded.device)
    with board.armed(spots | (recorder.spots if recorder is not None else set())):
        before = _prefill(loaded, board, sources, plans, tallies, start)
        room = int(progress.limit.max()) + 1
        cache, pads = assemble(loaded, sources, plans, before, room, tallies)
        slots = torch.tensor([plan.slots for plan in plans], device=loaded.device)
        tokens = torch.tensor([row.ids[-1] for row in rows], device=loaded.device)
        board.touches = _last_touches(loaded, sources, plans, edits, tallies, cache.slot_layer(0).filled)
        replay = torch.tensor([row.replay_last_token for row in rows], device=loaded.device)
        progress.forwards += replay

        def here() -> Geometry:
            return token_geometry(slots, pads, cache.slot_layer(0).filled + 1)

        def step_forward(tokens: torch.Tensor) -> torch.Tensor:
            return call(loaded, tokens[:, None], here(), cache)[:, -1]

        if start is not None and start.layer > 0:
            logits = last_token_from(loaded, start, cache, here())
        else:
            logits = step_forward(tokens)
        change = _logit_change(loaded, board, sources, plans, before, logits)
        for step in range(int(progress.limit.max())):
            tokens, margin, finite = sampler.draw(logits, step)
            progress.take(step, tokens, margin, finite)
            if not bool(progress.alive.any()):
                break
            kept = progress.shrink() if recorder is None else None
            if kept is not None:
                cache.keep_rows(kept)
                tokens, slots, pads, sampler = tokens[kept], slots[kept], pads[kept], sampler.select(kept)
                edits = [edit for edit in (e.keep(kept) for e in edits) if edit is not None]
            slots = slots + 1
            board.touches = decode_touches(edits, step, progress.alive.float())
            if recorder is not None:
                recorder.tap(board)
            progress.forwards[progress.current] += progress.alive
            logits = step_forward(tokens)
    return Outcome(progress, tallies, change)


def decode_touches(
    edits: Sequence[DecodeEdit], step: int, weight: torch.Tensor, place: int = 0
) -> dict[Spot, list[Touch]]:
    """All edits as touches of one decode forward, by site and layer. place: where the new token is in it."""
    touches: dict[Spot, list[Touch]] = {}
    for edit in edits:
        spot = (edit.write.site, edit.write.layers[edit.order])
        touches.setdefault(spot, []).append(edit.touch(step, weight, place))
    return touches


def _prefill_key(plan: RowPlan) -> tuple[object, ...]:
    """Rows with equal keys have the same cache before kv_cache writes, so it is computed once."""
    parts: list[object] = [plan.prefill_ids]
    for item in plan.writes:
        if item.prefill is not None:
            parts += [item.write, item.source, item.prefill.target.tobytes()]
            if item.prefill.source is not None:
                parts.append(item.prefill.source.tobytes())
            if item.write.value.kind == "random":
                parts += [plan.row.value_stream, plan.row.draw]
    return tuple(parts)


def _prefill(
    loaded: Loaded,
    board: Board,
    sources: Sources,
    plans: Sequence[RowPlan],
    tallies: Tallies,
    start: Start | None,
) -> Prefilled:
    """Run the distinct prompts of a batch up to the token before the last, prefill writes active."""
    first: dict[tuple[object, ...], int] = {}
    row_of: list[int] = []
    distinct: list[RowPlan] = []
    for plan in plans:
        key = _prefill_key(plan)
        if key not in first:
            first[key] = len(distinct)
            distinct.append(plan)
        row_of.append(first[key])
    index = torch.tensor(row_of, device=loaded.device)
    longest = max(len(plan.prefill_ids) for plan in distinct)
    if longest == 0:
        return Prefilled(None, index, 0)
    shared_slots = 0
    if start is not None:
        shared_slots = min(len(start.prefix.ids), *(len(plan.prefill_ids) for plan in distinct))
    entries = []
    for row, plan in enumerate(distinct):
        for item in plan.writes:
            if item.prefill is not None:
                inside = item.prefill.where(item.prefill.target < len(plan.prefill_ids))
                if (inside.target < shared_slots).any():
                    raise BackendError(f"start: {item.write.name} would write into the prefix")
                pad = longest - len(plan.prefill_ids) - shared_slots
                entries.append(Prompted(plan, item, inside, row, row, pad))
    shared: Tallies = {}
    board.touches = prompt_touches(loaded, sources, entries, shared, len(distinct))
    rest = [plan.prefill_ids[shared_slots:] for plan in distinct]
    if start is None:
        cache = new_cache(loaded, len(distinct), longest)
    else:
        assert isinstance(start.prefix.handle, PrefixRun)
        cache = expanded(loaded, start.prefix.handle, len(distinct), shared_slots, longest - shared_slots)
    if longest > shared_slots:
        prefill(loaded, rest, cache, past=shared_slots)
    for key, tally in shared.items():
        tallies[key] = tally.expand(index)
    return Prefilled(cache, index, longest, shared_slots)


def _last_touches(
    loaded: Loaded,
    sources: Sources,
    plans: Sequence[RowPlan],
    edits: Sequence[DecodeEdit],
    tallies: Tallies,
    filled: int,
) -> dict[Spot, list[Touch]]:
    """Touches of the forward of the last prompt token: prefill writes at position T-1; where the token is
    replayed it is the first decode forward instead."""
    entries = []
    for row, plan in enumerate(plans):
        if plan.row.replay_last_token:
            continue
        last = len(plan.prefill_ids)
        for item in plan.writes:
            if item.prefill is not None:
                here = item.prefill.where(item.prefill.target == last)
                entries.append(Prompted(plan, item, here, row, row, -last))
    touches = prompt_touches(loaded, sources, entries, tallies, len(plans))
    replayed = torch.tensor([float(plan.row.replay_last_token) for plan in plans], device=loaded.device)
    if bool(replayed.any()):
        for spot, more in decode_touches(edits, -1, replayed).items():
            touches.setdefault(spot, []).extend(more)
    return touches


def _logit_change(
    loaded: Loaded,
    board: Board,
    sources: Sources,
    plans: Sequence[RowPlan],
    before: Prefilled,
    logits: torch.Tensor,
) -> torch.Tensor | None:
    """|new - old| / |old| of the first new token's logits against the same tokens without kv_cache writes
    [rows]; None where no row has a write without an old tensor."""
    if all(plan.structural is None for plan in plans):
        return None
    # The twin keeps all other writes at the last token; only what they count is thrown away.
    board.touches = {
        spot: [replace(touch, tally=touch.tally.blank()) for touch in touches]
        for spot, touches in board.touches.items()
    }
    cache, pads = assemble(loaded, sources, plans, before, 1, {}, with_writes=False)
    slots = torch.tensor([len(plan.prefill_ids) for plan in plans], device=loaded.device)
    tokens = torch.tensor([plan.row.ids[-1] for plan in plans], device=loaded.device)
    at = token_geometry(slots, pads, cache.slot_layer(0).filled + 1)
    old = call(loaded, tokens[:, None], at, cache)[:, -1].float()
    moved: torch.Tensor = (logits.float() - old).norm(dim=-1) / old.norm(dim=-1)
    return moved


def receipts(loaded: Loaded, plans: Sequence[RowPlan], outcome: Outcome) -> list[dict[str, Receipt]]:
    """Per row, what each of its writes did."""
    forwards = outcome.progress.forwards.tolist()
    change = outcome.logit_change.tolist() if outcome.logit_change is not None else None
    host = {
        key: (t.counts.amin(0).round().long().tolist(), t.change.tolist(), t.measured.tolist())
        for key, t in outcome.tallies.items()
    }
    out: list[dict[str, Receipt]] = []
    for row, plan in enumerate(plans):
        hidden = shadowed(plan, loaded.info.layers)
        found: dict[str, Receipt] = {}
        for item in plan.writes:
            write = item.write
            nothing = ([0] * len(plans), [0.0] * len(plans), [0.0] * len(plans))
            before, after = host.get(("prefill", write), nothing), host.get(("decode", write), nothing)
            total, measured = before[1][row] + after[1][row], before[2][row] + after[2][row]
            found[write.name] = Receipt(
                asked_prefill=item.asked,
                asked_decode=decode_asked(write, forwards[row]),
                positions_prefill=before[0][row],
                positions_decode=after[0][row],
                relative_change=total / measured if measured and write.has_old else None,
                shadowed=hidden[write.name].prefill,
                decode_shadowed=after[0][row] if hidden[write.name].decode else 0,
                keys_ahead=keys_ahead(plan, item),
                logit_change=change[row] if change is not None and not write.has_old else None,
            )
        out.append(found)
    return out


def decoded(plans: Sequence[RowPlan], outcome: Outcome, found: Sequence[dict[str, Receipt]]) -> list[Decoded]:
    """Results on the host. A row whose logits were not finite is invalid, with what it had until then."""
    progress = outcome.progress
    tokens, counts = progress.tokens.tolist(), progress.count.tolist()
    ended, bad, margin = progress.ended.tolist(), progress.bad.tolist(), progress.margin.tolist()
    longest = max(len(plan.row.ids) for plan in plans)
    return [
        Decoded(
            output_ids=tuple(tokens[row][: counts[row]]),
            finish="eos" if ended[row] else "length",
            receipts=found[row],
            min_margin=float(np.float32(margin[row])),
            batch_rows=len(plans),
            batch_length=longest,
            invalid="logits not finite" if bad[row] else None,
        )
        for row in range(len(plans))
    ]
