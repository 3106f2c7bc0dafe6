"""The type of figures, and how wide it runs."""

from __future__ import annotations

from functools import lru_cache

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

FAMILY = "DejaVu Sans"  # comes with matplotlib: the same on every machine
SIZE = 8  # pt, the smallest type on a page at its own size


@lru_cache(maxsize=4096)
def inches(text: str, size: float = SIZE, weight: str = "normal") -> float:
    """How wide a text is."""
    font = FontProperties(family=FAMILY, size=size, weight=weight)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72
