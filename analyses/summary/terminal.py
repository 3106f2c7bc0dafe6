"""How a summary looks in a terminal: tables, then one sentence per contrast and per gate that needs one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analyses.comparisons.contrast import HOLM, corrected
from analyses.findings.tables import (
    HEAD,
    artefact_sentences,
    choice_sentences,
    finding_row,
    left_out_sentences,
    span_told,
    stage_head,
)
from analyses.summary.brief import (
    MOST_CONTRASTS,
    contrasts_in_brief,
    cross_checks_in_brief,
    gates_in_brief,
    study_in_brief,
)
from analyses.summary.folding import (
    MOST_CELLS,
    MOST_OF_A_STAGE,
    fold,
    fold_contrasts,
    fold_gates,
    without_cells,
)
from analyses.summary.markdown import means, others, percent, repeat_cell, span
from analyses.summary.markdown_contrasts import on_the_family, with_note
from analyses.wording import bare_p, count, figure, in_column, plural, small, together

WIDTH = 110
_WIDE = 100
_SIDE_BY_SIDE = 2
_MAIN = ("mean", "sd", "med", "range")
_SHORT = {"markers": "mark", "perplexity": "ppl"}
_MOST_APART = 4  # columns of other readouts in one table
_SHARES = (">=8", ">=5", "0")
_SHORT_CORRECTION = {"bonferroni": "Bonf.", "benjamini_hochberg": "BH"}
_VERDICTS = {"met": "green", "not met": "bold red", "undecided": "yellow"}
_MOST_EXPECTED = 2  # gates that say what was announced, in full; more are counted
_WIDEST_NAME = 34
_ALWAYS = ("inert", "shadowed")  # writes of which nothing is left are named, also where that was announced
_STYLES = {"fail": "bold red", "warn": "yellow", "expected": "dim", "pass": "green"}


def print_summary(console: Console, summary: Mapping[str, Any]) -> None:
    """Print findings, choices, conditions, contrasts, checks, analyses and gates of a summary; no line is
    wider than 110 columns or the terminal. What is left to `summary.md`: sentences of more than eight
    contrasts, cross-checks, all but the first sentence on an analysis, sentences of checks that are met, and
    of more than two gates that were expected or warn of one thing. A large grid is one row, with its lowest
    and its highest cell."""
    width = min(WIDTH, console.width)
    if summary["unfinished"]:
        name = summary["experiment"].get("name", "This run")
        console.print(Text(f"{name}: {summary['unfinished']}", style=_STYLES["fail"]), width=width)
    if summary.get("findings"):
        _print_findings(console, summary["findings"], width)
    if "stages" in summary:
        empty = {gate["stage"] for gate in summary["gates"] if gate["gate"] == "empty_selection"}
        chosen = [(name, sentence) for name, sentence in choice_sentences(summary) if name not in empty]
        for name, sentence in (*chosen, *artefact_sentences(summary)):
            console.print(Text(f"{name}: ", style="bold").append(sentence, style="not bold"), width=width)
        for sentence in left_out_sentences(summary):
            console.print(Text(sentence, style=_STYLES["warn"]), width=width)
        for name, stage in summary["stages"].items():
            console.print(Text(f"\nstage {stage_head(name, stage)}", style="bold"), width=width)
            _print_measured(console, stage, width, MOST_OF_A_STAGE)
    else:
        _print_measured(console, summary, width, MOST_CELLS)
    for each in summary.get("analyses") or ():
        console.print(Text(study_in_brief(each["sentence"])), width=width)
    for verdict, sentence in _gates(gates_in_brief(fold_gates(summary["gates"]))):
        console.print(_judged(verdict, sentence, _STYLES), width=width)


def _print_findings(console: Console, findings: Sequence[Mapping[str, Any]], width: int) -> None:
    """The findings as a table, and below it the sentences of those that a row does not tell whole."""
    wide = width >= _WIDE
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title="findings", title_justify="left")
    for place, head in enumerate(HEAD):
        if wide or head != "p (Holm)":
            right = head in ("n", "p (Holm)")
            table.add_column(head, overflow="fold", justify="right" if right else "left", no_wrap=place > 1)
    for each in findings:
        row = finding_row(each)
        table.add_row(
            *(Text(cell) for head, cell in zip(HEAD, row, strict=True) if wide or head != "p (Holm)")
        )
    console.print(table, width=width)
    for each in findings:
        if each["note"] or each["fixed"] or each["by"] or each["in_sample"] or each["value"] is None:
            console.print(Text(each["sentence"]), width=width)


def _print_measured(console: Console, summary: Mapping[str, Any], width: int, most: int) -> None:
    """What a flat run or a stage measured, without its gates. most: cells of a grid that are told one by
    one."""
    # A table that does not fit loses its last columns without a word.
    beside = others(summary)
    fit = _MOST_APART if width >= _WIDE else 0
    grids = _grids(summary, most)
    if grids is not None:
        console.print(grids, width=width)
    single = {**summary, "conditions": without_cells(summary["conditions"], most)}
    if single["conditions"]:
        console.print(_conditions(single, beside[:fit], main=True), width=width)
        for start in range(fit, len(beside), _MOST_APART):
            console.print(_conditions(single, beside[start : start + _MOST_APART], main=False), width=width)
    contrasts, of_grids = fold_contrasts(summary, most)
    if contrasts:
        console.print(_contrasts(contrasts), width=width)
    told = {(each["condition"], each["against"]) for each in contrasts}
    repeats = [each for each in summary["repeats"] if (each["condition"], each["against"]) in told]
    for start in range(0, len(repeats), _SIDE_BY_SIDE):
        console.print(_repeats(repeats[start : start + _SIDE_BY_SIDE]), width=width)
    for sentence in _on_contrasts(summary, contrasts, of_grids):
        console.print(Text(sentence), width=width)
    if summary.get("exploratory"):
        number = plural(len(summary["exploratory"]), "exploratory comparison")
        console.print(Text(f"{number} of other readouts: summary.md has each.", style="dim"), width=width)
    for each in (*summary["trends"], *repeats):
        console.print(Text(each["sentence"]), width=width)
    if summary["checks"]:
        console.print(_checks(summary["checks"], wide=width >= WIDTH), width=width)
    for each in summary["checks"]:
        if each["verdict"] != "met":
            console.print(_judged(each["verdict"], each["sentence"], _VERDICTS), width=width)


def _on_contrasts(
    summary: Mapping[str, Any], contrasts: Sequence[Mapping[str, Any]], of_grids: Sequence[str]
) -> list[str]:
    """A sentence for each contrast, or one for all where there are many; then those on all of them."""
    if len(contrasts) > MOST_CONTRASTS:
        told = [contrasts_in_brief(contrasts, summary["primary"])]
    else:
        told = [with_note(each) for each in contrasts]
        told += [each["sensitivity"]["sentence"] for each in contrasts if each.get("sensitivity")]
        told += [each["adjusted"]["sentence"] for each in contrasts if each.get("adjusted")]
    on_all = on_the_family({**summary, "power": None}, contrasts)
    apart = cross_checks_in_brief(contrasts)
    if apart is not None:  # behind the sentence that counts those that agree
        on_all[0] = f"{on_all[0]} {apart}"
    return [*told, *of_grids, *on_all]


def _judged(verdict: str, sentence: str, styles: Mapping[str, str]) -> Text:
    line = Text(f"{verdict}: ", style=styles[verdict])
    return line.append(sentence, style="")


def _gates(gates: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Verdict and sentence of every gate that calls for attention, inert writes always among them; of many
    others that say what was announced, how many they are."""
    counted = [gate for gate in gates if gate["verdict"] == "expected" and gate["gate"] not in _ALWAYS]
    kinds = Counter(gate["gate"] for gate in counted)
    few = kinds.total() <= _MOST_EXPECTED
    told = [
        (gate["verdict"], f"{gate['stage']}: {gate['sentence']}" if gate.get("stage") else gate["sentence"])
        for gate in gates
        if few or gate not in counted
    ]
    if few:
        return told
    which = ", ".join(f"{count(number)} {name}" for name, number in kinds.items())
    found = f"{plural(kinds.total(), 'finding')} that the experiment announces or implies ({which})"
    return [*told, ("expected", f"{found}; summary.md has each.")]


def _checks(checks: Sequence[Mapping[str, Any]], *, wide: bool) -> Table:
    """One row per check. wide: also what is compared, which the sentences say."""
    title = f"checks: {sum(each['verdict'] == 'met' for each in checks)} of {len(checks)} met"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    table.add_column("check", overflow="fold", min_width=14, max_width=_WIDEST_NAME)
    if wide:
        table.add_column("of", overflow="fold")
    for head in ("expected", "found", "p (Holm)", "verdict"):
        table.add_column(head, justify="right" if head == "p (Holm)" else "left", no_wrap=True)
    for each in checks:
        table.add_row(
            Text(each["name"]),
            *((Text(each["sides"][0]),) if wide else ()),
            each["expect"],
            _found(each),
            "-" if each["p_holm"] is None else bare_p(each["p_holm"]),
            Text(each["verdict"], style=_VERDICTS[each["verdict"]]),
        )
    return table


def _found(check: Mapping[str, Any]) -> str:
    """The means of both sides, or in how many trials they differ."""
    if not check["n"]:
        return "nothing"
    if check["share"] is None:
        return f"{small(check['first'])} vs {small(check['second'])}"
    return f"{count(round(check['share'] * check['n']))} of {count(check['n'])} differ"


def _conditions(summary: Mapping[str, Any], beside: Sequence[str], *, main: bool) -> Table:
    """One row per condition: the primary readout (`main`), and the means of the readouts beside it."""
    primary = summary["primary"]
    title = f"{primary} by condition" if main else "other readouts, means, exploratory"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    table.add_column("condition", overflow="fold", min_width=14, max_width=_WIDEST_NAME)
    told = {}
    for column in beside:
        values = means(summary, column)
        told[column] = list(zip(values, in_column(values), strict=True))
    shares = _SHARES if primary == "score" else ()
    heads = ["n", *((*_MAIN, *shares) if main else ()), *(_SHORT.get(column, column) for column in beside)]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for place, (name, condition) in enumerate(summary["conditions"].items()):
        found = condition["readouts"].get(primary, {})
        cells = [count(condition["n"])]
        if main:
            values = [found.get(key) for key in ("mean", "sd", "median", "minimum", "maximum")]
            cells += map(_short, values[:3], together(*values))
            cells.append(_range(found.get("minimum"), found.get("maximum")))
            cells += [percent(found.get(key)) for key in ("strong", "moderate", "none")[: len(shares)]]
        cells += [_short(*told[column][place]) for column in beside]
        table.add_row(Text(_told(name, condition["label"])), *cells)
    return table


def _told(name: str, label: str) -> str:
    """Name and label; the cell of a grid, which is in both, once."""
    cell = name[name.index("[") :] if "[" in name else ""
    own = label.removesuffix(cell).rstrip() if cell else label
    return name if own in (name, name.removesuffix(cell)) else f"{name}: {own}"


def _grids(summary: Mapping[str, Any], most: int) -> Table | None:
    """One row per large grid and readout; None where there is no such grid."""
    rows = [
        (readout, each)
        for readout in (summary["primary"], *others(summary))
        for each in fold(summary["conditions"], readout, most)
        if each.mean is not None
    ]
    if not rows:
        return None
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title="grids", title_justify="left")
    for head in ("grid", "cells", "n", "readout", "mean", "lowest cell", "highest cell"):
        right = head in ("cells", "n", "mean")
        whole = right or head == "readout"
        table.add_column(head, overflow="fold", justify="right" if right else "left", no_wrap=whole)
    for readout, each in rows:
        table.add_row(
            Text(each.name), count(len(each.cells)), span(each.n), _SHORT.get(readout, readout),
            _short(each.mean, figure(each.mean)), Text(span_told(each.lowest)), Text(span_told(each.highest)),
        )  # fmt: skip
    return table


def _contrasts(contrasts: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title="contrasts", title_justify="left")
    table.add_column("contrast", overflow="fold", min_width=14, max_width=46)
    by = _SHORT_CORRECTION.get(contrasts[0].get("correction", HOLM), "Holm")
    for head in ("n", "diff", "95% CI", f"p ({by})", "d_z ddof 1", "eff. n", "df"):
        table.add_column(head, justify="right", no_wrap=True)
    for each in contrasts:
        tost = each["equivalence"]
        difference, low, high = together(each["difference"], each["ci_low"], each["ci_high"])
        interval = "-" if each["ci_low"] is None else f"{low} to {high}"
        table.add_row(
            Text(
                f"{each['condition']} - {each['against']}"
                + (f", same within {tost['margin']:g}" if tost else "")
            ),
            "0" if each["n"] is None else count(each["n"]),
            _short(each["difference"], difference),
            interval,
            "-" if corrected(each) is None else bare_p(corrected(each)),
            _short(each["d_z_ddof1"], figure(each["d_z_ddof1"])),
            "-" if each["effective_n"] is None else count(each["effective_n"]),
            "-" if each["df"] is None else str(each["df"]),
        )
    return table


def _repeats(found: Sequence[Mapping[str, Any]]) -> Table:
    """One row per repeat, one column per contrast."""
    title = "by repeat, each taken alone: difference and 95% CI"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    table.add_column("repeat", justify="right")
    for each in found:
        table.add_column(Text(f"{each['condition']} - {each['against']}"), justify="right", overflow="fold")
    for rows in zip(*(each["rows"] for each in found), strict=True):
        table.add_row(str(rows[0]["repeat"]), *map(repeat_cell, rows))
    table.add_row("leaves out 0", *(f"{each['excluding_zero']} of {each['of']}" for each in found))
    return table


def _short(value: float | None, told: str) -> str:
    """A number as it is told, with fewer decimals where it is large, so that a perplexity of 12345.67 does
    not break the table."""
    if value is None:
        return "-"
    return told if abs(value) < 100 else figure(value, 0 if abs(value) >= 1000 else 1)


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "-"
    if max(abs(low), abs(high)) < 1:
        ends = [f"{value:g}" if value == round(value) else small(value) for value in (low, high)]
    else:
        ends = [f"{value:g}" if value == round(value) else f"{value:.1f}" for value in (low, high)]
    return ("-" if low >= 0 and "e" not in "".join(ends) else " to ").join(ends)
