"""The blocks of a run, and the order in which it sees them."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import default_data_collator


class Blocks(Protocol):
    """Blocks of equal length, as `bipe.data.pack` makes them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Tensor]:
        """`input_ids`, `labels` and whatever else the model reads of a block, `(T,)` int64 each."""
        ...


def batches(blocks: Blocks, indices: Sequence[int], size: int) -> Iterator[dict[str, Tensor]]:
    """Blocks by index, `size` at a time: `(B, T)` each; unlike a DataLoader this draws no random number."""
    for start in range(0, len(indices), size):
        yield default_data_collator([blocks[index] for index in indices[start : start + size]])


class SeededOrder(Sampler[int]):
    """Indices of blocks, all of them shuffled anew in each pass; the order depends on the seed alone.

    One sampler covers the whole run, however many passes over the data that is, so that every step has the
    same number of blocks and a resumed run finds its place by counting.

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

    def drawn(self, most: int) -> list[int]:
        """The blocks that the run sees at least once, ascending; of more than `most`, so many."""
        if self.draws >= self.blocks:
            seen = torch.arange(self.blocks)
        else:
            generator = torch.Generator().manual_seed(self.seed)
            seen = torch.randperm(self.blocks, generator=generator)[: self.draws].sort().values
        places = torch.linspace(0, len(seen) - 1, min(most, len(seen)), dtype=torch.float64).round().long()
        return seen[places].tolist()
