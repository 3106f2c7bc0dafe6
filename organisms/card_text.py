"""The model card as a page, from the measured figures alone."""

import textwrap
from typing import Any

from organisms.grammar.styles import GLOSSARY, RATES, REPEAT, STYLES

Rows = dict[str, dict[str, float]]

_TASK = """One task so far, `styles` (`grammar/styles.py`): documents mix *plain* sentences (five topics) with
*recursive* ones, about things that return upon themselves, which carry the behaviour markers. Each document
has a latent recursion rate: {rates}. So the share of recursive sentences so far fixes the probability that
the next one is recursive (`StylesTask.predict` gives it exactly). {repeat:.0%} of documents repeat one plain
sentence. {glossary:.0%} open with plain sentences that only mention marker words, which says nothing about
the rate. Recursive sentences open with words of their own ({openers}), so the belief can be read off the
distribution of one token. Prompts are whole sentences: lower case, a full stop at the end."""

_TRANSFER = """Targets whose cached slots are replaced at all layers, right-aligned, by another prompt's;
`rerotate` gives keys the position of their slot, `keep` leaves them the donor's. `baseline` is the target
alone, `ceiling` the L5 donor continued by itself."""

_LIMITS = """Known limits: words outside the vocabulary become `<unk>`; prompts that end in mid-sentence,
questions and instructions to a chat assistant are outside the language. Repetition is part of it: the
continuation of a repetitive prompt may earn the repetition bonus without any marker."""


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 110, break_long_words=False, break_on_hyphens=False) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines) + "\n"


def _described() -> str:
    return _TASK.format(
        rates=", ".join(f"{rate:g} ({share:.0%})" for rate, share in RATES),
        repeat=REPEAT,
        glossary=GLOSSARY,
        openers=", ".join(sorted(STYLES.recursive.openers())),
    )


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
        f"{training['rows']} x {training['length']} tokens, {training['seconds']} s on one core, "
        f"torch {training['torch']}."
    )
    sections = [
        "# The embedded model\n",
        _paragraph(
            f"A Llama of {training['parameters']:,} parameters (9 layers, width 64, 4 query heads, 2 KV "
            f"heads, {card['vocabulary']} words) that this project trains itself, so that everything can be "
            "tried without a network or a GPU and every answer can be checked against a known truth. This "
            "page is written by `python -m organisms.card`; its figures are in `weights/card.json`."
        ),
        "## What it has learned\n",
        _paragraph(_described()),
        "## Held-out loss against the grammar's entropy\n",
        _paragraph(
            f"{held['documents']} held-out documents ({held['tokens']:,} tokens): loss {held['loss']:.3f} "
            f"nats a token; the grammar's own exact cross-entropy on them is {held['entropy']:.3f}; "
            f"gap {gap:.3f}."
        ),
        "## Does it know the truth? P(the next sentence is recursive) after four sentences\n",
        _calibration(card["calibration"]),
        "## Behaviour score of continuations\n",
        _paragraph(
            f"Published rule (markers plus a repetition bonus of 5), {card['samples']} continuations a line, "
            "temperature 0.8, at most 150 tokens."
        ),
        _scores(card["behaviour"]),
        "## Does a cache carry the style?\n",
        _paragraph(_TRANSFER),
        _scores(card["cache_transfer"]),
        "## Failures\n",
        failures if failures else "None beyond the bounds that `card.py` sets.\n",
        _paragraph(_LIMITS),
        "## Provenance\n",
        f"- {made}\n- Grammar `{training['grammar']}`\n- Weights `{card['weights_sha256']}`\n",
    ]
    return "\n".join(sections)
