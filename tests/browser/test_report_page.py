"""The report in a headless Chromium: `make test-browser`."""

import json
from pathlib import Path
from typing import Any

import pytest

from bipe.report.html import write_report

pytestmark = pytest.mark.browser

SCHEMES = ("rope", "sinusoidal", "bipe-rope", "<script>alert(1)")
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
VIEWS = [(390, False), (390, True), (1280, False), (1280, True)]

# Shown charts with what they draw: a path or text of no size would be a chart that failed.
CHARTS = """[...document.querySelectorAll('svg')].filter(svg => svg.getClientRects().length).map(svg => {
  const box = svg.getBoundingClientRect();
  const parts = [...svg.querySelectorAll('path, use, text')].filter(part => !part.closest('defs'));
  const size = part => { const b = part.getBoundingClientRect(); return b.width + b.height; };
  const seen = parts.filter(part => size(part) > 0);
  return {width: box.width, height: box.height, right: box.right, drawn: seen.length,
    smallest: Math.min(...[...svg.querySelectorAll('text')].map(t => t.getBoundingClientRect().height))};
})"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
BACKGROUND = "getComputedStyle(document.documentElement).backgroundColor"
LINE_COLOUR = "getComputedStyle(document.querySelector('svg text')).fill"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "run"
    histories = [(scheme, seed) for scheme in SCHEMES for seed in (0, 1, 2)]
    for scheme, seed in histories:
        rows = [{"step": 50 * n, "validation_perplexity": 900 / n + 10 * seed} for n in range(1, 12)]
        write_lines(folder / "runs" / f"{scheme}-{seed}" / "history.jsonl", rows)
    write_lines(folder / "scores.jsonl", [row for run in histories for row in score_rows(*run)])
    write_lines(folder / "differences.jsonl", [difference_row(length) for length in LENGTHS])
    counts = [0, 400, 900, 700, 300, 100, 20]
    entry = {"mean": 2.6, "p50": 2, "p99": 6, "max": 6, "segments": sum(counts), "histogram": counts}
    write_json(folder / "segments.json", {"rule": "paper", "lengths": {str(n): entry for n in LENGTHS}})
    write_json(folder / "environment.json", {"python": "3.11.7", "processor": "x" * 200})
    planned = {
        "schemes": [*SCHEMES, "alibi"],
        "seeds": [0, 1, 2],
        "lengths": list(LENGTHS),
        "train_length": 128,
    }
    write_json(folder / "settings.json", planned | {"command": "bipe compare --data " + "a" * 300})
    return write_report(folder)


def score_rows(scheme: str, seed: int) -> list[dict[str, Any]]:
    growth = {"sinusoidal": 7.0, "rope": 1.1}.get(scheme, 1.01)
    common = {"scheme": scheme, "seed": seed, "task": "length-curve", "metric": "perplexity", "windows": 300}
    common |= {"tokens": 9600, "tokens_per_segment": 14.0, "offsets_beyond_trained": 0.0, "steps": 700}
    rows: list[dict[str, Any]] = []
    for protocol in ("same_targets", "blocks"):
        for n, length in enumerate(LENGTHS):
            value = (60 + seed) * growth**n
            interval = {"value": value, "low": 0.95 * value, "high": 1.05 * value}
            rows.append(common | interval | {"protocol": protocol, "length": length, "parameters": 3_000_000})
    return rows


def difference_row(length: int) -> dict[str, Any]:
    pair = {
        "first": "rope",
        "second": "bipe-rope",
        "seed": 0,
        "protocol": "blocks",
        "metric": "log_perplexity",
    }
    return pair | {
        "length": length,
        "base_length": 128,
        "value": 0.2,
        "low": 0.1,
        "high": 0.3,
        "windows": 300,
    }


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(("width", "dark"), VIEWS)
def test_the_page_is_whole_at_every_width_and_theme(page: Any, report: Path, width: int, dark: bool):
    page.open(report, width=width, dark=dark)
    assert page.problems == []
    assert page.evaluate(OVERFLOW) == 0
    charts = page.evaluate(CHARTS)
    assert len(charts) == 6
    for chart in charts:
        assert chart["width"] > 300
        assert chart["height"] > 150
        assert chart["right"] <= width
        assert chart["drawn"] > 25
        assert chart["smallest"] >= 9


def test_the_theme_reaches_page_and_charts(page: Any, report: Path):
    found = []
    for dark in (False, True):
        page.open(report, width=1280, dark=dark)
        found.append((page.evaluate(BACKGROUND), page.evaluate(LINE_COLOUR)))
    assert found == [("rgb(255, 255, 254)", "rgb(90, 99, 113)"), ("rgb(21, 24, 29)", "rgb(162, 171, 184)")]


def test_tables_scroll_in_their_own_box(page: Any, report: Path):
    page.open(report, width=390)
    boxes = "[...document.querySelectorAll('.scroll')]"
    wide = page.evaluate(f"{boxes}.map(box => [box.scrollWidth > box.clientWidth, box.tabIndex])")
    assert [True, 0] in wide
    assert all(tab == 0 for _, tab in wide)


def test_nothing_runs_in_the_page(page: Any, report: Path):
    page.open(report, width=1280)
    assert page.evaluate("document.scripts.length") == 0
    assert page.evaluate("document.body.innerText.includes('<script>alert(1)')") is True
