"""The charts of what validation found while models were trained."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bipe.records import Record

from .axes import (
    CONTEXT,
    FONT,
    MUTED,
    Shape,
    canvas,
    name_lines,
    panels_of,
    set_perplexity_scale,
    set_share_scale,
    with_scale,
)
from .palette import Style, scheme_styles


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
        styles, shape: as in `plots.length_curve_figure`.

    Raises:
        ValueError: no history holds it.
    """
    points = _validation_points(histories, metric)
    styles = styles or scheme_styles(scheme for scheme, _ in points)
    figure, axes = canvas(shape)
    _set_convergence_scales(axes, points, metric)
    for (scheme, _), curve in points.items():
        style = styles[scheme]
        axes.plot(
            *zip(*curve, strict=True),
            color=style.colour,
            marker=style.marker,
            markevery=max(1, len(curve) // 8),
            markersize=4,
            linewidth=1.3,
        )
    axes.set_xlabel("training step")
    axes.set_ylabel(with_scale(f"validation {metric}", axes), parse_math=False)
    name_lines(axes, {key: curve[-1] for key, curve in points.items()}, styles, shape)
    return figure


def convergence_panels_figure(
    histories: Mapping[tuple[str, int], Sequence[Record]],
    *,
    metric: str = "perplexity",
    styles: Mapping[str, Style] | None = None,
    shape: Shape = "wide",
) -> Figure:
    """Draw the same lines a panel a scheme, the other schemes in grey.

    Takes and raises what `convergence_figure` does.
    """
    points = _validation_points(histories, metric)
    styles = styles or scheme_styles(scheme for scheme, _ in points)
    figure, panels = panels_of(points, styles, shape)
    for scheme, axes in panels.items():
        _set_convergence_scales(axes, points, metric, labels=3)
        for (name, _), curve in points.items():
            own = name == scheme
            colour, width = (styles[scheme].colour, 1.4) if own else (CONTEXT, 0.7)
            axes.plot(*zip(*curve, strict=True), color=colour, linewidth=width, zorder=2.5 if own else 2)
    figure.supxlabel("training step", fontsize=FONT, color=MUTED)
    figure.supylabel(f"validation {metric}", fontsize=FONT, color=MUTED, parse_math=False)
    return figure


def _validation_points(
    histories: Mapping[tuple[str, int], Sequence[Record]], metric: str
) -> dict[tuple[str, int], list[tuple[int, float]]]:
    """What validation found, by step, of every run that says so."""
    name = f"validation_{metric}"
    points = {
        key: sorted({row["step"]: row[name] for row in rows if name in row}.items())
        for key, rows in histories.items()
    }
    points = {key: found for key, found in points.items() if found}
    if not points:
        raise ValueError(f"No history holds a {name}, so there is no convergence to draw.")
    return points


def _set_convergence_scales(
    axes: Axes, points: Mapping[tuple[str, int], list[tuple[int, float]]], metric: str, labels: int = 6
) -> None:
    values = [value for curve in points.values() for _, value in curve]
    if metric == "perplexity":
        set_perplexity_scale(axes, (min(values), max(values)))
    else:
        set_share_scale(axes)
    axes.set_xlim(right=max(curve[-1][0] for curve in points.values()))
    axes.xaxis.set_major_locator(MaxNLocator(labels, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
