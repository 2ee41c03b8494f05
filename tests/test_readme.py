import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:Only .* windows:UserWarning")
def test_the_python_examples_print_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    example = "".join(re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    promised = re.findall(r"print\(.*\)  # (\[\[.*\]\])", example)
    assert len(promised) == 2
    assert printed[:2] == promised


def test_every_file_that_the_readme_links_to_is_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert len(links) >= 5
    assert [link for link in links if not (ROOT / link).exists()] == []
