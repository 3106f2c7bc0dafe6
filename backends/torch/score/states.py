"""Probes that read residual states in the vocabulary: logit lens, patchscope, cross-entropy of the prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from backends.measures import Scope
from backends.rowplan import RowPlan
from backends.torch.forward import prefill
from backends.torch.hooks import Board, Spot
from backends.torch.loading import Loaded
from backends.torch.score.reading import Reading
from backends.torch.score.reductions import (
    TokenSets,
    best_token,
    finite,
    next_token,
    rank,
    token_log_probabilities,
)
from backends.torch.touches import Effect, Tally, Touch
from backends.torch.weights import unembed

MOST_LOGITS = 1 << 26  # numbers in the largest [states, vocabulary] made at once


@dataclass(frozen=True)
class Layered:
    """One reading per layer of each row: rank and prob of the token sets (None where none is asked) and the
    best token, [rows, layers]. sound: bool [rows], whether all their logits were finite."""

    rank: torch.Tensor | None
    prob: torch.Tensor | None
    top: torch.Tensor
    sound: torch.Tensor

    @staticmethod
    def of(logits: Iterator[torch.Tensor], sets: TokenSets | None) -> Layered:
        """logits: for each layer, [rows, vocabulary]."""
        ranks, probs, tops, sound = [], [], [], []
        for here in logits:
            sound.append(finite(here))
            tops.append(best_token(here))
            if sets is not None:
                ranks.append(rank(here, sets))
                probs.append(next_token(here, sets))
        stacked = [torch.stack(each, dim=1) if each else None for each in (ranks, probs)]
        return Layered(stacked[0], stacked[1], torch.stack(tops, dim=1), torch.stack(sound).all(0))


def logits_at(loaded: Loaded, reading: Reading, positions: torch.Tensor) -> torch.Tensor:
    """Next-token logits [rows, vocabulary] after each row's position [rows]: the forward's own at the end of
    the prompt, those of the last block's output before it."""
    at_end = positions >= reading.end
    if bool(at_end.all()):
        return reading.logits
    inner = _unembedded(loaded, reading.at(("resid_post", loaded.info.layers - 1), positions[:, None])[:, 0])
    return torch.where(at_end[:, None], reading.logits, inner)


def lens(
    loaded: Loaded, reading: Reading, layers: Sequence[int], positions: torch.Tensor, sets: TokenSets | None
) -> Layered:
    """The logit lens of each row's resid_post at a position [rows] and these layers."""
    states = (reading.at(("resid_post", layer), positions[:, None])[:, 0] for layer in layers)
    return Layered.of((_unembedded(loaded, state) for state in states), sets)


def patchscope(
    loaded: Loaded,
    board: Board,
    reading: Reading,
    layers: Sequence[int],
    positions: torch.Tensor,
    scope: Scope,
    sets: TokenSets | None,
    tokens: int,
) -> Layered:
    """What the scope's last token predicts with each row's state written into it: resid_post of a position
    [rows], at each of these layers in turn. In batches of about `tokens` tokens."""

    def of_layers() -> Iterator[torch.Tensor]:
        step = max(1, tokens // len(scope.ids))
        for layer in layers:
            spot = ("resid_post", layer if scope.layer is None else scope.layer)
            states = reading.at(("resid_post", layer), positions[:, None])[:, 0]
            parts = [
                _through(loaded, board, scope, spot, states[k : k + step])
                for k in range(0, len(states), step)
            ]
            yield torch.cat(parts)

    return Layered.of(of_layers(), sets)


def _through(loaded: Loaded, board: Board, scope: Scope, spot: Spot, states: torch.Tensor) -> torch.Tensor:
    """Logits [n, vocabulary] of the scope's last token, one of the states [n, width] in each."""
    count = len(states)
    place = loaded.layer_places[spot[1]][0]
    rows = torch.arange(count, device=place)
    touch = Touch(
        effect=Effect("replace", 1.0),
        rows=rows,
        positions=torch.full_like(rows, scope.position % len(scope.ids)),
        slots=rows,
        tally=Tally(1, count, loaded.device),
        layer=0,
        value=states.to(place),
    )
    with board.armed({spot}):
        board.touches = {spot: [touch]}
        return prefill(loaded, [scope.ids] * count, None)[0][:, -1].float()


def cross_entropy(loaded: Loaded, reading: Reading, plans: Sequence[RowPlan]) -> list[float | None]:
    """Mean nats per token of each prompt's tokens after the first, as `backends.probes.likelihood` defines
    it; None for a prompt of one token. Rows with one prefill and last token have it computed once."""
    longest = max(len(plan.row.ids) for plan in plans)
    if longest == 1:
        return [None] * len(plans)
    prompts = zip(reading.row_of.tolist(), (plan.row.ids[-1] for plan in plans), strict=True)
    first: dict[tuple[int, int], int] = {}
    stands_in = [first.setdefault(prompt, row) for row, prompt in enumerate(prompts)]
    chosen = sorted(set(stands_in))
    device = loaded.device
    ids = torch.zeros(len(chosen), longest, dtype=torch.int64)
    for place, row in enumerate(chosen):
        ids[place, : len(plans[row].row.ids)] = torch.tensor(plans[row].row.ids)
    count = torch.tensor([len(plans[row].row.ids) - 1 for row in chosen], device=device)
    positions = torch.arange(longest - 1, device=device).expand(len(chosen), -1)
    predicts = positions < count[:, None]
    here = reading.of(torch.tensor(chosen, device=device))
    states = here.at(("resid_post", loaded.info.layers - 1), positions)[predicts]
    following = ids[:, 1:].to(device)[predicts]
    step = max(1, MOST_LOGITS // loaded.info.vocabulary)
    logps = [
        token_log_probabilities(_unembedded(loaded, states[k : k + step]), following[k : k + step])
        for k in range(0, len(states), step)
    ]
    total = torch.zeros(predicts.shape, dtype=torch.float64, device=device)
    total[predicts] = torch.cat(logps).double()
    mean = dict(zip(chosen, (-total.sum(-1) / count).tolist(), strict=True))
    return [None if math.isnan(mean[row]) else mean[row] for row in stands_in]


def _unembedded(loaded: Loaded, hidden: torch.Tensor) -> torch.Tensor:
    return unembed(loaded, hidden).to(loaded.device, torch.float32)
