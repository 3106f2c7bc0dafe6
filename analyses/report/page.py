"""A self-contained page: head, contents and sections, with its style, scripts and data inside.

Nothing is loaded from anywhere.
Everything that is put into a page is escaped, unless it is `Markup`: made by a template, or by `parts`.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import orjson
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from analyses.wording import bare_p, count, figure, plural, small

# What would end the script element that holds the data, or a line of JavaScript.
_ESCAPES = (
    ("<", "\\u003c"),
    (">", "\\u003e"),
    ("&", "\\u0026"),
    ("\u2028", "\\u2028"),
    ("\u2029", "\\u2029"),
)
_STYLE, _THEME, _PAGE = "style.css", "theme.js", "page.js"


@dataclass(frozen=True)
class Section:
    """A part of a page. anchor: its place, for links (`#gates`); note: a word beside it in the contents, such
    as a number; wide: whether it takes the whole width, not only that of text."""

    anchor: str
    title: str
    body: Markup
    note: str = ""
    wide: bool = False


def page(
    title: str,
    sections: Sequence[Section],
    *,
    header: Markup | None = None,
    data: Mapping[str, object] | None = None,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
) -> str:
    """An HTML page that opens from disk without a network: a content security policy forbids every request,
    and every script but those of this package.

    title: plain text, of the window and, without a header, of the page. header: what stands above the
    sections. data: name -> plain data, which a script reads from the element `data-NAME`. styles, scripts:
    names of further files of `analyses/report/assets`, scripts run in this order at the end of the page.

    Raises ValueError where data hold what is no JSON, such as NaN.
    """
    early, late = asset(_THEME), "\n".join(asset(name) for name in (_PAGE, *scripts))
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            title=title,
            header=header,
            sections=sections,
            style=Markup("\n".join(asset(name) for name in (_STYLE, *styles))),
            early=Markup(early),
            late=Markup(late),
            hashes=[_hash(early), _hash(late)],
            data={name: embedded(each) for name, each in (data or {}).items()},
        )
    )


@cache
def environment() -> Environment:
    """Jinja's environment of the page: autoescape on, an unknown name is an error."""
    made = Environment(
        loader=PackageLoader("analyses.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"figure": figure, "count": count, "small": small, "bare_p": bare_p, "plural": plural}
    return made


@cache
def asset(name: str) -> str:
    """The text of a file of `assets`. Raises jinja2.TemplateNotFound."""
    loader = environment().loader
    assert loader is not None
    source, _, _ = loader.get_source(environment(), name)
    return source.strip()


def embedded(value: object) -> Markup:
    """Plain data as JSON that can stand in a script element. Raises ValueError for what is no JSON."""
    try:
        text = orjson.dumps(_checked(value)).decode()
    except TypeError as error:
        raise ValueError(f"data of a page must be plain JSON: {error}") from error
    for character, escaped in _ESCAPES:
        text = text.replace(character, escaped)
    return Markup(text)


def _checked(value: Any) -> Any:
    """The same value. orjson writes null for NaN: it must not be hidden here, so it is refused."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("data of a page must be plain JSON: NaN and infinite numbers are not")
    if isinstance(value, Mapping):
        for each in value.values():
            _checked(each)
    elif isinstance(value, list | tuple):
        for each in value:
            _checked(each)
    return value


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
