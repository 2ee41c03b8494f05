"""Losses of windows that no model has, drawn around what they should show."""

import math
from collections.abc import Sequence

import numpy as np

from bipe.evaluation.losses import WindowLosses


def curve_of(nll: Sequence[float] | np.ndarray, tokens: int = 4) -> WindowLosses:
    """Losses of windows in which only the losses matter."""
    windows = len(nll)
    counts = np.full(windows, tokens, dtype=np.int64)
    return WindowLosses(np.asarray(nll, dtype=np.float64), counts, counts * 0, math.nan, math.nan)


def noise(windows: int, seed: int, spread: float = 1.0) -> np.ndarray:
    return 20 + spread * np.random.default_rng(seed).standard_normal(windows)


def falling_curve(drops: dict[int, float], windows: int = 256) -> dict[int, WindowLosses]:
    """A curve whose loss falls by so much on arriving at each length, with noise that the windows share."""
    shared, level, curve = noise(windows, 0, spread=5.0), 0.0, {}
    for length, drop in drops.items():
        level -= drop
        curve[length] = curve_of(shared + level + 0.2 * (noise(windows, length) - 20))
    return curve
