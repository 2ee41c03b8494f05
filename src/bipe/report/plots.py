"""The charts of a comparison, as matplotlib figures in the colours of `palette`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from bipe.report.palette import COLOURS, RAMP, Style, scheme_styles

Record = Mapping[str, Any]
Shape = Literal["wide", "narrow"]
Curve = list[Record]

INK, MUTED, GRID, CONTEXT = (COLOURS[role].light for role in ("ink", "muted", "grid", "context"))
_LOG_FROM_RATIO = 4.0
# An exploding curve leaves through the top, and says how far it goes, so that the others can be told apart:
# the axis ends at these multiples of the highest truncation line.
_CEILING = 8.0
_PANEL_CEILING = 1.5
_NEARLY = 1.3  # what passes the end by no more than this is shown whole


_NAME_GAP = 0.054
"""Height of a scheme's name at the end of its line, as a share of the usual chart's."""


def length_curve_figure(
    scores: Iterable[Record],
    protocol: str,
    train_length: int,
    *,
    styles: Mapping[str, Style] | None = None,
    shape: Shape = "wide",
) -> Figure:
    """Draw perplexity against text length: a line for each scheme and seed with its interval.

    A dashed line repeats a curve's own perplexity at the shortest length: what cutting every text to that
    length would give.

    Args:
        scores: score rows; those of `protocol` with metric `"perplexity"` are drawn.
        protocol: `"same_targets"` or `"blocks"`.
        train_length: tokens, marked by a vertical line.
        styles: the look of each scheme, `scheme_styles` of the drawn ones by default.
        shape: `"wide"` has names at the line ends, `"narrow"` (for phones) a legend below.

    Raises:
        ValueError: there is nothing to draw.
    """
    curves = perplexity_curves(scores, protocol)
    styles = styles or scheme_styles(scheme for scheme, _ in curves)
    figure, axes = _canvas(shape)
    low, high = _bounds(curves.values(), _CEILING)
    _set_perplexity_scale(axes, (low, high))
    _set_length_scale(axes, _lengths(curves), train_length, labels=8 if shape == "wide" else 6)
    for (scheme, _), curve in curves.items():
        _draw_curve(axes, curve, styles[scheme], width=1.7 if len(curves) <= len(styles) else 1.2)
    axes.set_xlabel("text length in tokens (× trained length)")
    axes.set_ylabel(_with_scale("perplexity", axes))
    ends = {key: (curve[-1]["length"], curve[-1]["value"]) for key, curve in curves.items()}
    _name_lines(axes, ends, styles, shape)
    return figure


def scheme_panels_figure(
    scores: Iterable[Record],
    protocol: str,
    train_length: int,
    *,
    styles: Mapping[str, Style] | None = None,
    shape: Shape = "wide",
) -> Figure:
    """Draw the same curves a panel a scheme, close up around the truncation lines, the other schemes in grey.

    Takes and raises what `length_curve_figure` does.
    """
    curves = perplexity_curves(scores, protocol)
    styles = styles or scheme_styles(scheme for scheme, _ in curves)
    schemes = list(dict.fromkeys(scheme for scheme, _ in curves))
    columns = min(len(schemes), 4 if shape == "wide" else 2)
    rows = math.ceil(len(schemes) / columns)
    figure = Figure(
        figsize=(10, 0.5 + 2.1 * rows) if shape == "wide" else (4.4, 0.5 + 1.75 * rows), layout="constrained"
    )
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    bounds = _bounds(curves.values(), _PANEL_CEILING)
    for n, axes in enumerate(grid.flat):
        if n >= len(schemes):
            axes.remove()
            continue
        _dress(axes)
        _set_perplexity_scale(axes, bounds)
        _set_length_scale(axes, _lengths(curves), train_length, labels=3, multiples=False)
        _draw_panel(axes, schemes[n], curves, styles)
        below = n + columns < len(schemes)
        axes.tick_params(labelbottom=not below, labelleft=n % columns == 0)
    figure.supxlabel("text length in tokens", fontsize=_FONT, color=MUTED)
    figure.supylabel("perplexity", fontsize=_FONT, color=MUTED)
    return figure


def task_figure(
    scores: Iterable[Record],
    task: str,
    metric: str,
    trained: int,
    *,
    styles: Mapping[str, Style] | None = None,
    shape: Shape = "wide",
) -> Figure:
    """Draw a share, such as an accuracy, against the length of what was asked, with its interval.

    Args:
        scores: score rows; those of `task` with `metric` are drawn.
        task: such as `"arithmetic"`.
        metric: such as `"accuracy"`, between 0 and 1.
        trained: the trained length, marked by a vertical line.
        styles, shape: as in `length_curve_figure`.

    Raises:
        ValueError: there is nothing to draw.
    """
    curves = metric_curves((row for row in scores if row["task"] == task), metric)
    styles = styles or scheme_styles(scheme for scheme, _ in curves)
    figure, axes = _canvas(shape)
    _set_share_scale(axes)
    lengths = _lengths(curves)
    if lengths[-1] > 4 * lengths[0]:
        axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.axvline(trained, color=MUTED, linewidth=1.0, linestyle=(0, (1, 2)))
    for (scheme, _), curve in curves.items():
        _draw_curve(axes, curve, styles[scheme], width=1.7 if len(curves) <= len(styles) else 1.2, cut=False)
    axes.set_xlabel(LENGTH_UNITS.get(task, "text length in tokens") + " (dotted: trained)")
    axes.set_ylabel(metric, parse_math=False)
    ends = {key: (curve[-1]["length"], curve[-1]["value"]) for key, curve in curves.items()}
    _name_lines(axes, ends, styles, shape)
    return figure


FIRST_PLACE = 16
"""Tokens before a place, with fewer of which a handful of windows says little of it."""

LENGTH_UNITS = {"arithmetic": "operations in a problem"}
"""What the lengths of a task count, where it is not tokens."""


def convergence_figure(
    histories: Mapping[tuple[str, int], Sequence[Record]],
    *,
    metric: str = "perplexity",
    styles: Mapping[str, Style] | None = None,
    shape: Shape = "wide",
) -> Figure:
    """Draw what validation found at the trained length against training steps, a line for each run.

    Args:
        histories: rows of `history.jsonl` by (scheme, seed), drawn where they hold it.
        metric: `"perplexity"`, or a share such as `"accuracy"`.
        styles, shape: as in `length_curve_figure`.

    Raises:
        ValueError: no history holds it.
    """
    points = {key: found for key, rows in histories.items() if (found := _validation_points(rows, metric))}
    if not points:
        raise ValueError(f"No history holds a validation_{metric}, so there is no convergence to draw.")
    styles = styles or scheme_styles(scheme for scheme, _ in points)
    figure, axes = _canvas(shape)
    values = [value for curve in points.values() for _, value in curve]
    if metric == "perplexity":
        _set_perplexity_scale(axes, (min(values), max(values)))
    else:
        _set_share_scale(axes)
    for (scheme, _), curve in points.items():
        steps, perplexities = zip(*curve, strict=True)
        style = styles[scheme]
        axes.plot(
            steps,
            perplexities,
            color=style.colour,
            marker=style.marker,
            markevery=max(1, len(curve) // 8),
            markersize=4,
            linewidth=1.3,
        )
    axes.set_xlabel("training step")
    axes.set_ylabel(_with_scale(f"validation {metric}", axes), parse_math=False)
    axes.set_xlim(right=max(curve[-1][0] for curve in points.values()))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _name_lines(axes, {key: curve[-1] for key, curve in points.items()}, styles, shape)
    return figure


def place_figure(
    places: Mapping[tuple[str, int], Sequence[tuple[int, float]]],
    train_length: int,
    *,
    styles: Mapping[str, Style] | None = None,
    shape: Shape = "wide",
) -> Figure:
    """Draw perplexity against the place in the window, from `FIRST_PLACE` on, a line for each run.

    Args:
        places: (tokens before, perplexity) by (scheme, seed), as `perplexity_by_place` makes them.
        train_length: tokens, marked by a vertical line.
        styles, shape: as in `length_curve_figure`.

    Raises:
        ValueError: there is nothing to draw.
    """
    places = {key: [point for point in curve if point[0] >= FIRST_PLACE] for key, curve in places.items()}
    places = {key: curve for key, curve in places.items() if curve}
    if not places:
        raise ValueError("No run kept what it lost at each place, so there is no curve to draw.")
    styles = styles or scheme_styles(scheme for scheme, _ in places)
    figure, axes = _canvas(shape)
    axes.set_xscale("log", base=2)
    end = max(place for curve in places.values() for place, _ in curve)
    ticks = [2**power for power in range(int(math.log2(FIRST_PLACE)), int(math.log2(end)) + 1)]
    axes.xaxis.set_major_locator(FixedLocator(ticks[:: 1 if shape == "wide" else 2]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    axes.axvline(train_length, color=MUTED, linewidth=1.0, linestyle=(0, (1, 2)))
    values = [value for curve in places.values() for _, value in curve]
    _set_perplexity_scale(axes, (min(values), max(values)))
    for (scheme, _), curve in places.items():
        style = styles[scheme]
        axes.plot(*zip(*curve, strict=True), color=style.colour, linewidth=1.3)
    axes.set_xlabel("tokens before, in the window (dotted: trained length)")
    axes.set_ylabel(_with_scale("perplexity", axes))
    _name_lines(axes, {key: curve[-1] for key, curve in places.items()}, styles, shape)
    return figure


def segment_histogram_figure(segments: Record, *, shape: Shape = "wide") -> Figure:
    """Draw how long segments are (Figure 1 of the paper): their share by tokens, a line for each text length.

    Args:
        segments: `segments.json`; `histogram[n]` of a text length counts its segments of n tokens.
        shape: as in `length_curve_figure`.

    Raises:
        ValueError: no text length has a segment.
    """
    counts = {int(length): entry["histogram"] for length, entry in segments.get("lengths", {}).items()}
    shares = {length: [n / sum(row) for n in row] for length, row in sorted(counts.items()) if sum(row)}
    if not shares:
        raise ValueError("segments.json counts no segment, so there is no histogram to draw.")
    figure, axes = _canvas(shape)
    end = max(_quantile(row, 0.99) for row in shares.values())
    for n, (length, row) in enumerate(shares.items()):
        role = RAMP[round(n * (len(RAMP) - 1) / max(1, len(shares) - 1))]
        tokens = range(1, min(end + 1, len(row)))
        # Equal curves cover each other: the earlier ones are drawn wider, so that every one stays in sight.
        axes.plot(
            tokens,
            [100 * row[k] for k in tokens],
            color=COLOURS[role].light,
            linewidth=1.3 + 4.0 * (1 - (n + 1) / len(shares)),
            label=f"{length:,} tokens",
            marker="o" if len(tokens) == 1 else "",
        )
    axes.set_xlim(0, end + 1)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.set_xlabel("tokens in a segment")
    axes.set_ylabel("share of segments")
    _legend(axes, [line for line in axes.lines if isinstance(line, Line2D)], shape, title="text length")
    return figure


def perplexity_curves(scores: Iterable[Record], protocol: str) -> dict[tuple[str, int], Curve]:
    """Return the perplexity rows of `protocol` by (scheme, seed), in order; lengths rise.

    Raises:
        ValueError: there is none.
    """
    return metric_curves((row for row in scores if row["protocol"] == protocol), "perplexity", protocol)


def metric_curves(
    scores: Iterable[Record], metric: str, protocol: str | None = None
) -> dict[tuple[str, int], Curve]:
    """Return the rows of a metric by (scheme, seed), in order; lengths rise.

    Args:
        scores: score rows.
        metric: such as `"perplexity"`.
        protocol: of all the rows, for the message.

    Raises:
        ValueError: there is none.
    """
    curves: dict[tuple[str, int], dict[int, Record]] = {}
    for row in scores:
        if row["metric"] == metric:
            curves.setdefault((row["scheme"], row["seed"]), {})[row["length"]] = row
    if not curves:
        of = "" if protocol is None else f" of protocol {protocol!r}"
        raise ValueError(f"The scores hold no {metric}{of}, so there is no curve to draw.")
    order = {scheme: n for n, (scheme, _) in reversed(list(enumerate(curves)))}
    keys = sorted(curves, key=lambda key: (order[key[0]], key[1]))
    return {key: [curves[key][length] for length in sorted(curves[key])] for key in keys}


_FONT = 10.0


def _canvas(shape: Shape) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(10, 4.8) if shape == "wide" else (4.4, 4.4), layout="constrained")
    axes = figure.subplots()
    _dress(axes)
    return figure, axes


def _dress(axes: Axes) -> None:
    axes.patch.set_visible(False)
    axes.grid(True, axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=_FONT, length=0, pad=5, which="both")
    axes.xaxis.label.set(color=MUTED, fontsize=_FONT)
    axes.yaxis.label.set(color=MUTED, fontsize=_FONT)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(CONTEXT)


def _lengths(curves: Mapping[tuple[str, int], Curve]) -> list[int]:
    return sorted({row["length"] for curve in curves.values() for row in curve})


def _bounds(curves: Iterable[Curve], ceiling: float) -> tuple[float, float]:
    curves = list(curves)
    rows = [row for curve in curves for row in curve]
    low = min(min(row["low"], row["value"]) for row in rows)
    high = max(max(row["high"], row["value"]) for row in rows)
    ceiling *= max(curve[0]["value"] for curve in curves)
    return low, high if high < _NEARLY * ceiling else ceiling


def _set_perplexity_scale(axes: Axes, bounds: tuple[float, float]) -> None:
    low, high = bounds
    ratio = high / low if low > 0 else math.inf
    if low > 0 and ratio > _LOG_FROM_RATIO:
        axes.set_yscale("log")
        margin = max(ratio, 1.2) ** 0.04
        axes.set_ylim(low / margin, high * margin)
        subs = (1.0, 2.0, 5.0) if ratio < 300 else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.06 * (high - low) or 0.05 * high or 1.0
        axes.set_ylim(low - margin, high + margin)
        axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def _set_share_scale(axes: Axes) -> None:
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.2, 0.4, 0.6, 0.8, 1]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))


def _with_scale(name: str, axes: Axes) -> str:
    return f"{name}, log scale" if axes.get_yscale() == "log" else name


def short_number(value: float) -> str:
    """Write a number for an axis.

    >>> [short_number(value) for value in (0.25, 41.0, 2000, 1.5e6, 3e12)]
    ['0.25', '41', '2k', '1.5M', '3e+12']
    """
    for limit, unit in ((1e9, ""), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value:.3g}" if not unit else f"{value / (1e6 if unit == 'M' else 1e3):.3g}{unit}"
    return f"{value / 1e3:.3g}k" if abs(value) >= 1e3 and value % 100 == 0 else f"{value:.4g}"


def _set_length_scale(
    axes: Axes, lengths: Sequence[int], train_length: int, *, labels: int, multiples: bool = True
) -> None:
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
    look: dict[str, Any] = {"textcoords": "offset points", "va": "top", "color": MUTED, "fontsize": _FONT - 1}
    left, right = axes.get_xlim()
    shift, side = (4, "left") if train_length < math.sqrt(left * right) else (-4, "right")
    place: dict[str, Any] = {"xycoords": ("data", "axes fraction")}
    axes.annotate("trained length", (train_length, 1.0), xytext=(shift, -2), ha=side, **place, **look)
    for n in named:
        # A text of its own, since a second line of the tick's label would not be centred in another typeface.
        axes.annotate(f"{n / train_length:.3g}×", (n, 0.0), xytext=(0, -19), ha="center", **place, **look)
    axes.xaxis.labelpad = 17


def _draw_curve(axes: Axes, curve: Curve, style: Style, *, width: float, cut: bool = True) -> None:
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


def _draw_panel(
    axes: Axes,
    scheme: str,
    curves: Mapping[tuple[str, int], Curve],
    styles: Mapping[str, Style],
) -> None:
    own = [curve for (name, _), curve in curves.items() if name == scheme]
    for (name, _), curve in curves.items():
        if name != scheme:
            axes.plot([r["length"] for r in curve], [r["value"] for r in curve], color=CONTEXT, linewidth=0.7)
    for curve in own:
        _draw_curve(axes, curve, styles[scheme], width=1.4)
    axes.set_title(
        scheme, loc="left", fontsize=_FONT, color=styles[scheme].colour, weight="bold", parse_math=False
    )
    if beyond := _beyond(axes, max(row["value"] for curve in own for row in curve)):
        axes.set_title(beyond, loc="right", fontsize=_FONT - 1, color=MUTED)


def _beyond(axes: Axes, value: float) -> str:
    """Say how far a curve goes that leaves through the top, such as `"↑ 1.8M"`; nothing of one that stays."""
    return f"↑ {short_number(float(f'{value:.3g}'))}" if value > axes.get_ylim()[1] else ""


def _validation_points(rows: Sequence[Record], metric: str) -> list[tuple[int, float]]:
    name = f"validation_{metric}"
    found = {row["step"]: row[name] for row in rows if name in row}
    return sorted(found.items())


def _quantile(shares: Sequence[float], share: float) -> int:
    total = 0.0
    for n, part in enumerate(shares):
        total += part
        if total >= share:
            return n
    return len(shares) - 1


def _name_lines(
    axes: Axes, ends: Mapping[tuple[str, int], tuple[float, float]], styles: Mapping[str, Style], shape: Shape
) -> None:
    """Write each scheme's name at the end of its lines, or in a legend below where there is no room."""
    grouped: dict[str, list[tuple[float, float]]] = {}
    for (name, _), point in ends.items():
        grouped.setdefault(name, []).append(point)
    middles = {
        name: sorted(points, key=lambda point: point[1])[len(points) // 2] for name, points in grouped.items()
    }
    beyond = {name: _beyond(axes, max(y for _, y in points)) for name, points in grouped.items()}
    labels = {name: f"{name} {beyond[name]}".rstrip() for name in grouped}
    if shape == "narrow":
        _legend(axes, [_handle(labels[name], styles[name]) for name in grouped], shape)
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
            fontsize=_FONT,
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


def _legend(axes: Axes, handles: Sequence[Line2D], shape: Shape, title: str | None = None) -> None:
    where: dict[str, Any] = {"loc": "upper right"}
    if shape == "narrow":
        figure = axes.figure
        where = {"loc": "outside lower left", "ncols": 2}
        legend = figure.legend(
            handles=handles, frameon=False, fontsize=_FONT, labelcolor=INK, title=title, **where
        )
    else:
        legend = axes.legend(
            handles=handles, frameon=False, fontsize=_FONT, labelcolor=INK, title=title, **where
        )
    legend.get_title().set(color=MUTED, fontsize=_FONT)
    for text in legend.get_texts():
        text.set_parse_math(False)
