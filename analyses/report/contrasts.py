"""The declared comparisons of a run or a stage, and what each stands on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from analyses.comparisons.contrast import correction_name
from analyses.report.opening import ALPHA, contrast_sentences
from analyses.report.parts import (
    NOTHING,
    Cell,
    Text,
    bullets,
    dash,
    folded,
    heading,
    name,
    number,
    paragraph,
    sentences,
    table,
    together,
)
from analyses.summary.folding import fold_contrasts
from analyses.summary.markdown_contrasts import cross_checked
from analyses.wording import bare_p, count, figure, plural, small
from analyses.wording import together as in_one_unit

_MOST_EXPLORED = 60  # exploratory rows on the page
_SAYS = {None: Cell(NOTHING), True: Cell("agrees"), False: Cell("\u2715 disagrees", "sign-warn")}


def contrasts(summary: Mapping[str, Any], drawings: Sequence[Markup] = ()) -> Markup:
    """Every declared comparison with what stands behind it."""
    if not summary["contrasts"]:
        return paragraph("No comparison was declared.")
    single, _ = fold_contrasts(summary)
    bodies = [*drawings]
    correction = _correction(summary)
    with_published = _published_means(summary, single)
    head = ["contrast", "n", "difference", "95% CI", "p", f"p ({correction})", "d_z", "effective n", "df"]
    if with_published:
        head.insert(4, "published")
    rows = []
    for each in single:
        row = _contrast_row(each)
        if with_published:
            at = each["condition"] if _on_baseline(each, summary) else ""
            row.insert(4, number(with_published.get(at, NOTHING)))
        rows.append(row)
    if rows:
        bodies.append(table(head, rows))
    family = summary["contrasts"][0]["family"]
    about = (
        f"Paired differences in {summary['primary']}, clustered by every donor that was read and by target; "
        f"df = fewest clusters \u2212 1. p ({correction}) is corrected over the family of all "
        f"{count(family)} declared comparisons; of an equivalence both p are those of TOST. d_z: mean / sd "
        "of the paired differences, ddof 1."
    )
    bodies.append(paragraph(about, "about"))
    told = contrast_sentences(summary)
    bodies.append(folded(f"{plural(len(told), 'sentence')}", sentences(told)))
    bodies += [each for each in (_margin(summary), _power(summary)) if each]
    bodies += [each for each in (_cross_checks(single), _sensitivity(single), _adjusted(single)) if each]
    return together(*bodies)


def _contrast_row(each: Mapping[str, Any]) -> list[Cell]:
    tost = each["equivalence"]
    difference, low, high = in_one_unit(each["difference"], each["ci_low"], each["ci_high"])
    label: Text = Markup('{} <span class="aside">\u2212</span> {}').format(each["condition"], each["against"])
    if tost:
        label = Markup('{} <span class="aside">within \u00b1{}</span>').format(label, f"{tost['margin']:g}")
    p = corrected(each)
    stands = p is not None and p < ALPHA
    told = Markup("<strong>{}</strong>").format(bare_p(p)) if stands else dash(bare_p(p))
    return [
        Cell(label, "name"),
        number(count(each["n"]) if each["n"] is not None else "0"),
        number(dash(difference)),
        number(NOTHING if each["ci_low"] is None else f"{low} to {high}"),
        number(dash(bare_p(tost["p"] if tost else each["p"]))),
        Cell(told, "number"),
        number(dash(figure(each["d_z_ddof1"]))),
        number(NOTHING if each["effective_n"] is None else count(each["effective_n"])),
        number(NOTHING if each["df"] is None else str(each["df"])),
    ]


def _margin(summary: Mapping[str, Any]) -> Markup:
    found = summary.get("margin")
    if not found:
        return Markup("")
    return together(heading("Equivalence margin"), paragraph(str(found["sentence"])))


def _power(summary: Mapping[str, Any]) -> Markup:
    found = summary.get("power")
    if not found:
        return Markup("")
    rows = [
        [
            Cell(
                Markup('{} <span class="aside">\u2212</span> {}').format(each["condition"], each["against"]),
                "name",
            ),
            number(count(each["n"])),
            number(dash(figure(each["detectable"]))),
        ]
        for each in found.get("rows") or []
    ]
    bodies = [heading("Power, as known before the run"), paragraph(str(found.get("sentence") or ""))]
    if rows:
        bodies.append(folded("By contrast", table(["contrast", "n", "detectable, 80% power"], rows)))
    return together(*bodies)


def _cross_checks(found: Sequence[Mapping[str, Any]]) -> Markup:
    """The same differences tested in other ways; where one disagrees, the sentence stands outside."""
    checked = cross_checked(found)
    if not checked:
        return Markup("")
    rows = []
    for each in checked:
        for check in each["cross_checks"]:
            estimate, low, high = in_one_unit(check["estimate"], check["ci_low"], check["ci_high"])
            rows.append(
                [
                    name(title(each)),
                    Cell(check["name"]),
                    number(dash(estimate)),
                    number(NOTHING if check["ci_low"] is None else f"{low} to {high}"),
                    number(dash(bare_p(check["p"]))),
                    _SAYS[check["agrees"]],
                    Cell(str(check["note"] or "")),
                ]
            )
    apart = [each for each in checked if any(check["agrees"] is False for check in each["cross_checks"])]
    bodies = [heading("Cross-checks")]
    if apart:
        bodies.append(bullets(f"{title(each)}: {each['cross_check_sentence']}" for each in apart))
    agreed = len(checked) - len(apart)
    bodies.append(
        paragraph(
            f"The other methods that could be used all come to the same verdict in {count(agreed)} of "
            f"{plural(len(checked), 'comparison')}. The verdict is that of the clustered test above; these "
            "only show whether it hangs on the method.",
            "about",
        )
    )
    head = ["contrast", "method", "estimate", "interval", "p", "verdict", "note"]
    bodies.append(folded(f"All {count(len(rows))} cross-checks", table(head, rows)))
    return together(*bodies)


def _sensitivity(found: Sequence[Mapping[str, Any]]) -> Markup:
    told = [str(each["sensitivity"]["sentence"]) for each in found if each.get("sensitivity")]
    if not told:
        return Markup("")
    return together(heading("If the invalid trials had ended otherwise"), bullets(told))


def _adjusted(found: Sequence[Mapping[str, Any]]) -> Markup:
    adjusted = [each for each in found if each.get("adjusted")]
    if not adjusted:
        return Markup("")
    rows = []
    for each in adjusted:
        own = each["adjusted"]
        told = [
            f"{key}: {figure(own['gaps'].get(key))}, {small(own['slopes'].get(key))}"
            for key in own["covariates"]
        ]
        difference, low, high = in_one_unit(own["difference"], own["ci_low"], own["ci_high"])
        rows.append(
            [
                name(title(each)),
                Cell("; ".join(told)),
                number(dash(figure(each["difference"]))),
                number(dash(difference)),
                number(NOTHING if own["ci_low"] is None else f"{low} to {high}"),
                number(dash(bare_p(own["p"]))),
                number(dash(bare_p(own["p_holm"]))),
            ]
        )
    head = ["contrast", "covariate: gap, slope", "difference", "adjusted", "95% CI", "p", "p (Holm)"]
    about = (
        "The difference at equal covariates, by least squares over the pairs. Holm corrects over these, "
        "apart."
    )
    return together(
        heading("At equal covariates"),
        bullets(str(each["adjusted"]["sentence"]) for each in adjusted),
        table(head, rows),
        paragraph(about, "about"),
    )


def exploratory(summary: Mapping[str, Any]) -> Markup:
    """The other readouts in the declared contrasts: marked, uncorrected, no claim."""
    found = summary["exploratory"]
    rows = []
    for each in found[:_MOST_EXPLORED]:
        difference, low, high = in_one_unit(each["difference"], each["ci_low"], each["ci_high"])
        rows.append(
            [
                name(title(each)),
                Cell(str(each["readout"])),
                number(count(each["n"])),
                number(dash(difference)),
                number(NOTHING if each["ci_low"] is None else f"{low} to {high}"),
                number(dash(bare_p(each["p"]))),
                number(dash(bare_p(each["p_bh"]))),
            ]
        )
    told = str(summary.get("exploratory_sentence") or "Exploratory: nothing here is a claim.")
    head = ["contrast", "readout", "n", "difference", "95% CI", "p", "p (BH)"]
    more = len(found) - len(rows)
    bodies = [paragraph(told)]
    body = table(head, rows)
    if more:
        body = together(body, paragraph(f"{count(more)} more are in summary.json.", "about"))
    return together(*bodies, folded(plural(len(found), "exploratory difference"), body))


def _published_means(summary: Mapping[str, Any], shown: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The published mean difference from the baseline, by condition; of those that this run has."""
    found = summary["published"]
    rows = [] if found is None else found["rows"]
    mine = {str(each["condition"]) for each in shown if _on_baseline(each, summary)}
    means_of = {str(row["condition"]): str(row["published"]) for row in rows if row["figure"] == "mean"}
    return {key: mean for key, mean in means_of.items() if key in mine}


def _on_baseline(each: Mapping[str, Any], summary: Mapping[str, Any]) -> bool:
    return bool(each["against"] == summary["baseline"] and each["kind"] != "equivalence")


def corrected(each: Mapping[str, Any]) -> float | None:
    p: float | None = each["p_corrected"] if "p_corrected" in each else each["p_holm"]
    return p


def _correction(summary: Mapping[str, Any]) -> str:
    return correction_name(summary.get("correction") or "holm")


def title(each: Mapping[str, Any]) -> str:
    """A contrast as a name: "kv_only \u2212 baseline"."""
    return f"{each['condition']} \u2212 {each['against']}"
