"""The chart of many schemes: where each begins and ends, a row a scheme."""

from collections.abc import Iterable, Mapping
from statistics import fmean

from matplotlib.figure import Figure

from bipe.records import Record

from .axes import (
    CONTEXT,
    FONT,
    GRID,
    MUTED,
    Curve,
    Shape,
    dress,
    set_perplexity_scale,
    told_beyond,
    value_bounds,
    with_scale,
)
from .palette import COLOURS, Style, scheme_styles
from .plots import perplexity_curves

# Marks further off leave through the right side, and their row says how far they go.
_CEILING = 3.0


def ends_figure(
    scores: Iterable[Record],
    protocol: str,
    *,
    styles: Mapping[str, Style] | None = None,
    shape: Shape = "wide",
) -> Figure:
    """Draw perplexity at the shortest and at the longest length: a row a scheme, a mark a seed, best on top.

    Rows are in the order of their mean at the longest length; a line joins a row's marks.

    Takes and raises what `length_curve_figure` does.
    """
    curves = perplexity_curves(scores, protocol)
    styles = styles or scheme_styles(scheme for scheme, _ in curves)
    seeds: dict[str, list[tuple[float, float]]] = {}
    for (scheme, _), curve in curves.items():
        seeds.setdefault(scheme, []).append((curve[0]["value"], curve[-1]["value"]))
    names = sorted(seeds, key=lambda scheme: fmean(last for _, last in seeds[scheme]))
    wide = shape == "wide"
    figure = Figure(figsize=(10 if wide else 4.4, 1.0 + 0.27 * len(names)), layout="constrained")
    axes = figure.subplots()
    dress(axes)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", color=GRID, linewidth=0.8)
    pairs = [ends for found in seeds.values() for ends in found]
    marks: list[Curve] = [[{"low": value, "high": value, "value": value} for value in ends] for ends in pairs]
    set_perplexity_scale(axes, value_bounds(marks, _CEILING), along="x")
    for place, name in enumerate(names):
        every = [value for ends in seeds[name] for value in ends]
        axes.hlines(place, min(every), max(every), color=styles[name].colour, linewidth=1.0, alpha=0.5)
        for end, fill in ((0, COLOURS["ground"].light), (1, styles[name].colour)):
            axes.plot(
                [ends[end] for ends in seeds[name]],
                [place] * len(seeds[name]),
                color=styles[name].colour,
                linestyle="",
                marker="o",
                markersize=5.5,
                markerfacecolor=fill,
                markeredgewidth=1.2,
            )
        if beyond := told_beyond(axes, max(last for _, last in seeds[name]), along="x"):
            look = {"ha": "right", "va": "bottom", "color": MUTED, "fontsize": FONT - 1}
            axes.annotate(beyond, (1.0, place), xycoords=("axes fraction", "data"), **look)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_color(styles[name].colour)
    axes.spines["bottom"].set_color(CONTEXT)
    lengths = sorted({row["length"] for curve in curves.values() for row in (curve[0], curve[-1])})
    which = f"at {lengths[0]:,} tokens (hollow) and at {lengths[-1]:,} (filled)"
    axes.set_xlabel(f"{with_scale('perplexity', axes, 'x')},{' ' if wide else chr(10)}{which}")
    return figure
