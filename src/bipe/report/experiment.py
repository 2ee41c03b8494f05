"""The page of an experiment: what was claimed, what came out, and by which commands."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from bipe.records import Record, read_records
from bipe.training.environment import describe_environment

from .folder import SCORES
from .plots import segment_histogram_figure, width_figure
from .rendering import figure_png
from .tables import SHARES, Cell, Table, markdown_table, number, percent, seeds_table, spread_cell
from .theory import ENOUGH, learned_figure, learned_table, reach_table, smallest_widths

LEFT_OUT = {"histogram"}
AUTOMATON = "automaton"
"""The task of rows about trained automata, as `bipe.comparison.automata` names it."""


def write_experiment(
    path: Path,
    title: str,
    claim: str,
    comparisons: Sequence[Path],
    rows: Sequence[Record],
    commands: Sequence[str],
    seconds: float | None,
) -> None:
    """Write the page of an experiment.

    Args:
        path: the file.
        title: its heading.
        claim: what the paper says.
        comparisons: folders of comparisons that belong to it, beside the file.
        rows: what other commands printed.
        commands: all of them, in order.
        seconds: of processor time that they took, in all runs of the experiment; None if not known.
    """
    parts = [f"# {title}", f"{date.today().isoformat()}. {claim}"]
    if len(comparisons) > 1:
        ordered = sorted(comparisons, key=lambda folder: (len(folder.name), folder.name))  # widths by size
        measured = {folder.name: read_records(folder / SCORES) for folder in ordered}
        parts += ["## Side by side", markdown_table(side_by_side(measured))]
        parts += _widths(ordered, path.parent)
    for folder in comparisons:
        scores = read_records(folder / SCORES)
        name = folder.name
        parts += [f"## {name}", f"[All rows]({name}/summary.md) and [charts]({name}/report.html)."]
        parts += _tables(scores)
    learned = [row for row in rows if row.get("task") == AUTOMATON]
    parts += _learned(learned, path.parent) if learned else []
    parts += _tables([row for row in rows if row.get("task") != AUTOMATON])
    parts += _histograms(rows, path.parent)
    listed = "\n".join(f"    {command}" for command in commands)
    parts += ["## Commands", listed, _machine()]
    if seconds is not None:
        spent = f"{seconds / 3600:.1f} CPU-hours" if seconds >= 3600 else f"{seconds / 60:.1f} CPU-minutes"
        parts.append(f"These commands took {spent}.")
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _machine() -> str:
    found = describe_environment()
    return (
        f"Commit {found['commit'] or 'unknown'}; {found['device']}, {found['cpu_count']} cores, "
        f"{found['platform']}; Python {found['python']}, torch {found['torch']}, transformers "
        f"{found['transformers']}."
    )


def _tables(rows: Sequence[Record]) -> list[str]:
    """Every table that the rows give, each under a heading."""
    scored = [row for row in rows if "metric" in row]
    parts: list[str] = []
    for task, protocol, metric in dict.fromkeys(
        (row["task"], row["protocol"], row["metric"]) for row in scored
    ):
        chosen = [
            row for row in scored if (row["task"], row["protocol"], row["metric"]) == (task, protocol, metric)
        ]
        name = metric.replace("_", " ").capitalize()
        parts += [f"### {name}, {task}, {protocol}", markdown_table(seeds_table(chosen))]
    if described := [row for row in rows if "metric" not in row]:
        parts += ["### By length", markdown_table(_plain_table(described))]
    return parts


def _histograms(rows: Sequence[Record], folder: Path) -> list[str]:
    """A chart for each name of the rows that count tokens per segment."""
    parts: list[str] = []
    counted = [row for row in rows if "histogram" in row]
    for name in dict.fromkeys(row["scheme"] for row in counted):
        lengths = {row["length"]: row for row in counted if row["scheme"] == name}
        picture = f"{re.sub('[^A-Za-z0-9.]+', '_', name).strip('_')}.png"
        (folder / picture).write_bytes(figure_png(segment_histogram_figure({"lengths": lengths})))
        parts.append(f"![Tokens per segment, {name}]({picture})")
    return parts


def _widths(comparisons: Sequence[Path], folder: Path) -> list[str]:
    """A chart of what was found first against the hidden width, where comparisons differ in that."""
    by_width = {
        json.loads((path / "settings.json").read_text(encoding="utf-8"))["model"]["hidden_size"]: path
        for path in comparisons
    }
    found = {width: _found_first(read_records(path / SCORES)) for width, path in by_width.items()}
    metrics = {row["metric"] for rows in found.values() for row in rows}
    if len(by_width) < len(comparisons) or len(metrics) != 1 or not metrics <= set(SHARES):
        return []
    (folder / "widths.png").write_bytes(figure_png(width_figure(found, metrics.pop())))
    return ["![What was found at the shortest length, against the hidden width](widths.png)"]


def _found_first(rows: Sequence[Record]) -> list[Record]:
    """The rows of the first task, protocol and metric at the shortest length."""
    shortest = min((row["length"] for row in rows), default=0)
    keys = [(row["task"], row["protocol"], row["metric"], row["length"]) for row in rows]
    return [row for row, key in zip(rows, keys, strict=True) if key == (*keys[0][:3], shortest)]


def _learned(rows: Sequence[Record], folder: Path) -> list[str]:
    """A chart of how well trained models tell the states of automata, beside the page, and its tables."""
    (folder / "learned.png").write_bytes(figure_png(learned_figure(rows)))
    return [
        "![How often trained models are right, against width and segments before](learned.png)",
        f"## Smallest width that is right after {percent(ENOUGH)} of the symbols",
        markdown_table(smallest_widths(rows)),
        "## Right after",
        markdown_table(learned_table(rows)),
        "## How far: right after so many segments, in the widest model of each seed",
        markdown_table(reach_table(rows)),
    ]


def side_by_side(measured: Mapping[str, Sequence[Record]]) -> Table:
    """What several comparisons found first, at their shortest length: a row a scheme, a column a comparison.

    >>> row = {"scheme": "rope", "seed": 0, "task": "arithmetic", "protocol": "greedy", "metric": "accuracy"}
    >>> table = side_by_side({"width-32": [{**row, "length": 6, "value": 0.25}], "width-48": []})
    >>> table.header, [cell.text for cell in table.rows[0]]
    (['scheme', 'width-32', 'width-48'], ['rope', '25.0 %', '–'])

    Args:
        measured: score rows by the name of a comparison.
    """
    found: dict[tuple[str, str], list[Record]] = {}
    for name, rows in measured.items():
        for row in _found_first(rows):
            found.setdefault((row["scheme"], name), []).append(row)
    schemes = dict.fromkeys(scheme for scheme, _ in found)
    rows = [
        [Cell(scheme), *(spread_cell(found.get((scheme, name), [])) for name in measured)]
        for scheme in schemes
    ]
    return Table(["scheme", *measured], rows, labels=1)


def _plain_table(rows: Sequence[Record]) -> Table:
    """Rows without a metric, as they are."""
    header = [name for name in rows[0] if name not in LEFT_OUT]
    header.sort(key=lambda name: name != "scheme")
    return Table(header, [[Cell(_written(row.get(name))) for name in header] for row in rows], labels=1)


def _written(value: Any) -> str:
    return (
        number(value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    )
