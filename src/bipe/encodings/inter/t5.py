"""A learned bias for each bucket of distances."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from bipe.registry import check_number

from .base import Curve, DistanceBias, IndexEncoding, Relation, count_reached


class T5Bias(DistanceBias):
    """The row of a table that stands for the bucket of a distance."""

    def __init__(self, table: Tensor, bounds: Tensor, query_index: Tensor, key_index: Tensor) -> None:
        super().__init__(query_index, key_index)
        self.table, self.bounds = table, bounds

    def of_indices(self, query: Tensor, key: Tensor, heads: slice) -> Tensor:
        buckets = torch.bucketize(self.distances(query, key), self.bounds, right=True)
        values = self.table.float().T[heads].contiguous().index_select(1, buckets.flatten())
        return values.view(-1, *buckets.shape).transpose(0, 1)

    def curve(self) -> Curve:
        table = self.table.float()
        return lambda distance, query, head: table[count_reached(self.bounds, distance), head]


class T5(IndexEncoding):
    """T5's relative bias (Raffel et al. 2020, arXiv:1910.10683, section 2.1), for a decoder.

    The first half of the buckets hold one distance each; the others grow geometrically up to `max_distance`,
    and the last holds all beyond. The table is shared by all layers, as in T5.

    Options:
        buckets: number of buckets, an even one.
        max_distance: distance from which on all share the last bucket.
        index: what the distance counts.
    """

    def __init__(
        self, config: LlamaConfig, *, buckets: int = 32, max_distance: int = 128, index: str = "segment"
    ) -> None:
        super().__init__(config, index=index)
        self.table = nn.Parameter(torch.zeros(buckets, config.num_attention_heads))
        self.starts = bucket_starts(buckets, max_distance)

    @classmethod
    def validate(cls, config: LlamaConfig, **options: Any) -> None:
        super().validate(config, **options)
        buckets = options.get("buckets", 32)
        check_number("T5's buckets", buckets, 2, 2**16, whole=True)
        if buckets % 2:
            raise ValueError(f"T5's buckets must be an even number; got {buckets}.")
        check_number("T5's max_distance", options.get("max_distance", 128), buckets // 2 + 1, whole=True)

    def relate(self, query: Tensor, key: Tensor, dtype: torch.dtype) -> Relation:
        bounds = torch.tensor(self.starts[1:], device=query.device)
        return Relation(bias=T5Bias(self.table, bounds, query, key))

    @torch.no_grad()
    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.table, std=std)


def bucket_starts(buckets: int, max_distance: int) -> list[int]:
    """The first distance of each bucket.

    >>> bucket_starts(8, 16)
    [0, 1, 2, 3, 4, 6, 8, 12]
    """
    half = buckets // 2
    steps = (max_distance / half) ** (1 / half)
    # A distance that is a bucket's exact start must not fall to the one before by rounding.
    return [*range(half), *(-int(-half * steps**step * (1 - 1e-9) // 1) for step in range(half))]
