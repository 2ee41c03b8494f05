"""The page and the Markdown summary of a run folder."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from bipe.evaluation.passkey import CHANCE
from bipe.evaluation.windows import ENOUGH_WINDOWS
from bipe.report.convergence import convergence_figure, convergence_panels_figure
from bipe.report.ends import ends_figure
from bipe.report.folder import Run, missing_runs, read_run
from bipe.report.pages import render
from bipe.report.palette import Style, scheme_styles
from bipe.report.plots import (
    length_curve_figure,
    metric_curves,
    perplexity_curves,
    place_figure,
    scheme_panels_figure,
    segment_histogram_figure,
    task_figure,
)
from bipe.report.rendering import figure_png, figure_svg
from bipe.report.tables import (
    SHARES,
    Table,
    difference_table,
    number,
    overview_table,
    score_table,
    seeds_table,
    segment_table,
    sweep_table,
    task_table,
)

_CHOICE_OF_RATE = (
    "The lowest rate is chosen whose perplexity is within 2 % of the best, since high rates gain early and "
    "lose it later. Where it is the lowest or the highest of those tried, a better one may lie beyond."
)
_PROTOCOL_TITLES = {
    "same_targets": "The same tokens, read with more and more context",
    "blocks": "Consecutive blocks",
    "without_separators": "The same tokens of a text that lost its separators",
}


PAGE, SUMMARY = "report.html", "summary.md"
"""The report of a folder, and what of it Markdown can say."""

PICTURES = (
    *("ends.png", "length_curve.png", "places.png"),
    *(f"{task}_{metric}.png" for task in ("arithmetic", "multikey", "passkey") for metric in SHARES),
)
"""The charts beside it; which of them there are depends on what was measured."""


def write_report(run_dir: str | Path) -> Path:
    """Write `summary.md`, `report.html` and a chart, such as `length_curve.png`, into a run folder.

    The runs may be unfinished.

    Args:
        run_dir: the folder that `bipe compare` fills.

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: the folder has no scores yet, or one of its files is broken.
    """
    folder = Path(run_dir)
    run = read_run(folder)
    context = _context(run)
    summary, page = folder / SUMMARY, folder / PAGE
    for name in PICTURES:
        (folder / name).unlink(missing_ok=True)
    summary.write_text(render("summary.md", context), encoding="utf-8")
    page.write_text(render("report.html", context | _charts(run)), encoding="utf-8")
    styles = scheme_styles(run.schemes)
    if run.protocols:
        picture = length_curve_figure(run.scores, run.protocols[0], run.train_length, styles=styles)
        (folder / "length_curve.png").write_bytes(figure_png(picture))
        picture = ends_figure(run.scores, run.protocols[0], styles=styles)
        (folder / "ends.png").write_bytes(figure_png(picture))
    if run.places:
        picture = place_figure(run.places, run.train_length, styles=styles)
        (folder / "places.png").write_bytes(figure_png(picture))
    for task, metric in run.shares:
        picture = task_figure(run.scores, task, metric, run.train_length, styles=styles)
        (folder / f"{_plain_name(task)}_{_plain_name(metric)}.png").write_bytes(figure_png(picture))
    return page


def _context(run: Run) -> dict[str, Any]:
    """What both templates show: plain values and tables, no charts."""
    missing = missing_runs(run)
    planned = len(run.settings.get("schemes", [])) * len(run.settings.get("seeds", []))
    rates = run.settings.get("learning_rates", {})
    main = run.protocols[0] if run.protocols else ""
    return {
        "run": run,
        "title": "Perplexity beyond the trained length" if run.protocols else _share_title(*run.shares[0]),
        "missing": missing,
        "finished": planned - len(missing),
        "planned": planned,
        "notes": [*run.settings.get("notes", []), *_few_windows(run), *_chances(run)],
        "titles": _PROTOCOL_TITLES,
        "overview": overview_table(run.scores, main) if run.protocols else None,
        "share_tables": {
            _share_title(task, metric): task_table(run.scores, task, metric, rates)
            for task, metric in run.shares
        },
        "main_protocol": main,
        "seed_tables": _seed_tables(run),
        "choice_of_rate": _CHOICE_OF_RATE,
        "score_tables": {protocol: score_table(run.scores, protocol, rates) for protocol in run.protocols},
        "differences": _difference_tables(run),
        "sweep": sweep_table(run.settings.get("sweep", []), rates),
        "segment_table": segment_table(run.segments) if run.segments.get("lengths") else None,
        "facts": _facts(run),
    }


def _plain_name(text: str) -> str:
    """A text as part of a file's name or of an id."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text)


def _share_title(task: str, metric: str) -> str:
    return f"{metric.capitalize().replace('_', ' ')} in {task}"


def _seed_tables(run: Run) -> dict[str, Table]:
    """Of everything that was measured, what several seeds have in common."""
    if len(run.seeds) < 2:
        return {}
    tables = {
        f"perplexity, {protocol}": seeds_table(
            row for row in run.scores if (row["protocol"], row["metric"]) == (protocol, "perplexity")
        )
        for protocol in run.protocols
    }
    for task, metric in run.shares:
        rows = (row for row in run.scores if (row["task"], row["metric"]) == (task, metric))
        tables[_share_title(task, metric)] = seeds_table(rows)
    return tables


def _few_windows(run: Run) -> list[str]:
    fewest = {
        protocol: min((row["windows"], row["length"]) for row in run.scores if row["protocol"] == protocol)
        for protocol in run.protocols
    }
    return [
        f"Protocol {protocol}: only {count} windows of {length:,} tokens were scored; below "
        f"{ENOUGH_WINDOWS} the intervals are not to be relied on."
        for protocol, (count, length) in fewest.items()
        if count < ENOUGH_WINDOWS
    ]


def _chances(run: Run) -> list[str]:
    metrics = dict.fromkeys(metric for _, metric in run.shares if metric in CHANCE)
    return [f"Guessing gets {CHANCE[metric]:.0%} {metric.replace('_', ' ')}." for metric in metrics]


def _difference_tables(run: Run) -> list[tuple[str, str, Table]]:
    """(metric, protocol, table) of every kind of paired difference that was measured."""
    kinds = dict.fromkeys((row["metric"], row["protocol"]) for row in run.differences)
    ordered = sorted(kinds, key=lambda kind: (kind[1] != "same_targets", kind[0] != "log_perplexity_growth"))
    return [(*kind, difference_table(run.differences, *kind)) for kind in ordered]


def _facts(run: Run) -> list[tuple[str, str]]:
    """The settings as pairs of name and text, without those shown elsewhere."""
    settings, data, tokenizer = run.settings, run.settings.get("data", {}), run.settings.get("tokenizer", {})
    facts: list[tuple[str, str]] = [("trained length", f"{run.train_length:,} {run.unit}")]
    facts.append(("tested lengths", ", ".join(f"{length:,}" for length in run.lengths)))
    facts.append(("schemes", ", ".join(run.schemes)))
    facts.append(("seeds", ", ".join(map(str, run.seeds))))
    if "steps" in settings:
        facts.append(("training steps", f"{settings['steps']:,}"))
    if "rule" in settings:
        facts.append(("segmentation rule", str(settings["rule"])))
    if tokenizer:
        facts.append(
            ("tokenizer", f"{tokenizer.get('kind', '?')}, {tokenizer.get('vocab_size', 0):,} tokens")
        )
    for part in ("train", "test"):
        if data.get(part):
            documents, tokens = data.get(f"{part}_documents", 0), data.get(f"{part}_tokens", 0)
            size = f"{documents:,} document{'' if documents == 1 else 's'}, {tokens:,} tokens"
            facts.append((f"{part} text", f"{_listing(data[part])} ({size})"))
    if named := data.get("longest_test_documents"):
        longest = ", ".join(f"{row['name']} ({row['tokens']:,} tokens)" for row in named)
        facts.append(("longest test documents", longest))
    if data.get("arithmetic"):
        problems = ", ".join(f"{name} {value:,}" for name, value in data["arithmetic"].items())
        facts.append(("arithmetic", problems))
    for name, arm in settings.get("arms", {}).items():
        facts.append((name, json.dumps(arm)))
    if settings.get("model"):
        facts.append(("model", ", ".join(f"{name} {value}" for name, value in settings["model"].items())))
    return facts


def _listing(names: str | Sequence[str], limit: int = 8) -> str:
    names = [names] if isinstance(names, str) else names
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(map(str, names[:limit])) + more


@dataclass(frozen=True)
class Chart:
    """One chart in the two shapes between which the page's width decides."""

    wide: Markup
    narrow: Markup


def _chart(name: str, label: str, draw: Callable[..., Figure]) -> Chart:
    """Draw both shapes. matplotlib escapes all text in its SVG, so the result is markup."""
    wide, narrow = (
        Markup(figure_svg(draw(shape=shape), f"{_plain_name(name)}-{shape}", label))
        for shape in ("wide", "narrow")
    )
    return Chart(wide, narrow)


def _charts(run: Run) -> dict[str, Any]:
    """What only the page shows: the charts, and how schemes and tables look in it."""
    styles = scheme_styles(run.schemes)
    curves = {protocol: _length_charts(run, protocol, styles) for protocol in run.protocols}
    segments = None
    if run.segments.get("lengths"):
        label = (
            "Line chart of the share of segments by their tokens, a line a text length; key numbers below."
        )
        segments = _chart("segments", label, partial(segment_histogram_figure, run.segments))
    places = None
    if run.places:
        label = "Line chart of perplexity against the tokens before, a line a run; more in the tables below."
        draw = partial(place_figure, run.places, run.train_length, styles=styles)
        places = _chart("places", label, draw)
    ends = {protocol: _ends_chart(run, protocol, styles) for protocol in run.protocols}
    return {
        "curves": curves,
        "end_charts": ends,
        "place_chart": places,
        "share_charts": {
            _share_title(task, metric): _share_chart(run, task, metric, styles) for task, metric in run.shares
        },
        "convergence": _convergence_charts(run, styles),
        "segment_chart": segments,
        "roles": {scheme: style.role for scheme, style in styles.items()},
    }


def _length_charts(run: Run, protocol: str, styles: Mapping[str, Style]) -> list[Chart]:
    settings = {
        "scores": run.scores,
        "protocol": protocol,
        "train_length": run.train_length,
        "styles": styles,
    }
    curves = perplexity_curves(run.scores, protocol)
    ends = [
        f"{scheme} seed {seed}: {number(curve[0]['value'])} at {curve[0]['length']}, "
        f"{number(curve[-1]['value'])} at {curve[-1]['length']}"
        for (scheme, seed), curve in curves.items()
    ]
    label = f"Line chart of perplexity against text length, protocol {protocol}. {'; '.join(ends)}."
    charts = [_chart(f"curve-{protocol}", label, partial(length_curve_figure, **settings))]
    if len({scheme for scheme, _ in curves}) > 1:
        label = (
            f"The same curves of protocol {protocol}, one small chart a scheme, close to its truncation line."
        )
        charts.append(_chart(f"panels-{protocol}", label, partial(scheme_panels_figure, **settings)))
    return charts


def _ends_chart(run: Run, protocol: str, styles: Mapping[str, Style]) -> Chart:
    label = (
        f"Dot chart of perplexity at the shortest and the longest length, protocol {protocol}; table below."
    )
    return _chart(f"ends-{protocol}", label, partial(ends_figure, run.scores, protocol, styles=styles))


def _share_chart(run: Run, task: str, metric: str, styles: Mapping[str, Style]) -> Chart:
    curves = metric_curves((row for row in run.scores if row["task"] == task), metric)
    ends = [
        f"{scheme} seed {seed}: {curve[0]['value']:.1%} at {curve[0]['length']}, "
        f"{curve[-1]['value']:.1%} at {curve[-1]['length']}"
        for (scheme, seed), curve in curves.items()
    ]
    label = f"Line chart of {metric} against length, task {task}. {'; '.join(ends)}."
    draw = partial(task_figure, run.scores, task, metric, run.train_length, styles=styles)
    return _chart(f"task-{task}-{metric}", label, draw)


def _convergence_charts(run: Run, styles: Mapping[str, Style]) -> list[Chart]:
    name = f"validation_{run.metric}"
    last = {
        key: found[-1]
        for key, rows in run.histories.items()
        if (found := [row[name] for row in rows if name in row])
    }
    if not last:
        return []
    settings = {"histories": run.histories, "metric": run.metric, "styles": styles}
    ends = "; ".join(f"{scheme} seed {seed}: {number(value)}" for (scheme, seed), value in last.items())
    label = f"Line chart of validation {run.metric} against training steps. At the end: {ends}."
    charts = [_chart("convergence", label, partial(convergence_figure, **settings))]
    if len({scheme for scheme, _ in last}) > 1:
        label = f"The same lines of validation {run.metric}, one small chart a scheme."
        charts.append(_chart("convergence-panels", label, partial(convergence_panels_figure, **settings)))
    return charts
