"""95 % intervals of perplexities and of their differences, from losses of neighbouring windows."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import bootstrap

BLOCKS = 32
"""Neighbouring windows are drawn together, in about so many blocks: their losses are not independent."""

RESAMPLES = 2000

Array = np.ndarray


def _block_sums(values: Array) -> Array:
    """Sums over blocks of neighbours, `(blocks,)` float64, of one value a window."""
    return np.array(
        [block.sum() for block in np.array_split(values, min(BLOCKS, len(values)))], dtype=np.float64
    )


def interval(statistic: Callable[..., Array], *window_values: Array) -> tuple[float, float, float]:
    """A statistic of sums over windows, with its 95 % interval (percentile bootstrap over blocks, scipy).

    Args:
        statistic: takes as many sums, each a float or an array, as there are `window_values`.
        window_values: each `(windows,)`, all of the same windows in the same order, which are drawn together.

    Returns:
        The value on all windows, and the ends of the interval, which are the value itself where there is one
        window.
    """
    value = float(statistic(*(values.sum(dtype=np.float64) for values in window_values)))
    sums = [_block_sums(values) for values in window_values]
    if len(sums[0]) < 2:
        return value, value, value

    def resampled(*blocks: Array, axis: int) -> Array:
        return statistic(*(block.sum(axis=axis) for block in blocks))

    result = bootstrap(
        sums,
        resampled,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return value, float(result.confidence_interval.low), float(result.confidence_interval.high)


def mean_loss_difference(
    losses: Sequence[Array], signs: Sequence[int], tokens: Array
) -> tuple[float, float, float]:
    """A signed sum of log perplexities on the same windows, with its paired 95 % interval.

    Args:
        losses: each `(windows,)`, summed negative log likelihoods in nats.
        signs: +1 or -1 for each of `losses`.
        tokens: `(windows,)`, tokens scored in each window.
    """
    signed = np.sum([sign * loss for sign, loss in zip(signs, losses, strict=True)], axis=0)
    return interval(lambda loss, count: loss / count, signed, tokens)
