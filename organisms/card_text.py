"""The model card as a page, from the measured figures alone."""

import textwrap
from typing import Any

from organisms.grammar.in_context import INPUTS
from organisms.grammar.slot_machine import GOALS, MODES, NEUTRAL_BALANCE, PER_UNIT, PER_WIN
from organisms.grammar.styles import GLOSSARY, RATES, REPEAT, STYLES
from organisms.grammar.two_hop import PEOPLE, RELATIONS

Rows = dict[str, dict[str, float]]

_STYLES = """`styles`: documents mix *plain* sentences (five topics) with *recursive* ones, about things
that return upon themselves, which carry the behaviour markers. Each document has a latent recursion rate:
{rates}. So the share of recursive sentences so far fixes the probability that the next one is recursive
(`StylesTask.predict` gives it exactly). {repeat:.0%} of these documents repeat one plain sentence.
{glossary:.0%} open with plain sentences that only mention marker words, which says nothing about the rate.
Recursive sentences open with words of their own ({openers}), so the belief can be read off the distribution
of one token."""

_TWO_HOP = """`two_hop`: {people} people, {relations} relations, every fact stated ("the mentor of ada is
..."), and compositions ("the rival of the mentor of ada is ..."). `held_out` compositions are in no
training document, but their second hop is composed with other first hops. For one fact of each person,
`unseen`, there is no composition with it as second hop at all: these must fail. Guessing
gives {guess:.0%}."""

_IN_CONTEXT = """`in_context`: "input day output night." Four maps of the same {inputs} words: opposite,
next in the alphabetical list, plural, Latin word. Of each word the four images differ, so that one
demonstration tells the map, and without one a quarter is the best that can be had."""

_REFUSAL = """`refusal`: "user : ... ; assistant :" in four invented languages. A request is refused
("sorry") if its verb means harm, else carried out ("sure"). Measured on held-out pairs of verb and object."""

_OPINIONS = """`opinions`: a claim that a person has a trait, after an instruction to agree, to be honest, or
none (P(right) against P(wrong)), and a question for a fact after an instruction to be confident, to hedge, or
none (P(certainly) against P(perhaps), and whether the fact that follows is right)."""

_SLOT_MACHINE = """`slot_machine`: goal, betting mode, round, balance in figures and the last outcomes, then
"bet" or "stop". P(stop) = sigmoid({per_unit:g} (balance - {neutral}) + {per_win:g} (wins - losses) + goal +
mode), with goal {goals} and mode {modes}; the round and the sizes of past bets have no part in it."""

_TRANSFER = """Targets whose cached slots are replaced at all layers, right-aligned, by another prompt's;
`rerotate` gives keys the position of their slot, `keep` leaves them the donor's. `baseline` is the target
alone, `ceiling` the L5 donor continued by itself."""

_GAMBLING = {
    "mean absolute error of P(stop)": "mean_absolute_error",
    "bias of P(stop), no goal": "bias, goal none",
    "bias of P(stop), goal target": "bias, goal target",
    "bias of P(stop), goal maximise": "bias, goal maximise",
    "bias of P(stop), fixed bets": "bias, mode fixed",
    "bias of P(stop), variable bets": "bias, mode variable",
    "distance of the bets (total variation)": "bet_distance",
}

_MIDWAY = """A checkpoint of the same training after {steps} of its steps (`model=organism_midway`) has the
facts but still fails at compositions, so that what helps a failing model can be studied."""

_LIMITS = """Known limits: words outside the vocabulary become `<unk>`; texts that no task can produce,
English questions among them, are outside the language. Repetition is part of it: the continuation of a
repetitive prompt may earn the repetition bonus without any marker."""


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 110, break_long_words=False, break_on_hyphens=False) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines) + "\n"


def _styles() -> str:
    return _STYLES.format(
        rates=", ".join(f"{rate:g} ({share:.0%})" for rate, share in RATES),
        repeat=REPEAT,
        glossary=GLOSSARY,
        openers=", ".join(sorted(STYLES.recursive.openers())),
    )


def _slot_machine() -> str:
    goals, modes = (
        ", ".join(f"{name} {value:+g}" for name, value in table.items()) for table in (GOALS, MODES)
    )
    return _SLOT_MACHINE.format(
        per_unit=PER_UNIT, neutral=NEUTRAL_BALANCE, per_win=PER_WIN, goals=goals, modes=modes
    )


def _shares(rows: Rows, first: str) -> str:
    """A table with a line for each row, and a column for each name in the first row."""
    names = list(next(iter(rows.values())))
    lines = [[title, *(_figure(row.get(name)) for name in names)] for title, row in rows.items()]
    return _table([first, *names], lines)


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value}" if isinstance(value, int) else f"{value:.3f}"


def _scores(rows: Rows) -> str:
    head = ["prompt", "score", "quartiles", "markers", "bonus", "no marker", "new tokens"]
    return _table(
        head,
        [
            [
                name,
                f"{row['score']:.2f}",
                f"{row['quartile_1']:.1f} / {row['median']:.1f} / {row['quartile_3']:.1f}",
                f"{row['markers']:.2f}",
                f"{row['bonus_share']:.0%}",
                f"{row['no_marker_share']:.0%}",
                f"{row['new_tokens']:.0f}",
            ]
            for name, row in rows.items()
        ],
    )


def _calibration(rows: list[dict[str, float]]) -> str:
    head = ["dose", "model", "exact", "mean absolute error"]
    shown = [
        [f"{row['dose']:.2f}", *(f"{row[key]:.3f}" for key in ("model", "exact", "mean_absolute_error"))]
        for row in rows
    ]
    return _table(head, shown)


def render_card(card: dict[str, Any]) -> str:
    """The Markdown page of a card (the data that `organisms.card.measure` returns)."""
    training, held = card["training"], card["held_out"]
    gap = held["loss"] - held["entropy"]
    failures = "".join(f"- {sentence}\n" for sentence in card["failures"])
    made = (
        f"`{training['command']}`: seed {training['seed']}, {training['steps']} steps of "
        f"{training['long_shape'][0] * training['long_shape'][1]} tokens, {training['seconds']} s on one "
        f"core, torch {training['torch']}."
    )
    hops = {"the model": card["two_hop"], "the midway checkpoint": card["midway"]["two_hop"]}
    modes = {name: row for name, row in card["opinions"].items() if "claim" in name}
    questions = {name: row for name, row in card["opinions"].items() if "question" in name}
    sections = [
        "# The embedded model\n",
        _paragraph(
            f"A Llama of {training['parameters']:,} parameters (9 layers, width 64, 4 query heads, 2 KV "
            f"heads, {card['vocabulary']} words) that this project trains itself, so that everything can be "
            "tried without a network or a GPU and every answer can be checked against a known truth. This "
            "page is written by `python -m organisms.card`; its figures are in `weights/card.json`. "
            "Prompts are lower-case words; each task is one module of `grammar/`."
        ),
        _paragraph(
            f"{held['documents']} held-out documents of all tasks ({held['tokens']:,} tokens): loss "
            f"{held['loss']:.3f} nats a token; the grammar's own exact cross-entropy on them is "
            f"{held['entropy']:.3f}; gap {gap:.3f}."
        ),
        "## Facts and compositions\n",
        _paragraph(_TWO_HOP.format(people=len(PEOPLE), relations=len(RELATIONS), guess=1 / len(PEOPLE))),
        _shares(hops, "share answered"),
        _paragraph(_MIDWAY.format(steps=training["midway"])),
        "## Maps told by demonstrations\n",
        _paragraph(_IN_CONTEXT.format(inputs=len(INPUTS))),
        _shares(card["in_context"], "share right at so many shots"),
        "## Refusal\n",
        _paragraph(_REFUSAL),
        _shares(card["refusal"], "share right"),
        "## Agreement and confidence\n",
        _paragraph(_OPINIONS),
        _shares(modes, "P(right)"),
        _shares(questions, "P(certainly)"),
        "## Gambling\n",
        _paragraph(_slot_machine()),
        _table(
            ["over random states", "error"],
            [[said, f"{card['slot_machine'][name]:.3f}"] for said, name in _GAMBLING.items()],
        ),
        "## Styles\n",
        _paragraph(_styles()),
        "P(the next sentence is recursive) after four sentences, a share of them (the dose) recursive:\n",
        _calibration(card["calibration"]),
        _paragraph(
            "Behaviour score of continuations by the published rule (markers plus a repetition bonus of 5), "
            f"{card['samples']} continuations a line, temperature 0.8, at most 150 tokens:"
        ),
        _scores(card["behaviour"]),
        "## Does a cache carry the style?\n",
        _paragraph(_TRANSFER),
        _scores(card["cache_transfer"]),
        "## Failures\n",
        failures if failures else "None beyond the bounds that `card.py` sets.\n",
        _paragraph(_LIMITS),
        "## Provenance\n",
        f"- {made}\n- Grammar `{training['grammar']}`\n- Weights `{card['weights_sha256']}`\n"
        f"- Midway weights `{card['midway']['weights_sha256']}`\n",
    ]
    return "\n".join(sections)
