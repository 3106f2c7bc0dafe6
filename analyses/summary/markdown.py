"""How `summary.md` reads: question, gates, conditions in words, results, receipts, published figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analyses.findings.tables import (
    HEAD,
    artefact_sentences,
    choice_sentences,
    finding_row,
    left_out_sentences,
    span_told,
    stage_head,
)
from analyses.summary.folding import (
    cell_of,
    fold,
    fold_gates,
    fold_receipts,
    large_grids,
    without_cells,
)
from analyses.summary.markdown_analyses import analyses_section
from analyses.summary.markdown_contrasts import contrasts_section, explored_section
from analyses.summary.markdown_published import markdown_table, published_section
from analyses.tables.run import SCORES
from analyses.wording import count, figure, in_column, plural, small, together


def to_markdown(summary: Mapping[str, Any]) -> str:
    """The summary as Markdown; every figure comes from the mapping that `summarise` returns. Of a run with
    stages the findings and choices come first, then each stage."""
    experiment = summary["experiment"]
    unfinished = f" ({summary['unfinished']})" if summary["unfinished"] else ""
    lines = [f"# {experiment.get('name', 'experiment')}{unfinished}", ""]
    if experiment.get("question"):
        lines += [str(experiment["question"]), ""]
    lines += [_about(summary), ""]
    if summary.get("findings"):
        lines += ["## Findings", "", *_findings(summary["findings"]), ""]
    if "stages" in summary:
        lines += _of_stages(summary)
        if summary.get("analyses"):
            lines += ["## Analyses", "", *analyses_section(summary["analyses"], "##"), ""]
    else:
        lines += ["## Gates", "", *_gates(summary), ""]
        lines += _measured(summary, "##")
    return "\n".join(lines).rstrip() + "\n"


def _measured(summary: Mapping[str, Any], mark: str) -> list[str]:
    """What a flat run or a stage measured, section by section; mark: of the headings."""
    lines = []
    if summary["checks"]:
        lines += [f"{mark} Checks", "", *_checks(summary), ""]
    lines += [f"{mark} What each condition does", "", *_words(summary), ""]
    lines += [f"{mark} Results by condition", "", *_results(summary), ""]
    lines += [f"{mark} Contrasts", "", *contrasts_section(summary, mark), ""]
    if summary.get("exploratory"):
        lines += [f"{mark} Exploratory", "", *explored_section(summary), ""]
    if summary["trends"]:
        lines += [f"{mark} Trends", "", *_trends(summary), ""]
    if summary["repeats"]:
        lines += [f"{mark} By repeat", "", *_repeats(summary), ""]
    if summary.get("analyses"):
        lines += [f"{mark} Analyses", "", *analyses_section(summary["analyses"], mark), ""]
    lines += [f"{mark} Receipts", "", *_receipts(summary), ""]
    if summary["published"] is not None:
        lines += [f"{mark} As published", "", *published_section(summary["published"]), ""]
    return lines


def _of_stages(summary: Mapping[str, Any]) -> list[str]:
    lines = []
    gone = left_out_sentences(summary)
    if summary["choices"] or gone:
        chosen = [f"- `{name}`: {sentence}" for name, sentence in choice_sentences(summary)]
        about = "Every candidate with its figures is in `choices/`." if chosen else ""
        lines += ["## Choices", "", *chosen, *(f"- {sentence}" for sentence in gone), "", about, ""]
    if summary["artefacts"]:
        told = [f"- `{name}`: {sentence}" for name, sentence in artefact_sentences(summary)]
        lines += ["## Artefacts", "", *told, ""]
    lines += ["## Gates", "", *_gates(summary), ""]
    for name, stage in summary["stages"].items():
        lines += [f"## Stage {stage_head(name, stage)}", "", *_measured(stage, "###")]
    return lines


def _findings(found: Sequence[Mapping[str, Any]]) -> list[str]:
    about = (
        "Shares have Wilson's interval, differences of shares Newcombe's, with the effective n where trials "
        "share prompts; other figures the clustered t interval. Differences of shares are tested by "
        "McNemar's exact test, others by the clustered t test; Holm corrects over all findings."
    )
    rows = [finding_row(each) for each in found]
    return [*markdown_table(list(HEAD), rows), "", *(f"- {each['sentence']}" for each in found), "", about]


def _about(summary: Mapping[str, Any]) -> str:
    counts, prompts = summary["counts"], summary["prompts"]
    ended = ", ".join(f"{count(counts[k])} {k}" for k in ("ok", "invalid", "failed", "pending") if counts[k])
    parts = [f"{plural(counts['rows'], 'trial')}: {ended or 'none ended'}"]
    if counts.get("reused"):
        parts.append(f"{count(counts['reused'])} reused from earlier runs")
    if prompts.get("distinct_donors"):
        parts.append(
            f"{plural(prompts['distinct_donors'], 'distinct donor')}, "
            f"{plural(prompts['distinct_targets'], 'distinct target')}, "
            f"{plural(prompts.get('distinct_pairs', 0), 'distinct pair')}"
        )
    elif prompts.get("distinct_targets"):
        parts.append(plural(prompts["distinct_targets"], "distinct target"))
    if summary["dtype"]:
        parts.append(f"computed in {summary['dtype']}")
    if summary["status"] not in (None, "done", "finished", "complete"):
        parts.append(f"status: {summary['status']}")
    return "; ".join(parts) + "."


def _gates(summary: Mapping[str, Any]) -> list[str]:
    if not summary["gates"]:
        return ["No gate has anything to say."]
    return [
        f"- **{gate['verdict']}** ({gate['gate']}{_stage(gate)}): {gate['sentence']}"
        for gate in fold_gates(summary["gates"])
    ]


def _stage(gate: Mapping[str, Any]) -> str:
    return f", stage {gate['stage']}" if gate.get("stage") else ""


def _checks(summary: Mapping[str, Any]) -> list[str]:
    about = (
        "What must come out in a known way. `same`: in no trial different. `different`: in most trials. "
        "`higher`, `lower`: on average; tests are clustered by donor and target, and corrected together, by "
        "Holm."
    )
    return [*(f"- **{each['verdict']}**: {each['sentence']}" for each in summary["checks"]), "", about]


def _words(summary: Mapping[str, Any]) -> list[str]:
    lines = []
    for grid, cells in large_grids(list(summary["conditions"])).items():
        first = summary["conditions"][cells[0]]
        words = " ".join(first["words"]) or "No description was recorded."
        lines.append(f"- `{grid}`, {plural(len(cells), 'cell')}; the first, {cell_of(cells[0])}: {words}")
    for name, condition in without_cells(summary["conditions"]).items():
        label = "" if condition["label"] == name else f" ({condition['label']})"
        words = " ".join(condition["words"]) or "No description was recorded."
        lines.append(f"- `{name}`{label}: {words}")
    return lines


def _results(summary: Mapping[str, Any]) -> list[str]:
    primary = summary["primary"]
    apart = others(summary)
    shares = ("strong", "moderate", "none") if primary == SCORES[0] else ()
    head = [
        "condition",
        "n",
        "mean",
        "sd",
        "median",
        "range",
        *((">= 8", ">= 5", "0") if shares else ()),
        *apart,
    ]
    rows = []
    single = without_cells(summary["conditions"])
    beside = {name: in_column(means({"conditions": single}, name)) for name in apart}
    for place, (name, condition) in enumerate(single.items()):
        found = condition["readouts"].get(primary, {})
        told = together(*(found.get(key) for key in ("mean", "sd", "median", "minimum", "maximum")))
        rows.append(
            [
                f"`{name}`",
                count(condition["n"]),
                *told[:3],
                f"{told[3]} to {told[4]}",
                *(percent(found.get(key)) for key in shares),
                *(beside[each][place] for each in apart),
            ]
        )
    shown = (
        ", and the shares of at least 8 (strong), at least 5 (moderate, the strong ones included) and 0 "
        "(none)"
    )
    about = (
        f"{primary}: mean, sd (ddof 1), median, range{shown if shares else ''}. The other readouts are "
        "means, exploratory. Readouts that are lists are in `trials.parquet`."
    )
    notes = [
        f"- `{name}`, {column}: {found['note']}."
        for name, condition in single.items()
        for column, found in condition["readouts"].items()
        if found["note"]
    ]
    grids = _grids(summary)
    table = [*markdown_table(head, rows), ""] if rows else []
    return [*grids, *table, about, *(["", *notes] if notes else [])]


def _grids(summary: Mapping[str, Any]) -> list[str]:
    """Each large grid as a whole, by every readout."""
    head = ["grid", "cells", "n of a cell", "readout", "mean", "lowest cell", "highest cell"]
    rows = []
    for readout in (summary["primary"], *others(summary)):
        for grid in fold(summary["conditions"], readout):
            if grid.mean is not None:
                ends = (span_told(grid.lowest), span_told(grid.highest))
                sizes = (count(len(grid.cells)), span(grid.n))
                rows.append([f"`{grid.name}`", *sizes, readout, figure(grid.mean), *ends])
    if not rows:
        return []
    return [*markdown_table(head, rows), "", "Every cell is in `trials.parquet` and `summary.json`.", ""]


def span(numbers: tuple[int, int]) -> str:
    """ "40", or "38 to 40"."""
    fewest, most = map(count, numbers)
    return fewest if fewest == most else f"{fewest} to {most}"


def others(summary: Mapping[str, Any]) -> list[str]:
    """The scalar readouts beside the primary one."""
    found = dict.fromkeys(c for condition in summary["conditions"].values() for c in condition["readouts"])
    return [column for column in found if column != summary["primary"]]


def means(summary: Mapping[str, Any], readout: str) -> list[float | None]:
    """The mean of a readout in each condition, None where it has none."""
    return [each["readouts"].get(readout, {}).get("mean") for each in summary["conditions"].values()]


def _trends(summary: Mapping[str, Any]) -> list[str]:
    lines = []
    for each in summary["trends"]:
        told = in_column(each["means"]) or ["undefined"] * len(each["doses"])
        rows = [
            [f"`{name}`", f"{dose:g}", mean]
            for name, dose, mean in zip(each["conditions"], each["doses"], told, strict=True)
        ]
        lines += [
            f"- {each['sentence']}",
            "",
            *markdown_table(["condition", "dose", f"mean {each['readout']}"], rows),
            "",
        ]
    about = (
        "Slope of least squares over items that have every dose, two-way clustered by the donors really used "
        "and by target. Holm corrects over the trends, apart from the contrasts: they are exploratory."
    )
    return [*lines, about]


def _repeats(summary: Mapping[str, Any]) -> list[str]:
    found = summary["repeats"]
    numbers = [row["repeat"] for row in found[0]["rows"]]
    head = ["contrast", *(f"repeat {number}" for number in numbers), "leaves out 0"]
    rows = [
        [
            f"`{each['condition']}` - `{each['against']}`",
            *(repeat_cell(row) for row in each["rows"]),
            f"{each['excluding_zero']} of {each['of']}",
        ]
        for each in found
    ]
    about = "Difference and 95% interval of each repeat alone, clustered, not corrected."
    return [*(f"- {each['sentence']}" for each in found), "", *markdown_table(head, rows), "", about]


def repeat_cell(row: Mapping[str, Any]) -> str:
    """The difference of one repeat with its interval: "2.95 (2.41 to 3.49)"."""
    if row["ci_low"] is None:
        return figure(row["difference"])
    difference, low, high = together(row["difference"], row["ci_low"], row["ci_high"])
    return f"{difference} ({low} to {high})"


def _receipts(summary: Mapping[str, Any]) -> list[str]:
    if not summary["receipts"]:
        return ["No condition writes into the model."]
    head = [
        "condition",
        "write",
        "prefill written / asked",
        "decode written / asked",
        "shadowed",
        "relative change",
    ]
    rows = []
    for each in fold_receipts(summary["receipts"]):
        change = each["relative_change"]
        if isinstance(change, str):
            measured = change
        elif change is None and each["logit_change"] is not None:
            measured = f"{small(each['logit_change'])} (logits)"
        else:
            measured = small(change)
        rows.append(
            [
                f"`{each['condition']}`",
                f"`{each['write']}`",
                *(f"{count(each['written'][k])} / {count(each['asked'][k])}" for k in ("prefill", "decode")),
                count(sum(each["shadowed"].values())),
                measured,
            ]
        )
    return markdown_table(head, rows)


def percent(value: float | None) -> str:
    """A share as a whole percentage; a dash where it does not apply."""
    return "-" if value is None else f"{100 * value:.0f}%"
