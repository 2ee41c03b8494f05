"""Folders of results whose files were harmed: a page, or one clear error; what they say is shown as text."""

import json
import os
import random
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ..report.conftest import write_run
from .conftest import Answer
from .test_checkpoints import VALUES, mutated

HARMED = int(os.environ.get("BIPE_HARMED", "12"))
FILES = (
    "scores.jsonl",
    "differences.jsonl",
    "settings.json",
    "environment.json",
    "segments.json",
    "runs/rope-0/history.jsonl",
)
EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "</style><script>alert(1)</script>",
    "--></svg>]]><b onmouseover=x>",
    "&lt;b&gt;&amp;#60;",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% for x in y %}",
    "$x^2$ \\frac{",
    "\0\x1b[2J\x7f\u202e\u2028",
    "| ` * [a](javascript:b) \n# c",
    "é" * 300,
)


class Page(HTMLParser):
    """The tags of a page and the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("whole") / "run", ["rope", "bipe-rope"])


def copied(whole: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "alone" / "run"
    shutil.rmtree(folder.parent, ignore_errors=True)
    shutil.copytree(whole, folder)
    return folder


def reported(answer: Answer, folder: Path) -> tuple[int, str]:
    found = answer("report", folder)
    assert [path.name for path in folder.parent.iterdir()] == ["run"]
    return found


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in items for place in leaves(part, (*path, key)))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", FILES)
def test_bytes_of_any_kind_are_shown_or_refused(
    file: str, answer: Answer, whole: Path, tmp_path: Path
) -> None:
    draw = random.Random(file)
    for _ in range(max(2, HARMED // 4)):
        folder = copied(whole, tmp_path)
        (folder / file).write_bytes(mutated((whole / file).read_bytes(), draw))
        status, said = reported(answer, folder)
        assert status == 0 or len(said) < 2000


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", FILES)
def test_values_of_any_kind_are_shown_or_refused(
    file: str, answer: Answer, whole: Path, tmp_path: Path
) -> None:
    draw = random.Random(file)
    for _ in range(max(2, HARMED // 4)):
        folder = copied(whole, tmp_path)
        text = (whole / file).read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()] if file.endswith("l") else json.loads(text)
        place = draw.choice(leaves(rows)[1:])
        put(rows, place, draw.choice((*VALUES, *EVIL)))
        lines = map(json.dumps, rows) if file.endswith("l") else [json.dumps(rows)]
        (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
        status, said = reported(answer, folder)
        assert status == 0 or len(said) < 2000, place


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font")
def test_what_a_folder_says_is_text(answer: Answer, whole: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    folder = copied(whole, tmp_path)
    assert reported(answer, folder)[0] == 0
    plain = Page((folder / "report.html").read_text(encoding="utf-8"))
    for _ in range(max(2, HARMED // 6)):
        folder = copied(whole, tmp_path)
        evil = {name: (draw.choice(EVIL) + draw.choice(EVIL))[:100] for name in ("a", "b", "c")}
        for name in ("settings", "environment"):
            content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            for place in leaves(content):
                there = content
                for key in place:
                    there = there[key]
                if (
                    isinstance(there, str)
                    and place[:1] != ("protocols",)
                    and place[:1] != ("schemes",)
                    and place[-1] != "scheme"
                ):
                    put(content, place, draw.choice(list(evil.values())))
            content |= (
                {"model": {evil["a"]: evil["b"]}, "notes": [evil["c"]]}
                if name == "settings"
                else {evil["a"]: evil["c"]}
            )
            (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        rows = [
            json.loads(line) for line in (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        harness = {
            "task": evil["a"],
            "protocol": evil["b"],
            "metric": evil["c"],
            "value": 0.5,
            "low": 0.4,
            "high": 0.6,
        }
        rows += [{**row, "protocol": evil["a"]} for row in rows if row["protocol"] == "blocks"]
        rows += [
            {**rows[0], **harness},
            {**rows[0], "offsets_beyond_trained": None, "tokens_per_segment": None},
        ]
        (folder / "scores.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
        status, said = reported(answer, folder)
        assert status == 0, said
        page = Page((folder / "report.html").read_text(encoding="utf-8"))
        assert page.tags <= plain.tags and page.attributes <= plain.attributes
        assert all(link.startswith(("#", "data:")) for link in page.links)
        assert "".join(evil["c"].split()) in "".join(page.text.split())
