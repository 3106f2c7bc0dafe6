"""The findings and choices of a summary as rows and sentences, alike in the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analyses.findings.words import published_value
from analyses.wording import bare_p, count, figure, plural, together

HEAD = ("finding", "value", "95% CI", "n", "p (Holm)", "published")


def finding_row(finding: Mapping[str, Any]) -> list[str]:
    """A finding of a summary as `HEAD` has it; a dash where there is nothing."""
    return [
        str(finding["label"]),
        value_told(finding),
        interval_told(finding),
        count(finding["n"]) if finding["n"] else "-",
        "-" if finding["p_holm"] is None else bare_p(finding["p_holm"]),
        published_told(finding["published"]),
    ]


def value_told(finding: Mapping[str, Any]) -> str:
    """The value, a share with its count, a layer with its depth."""
    value, depth = finding["value"], finding["depth"]
    if value is None:
        return "-"
    if _is_rate(finding):
        (side,) = finding["sides"]
        return f"{_percent(value)} ({count(side['ones'])} of {count(side['n'])})"
    if isinstance(value, float):
        told = together(value, finding["low"], finding["high"])[0]
    elif isinstance(value, list):
        told = ", ".join(map(str, value))
    else:
        told = str(value)
    ones = [(side["ones"], side["n"]) for side in finding["sides"] if side["ones"] is not None]
    if len(ones) == 2:
        told += f" ({', '.join(f'{count(number)} of {count(n)}' for number, n in ones)})"
    return told if depth is None else f"{told} ({_percent(depth['share'])} of {depth['layers']} layers)"


def interval_told(finding: Mapping[str, Any]) -> str:
    """ "2.6% to 19.9%"; a dash where there is none."""
    if finding["low"] is None or finding["high"] is None:
        return "-"
    if _is_rate(finding):
        return f"{_percent(finding['low'])} to {_percent(finding['high'])}"
    _, low, high = together(finding["value"], finding["low"], finding["high"])
    return f"{low} to {high}"


def published_told(published: Mapping[str, Any] | None) -> str:
    """The published figure of this model, else the range over the models that have one."""
    if published is None:
        return "-"
    if published["model"] is not None or not published["models"]:
        return published_value(published["value"])
    values = list(published["models"].values())
    if all(isinstance(value, int | float) for value in values):
        ends = [published_value(end) for end in (min(values), max(values))]
        return f"{' to '.join(dict.fromkeys(ends))} ({plural(len(values), 'model')})"
    return f"{plural(len(values), 'other model')}"


def choice_sentences(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(choice, what was chosen and why)."""
    return [(name, str(choice["sentence"])) for name, choice in summary["choices"].items()]


def artefact_sentences(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(artefact, where it was read and the ranges of its table)."""
    found = []
    for name, artefact in summary["artefacts"].items():
        parts = [str(artefact["site"])] if artefact["site"] else []
        parts.append(plural(artefact["rows"], "vector"))
        for column in ("norm", "resid_norm", "separation", "consistency"):
            if artefact[column] is not None:
                low, high = together(*artefact[column])
                span = low if low == high else f"{low} to {high}"
                parts.append(f"{column} {span}")
        found.append((name, ", ".join(parts) + "."))
    return found


def left_out_sentences(summary: Mapping[str, Any]) -> list[str]:
    """One sentence for each stage that was left out."""
    return [f"Stage {name} was left out: {reason}." for name, reason in summary["left_out"].items()]


def _is_rate(finding: Mapping[str, Any]) -> bool:
    return bool(finding["kind"] == "mean" and finding["unit"] == "share")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}".removesuffix(".0") + "%"


def stage_head(name: str, summary: Mapping[str, Any]) -> str:
    """What a stage measured, in one line: its question, trials and conditions."""
    counts, question = summary["counts"], summary["experiment"].get("question")
    told = [f"{plural(counts['rows'], 'trial')}", f"{plural(len(summary['conditions']), 'condition')}"]
    told += [f"{count(counts[key])} {key}" for key in ("invalid", "failed", "pending") if counts[key]]
    return f"{name}{f': {question}' if question else ''} ({', '.join(told)})"


def span_told(cell: tuple[str, float] | None) -> str:
    """ "-4.50 at from_layer=5"; a dash where there is none."""
    if cell is None:
        return "-"
    value = cell[1]
    told = figure(value) if abs(value) < 1000 else f"{value:.3g}"
    return f"{told} at {cell[0]}"
