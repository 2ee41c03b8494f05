"""What bipe needs is listed, pinned and licensed as the page says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def rows(text: str) -> list[tuple[str, ...]]:
    return re.findall(r"^\| ([a-z0-9-]+) \| ([^|]+) \| ([^|]+) \|$", text, flags=re.MULTILINE)[1:]


def test_the_page_lists_what_is_pinned_and_nothing_copyleft() -> None:
    listed = rows((ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8"))
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = {
        re.sub(r"[-_.]+", "-", name).lower(): version
        for name, version in re.findall(r"^([\w.-]+)==(\S+)$", constraints, flags=re.MULTILINE)
    }
    assert len(listed) > 50
    for name, version, licence in listed:
        assert pinned[name] == version, name
        assert "GPL" not in licence and licence != "unknown", name


@pytest.mark.skipif(sys.version_info[:2] != (3, 11) or sys.platform != "linux", reason="other markers hold")
def test_the_page_is_what_the_script_prints() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "licences")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.strip() in (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
