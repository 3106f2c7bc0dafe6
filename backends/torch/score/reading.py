"""One run of a batch's prompts up to the next token, with what its sites had on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from backends.contract import BackendError, Start
from backends.rowplan import RowPlan
from backends.rows import Receipt
from backends.torch.begin import begin, moved
from backends.torch.capture import armed_for, run_prompts
from backends.torch.edges import first_cuts
from backends.torch.edits import Recorded, Tallies
from backends.torch.hooks import Board, Spot
from backends.torch.loading import Loaded
from backends.torch.outcome import Outcome, receipts
from backends.torch.progress import Progress
from backends.torch.shared import onset
from backends.torch.sources import Sources


@dataclass(frozen=True)
class Reading:
    """What one run of a batch gave.

    logits: of the next token, float32 [rows, vocabulary]. prompts: spot -> the last columns, as many as were
    asked for, of what the prompts' forward had [distinct prompts, n, width]; last: spot -> what the forward
    of the last token alone had [rows, width]. row_of: which distinct prompt is each row's [rows]. own:
    positions of the prompt in its forward [rows], the last of them in its last column; the others are in the
    last token's. end: the position whose logits are the next token's [rows]. first: positions below were not
    computed. written: what the writes did, by row.
    """

    logits: torch.Tensor
    prompts: Mapping[Spot, torch.Tensor]
    last: Mapping[Spot, torch.Tensor]
    row_of: torch.Tensor
    own: torch.Tensor
    end: torch.Tensor
    first: int
    written: Sequence[Mapping[str, Receipt]]

    def of(self, rows: torch.Tensor) -> Reading:
        """The reading of these rows alone (indices)."""
        return replace(
            self,
            logits=self.logits[rows],
            last={spot: found[rows.to(found.device)] for spot, found in self.last.items()},
            row_of=self.row_of[rows],
            own=self.own[rows],
            end=self.end[rows],
            written=[self.written[row] for row in rows.tolist()],
        )

    def at(self, spot: Spot, positions: torch.Tensor) -> torch.Tensor:
        """What a spot had at each row's positions [rows, n] -> [rows, n, width], writes included; positions
        that were kept."""
        device = self.logits.device
        found, last = self.prompts.get(spot), self.last.get(spot)
        if found is None:
            assert last is not None, f"{spot} was not tapped"
            return last.to(device)[:, None].expand(-1, positions.shape[1], -1)
        column = (found.shape[1] + positions - self.own[:, None]).clamp(0, found.shape[1] - 1)
        taken = found[self.row_of[:, None].to(found.device), column.to(found.device)].to(device)
        if last is None:
            return taken
        alone = (positions >= self.own[:, None])[..., None]
        return torch.where(alone, last.to(device)[:, None], taken)


@torch.inference_mode()
def read(
    loaded: Loaded,
    board: Board,
    sources: Sources,
    plans: Sequence[RowPlan],
    recorded: Recorded,
    spots: Mapping[Spot, int],
    start: Start | None,
    share: bool = True,
) -> Reading:
    """Run a batch to its next token. Its rows have a cache, or none of them has. Sources must have been
    captured. spots: what is read, and at how many last positions of each prompt. share: whether rows take
    over what others of their prompt have computed. Raises OutOfMemory, and BackendError for rows that cannot
    begin at the start."""
    if plans[0].row.recompute:
        return _anew(loaded, board, sources, plans, spots)
    return _cached(loaded, board, sources, plans, recorded, spots, start, share)


def _cached(
    loaded: Loaded,
    board: Board,
    sources: Sources,
    plans: Sequence[RowPlan],
    recorded: Recorded,
    spots: Mapping[Spot, int],
    start: Start | None,
    share: bool,
) -> Reading:
    device = loaded.device
    layers = loaded.info.layers
    starts = np.array([onset(plan, layers).last for plan in plans])
    order = np.argsort(starts, kind="stable")
    found = _in_order(loaded, board, sources, [plans[row] for row in order], recorded, spots, start, share)
    return found.of(torch.from_numpy(np.argsort(order)).to(device))


def _in_order(
    loaded: Loaded,
    board: Board,
    sources: Sources,
    plans: Sequence[RowPlan],
    recorded: Recorded,
    spots: Mapping[Spot, int],
    start: Start | None,
    share: bool,
) -> Reading:
    device = loaded.device
    tallies: Tallies = {}
    with armed_for(board, plans, set(spots)):
        begun = begin(loaded, board, sources, plans, recorded, tallies, start, watch=spots, share=share)
    prompts = begun.prompts
    missing = sorted(spots.keys() - prompts.ends.keys())
    if missing:
        site, layer = missing[0]
        raise BackendError(f"score: {site} of layer {layer} lies below the layer started from")
    progress = Progress.of([plan.row for plan in plans], (), device)
    progress.forwards += torch.tensor([plan.row.replay_last_token for plan in plans], device=device)
    lengths = torch.tensor([len(plan.prefill_ids) for plan in plans], device=device)
    return Reading(
        logits=begun.logits.float(),
        prompts=prompts.prompts,
        last=prompts.ends,
        row_of=begun.run_of,
        own=lengths,
        end=lengths,
        first=prompts.first,
        written=receipts(loaded, plans, Outcome(progress, tallies, begun.logit_change)),
    )


def _anew(
    loaded: Loaded, board: Board, sources: Sources, plans: Sequence[RowPlan], spots: Mapping[Spot, int]
) -> Reading:
    """Without a cache the whole prompt is one forward."""
    tallies: Tallies = {}
    run = run_prompts(loaded, board, sources, plans, sorted(spots), None, tallies)
    rows = [plan.row for plan in plans]
    change = torch.full((len(plans),), torch.nan, device=loaded.device)
    cut = first_cuts(plans, loaded.device) == 0
    if bool(cut.any()):
        bare = [replace(p, writes=tuple(item for item in p.writes if item.keys is None)) for p in plans]
        old = run_prompts(loaded, board, sources, bare, []).logits[:, -1]
        change = torch.where(cut, moved(run.logits[:, -1], old), change)
    lengths = torch.tensor([len(row.ids) for row in rows], device=loaded.device)
    progress = Progress.of(rows, (), loaded.device)
    return Reading(
        logits=run.logits[:, -1].float(),
        prompts=run.seen,
        last={},
        row_of=torch.arange(len(plans), device=loaded.device),
        own=lengths,
        end=lengths - 1,
        first=0,
        written=receipts(loaded, plans, Outcome(progress, tallies, change)),
    )
