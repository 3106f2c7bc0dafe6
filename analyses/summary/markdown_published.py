"""The published figures in Markdown, recomputed and beside those of this run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analyses.published.recompute import ONE_TEXT
from analyses.wording import figure, p_value


def published_section(published: Mapping[str, Any]) -> list[str]:
    """The lines of the section."""
    lines = []
    runs = published["this_run"]
    if runs:
        lines += [
            "Computed the published way, pairs taken as independent: for comparison, not for conclusions.",
            "",
        ]
    if published["rows"]:
        single = any(row["recomputed"] is None for row in published["rows"])
        own = ["this run, mean"] if single else ["this run, their way"] if runs else []
        head = ["condition", "figure", "published", "recomputed from its sums", "agrees", *own]
        rows = [
            [
                f"`{row['condition']}`",
                row["figure"],
                row["published"],
                "it has none" if row["recomputed"] is None else f"{row['recomputed']:.4g}",
                "-" if row["agrees"] is None else "yes" if row["agrees"] else "NO",
                *([this_way(row["condition"], row["figure"], published)] if own else []),
            ]
            for row in published["rows"]
        ]
        lines += [*markdown_table(head, rows), ""]
    for name, test in runs.items():
        if test["t"] is None:
            lines.append(f"- `{name}`: {test['note']}.")
            continue
        lines.append(
            f"- `{name}` - baseline, one-sample t: {figure(test['difference'])}, t({test['df']:g}) = "
            f"{figure(test['t'])}, {p_value(test['p'])}, d = {figure(test['d_ddof0'])} with ddof 0, "
            f"{figure(test['d_ddof1'])} with ddof 1."
        )
    for each in published["between_arms"]:
        if each["t"] is not None:
            lines.append(
                f"- `{each['condition']}` - `{each['against']}`, unpaired t on differences "
                f"from the baseline: t({each['df']:g}) = {figure(each['t'])}, {p_value(each['p'])}."
            )
    return lines


def this_way(condition: str, name: str, published: Mapping[str, Any]) -> str:
    """The figure of this run that corresponds to a published one; a dash where it has none. Beside the score
    of a single text stands the mean of the condition."""
    if name == ONE_TEXT:
        mean = published["means"].get(condition)
        return "-" if mean is None else figure(mean)
    field = {"mean": "difference", "ci95 low": "ci_low", "ci95 high": "ci_high"}.get(name, name)
    found: Mapping[str, Any] | None = published["this_run"].get(condition)
    if " vs " in condition:
        first, second = condition.split(" vs ")
        matches = [
            (1 if each["condition"] == first else -1, each)
            for each in published["between_arms"]
            if {each["condition"], each["against"]} == {first, second}
        ]
        sign, found = matches[0] if matches else (1, None)
        field = name.split(",")[0]
        if found is not None and field == "t" and found["t"] is not None:
            return f"{sign * found['t']:.4g}"
    if found is None:
        return "-"
    value = found.get(field)
    return "-" if value is None else f"{value:.4g}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, line by line."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
