"""The page of a comparison: two or more runs side by side, in one file that opens from disk."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup

from analyses.report.interval import scale_of, strip
from analyses.report.page import Section, page
from analyses.report.parts import (
    Banner,
    Cell,
    Sentence,
    Verdict,
    bullets,
    folded,
    head,
    heading,
    name,
    number,
    paragraph,
    sentences,
    table,
    together,
    verdicts,
)
from analyses.runs.compare_terminal import items_in_words, short_names, value_in_words
from analyses.runs.comparison import Comparison, Side, Tested, Versus
from analyses.runs.differences import Difference
from analyses.wording import bare_p, count, figure, listed, plural, share
from analyses.wording import together as figures_together

_MOST_EXAMPLES = 12  # conditions whose texts are shown


def comparison_page(comparison: Comparison) -> str:
    """The HTML of a comparison, self-contained: what came out the same, differences with intervals, what
    differs in configuration and machine, texts that moved most."""
    names = [side.name for side in comparison.sides]
    title = f"{listed(names[1:])} against {names[0]}"
    banners = [Banner("warn", "Note", side.warning) for side in comparison.sides if side.warning]
    banners += [
        Banner("fail", "Gate", f"{side.name}: {sentence}")
        for side in comparison.sides
        for sentence in side.failing[:2]
    ]
    facts = [
        ("runs", str(len(names))),
        ("model", listed(list(dict.fromkeys(side.model for side in comparison.sides)))),
        ("tests", f"{count(comparison.family)}, Holm over all"),
    ]
    several = len(comparison.versus) > 1
    sections = [Section("runs", "The runs", _runs(comparison.sides))]
    for place, one in enumerate(comparison.versus):
        sections += _of_versus(one, str(place) if several else "", several)
    sections.append(Section("method", "How they are compared", _method(comparison)))
    return page(title, sections, header=head("Comparison", title, facts, banners))


def _runs(sides: Sequence[Side]) -> Markup:
    rows: list[list[str | Cell]] = []
    for side in sides:
        ok = side.counts.get("ok", 0)
        rest = [f"{count(n)} {status}" for status, n in side.counts.items() if status != "ok"]
        rows.append(
            [
                name(side.name), side.status, side.model, side.dtype, number(count(side.items)),
                number(count(ok)), ", ".join(rest) or "\u2013", side.started.replace("T", " ")[:16],
            ]
        )  # fmt: skip
    questions = list(dict.fromkeys(side.question for side in sides if side.question))
    asked = [paragraph(question, "lead") for question in questions]
    heads = ("run", "status", "model", "dtype", number("items"), number("valid trials"), "others", "started")
    return together(*asked, table(heads, rows))


def _of_versus(one: Versus, mark: str, several: bool) -> list[Section]:
    names = short_names(one.first, one.second)
    title = f"{names[1]} against {names[0]}" if several else "What came out"
    found: list[Markup] = [paragraph(one.headline, "lead")]
    if one.operations:
        found.append(
            verdicts(
                [
                    Verdict("fail" if each.warns else "warn", "!", "another operation", each.sentence)
                    for each in one.operations
                ]
            )
        )
    found += [paragraph(note) for note in one.notes]
    if one.shown:
        found.append(sentences([found_sentence(each) for each in one.shown]))
    found.append(paragraph(items_in_words(one, names), "about"))
    sections = [Section(f"found{mark}", title, together(*found))]
    if one.conditions:
        sections.append(
            Section(
                f"conditions{mark}",
                _titled("Conditions", names, several),
                conditions_table(one, names),
                wide=True,
            )
        )
    if one.effects:
        sections.append(
            Section(
                f"effects{mark}", _titled("Effects", names, several), effects_table(one, names), wide=True
            )
        )
    told = _differences(one.differences, names)
    number_of = count(len(one.differences))
    sections.append(Section(f"differs{mark}", _titled("What differs", names, several), told, note=number_of))
    if texts := _texts(one, names):
        sections.append(
            Section(f"texts{mark}", _titled("Texts that moved most", names, several), texts, wide=True)
        )
    return sections


def _titled(title: str, names: tuple[str, str], several: bool) -> str:
    return f"{title}: {names[1]} against {names[0]}" if several else title


def found_sentence(each: Tested) -> Sentence:
    """A difference that is shown: the claim, and the figures behind it."""
    claim, _, basis = each.sentence.partition(" (")
    up = (each.difference or 0.0) > 0
    basis = basis.removesuffix(").")
    return Sentence(
        claim + ("." if basis else ""), basis, "\u2191" if up else "\u2193", "up" if up else "down"
    )


def conditions_table(one: Versus, names: tuple[str, str]) -> Markup:
    """The conditions of two runs: means, difference, interval, p, and how many trials are the same."""
    readouts = listed(list(dict.fromkeys(each.readout for each in one.conditions if each.readout)))
    scale = scale_of([each.test for each in one.conditions])
    rows = [
        [
            name(each.condition),
            *(number(cell) for cell in figures_together(each.mean_first, each.mean_second)),
            *_tested(each, scale),
            number(share(each.same.same, each.same.of) if each.same.of else "\u2013"),
        ]
        for each in one.conditions
    ]
    heads = ("condition", *names, "difference", "95% CI", "", "p", "pairs", "same")
    about = (
        f"Mean {readouts or 'values'} of the valid trials that both share (where they share none, of each "
        f"run's own). The difference is {names[1]} minus {names[0]}, with its 95% interval; p is corrected. "
        "Same: the share of shared trials that came out identical."
    )
    return together(paragraph(about, "about"), table(_heads(heads), rows))


def effects_table(one: Versus, names: tuple[str, str]) -> Markup:
    """The effects of two runs and their difference."""
    scale = scale_of([each.test for each in one.effects])
    rows = [
        [
            name(f"{each.condition} \u2212 {each.against}"),
            *(number(cell) for cell in figures_together(each.effect_first, each.effect_second)),
            *_tested(each, scale),
        ]
        for each in one.effects
    ]
    heads = ("contrast", *names, "difference", "95% CI", "", "p", "pairs")
    about = (
        "What a condition adds to another, in each run and the difference of the two (the interaction), "
        "on the trials that are valid in all four."
    )
    return together(paragraph(about, "about"), table(_heads(heads), rows))


def _heads(names: Sequence[str]) -> list[str | Cell]:
    first, *rest = names
    return [first, *(number(each) if each else each for each in rest)]


def _tested(each: Tested, scale: tuple[float, float] | None) -> list[str | Cell]:
    """Difference, interval, its picture, p and pairs."""
    test = each.test
    if test is None:
        return [number("\u2013"), number("\u2013"), "", number("\u2013"), number("0")]
    mean, interval = figure(test.mean), "\u2013"
    if test.ci_low is not None and test.ci_high is not None:
        mean, low, high = figures_together(test.mean, test.ci_low, test.ci_high)
        interval = f"{low} to {high}"
    p = "\u2013" if each.p_holm is None else bare_p(each.p_holm)
    told: str | Markup = Markup("<strong>{}</strong>").format(mean) if each.shown else mean
    return [
        Cell(told, "number"),
        number(interval),
        Cell(strip(test, scale, each.shown)),
        number(p),
        number(count(test.n)),
    ]


def _differences(found: Sequence[Difference], names: tuple[str, str]) -> Markup:
    if not found:
        return paragraph("Nothing: configuration, model, prompts, packages, machine and code are the same.")
    parts = []
    for of, group in groupby(found, key=lambda each: each.of):
        rows: list[list[str | Cell]] = [
            [name(each.key), value_in_words(each.first), value_in_words(each.second)] for each in group
        ]
        body = table(("key", *names), rows)
        many = of in ("packages", "machine", "code") and len(rows) > 6
        title = of[0].upper() + of[1:]
        parts.append(
            folded(f"{title}: {plural(len(rows), 'difference')}", body)
            if many
            else together(heading(title), body)
        )
    return together(*parts)


def _texts(one: Versus, names: tuple[str, str]) -> Markup | None:
    told = [each for each in one.conditions if each.examples][:_MOST_EXAMPLES]
    if not told:
        return None
    parts = [
        paragraph(
            "Of each condition the items whose value moved most between the runs. They show what a "
            "difference looks like, not how large it is.",
            "about",
        )
    ]
    for each in told:
        rows: list[list[Markup]] = [
            [
                together(paragraph(name_of), paragraph(f"donor {example.donor}", "about")),
                _text(example.first, example.text_first),
                _text(example.second, example.text_second),
            ]
            for example in each.examples
            for name_of in (f"{example.target}" + (f", repeat {example.repeat}" if example.repeat else ""),)
        ]
        cells = [[Cell(cell) for cell in row] for row in rows]
        parts.append(folded(f"{each.condition} ({each.readout})", table(("item", *names), cells)))
    return together(*parts)


def _text(value: float, text: str) -> Markup:
    return Markup("<p><strong>{}</strong></p><p>{}</p>").format(figure(value), text)


def _method(comparison: Comparison) -> Markup:
    entries = [
        "Items are paired by the bank ids of target and donor, the occurrence of that pair and the repeat, "
        "not by their numbers. Trials that are not valid in both runs are left out and counted.",
        "Differences are tested as contrasts are: a mean over pairs, its variance clustered by the target "
        "and by every donor that the condition reads.",
        f"Holm's correction runs over all {plural(comparison.family, 'test')} of this page. Results that one "
        "run took over from another are one and the same result, and no test.",
        "Runs with the same sampling seed draw the same noise for an item, so that a small change of the "
        "logits changes few tokens.",
    ]
    return bullets(entries)
