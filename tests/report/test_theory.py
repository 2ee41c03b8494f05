"""What trained models tell of automata, as tables and as a chart."""

from pathlib import Path

import pytest

from bipe.report.experiment import write_experiment
from bipe.report.theory import has_learned, learned_figure, learned_table, reach_table, smallest_widths

RIGHT = {
    ("bipe-rope", 0): {8: 0.7, 16: 0.995, 32: 0.999},
    ("bipe-rope", 1): {8: 0.991, 16: 0.98, 32: 0.992},
    ("sinusoidal", 0): {8: 0.5, 16: 0.6, 32: 0.7},
}
"""The share of symbols that a model is right after, by width, of each scheme and seed."""


def made(states: int = 3) -> list[dict]:
    rows = []
    for (scheme, seed), by_width in RIGHT.items():
        for width, value in by_width.items():
            row = {"scheme": scheme, "seed": seed, "states": states, "classes": 40 + seed, "width": width}
            row |= {"parameters": 100 * width + seed, "task": "automaton", "metric": "accuracy"}
            rows += [
                row | {"protocol": "words", "length": 64, "value": value},
                row | {"protocol": "words", "length": 256, "value": value - 0.2},
                *(
                    row | {"protocol": "from_segment", "length": before, "value": value - before / 100}
                    for before in (0, 8, 16)
                ),
            ]
    return rows


def test_the_smallest_width_holds_for_the_larger_ones_too() -> None:
    table = smallest_widths(made())
    assert table.header == ["states of each level", "classes", "scheme", "seed 0", "seed 1"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["3", "40–41", "bipe-rope", "16", "32"],  # of seed 1, width 8 was a chance hit
        ["3", "40", "sinusoidal", "none", "–"],
    ]


@pytest.mark.parametrize(("width", "learned"), [(8, False), (16, True)])
def test_a_model_has_learned_what_it_tells_in_words_as_long_as_trained(width: int, learned: bool) -> None:
    rows = [row for row in made() if (row["scheme"], row["seed"], row["width"]) == ("bipe-rope", 0, width)]
    assert has_learned(rows) is learned
    assert not has_learned([row for row in rows if row["protocol"] == "from_segment"])


def test_the_table_has_every_width_and_both_lengths() -> None:
    table = learned_table(made())
    assert table.header[-2:] == ["at 64 symbols", "at 256 symbols"]
    assert [cell.text for cell in table.rows[1]] == [
        "3",
        "bipe-rope",
        "16",
        "1,600–1,601",
        "2",
        "98.8 %",
        "78.8 %",
    ]
    assert table.rows[1][-1].note == "78.0 %–79.5 %"
    assert len(table.rows) == 6 and table.rows[-1][-1].note == ""


def test_the_reach_is_that_of_the_widest_model_of_each_seed() -> None:
    narrow = [row for row in made() if (row["seed"], row["width"]) != (1, 32)]  # seed 1 needed width 16
    table = reach_table(narrow)
    assert table.header == ["states of each level", "scheme", "from 0", "from 8", "from 16"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["3", "bipe-rope", "98.0 %–99.9 %", "90.0 %–91.9 %", "82.0 %–83.9 %"],
        ["3", "sinusoidal", "70.0 %", "62.0 %", "54.0 %"],
    ]


def test_the_chart_shows_what_was_measured() -> None:
    figure = learned_figure(made(2) + made(3))
    above, below = figure.axes[:2], figure.axes[2:]
    assert [axes.get_title(loc="left") for axes in above] == ["2 x 2 states", "3 x 3 states"]
    drawn = [(line.get_linestyle(), list(line.get_ydata())) for line in above[0].lines]
    expected = [
        (dash, [value - less for value in RIGHT[run].values()])
        for runs in ([("bipe-rope", 0), ("bipe-rope", 1)], [("sinusoidal", 0)])
        for dash, less in (("-", 0.0), ("--", 0.2))
        for run in runs
    ]
    assert drawn == [(dash, pytest.approx(values)) for dash, values in expected]
    far = [list(line.get_ydata()) for line in below[1].lines]
    ends = [RIGHT[run][32] for run in (("bipe-rope", 0), ("bipe-rope", 1), ("sinusoidal", 0))]
    assert far == [pytest.approx([end, end - 0.08, end - 0.16]) for end in ends]
    with pytest.raises(ValueError, match="no trained automata"):
        learned_figure([])


def test_the_page_has_chart_and_tables(tmp_path: Path) -> None:
    write_experiment(tmp_path / "page.md", "Automata", "Nothing.", [], made(), ["bipe theory learn"], 90.0)
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "(learned.png)" in page and (tmp_path / "learned.png").read_bytes().startswith(b"\x89PNG")
    assert "## Smallest width that is right after 99.0 % of the symbols" in page
    assert "| 3 | 40–41 | bipe-rope | 16 | 32 |" in page and "from_segment" not in page
    assert "| 3 | bipe-rope | 99.2 %–99.9 % | 91.2 %–91.9 % | 83.2 %–83.9 % |" in page
