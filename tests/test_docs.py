"""Every block of code in the documentation is run, and prints what it says."""

import re
import shlex
from pathlib import Path

import pytest

from bipe_cli.main import app, run

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(
    path for path in (found.relative_to(DOCS) for found in DOCS.rglob("*.md")) if path.parts[0] != "dev"
)
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
PROMISE = re.compile(r"^print\(.*\)  # (.*)$", flags=re.MULTILINE)
WITH_CODE = [page for page in PAGES if BLOCK.search((DOCS / page).read_text(encoding="utf-8"))]


def test_most_pages_have_code() -> None:
    assert len(WITH_CODE) >= 8


@pytest.mark.filterwarnings("ignore:Only .* windows:UserWarning")
@pytest.mark.parametrize("page", WITH_CODE, ids=str)
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for kind, code in BLOCK.findall((DOCS / page).read_text(encoding="utf-8")):
        capsys.readouterr()
        if kind == "python":
            exec(compile(code, str(page), "exec"), names)
            assert capsys.readouterr().out.splitlines() == PROMISE.findall(code)
            continue
        for line in code.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "bipe"
            assert run(app, arguments) == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert link.startswith("http") or (DOCS / page.parent / link).exists(), link
