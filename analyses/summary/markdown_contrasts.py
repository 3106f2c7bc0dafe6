"""How `summary.md` tells the declared contrasts, and what is exploratory beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from analyses.comparisons.contrast import HOLM, corrected, correction_name
from analyses.summary.folding import fold_contrasts
from analyses.summary.markdown_published import markdown_table
from analyses.wording import bare_p, count, figure, listed, plural, small, together


def contrasts_section(summary: Mapping[str, Any], mark: str) -> list[str]:
    """The declared comparisons: a sentence each, what stands beside it, and the table. mark: of headings."""
    if not summary["contrasts"]:
        return ["None was declared."]
    by = correction_name(summary.get("correction", HOLM))
    head = ["contrast", "n", "difference", "95% CI", "p", f"p ({by})", "d_z (ddof 1)", "effective n", "df"]
    rows = []
    single, of_grids = fold_contrasts(summary)
    for each in single:
        tost = each["equivalence"]
        difference, low, high = together(each["difference"], each["ci_low"], each["ci_high"])
        rows.append(
            [
                f"`{each['condition']}` - `{each['against']}`"
                + (f", TOST {tost['margin']:g}" if tost else ""),
                count(each["n"]) if each["n"] is not None else "0",
                difference,
                "undefined" if each["ci_low"] is None else f"{low} to {high}",
                bare_p(tost["p"] if tost else each["p"]),
                bare_p(corrected(each)),
                figure(each["d_z_ddof1"]),
                "undefined" if each["effective_n"] is None else count(each["effective_n"]),
                "undefined" if each["df"] is None else str(each["df"]),
            ]
        )
    family = summary["contrasts"][0]["family"]
    about = (
        f"Paired differences in {summary['primary']}, clustered by every donor that was read and by target, "
        f"df = fewest clusters - 1. p is corrected by {by} over a family of {count(family)}; for TOST rows "
        "it is that of the equivalence test. Cohen's d is d_z, mean / sd of the paired differences with "
        "ddof 1."
    )
    sentences = [
        *(line for each in single for line in (f"- {with_note(each)}", *(f"  - {b}" for b in remarks(each)))),
        *(f"- {sentence}" for sentence in of_grids),
        *(f"- {sentence}" for sentence in on_the_family(summary, single)),
    ]
    adjusted = [each for each in single if each.get("adjusted")]
    table = [*markdown_table(head, rows), ""] if rows else []
    if adjusted:
        return [*sentences, "", *table, about, "", *_adjusted(adjusted, mark)]
    return [*sentences, "", *table, about]


def explored_section(summary: Mapping[str, Any]) -> list[str]:
    """The other readouts in the contrasts that are told one by one; no verdict."""
    told = {(each["condition"], each["against"]) for each in fold_contrasts(summary)[0]}
    head = ["contrast", "readout", "n", "difference", "95% CI", "p, uncorrected", "p (BH)"]
    rows = []
    for each in summary["exploratory"]:
        if (each["condition"], each["against"]) in told:
            difference, low, high = together(each["difference"], each["ci_low"], each["ci_high"])
            rows.append(
                [
                    f"`{each['condition']}` - `{each['against']}`",
                    each["readout"],
                    count(each["n"]),
                    difference,
                    "undefined" if each["ci_low"] is None else f"{low} to {high}",
                    "-" if each["p"] is None else bare_p(each["p"]),
                    "-" if each["p_bh"] is None else bare_p(each["p_bh"]),
                ]
            )
    table = ["", *markdown_table(head, rows)] if rows else []
    return [summary["exploratory_sentence"], *table]


def remarks(contrast: Mapping[str, Any]) -> list[str]:
    """What stands beside a contrast's sentence: cross-checks that do not all agree, and what invalid trials
    could change."""
    found = []
    if any(check["agrees"] is False for check in contrast.get("cross_checks") or ()):
        found.append(contrast["cross_check_sentence"])
    if contrast.get("sensitivity"):
        found.append(contrast["sensitivity"]["sentence"])
    return found


def on_the_family(summary: Mapping[str, Any], contrasts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on the contrasts together: how many cross-checks agree, the suggested margin, and the power
    that was known before the run."""
    checked = cross_checked(contrasts)
    agree = [each for each in checked if not any(c["agrees"] is False for c in each["cross_checks"])]
    found = []
    if checked:
        made = [[c["name"] for c in each["cross_checks"] if c["agrees"] is not None] for each in checked]
        often = Counter(name for names in made for name in names)
        told = [
            name if number == len(checked) else f"{name} (in {count(number)})"
            for name, number in often.items()
        ]
        whole = plural(len(checked), "contrast")
        found.append(
            f"Cross-checks that could be made ({listed(told)}) all agree in {count(len(agree))} of {whole}."
        )
    if summary.get("margin"):
        found.append(summary["margin"]["sentence"])
    if summary.get("power"):
        found += [summary["power"]["sentence"], *summary["power"]["warnings"]]
    return found


def cross_checked(contrasts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The contrasts of which at least one cross-check could be made."""
    return [
        each
        for each in contrasts
        if any(check["agrees"] is not None for check in each.get("cross_checks") or ())
    ]


def _adjusted(contrasts: Sequence[Mapping[str, Any]], mark: str) -> list[str]:
    head = ["contrast", "covariate: mean gap, slope", "difference", "adjusted", "95% CI", "p", "p (Holm)"]
    rows = []
    for each in contrasts:
        found = each["adjusted"]
        told = [
            f"{name}: {figure(found['gaps'].get(name))}, {small(found['slopes'].get(name))}"
            for name in found["covariates"]
        ]
        difference, low, high = together(found["difference"], found["ci_low"], found["ci_high"])
        rows.append(
            [
                f"`{each['condition']}` - `{each['against']}`",
                "; ".join(told),
                figure(each["difference"]),
                difference,
                "undefined" if found["ci_low"] is None else f"{low} to {high}",
                bare_p(found["p"]),
                bare_p(found["p_holm"]),
            ]
        )
    about = (
        "Adjusted: the difference at equal covariates, by least squares over the pairs, clustered as the "
        "others. Holm corrects over the adjusted differences, apart."
    )
    return [
        f"{mark}# Adjusted",
        "",
        *(f"- {c['adjusted']['sentence']}" for c in contrasts),
        "",
        *markdown_table(head, rows),
        "",
        about,
    ]


def with_note(contrast: Mapping[str, Any]) -> str:
    """A contrast's sentence with the note on its figures; an untested one has its reason in the sentence."""
    if not contrast["note"] or contrast["p"] is None:
        return str(contrast["sentence"])
    return f"{contrast['sentence']} (Note: {contrast['note']}.)"
