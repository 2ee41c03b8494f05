"""The order in which a run sees its blocks."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class SeededOrder(Sampler[int]):
    """Indices of blocks, all of them shuffled anew in each pass; the order depends on the seed alone.

    One sampler covers the whole run, passes over the data included, so that every step has the same number of blocks
    and a resumed run finds its place by counting.

    >>> sorted(SeededOrder(3, 6, seed=0))
    [0, 0, 1, 1, 2, 2]

    Args:
        blocks: number of blocks to draw from.
        draws: number of blocks the run sees.
        seed: decides the order.
    """

    def __init__(self, blocks: int, draws: int, seed: int) -> None:
        self.blocks = blocks
        self.draws = draws
        self.seed = seed

    def __len__(self) -> int:
        return self.draws

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        for start in range(0, self.draws, self.blocks):
            yield from torch.randperm(self.blocks, generator=generator)[: self.draws - start].tolist()

    def drawn(self) -> list[int]:
        """The blocks that the run sees at least once, ascending."""
        return list(range(self.blocks)) if self.draws >= self.blocks else sorted(self)
