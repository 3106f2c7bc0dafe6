"""What a model answers in the tasks with known truth, on items that are in no training document where a task
holds some out: the figures of the model card.

Every function returns plain numbers; accuracies are shares of items, probabilities are the model's own.
"""

import statistics
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from organisms.grammar import BOS, Draw, vocabulary
from organisms.grammar.chat import turn
from organisms.grammar.in_context import INPUTS, MAPS, query, shots
from organisms.grammar.languages import LANGUAGES
from organisms.grammar.opinions import (
    CERTAINLY,
    CLAIM_MODES,
    PERHAPS,
    QUESTION_MODES,
    RIGHT,
    WRONG,
    draw_claim,
    draw_question,
)
from organisms.grammar.refusal import requests
from organisms.grammar.slot_machine import BET, GOALS, MODES, STOPS, State, draw_state
from organisms.grammar.two_hop import FACTS, PEOPLE, RELATIONS, compositions, fact

SHOTS = (0, 1, 2, 4, 8)
ROWS = 256


@torch.no_grad()
def _logits(model: PreTrainedModel, rows: Sequence[Sequence[str]]) -> list[torch.Tensor]:
    """Logits after each word of each row, <bos> put in front: for a row of n words, (n + 1, vocabulary)."""
    ids = vocabulary()
    found: list[torch.Tensor] = []
    for start in range(0, len(rows), ROWS):
        part = [[ids[word] for word in (BOS, *row)] for row in rows[start : start + ROWS]]
        width = max(map(len, part))
        # Padding on the right is behind every word of its row, so that causal attention needs no mask.
        logits = model(input_ids=torch.tensor([row + [0] * (width - len(row)) for row in part])).logits
        found += [logits[index, : len(row)] for index, row in enumerate(part)]
    return found


def answered(
    model: PreTrainedModel, prompts: Sequence[Sequence[str]], answers: Sequence[Sequence[str]]
) -> list[bool]:
    """Whether greedy decoding continues each prompt with its whole answer."""
    ids = vocabulary()
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    right = []
    for logits, prompt, answer in zip(_logits(model, rows), prompts, answers, strict=True):
        said = logits[len(prompt) : len(prompt) + len(answer)].argmax(-1).tolist()
        right.append(said == [ids[word] for word in answer])
    return right


def next_probabilities(model: PreTrainedModel, prompts: Sequence[Sequence[str]]) -> torch.Tensor:
    """Probabilities of the next word after each prompt, float64 (prompts, vocabulary)."""
    last = torch.stack([logits[-1] for logits in _logits(model, prompts)])
    return torch.softmax(last.double(), -1)


def two_hop(model: PreTrainedModel, composed: int = 1000) -> dict[str, float]:
    """Accuracy on all facts, on `composed` compositions of the documents, on all held-out ones, and on all
    whose second hop is never one in the documents."""
    pairs = [(relation, person) for relation in RELATIONS for person in PEOPLE]
    prompts = [fact(relation, person) for relation, person in pairs]
    found = {"fact": _share(answered(model, prompts, [[FACTS[r][e]] for r, e in pairs]))}
    every = list(compositions())
    for kind in ("composed", "held_out", "unseen"):
        chosen = [composition for composition in every if composition.kind == kind]
        if kind == "composed":
            chosen = Draw("exam/two_hop").shuffled(chosen)[:composed]
        found[kind] = _share(answered(model, [c.words() for c in chosen], [[c.answer] for c in chosen]))
    return found


def hops_by_layer(model: PreTrainedModel, items: int = 500) -> dict[str, list[float]]:
    """Share of held-out compositions whose bridge, and whose answer, is the likeliest next word when the
    model is cut after each of its layers (final norm and unembedding kept: the logit lens at the last
    token); and the same for the answers of single facts."""
    held = [composition for composition in compositions() if composition.kind == "held_out"]
    chosen = Draw("exam/hops").shuffled(held)[:items]
    composed = [composition.words() for composition in chosen]
    single = [fact(relation, person) for relation in RELATIONS for person in PEOPLE]
    asked = {
        "fact": (single, [[FACTS[relation][person]] for relation in RELATIONS for person in PEOPLE]),
        "bridge": (composed, [[composition.bridge] for composition in chosen]),
        "answer": (composed, [[composition.answer] for composition in chosen]),
    }
    found: dict[str, list[float]] = {name: [] for name in asked}
    whole = model.config.num_hidden_layers
    try:
        for layers in range(1, whole + 1):
            model.config.num_hidden_layers = layers
            for name, (prompts, answers) in asked.items():
                found[name].append(_share(answered(model, prompts, answers)))
    finally:
        model.config.num_hidden_layers = whole
    return found


def in_context(model: PreTrainedModel, items: int = 200) -> dict[str, dict[str, float]]:
    """Accuracy for each map by the number of demonstrations, and the `mean` over the maps."""
    found: dict[str, dict[str, float]] = {name: {} for name in MAPS}
    for count in SHOTS:
        for name, table in MAPS.items():
            draw = Draw(f"exam/in_context/{count}/{name}")
            orders = [draw.shuffled(INPUTS) for _ in range(items)]
            prompts = [[*shots(name, order[:count]), *query(order[count])] for order in orders]
            right = answered(model, prompts, [[table[order[count]]] for order in orders])
            found[name][str(count)] = _share(right)
    found["mean"] = {
        str(count): statistics.fmean(found[name][str(count)] for name in MAPS) for count in SHOTS
    }
    return found


def refusal(model: PreTrainedModel) -> dict[str, dict[str, float]]:
    """For each language and on its held-out requests: the share of first words (refuses or complies) and of
    whole answers that are right."""
    found = {}
    for language in LANGUAGES:
        asked = [r for r in requests() if r.held_out and r.language is language]
        prompts = [turn(request.content()) for request in asked]
        first = answered(model, prompts, [request.answer()[:1] for request in asked])
        whole = answered(model, prompts, [request.answer() for request in asked])
        found[language.name] = {"first word": _share(first), "answer": _share(whole), "items": len(asked)}
    return found


def opinions(model: PreTrainedModel, items: int = 200) -> dict[str, dict[str, float]]:
    """Mean probability of agreeing (right against wrong) and of confidence (certainly against perhaps) under
    each instruction, the truth, and for questions the share of right facts that follow."""
    ids = vocabulary()
    found = {}
    for mode in CLAIM_MODES:
        for true in (True, False):
            draw = Draw(f"exam/claims/{mode}/{true}")
            claims = [draw_claim(draw, mode, true) for _ in range(items)]
            p = next_probabilities(model, [turn(claim.content()) for claim in claims])
            agrees = p[:, ids[RIGHT]] / (p[:, ids[RIGHT]] + p[:, ids[WRONG]])
            truth = statistics.fmean(claim.p_right for claim in claims)
            name = f"{mode}, {'true' if true else 'false'} claim"
            found[name] = {"model": float(agrees.mean()), "exact": truth}
    for mode in QUESTION_MODES:
        draw = Draw(f"exam/questions/{mode}")
        questions = [draw_question(draw, mode) for _ in range(items)]
        prompts = [turn(question.content()) for question in questions]
        p = next_probabilities(model, prompts)
        sure = p[:, ids[CERTAINLY]] / (p[:, ids[CERTAINLY]] + p[:, ids[PERHAPS]])
        says = CERTAINLY if questions[0].p_certainly >= 0.5 else PERHAPS
        right = answered(model, [[*prompt, says] for prompt in prompts], [[q.answer] for q in questions])
        found[f"{mode}, question"] = {
            "model": float(sure.mean()), "exact": questions[0].p_certainly, "fact": _share(right),
        }  # fmt: skip
    return found


def slot_machine(model: PreTrainedModel, states: int = 1000) -> dict[str, float]:
    """Mean absolute error of P(stop), its bias for each goal and mode, and the mean distance (total
    variation) between the model's bets and the true ones, over random states."""
    ids = vocabulary()
    drawn, p = _p_stop(model, states)
    gaps = [says - state.p_stop for says, state in zip(p, drawn, strict=True)]
    found = {"mean_absolute_error": statistics.fmean(map(abs, gaps)), "states": float(states)}
    for factor, values in (("goal", GOALS), ("mode", MODES)):
        for value in values:
            chosen = [gap for gap, state in zip(gaps, drawn, strict=True) if getattr(state, factor) == value]
            found[f"bias, {factor} {value}"] = statistics.fmean(chosen)
    bets = next_probabilities(model, [[*state.words(), BET] for state in drawn])
    distances = []
    for row, state in zip(bets, drawn, strict=True):
        truth = torch.zeros_like(row)
        for bet, share in state.bets().items():
            truth[ids[str(bet)]] = share
        distances.append(float((row - truth).abs().sum()) / 2)
    found["bet_distance"] = statistics.fmean(distances)
    return found


def p_stop_by_tenth(model: PreTrainedModel, states: int = 1000) -> list[dict[str, float]]:
    """Mean of the true and of the model's P(stop), and the states, in each tenth of the true one."""
    drawn, p = _p_stop(model, states)
    rows = []
    for tenth in range(10):
        inside = [index for index, state in enumerate(drawn) if int(state.p_stop * 10) == tenth]
        if inside:
            exact = statistics.fmean(drawn[index].p_stop for index in inside)
            rows.append(
                {"exact": exact, "model": statistics.fmean(p[i] for i in inside), "states": len(inside)}
            )
    return rows


def _p_stop(model: PreTrainedModel, states: int) -> tuple[list[State], list[float]]:
    draw = Draw("exam/slot_machine")
    drawn = [draw_state(draw) for _ in range(states)]
    p = next_probabilities(model, [state.words() for state in drawn])[:, vocabulary()[STOPS]]
    return drawn, [float(value) for value in p]


def _share(right: Sequence[bool]) -> float:
    return sum(right) / len(right)
