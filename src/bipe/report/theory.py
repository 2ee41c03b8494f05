"""Charts of the theory: how large compiled automata are."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bipe.report.palette import COLOURS

MODELS = {"two levels": ("series-1", "o"), "one level": ("series-2", "s")}
"""The look of each compilation: a role of the palette, and a marker."""

_PANELS = {"width": "channels of the embedding", "depth": "layers", "parameters": "parameters"}


def size_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw width, depth and parameters of both compilations against the number of states of each level.

    Args:
        rows: of `bipe.theory.verify.sizes`, with as many outer as inner states.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not rows:
        raise ValueError("There are no sizes to draw.")
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    ink, muted, grid = (COLOURS[role].light for role in ("ink", "muted", "grid"))
    panels = figure.subplots(1, len(_PANELS))
    for axes, (key, title) in zip(panels, _PANELS.items(), strict=True):
        for model, (role, marker) in MODELS.items():
            points = sorted((row["outer_states"], row[key]) for row in rows if row["model"] == model)
            colour = COLOURS[role].light
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, ms=5, lw=1.5, label=model)
            axes.annotate(
                f"{points[-1][1]:,}", points[-1], xytext=(0, 6), textcoords="offset points", ha="right",
                fontsize=8, color=colour,
            )  # fmt: skip
        axes.set_title(title, fontsize=10, color=ink, loc="left")
        axes.set_xlabel("states of each level", fontsize=9, color=muted)
        axes.set_xticks(sorted({row["outer_states"] for row in rows}))
        axes.tick_params(labelsize=8, colors=muted)
        axes.grid(axis="y", color=grid, lw=0.8)
        axes.set_axisbelow(True)
        axes.margins(y=0.15)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        if key != "depth":
            axes.set_yscale("log")
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.set_ylim(bottom=0)
    panels[0].legend(frameon=False, fontsize=9, labelcolor=ink)
    return figure
