"""Every probe of a batch: which rows can be measured, and in which runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from backends.contract import BackendError, Start
from backends.measures import Measured, Probe, Scored, ScoreRow
from backends.positions import PositionError
from backends.probes import geometry, kinds
from backends.rowplan import RowPlan
from backends.torch.generate import generate
from backends.torch.loading import Loaded
from backends.torch.outcome import receipts
from backends.torch.recompute import regenerate
from backends.torch.score.bench import Bench, Measurements
from backends.torch.score.continuations import Forced, perplexity
from backends.torch.score.prompted import Prompted

NOT_FINITE = "logits not finite"


@torch.inference_mode()
def score(
    bench: Bench, rows: Sequence[ScoreRow], probes: Sequence[Probe], start: Start | None
) -> list[Scored]:
    """Each probe's values for each row, as `backends.probes` defines them.

    All probes of the prompt share one run of the batch; logprob is one more, perplexity another. Rows that
    cannot be run as asked come back invalid, the others run. The rows have the same weights, which the model
    has too; perplexity and the clean side of kl are measured without them. Raises OutOfMemory.
    """
    longest = max((len(row.row.ids) for row in rows), default=0)
    under = [probe for probe in probes if probe.kind not in kinds.UNWRITTEN]
    plans: dict[int, RowPlan] = {}
    reasons: dict[int, str] = {}
    for index, row in enumerate(rows if under else ()):
        try:
            plans[index] = bench.plan(row.row)
            _check_positions(row, probes)
        except PositionError as error:
            reasons[index] = str(error)
    out = [Scored({}, {}, len(rows), longest, reasons.get(index)) for index in range(len(rows))]
    for recompute in (False, True):
        chosen = [i for i in plans if i not in reasons and plans[i].row.recompute is recompute]
        if chosen:
            batch = [plans[i] for i in chosen]
            length = max(len(plan.row.ids) for plan in batch)
            found = _measured(bench, batch, [rows[i] for i in chosen], under, start)
            for place, index in enumerate(chosen):
                out[index] = _scored(found, place, under, length)
    left = [index for index in range(len(rows)) if out[index].invalid is None]
    if left and len(under) < len(probes):
        with bench.unpatched():
            values = perplexity(bench.loaded, [rows[i] for i in left], bench.tokens, start)
        for index, value in zip(left, values, strict=True):
            every = {**out[index].values, **{p.name: value for p in probes if p.kind == "perplexity"}}
            ordered = {column: every[column] for probe in probes for column in kinds.columns(probe)}
            out[index] = replace(out[index], values=ordered)
    return out


def _scored(found: Measurements, place: int, probes: Sequence[Probe], length: int) -> Scored:
    sound = found.sound[place]
    names = [name for probe in probes for name in kinds.columns(probe)]
    return Scored(
        values={name: found.columns[name][place] for name in names} if sound else {},
        receipts=found.written[place],
        batch_rows=found.batch_rows,
        batch_length=length,
        invalid=None if sound else NOT_FINITE,
    )


def refuse(loaded: Loaded, rows: Sequence[ScoreRow], probes: Sequence[Probe], start: Start | None) -> None:
    """Raises BackendError with all that is wrong with the probes, and with the token sets and named positions
    of the rows."""
    problems = kinds.faults(probes, loaded.info)
    for name in sorted({name for probe in probes for name in (probe.tokens, probe.against) if name}):
        lacking = [str(index) for index, row in enumerate(rows) if name not in row.tokens]
        if lacking:
            has = ", ".join(sorted({each for row in rows for each in row.tokens}))
            problems.append(
                f"token set '{name}': not in row {', '.join(lacking[:5])} (sets: {has or 'none'})"
            )
    for name in sorted({probe.at for probe in probes if probe.at}):
        lacking = [str(index) for index, row in enumerate(rows) if name not in row.positions]
        if lacking:
            has = ", ".join(sorted({each for row in rows for each in row.positions}))
            problems.append(
                f"position '{name}': not in row {', '.join(lacking[:5])} (positions: {has or 'none'})"
            )
    if start is not None:
        whole = [probe.name for probe in probes if probe.kind == "cross_entropy"]
        problems += [f"probe '{name}': cross_entropy is of whole prompts, without a start" for name in whole]
    if problems:
        raise BackendError("score:\n  " + "\n  ".join(problems) if len(problems) > 1 else problems[0])


def _check_positions(row: ScoreRow, probes: Sequence[Probe]) -> None:
    """Raises PositionError where a prompt has no such position, or is shorter than a window."""
    length = len(row.row.ids)
    for probe in probes:
        if probe.at and not 0 <= row.positions[probe.at] < length:
            told = f"position {row.positions[probe.at]} ({probe.at})"
            raise PositionError(f"{told} is outside a prompt of {length} tokens")
        if probe.kind in kinds.AT_POSITION and not -length <= probe.position < length:
            raise PositionError(f"position {probe.position} is outside a prompt of {length} tokens")
        if probe.kind == "geometry" and max(probe.windows) > length:
            raise PositionError(geometry.short_prompt(max(probe.windows), length))


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
        Prompted(bench, plans, rows, of_prompt, start, found).measure()
    forced = [probe for probe in probes if probe.kind == "logprob"]
    if forced:
        _force(bench, plans, rows, forced, start, found)
    return found


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
        places = (bench.loaded, bench.board, bench.sources, batch, bench.prepare(batch))
        if batch[0].row.recompute:
            outcome = regenerate(*places, chooser=forced)
        else:
            outcome = generate(*places, start=start, chooser=forced)
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
