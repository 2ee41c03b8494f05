"""One rotation for two levels: fast channels count tokens, slow ones segments."""

from typing import Any

import torch
from transformers import LlamaConfig

from bipe.positions import Positions

from .base import Relation, Rotation
from .rope import Rope, refuse_scaling


class Hirope(Rope):
    """HiRoPE (Zhang et al. 2024, arXiv:2403.19115): RoPE with an index for each half of its channel pairs.

    The lower half, which turns fast, rotates by the token's index, and the upper half by the segment's.

    Options:
        theta: as of `Rope`.
    """

    reads_inside = True

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)

    @classmethod
    def validate(cls, config: LlamaConfig, **options: Any) -> None:
        super().validate(config, **options)
        refuse_scaling("hirope", config)

    def forward(self, query: Positions, key: Positions, dtype: torch.dtype) -> Relation:
        tables = [self.tables(index, dtype) for index in (query.token, query.segment)]
        half = self.rotary.inv_freq.shape[0]
        slow = (torch.arange(half, device=query.token.device) >= (half + 1) // 2).repeat(2)
        rotation: Rotation = (
            torch.where(slow, tables[1][0], tables[0][0]),
            torch.where(slow, tables[1][1], tables[0][1]),
        )
        return Relation(query_rotation=rotation, key_rotation=rotation)
