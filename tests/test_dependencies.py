"""What bipe needs is listed, pinned and licensed as the page says."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def rows(text: str) -> list[tuple[str, ...]]:
    return re.findall(r"^\| ([a-z0-9-]+) \| ([^|]+) \| ([^|]+) \|$", text, flags=re.MULTILINE)[1:]


def pins(name: str) -> dict[str, str]:
    """Versions by normalised name."""
    found = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): pinned for name, pinned in found}


AS_PINNED = version("torch").partition("+")[0] == pins("constraints.txt")["torch"]
"""False in the environment of the oldest releases."""


def test_the_oldest_releases_are_those_that_the_package_allows() -> None:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    bounds = [re.match(r"([\w-]+)>=([\d.]+)", line) for line in needed]
    lowest = {bound[1]: Version(bound[2]) for bound in bounds if bound}
    oldest = {name: Version(pinned) for name, pinned in pins("constraints-oldest.txt").items()}
    assert len(lowest) > 10 and oldest == lowest


def test_the_page_lists_what_is_pinned_and_nothing_copyleft() -> None:
    listed = rows((ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8"))
    pinned = pins("constraints.txt")
    assert len(listed) > 50
    for name, release, licence in listed:
        assert pinned[name] == release, name
        assert "GPL" not in licence and licence != "unknown", name


@pytest.mark.skipif(not AS_PINNED, reason="other releases are installed")
@pytest.mark.skipif(sys.version_info[:2] != (3, 11) or sys.platform != "linux", reason="other markers hold")
def test_the_page_is_what_the_script_prints() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "licences")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.strip() in (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
