"""Intervals of means over windows."""

import math

import numpy as np
import pytest

from bipe.evaluation.intervals import interval

from .curves import noise


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    return interval(lambda total, count: total / count, values, np.ones_like(values))


@pytest.mark.parametrize("windows", [2, 31, 64, 1000])
def test_an_interval_holds_its_value(windows: int) -> None:
    values = noise(windows, 4)
    value, low, high = mean_interval(values)
    assert value == pytest.approx(values.mean())
    assert low <= value <= high
    assert low < high


def test_what_belongs_to_a_window_is_drawn_together() -> None:
    sizes = np.random.default_rng(0).integers(1, 100, 256).astype(np.float64)
    assert interval(lambda total, size: total / size, 3 * sizes, sizes) == pytest.approx((3.0, 3.0, 3.0))


def test_one_window_has_an_interval_of_no_width() -> None:
    assert mean_interval(np.array([3.0])) == (3.0, 3.0, 3.0)


def test_intervals_shrink_with_the_root_of_the_windows() -> None:
    widths = []
    for windows in (64, 1024):
        ends = [mean_interval(noise(windows, seed))[1:] for seed in range(10)]
        widths.append(np.mean([high - low for low, high in ends]))
    assert widths[0] / widths[1] == pytest.approx(4.0, rel=0.2)
    assert widths[1] == pytest.approx(2 * 1.96 / math.sqrt(1024), rel=0.2)


def test_intervals_hold_the_truth_about_95_times_in_100() -> None:
    ends = [mean_interval(noise(256, seed))[1:] for seed in range(100)]
    assert 88 <= sum(low <= 20 <= high for low, high in ends) <= 99


def test_intervals_of_neighbours_that_agree_are_as_wide_as_those_of_so_many_fewer() -> None:
    single, repeated = noise(32, 5), np.repeat(noise(32, 5), 8)
    assert mean_interval(repeated)[1:] == pytest.approx(mean_interval(single)[1:])
