"""The published figures beside those of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from analyses.report.parts import (
    NOTHING,
    Cell,
    bullets,
    folded,
    name,
    number,
    paragraph,
    table,
    together,
)
from analyses.summary.markdown_published import this_way
from analyses.wording import count, figure, p_value, plural

_AGREES = {
    None: Cell(NOTHING),
    True: Cell("\u2713 yes", "sign-good"),
    False: Cell("\u2715 no", "sign-bad"),
}


def published(found: Mapping[str, Any]) -> Markup:
    """The published figures, recomputed from their sums, beside those of this run computed their way."""
    bodies: list[Markup] = []
    runs = found["this_run"]
    if runs:
        told = (
            "Computed the published way, with pairs taken as independent: for comparison, not for "
            "conclusions. The clustered results are above."
        )
        bodies.append(paragraph(told))
    if found["rows"]:
        wrong = [row for row in found["rows"] if row["agrees"] is False]
        can = [row for row in found["rows"] if row["agrees"] is not None]
        if can:
            agree = f"{count(len(can) - len(wrong))} of {count(len(can))} published figures"
            bodies.append(paragraph(f"{agree} agree with their own sums."))
        beside = [this_way(row["condition"], row["figure"], found) for row in found["rows"]]
        some = any(each != "-" for each in beside)
        head = [
            "condition",
            "figure",
            "published",
            "from its sums",
            "agrees",
            *(["this run"] if some else []),
        ]
        rows = []
        for row, mine in zip(found["rows"], beside, strict=True):
            value = row["recomputed"]
            cells = [
                name(row["condition"]),
                Cell(row["figure"]),
                number(str(row["published"])),
                number(NOTHING if value is None else f"{value:.4g}"),
                _AGREES[row["agrees"]],
            ]
            rows.append([*cells, number(NOTHING if mine == "-" else mine)] if some else cells)
        told = table(head, rows)
        bodies.append(told if some else folded(plural(len(rows), "published figure"), told))
    lines = [
        f"{key} \u2212 baseline, one-sample t: {figure(test['difference'])}, t({test['df']:g}) = "
        f"{figure(test['t'])}, {p_value(test['p'])}, d = {figure(test['d_ddof0'])} (ddof 0), "
        f"{figure(test['d_ddof1'])} (ddof 1)."
        if test["t"] is not None
        else f"{key}: {test['note']}."
        for key, test in runs.items()
    ]
    lines += [
        f"{each['condition']} \u2212 {each['against']}, unpaired t on differences from the baseline: "
        f"t({each['df']:g}) = {figure(each['t'])}, {p_value(each['p'])}."
        for each in found["between_arms"]
        if each["t"] is not None
    ]
    if lines:
        bodies.append(folded("This run, computed their way", bullets(lines)))
    return together(*bodies) if bodies else paragraph("Nothing of this run can stand beside it.")
