"""The figures that an experiment declares, and those of a sweep, as PNG and PDF.

matplotlib is imported when something is drawn, not before: the terminal stays fast.
"""

from analyses.figures.drawing import Drawn, draw, draw_sweep

__all__ = ["Drawn", "draw", "draw_sweep"]
