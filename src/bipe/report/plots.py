"""The charts of a comparison, as matplotlib figures in the colours of `palette`."""

import math
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from bipe.records import Record

from .axes import (
    CONTEXT,
    FONT,
    MUTED,
    Curve,
    Shape,
    canvas,
    draw_curve,
    legend,
    name_lines,
    panels_of,
    set_length_scale,
    set_perplexity_scale,
    set_share_scale,
    short_number,
    told_beyond,
    value_bounds,
    with_scale,
)
from .palette import COLOURS, RAMP, Style, scheme_styles

FIRST_PLACE = 16
"""Tokens before a place, with fewer of which a handful of windows says little of it."""

LENGTH_UNITS = {"arithmetic": "operations in a problem"}
"""What the lengths of a task count, where it is not tokens."""

# An exploding curve leaves through the top, and says how far it goes, so that the others can be told apart:
# the axis ends at these multiples of the highest truncation line.
_CEILING = 8.0
_PANEL_CEILING = 1.5


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
    figure, axes = canvas(shape)
    low, high = value_bounds(curves.values(), _CEILING)
    set_perplexity_scale(axes, (low, high))
    set_length_scale(axes, _lengths(curves), train_length, labels=8 if shape == "wide" else 6)
    for (scheme, _), curve in curves.items():
        draw_curve(axes, curve, styles[scheme], width=1.7 if len(curves) <= len(styles) else 1.2)
    axes.set_xlabel("text length in tokens (× trained length)")
    axes.set_ylabel(with_scale("perplexity", axes))
    name_lines(axes, _line_ends(curves), styles, shape)
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
    bounds = value_bounds(curves.values(), _PANEL_CEILING)
    figure, panels = panels_of(curves, styles, shape)
    for scheme, axes in panels.items():
        set_perplexity_scale(axes, bounds)
        set_length_scale(axes, _lengths(curves), train_length, labels=3, multiples=False)
        for (name, _), curve in curves.items():
            if name != scheme:
                axes.plot(
                    [r["length"] for r in curve], [r["value"] for r in curve], color=CONTEXT, linewidth=0.7
                )
        own = [curve for (name, _), curve in curves.items() if name == scheme]
        for curve in own:
            draw_curve(axes, curve, styles[scheme], width=1.4)
        if beyond := told_beyond(axes, max(row["value"] for curve in own for row in curve)):
            axes.set_title(beyond, loc="right", fontsize=FONT - 1, color=MUTED)
    figure.supxlabel("text length in tokens", fontsize=FONT, color=MUTED)
    figure.supylabel("perplexity", fontsize=FONT, color=MUTED)
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
    xlabel = LENGTH_UNITS.get(task, "text length in tokens") + " (dotted: trained)"
    return _share_figure(curves, metric, xlabel, trained, styles, shape)


def width_figure(scores: Mapping[int, Iterable[Record]], metric: str) -> Figure:
    """Draw a share, such as an accuracy, against the hidden width: a line for each scheme and seed.

    Args:
        scores: score rows of one task, protocol and length by hidden width; those with `metric` are drawn.
        metric: such as `"accuracy"`, between 0 and 1.

    Raises:
        ValueError: there is nothing to draw.
    """
    # A curve's rows are told apart by length, which is one here.
    rows = [{**row, "length": width} for width, measured in scores.items() for row in measured]
    return _share_figure(metric_curves(rows, metric), metric, "hidden width")


def _share_figure(
    curves: Mapping[tuple[str, int], Curve],
    metric: str,
    xlabel: str,
    trained: int | None = None,
    styles: Mapping[str, Style] | None = None,
    shape: Shape = "wide",
) -> Figure:
    styles = styles or scheme_styles(scheme for scheme, _ in curves)
    figure, axes = canvas(shape)
    set_share_scale(axes)
    lengths = _lengths(curves)
    if trained is None or lengths[-1] > 4 * lengths[0]:
        axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if trained is not None:
        axes.axvline(trained, color=MUTED, linewidth=1.0, linestyle=(0, (1, 2)))
    for (scheme, _), curve in curves.items():
        draw_curve(axes, curve, styles[scheme], width=1.7 if len(curves) <= len(styles) else 1.2, cut=False)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(metric, parse_math=False)
    name_lines(axes, _line_ends(curves), styles, shape)
    return figure


def _line_ends(curves: Mapping[tuple[str, int], Curve]) -> dict[tuple[str, int], tuple[float, float]]:
    """Where the line of each scheme and seed ends."""
    return {key: (curve[-1]["length"], curve[-1]["value"]) for key, curve in curves.items()}


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
    figure, axes = canvas(shape)
    axes.set_xscale("log", base=2)
    end = max(place for curve in places.values() for place, _ in curve)
    ticks = [2**power for power in range(int(math.log2(FIRST_PLACE)), int(math.log2(end)) + 1)]
    axes.xaxis.set_major_locator(FixedLocator(ticks[:: 1 if shape == "wide" else 2]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    axes.axvline(train_length, color=MUTED, linewidth=1.0, linestyle=(0, (1, 2)))
    values = [value for curve in places.values() for _, value in curve]
    set_perplexity_scale(axes, (min(values), max(values)))
    for (scheme, _), curve in places.items():
        style = styles[scheme]
        axes.plot(*zip(*curve, strict=True), color=style.colour, linewidth=1.3)
    axes.set_xlabel("tokens before, in the window (dotted: trained length)")
    axes.set_ylabel(with_scale("perplexity", axes))
    name_lines(axes, {key: curve[-1] for key, curve in places.items()}, styles, shape)
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
    figure, axes = canvas(shape)
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
    legend(axes, [line for line in axes.lines if isinstance(line, Line2D)], shape, title="text length")
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


def _lengths(curves: Mapping[tuple[str, int], Curve]) -> list[int]:
    return sorted({row["length"] for curve in curves.values() for row in curve})


def _quantile(shares: Sequence[float], share: float) -> int:
    total = 0.0
    for n, part in enumerate(shares):
        total += part
        if total >= share:
            return n
    return len(shares) - 1
