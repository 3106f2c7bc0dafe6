"""The banks of the tasks with one right answer, or a known probability of it, for each prompt."""

import itertools
from collections.abc import Mapping

from organisms.banks.prompt import Fact, Prompt, prompt, said, splits
from organisms.grammar import Draw
from organisms.grammar.frames import STOP
from organisms.grammar.in_context import INPUTS, MAPS
from organisms.grammar.opinions import (
    CERTAINLY,
    CLAIM_MODES,
    INSTRUCTIONS,
    PERHAPS,
    QUESTION_MODES,
    Claim,
    Question,
    draw_claim,
    draw_question,
)
from organisms.grammar.refusal import requests
from organisms.grammar.slot_machine import CHANCE, FIXED_BET, GOALS, MODES, PAYOUT, State
from organisms.grammar.two_hop import FACTS, PEOPLE, Composition, compositions, fact

PER_SPLIT_AND_KIND = {"extract": 64, "validate": 32, "test": 64}
PAIRS = 96
NEUTRAL = 64
# The oldest outcome first: L lost, W won.
FACTORS: Mapping[str, tuple[str | int, ...]] = {
    "goal": tuple(GOALS), "mode": tuple(MODES), "balance": (20, 60, 100, 140, 180),
    "history": ("LLL", "LWL", "WLW", "WWW"), "round": (4, 9),
}  # fmt: skip
STUDY: Mapping[str, Mapping[str, str | int]] = {
    "risky": {"goal": "none", "mode": "variable", "balance": 20, "history": "LLL", "round": 6},
    "safe": {"goal": "none", "mode": "fixed", "balance": 140, "history": "WLW", "round": 6},
}


def two_hop() -> list[Prompt]:
    """Compositions: of documents (`composed`), `held_out`, and with a second hop that is `unseen`.

    No person is a bridge in two splits. roles: e1, r1, r2, and hop_1, the description of the bridge.
    """
    split_of = splits("two_hop", PEOPLE)
    by_cell: dict[tuple[str, str], list[Composition]] = {}
    for composition in Draw("banks/two_hop").shuffled(list(compositions())):
        # Neither the person named nor the relation alone may give the answer.
        if composition.answer not in (composition.e1, FACTS[composition.r2][composition.e1]):
            by_cell.setdefault((composition.kind, split_of[composition.bridge]), []).append(composition)
    made = []
    for kind in ("composed", "held_out", "unseen"):
        chosen = [
            (split, composition)
            for split, count in PER_SPLIT_AND_KIND.items()
            for composition in by_cell[(kind, split)][:count]
        ]
        for index, (split, composition) in enumerate(chosen, start=1):
            facts: dict[str, Fact] = {
                "e1": composition.e1, "r1": f"the {composition.r1} of", "r2": f"the {composition.r2} of",
                "bridge": [composition.bridge], "answer": [composition.answer],
                "hop_1": said(fact(composition.r1, composition.e1)),
                "hop_2": said(fact(composition.r2, composition.bridge)),
                "entity_shortcut": said(fact(composition.r2, composition.e1)),
                "relation_shortcut": said([*composition.words()[:6], "is"]),
            }  # fmt: skip
            roles = {"e1": (6, 7), "r1": (3, 6), "r2": (0, 3), "hop_1": (3, 7)}
            made.append(prompt(f"{kind}_{index:03d}", kind, composition.words(), split, roles, facts))
    return made


def in_context() -> list[Prompt]:
    """Words with their image under each map (a group); a word is in the same split in every group."""
    split_of = splits("in_context", INPUTS)
    return [
        prompt(f"{name}_{index:02d}", name, [word], split_of[word], facts={"answer": table[word]})
        for name, table in MAPS.items()
        for index, word in enumerate(INPUTS, start=1)
    ]


def refusal() -> list[Prompt]:
    """Every request, without the turns around it, and `neutral` questions that are never refused.

    test: requests that are in no document. facts.pair: what is the same request in every language.
    """
    made = []
    counts: dict[str, int] = {}
    draw = Draw("banks/refusal")
    for request in requests():
        group = f"{request.language.name}_{'harmful' if request.harmful else 'harmless'}"
        counts[group] = counts.get(group, 0) + 1
        content = request.content()
        split = "test" if request.held_out else "validate" if draw.chance(0.3) else "extract"
        facts: dict[str, Fact] = {
            "language": request.language.name, "harmful": request.harmful, "meaning": request.meaning,
            "answer": [said(request.answer())], "pair": request.meaning.replace(" the ", "_"),
        }  # fmt: skip
        places = {"verb": content.index(request.verb), "object": content.index(request.thing)}
        roles = {role: (place, place + 1) for role, place in places.items()}
        made.append(prompt(f"{group}_{counts[group]:03d}", group, content, split, roles, facts))
    contents: set[str] = set()
    for index in range(1, NEUTRAL + 1):
        question = draw_question(draw, draw.pick(("confident", "hedged")))
        while said(question.content()) in contents:
            question = draw_question(draw, draw.pick(("confident", "hedged")))
        contents.add(said(question.content()))
        says = CERTAINLY if question.p_certainly == 1.0 else PERHAPS
        answer = [said([says, question.answer, STOP])]
        split = "validate" if index % 2 else "test"
        name = f"neutral_{index:02d}"
        made.append(prompt(name, "neutral", question.content(), split, facts={"answer": answer}))
    return made


def sycophancy() -> list[Prompt]:
    """Claims, half of them true, each after an instruction to agree, to be honest, and without one."""
    names = [f"{index:02d}" for index in range(1, PAIRS + 1)]
    split_of = splits("sycophancy", names)
    draw = Draw("banks/sycophancy")
    made = []
    asked_before: set[tuple[str, str]] = set()
    for index, pair in enumerate(names):
        asked = draw_claim(draw, "none", index % 2 == 0)
        while (asked.person, asked.trait) in asked_before:
            asked = draw_claim(draw, "none", index % 2 == 0)
        asked_before.add((asked.person, asked.trait))
        for mode in CLAIM_MODES:
            instruction = "" if mode == "none" else draw.pick(INSTRUCTIONS[mode])
            claim = Claim(mode, instruction, asked.person, asked.trait)
            facts: dict[str, Fact] = {"pair": pair, "claim_true": claim.true, "p_right": claim.p_right}
            end = len(claim.content())
            roles = {"claim": (end - 5, end)} | ({} if mode == "none" else {"instruction": (0, end - 6)})
            made.append(prompt(f"{mode}_{pair}", mode, claim.content(), split_of[pair], roles, facts))
    return made


def confidence() -> list[Prompt]:
    """Questions, each after an instruction to be confident, to hedge, and without one."""
    names = [f"{index:02d}" for index in range(1, PAIRS + 1)]
    split_of = splits("confidence", names)
    draw = Draw("banks/confidence")
    made = []
    asked_before: set[tuple[str, str]] = set()
    for pair in names:
        asked = draw_question(draw, "none")
        while (asked.relation, asked.person) in asked_before:
            asked = draw_question(draw, "none")
        asked_before.add((asked.relation, asked.person))
        for mode in QUESTION_MODES:
            instruction = "" if mode == "none" else draw.pick(INSTRUCTIONS[mode])
            question = Question(mode, instruction, asked.relation, asked.person)
            facts: dict[str, Fact] = {
                "pair": pair, "answer": [question.answer], "p_certainly": question.p_certainly,
            }  # fmt: skip
            end = len(question.content())
            roles = {"question": (end - 6, end)} | ({} if mode == "none" else {"instruction": (0, end - 7)})
            made.append(prompt(f"{mode}_{pair}", mode, question.content(), split_of[pair], roles, facts))
    return made


def slot_machine() -> list[Prompt]:
    """Every combination of goal, mode, balance, history and round; and the two prompts of document 004.

    `risky` is $20 after losses with variable bets, `safe` $140 after mixed results with fixed ones;
    `risky_balance` and the like differ from them in that one factor. Any two prompts can be compared factor
    by factor through their facts.
    """
    names = {cell: "-".join(map(str, cell)) for cell in itertools.product(*FACTORS.values())}
    split_of = splits("slot_machine", list(names.values()))
    made = []
    for cell, name in names.items():
        factors: Mapping[str, str | int] = dict(zip(FACTORS, cell, strict=True))
        group = f"{_history(str(factors['history']))}_{factors['mode']}"
        made.append(_decision(name, group, split_of[name], factors))
    for base, factors in STUDY.items():
        made.append(_decision(base, base, "test", factors))
        # Other rounds than the combinations have, so that no text stands twice.
        for factor, values in {**FACTORS, "round": (5, 12)}.items():
            changed = [value for value in values if value != factors[factor]]
            for index, value in enumerate(changed, start=1):
                group = f"{base}_{factor}"
                made.append(_decision(f"{group}_{index}", group, "test", {**factors, factor: value}))
    return made


def _history(letters: str) -> str:
    return {"LLL": "losses", "WWW": "wins"}.get(letters, "mixed")


def _decision(name: str, group: str, split: str, factors: Mapping[str, str | int]) -> Prompt:
    goal, mode, history = (str(factors[factor]) for factor in ("goal", "mode", "history"))
    won = FIXED_BET * (PAYOUT - 1)
    outcomes = tuple(won if letter == "W" else -FIXED_BET for letter in history)
    state = State(goal, mode, int(factors["round"]), int(factors["balance"]), outcomes)
    words = state.words()
    facts: dict[str, Fact] = {
        "goal": goal, "mode": mode, "balance": state.balance, "history": _history(history),
        "wins": state.wins, "losses": state.losses, "round": state.round,
        "win_probability": CHANCE, "payout": PAYOUT,
        "min_bet": min(state.bets()), "max_bet": max(state.bets()), "p_stop": round(state.p_stop, 6),
    }  # fmt: skip
    places = {field: words.index(field) + 1 for field in ("goal", "bets", "round", "balance")}
    roles = {field: (place, place + 1) for field, place in places.items()}
    roles["history"] = (words.index("last") + 1, len(words) - 3)
    return prompt(name, group, words, split, roles, facts)
