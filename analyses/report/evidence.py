"""Whether the run did what it says: gates and receipts, before any result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from analyses.report.page import Section
from analyses.report.parts import (
    Cell,
    Verdict,
    dash,
    folded,
    heading,
    name,
    number,
    paragraph,
    table,
    together,
    verdicts,
)
from analyses.summary.folding import fold_gates, fold_receipts
from analyses.wording import count, plural, small

# verdict -> sign, word, word for several, kind (of colour), in the order in which they are told
SIGNS = {
    "fail": ("\u2715", "fails", "fail", "fail"),
    "warn": ("!", "warning", "warnings", "warn"),
    "expected": ("\u25cb", "expected", "expected", ""),
    "pass": ("\u2713", "passes", "pass", "good"),
}
_OPEN = ("fail", "warn")
_MOST_EXPECTED = 6  # that are shown without unfolding
_MOST_WRITES = 24  # in a table that is not folded, where a figure shows them
_ABOUT = (
    "Each write into the model is counted and measured as it happens. Written of asked: positions, one once "
    "for all layers. Relative change: mean of abs(new \u2212 old) / abs(old) at the written positions; "
    "where nothing is replaced, the change of the first logits."
)


def gates_section(summary: Mapping[str, Any], drawings: Sequence[Markup] = ()) -> Section:
    """Gates, those that fail first, and the receipts of all writes. drawings: figures of the receipts."""
    gates = fold_gates(summary["gates"])
    apart = {verdict: [gate for gate in gates if gate["verdict"] == verdict] for verdict in SIGNS}
    apart |= {"pass": apart["pass"] + [gate for gate in gates if gate["verdict"] not in SIGNS]}
    tally = [
        Markup('<span class="verdict {}"><span aria-hidden="true">{}</span>{} {}</span>').format(
            kind, sign, *_tally(verdict, len(apart[verdict])).split(" ", 1)
        )
        for verdict, (sign, _, _, kind) in SIGNS.items()
        if apart[verdict]
    ]
    bodies = []
    if tally:
        bodies.append(Markup('<p class="tally">{}</p>').format(Markup(" ").join(tally)))
    else:
        bodies.append(paragraph("No gate has anything to say."))
    first = [_verdict(gate) for verdict in _OPEN for gate in apart[verdict]]
    rest = [_verdict(gate) for verdict in SIGNS if verdict not in _OPEN for gate in apart[verdict]]
    if len(rest) <= _MOST_EXPECTED:
        first, rest = first + rest, []
    if first:
        bodies.append(verdicts(first))
    if rest:
        bodies.append(folded(f"{plural(len(rest), 'finding')} that were expected or pass", verdicts(rest)))
    told = receipts(summary)
    writes = len(fold_receipts(summary["receipts"]))
    if drawings and writes > _MOST_WRITES:
        bodies += [heading("Receipts"), *drawings, folded(f"All {plural(writes, 'write')}", told)]
    else:
        bodies += [heading("Receipts"), told, *drawings]
    return Section("gates", "Gates and receipts", together(*bodies), worst(summary))


def worst(summary: Mapping[str, Any]) -> str:
    """The gravest verdict with how many gates have it: "2 fail", "7 warnings"; "" where there is no gate."""
    given = [str(gate["verdict"]) for gate in fold_gates(summary["gates"])]
    verdict = next((each for each in SIGNS if each in given), None)
    return "" if verdict is None else _tally(verdict, given.count(verdict))


def _tally(verdict: str, number_of: int) -> str:
    _, one, several, _ = SIGNS[verdict]
    return f"{count(number_of)} {one if number_of == 1 else several}"


def receipts(summary: Mapping[str, Any]) -> Markup:
    """What every write did, summed over its trials."""
    if not summary["receipts"]:
        return paragraph("No condition writes into the model.")
    staged = any("stage" in each for each in summary["receipts"])
    many = len({each.get("stage") for each in summary["receipts"]}) > 1
    head = [
        *(["stage"] if many else []),
        "condition",
        "write",
        "what",
        "prefill",
        "decode",
        "overwritten",
        "relative change",
    ]
    apart: dict[str, list[Mapping[str, Any]]] = {}
    for each in summary["receipts"]:
        apart.setdefault(str(each.get("stage") or ""), []).append(each)
    rows: list[list[Cell]] = []
    for stage, members in apart.items():
        for each in fold_receipts(members):
            row = [name(each["condition"]), name(each["write"]), Cell(_what(each))]
            row += [_phase(each, phase) for phase in ("prefill", "decode")]
            shadowed = sum(each["shadowed"].values())
            row += [number(count(shadowed) if shadowed else "\u2013"), number(_change(each))]
            rows.append([name(stage), *row] if many and staged else row)
    return together(table(head, rows), paragraph(_ABOUT, "about"))


def _what(each: Mapping[str, Any]) -> str:
    spec = each["spec"]
    layers = spec.get("layers") or []
    told = [str(spec.get(key)) for key in ("op", "site") if spec.get(key)]
    if layers:
        whole = list(range(min(layers), max(layers) + 1)) == list(layers)
        at = f"{layers[0]}\u2013{layers[-1]}" if whole and len(layers) > 1 else ", ".join(map(str, layers))
        told.append(f"at {at}" if len(layers) <= 12 or whole else f"at {len(layers)} layers")
    return " ".join(told)


def _phase(each: Mapping[str, Any], phase: str) -> Cell:
    asked, written = each["asked"].get(phase) or 0, each["written"].get(phase) or 0
    if not asked and not written:
        return number("\u2013")
    told = f"{count(written)} of {count(asked)}"
    if written or not asked:
        return number(told)
    expected = each["spec"].get("expect") == "inert"
    sign = "never fired, as expected" if expected else "\u2715 never fired"
    return Cell(f"{told} {sign}", "number" if expected else "number sign-bad")


def _change(each: Mapping[str, Any]) -> str:
    change = each["relative_change"]
    if isinstance(change, str):
        return change
    if change is None and each["logit_change"] is not None:
        return f"{small(each['logit_change'])} (logits)"
    return dash(small(change))


def _verdict(gate: Mapping[str, Any]) -> Verdict:
    told = str(gate["verdict"])
    sign, word, _, kind = SIGNS.get(told, ("\u25cb", told, told, ""))
    where = str(gate["gate"]) + (f", stage {gate['stage']}" if gate.get("stage") else "")
    return Verdict(kind, sign, word, str(gate["sentence"]), where)
