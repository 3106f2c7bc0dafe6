"""The colours of figures, and what each is called where the page has a light and a dark theme."""

from __future__ import annotations

# Okabe and Ito (2008), "Color universal design"; its yellow is too light for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
INK, CONTROL, REFERENCE, ABSENT, PAPER = "#222222", "#8C8C8C", "#4D4D4D", "#DDDDDD", "#FFFFFF"
BAD = "#B42318"  # what did not do what it was asked
# In an inline SVG each is a variable of the page's style sheet; every other colour is data and stays.
VARIABLES = {
    **{colour: f"var(--accent-{number})" for number, colour in enumerate(COLOURS, start=1)},
    INK: "var(--ink)",
    REFERENCE: "var(--muted)",
    ABSENT: "var(--grid)",
    PAPER: "var(--surface)",
    BAD: "var(--bad)",
}
