"""The page of an experiment with several comparisons."""

import json
from pathlib import Path

import pytest

from bipe.report.experiment import write_experiment


def comparison(folder: Path, width: int, value: float) -> Path:
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps({"model": {"hidden_size": width}}), encoding="utf-8")
    row = {"scheme": "rope", "seed": 0, "task": "arithmetic", "protocol": "greedy", "metric": "accuracy"}
    row |= {"low": value, "high": value}
    rows = [row | {"length": 6, "value": value}, row | {"length": 8, "value": value / 2, "low": 0.0}]
    (folder / "scores.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return folder


@pytest.mark.parametrize("widths", [(32, 128), (48, 48)])
def test_comparisons_of_several_widths_are_charted(widths: tuple[int, int], tmp_path: Path) -> None:
    folders = [comparison(tmp_path / name, width, 0.25) for name, width in zip("ab", widths, strict=True)]
    write_experiment(tmp_path / "page.md", "Arithmetic", "Nothing.", folders, [], ["bipe compare"], 9000.0)
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page.endswith("\n\nThese commands took 2.5 CPU-hours.\n")
    assert "| rope | 25.0 % | 25.0 % |" in page
    differ = len(set(widths)) > 1
    assert ("(widths.png)" in page) is differ and (tmp_path / "widths.png").is_file() is differ
