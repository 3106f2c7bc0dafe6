"""Draws what the embedded model knows, from its card: `python -m organisms.figure` (needs matplotlib)."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from organisms import weights_dir

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "organism.svg"
# Colours that stay apart in greyscale and for colour-blind readers (Okabe and Ito).
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"


def draw(card: dict[str, Any], path: Path) -> None:
    """Four panels as one SVG file: hops by layer, maps by demonstrations, P(stop), P(recursive)."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "organism"  # the same file for the same card
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(9.6, 6.8), layout="constrained")
    (hops, maps), (stop, styles) = panels
    layers = range(1, len(card["hops_by_layer"]["fact"]) + 1)
    for name, colour in (("bridge", ORANGE), ("answer", BLUE)):
        hops.plot(layers, card["hops_by_layer"][name], "o-", color=colour, label=name)
        midway = card["midway"]["hops_by_layer"][name]
        hops.plot(layers, midway, "o--", color=colour, alpha=0.45, label=f"{name}, midway")
    _labelled(hops, "Held-out compositions by layer", "layers kept (logit lens)", "top-1 share", (0.12, 0.3))
    shots = {int(count): share for count, share in card["in_context"]["mean"].items()}
    maps.plot(list(shots), list(shots.values()), "o-", color=BLUE, label="mean of the four maps")
    maps.axhline(0.25, color=GREY, linestyle=":", label="best without a demonstration")
    _labelled(maps, "Maps told by demonstrations", "demonstrations", "share right")
    for panel, rows, title, axis in (
        (stop, card["p_stop_by_tenth"], "Gambling: P(stop)", "true probability, by tenths"),
        (styles, card["calibration"], "Styles: P(next sentence recursive)", "true probability, by dose"),
    ):
        panel.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="the truth")
        panel.plot(
            [row["exact"] for row in rows],
            [row["model"] for row in rows],
            "o",
            color=GREEN,
            label="the model",
        )
        _labelled(panel, title, axis, "the model's probability")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _labelled(
    panel: Any, title: str, across: str, up: str, legend: str | tuple[float, float] = "best"
) -> None:
    panel.set_title(title, loc="left", fontsize=11)
    panel.set_xlabel(across)
    panel.set_ylabel(up)
    panel.set_ylim(-0.03, 1.03)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8, loc=legend)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=weights_dir(), help="folder of the trained model")
    parser.add_argument("--out", type=Path, default=PICTURE, help="picture to write (SVG)")
    args = parser.parse_args(argv)
    draw(json.loads((args.folder / "card.json").read_text(encoding="utf-8")), args.out)
    print(f"drew {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
