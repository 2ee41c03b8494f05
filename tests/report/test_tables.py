from typing import Any

import pytest

from bipe.report.tables import (
    Cell,
    Table,
    difference_table,
    markdown_table,
    number,
    overview_table,
    score_table,
    seeds_table,
    segment_table,
    sweep_table,
    verdict,
)

Records = list[dict[str, Any]]
DIFFERENCE = {"first": "rope", "second": "bipe-rope", "metric": "log_perplexity", "value": 0.25}


def cells(table: Table, scheme: str, seed: int) -> dict[str, Cell]:
    row = next(row for row in table.rows if row[0].text == scheme and row[1].text == str(seed))
    return dict(zip(table.header, row, strict=True))


@pytest.mark.parametrize("protocol", ["same_targets", "blocks"])
def test_every_cell_is_its_record(scores: Records, protocol: str):
    table = score_table(scores, protocol, {"rope": 0.002})
    wanted = [row for row in scores if row["protocol"] == protocol and row["metric"] == "perplexity"]
    for row in wanted:
        cell = cells(table, row["scheme"], row["seed"])[f"perplexity at {row['length']}"]
        assert cell == Cell(number(row["value"]), f"{number(row['low'])}–{number(row['high'])}")
    assert len(table.rows) * 4 == len(wanted)


def test_a_row_says_what_explains_its_numbers(scores: Records):
    row = cells(score_table(scores, "same_targets", {"rope": 0.002}), "rope", 1)
    assert row["parameters"].text == "3,000,000"
    assert row["learning rate"].text == "0.002"
    assert row["effective context"].text == "256"
    assert row["offsets beyond trained"].text == "1.5 %"
    assert row["tokens per segment"].text == "14.2"
    bits = next(r for r in scores if (r["seed"], r["metric"], r["length"]) == (1, "bits_per_byte", 1024))
    assert row["bits per byte at 1024"].text == number(bits["value"])


def test_a_metric_that_was_not_measured_has_no_column(scores: Records):
    perplexities = [row for row in scores if row["metric"] == "perplexity"]
    header = score_table(perplexities, "blocks").header
    assert "effective context" not in header
    assert not any(name.startswith("bits") for name in header)
    assert "effective context" not in score_table(scores, "blocks").header


def test_every_seed_has_its_own_row(scores: Records):
    for table in (score_table(scores, "blocks"), overview_table(scores, "same_targets")):
        assert [(row[0].text, row[1].text) for row in table.rows] == [
            (scheme, seed) for scheme in ("rope", "sinusoidal", "bipe-rope") for seed in ("0", "1")
        ]


def test_a_ratio_is_that_of_the_longest_length_to_the_shortest(scores: Records):
    table = overview_table(scores, "same_targets")
    assert cells(table, "rope", 0)["ratio"] == Cell("1.43×")  # exp(3 * 0.12)


def test_seeds_have_their_mean_between_the_smallest_and_the_largest():
    common = {"scheme": "rope", "metric": "perplexity", "length": 128}
    table = seeds_table(
        [common | {"seed": seed, "value": value} for seed, value in enumerate([1.0, 2.0, 6.0])]
    )
    assert table.rows == [[Cell("rope"), Cell("3"), Cell("3.00", "1.00–6.00")]]


def test_what_is_not_measured_is_a_dash(scores: Records):
    partial = [row for row in scores if (row["seed"], row["length"]) != (1, 512)]
    table = score_table(partial, "blocks")
    assert cells(table, "rope", 1)["perplexity at 512"] == Cell("–")
    assert cells(table, "rope", 0)["perplexity at 512"] != Cell("–")


def test_the_later_of_two_equal_rows_counts(scores: Records):
    again = scores[0] | {"value": 5.0, "low": 4.0, "high": 6.0}
    assert cells(score_table([*scores, again], "same_targets"), "rope", 0)["perplexity at 128"].text == "5.00"


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (-0.1, 0.5, "Includes 0: no difference shown."),
        (0.0, 0.5, "Includes 0: no difference shown."),
        (0.1, 0.5, "Excludes 0: rope's perplexity is 1.28 times bipe-rope's."),
    ],
)
def test_a_verdict_is_about_the_interval(low: float, high: float, text: str):
    assert verdict(DIFFERENCE | {"low": low, "high": high}) == text


def test_a_growth_verdict_speaks_of_growth():
    row = DIFFERENCE | {"metric": "log_perplexity_growth", "value": -0.5, "low": -0.6, "high": -0.4}
    assert verdict(row) == "Excludes 0: rope's growth ratio is 0.607 times bipe-rope's."


def test_a_huge_difference_has_a_verdict():
    assert "1.01e+304 times" in verdict(DIFFERENCE | {"value": 1e6, "low": 9e5, "high": 2e6})


def test_differences_start_with_the_longest_length():
    rows = [
        DIFFERENCE
        | {"seed": seed, "protocol": "blocks", "length": length, "base_length": 128, "windows": 300}
        | {"low": 0.1, "high": 0.4}
        for length in (128, 1024)
        for seed in (1, 0)
    ]
    table = difference_table(rows, "log_perplexity", "blocks")
    assert [(row[0].text, row[2].text) for row in table.rows] == [
        ("1,024", "0"),
        ("1,024", "1"),
        ("128", "0"),
        ("128", "1"),
    ]
    assert table.rows[0][3] == Cell("+0.250", "+0.100 to +0.400")


def test_the_sweep_marks_the_chosen_rate():
    rates = [(0.001, 140.0), (0.002, 121.0)]
    sweep = [{"scheme": "rope", "learning_rate": r, "validation_perplexity": p} for r, p in rates]
    table = sweep_table(sweep, {"rope": 0.002})
    assert table.header == ["scheme", "0.001", "0.002"]
    assert table.rows == [[Cell("rope"), Cell("140.0"), Cell("121.0", "chosen")]]


def test_segment_lengths_are_ordered_as_numbers():
    entry = {"mean": 12.5, "p50": 12, "p99": 26.5, "max": 39, "segments": 4000}
    table = segment_table({"lengths": {"1024": entry, "128": entry}})
    assert [row[0].text for row in table.rows] == ["128", "1,024"]
    assert [cell.text for cell in table.rows[0][1:]] == ["4,000", "12.5", "12", "26.5", "39"]


def test_markdown_reads_nothing_in_a_cell_as_markup():
    text = markdown_table(Table(["a"], [[Cell("<script>|`*\n&")]]))
    assert text.splitlines()[-1] == r"| &lt;script>\|\`\* &amp; |"
