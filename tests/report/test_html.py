import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bipe.records import read_records
from bipe.report.folder import read_run
from bipe.report.html import write_report
from bipe.report.tables import number

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Parsed(HTMLParser):
    """A page as its tags, the rows of its tables and its text; unbalanced tags are an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.rows: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "tr" in self._open:
            self.rows[-1] += f" {data.strip()}"


def test_the_page_is_returned_and_the_same_run_gives_the_same_bytes(run_dir: Path, reported: Path):
    assert write_report(run_dir) == run_dir / "report.html"
    for name in ("report.html", "summary.md"):
        assert (run_dir / name).read_bytes() == (reported / name).read_bytes()


def test_page_and_summary_hold_every_perplexity_of_every_seed(reported: Path):
    page = Parsed((reported / "report.html").read_text(encoding="utf-8"))
    summary = (reported / "summary.md").read_text(encoding="utf-8").splitlines()
    for scheme in ("rope", "sinusoidal", "bipe-rope"):
        for seed in (0, 1):
            values = [
                number(row["value"])
                for row in read_records(reported / "scores.jsonl")
                if (row["scheme"], row["seed"], row["metric"], row["protocol"])
                == (scheme, seed, "perplexity", "blocks")
            ]
            assert any(all(value in row for value in values) for row in page.rows)
            assert any(line.startswith(f"| {scheme} | {seed} | {values[0]} (") for line in summary)


def test_the_page_needs_nothing_from_elsewhere(reported: Path):
    page = Parsed((reported / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    loads = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset")]
    assert all(value == "data:," or str(value).startswith("#") for value in loads)
    assert "@import" not in page.text


def test_every_chart_is_there_twice_and_says_what_it_shows(reported: Path):
    page = (reported / "report.html").read_text(encoding="utf-8")
    labels = re.findall(r'<svg [^>]*role="img" aria-label="([^"]+)"', page)
    assert len(labels) == 18  # three charts for each protocol, two of convergence, segments; wide and narrow
    assert "rope seed 1: 60.5 at 128, 86.7 at 1024" in labels[0]


def test_the_page_says_how_it_is_to_be_read(reported: Path):
    text = " ".join(Parsed((reported / "report.html").read_text(encoding="utf-8")).text.split())
    assert "A flat curve alone proves only locality" in text
    assert "cutting every text to that length" in text
    assert "The test text is one book." in text
    assert "Excludes 0: rope's growth ratio is 1.35 times bipe-rope's." in text
    assert "bipe compare --data books --out run" in text
    assert "books/7.txt and 4 more (12 documents, 3,412,345 tokens)" in text
    assert "2.13.0+cpu" in text
    assert " 12.5 12 26 39 " in text  # tokens per segment, whole numbers as such


def test_a_finished_run_is_not_called_unfinished(reported: Path):
    assert "Unfinished" not in (reported / "report.html").read_text(encoding="utf-8")


def test_charts_of_an_earlier_report_are_gone(run_dir: Path):
    for name in ("places.png", "passkey_choice_accuracy.png", "mine.png"):
        (run_dir / name).write_bytes(b"")
    write_report(run_dir)
    assert {path.name for path in run_dir.glob("*.png")} == {"ends.png", "length_curve.png", "mine.png"}


def test_an_unfinished_run_says_what_is_missing(run_dir: Path):
    path = run_dir / "scores.jsonl"
    kept = [
        row
        for row in read_records(path)
        if row["scheme"] != "sinusoidal"
        and not (row["scheme"] == "bipe-rope" and row["protocol"] == "blocks" and row["length"] > 256)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    (run_dir / "differences.jsonl").unlink()
    (run_dir / "segments.json").unlink()
    text = Parsed(write_report(run_dir).read_text(encoding="utf-8")).text
    summary = (run_dir / "summary.md").read_text(encoding="utf-8")
    for written in (text, summary):
        assert "2 of 6 runs are complete" in written
        assert "sinusoidal, seed 1: no perplexity yet" in written
        assert "bipe-rope, seed 0: no perplexity for blocks at 512, blocks at 1024" in written


def test_scores_alone_make_a_report(run_dir: Path):
    for path in run_dir.rglob("*"):
        if path.is_file() and path.name != "scores.jsonl":
            path.unlink()
    text = Parsed(write_report(run_dir).read_text(encoding="utf-8")).text
    assert "No training history in this folder." in text
    assert "Unfinished" not in text


def test_too_few_windows_are_said_to_be_too_few(run_dir: Path):
    path = run_dir / "scores.jsonl"
    rows = [row | {"windows": 40} for row in read_records(path)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_report(run_dir)
    assert "Protocol blocks: only 40 windows of" in (run_dir / "summary.md").read_text(encoding="utf-8")


def test_names_and_commands_are_text(make_run: Callable[..., Path]):
    evil = "<script>alert(1)<x>"
    folder = make_run([evil, "rope"])
    path = folder / "settings.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["command"] = settings["notes"][0] = f"bipe {evil} & \"'"
    settings["model"] = {evil: evil}
    path.write_text(json.dumps(settings), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps({evil: evil}), encoding="utf-8")
    page = Parsed(write_report(folder).read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert "x" not in page.tags
    assert page.text.count(f"bipe {evil} & \"'") == 2
    assert any(row.strip().startswith(evil) for row in page.rows)
    rendered = [
        line for line in (folder / "summary.md").read_text().splitlines() if not line.startswith("    ")
    ]
    assert "<script" not in "\n".join(rendered)


def test_a_folder_without_scores_is_an_error(tmp_path: Path):
    with pytest.raises(
        ValueError,
        match=r"holds no perplexity or other score in scores\.jsonl.*--out folder of `bipe compare`",
    ):
        write_report(tmp_path)


def test_a_whole_number_beyond_all_charts_is_shown(run_dir: Path):
    rows = (run_dir / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(rows[0]) | {"value": 10**30, "high": 10**30}
    (run_dir / "scores.jsonl").write_text("\n".join((json.dumps(row), *rows[1:])) + "\n", encoding="utf-8")
    assert write_report(run_dir).is_file()


@pytest.mark.parametrize(
    ("content", "reason"), [("{", "is no JSON object"), ("[1]", "holds list, not a JSON object")]
)
def test_a_broken_json_file_is_named(run_dir: Path, content: str, reason: str):
    (run_dir / "settings.json").write_text(content)
    with pytest.raises(ValueError, match=rf"settings\.json {reason}.*Repair or delete it"):
        read_run(run_dir)


def test_a_run_is_planned_and_measured_schemes(run_dir: Path):
    path = run_dir / "settings.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | {"schemes": ["alibi", "rope"], "seeds": [3]}
    path.write_text(json.dumps(settings), encoding="utf-8")
    run = read_run(run_dir)
    assert run.schemes == ["alibi", "rope", "sinusoidal", "bipe-rope"]
    assert run.seeds == [0, 1, 3]
