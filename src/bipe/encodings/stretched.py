"""Random indices in ascending order, which every prefix of a text shares with the text."""

import torch
from torch import Tensor

_FACTORS = (-0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
"""Odd factors of SplitMix64 (Steele et al. 2014), as signed numbers."""


def stretch_indices(index: Tensor, seed: Tensor, stretch: Tensor) -> Tensor:
    """Map index `i` to the sum of the first i of a row's random gaps, which are geometric and at least 1.

    A gap depends on the row's seed and on its place alone, so an index is mapped alike in every text.

    >>> stretch_indices(torch.tensor([[0, 1, 5]]), torch.tensor([0]), torch.tensor([1.0])).tolist()
    [[0, 1, 5]]

    Args:
        index: `(B, T)` int64, at least 0.
        seed: `(B,)` or `(1,)` int64.
        stretch: like the seed, float32: the mean gap, at least 1.

    Returns:
        `(B, T)` int64, 0 where the index is 0 and strictly ascending in it.
    """
    last = int(index.max()) if index.numel() else 0
    place = torch.arange(1, last + 1, device=index.device)
    share = _uniform(seed[:, None] + _FACTORS[0] * place)
    # The logarithm of the share of gaps that go on; of none where the mean is 1.
    going_on = torch.log1p(-1 / stretch.double().clamp(min=1))[:, None]
    gaps = 1 + torch.floor(share.log() / going_on).long()
    sums = torch.nn.functional.pad(gaps.cumsum(dim=-1), (1, 0))
    return sums.expand(len(index), -1).gather(-1, index.clamp(max=last))


def draw_stretched(index: Tensor, most: Tensor) -> Tensor:
    """As `stretch_indices`, with a seed and a mean gap drawn for each row.

    Args:
        index: `(B, T)` int64, at least 0.
        most: `(B,)` float32, the largest mean gap; gaps are drawn evenly in their logarithm from 1 on.
    """
    seeds = torch.randint(-(2**62), 2**62, most.shape, device=index.device)
    means = most.clamp(min=1) ** torch.rand(most.shape, device=index.device)
    return stretch_indices(index, seeds, means)


def _uniform(number: Tensor) -> Tensor:
    """A number above 0 and at most 1 for each int64, float64, by SplitMix64's mixing."""
    for shift, factor in ((30, _FACTORS[1]), (27, _FACTORS[2]), (31, 1)):
        number = (number ^ ((number >> shift) & (2 ** (64 - shift) - 1))) * factor
    return (((number >> 11) & (2**53 - 1)).double() + 1) / 2**53
