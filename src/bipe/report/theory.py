"""Charts and tables of the theory: how large compiled automata are, how well trained models tell states."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from bipe.records import Record

from .axes import FONT, INK, MUTED, dress, short_number
from .palette import COLOURS, Style, scheme_styles
from .tables import Cell, Table, percent, seeds_cell

ENOUGH = 0.99
"""The share of symbols after which a model has to be right, to be said to have learned an automaton."""

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
    panels = figure.subplots(1, len(_PANELS))
    for axes, (key, title) in zip(panels, _PANELS.items(), strict=True):
        for model, (role, marker) in MODELS.items():
            points = sorted((row["outer_states"], row[key]) for row in rows if row["model"] == model)
            colour = COLOURS[role].light
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, ms=5, lw=1.5, label=model)
            axes.annotate(
                f"{points[-1][1]:,}", points[-1], xytext=(0, 6), textcoords="offset points", ha="right",
                fontsize=FONT - 1, color=colour,
            )  # fmt: skip
        axes.set_title(title, fontsize=FONT, color=INK, loc="left")
        axes.set_xlabel("states of each level")
        dress(axes)
        axes.set_xticks(sorted({row["outer_states"] for row in rows}))
        axes.margins(y=0.15)
        if key != "depth":
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if key == "width" else (1.0,)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.set_ylim(bottom=0)
    panels[0].legend(frameon=False, fontsize=FONT, labelcolor=INK)
    return figure


def has_learned(rows: Iterable[Record], enough: float = ENOUGH) -> bool:
    """Whether a trained model tells the states of its automaton, in words as long as those trained on.

    Args:
        rows: of one call of `bipe.comparison.automata.learn_automaton`.
        enough: the share of symbols after which it has to be right.
    """
    return any(row["value"] >= enough for row in _short_words(rows))


def smallest_widths(rows: Iterable[Record], enough: float = ENOUGH) -> Table:
    """The smallest width at which a trained model tells the states of an automaton, a column a seed.

    >>> row = {"scheme": "rope", "states": 2, "classes": 6, "protocol": "words", "length": 64, "seed": 0}
    >>> found = {8: 0.7, 16: 0.995, 32: 1.0}
    >>> table = smallest_widths([{**row, "width": width, "value": found[width]} for width in found])
    >>> table.header, [cell.text for cell in table.rows[0]]
    (['states of each level', 'classes', 'scheme', 'seed 0'], ['2', '6', 'rope', '16'])

    Args:
        rows: of `bipe.comparison.automata.learn_automaton`; those of whole words as long as those trained on
            count.
        enough: the share of symbols after which a model has to be right; at the width that is given and at
            every larger one that was tried.
    """
    cells = _short_words(rows)
    seeds = sorted({row["seed"] for row in cells})
    table: list[list[Cell]] = []
    for states, scheme in dict.fromkeys((row["states"], row["scheme"]) for row in cells):
        chosen = [row for row in cells if (row["states"], row["scheme"]) == (states, scheme)]
        classes = sorted({row["classes"] for row in chosen})
        found = [_smallest([row for row in chosen if row["seed"] == seed], enough) for seed in seeds]
        told = str(classes[0]) if len(classes) == 1 else f"{classes[0]}–{classes[-1]}"
        table.append([Cell(str(states)), Cell(told), Cell(scheme), *map(Cell, found)])
    header = ["states of each level", "classes", "scheme", *(f"seed {seed}" for seed in seeds)]
    return Table(header, table, labels=3)


def _smallest(rows: Sequence[Record], enough: float) -> str:
    if not rows:
        return "–"
    found = "none"
    for row in sorted(rows, key=lambda row: -row["width"]):
        if row["value"] < enough:
            break
        found = str(row["width"])
    return found


def learned_table(rows: Iterable[Record]) -> Table:
    """How often models of each width are right, in words of each length: mean, smallest and largest seed.

    Where one seed needs wider models than another, rows of different widths are of different seeds.

    >>> row = {"scheme": "rope", "states": 2, "width": 8, "parameters": 4360, "protocol": "words"}
    >>> row |= {"length": 64}
    >>> table = learned_table([{**row, "seed": seed, "value": 0.5 + 0.1 * seed} for seed in (0, 1)])
    >>> table.header[-1], [tuple(cell) for cell in table.rows[0]][2:]
    ('at 64 symbols', [('8', ''), ('4,360', ''), ('2', ''), ('55.0 %', '50.0 %–60.0 %')])

    Args:
        rows: of `bipe.comparison.automata.learn_automaton`.
    """
    words = [row for row in rows if row["protocol"] == "words"]
    lengths = sorted({row["length"] for row in words})
    table: list[list[Cell]] = []
    kinds = dict.fromkeys((row["states"], row["scheme"]) for row in words)
    for states, scheme, width in sorted(
        {(row["states"], row["scheme"], row["width"]) for row in words},
        key=lambda key: (list(kinds).index(key[:2]), key[2]),
    ):
        chosen = [
            row for row in words if (row["states"], row["scheme"], row["width"]) == (states, scheme, width)
        ]
        seeds = {row["seed"] for row in chosen}
        sizes = sorted({row["parameters"] for row in chosen})
        size = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,}–{sizes[-1]:,}"
        shares = [
            seeds_cell([row["value"] for row in chosen if row["length"] == length], percent)
            for length in lengths
        ]
        labels = (str(states), scheme, str(width), size, str(len(seeds)))
        table.append([*map(Cell, labels), *shares])
    header = ["states of each level", "scheme", "width", "parameters", "seeds"]
    return Table([*header, *(f"at {length} symbols" for length in lengths)], table, labels=3)


def reach_table(rows: Iterable[Record]) -> Table:
    """How often models are right after so many segments: the smallest and the largest seed.

    >>> row = {"scheme": "rope", "states": 2, "width": 8, "protocol": "from_segment", "length": 8}
    >>> table = reach_table([{**row, "seed": seed, "value": 0.5 + 0.1 * seed} for seed in (0, 1)])
    >>> table.header[2:], [cell.text for cell in table.rows[0]]
    (['from 8'], ['2', 'rope', '50.0 %–60.0 %'])

    Args:
        rows: of `bipe.comparison.automata.learn_automaton`; those by the segments before count, of the
            widest model of each seed.
    """
    far = _of_the_widest(rows)
    lengths = sorted({row["length"] for row in far})
    table: list[list[Cell]] = []
    for states, scheme in dict.fromkeys((row["states"], row["scheme"]) for row in far):
        chosen = [row for row in far if (row["states"], row["scheme"]) == (states, scheme)]
        by_length = ([row["value"] for row in chosen if row["length"] == length] for length in lengths)
        spreads = [seeds_cell(values, percent) for values in by_length]
        table.append([Cell(str(states)), Cell(scheme), *(Cell(cell.note or cell.text) for cell in spreads)])
    return Table(["states of each level", "scheme", *(f"from {n}" for n in lengths)], table, labels=2)


def learned_figure(rows: Iterable[Record]) -> Figure:
    """Draw how often trained models are right: above against their width, below against how far they are.

    A column for each number of states. Above, words as long as those trained on (solid) and the longest
    (dashed); below, the longest words by the segments before, for the widest model of each seed. A line is
    one seed's.

    Args:
        rows: of `bipe.comparison.automata.learn_automaton`.

    Raises:
        ValueError: there is nothing to draw.
    """
    rows = list(rows)
    if not rows:
        raise ValueError("There are no trained automata to draw.")
    states = sorted({row["states"] for row in rows})
    styles = scheme_styles(row["scheme"] for row in rows)
    lengths = sorted({row["length"] for row in rows if row["protocol"] == "words"})
    widths = sorted({row["width"] for row in rows})
    widest = _of_the_widest(rows)
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    grid = figure.subplots(2, len(states), sharey="row", squeeze=False)
    for column, number in enumerate(states):
        above, below = grid[0][column], grid[1][column]
        for scheme, style in styles.items():
            here = [row for row in rows if (row["states"], row["scheme"]) == (number, scheme)]
            words = [row for row in here if row["protocol"] == "words"]
            for length, line in ((lengths[0], "-"), (lengths[-1], "--")):
                _draw(above, [row for row in words if row["length"] == length], "width", style, line)
            far = [row for row in widest if (row["states"], row["scheme"]) == (number, scheme)]
            _draw(below, far, "length", style, "-")
        above.set_xscale("log", base=2)
        above.xaxis.set_major_locator(FixedLocator(widths))
        above.set_xlim(widths[0] / 1.2, widths[-1] * 1.2)
        above.set_title(f"{number} x {number} states", fontsize=FONT, color=INK, loc="left")
        above.set_xlabel("width")
        below.set_xlabel("segments before")
        for axes in (above, below):
            dress(axes)
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
            axes.tick_params(labelleft=True)
    for axes in (grid[0][0], grid[1][0]):
        axes.set_ylabel("right after")
    figure.legend(
        loc="outside lower center",
        ncols=len(styles) + len(lengths),
        handles=[
            *(
                Line2D([], [], color=style.colour, marker=style.marker, label=scheme, ms=5, lw=1.5)
                for scheme, style in styles.items()
            ),
            *(
                Line2D([], [], color=MUTED, ls=line, label=f"{length} symbols", lw=1.5)
                for length, line in dict(zip(lengths, ("-", "--"), strict=False)).items()
            ),
        ],
        frameon=False,
        fontsize=FONT,
        labelcolor=INK,
    )
    return figure


def _draw(axes: Axes, rows: Sequence[Record], key: str, style: Style, line: str) -> None:
    """A line a seed; a mean would be of other seeds from place to place, where some need no wider model."""
    for seed in sorted({row["seed"] for row in rows}):
        points = sorted((row[key], row["value"]) for row in rows if row["seed"] == seed)
        look: dict[str, Any] = {"color": style.colour, "marker": style.marker, "ms": 4, "ls": line, "lw": 1.2}
        axes.plot(*zip(*points, strict=True), **look)


def _short_words(rows: Iterable[Record]) -> list[Record]:
    """Rows of whole words as long as those trained on, which are the shortest."""
    words = [row for row in rows if row["protocol"] == "words"]
    shortest = min((row["length"] for row in words), default=0)
    return [row for row in words if row["length"] == shortest]


def _of_the_widest(rows: Iterable[Record]) -> list[Record]:
    """Rows by the segments before, of the widest model of each seed."""
    far = [row for row in rows if row["protocol"] == "from_segment"]
    widest: dict[tuple[Any, ...], int] = {}
    for row in far:
        key = (row["states"], row["scheme"], row["seed"])
        widest[key] = max(row["width"], widest.get(key, 0))
    return [row for row in far if row["width"] == widest[row["states"], row["scheme"], row["seed"]]]
