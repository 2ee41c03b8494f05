import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bipe.report.axes import CONTEXT, Shape, spread
from bipe.report.convergence import convergence_figure, convergence_panels_figure
from bipe.report.palette import COLOURS, scheme_styles, theme_css
from bipe.report.plots import (
    length_curve_figure,
    perplexity_curves,
    place_figure,
    scheme_panels_figure,
    segment_histogram_figure,
    task_figure,
    width_figure,
)
from bipe.report.rendering import figure_png, figure_svg

Records = list[dict[str, Any]]
SHAPES: list[Shape] = ["wide", "narrow"]
HISTORY = [{"step": 50, "validation_perplexity": 400.0}, {"step": 100, "validation_perplexity": 90.0}]


def curve(scheme: str, values: list[float], seed: int = 0) -> Records:
    common = {"scheme": scheme, "seed": seed, "protocol": "blocks", "metric": "perplexity"}
    return [
        common | {"length": 128 * 2**n, "value": value, "low": 0.9 * value, "high": 1.1 * value}
        for n, value in enumerate(values)
    ]


def lines(axes: Axes, colour: str, dashed: bool = False) -> list[list[float]]:
    """The heights of the lines of a colour; matplotlib writes the pattern of the truncation lines as '--'."""
    chosen = [
        line for line in axes.lines if line.get_color() == colour and (line.get_linestyle() == "--") == dashed
    ]
    return [[float(y) for y in line.get_ydata()] for line in chosen]  # type: ignore[union-attr]


def texts(figure: Figure) -> str:
    return " ".join(ElementTree.fromstring(figure_svg(figure, "chart", "label")).itertext())


@pytest.mark.parametrize("shape", SHAPES)
def test_each_seed_has_its_line_and_its_truncation_line(shape: Shape):
    rows = curve("rope", [60.0, 70.0], seed=0) + curve("rope", [61.0, 72.0], seed=1)
    axes = length_curve_figure(rows, "blocks", 128, shape=shape).axes[0]
    colour = scheme_styles(["rope"])["rope"].colour
    assert lines(axes, colour) == [[60.0, 70.0], [61.0, 72.0]]
    assert lines(axes, colour, dashed=True) == [[60.0, 60.0], [61.0, 61.0]]
    assert len(axes.collections) == 4  # a band and the bars of each seed


def test_a_band_holds_each_interval_from_end_to_end():
    band, _ = length_curve_figure(curve("rope", [60.0, 70.0]), "blocks", 128).axes[0].collections
    corners = band.get_paths()[0].vertices.tolist()
    for length, value in ((128, 60.0), (256, 70.0)):
        heights = [y for x, y in corners if x == length]
        assert (min(heights), max(heights)) == pytest.approx((0.9 * value, 1.1 * value))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_trained_length_is_marked_and_lengths_are_told_as_its_multiples(shape: Shape):
    figure = length_curve_figure(curve("rope", [60.0, 70.0, 90.0]), "blocks", 256, shape=shape)
    upright = [list(line.get_xdata()) for line in figure.axes[0].lines if list(line.get_ydata()) == [0, 1]]
    assert upright == [[256, 256]]
    assert re.findall(r"[\d.]+×", texts(figure)) == ["0.5×", "1×", "2×"]


@pytest.mark.parametrize(("values", "scale"), [([60.0, 70.0], "linear"), ([60.0, 400.0], "log")])
def test_the_axis_is_logarithmic_where_the_range_is_wide(values: list[float], scale: str):
    assert length_curve_figure(curve("rope", values), "blocks", 128).axes[0].get_yscale() == scale


@pytest.mark.parametrize("shape", SHAPES)
def test_an_explosion_leaves_the_other_curves_apart_and_is_named(shape: Shape):
    rows = curve("sinusoidal", [70.0, 1.25e6]) + curve("rope", [60.0, 80.0])
    figure = length_curve_figure(rows, "blocks", 128, shape=shape)
    assert figure.axes[0].get_ylim()[1] < 1000
    assert "sinusoidal ↑ 1.25M" in texts(figure)
    assert "↑ 1.25M" in texts(scheme_panels_figure(rows, "blocks", 128, shape=shape))


def test_a_curve_just_above_the_end_of_a_panel_is_shown_whole():
    rows = curve("rope", [60.0, 100.0])
    figure = scheme_panels_figure(rows, "blocks", 128)
    assert figure.axes[0].get_ylim()[1] > 110
    assert "↑" not in texts(figure)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("values", [[60.0], [60.0, 60.0], [1e6], [2.0, 1e9]])
def test_one_scheme_one_seed_or_one_length_is_drawn(values: list[float], shape: Shape):
    rows = curve("mine", values)
    for draw in (length_curve_figure, scheme_panels_figure):
        assert "mine" in texts(draw(rows, "blocks", 256, shape=shape))


def test_a_panel_for_each_scheme(scores: Records):
    figure = scheme_panels_figure(scores, "same_targets", 128)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["rope", "sinusoidal", "bipe-rope"]


@pytest.mark.parametrize("draw", [length_curve_figure, scheme_panels_figure])
def test_nothing_to_draw_is_an_error(draw: Any, scores: Records):
    with pytest.raises(ValueError, match="no perplexity of protocol 'other'"):
        draw(scores, "other", 128)


def test_convergence_takes_the_last_row_of_a_repeated_step():
    rows = [*HISTORY, {"step": 100, "loss": 4.5}, {"step": 100, "validation_perplexity": 88.0}]
    axes = convergence_figure({("rope", 0): rows, ("alibi", 0): []}).axes[0]
    assert lines(axes, scheme_styles(["rope"])["rope"].colour) == [[400.0, 88.0]]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_panel_of_convergence_has_every_seed_of_its_scheme_and_the_others_in_grey(shape: Shape):
    ends = {("rope", 0): 80.0, ("alibi", 0): 70.0, ("rope", 1): 82.0}
    histories = {
        key: [{"step": 100, "validation_perplexity": 90.0}, {"step": 200, "validation_perplexity": end}]
        for key, end in ends.items()
    }
    figure = convergence_panels_figure(histories, shape=shape)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["rope", "alibi"]
    styles = scheme_styles(["rope", "alibi"])
    rope, alibi = figure.axes
    assert lines(rope, styles["rope"].colour) == [[90.0, 80.0], [90.0, 82.0]]
    assert lines(rope, CONTEXT) == [[90.0, 70.0]]
    assert lines(alibi, styles["alibi"].colour) == [[90.0, 70.0]]
    assert lines(alibi, CONTEXT) == [[90.0, 80.0], [90.0, 82.0]]


@pytest.mark.parametrize("draw", [convergence_figure, convergence_panels_figure])
def test_convergence_without_histories_is_an_error(draw: Any):
    with pytest.raises(ValueError, match="No history holds a validation_perplexity"):
        draw({("rope", 0): [{"step": 1, "loss": 8.0}]})


def test_the_chart_of_a_task_shows_no_other():
    rows = [
        row | {"task": task, "metric": "accuracy"}
        for task, values in (("passkey", [0.5, 0.25]), ("multikey", [0.9, 0.8]))
        for row in curve("rope", values)
    ]
    axes = task_figure(rows, "passkey", "accuracy", 128).axes[0]
    assert lines(axes, scheme_styles(["rope"])["rope"].colour) == [[0.5, 0.25]]


def test_a_share_is_drawn_against_the_width():
    row = {"seed": 0, "metric": "accuracy", "length": 6}
    rows = {
        width: [
            row | {"scheme": name, "value": value + shift, "low": value + shift, "high": value + shift}
            for name, shift in (("rope", 0.0), ("alibi", 0.1))
        ]
        for width, value in ((64, 0.7), (32, 0.2))
    }
    axes = width_figure(rows, "accuracy").axes[0]
    styles = scheme_styles(["rope", "alibi"])
    assert lines(axes, styles["rope"].colour) == [[0.2, 0.7]]
    assert lines(axes, styles["alibi"].colour) == [[pytest.approx(0.3), pytest.approx(0.8)]]
    assert list(axes.get_xticks()) == [32, 64]
    with pytest.raises(ValueError, match="hold no accuracy"):
        width_figure({32: []}, "accuracy")


def test_the_histogram_shows_shares():
    lengths = {"128": {"histogram": [0, 1, 3]}, "64": {"histogram": [0, 2, 2]}, "32": {"histogram": [0, 0]}}
    drawn = segment_histogram_figure({"lengths": lengths}).axes[0].lines
    assert [line.get_label() for line in drawn] == ["64 tokens", "128 tokens"]
    assert [[float(y) for y in line.get_ydata()] for line in drawn] == [[50.0, 50.0], [25.0, 75.0]]  # type: ignore[union-attr]


def test_a_histogram_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="counts no segment"):
        segment_histogram_figure({"lengths": {"128": {"histogram": [0, 0]}}})


def test_curves_are_ordered_by_scheme_and_seed():
    rows = curve("b", [1.0], seed=1) + curve("a", [1.0]) + curve("b", [1.0], seed=0)
    assert list(perplexity_curves(rows, "blocks")) == [("b", 0), ("b", 1), ("a", 0)]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12).map(sorted))
def test_spread_labels_keep_their_order_and_distance(heights: list[float]):
    placed = spread(heights, gap=0.05)
    assert all(above - below > 0.05 - 1e-6 for below, above in pairwise(placed))
    assert placed[0] > -1e-9
    assert placed[-1] < 1 + 1e-9


def test_labels_that_fit_stay_where_they_are():
    assert spread([0.1, 0.5, 0.9], gap=0.05) == [0.1, 0.5, 0.9]


def test_the_same_figure_is_the_same_bytes(scores: Records):
    first, second = (length_curve_figure(scores, "blocks", 128) for _ in range(2))
    assert figure_svg(first, "chart", "label") == figure_svg(second, "chart", "label")
    assert figure_png(first, 60) == figure_png(second, 60)


def test_ids_of_charts_on_one_page_are_apart(scores: Records):
    figure = length_curve_figure(scores, "blocks", 128)
    found = [
        {element.get("id") for element in ElementTree.fromstring(figure_svg(figure, name, "label")).iter()}
        - {None}
        for name in ("one", "two")
    ]
    assert found[0]
    assert not found[0] & found[1]


def test_every_colour_of_a_chart_follows_the_theme(scores: Records):
    svg = figure_svg(length_curve_figure(scores, "blocks", 128), "chart", "label")
    for colour in COLOURS.values():
        svg = svg.replace(f", {colour.light})", ")")
    assert "#" not in svg.replace('href="#', "").replace("url(#", "")


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "$x^2$", 'a"b&c'])
def test_names_are_text_in_a_chart(text: str):
    for shape in SHAPES:
        assert text in texts(length_curve_figure(curve(text, [60.0, 70.0]), "blocks", 128, shape=shape))
    svg = ElementTree.fromstring(
        figure_svg(length_curve_figure(curve("rope", [60.0]), "blocks", 128), "chart", text)
    )
    assert svg.get("aria-label") == text


def test_a_scheme_looks_the_same_whatever_stands_beside_it():
    assert scheme_styles(["nope", "rope"])["rope"] == scheme_styles(["rope", "mine"])["rope"]


def test_twenty_schemes_look_different():
    styles = scheme_styles([f"scheme {n}" for n in range(20)] + ["rope"])
    assert len(set(styles.values())) == 21


def luminance(colour: str) -> float:
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("role", [role for role in COLOURS if role.startswith(("series", "ink", "muted"))])
@pytest.mark.parametrize("theme", [0, 1])
def test_text_colours_have_enough_contrast(role: str, theme: int):
    dark, light = sorted((luminance(COLOURS[role][theme]), luminance(COLOURS["ground"][theme])))
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_the_theme_names_every_role_twice():
    css = theme_css()
    assert all(css.count(f"--{role}:") == 2 for role in COLOURS)
    assert len({colour.light for colour in COLOURS.values()}) == len(COLOURS)


@pytest.mark.parametrize("shape", SHAPES)
def test_places_are_drawn_from_where_windows_say_something(shape: Shape):
    places = {
        ("rope", 0): [(4, 900.0), (16, 80.0), (32, 70.0), (64, 90.0)],
        ("alibi", 0): [(16, 60.0), (64, 50.0)],
    }
    axes = place_figure(places, 32, shape=shape).axes[0]
    styles = scheme_styles(["rope", "alibi"])
    assert lines(axes, styles["rope"].colour) == [[80.0, 70.0, 90.0]]
    assert lines(axes, styles["alibi"].colour) == [[60.0, 50.0]]
    assert axes.get_ylim()[1] < 200


def test_without_places_there_is_nothing_to_draw():
    with pytest.raises(ValueError, match="No run kept"):
        place_figure({("rope", 0): [(4, 900.0)]}, 32)


def test_what_is_near_the_largest_number_can_be_drawn() -> None:
    """As the validation perplexity of a run that diverges is."""
    history = [{"step": 50, "validation_perplexity": 400.0}, {"step": 100, "validation_perplexity": 1e304}]
    figure = convergence_figure({("rope", 0): history})
    assert figure_png(figure) and figure.axes[0].get_ylim()[1] < 1e120
