"""A table of learned vectors that training looks up at random offsets."""

import torch
from torch import Tensor

from bipe.encodings.stretched import draw_stretched
from bipe.positions import Positions

from .learned import Learned


class Randomized(Learned):
    """A learned table whose rows are all trained, so that offsets may become longer than the trained ones.

    In training, each row of a batch draws gaps between neighbouring offsets, the same in all its segments,
    with a mean from 1 up to what makes its longest offset the table's last (after Ruoss et al. 2023,
    arXiv:2305.16843; see `RandomizedRope` for where ours departs). In evaluation an offset is itself.
    """

    @property
    def longest_offset(self) -> int | None:
        return self.embedding.num_embeddings - 1

    @property
    def cacheable(self) -> bool:
        return not self.training

    def forward(self, positions: Positions, dtype: torch.dtype) -> Tensor:
        offset = positions.offset
        if self.training:
            offset = draw_stretched(offset, self.embedding.num_embeddings / (offset.amax(dim=1) + 1))
        return super().forward(positions._replace(offset=offset), dtype)
