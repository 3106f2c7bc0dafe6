"""Parts of pages: tables, verdicts, sentences, figures. Each gives Markup; plain text in it is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from analyses.report.page import environment

Text = str | Markup
NOTHING = "\u2013"  # where a table has no value


@dataclass(frozen=True)
class Cell:
    """What stands in a table. classes: `number` (aligned right), `name` (of a condition, not broken)."""

    text: Text
    classes: str = ""


@dataclass(frozen=True)
class Banner:
    """A sentence that a reader must see first. kind: `fail`, `warn` or `note`."""

    kind: str
    word: str
    sentence: Text


@dataclass(frozen=True)
class Verdict:
    """A judgement. kind: `fail`, `warn`, `good` or `` (neither); where: of what."""

    kind: str
    sign: str
    word: str
    sentence: Text
    where: str = ""


@dataclass(frozen=True)
class Sentence:
    """What was found. claim: the clause that matters; basis: the figures behind it; kind: `up`, `down` or
    nothing."""

    claim: str
    basis: str = ""
    sign: str = "\u2013"
    kind: str = ""


def number(text: str) -> Cell:
    """A figure, aligned right."""
    return Cell(text, "number")


def name(text: str) -> Cell:
    """The name of a condition, a write or a file."""
    return Cell(text, "name")


def table(head: Sequence[str | Cell], rows: Iterable[Sequence[str | Cell]], caption: str = "") -> Markup:
    """A table that scrolls by itself where it is wider than the page. The first cell of a row is its head. A
    heading over cells that are all numbers is aligned with them."""
    cells = [[_cell(each) for each in row] for row in rows]
    above = [_cell(each) for each in head]
    for place, each in enumerate(above):
        if cells and not each.classes and all(row[place].classes == "number" for row in cells):
            above[place] = number(str(each.text))
    return _part("table", above, cells, caption)


def head(
    eyebrow: str, title: str, facts: Sequence[tuple[str, str]], banners: Sequence[Banner] = ()
) -> Markup:
    """The head of a page: where it is from, what it is about, its facts in one line, what to know first."""
    return _part("head", eyebrow, title, facts, banners)


def verdicts(entries: Sequence[Verdict]) -> Markup:
    """A list of judgements."""
    return _part("verdicts", entries)


def sentences(entries: Sequence[Sentence]) -> Markup:
    """A list of sentences, each with its figures below."""
    return _part("sentences", entries)


def drawing(title: str, svg: str, caption: str, files: Sequence[tuple[str, str]] = ()) -> Markup:
    """A figure. svg: as `analyses.figures` draws it, put into the page as it is; files: (name, address)."""
    return _part("drawing", title, Markup(svg), caption, files)


def pairs(entries: Sequence[tuple[str, str]]) -> Markup:
    """Names and values, such as those of a configuration."""
    return _part("pairs", entries)


def command(anchor: str, text: str) -> Markup:
    """A command to copy. anchor: an id of its own on the page."""
    return _part("command", anchor, text)


def folded(summary: str, body: Markup) -> Markup:
    """Something that is unfolded by a click, and on paper."""
    return _part("folded", summary, body)


def paragraph(text: Text, classes: str = "") -> Markup:
    """A paragraph. classes: `about` (what a table shows, in grey), `lead`."""
    return (
        Markup('<p class="{}">{}</p>').format(classes, text) if classes else Markup("<p>{}</p>").format(text)
    )


def bullets(entries: Iterable[Text]) -> Markup:
    """A plain list."""
    return Markup('<ul class="plain">{}</ul>').format(
        Markup("").join(Markup("<li>{}</li>").format(each) for each in entries)
    )


def heading(text: Text, level: int = 3) -> Markup:
    """A heading inside a section."""
    return Markup("<h{0}>{1}</h{0}>").format(level, text)


def together(*bodies: Markup) -> Markup:
    """Parts below each other."""
    return Markup("\n").join(bodies)


def rendered(template: str, **values: Any) -> Markup:
    """A template of `assets` with these values."""
    return Markup(environment().get_template(template).render(values))


def _cell(value: str | Cell) -> Cell:
    return value if isinstance(value, Cell) else Cell(value)


def _part(macro: str, *values: object) -> Markup:
    module: Mapping[str, Any] = vars(environment().get_template("parts.html.j2").module)
    return Markup(module[macro](*values))


def dash(text: str) -> str:
    """A figure of a table, a dash where it is undefined."""
    return NOTHING if text == "undefined" else text
