"""A figure as an SVG that stands inside a page and takes its colours and type from it."""

from __future__ import annotations

import html
import io
import re

import matplotlib
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from analyses.figures.lettering import SIZE, inches
from analyses.figures.palette import VARIABLES

_ENLARGED = 1.55  # a page on a screen is read from further away than one on paper
_HEX = re.compile(r"#[0-9a-fA-F]{6}\b")
_BY_HEX = {colour.lower(): variable for colour, variable in VARIABLES.items()}
_REFERRED = re.compile(r'(?:xlink:href="#|url\(#)([^")]+)')
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_NUMBERED = re.compile(r'(?<= )(?:d|x|y|points|transform)="[^"]*"')
_FAMILY = re.compile(r"font-family: *[^;\"]*;? ?")
_ACROSS = re.compile(r"M (\S+) (\S+) L (\S+) \2 ")
_LINE = re.compile(
    r'<text style="(?P<style>[^"]*)" transform="translate\((?P<x>\S+) (?P<y>\S+)\)">(?P<words>[^<]*)</text>'
)
_SEVERAL = re.compile(rf"(?:{re.sub(r'[?]P<[a-z]+>', '?:', _LINE.pattern)}){{2,}}")
_LEVEL = re.compile(r' transform="rotate\(-?0(?:\.0*)? [^"]*\)"')


def inline(figure: Figure, box: Bbox, name: str, label: str) -> str:
    """The figure within `box` (inches) as an `<svg>` element: transparent, text as text in the font of the
    page, colours as the page's variables (`palette.VARIABLES`), no id that another figure could have.

    name: of the figure, before every id; label: what a screen reader says.
    """
    patches = [figure.patch, *(axes.patch for axes in figure.axes)]
    seen = [patch.get_visible() for patch in patches]
    held = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        for patch in patches:
            patch.set_visible(False)
        figure.savefig(
            held,
            format="svg",
            bbox_inches=box,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
        for patch, visible in zip(patches, seen, strict=True):
            patch.set_visible(visible)
    text = held.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = _own_ids(text, name)
    text = _HEX.sub(lambda found: _BY_HEX.get(found[0].lower(), found[0]), text)
    text = _NUMBERED.sub(lambda found: _NUMBER.sub(_rounded, found[0]), text)
    text = _ACROSS.sub(r"M\1 \2H\3", re.sub(r"\s*\n\s*", " ", text))
    text = _FAMILY.sub("", _LEVEL.sub("", text))
    text = _SEVERAL.sub(_anchored, text.replace("> <", "><").strip())
    return _headed(text, label)


def _own_ids(text: str, name: str) -> str:
    """Ids that are referred to begin with the name; the others go."""
    used = set(_REFERRED.findall(text))
    own = re.sub(r"[^A-Za-z0-9_-]", "-", name)
    text = re.sub(r' id="([^"]*)"', lambda found: f' id="{own}-{found[1]}"' if found[1] in used else "", text)
    return re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{own}-", text)


def _rounded(found: re.Match[str]) -> str:
    return f"{float(found[0]):.2f}".rstrip("0").rstrip(".")


def _anchored(found: re.Match[str]) -> str:
    """The lines of one text with the anchor that their places show, so that they keep their common edge or
    middle where the font of the page is narrower."""
    lines = list(_LINE.finditer(found[0]))
    left = [float(line["x"]) for line in lines]
    width = [72 * inches(html.unescape(line["words"]), *_type(line["style"])) for line in lines]
    right = [x + wide for x, wide in zip(left, width, strict=True)]
    if max(left) - min(left) < 0.5:
        return found[0]
    ends = max(right) - min(right) < 1.5
    places = right if ends else [(x + end) / 2 for x, end in zip(left, right, strict=True)]
    anchor = "end" if ends else "middle"
    return "".join(
        f'<text style="{line["style"]}; text-anchor: {anchor}" x="{x:.2f}" y="{line["y"]}">'
        f"{line['words']}</text>"
        for line, x in zip(lines, places, strict=True)
    )


def _type(style: str) -> tuple[float, str]:
    """Size and weight of a text."""
    size = re.search(r"font-size: ([\d.]+)px", style)
    return float(size[1]) if size else SIZE, "bold" if "font-weight: 700" in style else "normal"


def _headed(text: str, label: str) -> str:
    """The outer element with the size on the page, at most that of the column, and what it shows in words."""
    end = text.index(">")
    box = re.search(r'viewBox="([^"]*)"', text[:end])
    assert box is not None
    width = float(box[1].split()[2]) * _ENLARGED
    head = (
        f'<svg class="figure" role="img" aria-label="{html.escape(label, quote=True)}" '
        f'viewBox="{box[1]}" style="width: {width:.0f}px; max-width: 100%; height: auto; '
        'stroke-linejoin: round; stroke-linecap: butt" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    )
    return head + text[end:]
