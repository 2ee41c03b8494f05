"""Axes in the colours of `palette`: their scales, curves with intervals, names at the ends of lines."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from bipe.records import Record

from .palette import COLOURS, Style

Shape = Literal["wide", "narrow"]
Along = Literal["x", "y"]
Curve = list[Record]

INK, MUTED, GRID, CONTEXT = (COLOURS[role].light for role in ("ink", "muted", "grid", "context"))
FONT = 10.0

_LOG_FROM_RATIO = 4.0
_HIGHEST = 1e100  # what diverged may be near the largest number there is, and margins beyond it
_NEARLY = 1.3  # what passes the end by no more than this is shown whole
_NAME_GAP = 0.054  # height of a scheme's name at the end of its line, as a share of the usual chart's


def canvas(shape: Shape) -> tuple[Figure, Axes]:
    """One chart of the usual size for a page or a phone."""
    figure = Figure(figsize=(10, 4.8) if shape == "wide" else (4.4, 4.4), layout="constrained")
    axes = figure.subplots()
    dress(axes)
    return figure, axes


def panels_of(
    lines: Iterable[tuple[str, int]], styles: Mapping[str, Style], shape: Shape
) -> tuple[Figure, dict[str, Axes]]:
    """Make a panel with its title for every scheme of the lines, all on the same axes."""
    schemes = list(dict.fromkeys(scheme for scheme, _ in lines))
    columns = min(len(schemes), 4 if shape == "wide" else 2)
    rows = math.ceil(len(schemes) / columns)
    figure = Figure(
        figsize=(10, 0.5 + 2.1 * rows) if shape == "wide" else (4.4, 0.5 + 1.75 * rows), layout="constrained"
    )
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for n, axes in enumerate(grid):
        if n >= len(schemes):
            axes.remove()
            continue
        dress(axes)
        below = n + columns < len(schemes)
        axes.tick_params(labelbottom=not below, labelleft=n % columns == 0)
        colour = styles[schemes[n]].colour
        axes.set_title(schemes[n], loc="left", fontsize=FONT, color=colour, weight="bold", parse_math=False)
    return figure, dict(zip(schemes, figure.axes, strict=True))


def dress(axes: Axes) -> None:
    """Grid, ticks and frame as all charts have them."""
    axes.patch.set_visible(False)
    axes.grid(True, axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=FONT, length=0, pad=5, which="both")
    axes.xaxis.label.set(color=MUTED, fontsize=FONT)
    axes.yaxis.label.set(color=MUTED, fontsize=FONT)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(CONTEXT)


def value_bounds(curves: Iterable[Curve], ceiling: float) -> tuple[float, float]:
    """What the axis of curves has to hold: all of them, or `ceiling` times the highest first value."""
    curves = list(curves)
    rows = [row for curve in curves for row in curve]
    low = min(min(row["low"], row["value"]) for row in rows)
    high = max(max(row["high"], row["value"]) for row in rows)
    ceiling *= max(curve[0]["value"] for curve in curves)
    return low, high if high < _NEARLY * ceiling else ceiling


def set_perplexity_scale(axes: Axes, bounds: tuple[float, float], along: Along = "y") -> None:
    """Between these bounds, logarithmic where they lie far apart."""
    low, high = (min(bound, _HIGHEST) for bound in bounds)
    axis = axes.xaxis if along == "x" else axes.yaxis
    set_limits = axes.set_xlim if along == "x" else axes.set_ylim
    ratio = high / low if low > 0 else math.inf
    if low > 0 and ratio > _LOG_FROM_RATIO:
        (axes.set_xscale if along == "x" else axes.set_yscale)("log")
        margin = max(ratio, 1.2) ** 0.04
        set_limits(low / margin, high * margin)
        subs = (1.0, 2.0, 5.0) if ratio < 300 else (1.0,)
        axis.set_major_locator(LogLocator(subs=subs, numticks=12))
        axis.set_minor_locator(NullLocator())
    else:
        margin = 0.06 * (high - low) or 0.05 * high or 1.0
        set_limits(low - margin, high + margin)
        axis.set_major_locator(MaxNLocator(6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def set_share_scale(axes: Axes) -> None:
    """From 0 to 100 %."""
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.2, 0.4, 0.6, 0.8, 1]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))


def with_scale(name: str, axes: Axes, along: Along = "y") -> str:
    """The name of an axis, with its scale where that is logarithmic."""
    scale = axes.get_xscale() if along == "x" else axes.get_yscale()
    return f"{name}, log scale" if scale == "log" else name


def short_number(value: float) -> str:
    """Write a number for an axis.

    >>> [short_number(value) for value in (0.25, 41.0, 2000, 1.5e6, 3e12)]
    ['0.25', '41', '2k', '1.5M', '3e+12']
    """
    for limit, unit in ((1e9, ""), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value:.3g}" if not unit else f"{value / (1e6 if unit == 'M' else 1e3):.3g}{unit}"
    return f"{value / 1e3:.3g}k" if abs(value) >= 1e3 and value % 100 == 0 else f"{value:.4g}"


def set_length_scale(
    axes: Axes, lengths: Sequence[int], train_length: int, *, labels: int, multiples: bool = True
) -> None:
    """Text lengths, of which at most so many `labels` are written, and the trained one marked."""
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(lengths[0], train_length) / 2**0.2, max(lengths[-1], train_length) * 2**0.12)
    step = math.ceil(len(lengths) / labels)
    named = lengths[::-1][::step][::-1]
    axes.xaxis.set_major_locator(FixedLocator(named))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.axvline(train_length, color=MUTED, linewidth=1.0, linestyle=(0, (1, 2)))
    if not multiples:
        return
    look: dict[str, Any] = {"textcoords": "offset points", "va": "top", "color": MUTED, "fontsize": FONT - 1}
    left, right = axes.get_xlim()
    shift, side = (4, "left") if train_length < math.sqrt(left * right) else (-4, "right")
    place: dict[str, Any] = {"xycoords": ("data", "axes fraction")}
    axes.annotate("trained length", (train_length, 1.0), xytext=(shift, -2), ha=side, **place, **look)
    for n in named:
        # A text of its own, since a second line of the tick's label would not be centred in another typeface.
        axes.annotate(f"{n / train_length:.3g}×", (n, 0.0), xytext=(0, -19), ha="center", **place, **look)
    axes.xaxis.labelpad = 17


def draw_curve(axes: Axes, curve: Curve, style: Style, *, width: float, cut: bool = True) -> None:
    """Draw a curve with its interval and, if asked to, what cutting texts to the shortest length gives."""
    lengths, values, lows, highs = zip(
        *((row["length"], row["value"], row["low"], row["high"]) for row in curve), strict=True
    )
    if cut:
        ends = [lengths[0], axes.get_xlim()[1]]
        axes.plot(ends, [values[0]] * 2, color=style.colour, linewidth=0.9, linestyle=(0, (5, 3)), alpha=0.55)
    axes.fill_between(lengths, lows, highs, color=style.colour, alpha=0.13, linewidth=0)
    axes.vlines(lengths, lows, highs, color=style.colour, linewidth=0.9, alpha=0.55)
    axes.plot(
        lengths,
        values,
        color=style.colour,
        linewidth=width,
        marker=style.marker,
        markersize=4.5,
        markeredgewidth=0,
    )


def told_beyond(axes: Axes, value: float, along: Along = "y") -> str:
    """Say how far what leaves the chart goes, such as `"↑ 1.8M"`; nothing of what stays."""
    end = axes.get_xlim()[1] if along == "x" else axes.get_ylim()[1]
    arrow = "→" if along == "x" else "↑"
    return f"{arrow} {short_number(float(f'{value:.3g}'))}" if value > end else ""


def name_lines(
    axes: Axes, ends: Mapping[tuple[str, int], tuple[float, float]], styles: Mapping[str, Style], shape: Shape
) -> None:
    """Write each scheme's name at the end of its lines, or in a legend below where there is no room."""
    grouped: dict[str, list[tuple[float, float]]] = {}
    for (name, _), point in ends.items():
        grouped.setdefault(name, []).append(point)
    middles = {
        name: sorted(points, key=lambda point: point[1])[len(points) // 2] for name, points in grouped.items()
    }
    beyond = {name: told_beyond(axes, max(y for _, y in points)) for name, points in grouped.items()}
    labels = {name: f"{name} {beyond[name]}".rstrip() for name in grouped}
    if shape == "narrow":
        legend(axes, [_handle(labels[name], styles[name]) for name in grouped], shape)
        return
    heights = {name: min(1.0, _axes_height(axes, y)) for name, (_, y) in middles.items()}
    names = sorted(heights, key=lambda name: heights[name])
    figure, taller = axes.get_figure(root=True), max(1.0, len(names) * _NAME_GAP)
    assert figure is not None
    figure.set_figheight(figure.get_figheight() * taller)  # room for all names
    gap = _NAME_GAP / taller
    for name, height in zip(names, spread([heights[name] for name in names], gap=gap), strict=True):
        colour = styles[name].colour
        leader = {
            "color": colour,
            "linewidth": 0.8,
            "shrinkA": 1,
            "shrinkB": 3,
            "alpha": 0.6,
            "relpos": (0, 0.5),
        }
        axes.annotate(
            labels[name],
            middles[name],
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            color=colour,
            fontsize=FONT,
            parse_math=False,
            arrowprops=None if beyond[name] else {"arrowstyle": "-", **leader},
            annotation_clip=False,
        )


def _axes_height(axes: Axes, value: float) -> float:
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log":
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move rising `heights` apart until neighbours are `gap` apart, as little as that takes, within [0, 1].

    >>> [round(height, 2) for height in spread([0.5, 0.5, 0.9], gap=0.1)]
    [0.45, 0.55, 0.9]
    """
    blocks: list[tuple[float, int]] = []  # (centre, members), each block evenly filled
    for height in heights:
        blocks.append((height, 1))
        while (
            len(blocks) > 1
            and blocks[-1][0] - blocks[-2][0] < gap * (blocks[-1][1] + blocks[-2][1]) / 2 - 1e-9
        ):
            (above, m), (below, n) = blocks.pop(), blocks.pop()
            blocks.append(((above * m + below * n) / (m + n), m + n))
    placed = [centre + gap * (k - (size - 1) / 2) for centre, size in blocks for k in range(size)]
    last = len(placed) - 1
    return [max(gap * n, min(height, 1.0 - gap * (last - n))) for n, height in enumerate(placed)]


def _handle(name: str, style: Style) -> Line2D:
    return Line2D([], [], color=style.colour, marker=style.marker, markersize=5, linewidth=1.5, label=name)


def legend(axes: Axes, handles: Sequence[Line2D], shape: Shape, title: str | None = None) -> None:
    """Names of lines, inside the chart or, for a phone, below it."""
    where: dict[str, Any] = {"loc": "upper right"}
    if shape == "narrow":
        figure = axes.figure
        where = {"loc": "outside lower left", "ncols": 2}
        made = figure.legend(
            handles=handles, frameon=False, fontsize=FONT, labelcolor=INK, title=title, **where
        )
    else:
        made = axes.legend(
            handles=handles, frameon=False, fontsize=FONT, labelcolor=INK, title=title, **where
        )
    made.get_title().set(color=MUTED, fontsize=FONT)
    for text in made.get_texts():
        text.set_parse_math(False)
