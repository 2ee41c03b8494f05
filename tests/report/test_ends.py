from typing import Any

import pytest

from bipe.report.axes import Shape
from bipe.report.ends import ends_figure
from bipe.report.palette import COLOURS, scheme_styles

Records = list[dict[str, Any]]
SHAPES: list[Shape] = ["wide", "narrow"]


def rows(scheme: str, ends: list[tuple[float, float, float]]) -> Records:
    """Perplexity at 128, 256 and 1,024 tokens, a triple for each seed."""
    common = {"scheme": scheme, "protocol": "blocks", "metric": "perplexity"}
    return [
        common | {"seed": seed, "length": length, "value": value, "low": value - 1, "high": value + 1}
        for seed, values in enumerate(ends)
        for length, value in zip((128, 256, 1024), values, strict=True)
    ]


def marks(figure: Any, hollow: bool) -> dict[float, list[float]]:
    """The values marked in each row, from the top."""
    ground = COLOURS["ground"].light
    found = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    return {
        float(line.get_ydata()[0]): [float(x) for x in line.get_xdata()]
        for line in found
        if (line.get_markerfacecolor() == ground) == hollow
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_each_seed_is_marked_at_the_shortest_and_the_longest_length_the_best_on_top(shape: Shape) -> None:
    scores = rows("rope", [(50.0, 70.0, 90.0), (52.0, 70.0, 94.0)]) + rows("alibi", [(60.0, 60.0, 61.0)])
    figure = ends_figure(scores, "blocks", shape=shape)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["alibi", "rope"]
    assert marks(figure, hollow=True) == {0: [60.0], 1: [50.0, 52.0]}
    assert marks(figure, hollow=False) == {0: [61.0], 1: [90.0, 94.0]}
    assert axes.yaxis_inverted()
    assert [label.get_color() for label in axes.get_yticklabels()] == [
        scheme_styles(["rope", "alibi"])[name].colour for name in ("alibi", "rope")
    ]
    assert " ".join(axes.get_xlabel().split()) == "perplexity, at 128 tokens (hollow) and at 1,024 (filled)"


def test_what_explodes_leaves_through_the_side_and_says_how_far() -> None:
    scores = rows("rope", [(50.0, 900.0, 1.8e6)]) + rows("alibi", [(60.0, 60.0, 61.0)])
    axes = ends_figure(scores, "blocks").axes[0]
    assert axes.get_xlim()[1] < 250
    assert [text.get_text() for text in axes.texts] == ["→ 1.8M"]


def test_a_wide_range_is_logarithmic_and_says_so() -> None:
    axes = ends_figure(
        rows("rope", [(50.0, 90.0, 260.0)]) + rows("nope", [(90.0, 90.0, 90.0)]), "blocks"
    ).axes[0]
    assert axes.get_xscale() == "log" and axes.get_yscale() == "linear"
    assert axes.get_xlabel().startswith("perplexity, log scale")


def test_without_scores_of_the_protocol_there_is_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="no perplexity of protocol 'same_targets'"):
        ends_figure(rows("rope", [(1.0, 1.0, 1.0)]), "same_targets")
