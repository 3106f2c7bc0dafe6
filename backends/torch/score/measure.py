"""Every probe of a batch: which runs it takes, and what each row's columns are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from backends.contract import BackendError, Start
from backends.measures import Measured, Probe, Scored, ScoreRow
from backends.positions import PositionError
from backends.probes import geometry as shape
from backends.probes import kinds
from backends.rowplan import RowPlan, plan_row
from backends.rows import Receipt, Row
from backends.torch.edits import Recorded
from backends.torch.generate import generate
from backends.torch.hooks import Board, Spot
from backends.torch.loading import Loaded
from backends.torch.outcome import receipts
from backends.torch.score import reductions
from backends.torch.score.continuations import Forced, perplexity
from backends.torch.score.reading import read
from backends.torch.score.reductions import TokenSets
from backends.torch.score.states import Layered, cross_entropy, lens, logits_at, patchscope
from backends.torch.sources import Sources

NOT_FINITE = "logits not finite"
Columns = dict[str, list[Measured]]


@dataclass(frozen=True)
class Bench:
    """What a batch is measured with. plan: resolves a row's writes, or raises PositionError; prepare: captures
    what planned rows draw from; tokens: about how many tokens a forward may hold."""

    loaded: Loaded
    board: Board
    sources: Sources
    plan: Callable[[Row], RowPlan]
    prepare: Callable[[Sequence[RowPlan]], Recorded]
    tokens: int


@dataclass
class Measurements:
    """Of some rows of a batch: columns, receipts, and which rows had logits that are not numbers."""

    rows: int
    columns: Columns = field(default_factory=dict)
    written: list[Mapping[str, Receipt]] = field(default_factory=list)
    sound: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.written = [{} for _ in range(self.rows)]
        self.sound = [True] * self.rows

    def judge(self, sound: torch.Tensor) -> None:
        """Only rows that are sound here [rows] too stay so."""
        self.sound = [a and b for a, b in zip(self.sound, sound.tolist(), strict=True)]


def score(
    bench: Bench, rows: Sequence[ScoreRow], probes: Sequence[Probe], start: Start | None
) -> list[Scored]:
    """Each probe's values for each row, as `backends.probes` defines them.

    All probes of the prompt share one run of the batch; logprob is one more, perplexity another. Rows that
    cannot be run as asked come back invalid, the others run. Raises BackendError for probes that cannot be
    measured here, OutOfMemory.
    """
    _refuse(bench.loaded, rows, probes, start)
    longest = max((len(row.row.ids) for row in rows), default=0)
    under = [probe for probe in probes if probe.kind not in kinds.UNWRITTEN]
    plans: dict[int, RowPlan] = {}
    reasons: dict[int, str] = {}
    for index, row in enumerate(rows if under else ()):
        try:
            plans[index] = bench.plan(row.row)
            _check_positions(plans[index], probes)
        except PositionError as error:
            reasons[index] = str(error)
    out = [Scored({}, {}, len(rows), longest, reasons.get(index)) for index in range(len(rows))]
    for recompute in (False, True):
        chosen = [i for i in plans if i not in reasons and plans[i].row.recompute is recompute]
        if chosen:
            batch = [plans[i] for i in chosen]
            found = _measured(bench, batch, [rows[i] for i in chosen], under, start)
            for place, index in enumerate(chosen):
                out[index] = _scored(found, place, batch)
    unpatched = [probe for probe in probes if probe.kind == "perplexity"]
    left = [index for index in range(len(rows)) if out[index].invalid is None]
    if unpatched and left:
        values = perplexity(bench.loaded, [rows[i] for i in left], bench.tokens, start)
        for index, value in zip(left, values, strict=True):
            more = {probe.name: value for probe in unpatched}
            out[index] = replace(out[index], values={**out[index].values, **more})
    return out


def _scored(found: Measurements, place: int, batch: Sequence[RowPlan]) -> Scored:
    sound = found.sound[place]
    return Scored(
        values={name: column[place] for name, column in found.columns.items()} if sound else {},
        receipts=found.written[place],
        batch_rows=len(batch),
        batch_length=max(len(plan.row.ids) for plan in batch),
        invalid=None if sound else NOT_FINITE,
    )


def _refuse(loaded: Loaded, rows: Sequence[ScoreRow], probes: Sequence[Probe], start: Start | None) -> None:
    """Raises BackendError with all that is wrong with the probes, and with the token sets of the rows."""
    problems = kinds.faults(probes, loaded.info)
    for name in sorted({name for probe in probes for name in (probe.tokens, probe.against) if name}):
        lacking = [str(index) for index, row in enumerate(rows) if name not in row.tokens]
        if lacking:
            has = ", ".join(sorted({each for row in rows for each in row.tokens}))
            problems.append(
                f"token set '{name}': not in row {', '.join(lacking[:5])} (sets: {has or 'none'})"
            )
    if start is not None:
        whole = [probe.name for probe in probes if probe.kind == "cross_entropy"]
        problems += [f"probe '{name}': cross_entropy is of whole prompts, without a start" for name in whole]
    if problems:
        raise BackendError("score:\n  " + "\n  ".join(problems) if len(problems) > 1 else problems[0])


def _check_positions(plan: RowPlan, probes: Sequence[Probe]) -> None:
    """Raises PositionError where a prompt has no such position, or is shorter than a window."""
    length = len(plan.row.ids)
    for probe in probes:
        if probe.kind in kinds.AT_POSITION and not -length <= probe.position < length:
            raise PositionError(f"position {probe.position} is outside a prompt of {length} tokens")
        if probe.kind == "geometry" and max(probe.windows) > length:
            raise PositionError(shape.short_prompt(max(probe.windows), length))


def _measured(
    bench: Bench,
    plans: Sequence[RowPlan],
    rows: Sequence[ScoreRow],
    probes: Sequence[Probe],
    start: Start | None,
) -> Measurements:
    """All probes under the writes, of rows that all have a cache or all have none."""
    found = Measurements(len(rows))
    of_prompt = [probe for probe in probes if probe.kind != "logprob"]
    if of_prompt:
        _Prompted(bench, plans, rows, of_prompt, start, found).measure()
    forced = [probe for probe in probes if probe.kind == "logprob"]
    if forced:
        _force(bench, plans, rows, forced, start, found)
    return found


class _Prompted:
    """Probes that one run of the prompts serves."""

    def __init__(
        self,
        bench: Bench,
        plans: Sequence[RowPlan],
        rows: Sequence[ScoreRow],
        probes: Sequence[Probe],
        start: Start | None,
        found: Measurements,
    ) -> None:
        self._bench, self._plans, self._rows, self._probes = bench, plans, rows, probes
        self._found = found
        loaded = bench.loaded
        self._device = loaded.device
        batch = list(plans)
        if any(probe.kind == "kl" for probe in probes):
            self._clean_of, clean = _clean(plans)
            batch += clean
        self._whole = read(
            loaded, bench.board, bench.sources, batch, bench.prepare(batch), self._spots(), start
        )
        self._reading = self._whole.of(torch.arange(len(plans), device=self._device))
        self._lengths = torch.tensor([len(plan.row.ids) for plan in batch], device=self._device)
        self._logits: dict[int, torch.Tensor] = {}

    def measure(self) -> None:
        """Fill in columns, receipts and soundness."""
        self._found.written = list(self._reading.written)
        self._found.judge(reductions.finite(self._reading.logits))
        for probe in self._probes:
            values = self._values(probe)
            self._found.columns.update(zip(kinds.columns(probe), values, strict=True))

    def _values(self, probe: Probe) -> list[list[Measured]]:
        if probe.kind == "geometry":
            return self._geometry(probe)
        if probe.kind == "cross_entropy":
            return [list(cross_entropy(self._bench.loaded, self._reading, self._plans))]
        if probe.kind in kinds.PER_LAYER:
            return self._layered(probe)
        logits = self._logits_at(probe.position)
        if probe.kind == "kl":
            ours = logits[: len(self._plans)]
            return [_numbers(reductions.kl(logits[self._clean_of], ours))]
        logits = logits[: len(self._plans)]
        if probe.kind == "top_k":
            ids, probs = reductions.top_k(logits, probe.top)
            return [list(map(tuple, ids.tolist())), list(map(tuple, probs.tolist()))]
        sets = self._sets(probe.tokens)
        if probe.kind == "next_token":
            return [_numbers(reductions.next_token(logits, sets))]
        if probe.kind == "rank":
            return [[None if rank < 0 else rank for rank in reductions.rank(logits, sets).tolist()]]
        assert probe.kind == "log_odds", probe.kind
        against = self._sets(probe.against) if probe.against else None
        return [_numbers(reductions.log_odds(logits, sets, against))]

    def _spots(self) -> frozenset[Spot]:
        """Where the run has to be read."""
        last = self._bench.loaded.info.layers - 1
        spots: set[Spot] = set()
        for probe in self._probes:
            if probe.kind == "geometry":
                site = probe.site
                spots |= {(site, layer) for layer in probe.layers}
            elif probe.kind in kinds.PER_LAYER:
                spots |= {("resid_post", layer) for layer in probe.layers}
            elif probe.kind == "cross_entropy" or probe.position != -1:
                spots.add(("resid_post", last))
        return frozenset(spots)

    def _positions(self, position: int) -> torch.Tensor:
        """The position that is read in each row of the run, the end of the prompt being where its next token
        is predicted."""
        end = self._whole.end
        if position == -1:
            return end
        place = position % self._lengths
        if bool((place < self._whole.first).any()):
            raise BackendError(f"score: position {position} lies in the prefix that was started from")
        return torch.where(place == self._lengths - 1, end, place)

    def _logits_at(self, position: int) -> torch.Tensor:
        if position not in self._logits:
            logits = logits_at(self._bench.loaded, self._whole, self._positions(position))
            sound = reductions.finite(logits)
            self._found.judge(sound[: len(self._plans)])
            if len(sound) > len(self._plans):
                self._found.judge(sound[self._clean_of])
            self._logits[position] = logits
        return self._logits[position]

    def _sets(self, name: str) -> TokenSets:
        return TokenSets.of(
            [row.tokens[name] for row in self._rows], self._bench.loaded.info.vocabulary, self._device
        )

    def _layered(self, probe: Probe) -> list[list[Measured]]:
        sets = self._sets(probe.tokens) if probe.tokens else None
        positions = self._positions(probe.position)[: len(self._plans)]
        loaded = self._bench.loaded
        if probe.kind == "lens":
            found = lens(loaded, self._reading, probe.layers, positions, sets)
        else:
            assert probe.scope is not None
            found = patchscope(
                loaded,
                self._bench.board,
                self._reading,
                probe.layers,
                positions,
                probe.scope,
                sets,
                self._bench.tokens,
            )
        self._found.judge(found.sound)
        return _of_layers(found, sets)

    def _geometry(self, probe: Probe) -> list[list[Measured]]:
        most = max(probe.windows)
        lengths = self._lengths[: len(self._plans)]
        positions = lengths[:, None] - most + torch.arange(most, device=self._device)
        if bool((positions < self._reading.first).any()):
            raise BackendError(f"probe '{probe.name}': its window lies in the prefix that was started from")
        site = probe.site
        early, late = (
            self._reading.at((site, layer), positions).float().cpu().numpy() for layer in probe.layers
        )
        first, *others = (shape.geometry(early, late, window) for window in probe.windows)
        columns = [first.r_v, first.early, first.late, *(other.r_v for other in others)]
        return [_numbers(column) for column in columns]


def _clean(plans: Sequence[RowPlan]) -> tuple[list[int], list[RowPlan]]:
    """For each row, the place in the extended batch of the same prompt without writes; and the plans that it
    is extended by. A row without writes is its own."""
    known: dict[tuple[object, ...], int] = {}
    for index, plan in enumerate(plans):
        if not plan.writes:
            known.setdefault(_prompt_of(plan), index)
    more: list[RowPlan] = []
    for plan in plans:
        if _prompt_of(plan) not in known:
            known[_prompt_of(plan)] = len(plans) + len(more)
            more.append(plan_row(replace(plan.row, writes=(), sources={}, spans={})))
    return [known[_prompt_of(plan)] if plan.writes else index for index, plan in enumerate(plans)], more


def _prompt_of(plan: RowPlan) -> tuple[object, ...]:
    return plan.row.ids, plan.row.replay_last_token


def _of_layers(found: Layered, sets: TokenSets | None) -> list[list[Measured]]:
    tops: list[Measured] = list(map(tuple, found.top.tolist()))
    if sets is None or found.rank is None or found.prob is None:
        return [tops]
    some = sets.some.tolist()
    ranks, probs = found.rank.tolist(), found.prob.tolist()
    return [
        [tuple(each) if has else None for each, has in zip(column, some, strict=True)]
        for column in (ranks, probs)
    ] + [tops]


def _force(
    bench: Bench,
    plans: Sequence[RowPlan],
    rows: Sequence[ScoreRow],
    probes: Sequence[Probe],
    start: Start | None,
    found: Measurements,
) -> None:
    """Feed each row its continuation, decode writes active, and keep the log-probabilities of its tokens."""
    chosen = [index for index, row in enumerate(rows) if row.continuation]
    totals: list[Measured] = [None] * len(rows)
    tokens: list[Measured] = [()] * len(rows)
    if chosen:
        batch = [_of_length(plans[index], len(rows[index].continuation)) for index in chosen]
        forced = Forced.of([rows[index].continuation for index in chosen], bench.loaded.device)
        outcome = generate(
            bench.loaded,
            bench.board,
            bench.sources,
            batch,
            bench.prepare(batch),
            start=start,
            chooser=forced,
        )
        kept = forced.logps.tolist()
        bad = outcome.progress.bad.tolist()
        for place, (index, written) in enumerate(
            zip(chosen, receipts(bench.loaded, batch, outcome), strict=True)
        ):
            each = tuple(kept[place][: len(rows[index].continuation)])
            tokens[index], totals[index] = each, math.fsum(each)
            found.written[index] = written
            found.sound[index] &= not bad[place]
    for probe in probes:
        found.columns.update(zip(kinds.columns(probe), (totals, tokens), strict=True))


def _of_length(plan: RowPlan, tokens: int) -> RowPlan:
    """The plan for a text of so many tokens."""
    sampling = replace(plan.row.sampling, max_new_tokens=tokens)
    return replace(plan, row=replace(plan.row, sampling=sampling))


def _numbers(values: torch.Tensor | np.ndarray) -> list[Measured]:
    """Host numbers, None where undefined."""
    return [None if math.isnan(value) else value for value in values.tolist()]
