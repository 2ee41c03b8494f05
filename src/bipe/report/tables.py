"""Tables of a comparison: rows of cells from records, every seed in a row of its own."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from bipe.records import Record

EXPLAINED = ["offsets beyond trained", "tokens per segment", "parameters", "learning rate"]
"""The columns behind those of what was measured."""

SHARES = ("accuracy", "choice_accuracy")
"""Metrics that are written in per cent."""


class Cell(NamedTuple):
    """What stands in a table: `text`, and below it in small type a `note` such as an interval."""

    text: str
    note: str = ""


class Table(NamedTuple):
    """Rows of cells under a header, both plain lists; the first `labels` columns name the row."""

    header: list[str]
    rows: list[list[Cell]]
    labels: int = 1


def score_table(
    scores: Iterable[Record], protocol: str, learning_rates: Mapping[str, float] | None = None
) -> Table:
    """Return a row for each scheme and seed: perplexities, what explains them, size, learning rate.

    >>> score = {"scheme": "rope", "seed": 0, "protocol": "blocks", "metric": "perplexity", "length": 128}
    >>> score |= {"value": 41.52, "low": 40.1, "high": 42.96, "parameters": 3012096}
    >>> score |= {"offsets_beyond_trained": 0.0, "tokens_per_segment": 1.0}
    >>> table = score_table([score], "blocks", {"rope": 0.002})
    >>> [cell.text for cell in table.rows[0]]
    ['rope', '0', '41.5', '0 %', '1.00', '3,012,096', '0.002']

    The share of offsets beyond the trained ones and the tokens per segment are those at the longest length;
    a metric that no row has gets no column.

    Args:
        scores: score rows; where a key was measured twice, the later row counts.
        protocol: the rows of which protocol.
        learning_rates: the learning rate of each scheme.
    """
    index = index_scores(scores, protocol)
    lengths = _lengths(index)
    header = ["scheme", "seed", *(f"perplexity at {length}" for length in lengths)]
    metrics = {metric for _, _, metric, _ in index}
    header += [f"bits per byte at {lengths[-1]}"] if "bits_per_byte" in metrics else []
    header += ["effective context"] if "effective_context" in metrics else []
    rows: list[list[Cell]] = []
    for scheme, seed in scheme_seeds(index):
        longest = max(
            (row for key, row in index.items() if key[:2] == (scheme, seed)), key=lambda row: row["length"]
        )
        perplexities = [interval_cell(index.get((scheme, seed, "perplexity", length))) for length in lengths]
        row = [Cell(scheme), Cell(str(seed)), *perplexities]
        if "bits_per_byte" in metrics:
            row.append(interval_cell(index.get((scheme, seed, "bits_per_byte", lengths[-1]))))
        if "effective_context" in metrics:
            row.append(_context_cell(index, scheme, seed))
        rows.append([*row, *_explained(longest, learning_rates)])
    return Table([*header, *EXPLAINED], rows, labels=2)


def task_table(
    scores: Iterable[Record], task: str, metric: str, learning_rates: Mapping[str, float] | None = None
) -> Table:
    """Return a row for each scheme and seed: a share at every length, what explains it, size, learning rate.

    >>> score = {"scheme": "rope", "seed": 0, "task": "arithmetic", "protocol": "greedy", "length": 6}
    >>> score |= {"metric": "accuracy", "value": 0.415, "low": 0.4, "high": 0.43, "parameters": 113000}
    >>> score |= {"offsets_beyond_trained": 0.0, "tokens_per_segment": 1.0}
    >>> table = task_table([score], "arithmetic", "accuracy")
    >>> table.header[2], [cell.text for cell in table.rows[0]]
    ('accuracy at 6', ['rope', '0', '41.5 %', '0 %', '1.00', '113,000', '–'])

    Args:
        scores: score rows; where a key was measured twice, the later row counts.
        task: the rows of which task.
        metric: the rows of which metric, between 0 and 1.
        learning_rates: the learning rate of each scheme.
    """
    chosen = [row for row in scores if (row["task"], row["metric"]) == (task, metric)]
    index = {(row["scheme"], row["seed"], metric, row["length"]): row for row in chosen}
    lengths = sorted({row["length"] for row in chosen})
    header = ["scheme", "seed", *(f"{metric} at {length:,}" for length in lengths)]
    rows: list[list[Cell]] = []
    for scheme, seed in scheme_seeds(index):
        found = [index.get((scheme, seed, metric, length)) for length in lengths]
        longest = [row for row in found if row is not None][-1]
        shares = map(_share_cell, found)
        rows.append([Cell(scheme), Cell(str(seed)), *shares, *_explained(longest, learning_rates)])
    return Table([*header, *EXPLAINED], rows, labels=2)


def _explained(score: Record, learning_rates: Mapping[str, float] | None) -> list[Cell]:
    """The cells under `EXPLAINED`; a model without segments has no offsets, and no tokens per segment."""
    beyond, length = score["offsets_beyond_trained"], score["tokens_per_segment"]
    rate = (learning_rates or {}).get(score["scheme"])
    return [
        Cell("–" if beyond is None else percent(beyond)),
        Cell("–" if length is None else number(length)),
        Cell(f"{score['parameters']:,}"),
        Cell("–" if rate is None else f"{rate:g}"),
    ]


def _share_cell(score: Record | None) -> Cell:
    if score is None:
        return Cell("–")
    return Cell(f"{100 * score['value']:.1f} %", f"{100 * score['low']:.1f}–{100 * score['high']:.1f}")


def overview_table(scores: Iterable[Record], protocol: str) -> Table:
    """Return a row for each scheme and seed: shortest and longest perplexity, effective context.

    A ratio above 1 says that reading all of a long text predicts worse than cutting it to the shortest.
    """
    index = index_scores(scores, protocol)
    lengths = _lengths(index)
    shortest, longest = (lengths[0], lengths[-1]) if lengths else (0, 0)
    header = ["scheme", "seed", f"perplexity at {shortest}", f"at {longest}", "ratio", "effective context"]
    rows: list[list[Cell]] = []
    for scheme, seed in scheme_seeds(index):
        first = index.get((scheme, seed, "perplexity", shortest))
        last = index.get((scheme, seed, "perplexity", longest))
        ratio = f"{last['value'] / first['value']:,.2f}×" if first and last else "–"
        values = [interval_cell(first), interval_cell(last), Cell(ratio)]
        rows.append([Cell(scheme), Cell(str(seed)), *values, _context_cell(index, scheme, seed)])
    return Table(header, rows, labels=2)


def difference_table(differences: Iterable[Record], metric: str, protocol: str) -> Table:
    """Return the paired differences of `metric`, longest length first, each with what its interval shows.

    Args:
        differences: rows of `differences.jsonl`.
        metric: `"log_perplexity"` or `"log_perplexity_growth"`.
        protocol: the rows of which protocol.
    """
    chosen = [row for row in differences if row["metric"] == metric and row["protocol"] == protocol]
    latest = {(row["first"], row["second"], row["seed"], row["length"]): row for row in chosen}
    pairs = list(dict.fromkeys((row["first"], row["second"]) for row in chosen))
    ordered = sorted(
        latest.values(), key=lambda r: (-r["length"], pairs.index((r["first"], r["second"])), r["seed"])
    )
    header = ["length", "pair", "seed", "difference", "what the interval shows", "windows"]
    rows: list[list[Cell]] = []
    for row in ordered:
        length = Cell(
            f"{row['length']:,}", f"from {row['base_length']:,}" if metric.endswith("growth") else ""
        )
        value = Cell(f"{row['value']:+.3f}", f"{row['low']:+.3f} to {row['high']:+.3f}")
        names = [length, Cell(f"{row['first']} − {row['second']}"), Cell(str(row["seed"]))]
        rows.append([*names, value, Cell(verdict(row)), Cell(f"{row['windows']:,}")])
    return Table(header, rows, labels=1)


def verdict(difference: Record) -> str:
    """Say in words what a paired interval shows.

    >>> row = {"first": "rope", "second": "bipe-rope", "metric": "log_perplexity", "value": 0.4}
    >>> verdict(row | {"low": 0.3, "high": 0.5})
    "Excludes 0: rope's perplexity is 1.49 times bipe-rope's."
    >>> verdict(row | {"low": -0.1, "high": 0.5})
    'Includes 0: no difference shown.'
    """
    if difference["low"] <= 0 <= difference["high"]:
        return "Includes 0: no difference shown."
    factor = number(math.exp(min(difference["value"], 700.0)))
    first, second = difference["first"], difference["second"]
    if difference["metric"] == "log_perplexity_growth":
        return f"Excludes 0: {first}'s growth ratio is {factor} times {second}'s."
    return f"Excludes 0: {first}'s perplexity is {factor} times {second}'s."


def sweep_table(sweep: Iterable[Record], chosen: Mapping[str, float]) -> Table:
    """Return the learning-rate sweep, a row a scheme and a column a rate, with the chosen rate marked."""
    found = {(row["scheme"], row["learning_rate"]): row["validation_perplexity"] for row in sweep}
    rates = sorted({rate for _, rate in found})
    rows: list[list[Cell]] = []
    for scheme in dict.fromkeys(scheme for scheme, _ in found):
        cells = [Cell(scheme)]
        for rate in rates:
            value = found.get((scheme, rate))
            mark = "chosen" if value is not None and chosen.get(scheme) == rate else ""
            cells.append(Cell("–" if value is None else number(value), mark))
        rows.append(cells)
    return Table(["scheme", *(f"{rate:g}" for rate in rates)], rows)


def seeds_table(scores: Iterable[Record]) -> Table:
    """One metric at every length: the mean over the seeds, and the smallest and the largest.

    >>> rows = [{"scheme": "rope", "seed": seed, "metric": "perplexity", "length": 128} for seed in (0, 1)]
    >>> table = seeds_table([{**row, "value": 40.0 + row["seed"]} for row in rows])
    >>> table.header, [tuple(cell) for cell in table.rows[0]]
    (['scheme', 'seeds', 'at 128'], [('rope', ''), ('2', ''), ('40.5', '40.0–41.0')])

    Args:
        scores: rows of one metric; where a key was measured twice, the later row counts.
    """
    found = {(row["scheme"], row["seed"], row["length"]): row for row in scores}
    lengths = sorted({length for _, _, length in found})
    table: list[list[Cell]] = []
    for scheme in dict.fromkeys(scheme for scheme, _, _ in found):
        seeds = {seed for name, seed, _ in found if name == scheme}
        by_length = (
            [found[scheme, seed, length] for seed in seeds if (scheme, seed, length) in found]
            for length in lengths
        )
        table.append([Cell(scheme), Cell(str(len(seeds))), *map(spread_cell, by_length)])
    return Table(["scheme", "seeds", *(f"at {length}" for length in lengths)], table, labels=1)


def segment_table(segments: Record) -> Table:
    """Return the statistics of tokens per segment, a row a text length."""
    header = ["text length", "segments", "mean tokens", "median", "99th percentile", "longest"]
    rows: list[list[Cell]] = []
    for length, entry in sorted((int(key), value) for key, value in segments["lengths"].items()):
        whole = (f"{entry[name]:,.12g}" for name in ("p50", "p99", "max"))
        texts = [f"{length:,}", f"{entry['segments']:,}", number(entry["mean"]), *whole]
        rows.append([Cell(text) for text in texts])
    return Table(header, rows)


def index_scores(scores: Iterable[Record], protocol: str) -> dict[tuple[str, int, str, int], Record]:
    """Return the rows of `protocol` by (scheme, seed, metric, length); of equal keys the later row counts."""
    rows = (row for row in scores if row["protocol"] == protocol)
    return {(row["scheme"], row["seed"], row["metric"], row["length"]): row for row in rows}


def scheme_seeds(index: Iterable[tuple[str, int, str, int]]) -> list[tuple[str, int]]:
    """Return each (scheme, seed) once: schemes in order of appearance, seeds rising."""
    pairs = list(dict.fromkeys(key[:2] for key in index))
    order = list(dict.fromkeys(scheme for scheme, _ in pairs))
    return sorted(pairs, key=lambda pair: (order.index(pair[0]), pair[1]))


def markdown_table(table: Table) -> str:
    r"""Write a table in Markdown, notes in brackets; nothing in a cell is read as mark-up.

    >>> print(markdown_table(Table(["scheme", "perplexity"], [[Cell("a|b"), Cell("41.5", "40.1–43.0")]])))
    | scheme | perplexity |
    |---|---:|
    | a\|b | 41.5 (40.1–43.0) |
    """
    right = [numeric and n >= table.labels for n, numeric in enumerate(numeric_columns(table))]
    rule = ["---:" if flush else "---" for flush in right]
    lines = [f"| {' | '.join(plain(name) for name in table.header)} |", f"|{'|'.join(rule)}|"]
    for row in table.rows:
        texts = (plain(cell.text) + (f" ({plain(cell.note)})" if cell.note else "") for cell in row)
        lines.append(f"| {' | '.join(texts)} |")
    return "\n".join(lines)


def numeric_columns(table: Table) -> list[bool]:
    """Say of each column whether all its cells are numbers or dashes, which are set flush right."""
    return [all(row[n].text[:1] in "0123456789+-–<" for row in table.rows) for n in range(len(table.header))]


def row_groups(table: Table) -> list[list[list[Cell]]]:
    """Gather neighbouring rows of the same first cell, which the page then writes once."""
    return [list(rows) for _, rows in groupby(table.rows, key=lambda row: row[0])]


def interval_cell(score: Record | None) -> Cell:
    """Write a score and its interval, which a single window has not; a missing score is a dash."""
    if score is None:
        return Cell("–")
    if score.get("windows") == 1:
        return Cell(number(score["value"]))
    return Cell(number(score["value"]), f"{number(score['low'])}–{number(score['high'])}")


def number(value: float) -> str:
    """Write a number with three significant digits, or one decimal; in powers of ten from a million on.

    >>> [number(value) for value in (0.98712, 14.2, 41.524, 118.46, 53210.0, 1234567.0)]
    ['0.987', '14.2', '41.5', '118.5', '53,210', '1.23e+06']
    """
    size = abs(value)
    if size >= 1e6:
        return f"{value:.2e}"
    if size >= 999.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 9.995 else f"{value:.2f}" if size >= 0.9995 else f"{value:.3g}"


def seeds_cell(values: Sequence[float], write: Callable[[float], str]) -> Cell:
    """The mean over seeds, and beside it the smallest and the largest where there are several."""
    if not values:
        return Cell("–")
    note = f"{write(min(values))}–{write(max(values))}" if len(values) > 1 else ""
    return Cell(write(statistics.mean(values)), note)


def spread_cell(rows: Sequence[Record]) -> Cell:
    """The mean of one metric over seeds, and the smallest and the largest."""
    write = percent if rows and rows[0]["metric"] in SHARES else number
    return seeds_cell([row["value"] for row in rows], write)


def percent(share: float) -> str:
    """Write a share, telling a small one from none.

    >>> [percent(share) for share in (0.0, 0.00001, 0.0123, 0.5)]
    ['0 %', '<0.1 %', '1.2 %', '50.0 %']
    """
    if share == 0:
        return "0 %"
    return "<0.1 %" if share < 0.001 else f"{100 * share:.1f} %"


def _lengths(index: Iterable[tuple[str, int, str, int]]) -> list[int]:
    return sorted({length for _, _, metric, length in index if metric == "perplexity"})


def _context_cell(index: Mapping[tuple[str, int, str, int], Record], scheme: str, seed: int) -> Cell:
    found = [row for key, row in index.items() if key[:3] == (scheme, seed, "effective_context")]
    return Cell(f"{found[-1]['value']:,.0f}" if found else "–")


def plain(text: str) -> str:
    """Escape what Markdown or HTML would read as mark-up, on one line."""
    for mark, replacement in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        ("|", r"\|"),
        ("`", r"\`"),
        ("*", r"\*"),
        ("\n", " "),
    ):
        text = text.replace(mark, replacement)
    return text
