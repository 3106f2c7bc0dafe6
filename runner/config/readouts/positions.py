"""Which position of a prompt a readout reads: a number, or a positions word that names one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from backends.positions import PositionError, Positions
from backends.writes import SELF
from runner.config.errors import listed
from runner.config.spec import Spec
from runner.prompts.marks import unmarked
from runner.prompts.pairing import Banks

FORMS = ("a number", "index:-2", "role:NAME.first", "role:NAME.last", "token:'TEXT'")


def one_position(word: int | str | None) -> tuple[int, str]:
    """The position that a word names, -1 where there is none: as a number that holds for every prompt, and
    else as the word itself, which each prompt resolves on its own (`Probe.position`, `Probe.at`).

    Raises PositionError for a word that names no position, or several.
    """
    if word is None or isinstance(word, int):
        return (-1 if word is None else word), ""
    try:
        positions = Positions.parse(word)
    except PositionError:
        raise PositionError(f"{_expected(word)}{_nearest(word)}") from None
    if positions.kind == "index":
        return positions.count, ""
    if positions.kind in ("first", "last") and positions.count == 1:
        return (0 if positions.kind == "first" else -1), ""
    if not positions.end:
        ends = f"; did you mean {word}.last?" if positions.kind == "role" else ""
        raise PositionError(f"{_expected(word)}, which may be several{ends}")
    return -1, positions.word


def position_faults(spec: Spec, banks: Banks) -> Iterator[tuple[tuple[str, ...], str]]:
    """Readouts of a marked part that not one prompt of a condition has, with the key of each."""
    _, conditions, names = spec.stage
    for name in names:
        body = spec.readout.get(name)
        if body is None or body.position is None:
            continue
        try:
            at = one_position(body.position)[1]
        except PositionError:
            continue  # told already
        lacking: dict[str, dict[str, None]] = {}
        for condition, each in conditions.items() if at else ():
            sentence = unmarked(
                Positions.parse(at), SELF, each.prompt, spec.prompts, banks, chat=spec.model.chat_template
            )
            if sentence is not None:
                lacking.setdefault(sentence, {})[condition.partition("[")[0]] = None
        every = len({condition.partition("[")[0] for condition in conditions})
        for sentence, told in lacking.items():
            where = "" if len(told) == every else f"in {listed(told)}: "
            yield ("readout", name, "position"), f"{where}{sentence}"


def _expected(word: str) -> str:
    return f"expected one position of the prompt ({listed(FORMS)}), got '{word}'"


def _nearest(word: str) -> str:
    if re.fullmatch(r"-?\d+", word):
        return f"; did you mean index:{word}?"
    head, _, rest = word.partition(":")
    return f"; did you mean token:'{rest}'?" if head == "token" and rest else ""
